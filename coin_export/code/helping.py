"""Whom to ask for help: the fewest members whose answers make up for those that are missing.

Knows nothing of time: who counts as expected or late is the caller's to say.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import lru_cache
from itertools import combinations

from coin_export.code.linear import LinearCode, Wanted

_SETS_PER_SIZE = 256  # beyond it the exact search would hold up a request
_DIGITS = 9  # of noise gains that are compared: sets that are equally good must not differ by rounding


@lru_cache(maxsize=4096)
def helpers(
    code: LinearCode,
    wanted: tuple[Wanted, ...],
    expected: frozenset[int],
    late: frozenset[int],
    askable: frozenset[int],
) -> tuple[int, ...]:
    """Choose whom to ask besides those that were asked already.

    The fewest of ``askable`` are chosen that make ``wanted`` decodable together with ``expected``, and among the
    sets of that size the one of least noise gain. When even all of ``askable`` would not do, the choice also counts
    on as few as possible of the ``late``, so that the others of them may stay away.

    With all originals wanted, never more are chosen than originals are missing from ``expected``. Where a size has
    more than 256 sets to try, the choice is one of which no member can be left out, not always the smallest.

    Args:
        code: the group's code.
        wanted: what to find, as for `LinearCode.decoding`.
        expected: members whose answers are at hand or about to come.
        late: members that were asked and may not answer in time.
        askable: members that were not asked yet.

    Returns:
        The chosen members in ascending order; empty if nobody is needed, or nobody would help.
    """

    def suffice(rows: Iterable[int]) -> bool:
        return code.decodable(frozenset(rows), wanted)

    if suffice(expected):
        return ()
    counted_on = expected
    if not suffice(expected | askable):
        if not suffice(expected | late | askable):
            return ()
        counted_on = expected | _indispensable(sorted(late), lambda rows: suffice(expected | rows | askable))
        if suffice(counted_on):
            return ()
    useful = [row for row in sorted(askable) if _adds_to(code, counted_on, row)]
    for size in range(_fewest(code, wanted, counted_on), len(useful)):
        if math.comb(len(useful), size) > _SETS_PER_SIZE:
            break
        sets = list(combinations(useful, size))
        gains = code.noise_gains([counted_on.union(rows) for rows in sets], wanted).round(_DIGITS)
        if gains.min() < math.inf:
            return sets[int(gains.argmin())]
    # Coded models are left out before originals, whose answers carry no coding error.
    return tuple(sorted(_indispensable(useful[::-1], lambda rows: suffice(counted_on | rows))))


def _adds_to(code: LinearCode, given: frozenset[int], row: int) -> bool:
    """Tell whether a member's answer is anything but a sum of originals that are given."""
    coded = row - code.k
    return coded < 0 or any(value and index not in given for index, value in enumerate(code.parities[coded]))


def _fewest(code: LinearCode, wanted: tuple[Wanted, ...], given: frozenset[int]) -> int:
    """Return how many it takes at least: a coded answer, given or to come, for each wanted original not given."""
    lacking = {item for item in wanted if isinstance(item, int)} - given
    return max(1, len(lacking) - sum(row >= code.k for row in given))


def _indispensable(rows: Iterable[int], suffice: Callable[[frozenset[int]], bool]) -> frozenset[int]:
    """Leave out, one after the other in the given order, all ``rows`` that the rest can do without."""
    kept = frozenset(rows)
    for row in rows:
        if suffice(kept - {row}):
            kept -= {row}
    return kept
