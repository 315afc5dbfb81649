"""When servers are slow: periods drawn before the run, for each server by itself or for many of them together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

from coin_export.errors import UserError

_SETTLE = 10  # periods

Periods = Sequence[tuple[float, float]]


class Scope(Enum):
    """Who is slow at the same time."""

    SERVER = "server"
    DOMAIN = "domain"


@dataclass(frozen=True)
class Slowness:
    """A law of slow periods.

    Periods last from ``shortest_s`` to ``longest_s``, uniformly; the times between them are exponential.

    Attributes:
        share: of its time that a server is slow.
        shortest_s: of a period.
        longest_s: of a period.
        speed: of a slow server against its usual one; 0 when it stands still.
        scope: who is slow together.

    Raises:
        UserError: if an attribute is out of its range.
    """

    share: float = 0.0
    shortest_s: float = 0.020
    longest_s: float = 0.300
    speed: float = 0.0
    scope: Scope = Scope.SERVER

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise UserError(f"Slowness.share is {self.share}; give a share of the time, from 0 to below 1")
        if not 0 < self.shortest_s <= self.longest_s < math.inf:
            raise UserError(f"slow periods from {self.shortest_s} to {self.longest_s} s; give 0 < shortest <= longest")
        if not 0 <= self.speed < 1:
            raise UserError(f"Slowness.speed is {self.speed}; give a share of the usual speed, from 0 to below 1")

    def draw(self, random: np.random.Generator, domains: Sequence[int], until: float) -> list[Periods]:
        """Draw the slow periods of every server, those that begin before ``until``.

        Args:
            random: a generator of its own, so that the same seed gives the same periods under every policy.
            domains: the failure domain of each server.
            until: seconds from the start.
        """
        if self.share == 0:
            return [()] * len(domains)
        if self.scope is Scope.SERVER:
            return [self._one(random, until) for _ in domains]
        shared = {domain: self._one(random, until) for domain in sorted(set(domains))}
        return [shared[domain] for domain in domains]

    def _one(self, random: np.random.Generator, until: float) -> Periods:
        length = (self.shortest_s + self.longest_s) / 2
        gap = length * (1 - self.share) / self.share
        periods: list[tuple[float, float]] = []
        end = -_SETTLE * (length + gap)  # so that the run begins in the midst of things
        while True:
            start = end + gap * random.standard_exponential()
            if start >= until:
                return periods
            end = start + random.uniform(self.shortest_s, self.longest_s)
            if end > 0:
                periods.append((start, end))


class Pace:
    """When work that begins now will end, on a server that is slow at times.

    Args:
        periods: slow ones, in order.
        speed: while slow, against the usual speed.
    """

    def __init__(self, periods: Periods, speed: float) -> None:
        self._starts = [start for start, _ in periods]
        self._ends = [end for _, end in periods]
        self._speed = speed
        self._next = 0  # the first period that may not be over

    def ready(self, now: float) -> float:
        """Return when work can begin, which is later than now if the server stands still; ask in order of time."""
        index = self._seek(now)
        stands_still = self._speed == 0 and index < len(self._starts) and self._starts[index] <= now
        return self._ends[index] if stands_still else now

    def end(self, now: float, work: float) -> float:
        """Return when ``work`` seconds of work at the usual speed will be done; ask in order of time."""
        index = self._seek(now)
        starts, ends, speed = self._starts, self._ends, self._speed
        while index < len(starts) and starts[index] < now + work:
            work -= max(starts[index] - now, 0.0)
            now = max(starts[index], now)
            if speed * (ends[index] - now) >= work:
                return now + work / speed if work > 0 else now
            work -= speed * (ends[index] - now)
            now = ends[index]
            index += 1
        return now + work

    def _seek(self, now: float) -> int:
        ends, index = self._ends, self._next
        while index < len(ends) and ends[index] <= now:
            index += 1
        self._next = index
        return index
