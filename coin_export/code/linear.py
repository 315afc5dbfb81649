"""The linear code of a group: generator matrix, decodability, decoding weights, noise gain.

Knows nothing of networks, servers or time: models are numbered 0..n-1, the k originals first (their rows of
the generator matrix are the identity, the code is systematic), then the m coded models.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import combinations, islice
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from coin_export.errors import CodeError

Matrix = npt.NDArray[np.float64]

Wanted: TypeAlias = int | tuple[float, ...]
"""An original by its number, or a linear combination of the originals by its k coefficients."""

# A wanted unit vector counts as inside the row space of what arrived when least squares reproduces it to this.
_SOLVED = 1e-8
_AT_ONCE = 1_000  # matrices of a large code, of which all together may not fit in memory


@dataclass(frozen=True)
class Decoding:
    """How wanted outputs follow from those that arrived.

    Attributes:
        wanted: what is found, one per row of ``weights``.
        sources: indices of the models whose outputs are combined, one per column of ``weights``.
        weights: shape (wanted, sources); ``wanted outputs = weights @ outputs of sources``.
        noise_gain: per wanted output, the Euclidean norm of its weights on coded models: by how much
            decoding amplifies the coding error. Zero where the original itself arrived; one where a replica
            takes its place.
    """

    wanted: tuple[Wanted, ...]
    sources: tuple[int, ...]
    weights: Matrix = field(repr=False, compare=False)
    noise_gain: tuple[float, ...]

    @property
    def originals(self) -> tuple[int, ...]:
        """The originals among what is wanted."""
        return tuple(item for item in self.wanted if isinstance(item, int))


@dataclass(frozen=True)
class WorstLoss:
    """A loss of models, and the lost original whose decoding amplifies the coding error most.

    Attributes:
        lost: the models' numbers.
        original: its number; None where not all can be decoded.
        noise_gain: of its decoding.
    """

    lost: tuple[int, ...]
    original: int | None
    noise_gain: float


@dataclass(frozen=True)
class LinearCode:
    """A systematic linear code over the outputs of k originals with m coded models.

    A model with coefficient zero is not protected by that row. A row that is one at a single original and zero
    elsewhere makes the trivial coded model, a **replica** of that original: replication is a linear code too.

    Attributes:
        parities: m rows of k coefficients, none negative, each row summing to one.

    Raises:
        CodeError: if there are fewer than two originals or no coded model, if rows differ in length, or if a
            coefficient is negative or not finite, or a row does not sum to one.
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
        """Make a code of rows of coefficients that are not negative, each divided by its sum.

        Raises:
            CodeError: as the class does, except that rows may have any positive sum.
        """
        for index, row in enumerate(rows):
            _check_coefficients(row, f"row {index} of the coefficients")
            if not any(row):
                raise CodeError(f"row {index} of the coefficients is all zero: it protects no model")
        return cls(tuple(tuple(float(value) / math.fsum(row) for value in row) for row in rows))

    def __hash__(self) -> int:
        return self._hash  # lookups of decodings hash the code, and a request makes several

    @cached_property
    def _hash(self) -> int:
        return hash(self.parities)

    @cached_property
    def k(self) -> int:
        """Number of originals."""
        return len(self.parities[0])

    @cached_property
    def m(self) -> int:
        """Number of coded models."""
        return len(self.parities)

    @cached_property
    def n(self) -> int:
        """Number of models in the group, n = k + m."""
        return self.k + self.m

    @cached_property
    def members(self) -> frozenset[int]:
        """The numbers of all models."""
        return frozenset(range(self.n))

    def left_by(self, lost: Collection[int]) -> frozenset[int]:
        """Return the numbers of the models that a loss leaves."""
        return self.members.difference(lost)

    @property
    def generator(self) -> Matrix:
        """The generator matrix, shape (n, k): the identity above the rows of coefficients."""
        return np.vstack([np.eye(self.k), np.asarray(self.parities, dtype=np.float64)])

    def replicated(self, index: int) -> int | None:
        """Return the original of which the coded model ``index`` is a replica; None if it is a mixture."""
        row = self.parities[index - self.k]
        return row.index(1.0) if row.count(0.0) == self.k - 1 else None

    def decodable(self, arrived: Collection[int], wanted: Collection[Wanted] | None = None) -> bool:
        """Tell whether ``arrived`` models determine what is ``wanted`` (all originals when not given)."""
        return _solve(self, frozenset(arrived), _wanted(self, wanted)) is not None

    def decoding(self, arrived: Collection[int], wanted: Collection[Wanted] | None = None) -> Decoding:
        """Find the decoding weights of least noise gain.

        Args:
            arrived: indices of the models whose outputs are at hand.
            wanted: the originals or combinations of them to find; all originals when not given.

        Raises:
            CodeError: if ``arrived`` does not determine ``wanted``.
        """
        decoding = _solve(self, frozenset(arrived), _wanted(self, wanted))
        if decoding is None:
            raise CodeError(
                f"models {sorted(set(arrived))} of {self.n} do not determine "
                f"{list(_wanted(self, wanted))}; further models are needed"
            )
        return decoding

    def noise_gains(
        self, arrivals: Sequence[Collection[int]], wanted: Collection[Wanted] | None = None
    ) -> npt.NDArray[np.float64]:
        """Return the worst noise gain of `decoding` for each of several sets of arrived models.

        A stack of small pseudo-inverses, many times faster than one `decoding` after the other.

        Args:
            arrivals: for each set, the indices of the models whose outputs would be at hand.
            wanted: as for `decoding`.

        Returns:
            One number a set; infinite where it does not determine what is wanted.
        """
        parities, target = np.asarray(self.parities), _targets(self, _wanted(self, wanted))
        here = np.array([[row in arrived for row in range(self.n)] for arrived in map(frozenset, arrivals)])
        originals, coded = here[:, : self.k], here[:, self.k :]
        known = originals | (coded @ self._replicas)
        mixed = coded & ~self._replicas.any(axis=1)
        by_replica = known & ~originals
        rows, columns = mixed.any(axis=0), ~known.all(axis=0)
        lost = ~known[:, None, columns]
        target = target[target[:, columns | by_replica.any(axis=0)].any(axis=1)]  # the rest is at hand in every set
        goal = target[:, columns] * lost
        to_solve = parities[rows][:, columns] * mixed[:, rows, None] * lost
        on_mixed = goal @ np.linalg.pinv(to_solve)
        solved = np.isclose(on_mixed @ to_solve, goal, atol=_SOLVED).all(axis=(1, 2))
        gains = np.linalg.norm(on_mixed, axis=2)
        if by_replica.any():
            on_replicas = (target - on_mixed @ parities[rows]) * by_replica[:, None]
            gains = np.hypot(gains, np.linalg.norm(on_replicas, axis=2))
        return np.where(solved, gains.max(axis=1, initial=0.0), np.inf)

    @cached_property
    def _replicas(self) -> npt.NDArray[np.bool_]:
        """Of which original each coded model is a replica, if of any: shape (m, k)."""
        originals = [self.replicated(row) for row in range(self.k, self.n)]
        return np.array([[original == column for column in range(self.k)] for original in originals])

    def erasure_patterns(self) -> Iterator[tuple[int, ...]]:
        """Yield every set of at most m lost models, an original among them, that can be made good, smallest first.

        Lost coded models count too: the fewer are left, the larger the noise gain.
        """
        for size in range(1, self.m + 1):
            for lost in combinations(range(self.n), size):
                if lost[0] < self.k and self.decodable(self.left_by(lost)):
                    yield lost

    def survives_any(self, erasures: int) -> bool:
        """Tell whether every original is decodable after *any* ``erasures`` of the n models are lost."""
        return erasures <= self.n and all(
            self.decodable(self.left_by(lost)) for lost in combinations(range(self.n), erasures)
        )

    def worst_condition(self) -> float:
        """Return the largest condition number of any k rows of the generator matrix; infinite if some are singular."""
        worst, rows = 0.0, combinations(range(self.n), self.k)
        while some := list(islice(rows, _AT_ONCE)):
            conditions = np.linalg.cond(self.generator[np.array(some)])
            worst = max(worst, float(np.nan_to_num(conditions, nan=np.inf).max()))
        return worst

    def worst_noise_gain(self) -> float:
        """Return the largest noise gain of any original over all losses of any m models."""
        return self.worst_loss.noise_gain

    @cached_property
    def worst_loss(self) -> WorstLoss:
        """The loss of m models that decoding makes good worst; its noise gain is infinite where it cannot."""
        worst = WorstLoss((), 0, 0.0)
        for lost in combinations(range(self.n), self.m):
            decoding = _solve(self, self.left_by(lost), tuple(range(self.k)))
            if decoding is None:
                return WorstLoss(lost, None, math.inf)
            gain = max(decoding.noise_gain)
            if gain > worst.noise_gain:
                worst = WorstLoss(lost, decoding.noise_gain.index(gain), gain)
        return worst


