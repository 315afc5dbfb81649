"""Front ends: they make requests and carry out what the client's own state machine decides, on the virtual clock.

The counterpart of `client.fanout.Fanout`, with the safety rule in force: no call is ever cancelled, an abandoned
one is executed, and its late answer still teaches the memory.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

from coin_export.client.gather import Action, Gather, Send, Wake
from coin_export.client.memory import Memory
from coin_export.client.server import Limits
from coin_export.code.linear import LinearCode
from coin_export.evaluate.simulation.clock import Clock
from coin_export.evaluate.simulation.line import Line
from coin_export.evaluate.simulation.results import Tally
from coin_export.evaluate.simulation.scheme import Scheme
from coin_export.evaluate.simulation.server import Call, Server

DEFAULT_LIMITS = Limits()


@dataclass(frozen=True)
class Demand:
    """What is asked for.

    Attributes:
        arrivals_s: when each request begins, in order.
        groups: the group of each.
        wanted: the originals that each wants; cyclically one after the other if there are several choices.
        deadline_s: how long a request may take.
    """

    arrivals_s: Sequence[float]
    groups: Sequence[int]
    wanted: Sequence[tuple[int, ...]]
    deadline_s: float


class _Group:
    __slots__ = ("lines", "suspects")

    def __init__(self, lines: Sequence[Line]) -> None:
        self.lines = lines
        self.suspects: dict[Line, None] = {}  # those that were down, and may be, in order

    def suspect(self, line: Line) -> None:
        """Look up a server that has come to count as down."""
        self.suspects[line] = None
        self.look_up()

    def look_up(self) -> None:
        """Look up those that are down."""
        for line in tuple(self.suspects):
            if line.down:
                line.look_up()
            else:
                del self.suspects[line]


class _Request:
    __slots__ = ("calls", "gather", "group", "index", "lines", "wake_at", "works")

    def __init__(
        self, index: int, gather: Gather, group: _Group, lines: Sequence[Line], works: Sequence[float]
    ) -> None:
        self.index = index
        self.gather = gather
        self.group = group
        self.lines = lines
        self.works = works
        self.calls: list[Call] = []
        self.wake_at = 0.0


class FrontEnd:
    """Makes all requests of a run.

    Args:
        clock: the simulation's.
        scheme: how requests are answered.
        code: of every group.
        demand: what is asked for.
        works: for each request, the seconds of work of a call to each row; rows without a server need none.
        memories: of the clients; group g belongs to the one at g modulo their number.
        tally: told of every request's end.
        limits: of the clients.
    """

    def __init__(
        self,
        clock: Clock,
        scheme: Scheme,
        code: LinearCode,
        demand: Demand,
        works: Iterator[list[float]],
        memories: Sequence[Memory],
        tally: Tally,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self._clock = clock
        self._scheme = scheme
        self._code = code
        self._demand = demand
        self._works = works
        self._memories = memories
        self._tally = tally
        self._limits = limits
        self._groups: Sequence[_Group] = ()

    def start(self, groups: Sequence[Sequence[Server]]) -> None:
        """Begin; ``groups`` are the servers of each group's rows."""
        self._groups = [_Group([Line(self._clock, server, self._limits) for server in servers]) for servers in groups]
        self._clock.at(self._demand.arrivals_s[0], self._begin, 0)

    def done(self, call: Call) -> None:
        """Take the answer of a call."""
        request = cast(_Request, call.request)
        line = request.lines[call.row]
        line.answered()
        self._time(request, call, answered=True)
        line.abandoned.discard(call)
        if self._scheme.tied:  # its twin never ends
            for other in request.calls:
                if other.dropped:
                    request.lines[other.row].abandoned.discard(other)
        self._tally.executed += 1
        self._tally.executed_s += call.work
        actions = request.gather.arrived(call.row, self._clock.now)
        if actions:
            self._carry_out(request, actions)

    def _begin(self, index: int) -> None:
        demand, now = self._demand, self._clock.now
        number = demand.groups[index]
        group = self._groups[number]
        if group.suspects:
            group.look_up()
        gather = Gather(
            self._code,
            demand.wanted[index % len(demand.wanted)],
            self._scheme.policy,
            self._memories[number % len(self._memories)],
            now,
            now + demand.deadline_s,
        )
        lines = self._balance(group.lines) if self._scheme.balanced else group.lines
        request = _Request(index, gather, group, lines, next(self._works))
        self._carry_out(request, gather.start())
        if index + 1 < len(demand.arrivals_s):
            self._clock.at(demand.arrivals_s[index + 1], self._begin, index + 1)

    def _balance(self, lines: Sequence[Line]) -> list[Line]:
        """Put the copy with fewer calls outstanding in the place of the original that it is a copy of."""
        k = self._code.k
        chosen = list(lines)
        for copy in range(k, len(chosen)):
            first, second = chosen[copy - k], chosen[copy]
            if second.usable and (not first.usable or second.server.outstanding < first.server.outstanding):
                chosen[copy], chosen[copy - k] = chosen[copy - k], chosen[copy]
        return chosen

    def _carry_out(self, request: _Request, actions: Sequence[Action]) -> None:
        left = deque(actions)
        while left:
            action = left.popleft()
            if isinstance(action, Send):
                left.extend(self._send(request, action))
            elif isinstance(action, Wake):
                request.wake_at = action.at
                self._clock.at(action.at, self._wake, request)
            else:
                self._tally.ended(request.index, self._clock.now - request.gather.started, action)
                self._release(request)

    def _wake(self, request: _Request) -> None:
        if request.wake_at == self._clock.now:  # else another wake has replaced this one
            request.wake_at = math.inf
            self._carry_out(request, [*self._judge(request), *request.gather.woken(self._clock.now)])

    def _judge(self, request: _Request) -> list[Action]:
        """Judge the servers that are still waited for: help in place of one that counts as down is free."""
        gather, now = request.gather, self._clock.now
        actions: list[Action] = []
        for call in request.calls:
            if not (call.ended or call.dropped):
                if gather.refusals:
                    self._time(request, call)
                    if self._is_overdue(request, call):
                        call.overdue = True  # and late anew at every look
                        self._blame(request, call)
                if request.lines[call.row].down:
                    actions += gather.doubted(call.row, now)
        return actions

    def _is_overdue(self, request: _Request, call: Call) -> bool:
        return self._clock.now - call.sent >= request.gather.patience_s

    def _blame(self, request: _Request, call: Call) -> None:
        """Hold a call that is overdue against its server."""
        line = request.lines[call.row]
        if line.late():
            request.group.suspect(line)

    def _time(self, request: _Request, call: Call, answered: bool = False) -> None:
        """Let the time that a call has taken speak against its server, once; or for it, if there is an answer."""
        now, line = self._clock.now, request.lines[call.row]
        prompt = request.gather.comparison.judge(call.row, now - call.sent, answered)
        if prompt:
            line.lag.prompt(now)
        elif prompt is not None and line.lag.late(now, call.sent) and not line.down:
            self._do_without(request.group, line)

    def _do_without(self, group: _Group, line: Line) -> None:
        """Do without a slow server for some time, if the others suffice and are not slow themselves."""
        others = [(row, other) for row, other in enumerate(group.lines) if other is not line]
        if self._code.decodable([row for row, other in others if other.usable and not other.lag.lagging]):
            line.leave_alone()
            group.suspect(line)
            return
        for _, other in others:
            other.try_again()
        group.look_up()

    def _send(self, request: _Request, send: Send) -> list[Action]:
        now, gather = self._clock.now, request.gather
        actions: list[Action] = []
        calls = []
        for row in send.rows:
            if gather.ended:
                break
            line = request.lines[row]
            if line.usable or (send.though_down and line.has_room):
                calls.append(Call(request, row, request.works[row], now))
            else:
                actions += (gather.failed if send.though_down else gather.withheld)(row, now)
        if self._scheme.tied:
            _tie(calls, request.lines, self._code.k)
        request.calls += calls
        for call in calls:
            if not call.dropped:
                request.lines[call.row].server.submit(call)
        return actions

    def _release(self, request: _Request) -> None:
        """Lose interest in what is under way."""
        request.wake_at = math.inf
        for call in request.calls:
            if not (call.ended or call.dropped):
                self._time(request, call)
                if not call.overdue and self._is_overdue(request, call):
                    self._blame(request, call)
                request.lines[call.row].abandoned.add(call)


def _tie(calls: list[Call], lines: Sequence[Line], k: int) -> None:
    """Tie the calls to an original and to its copy, and have the shorter queue be asked first."""
    originals = {call.row: call for call in calls if call.row < k}
    for copy in calls:
        original = originals.get(copy.row - k)
        if original is not None:
            copy.twin, original.twin = original, copy
    calls.sort(key=lambda call: lines[call.row].server.outstanding)
