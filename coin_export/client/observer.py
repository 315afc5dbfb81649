"""What a client tells about its requests, calls and servers: one interface for metrics, traces and anything else.

The order of one request: it begins; calls begin; each of them ends, exactly once; the request ends, exactly once.
A call that is abandoned has ended for the request, and ends a second time, "late", when the server is done with it
or the client is closed. So at any time between requests

    begun = used + wasted + failed + abandoned + cancelled,

and once the client is closed every abandoned call has ended late.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType

from coin_export.client.answer import Source
from coin_export.client.transport import problem_with_headers
from coin_export.errors import UserError

logger = logging.getLogger("coin_export.client")

NO_HEADERS: Mapping[str, str] = MappingProxyType({})


class CallOutcome(Enum):
    """What became of a call, as its request saw it."""

    USED = "used"  # its answer was returned, or decoded from
    WASTED = "wasted"  # its answer came while the request was under way, and was not needed
    FAILED = "failed"  # an error, or an answer that is unusable
    ABANDONED = "abandoned"  # no answer when the request ended; the server goes on working on it
    CANCELLED = "cancelled"  # no answer when the request ended; cancelled on the wire


class RequestOutcome(Enum):
    """How a request ended."""

    DIRECT = "direct"  # every answer is its model's own
    DECODED = "decoded"  # at least one answer is decoded
    FAILED = "failed"
    CANCELLED = "cancelled"  # by the caller


@dataclass(eq=False, slots=True)
class RequestInfo:
    """A request under way; the same object in everything that is told about it. Not to be changed.

    Attributes:
        group: the group's name.
        wanted: the answers that are due: originals, or the group's own name for the mean of the ensemble.
        batch: the batch size of the inputs.
        request_id: as given by the caller.
        deadline_s: seconds from its beginning; infinite for none.
    """

    group: str
    wanted: tuple[str, ...]
    batch: int
    request_id: str
    deadline_s: float


@dataclass(eq=False, slots=True)
class CallInfo:
    """A call under way; the same object in everything that is told about it. Not to be changed.

    Attributes:
        request: the request that it is part of.
        model: the member that is asked.
        server: ``host:port``.
        protocol: ``grpc`` or ``http``; empty where the transport does not say.
        coded: whether the member is a coded model.
        wanted: whether its answer is wanted for itself; else it only helps decoding.
        though_down: whether the server counted as down, and was asked in spite of that.
    """

    request: RequestInfo
    model: str
    server: str
    protocol: str
    coded: bool
    wanted: bool
    though_down: bool


@dataclass(eq=False, slots=True)
class CallEnd:
    """How a call ended.

    Attributes:
        outcome: what became of it.
        latency_s: seconds from its beginning to its answer or failure, or to when nobody waited any more.
        error: why it failed; empty if it did not.
    """

    outcome: CallOutcome
    latency_s: float
    error: str = ""


@dataclass(eq=False, slots=True)
class RequestEnd:
    """How a request ended.

    Attributes:
        outcome: how.
        elapsed_s: seconds from its beginning.
        sources: where the answers come from, by name; those that there is no answer for are missing.
        decode_s: seconds spent on decoding; 0 when nothing was decoded.
        refusals: how often the budget had too little left for the helping calls that were due.
        budget_left: tokens left in the client's budget.
        error: the message of the error that was raised; empty if there was none.
    """

    outcome: RequestOutcome
    elapsed_s: float
    sources: Mapping[str, Source]
    decode_s: float
    refusals: int
    budget_left: float
    error: str = ""


class Observer:
    """Is told what a client does; every method does nothing until it is overridden.

    Methods are called in the client's event loop, in the middle of its work: they must be quick and must not
    block. One that raises is logged, and the observer is told nothing more. One observer may watch several clients.
    """

    def request_begun(self, request: RequestInfo) -> None:
        """Take note of a request that was found valid; called in the context (`contextvars`) of the caller."""

    def request_ended(self, request: RequestInfo, end: RequestEnd) -> None:
        """Take note of a request's end, after that of all its calls."""

    def call_begun(self, call: CallInfo) -> Mapping[str, str]:
        """Take note of a call that is about to be sent; return headers to send with it, with lower-case names."""
        return NO_HEADERS

    def call_ended(self, call: CallInfo, end: CallEnd) -> None:
        """Take note of what became of a call; told when its request ends."""

    def call_ended_late(self, call: CallInfo, latency_s: float, error: str) -> None:
        """Take note that an abandoned call has really ended: answered, or failed if ``error`` is not empty."""

    def server_down(self, address: str, reason: str) -> None:
        """Take note that a server counts as down and is asked no more: it misses calls, or too many are abandoned."""

    def server_up(self, address: str) -> None:
        """Take note that a server is in use, for the first time or again."""

    def build_changed(self, group: str, old: str, new: str) -> None:
        """Take note that requests go to another build of the group from now on; builds are named by their digests."""


class Observers:
    """The observers of one client; false when there are none."""

    def __init__(self, observers: Sequence[Observer] = ()) -> None:
        self._observers = tuple(observers)

    def __bool__(self) -> bool:
        return bool(self._observers)

    def tell(self, event: Callable[[Observer], object]) -> None:
        """Tell all of them."""
        for observer in self._observers:
            try:
                event(observer)
            except Exception:
                self._leave_out(observer)

    def headers(self, call: CallInfo) -> dict[str, str]:
        """Tell all of them that a call begins; return the headers that they want to send with it."""
        headers: dict[str, str] = {}

        def add_headers(observer: Observer) -> None:
            found = observer.call_begun(call)
            if not found:
                return
            problem = problem_with_headers(found)
            if problem:
                raise UserError(problem)
            headers.update(found)

        self.tell(add_headers)
        return headers

    def _leave_out(self, observer: Observer) -> None:
        self._observers = tuple(other for other in self._observers if other is not observer)
        name = type(observer).__name__
        logger.exception(
            "observer %s raised an error; it is told nothing more",
            name,
            extra={"event": "observer_failed", "observer": name},
        )
