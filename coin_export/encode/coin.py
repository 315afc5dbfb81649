"""COIN: the coded model as the KL barycenter of the originals, with diagonal Fisher information (arXiv 2409.01420).

    theta_c = sum_i beta_i (F_i + d) theta_i / sum_i beta_i (F_i + d)

elementwise, where F_i is the diagonal of the Fisher information of model i under its own predictive distribution,
averaged over the same calibration inputs for every model, and d damps it toward the plain average.

How far to damp depends on the networks. So, unless it is given, a few dampings are tried, and that one is kept whose
outputs come nearest to the combination of the originals' on calibration inputs. No label is needed for that. Ways to
normalise cannot be told apart so: the plain formula can have the least error in all and lose a model whose Fisher
information is small.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from coin_export.code.linear import LinearCode
from coin_export.datasets.calibration import CalibrationInputs
from coin_export.encode.barycenter import barycenter
from coin_export.encode.cost import CostMeter, Passes
from coin_export.encode.criterion import Criterion
from coin_export.encode.encoding import Encoding, StateDict
from coin_export.encode.held_out import HeldOut
from coin_export.encode.teachers import Teachers, working_copy
from coin_export.fisher.cache import cached_diagonal_fisher
from coin_export.fisher.diagonal import DiagonalFisher
from coin_export.fisher.options import FisherOptions
from coin_export.model.signature import Original

Normalization = Literal["none", "per_model", "per_tensor"]
Damping = Annotated[float, Field(ge=0, allow_inf_nan=False)]

_DAMPINGS = (0.1, 0.3, 1.0)
_USUAL = 0.3
_DECIDING = 1_000  # points


class CoinOptions(BaseModel):
    """How COIN weighs the originals."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["coin"] = Field(default="coin", description="Barycenter weighted by diagonal Fisher information.")
    fisher: FisherOptions = Field(default=FisherOptions(), description="Which Fisher information, how estimated.")
    damping: Damping | Literal["auto"] = Field(
        default="auto",
        description="Added to every Fisher value, in units of the mean Fisher value of the originals after "
        "normalization. 0 is the plain formula, larger is nearer to the plain average. auto: 0.1, 0.3 or 1, whichever "
        "gives the least output error on calibration inputs.",
    )
    normalization: Normalization = Field(
        default="per_tensor",
        description="Divide the Fisher values of a model by their mean (per_model), or those of each of its tensors by "
        "theirs (per_tensor); none is the paper's formula, in which a very confident model hardly counts, since its "
        "Fisher nearly vanishes.",
    )

    def dampings(self) -> Sequence[float]:
        """Return those to try."""
        return _DAMPINGS if self.damping == "auto" else (self.damping,)

    def settled_damping(self) -> float:
        """Return the damping to take where nothing can be tried: auto then is 0.3."""
        return _USUAL if self.damping == "auto" else self.damping


START = CoinOptions(damping=_USUAL)
"""As a start of another encoder, which goes on from there."""


def coin(
    originals: Sequence[Original],
    coefficients: Sequence[float],
    calibration: CalibrationInputs,
    options: CoinOptions,
    cache: Path | None = None,
) -> Encoding:
    """Combine the originals' weights by COIN; see `Encoder`.

    Where the Fisher values of all originals are zero and so is the damping, the plain average is taken. Of several
    dampings, the one is kept whose outputs have the least mean squared error on calibration inputs, evenly spaced ones
    if there are more than 1,000; of equals, the first.

    Raises:
        CoinExportError: as `cached_diagonal_fisher`.
    """
    meter, passes = CostMeter(), Passes()
    fishers = [cached_diagonal_fisher(original, calibration, options.fisher, cache) for original in originals]
    for fisher in fishers:
        passes.forward, passes.backward = (
            passes.forward + fisher.forward_passes,
            passes.backward + fisher.backward_passes,
        )
    mean_fisher = {original.name: fisher.mean() for original, fisher in zip(originals, fishers, strict=True)}
    dampings = options.dampings()
    states = (_combined(originals, coefficients, fishers, options.normalization, damping) for damping in dampings)
    if len(dampings) == 1:
        return Encoding(next(states), meter.cost(passes.forward, passes.backward), {"mean_fisher": mean_fisher})
    spaced = np.unique(np.linspace(0, len(calibration) - 1, _DECIDING).astype(np.intp))
    error = Criterion(LinearCode((tuple(coefficients),)), "error")
    deciding = HeldOut(Teachers(originals, passes), error, calibration.take(spaced))
    state_dict: StateDict = {}
    errors: dict[float, float] = {}
    for damping, state in zip(dampings, states, strict=True):
        found = deciding.error([working_copy(originals[0], state)])
        if not errors or found < min(errors.values()):
            state_dict = state
        errors[damping] = found
    notes = {
        "mean_fisher": mean_fisher,
        "damping": min(errors, key=errors.__getitem__),
        "output_errors": {f"{damping:g}": found for damping, found in errors.items()},
    }
    return Encoding(state_dict, meter.cost(passes.forward, passes.backward), notes)


def _combined(
    originals: Sequence[Original],
    coefficients: Sequence[float],
    fishers: Sequence[DiagonalFisher],
    normalization: Normalization,
    damping: float,
) -> StateDict:
    scales = [_scales(fisher, normalization) for fisher in fishers]
    means = [_scaled_mean(fisher, scale) for fisher, scale in zip(fishers, scales, strict=True)]
    added = damping * sum(beta * mean for beta, mean in zip(coefficients, means, strict=True))

    def precisions(name: str) -> list[torch.Tensor]:
        return [
            fisher.diagonal[name].double() * scale[name] + added for fisher, scale in zip(fishers, scales, strict=True)
        ]

    return barycenter(originals, coefficients, precisions)


def _scales(fisher: DiagonalFisher, normalization: Normalization) -> dict[str, float]:
    """Return the factor of each tensor that makes the chosen mean one; a mean of zero stays zero."""
    if normalization == "none":
        return dict.fromkeys(fisher.diagonal, 1.0)
    if normalization == "per_model":
        return dict.fromkeys(fisher.diagonal, _inverse(fisher.mean()))
    return {name: _inverse(_mean(tensor)) for name, tensor in fisher.diagonal.items()}


def _scaled_mean(fisher: DiagonalFisher, scales: dict[str, float]) -> float:
    """Return the mean over all elements after scaling."""
    elements = sum(tensor.numel() for tensor in fisher.diagonal.values())
    return sum(scales[name] * _mean(tensor) * tensor.numel() for name, tensor in fisher.diagonal.items()) / elements


def _mean(tensor: torch.Tensor) -> float:
    return float(tensor.mean(dtype=torch.float64)) if tensor.numel() else 0.0


def _inverse(mean: float) -> float:
    return 1.0 / mean if mean > 0 else 0.0
