"""Choosing the coefficients of a code: any m erasures survived, with low noise gain."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import combinations

import numpy as np
import numpy.typing as npt

from coin_export.code.linear import LinearCode, Matrix
from coin_export.errors import CodeError

_SPREADS = np.geomspace(0.25, 8.0, 25)
_RANDOM_STARTS = 9
_DESCENT_STEPS = 600
_TRIAL_SHARE, _LEAST_TRIAL = 5, 60  # a trial has a fifth of the steps, or so many
_KEPT = 4  # starts, after trials
_DESCENT_MINORS = 1_000_000  # steps times square sub-matrices that one descent may look at
_GAIN_MINORS = 20_000  # above this many, the worst gain is taken over the smaller sub-matrices only
_SHARPNESS = 8.0, 80.0  # of the smooth maximum, at the first and at the last step
_LEARNING_RATE = 0.05
# Coded models share architecture, start and points, so what one gets wrong others do, too, and much of it cancels where
# an answer is decoded from several. The more alike their coefficients, the more alike their errors: 1 - correlation
# went with the square of the coefficients' distance (docs/results.md). Codes made for this correlation lead to it.
_ERROR_CORRELATION = 0.95


def default_code(k: int, m: int, protect: Sequence[float] | None = None) -> LinearCode:
    """Make a code of k originals and m coded models that survives any m erasures with low noise gain.

    For m = 1 the coefficients are proportional to ``protect``. For m > 1 first designs come from the kernels
    exp(s u_i v_j) and exp(-s (u_i - v_j)^2) on increasing u and v, which are strictly totally positive (Karlin, Total
    Positivity, 1968): every square sub-matrix is invertible for every s > 0, also after each row is divided by its
    sum. From the spreads s of least worst noise gain, and from random coefficients, short descents lower the worst
    gain over all losses; the best few go on. What is lowered is the gain of coding errors that are correlated among
    coded models, as they are in practice, so its coefficients differ less between rows than those of least plain noise
    gain, and no coded model is left that protects some original hardly at all. The result is deterministic, and kept
    for the next call.

    Args:
        k: number of originals.
        m: number of coded models.
        protect: a weight for each original. What is lowered is the largest of weight times gain, so a model of twice
            the weight gets about half the gain that others get. All equal when not given.

    Raises:
        CodeError: if k < 2 or m < 1, or there is not one positive weight for each original.
    """
    if k < 2 or m < 1:
        raise CodeError(f"a code needs k >= 2 originals and m >= 1 coded models, not k = {k}, m = {m}")
    weights = (1.0,) * k if protect is None else tuple(float(weight) for weight in protect)
    if len(weights) != k or not all(math.isfinite(weight) and weight > 0 for weight in weights):
        raise CodeError(f"the weights to protect by are {list(weights)}; give a positive number for each of {k} models")
    return _designed(m, weights)


def worst_gain(parities: Matrix, protect: Sequence[float] | None = None) -> float:
    """Return the worst noise gain, times the model's weight, over all square sub-matrices of ``parities``.

    A square sub-matrix of size s is what is left to solve when s originals and all but s coded models are lost,
    so its inverse's row norms are the noise gains of that pattern.

    Args:
        parities: shape (m, k).
        protect: a weight for each original; all one when not given.
    """
    weights = np.ones(parities.shape[1]) if protect is None else np.asarray(protect, dtype=np.float64)
    return _Losses(*parities.shape).worst(parities, weights)


class _Losses:
    """All square sub-matrices of an (m, k) matrix, as flat indices of shape (number, size, size) for each size.

    Args:
        m: number of coded models.
        k: number of originals.
        correlation: of the errors of any two coded models.
    """

    def __init__(self, m: int, k: int, correlation: float = 0.0) -> None:
        self.shape, self.correlation = (m, k), correlation
        self._blocks: list[npt.NDArray[np.intp]] = []
        self.number = 0
        for size in range(1, min(m, k) + 1):
            self.number += math.comb(m, size) * math.comb(k, size)
            if self.number > _GAIN_MINORS:
                break
            rows = np.array(list(combinations(range(m), size)))[:, None, :, None]
            lost = np.array(list(combinations(range(k), size)))[None, :, None, :]
            self._blocks.append((rows * k + lost).reshape(-1, size, size))

    def worst(self, parities: Matrix, weights: Matrix) -> float:
        """Return the worst weighted gain; infinite if a sub-matrix has no inverse."""
        try:
            return max(float(gains.max()) for gains, _, _ in self.gains(parities, weights))
        except np.linalg.LinAlgError:
            return math.inf

    def gains(self, parities: Matrix, weights: Matrix) -> list[tuple[Matrix, Matrix, Matrix]]:
        """Return for each size the weighted gains, the inverses M, and the covariances of what they decode, M R M^T.

        R, the covariance of coding errors, is one on the diagonal and the correlation elsewhere, so without correlation
        the gain of a row M_r is its norm. Shapes (number, size), and twice (number, size, size).

        Raises:
            numpy.linalg.LinAlgError: if a sub-matrix has no inverse.
        """
        found = []
        for block in self._blocks:
            inverse = np.linalg.inv(parities.ravel()[block])
            sums = inverse.sum(axis=2)
            own = inverse @ inverse.transpose(0, 2, 1)
            covariance = (1 - self.correlation) * own + self.correlation * sums[:, :, None] * sums[:, None, :]
            deviation = np.sqrt(np.einsum("nrr->nr", covariance))
            found.append((weights[block[:, 0, :] % self.shape[1]] * deviation, inverse, covariance))
        return found

    def smooth(self, parities: Matrix, weights: Matrix, sharpness: float) -> tuple[float, Matrix]:
        """Return the worst gain, and the gradient of the logarithm of its smooth version, (sum g^p)^(1/p).

        With M the inverse of a sub-matrix B and C = M R M^T, the gain of its row r is g = sqrt(C_rr), and
        dg/dB = -M_r C_r^T / g.
        """
        found = self.gains(parities, weights)
        worst = max(float(gains.max()) for gains, _, _ in found)
        shares = [(gains / worst) ** sharpness for gains, _, _ in found]
        total = sum(float(share.sum()) for share in shares)
        gradient = np.zeros(parities.size)
        for block, share, (_, inverse, covariance) in zip(self._blocks, shares, found, strict=True):
            scale = share / total / np.einsum("nrr->nr", covariance)
            pull = -inverse.transpose(0, 2, 1) @ (scale[:, :, None] * covariance)
            gradient += np.bincount(block.ravel(), pull.ravel(), parities.size)
        return worst, gradient.reshape(parities.shape)


@lru_cache(maxsize=64)
def _designed(m: int, weights: tuple[float, ...]) -> LinearCode:
    k, protect = len(weights), np.asarray(weights)
    if m == 1:
        return LinearCode.from_rows([weights])
    losses = _Losses(m, k, _ERROR_CORRELATION)
    steps = min(_DESCENT_STEPS, _DESCENT_MINORS // losses.number)

    def gain(rows: Matrix) -> float:
        return losses.worst(rows, protect)

    def descended(starts: Iterable[Matrix], steps: int) -> list[Matrix]:
        return sorted((_descend(start, losses, protect, steps) for start in starts), key=gain)

    kernels = [min(family, key=gain) for family in _kernels(m, k, protect)]
    random = np.random.default_rng(0)
    others = [_rows_to_one(random.dirichlet(np.ones(k), size=m) + 1e-3) for _ in range(_RANDOM_STARTS)]
    tried = descended([*kernels, *others], max(_LEAST_TRIAL, steps // _TRIAL_SHARE))
    designs = [*kernels, *tried, *descended(tried[:_KEPT], steps)]
    return LinearCode.from_rows(min(designs, key=gain).tolist())


def _kernels(m: int, k: int, protect: Matrix) -> Iterator[list[Matrix]]:
    """Yield two families of strictly totally positive matrices, rows divided by their sums."""
    rows, columns = np.linspace(-1, 1, m)[:, None], np.linspace(-1, 1, k)[None]
    for exponent in (rows * columns, -((rows - columns) ** 2)):
        yield [_rows_to_one(np.exp(s * exponent) * protect) for s in _SPREADS]


def _rows_to_one(matrix: Matrix) -> Matrix:
    normalised: Matrix = matrix / matrix.sum(axis=1, keepdims=True)
    return normalised


def _descend(start: Matrix, losses: _Losses, weights: Matrix, steps: int) -> Matrix:
    """Lower the worst gain by Adam on the logarithms of the coefficients; return the best found."""
    logarithms = np.log(start)
    mean, square = np.zeros_like(start), np.zeros_like(start)
    best, least = start, math.inf
    for step in range(steps):
        parities = _rows_to_one(np.exp(logarithms))
        sharpness = _SHARPNESS[0] * (_SHARPNESS[1] / _SHARPNESS[0]) ** (step / steps)
        try:
            worst, gradient = losses.smooth(parities, weights, sharpness)
        except np.linalg.LinAlgError:
            break
        if worst < least:
            best, least = parities, worst
        slope = parities * (gradient - (gradient * parities).sum(axis=1, keepdims=True))
        mean = 0.9 * mean + 0.1 * slope
        square = 0.99 * square + 0.01 * slope**2
        corrected = mean / (1 - 0.9 ** (step + 1)), square / (1 - 0.99 ** (step + 1))
        rate = _LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * step / steps))
        logarithms = logarithms - rate * corrected[0] / (np.sqrt(corrected[1]) + 1e-12)
    return best
