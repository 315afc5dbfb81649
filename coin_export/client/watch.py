"""One observed request: keeps what becomes of its calls, and tells the observers of each end exactly once."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import replace

from coin_export.client.answer import Answers, Source
from coin_export.client.observer import (
    CallEnd,
    CallInfo,
    CallOutcome,
    Observers,
    RequestEnd,
    RequestInfo,
    RequestOutcome,
)
from coin_export.client.server import Server
from coin_export.client.transport import RequestOptions
from coin_export.code.manifest import Group


class CallWatch:
    """Watches one call, from just before it is sent.

    Args:
        observers: are told.
        info: the call.
        row: its member.
        sent: the loop's time at which it is sent.
    """

    def __init__(self, observers: Observers, info: CallInfo, row: int, sent: float) -> None:
        self._observers = observers
        self._info = info
        self._row = row
        self._sent = sent
        self._outcome: CallOutcome | None = None
        self._latency_s = 0.0
        self._error = ""

    @property
    def may_be_used(self) -> bool:
        """Whether it has brought an answer."""
        return self._outcome is CallOutcome.WASTED

    def answered(self, now: float, problem: str) -> None:
        """Take note of an answer; ``problem`` says why it is none that can be used, if so."""
        # Whether it is used shows when the request ends.
        self._note(CallOutcome.FAILED if problem else CallOutcome.WASTED, now, problem)

    def unheard(self, now: float, error: BaseException | None) -> None:
        """Take note that a call ended after its request did and before it was released."""
        self.answered(now, _text(error))

    def released(self, now: float, *, cancelled: bool) -> None:
        """Take note that nobody waits for the call any more."""
        self._note(CallOutcome.CANCELLED if cancelled else CallOutcome.ABANDONED, now)

    def settle(self, used: Collection[int]) -> None:
        """Tell what became of the call, given the rows that the request's answers were made from."""
        outcome = self._outcome
        assert outcome is not None
        if outcome is CallOutcome.WASTED and self._row in used:
            outcome = CallOutcome.USED
        end = CallEnd(outcome, self._latency_s, self._error)
        self._observers.tell(lambda observer: observer.call_ended(self._info, end))

    def ended_late(self, now: float, error: BaseException | None) -> None:
        """Tell that the call ended after it was abandoned."""
        text = _text(error)
        self._observers.tell(lambda observer: observer.call_ended_late(self._info, now - self._sent, text))

    def _note(self, outcome: CallOutcome, now: float, error: str = "") -> None:
        if self._outcome is None:
            self._outcome, self._latency_s, self._error = outcome, now - self._sent, error


class RequestWatch:
    """Watches one request, from its beginning.

    Args:
        observers: are told.
        group: what is asked.
        wanted: rows of the originals to answer for, or to take the mean of.
        names: of the answers that are due.
        batch: the batch size.
        options: of the request.
        started: the loop's time at which it began.
        deadline: the loop's time at which it must have ended.
    """

    def __init__(
        self,
        observers: Observers,
        group: Group,
        wanted: Sequence[int],
        names: tuple[str, ...],
        batch: int,
        options: RequestOptions,
        started: float,
        deadline: float,
    ) -> None:
        self._observers = observers
        self._members = group.members
        self._wanted = wanted
        self._started = started
        self._calls: list[CallWatch] = []
        info = self._info = RequestInfo(group.name, names, batch, options.request_id, deadline - started)
        observers.tell(lambda observer: observer.request_begun(info))

    def send(self, row: int, server: Server, options: RequestOptions, now: float) -> tuple[CallWatch, RequestOptions]:
        """Tell of a call that is about to be sent; return its watch, and the options to send it with."""
        member, wanted, down = self._members[row], row in self._wanted, bool(server.down)
        info = CallInfo(
            self._info,
            member.name,
            server.address,
            server.transport.protocol,
            member.role == "coded",
            wanted,
            down,
        )
        call = CallWatch(self._observers, info, row, now)
        self._calls.append(call)
        headers = self._observers.headers(info)
        if not headers:
            return call, options
        # What the caller asks for goes before what an observer adds.
        return call, replace(options, headers={**headers, **options.headers})

    def settle(self, used: Collection[int] = (), *, more_to_come: bool = False) -> None:
        """Tell what became of the calls so far.

        Args:
            used: the rows that the answers were made from.
            more_to_come: whether an answer that has come may be used yet, by another attempt.
        """
        calls, self._calls = self._calls, []
        for call in calls:
            if more_to_come and call.may_be_used:
                self._calls.append(call)
            else:
                call.settle(used)

    def end(
        self,
        answers: Answers | None,
        error: BaseException | None,
        *,
        decode_s: float,
        refusals: int,
        budget_left: float,
    ) -> None:
        """Tell how the request ended: with answers, or with an error."""
        self.settle()
        sources = {model: answer.source for model, answer in (answers or {}).items()}
        if isinstance(error, asyncio.CancelledError):
            outcome = RequestOutcome.CANCELLED
        elif error is not None:
            outcome = RequestOutcome.FAILED
        else:
            decoded = Source.DECODED in sources.values()
            outcome = RequestOutcome.DECODED if decoded else RequestOutcome.DIRECT
        elapsed_s = asyncio.get_running_loop().time() - self._started
        text = "" if error is None else str(error) or type(error).__name__
        end = RequestEnd(outcome, elapsed_s, sources, decode_s, refusals, budget_left, text)
        self._observers.tell(lambda observer: observer.request_ended(self._info, end))


def _text(error: BaseException | None) -> str:
    if isinstance(error, asyncio.CancelledError):
        return "the client was closed"
    return "" if error is None else str(error) or type(error).__name__
