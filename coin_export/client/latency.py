"""The latencies that a client saw lately, and quantiles of them."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

CAPACITY = 4096
_ENOUGH = 20  # fewer say nothing about a tail
_REFRESH = 32  # additions after which a quantile is found anew


class Latencies:
    """A window over the last latencies; quantiles are exact up to the latest few additions.

    Adding costs a fraction of a microsecond; a quantile costs a look into a dict, and every 32 additions a
    selection among the window's values.
    """

    def __init__(self) -> None:
        self._ring = np.zeros(CAPACITY)
        self._count = 0
        self._found: dict[tuple[float, int], float] = {}

    def add(self, seconds: float) -> None:
        """Take in one more, in place of the oldest."""
        self._ring[self._count % CAPACITY] = seconds
        self._count += 1
        if self._count % _REFRESH == 0:
            self._found.clear()

    def quantile(self, q: float, window: int = CAPACITY) -> float | None:
        """Return the ``q``-quantile of the last ``window`` latencies in seconds; None when too few are known."""
        if self._count < _ENOUGH:
            return None
        found = self._found.get((q, window))
        if found is None:
            size = min(window, self._count, CAPACITY)
            rank = max(math.ceil(q * size) - 1, 0)
            found = self._found[q, window] = float(np.partition(self._latest(size), rank)[rank])
        return found

    def _latest(self, size: int) -> npt.NDArray[np.float64]:
        end = self._count % CAPACITY
        if size <= end:
            return self._ring[end - size : end]
        return np.concatenate([self._ring[CAPACITY - (size - end) :], self._ring[:end]])
