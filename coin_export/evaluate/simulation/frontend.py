"""Front ends: they make requests and carry out what the client's own state machine decides, on the virtual clock.

The counterpart of `client.fanout.Fanout`, with the safety rule in force: no call is ever cancelled, an abandoned
one is executed and its late answer still teaches the memory. Breakers and the bound on abandoned calls are left
out, so a stopped server goes on being asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

from coin_export.client.gather import Action, Gather, Send, Wake
from coin_export.client.memory import Memory
from coin_export.code.linear import LinearCode
from coin_export.evaluate.simulation.clock import Clock
from coin_export.evaluate.simulation.results import Tally
from coin_export.evaluate.simulation.scheme import Scheme
from coin_export.evaluate.simulation.server import Call, Server


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


class _Request:
    __slots__ = ("gather", "index", "servers", "wake_at", "works")

    def __init__(self, index: int, gather: Gather, servers: Sequence[Server], works: Sequence[float]) -> None:
        self.index = index
        self.gather = gather
        self.servers = servers
        self.works = works
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
    ) -> None:
        self._clock = clock
        self._scheme = scheme
        self._code = code
        self._demand = demand
        self._works = works
        self._memories = memories
        self._tally = tally
        self._groups: Sequence[Sequence[Server]] = ()

    def start(self, groups: Sequence[Sequence[Server]]) -> None:
        """Begin; ``groups`` are the servers of each group's rows."""
        self._groups = groups
        self._clock.at(self._demand.arrivals_s[0], self._begin, 0)

    def done(self, call: Call) -> None:
        """Take the answer of a call."""
        request = cast(_Request, call.request)
        self._tally.executed += 1
        self._tally.executed_s += call.work
        actions = request.gather.arrived(call.row, self._clock.now)
        if actions:
            self._carry_out(request, actions)

    def _begin(self, index: int) -> None:
        demand, now = self._demand, self._clock.now
        group = demand.groups[index]
        gather = Gather(
            self._code,
            demand.wanted[index % len(demand.wanted)],
            self._scheme.policy,
            self._memories[group % len(self._memories)],
            now,
            now + demand.deadline_s,
        )
        servers = self._groups[group]
        if self._scheme.balanced:
            servers = self._balance(servers)
        request = _Request(index, gather, servers, next(self._works))
        self._carry_out(request, gather.start())
        if index + 1 < len(demand.arrivals_s):
            self._clock.at(demand.arrivals_s[index + 1], self._begin, index + 1)

    def _balance(self, servers: Sequence[Server]) -> list[Server]:
        """Put the copy with fewer calls outstanding in the place of the original that it is a copy of."""
        k = self._code.k
        chosen = list(servers)
        for copy in range(k, len(chosen)):
            if chosen[copy].outstanding < chosen[copy - k].outstanding:
                chosen[copy], chosen[copy - k] = chosen[copy - k], chosen[copy]
        return chosen

    def _carry_out(self, request: _Request, actions: Sequence[Action]) -> None:
        for action in actions:
            if isinstance(action, Send):
                self._send(request, action.rows)
            elif isinstance(action, Wake):
                request.wake_at = action.at
                self._clock.at(action.at, self._wake, request)
            else:
                self._tally.ended(request.index, self._clock.now - request.gather.started, action)

    def _wake(self, request: _Request) -> None:
        if request.wake_at == self._clock.now:  # else another wake has replaced this one
            self._carry_out(request, request.gather.woken(self._clock.now))

    def _send(self, request: _Request, rows: Sequence[int]) -> None:
        calls = [Call(request, row, request.works[row]) for row in rows]
        if self._scheme.tied:
            _tie(calls, request.servers, self._code.k)
        for call in calls:
            if not call.dropped:
                request.servers[call.row].submit(call)


def _tie(calls: list[Call], servers: Sequence[Server], k: int) -> None:
    """Tie the calls to an original and to its copy, and have the shorter queue be asked first."""
    originals = {call.row: call for call in calls if call.row < k}
    for copy in calls:
        original = originals.get(copy.row - k)
        if original is not None:
            copy.twin, original.twin = original, copy
    calls.sort(key=lambda call: servers[call.row].outstanding)
