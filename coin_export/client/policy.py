"""When helping requests go out, and when missing answers are decoded. Values only: no clock, no state.

A request asks the *wanted* originals at once. All other members (the coded models, and originals that are not
wanted) only help decoding: they are asked when ``coded`` says so, or at once when a wanted original fails.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Protocol

from coin_export.errors import UserError


class CodedTiming(Protocol):
    """When the members that only help decoding are asked."""

    def coded_at(self, started: float) -> float:
        """Return the time to ask them, on the clock on which the request began at ``started``."""
        ...


class DecodeTiming(Protocol):
    """When missing answers are decoded; never later than the request's deadline."""

    def decode_at(self, started: float, decodable: float) -> float:
        """Return the time to decode, given when the request began and when enough had arrived; may be infinite."""
        ...


@dataclass(frozen=True)
class AtOnce:
    """Ask every member at once: the shortest tail, for m/k more requests."""

    def coded_at(self, started: float) -> float:
        """See `CodedTiming`."""
        return started


@dataclass(frozen=True)
class AfterDelay:
    """Ask the helping members only when a wanted answer is still missing after ``seconds``.

    Raises:
        UserError: if ``seconds`` is negative or not finite.
    """

    seconds: float

    def __post_init__(self) -> None:
        _check("AfterDelay.seconds", self.seconds)

    def coded_at(self, started: float) -> float:
        """See `CodedTiming`."""
        return started + self.seconds


@dataclass(frozen=True)
class AsSoonAsDecodable:
    """Decode at once when enough has arrived, even if a direct answer is about to come."""

    def decode_at(self, started: float, decodable: float) -> float:
        """See `DecodeTiming`."""
        return decodable


@dataclass(frozen=True)
class AfterGrace:
    """Wait a little for the direct answers once decoding is possible.

    The grace is ``share`` of the time it took to become decodable, and at least ``at_least_s``: servers in good
    health answer within about twice the time of the fastest of them, so a healthy group returns direct answers,
    and a straggler costs about one ordinary latency more.

    Raises:
        UserError: if an attribute is negative or not finite.
    """

    at_least_s: float = 0.002
    share: float = 1.0

    def __post_init__(self) -> None:
        _check("AfterGrace.at_least_s", self.at_least_s)
        _check("AfterGrace.share", self.share)

    def decode_at(self, started: float, decodable: float) -> float:
        """See `DecodeTiming`."""
        return decodable + max(self.at_least_s, self.share * (decodable - started))


@dataclass(frozen=True)
class AtDeadline:
    """Decode only when the deadline has come or the missing originals have failed: the most direct answers."""

    def decode_at(self, started: float, decodable: float) -> float:
        """See `DecodeTiming`."""
        return math.inf


@dataclass(frozen=True)
class Policy:
    """How one request is run.

    The default asks everybody at once and decodes after a short grace: the shortest tail that still returns
    direct answers while all is well.

    Attributes:
        coded: when the members that only help decoding are asked.
        decode: when missing answers are decoded.
    """

    coded: CodedTiming = field(default_factory=AtOnce)
    decode: DecodeTiming = field(default_factory=AfterGrace)


def _check(what: str, seconds: float) -> None:
    if not 0 <= seconds < math.inf:
        raise UserError(f"{what} is {seconds}; give a finite number that is not negative")
