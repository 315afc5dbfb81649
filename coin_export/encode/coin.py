"""COIN: the coded model as the KL barycenter of the originals, with diagonal Fisher information (arXiv 2409.01420).

    theta_c = sum_i beta_i (F_i + d) theta_i / sum_i beta_i (F_i + d)

elementwise, where F_i is the diagonal of the Fisher information of model i under its own predictive distribution,
averaged over the same calibration inputs for every model, and d damps it toward the plain average.

How Fisher information is best normalised and damped depends on the networks: the plain formula loses a model of which
it is small. So, unless they are given, a few ways are tried, and that one is kept whose outputs come nearest to the
combination of the originals' on calibration inputs. No label is needed for that.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
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

_NORMALIZATIONS: Sequence[Normalization] = ("none", "per_tensor")
_DAMPINGS = (0.1, 0.3, 1.0)
_USUAL: tuple[Normalization, float] = ("per_tensor", 0.3)
_DECIDING = 1_000  # points; with a quarter of them, ways that are nearly as good are confused


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
    normalization: Normalization | Literal["auto"] = Field(
        default="auto",
        description="Divide the Fisher values of a model by their mean (per_model), or those of each of its tensors by "
        "theirs (per_tensor); none is the paper's formula, in which a very confident model hardly counts, since its "
        "Fisher nearly vanishes. auto: none or per_tensor, whichever gives the least output error.",
    )

    def ways(self) -> list[tuple[Normalization, float]]:
        """Return the normalizations and dampings to try."""
        normalizations = _NORMALIZATIONS if self.normalization == "auto" else (self.normalization,)
        return list(product(normalizations, _DAMPINGS if self.damping == "auto" else (self.damping,)))

    def settled(self) -> tuple[Normalization, float]:
        """Return the normalization and damping to take where nothing can be tried: auto then is per_tensor, and 0.3."""
        normalization = _USUAL[0] if self.normalization == "auto" else self.normalization
        return normalization, _USUAL[1] if self.damping == "auto" else self.damping


START = CoinOptions(normalization=_USUAL[0], damping=_USUAL[1])
"""As a start of another encoder, which goes on from there."""


def coin(
    originals: Sequence[Original],
    coefficients: Sequence[float],
    calibration: CalibrationInputs,
    options: CoinOptions,
    cache: Path | None = None,
) -> Encoding:
    """Combine the originals' weights by COIN; see `Encoder`.

    Where the Fisher values of all originals are zero and so is the damping, the plain average is taken. Of several ways
    to normalise and damp, the one is kept whose outputs have the least mean squared error on calibration inputs, evenly
    spaced ones if there are more than 1,000; of equals, the first.

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
    ways = options.ways()
    states = (_combined(originals, coefficients, fishers, *way) for way in ways)
    if len(ways) == 1:
        return Encoding(next(states), meter.cost(passes.forward, passes.backward), {"mean_fisher": mean_fisher})
    spaced = np.unique(np.linspace(0, len(calibration) - 1, _DECIDING).astype(np.intp))
    error = Criterion(LinearCode((tuple(coefficients),)), "error")
    deciding = HeldOut(Teachers(originals, passes), error, calibration.take(spaced))
    chosen, state_dict, errors = "", {}, {}
    for (normalization, damping), state in zip(ways, states, strict=True):
        way = f"{normalization}, {damping:g}"
        errors[way] = deciding.error([working_copy(originals[0], state)])
        if not chosen or errors[way] < errors[chosen]:
            chosen, state_dict = way, state
    notes = {"mean_fisher": mean_fisher, "chosen": chosen, "output_errors": errors}
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
