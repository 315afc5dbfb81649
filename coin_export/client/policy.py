"""When helping requests go out, where they go, and when missing answers are decoded. Values only: no clock, no state.

A request asks the *wanted* originals at once. All other members (the coded models, and originals that are not
wanted) only help decoding: the fewest that make up for what is missing are asked when ``coded`` says that it is
late and the budget allows it, or at once when a wanted original fails or is known to be down. A helper that is
late itself, by the same measure, is helped in turn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from coin_export.client.budget import Budget
from coin_export.client.latency import CAPACITY, Latencies
from coin_export.client.routing import FewestOutstanding, Routing
from coin_export.errors import UserError


class Begun(NamedTuple):
    """Calls that begin: those to the wanted originals, or later those to members that help.

    Attributes:
        started: when they began.
        deadline: when the request must have ended, on the same clock; infinite for never.
        wanted: the number of calls.
    """

    started: float
    deadline: float
    wanted: int


class Decodable(NamedTuple):
    """What has arrived is enough to decode what is missing.

    Attributes:
        started: when the request began.
        helped: when the members that only help decoding were asked.
        at: when enough had arrived.
    """

    started: float
    helped: float
    at: float


class CodedTiming(Protocol):
    """When calls count as late, so that members that only help decoding are asked."""

    def coded_at(self, request: Begun, recent: Latencies) -> float:
        """Return the time to ask for help, given how long originals took lately; may be infinite.

        A time that is not after the request's start asks every member with it.
        """
        ...


class DecodeTiming(Protocol):
    """When missing answers are decoded; never later than the request's deadline."""

    def decode_at(self, decodable: Decodable, recent: Latencies) -> float:
        """Return the time to decode, given how long originals took lately; may be infinite."""
        ...


@dataclass(frozen=True)
class AtOnce:
    """Ask every member at once: the shortest tail, for m/k more requests."""

    def coded_at(self, request: Begun, recent: Latencies) -> float:
        """See `CodedTiming`."""
        return request.started


@dataclass(frozen=True)
class AfterDelay:
    """Ask the helping members only when a wanted answer is still missing after ``seconds``.

    Raises:
        UserError: if ``seconds`` is negative or not finite.
    """

    seconds: float

    def __post_init__(self) -> None:
        _check("AfterDelay.seconds", self.seconds)

    def coded_at(self, request: Begun, recent: Latencies) -> float:
        """See `CodedTiming`."""
        return request.started + self.seconds


@dataclass(frozen=True)
class AfterQuantile:
    """Ask for help when a wanted answer takes clearly longer than all but a few recent calls did.

    Each call is waited for up to ``factor`` times the ``q`` quantile of recent single calls, however many the request
    makes. With a factor of 1 the share ``1 - q`` of the calls of a group in perfect health is helped for nothing; a
    larger factor tells stragglers, which are late by many times, from the merely unlucky. Where the share of late calls
    in the window is above ``1 - q``, slow is what is usual, up to twice what is usual for the typical member (where the
    window holds twenty calls of two members or more). So a window should be long against a stop: 4,096 calls have room
    for one of 0.3 s of one server in two at up to some 600 requests a second.

    Attributes:
        q: the quantile of recent calls.
        factor: how many times that quantile is waited.
        window: the number of recent calls that count.
        start_s: how long to wait while too few are known.

    A request with a deadline is helped at the latest when half its time is over, as help takes time too.

    Raises:
        UserError: if an attribute is out of its range.
    """

    q: float = 0.95
    factor: float = 1.25
    window: int = CAPACITY
    start_s: float = 0.05

    def __post_init__(self) -> None:
        if not 0 < self.q < 1:
            raise UserError(f"AfterQuantile.q is {self.q}; give a number between 0 and 1, such as 0.95")
        if not 0 < self.factor < math.inf:
            raise UserError(f"AfterQuantile.factor is {self.factor}; give a positive number, such as 1.25")
        if not 1 <= self.window <= CAPACITY:
            raise UserError(f"AfterQuantile.window is {self.window}; give a number of calls from 1 to {CAPACITY}")
        _check("AfterQuantile.start_s", self.start_s)

    def coded_at(self, request: Begun, recent: Latencies) -> float:
        """See `CodedTiming`."""
        late_s = self.late_s(recent)
        at = request.started + (self.start_s if late_s is None else late_s)
        return min(at, (request.started + request.deadline) / 2)

    def late_s(self, recent: Latencies) -> float | None:
        """Return after how many seconds a call counts as late; None while too few latencies are known."""
        usual = recent.usual(self.q, self.window)
        return None if usual is None else self.factor * usual


@dataclass(frozen=True)
class OnlyWhenDown:
    """Ask the helping members only in place of one that fails or is known to be down: no help against slowness."""

    def coded_at(self, request: Begun, recent: Latencies) -> float:
        """See `CodedTiming`."""
        return math.inf


@dataclass(frozen=True)
class AsSoonAsDecodable:
    """Decode at once when enough has arrived, even if a direct answer is about to come."""

    def decode_at(self, decodable: Decodable, recent: Latencies) -> float:
        """See `DecodeTiming`."""
        return decodable.at


@dataclass(frozen=True)
class AfterGrace:
    """Wait a little for the direct answers once decoding is possible, unless they are late already.

    The grace is ``share`` of the time from asking the helping members to being decodable, as servers in good health
    answer within about twice the time of the fastest of them; but it ends when a direct answer counts as late by
    ``late``. So a healthy group returns nearly all answers directly, and help that was asked for because an answer was
    late by the same measure is taken as soon as it comes. What is late is known after some calls; the first ones of a
    client are given their share. ``at_least_s`` seconds are waited whatever the rest says.

    Raises:
        UserError: if a number is negative or not finite.
    """

    at_least_s: float = 0.0
    share: float = 1.0
    late: AfterQuantile = field(default_factory=AfterQuantile)

    def __post_init__(self) -> None:
        _check("AfterGrace.at_least_s", self.at_least_s)
        _check("AfterGrace.share", self.share)

    def decode_at(self, decodable: Decodable, recent: Latencies) -> float:
        """See `DecodeTiming`."""
        grace = self.share * (decodable.at - decodable.helped)
        late_s = self.late.late_s(recent)
        if late_s is not None:
            grace = min(grace, decodable.started + late_s - decodable.at)
        return decodable.at + max(self.at_least_s, grace)


@dataclass(frozen=True)
class AtDeadline:
    """Decode only when the deadline has come or the missing originals have failed: the most direct answers."""

    def decode_at(self, decodable: Decodable, recent: Latencies) -> float:
        """See `DecodeTiming`."""
        return math.inf


@dataclass(frozen=True)
class Policy:
    """How one request is run.

    The default asks for help when an answer takes a quarter longer than nineteen in twenty do, within a budget of a
    tenth more requests, and takes that help as soon as it comes: nearly no extra load while all is well.
    ``Policy(coded=AtOnce())`` gives the shortest tail, for m/k more requests.

    Attributes:
        coded: when the members that only help decoding are asked.
        decode: when missing answers are decoded.
        budget: bounds the help against slowness.
        route: chooses among the servers of one member.
    """

    coded: CodedTiming = field(default_factory=AfterQuantile)
    decode: DecodeTiming = field(default_factory=AfterGrace)
    budget: Budget = field(default_factory=Budget)
    route: Routing = field(default_factory=FewestOutstanding)


def _check(what: str, seconds: float) -> None:
    if not 0 <= seconds < math.inf:
        raise UserError(f"{what} is {seconds}; give a finite number that is not negative")