def check_all_protected(row: Sequence[float], what: str) -> None:
    """Check that a row protects every original.

    Args:
        row: coefficients.
        what: what they are, to begin the error's message with.

    Raises:
        CodeError: if one of them is zero or negative, or not finite.
    """
    _check_coefficients(row, what)
    for index, value in enumerate(row):
        if value == 0:
            raise CodeError(
                f"{what}: coefficient {index} is 0, so original {index} would not be protected by this coded model; "
                "an encoder needs a positive coefficient for each original"
            )


def _check_coefficients(row: Sequence[float], what: str) -> None:
    for index, value in enumerate(row):
        if not math.isfinite(value) or value < 0:
            raise CodeError(
                f"{what}: coefficient {index} is {value}; no coefficient may be negative, and all must be finite, "
                "since a coded model is a weighted average of the originals"
            )


def _wanted(code: LinearCode, wanted: Collection[Wanted] | None) -> tuple[Wanted, ...]:
    chosen = tuple(range(code.k)) if wanted is None else tuple(wanted)
    for item in chosen:
        if isinstance(item, tuple):
            if len(item) != code.k:
                raise CodeError(f"a combination has {len(item)} coefficients; the code has {code.k} originals")
        elif not 0 <= item < code.k:
            raise CodeError(f"original {item} does not exist: the code has {code.k}, numbered from 0")
    return chosen


