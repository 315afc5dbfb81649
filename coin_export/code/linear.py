"""The linear code of a group: generator matrix, decodability, decoding weights, noise gain.

Knows nothing of networks, servers or time: models are numbered 0..n-1, the k originals first (their rows of
the generator matrix are the identity, the code is systematic), then the m coded models.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import combinations

import numpy as np
import numpy.typing as npt

from coin_export.errors import CodeError

Matrix = npt.NDArray[np.float64]

# A wanted unit vector counts as inside the row space of what arrived when least squares reproduces it to this.
_SOLVED = 1e-8


@dataclass(frozen=True)
class Decoding:
    """How wanted outputs follow from those that arrived.

    Attributes:
        wanted: indices of the wanted originals, one per row of ``weights``.
        sources: indices of the models whose outputs are combined, one per column of ``weights``.
        weights: shape (wanted, sources); ``wanted outputs = weights @ outputs of sources``.
        noise_gain: per wanted original, the Euclidean norm of its weights on coded models: by how much
            decoding amplifies the coding error. Zero where the original itself arrived.
    """

    wanted: tuple[int, ...]
    sources: tuple[int, ...]
    weights: Matrix = field(repr=False, compare=False)
    noise_gain: tuple[float, ...]


@dataclass(frozen=True)
class LinearCode:
    """A systematic linear code over the outputs of k originals with m coded models.

    Attributes:
        parities: m rows of k positive coefficients, each row summing to one.

    Raises:
        CodeError: if there are fewer than two originals or no coded model, if rows differ in length, or if a
            coefficient is not a positive finite number or a row does not sum to one.
    """

    parities: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        if not self.parities:
            raise CodeError("a code needs at least one coded model: give one row of coefficients or more")
        lengths = {len(row) for row in self.parities}
        if len(lengths) != 1:
            raise CodeError(f"the rows of coefficients differ in length: {[len(row) for row in self.parities]}")
        if self.k < 2:
            raise CodeError("a code needs at least two originals: give a coefficient for each of them")
        for index, row in enumerate(self.parities):
            _check_coefficients(row, f"row {index} of the coefficients")
            if not math.isclose(sum(row), 1.0, rel_tol=1e-9):
                raise CodeError(f"row {index} of the coefficients sums to {sum(row)}; divide it by its sum")

    @classmethod
    def from_rows(cls, rows: Sequence[Sequence[float]]) -> LinearCode:
        """Make a code of rows of positive coefficients, each divided by its sum.

        Raises:
            CodeError: as the class does, except that rows may have any positive sum.
        """
        for index, row in enumerate(rows):
            _check_coefficients(row, f"row {index} of the coefficients")
        return cls(tuple(tuple(float(value) / math.fsum(row) for value in row) for row in rows))

    def __hash__(self) -> int:
        return self._hash  # lookups of decodings hash the code, and a request makes several

    @cached_property
    def _hash(self) -> int:
        return hash(self.parities)

    @property
    def k(self) -> int:
        """Number of originals."""
        return len(self.parities[0])

    @property
    def m(self) -> int:
        """Number of coded models."""
        return len(self.parities)

    @property
    def n(self) -> int:
        """Number of models in the group, n = k + m."""
        return self.k + self.m

    @property
    def generator(self) -> Matrix:
        """The generator matrix, shape (n, k): the identity above the rows of coefficients."""
        return np.vstack([np.eye(self.k), np.asarray(self.parities, dtype=np.float64)])

    def decodable(self, arrived: Collection[int], wanted: Collection[int] | None = None) -> bool:
        """Tell whether ``arrived`` models determine the ``wanted`` originals (all of them when not given)."""
        return _solve(self, frozenset(arrived), _wanted(self, wanted)) is not None

    def decoding(self, arrived: Collection[int], wanted: Collection[int] | None = None) -> Decoding:
        """Find the decoding weights of least noise gain.

        Args:
            arrived: indices of the models whose outputs are at hand.
            wanted: indices of the originals to find; all when not given.

        Raises:
            CodeError: if ``arrived`` does not determine ``wanted``.
        """
        decoding = _solve(self, frozenset(arrived), _wanted(self, wanted))
        if decoding is None:
            raise CodeError(
                f"models {sorted(set(arrived))} of {self.n} do not determine originals "
                f"{list(_wanted(self, wanted))}; any {self.k} different models would"
            )
        return decoding

    def erasure_patterns(self) -> Iterator[tuple[int, ...]]:
        """Yield every set of at most m lost models, an original among them, that can be made good, smallest first.

        Lost coded models count too: the fewer are left, the larger the noise gain.
        """
        for size in range(1, self.m + 1):
            for lost in combinations(range(self.n), size):
                if lost[0] < self.k and self.decodable([index for index in range(self.n) if index not in lost]):
                    yield lost

    def survives_any(self, erasures: int) -> bool:
        """Tell whether every original is decodable after *any* ``erasures`` of the n models are lost."""
        return erasures <= self.n and all(
            self.decodable([index for index in range(self.n) if index not in lost])
            for lost in combinations(range(self.n), erasures)
        )

    def worst_noise_gain(self) -> float:
        """Return the largest noise gain of any original over all losses of any m models."""
        worst = 0.0
        for lost in combinations(range(self.n), self.m):
            decoding = _solve(self, frozenset(range(self.n)) - set(lost), tuple(range(self.k)))
            worst = max(worst, math.inf if decoding is None else max(decoding.noise_gain))
        return worst


def _check_coefficients(row: Sequence[float], what: str) -> None:
    for index, value in enumerate(row):
        if not math.isfinite(value) or value <= 0:
            raise CodeError(
                f"{what}: coefficient {index} is {value}; every coefficient must be a positive number, "
                "since a coded model is a weighted average of the originals"
            )


def _wanted(code: LinearCode, wanted: Collection[int] | None) -> tuple[int, ...]:
    chosen = tuple(range(code.k)) if wanted is None else tuple(wanted)
    for index in chosen:
        if not 0 <= index < code.k:
            raise CodeError(f"original {index} does not exist: the code has {code.k}, numbered from 0")
    return chosen


@lru_cache(maxsize=4096)
def _solve(code: LinearCode, arrived: frozenset[int], wanted: tuple[int, ...]) -> Decoding | None:
    """Solve ``weights @ generator[arrived] = identity[wanted]`` with least weight on coded rows."""
    present = sorted(index for index in arrived if index < code.k)
    coded = sorted(index for index in arrived if index >= code.k)
    missing = [index for index in wanted if index not in arrived]
    unknown = [index for index in range(code.k) if index not in arrived]
    parities = np.asarray(code.parities)[[index - code.k for index in coded]]
    # Rows of the pseudo-inverse have the least norm among all that recover an unknown: the least noise gain.
    recover = np.linalg.pinv(parities[:, unknown]) if coded and unknown else np.zeros((len(unknown), len(coded)))
    selected = recover[[unknown.index(index) for index in missing]]
    target = np.eye(code.k)[missing][:, unknown]
    if missing and not np.allclose(selected @ parities[:, unknown], target, atol=_SOLVED):
        return None
    weights = np.zeros((len(wanted), len(present) + len(coded)))
    for row, index in enumerate(wanted):
        if index in arrived:
            weights[row, present.index(index)] = 1.0
        else:
            solved = selected[missing.index(index)]
            weights[row, : len(present)] = -solved @ parities[:, present]
            weights[row, len(present) :] = solved
    used = [column for column in range(weights.shape[1]) if weights[:, column].any()]
    sources = tuple((present + coded)[column] for column in used)
    gains = np.linalg.norm(weights[:, len(present) :], axis=1)
    return Decoding(wanted, sources, weights[:, used], tuple(float(gain) for gain in gains))
