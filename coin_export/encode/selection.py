"""Choosing between coded models by how well they match the wanted outputs on held-out calibration inputs."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, TypeAlias

import torch
from pydantic import Field

from coin_export.datasets.calibration import CalibrationInputs
from coin_export.encode.average import AverageOptions, average
from coin_export.encode.coin import CoinOptions, coin
from coin_export.encode.combination import (
    Combination,
    points_of,
    select,
    squared_errors,
    working_copy,
    working_inputs,
)
from coin_export.encode.encoding import Encoding
from coin_export.errors import NonFiniteError
from coin_export.model.signature import Original, call

Dampings: TypeAlias = tuple[Annotated[float, Field(ge=0, allow_inf_nan=False)], ...]
_BATCH = 256


class HeldOut:
    """Held-out inputs with the outputs that are wanted on them, computed once."""

    def __init__(self, combination: Combination, points: CalibrationInputs) -> None:
        self._combination = combination
        self._batches = [(inputs, combination(inputs)) for inputs in _batches(working_inputs(points))]

    def error(self, module: torch.nn.Module) -> float:
        """Return the mean squared error over all points and output elements; infinity when it is not finite."""
        total, elements = 0.0, 0
        with torch.no_grad():
            for inputs, wanted in self._batches:
                outputs = call(module, inputs, self._combination.output_names)
                self._combination.passes.forward += points_of(inputs)
                total += float(squared_errors(list(outputs.values()), wanted))
                elements += sum(tensor.numel() for tensor in wanted)
        error = total / elements
        return error if math.isfinite(error) else math.inf


@dataclass(frozen=True, eq=False)
class Choice:
    """The best of several encodings.

    Attributes:
        name: which one it is.
        encoding: the encoding itself.
        errors: held-out output-matching error of each, by name, in the order in which they were tried.
    """

    name: str
    encoding: Encoding
    errors: Mapping[str, float]


def best_barycenter(
    originals: Sequence[Original],
    coefficients: Sequence[float],
    calibration: CalibrationInputs,
    dampings: Sequence[float],
    cache: Path | None,
    combination: Combination,
    held_out: HeldOut,
) -> Choice:
    """Make the plain average, and COIN with each damping, and choose; the Fisher statistics are computed once.

    Raises:
        NonFiniteError: if none has finite outputs.
        CoinExportError: as `coin`.
    """
    with tempfile.TemporaryDirectory(prefix="coin_export_statistics_") as folder:
        kept = cache or Path(folder)
        candidates: dict[str, Callable[[], Encoding]] = {
            "average": partial(average, originals, coefficients, calibration, AverageOptions(), kept)
        }
        for damping in dampings:
            options = CoinOptions(damping=damping)
            candidates[f"coin, damping {damping:g}"] = partial(
                coin, originals, coefficients, calibration, options, kept
            )
        return _choose(candidates, originals[0], combination, held_out)


def _choose(
    candidates: Mapping[str, Callable[[], Encoding]], original: Original, combination: Combination, held_out: HeldOut
) -> Choice:
    """Make one candidate after the other and keep the one with the least error; of equals, the first."""
    errors: dict[str, float] = {}
    best: tuple[str, Encoding] | None = None
    for name, make in candidates.items():
        least = min(errors.values(), default=math.inf)
        encoding = make()
        combination.passes.add(encoding.cost)
        errors[name] = held_out.error(working_copy(original, encoding.state_dict))
        if errors[name] < least:
            best = name, encoding
    if best is None:
        raise NonFiniteError(
            f"outputs hold NaN or infinity for all of {', '.join(errors)}; "
            "check the originals on the calibration inputs"
        )
    return Choice(*best, errors)


def _batches(inputs: Mapping[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    return [select(inputs, slice(start, start + _BATCH)) for start in range(0, points_of(inputs), _BATCH)]