def _targets(code: LinearCode, wanted: Sequence[Wanted]) -> Matrix:
    """Return the coefficients of what is wanted, shape (wanted, k)."""
    identity = np.eye(code.k)
    return np.array([item if isinstance(item, tuple) else identity[item] for item in wanted]).reshape(-1, code.k)


@lru_cache(maxsize=4096)
def _solve(code: LinearCode, arrived: frozenset[int], wanted: tuple[Wanted, ...]) -> Decoding | None:
    """Solve ``weights @ generator[sources] = target`` with least weight on coded rows."""
    known = {index: index for index in sorted(arrived) if index < code.k}
    mixed = []
    for index in sorted(arrived):
        if index >= code.k:
            replicated = code.replicated(index)
            if replicated is None:
                mixed.append(index)
            else:  # it carries no coding error, and so is as good as the original itself
                known.setdefault(replicated, index)
    if len({item for item in wanted if isinstance(item, int)}.difference(known)) > len(mixed):
        return None  # each takes an equation of its own
    unknown = [index for index in range(code.k) if index not in known]
    target = _targets(code, wanted)
    parities = np.asarray(code.parities)[[index - code.k for index in mixed]]
    # Rows of the pseudo-inverse have the least norm among all that recover an unknown: the least noise gain.
    recover = np.linalg.pinv(parities[:, unknown]) if mixed and unknown else np.zeros((len(unknown), len(mixed)))
    on_mixed = target[:, unknown] @ recover
    if not np.allclose(on_mixed @ parities[:, unknown], target[:, unknown], atol=_SOLVED):
        return None
    on_known = target[:, list(known)] - on_mixed @ parities[:, list(known)]
    weights = np.hstack([on_known, on_mixed]).round(12)  # rids plain weights, such as -1, of the solver's noise
    asked = np.array([*known.values(), *mixed], dtype=int)
    order = [column for column in np.argsort(asked) if weights[:, column].any()]
    weights, sources = weights[:, order], asked[order]
    gains = np.linalg.norm(weights[:, sources >= code.k], axis=1)
    return Decoding(wanted, tuple(sources.tolist()), weights, tuple(gains.tolist()))
