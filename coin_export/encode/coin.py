"""COIN: the coded model as the KL barycenter of the originals, with diagonal Fisher information (arXiv 2409.01420).

    theta_c = sum_i beta_i (F_i + d) theta_i / sum_i beta_i (F_i + d)

elementwise, where F_i is the diagonal of the Fisher information of model i under its own predictive distribution,
averaged over the same calibration inputs for every model, and d damps it toward the plain average.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from coin_export.datasets.calibration import CalibrationInputs
from coin_export.encode.barycenter import barycenter
from coin_export.encode.cost import CostMeter
from coin_export.encode.encoding import Encoding
from coin_export.fisher.cache import cached_diagonal_fisher
from coin_export.fisher.diagonal import DiagonalFisher
from coin_export.fisher.options import FisherOptions
from coin_export.model.signature import Original

Normalization = Literal["none", "per_model", "per_tensor"]


class CoinOptions(BaseModel):
    """How COIN weighs the originals."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["coin"] = Field(default="coin", description="Barycenter weighted by diagonal Fisher information.")
    fisher: FisherOptions = Field(default=FisherOptions(), description="Which Fisher information, how estimated.")
    damping: float = Field(
        default=0.3,
        ge=0,
        allow_inf_nan=False,
        description="Added to every Fisher value, in units of the mean Fisher value of the originals after "
        "normalization. 0 is the plain formula, larger is nearer to the plain average.",
    )
    normalization: Normalization = Field(
        default="per_tensor",
        description="Divide the Fisher values of a model by their mean (per_model), or those of each of its tensors by "
        "theirs (per_tensor); none is the paper's formula, in which a very confident model hardly counts, since its "
        "Fisher nearly vanishes.",
    )


def coin(
    originals: Sequence[Original],
    coefficients: Sequence[float],
    calibration: CalibrationInputs,
    options: CoinOptions,
    cache: Path | None = None,
) -> Encoding:
    """Combine the originals' weights by COIN; see `Encoder`.

    Where the Fisher values of all originals are zero and so is the damping, the plain average is taken.

    Raises:
        CoinExportError: as `cached_diagonal_fisher`.
    """
    meter = CostMeter()
    fishers = [cached_diagonal_fisher(original, calibration, options.fisher, cache) for original in originals]
    scales = [_scales(fisher, options.normalization) for fisher in fishers]
    means = [_scaled_mean(fisher, scale) for fisher, scale in zip(fishers, scales, strict=True)]
    damping = options.damping * sum(beta * mean for beta, mean in zip(coefficients, means, strict=True))

    def precisions(name: str) -> list[torch.Tensor]:
        return [
            fisher.diagonal[name].double() * scale[name] + damping
            for fisher, scale in zip(fishers, scales, strict=True)
        ]

    state_dict = barycenter(originals, coefficients, precisions)
    cost = meter.cost(
        forward_passes=sum(fisher.forward_passes for fisher in fishers),
        backward_passes=sum(fisher.backward_passes for fisher in fishers),
    )
    mean_fisher = {original.name: fisher.mean() for original, fisher in zip(originals, fishers, strict=True)}
    return Encoding(state_dict, cost, {"mean_fisher": mean_fisher})


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
