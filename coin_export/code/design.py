"""Choosing the coefficients of a code: any m erasures survived, with low noise gain."""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import combinations

import numpy as np

from coin_export.code.linear import LinearCode, Matrix
from coin_export.errors import CodeError

_SPREADS = np.geomspace(0.25, 4.0, 25)
_RANDOM_STARTS = 4
_DESCENT_STEPS = 1500
_DESCENT_MINORS = 600  # above this many square sub-matrices the kernel's own coefficients are kept
_GAIN_MINORS = 20_000  # above this many, the worst gain is taken over the smaller sub-matrices only


@lru_cache(maxsize=64)
def default_code(k: int, m: int) -> LinearCode:
    """Make a code of k originals and m coded models that survives any m erasures with low noise gain.

    For m = 1 it is the plain mean. For m > 1 a first design comes from the kernel exp(s u_i v_j) on increasing
    u and v, which is strictly totally positive (Karlin, Total Positivity, 1968): every square sub-matrix is
    invertible for every s > 0, also after each row is divided by its sum. The spread s of least worst-case
    noise gain is taken. Small codes are then improved by a seeded random descent on that gain, from this
    design and from a few random ones. The result is deterministic.

    Raises:
        CodeError: if k < 2 or m < 1.
    """
    if k < 2 or m < 1:
        raise CodeError(f"a code needs k >= 2 originals and m >= 1 coded models, not k = {k}, m = {m}")
    if m == 1:
        return LinearCode.from_rows([[1.0] * k])
    kernels = (np.exp(s * np.outer(np.linspace(-1, 1, m), np.linspace(-1, 1, k))) for s in _SPREADS)
    best = min((_rows_to_one(kernel) for kernel in kernels), key=worst_gain)
    if _minors(k, m) <= _DESCENT_MINORS:
        random = np.random.default_rng(0)
        starts = [best, *(_rows_to_one(random.dirichlet(np.ones(k), size=m)) for _ in range(_RANDOM_STARTS))]
        best = min((_descend(start, random) for start in starts), key=worst_gain)
    return LinearCode.from_rows(best.tolist())


def worst_gain(parities: Matrix) -> float:
    """Return the worst noise gain over all square sub-matrices of ``parities``, shape (m, k).

    A square sub-matrix of size s is what is left to solve when s originals and all but s coded models are lost,
    so its inverse's largest row norm is that pattern's noise gain.
    """
    m, k = parities.shape
    worst, minors = 0.0, 0
    for size in range(1, min(m, k) + 1):
        minors += math.comb(m, size) * math.comb(k, size)
        if minors > _GAIN_MINORS:
            break
        rows = np.array(list(combinations(range(m), size)))
        lost = np.array(list(combinations(range(k), size)))
        blocks = parities[rows[:, None, :, None], lost[None, :, None, :]].reshape(-1, size, size)
        try:
            inverses = np.linalg.inv(blocks)
        except np.linalg.LinAlgError:
            return math.inf
        worst = max(worst, float(np.linalg.norm(inverses, axis=2).max()))
    return worst


def _minors(k: int, m: int) -> int:
    return sum(math.comb(m, size) * math.comb(k, size) for size in range(1, min(m, k) + 1))


def _rows_to_one(matrix: Matrix) -> Matrix:
    normalised: Matrix = matrix / matrix.sum(axis=1, keepdims=True)
    return normalised


def _descend(start: Matrix, random: np.random.Generator) -> Matrix:
    """Improve coefficients by multiplicative random steps that shrink over time."""
    best, least = start, worst_gain(start)
    for step in range(_DESCENT_STEPS):
        trial = _rows_to_one(best * np.exp(random.normal(0.0, 0.4 * 0.998**step, size=best.shape)))
        gain = worst_gain(trial)
        if gain < least:
            best, least = trial, gain
    return best
