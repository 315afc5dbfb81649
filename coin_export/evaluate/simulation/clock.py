"""A virtual clock: what is to happen, in order of time. Knows nothing of what happens."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from itertools import count
from typing import Any


class Clock:
    """Carries out events in order of their times; events of the same time in the order they were set.

    Attributes:
        now: seconds since the start.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[Any], None], Any]] = []
        self._order = count()

    def at(self, time: float, act: Callable[[Any], None], argument: Any) -> None:
        """Have ``act(argument)`` called at ``time``; not before now, and never if it is infinite."""
        if time < math.inf:
            heapq.heappush(self._events, (time, next(self._order), act, argument))

    def run(self) -> None:
        """Carry out all events, also those that are set meanwhile."""
        events, pop = self._events, heapq.heappop
        while events:
            self.now, _, act, argument = pop(events)
            act(argument)
