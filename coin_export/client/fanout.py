"""One request on asyncio: carries out what the state machine in `gather` decides. No locks, no threads.

One task per call that is sent, one timer, one future for the caller.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

from coin_export.client.answer import Array, Outputs
from coin_export.client.build import Build
from coin_export.client.gather import Action, Finish, Gather, GiveUp, Send, Wake
from coin_export.client.server import Server, Task
from coin_export.client.transport import Reply, RequestOptions
from coin_export.client.watch import CallWatch, RequestWatch
from coin_export.errors import TransportError

_MOST_SERVERS = 2  # that a request asks for one member


class Request(NamedTuple):
    """What is sent to every member that is asked.

    Attributes:
        encoded: the inputs, as `Transport.encode` made them.
        batch: the batch size of the inputs.
        options: what travels with them.
        started: the loop's time at which the caller asked.
        ends: the loop's time at which the request must have ended; infinite for never.
    """

    encoded: Any
    batch: int
    options: RequestOptions
    started: float
    ends: float


class _Call(NamedTuple):
    server: Server
    task: Task
    sent: float
    watch: CallWatch | None


class Fanout:
    """A request under way.

    Args:
        gather: decides.
        build: chooses servers, and checks what comes back.
        request: what is sent.
        watch: is told of every call; None when nobody watches.
        earlier: the last attempt at the same request on the same build, whose answers count.

    Attributes:
        request: what is sent.
        group: the build that is asked.
        outcome: how the request ended; an exception that nobody foresaw is handed to the caller through it.
        replies: usable answers by row.
        latency_s: seconds from the start to these answers, by row.
        failures: why other members did not answer, by row.
        decode_s: seconds spent on decoding.
    """

    def __init__(
        self,
        gather: Gather,
        build: Build,
        request: Request,
        watch: RequestWatch | None = None,
        earlier: Fanout | None = None,
    ) -> None:
        self.request = request
        self.group = build.group
        self.replies: dict[int, Reply] = dict(earlier.replies) if earlier else {}
        self.latency_s: dict[int, float] = dict(earlier.latency_s) if earlier else {}
        self.failures: dict[int, str] = {}
        self.decode_s = 0.0
        self._gather = gather
        self._build = build
        self._watch = watch
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._calls: dict[int, _Call] = {}
        # An answer that the others must agree with.
        self._accepted: Outputs | None = next((reply.outputs for reply in self.replies.values()), None)
        self._overdue: set[int] = set()  # calls that count as misses of their servers already
        self._problems: dict[int, dict[Server, str]] = {}  # by row, with the servers that could not answer
        self._unusable: list[tuple[Server, str]] = []  # of these, the servers whose answers were at fault
        self._closed_at = math.inf
        self.outcome: asyncio.Future[Finish | GiveUp] = self._loop.create_future()

    @property
    def elapsed_s(self) -> float:
        """Seconds since the request began."""
        return self._loop.time() - self.request.started

    @property
    def refusals(self) -> int:
        """How often the budget had too little left."""
        return self._gather.refusals

    def start(self) -> None:
        """Send the first calls."""
        self._tell(self._begin)

    def close(self) -> None:
        """Lose interest: release the calls that nobody waits for any more."""
        self._set_timer(math.inf)
        now = self._closed_at = self._loop.time()
        ended = self.outcome.done() and not self.outcome.cancelled()  # else the caller lost interest
        for row, call in self._calls.items():
            if call.task.done():
                continue
            if ended:
                _judge(self._gather, row, call, now, answered=False)
            overdue = ended and row not in self._overdue and self._is_overdue(call, now)
            if overdue and call.server.transport.may_cancel:
                # Cancelled, it cannot show by a late answer that its server is well.
                overdue = row in self._gather.lacked
            on_late = partial(_learn_late, self._gather, row, call)
            cancelled = call.server.release(call.task, on_late, overdue=overdue)
            if cancelled and ended:
                self._gather.overtaken(row, now)
            if call.watch is not None:
                call.watch.released(now, cancelled=cancelled)
        used = self._used_rows()
        if used:  # else it may be the request, not its servers, that nobody could make anything of
            for server, problem in self._unusable:
                server.unusable(problem)
        if self._watch is not None:
            self._watch.settle(used, more_to_come=ended and not used)

    def outputs(self, rows: Iterable[int], name: str) -> list[Array]:
        """Return one output of the given members, whose answers have arrived."""
        return [self.replies[row].outputs[name] for row in rows]

    @property
    def silence(self) -> dict[int, str]:
        """Say which servers were asked and had neither answered nor failed when the request was closed, by row."""
        found = {}
        for row, call in self._calls.items():
            if row not in self.replies and row not in self.failures:
                silence = f"server {call.server.address}: no answer after {1e3 * (self._closed_at - call.sent):.0f} ms"
                found[row] = "; ".join([*self._problems.get(row, {}).values(), silence])
        return found

    def _tell(self, event: Callable[..., list[Action]], *what: Any) -> None:
        """Tell the state machine of an event and carry out, in order, what it decides.

        Args:
            event: takes ``what`` and the time.
            what: happened.
        """
        if self.outcome.done():
            return
        try:
            now = self._loop.time()
            actions = event(*what, now)
            for action in actions:  # what one of them leads to is carried out after the others
                if isinstance(action, Send):
                    actions += self._send(action, now)
                elif isinstance(action, Wake):
                    self._set_timer(action.at)
                else:
                    self.outcome.set_result(action)
        except Exception as error:
            # In a callback of the event loop it would be logged, and the caller would wait for ever.
            self.outcome.set_exception(error)

    def _begin(self, now: float) -> list[Action]:
        return self._gather.start()

    def _send(self, send: Send, now: float) -> list[Action]:
        actions: list[Action] = []
        for row in send.rows:
            server = self._build.route(row, send.though_down, self._problems.get(row, ()))
            if server is None:
                self.failures[row] = self._build.why_no_route(row)
                told = self._gather.failed if send.though_down else self._gather.withheld
                actions += told(row, now)
            elif not self._gather.ended:
                self._call(row, server, now)
        return actions

    def _call(self, row: int, server: Server, now: float) -> None:
        self.failures.pop(row, None)  # it was withheld before
        request, signature = self.request, self._build.signature
        model = signature.members[row]
        watch, options = None, request.options.of_call(model, request.ends - now)
        if self._watch is not None:
            watch, options = self._watch.send(row, server, options, now)
        what = (model, request.encoded, signature.output_names, options, self._build.versions[row])
        task = server.call(partial(self._ended, row), server.transport.infer, *what)
        self._calls[row] = _Call(server, task, now, watch)

    def _used_rows(self) -> set[int]:
        """Return the rows that the answers are made from; none when there are no answers."""
        outcome = self.outcome
        finish = outcome.result() if outcome.done() and not outcome.cancelled() and not outcome.exception() else None
        if not isinstance(finish, Finish):
            return set()
        return {*finish.direct, *(finish.decoding.sources if finish.decoding is not None else ())}

    def _set_timer(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if at == math.inf else self._loop.call_at(at, self._tell, self._woken)

    def _woken(self, now: float) -> list[Action]:
        """Judge the servers that are still waited for, too: help in place of one that counts as down is free."""
        actions: list[Action] = []
        for row, call in self._calls.items():
            if call.task.done():
                continue
            if self._gather.refusals:
                _judge(self._gather, row, call, now, answered=False)
                if self._is_overdue(call, now):
                    # Without help it would be waited for until the deadline, and be found out only then. It is late
                    # anew at every look, as the breaker wants to see that lateness goes on.
                    self._overdue.add(row)
                    call.server.late()
            if call.server.down:
                actions += self._gather.doubted(row, now)
        return actions + self._gather.woken(now)

    def _is_overdue(self, call: _Call, now: float) -> bool:
        return now - call.sent >= self._gather.patience_s

    def _ended(self, row: int, reply: Reply | None, error: BaseException | None) -> None:
        call = self._calls[row]
        if not self.outcome.done():
            self._tell(self._receive, row, call, reply, error)
        elif call.watch is not None:
            call.watch.unheard(self._loop.time(), error)

    def _receive(
        self, row: int, call: _Call, reply: Reply | None, error: BaseException | None, now: float
    ) -> list[Action]:
        problem = self._take(row, call.server, reply, error, now)
        if call.watch is not None:
            call.watch.answered(now, problem)
        if not problem:
            call.server.usable_answer()
            _judge(self._gather, row, call, now, answered=True)
            return self._gather.arrived(row, now)
        problems = self._problems.setdefault(row, {})
        problems[call.server] = problem
        # Not one server after the other: they may fail because of the request.
        may_ask = len(problems) < _MOST_SERVERS and not isinstance(error, asyncio.CancelledError)
        may_ask = may_ask and now < self.request.ends
        other = self._build.route(row, besides=problems) if may_ask else None
        if other is not None:
            self._overdue.discard(row)
            self._gather.comparison.asked_anew(row)
            self._call(row, other, now)
            return []
        self.failures[row] = "; ".join(problems.values())
        last_resort = self._build.route(row, though_down=True, besides=problems) if may_ask else None
        told = self._gather.failed if last_resort is None else self._gather.withheld
        return told(row, now)

    def _take(self, row: int, server: Server, reply: Reply | None, error: BaseException | None, now: float) -> str:
        """Keep an answer; or say, if there is none that is usable, why not."""
        if isinstance(error, asyncio.CancelledError):
            return "the call was cancelled"
        if isinstance(error, TransportError):
            return str(error)
        if error is not None:
            raise error
        assert reply is not None
        signature = self._build.signature
        where = f"server {server.address}, model {signature.members[row]!r}"
        problem = self._build.problem_with(row, server, reply.model_version)
        if problem:
            return f"{where}: {problem}"
        problem = signature.problem_with(row, reply.outputs, self.request.batch, self._accepted)
        if problem:
            self._unusable.append((server, f"{where}: {problem}"))
            return f"{where}: {problem}"
        self._accepted = reply.outputs
        self.replies[row] = reply
        self.latency_s[row] = now - self.request.started
        return ""


def _learn_late(gather: Gather, row: int, call: _Call, reply: Reply | None, error: BaseException | None) -> None:
    """Learn from the answer of an abandoned call; holds on to nothing else of the request."""
    now = asyncio.get_running_loop().time()
    if error is None:
        _judge(gather, row, call, now, answered=True)
        gather.arrived(row, now)
    if call.watch is not None:
        call.watch.ended_late(now, error)


def _judge(gather: Gather, row: int, call: _Call, now: float, *, answered: bool) -> None:
    """Let the time that a call has taken speak for or against its server."""
    prompt = gather.comparison.judge(row, now - call.sent, answered)
    if prompt:
        call.server.lag.prompt(now)
    elif prompt is not None:
        call.server.took_too_long(call.sent, now)
