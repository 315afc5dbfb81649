"""The latencies that a client saw lately, and quantiles of them."""

from __future__ import annotations

import math
from typing import TypeVar

import numpy as np
import numpy.typing as npt

_Number = TypeVar("_Number", np.float64, np.intp)

CAPACITY = 4096
SLOW = 2.0  # a member that takes so many times as long as the typical one is slow
_ENOUGH = 20  # fewer say nothing about a tail
_NOBODY = -1  # instead of a row
_REFRESH = 32  # additions after which a quantile is found anew
_REFRESH_TYPICAL = 1 / 8  # share of the window after which that of the typical member is: it takes a look at each


class Latencies:
    """A window over the last latencies; quantiles are exact up to the latest few additions.

    Adding costs a fraction of a microsecond; a quantile costs a look into a dict, and once in 32 additions or more
    a selection among the window's values.
    """

    def __init__(self) -> None:
        self._fresh: list[tuple[float, int]] = []  # not in the rings yet: numpy is slow with single numbers
        self._ring = np.zeros(CAPACITY)
        self._rows = np.zeros(CAPACITY, dtype=np.intp)
        self._count = 0
        self._found: dict[tuple[float, int], float] = {}
        self._found_ends = 0  # the count at which these are out of date
        self._typical: dict[tuple[float, int], float | None] = {}
        self._typical_ends = 0

    def add(self, seconds: float, row: int | None = None) -> None:
        """Take in one more, in place of the oldest.

        Args:
            seconds: how long a call took.
            row: the member that was asked, if all others were asked the same; None if there is nothing to compare.
        """
        self._fresh.append((seconds, _NOBODY if row is None else row))
        if len(self._fresh) >= _REFRESH:
            self._take_in()

    def quantile(self, q: float, window: int = CAPACITY) -> float | None:
        """Return the ``q``-quantile of the last ``window`` latencies in seconds; None when too few are known."""
        found = self._found.get((q, window))
        if found is None:
            self._take_in()
            if self._count < _ENOUGH:
                return None
            size = min(window, self._count, CAPACITY)
            found = self._found[q, window] = _ranked(self._latest(self._ring, size), q)
        return found

    def usual(self, q: float, window: int = CAPACITY) -> float | None:
        """Return the `quantile`, but no more than twice the `typical` one: slowness of a few does not become usual."""
        quantile, typical = self.quantile(q, window), self.typical(q, window)
        return quantile if quantile is None or typical is None else min(quantile, SLOW * typical)

    def typical(self, q: float, window: int = CAPACITY) -> float | None:
        """Return the ``q``-quantile of the typical member: the lower median of the members' own quantiles, in seconds.

        Members are copies of one architecture, so those that take clearly longer are slow. However long they take, and
        however often they are asked, they do not change what is typical as long as at least half of the members, of
        two one, are in order.

        Returns:
            None when fewer than two members have twenty latencies in the window, or when more than ``1 - q`` of it are
            of calls with nothing to compare, which may be about anything.
        """
        if (q, window) not in self._typical:
            self._take_in()
            size = min(window, self._count, CAPACITY)
            latest, rows = self._latest(self._ring, size), self._latest(self._rows, size)
            counts = np.bincount(rows - _NOBODY, minlength=1)
            known = np.flatnonzero(counts[1:] >= _ENOUGH).tolist() if counts[0] <= (1 - q) * size else []
            own = sorted(_ranked(latest[rows == row], q) for row in known)
            self._typical[q, window] = own[(len(own) - 1) // 2] if len(own) > 1 else None
        return self._typical[q, window]

    def _take_in(self) -> None:
        if not self._fresh:
            return
        places = np.arange(self._count, self._count + len(self._fresh)) % CAPACITY
        self._ring[places], self._rows[places] = zip(*self._fresh, strict=True)
        self._count += len(self._fresh)
        self._fresh.clear()
        if self._count >= self._found_ends:
            self._found.clear()
            self._found_ends = self._count + _REFRESH
        if self._count >= self._typical_ends:
            self._typical.clear()
            self._typical_ends = self._count + max(_REFRESH, int(_REFRESH_TYPICAL * min(self._count, CAPACITY)))

    def _latest(self, ring: npt.NDArray[_Number], size: int) -> npt.NDArray[_Number]:
        end = self._count % CAPACITY
        if size <= end:
            return ring[end - size : end]
        return np.concatenate([ring[CAPACITY - (size - end) :], ring[:end]])


def _ranked(values: npt.NDArray[np.float64], q: float) -> float:
    rank = max(math.ceil(q * len(values)) - 1, 0)
    return float(np.partition(values, rank)[rank])
