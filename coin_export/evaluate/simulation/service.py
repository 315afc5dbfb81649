"""How long a call takes a server that does nothing else: standard distributions, and measured ones.

Each law is a value with a mean in seconds and draws independent times from a numpy generator.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from coin_export.errors import UserError

FloatArray = npt.NDArray[np.float64]

_CHUNK = 16_384  # times drawn at once


class Law(Protocol):
    """A distribution of service times."""

    @property
    def mean_s(self) -> float:
        """The mean in seconds."""
        ...

    def sample(self, random: np.random.Generator, shape: tuple[int, int]) -> FloatArray:
        """Draw independent times in seconds."""
        ...


def rows(law: Law, random: np.random.Generator, width: int) -> Iterator[list[float]]:
    """Yield lists of ``width`` times without end; the same generator gives the same lists."""
    while True:
        yield from law.sample(random, (max(1, _CHUNK // width), width)).tolist()


@dataclass(frozen=True)
class Fixed:
    """Always the same time."""

    mean_s: float

    def sample(self, random: np.random.Generator, shape: tuple[int, int]) -> FloatArray:
        """See `Law`."""
        return np.full(shape, self.mean_s)


@dataclass(frozen=True)
class ShiftedExponential:
    """A fixed part, and an exponential one; ``fixed`` is the first one's share of the mean (0: exponential)."""

    mean_s: float
    fixed: float = 0.5

    def sample(self, random: np.random.Generator, shape: tuple[int, int]) -> FloatArray:
        """See `Law`."""
        return self.mean_s * (self.fixed + (1 - self.fixed) * random.standard_exponential(shape))


@dataclass(frozen=True)
class Pareto:
    """At least a smallest time, then a power law: P(S > s) falls as ``s ** -exponent``, which must exceed 1."""

    mean_s: float
    exponent: float = 2.2

    def sample(self, random: np.random.Generator, shape: tuple[int, int]) -> FloatArray:
        """See `Law`."""
        smallest = self.mean_s * (self.exponent - 1) / self.exponent
        return smallest * (1 + random.pareto(self.exponent, shape))


@dataclass(frozen=True)
class LogNormal:
    """The exponential of a normal variable with standard deviation ``sigma``."""

    mean_s: float
    sigma: float = 1.0

    def sample(self, random: np.random.Generator, shape: tuple[int, int]) -> FloatArray:
        """See `Law`."""
        drawn: FloatArray = self.mean_s * np.exp(self.sigma * random.standard_normal(shape) - self.sigma**2 / 2)
        return drawn


@dataclass(frozen=True)
class Bimodal:
    """Two fixed times: a share ``slow`` of the calls takes ``ratio`` times as long as the others."""

    mean_s: float
    slow: float = 0.02
    ratio: float = 20.0

    def sample(self, random: np.random.Generator, shape: tuple[int, int]) -> FloatArray:
        """See `Law`."""
        fast = self.mean_s / (1 - self.slow + self.slow * self.ratio)
        return fast * np.where(random.random(shape) < self.slow, self.ratio, 1.0)


@dataclass(frozen=True)
class Measured:
    """Times between measured quantiles, linearly.

    Attributes:
        levels: increasing, from 0 to 1.
        times_s: the quantile at each level, in seconds.

    Raises:
        UserError: if they are no quantiles.
    """

    levels: tuple[float, ...]
    times_s: tuple[float, ...]

    def __post_init__(self) -> None:
        levels, times = np.asarray(self.levels), np.asarray(self.times_s)
        if len(levels) != len(times) or len(levels) < 2 or (levels[0], levels[-1]) != (0.0, 1.0):
            raise UserError("measured service times need as many levels as times, the levels from 0 to 1")
        if (np.diff(levels) <= 0).any() or (np.diff(times) < 0).any() or times[0] < 0 or math.isinf(times[-1]):
            raise UserError("measured service times need increasing levels, and finite times that do not decrease")

    @classmethod
    def read(cls, path: Path, case: str = "alone") -> Measured:
        """Read one case of what ``scripts/measure_service_times.py`` wrote.

        Raises:
            UserError: if the file does not hold service times.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return cls(tuple(content[case]["levels"]), tuple(content[case]["times_s"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path} holds no service times ({error}); measure them: python scripts/measure_service_times.py"
            ) from error

    @property
    def mean_s(self) -> float:
        """See `Law`."""
        levels, times = np.asarray(self.levels), np.asarray(self.times_s)
        return float(np.sum(np.diff(levels) * (times[1:] + times[:-1]) / 2))

    def stretched(self, mean_s: float) -> Measured:
        """Return the same shape with another mean."""
        factor = mean_s / self.mean_s
        return Measured(self.levels, tuple(factor * time for time in self.times_s))

    def sample(self, random: np.random.Generator, shape: tuple[int, int]) -> FloatArray:
        """See `Law`."""
        drawn: FloatArray = np.interp(random.random(shape), self.levels, self.times_s)
        return drawn
