"""RegMean: each linear layer and convolution by least squares on what it sees (Jin and others, ICLR 2023).

    W = (sum_i beta_i W_i G_i) (sum_i beta_i G_i)^-1

minimises sum_i beta_i ||X_i W^T - X_i W_i^T||^2, where G_i = X_i^T X_i and X_i are the layer's inputs inside model i.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from coin_export.datasets.calibration import CalibrationInputs
from coin_export.encode.barycenter import barycenter
from coin_export.encode.cost import CostMeter
from coin_export.encode.encoding import Encoding
from coin_export.encode.grams import observed_grams, regressable
from coin_export.encode.teachers import answers_of, select, working_copy, working_inputs
from coin_export.model.signature import Original
from coin_export.model.state import all_equal

# Added to the diagonal, relative to its mean: inputs that are always zero then leave the plain average.
_RIDGE = 1e-8


class RegMeanOptions(BaseModel):
    """How far to trust correlations between a layer's inputs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["regmean"] = Field(default="regmean", description="Least squares, layer by layer.")
    off_diagonal: float = Field(
        default=0.9,
        ge=0,
        le=1,
        description="Factor of the Gram matrices' off-diagonal elements; 1 is plain least squares, and overfits.",
    )
    layers: Literal["all", "linear"] = Field(
        default="all",
        description="all: linear layers and convolutions; linear: linear layers only, as in the paper, and "
        "convolutions are averaged.",
    )
    batch_size: int = Field(default=64, ge=1, description="Points in a forward pass; does not change the result.")


def regmean(
    originals: Sequence[Original],
    coefficients: Sequence[float],
    calibration: CalibrationInputs,
    options: RegMeanOptions,
    cache: Path | None = None,
) -> Encoding:
    """Regress the weights of linear layers and convolutions, average all else; see `Encoder`.

    Averaged are also weights shared by several layers, and those of layers that run without their ``forward`` being
    called, as inside `nn.MultiheadAttention`.
    """
    meter = CostMeter()
    state_dict = barycenter(originals, coefficients)
    grams = [_grams(original, calibration, options) for original in originals]
    states = [original.module.state_dict() for original in originals]
    names = [name for name in grams[0] if all(name in others for others in grams)]
    for name in names:
        key = f"{name}.weight" if name else "weight"
        weights = [state[key] for state in states]
        if all_equal(weights):
            continue
        layer_grams = [_shrunk(of_model.pop(name), options.off_diagonal) for of_model in grams]
        state_dict[key] = _regressed(weights, layer_grams, coefficients).to(weights[0].dtype)
    points = len(calibration) * len(originals)
    return Encoding(state_dict, meter.cost(forward_passes=points), {"regressed_layers": len(names)})


def _grams(original: Original, calibration: CalibrationInputs, options: RegMeanOptions) -> dict[str, torch.Tensor]:
    module, inputs = working_copy(original, original.module.state_dict()), working_inputs(calibration)
    layers, names = regressable(module), [spec.name for spec in original.signature.outputs]
    if options.layers == "linear":
        layers = {name: layer for name, layer in layers.items() if isinstance(layer, nn.Linear)}
    # Where nothing is added to the diagonal but the ridge, rounding in float32 would outweigh it.
    dtype = torch.float64 if options.off_diagonal == 1 else torch.float32
    with torch.no_grad(), observed_grams(layers, dtype) as grams:
        for start in range(0, len(calibration), options.batch_size):
            answers_of(module, select(inputs, slice(start, start + options.batch_size)), names)
    return {name: gram.total() for name, gram in grams.items()}


def _shrunk(gram: torch.Tensor, off_diagonal: float) -> torch.Tensor:
    diagonal = torch.diag_embed(gram.diagonal(dim1=1, dim2=2))
    return off_diagonal * gram + (1 - off_diagonal) * diagonal


def _regressed(
    weights: Sequence[torch.Tensor], grams: Sequence[torch.Tensor], coefficients: Sequence[float]
) -> torch.Tensor:
    """Solve for the weight; ``weights`` have the shape (outputs, ...), ``grams`` (groups, fan_in, fan_in)."""
    groups, fan_in = grams[0].shape[:2]
    total = torch.stack([beta * gram for beta, gram in zip(coefficients, grams, strict=True)]).sum(0)
    scale = total.diagonal(dim1=1, dim2=2).mean(-1)
    ridge = torch.where(scale > 0, _RIDGE * scale, 1.0)[:, None, None] * torch.eye(fan_in, dtype=total.dtype)
    numerator = torch.zeros(groups, weights[0].shape[0] // groups, fan_in, dtype=total.dtype)
    for beta, weight, gram in zip(coefficients, weights, grams, strict=True):
        numerator += beta * weight.double().reshape(groups, -1, fan_in) @ (gram + ridge)
    solution: torch.Tensor = torch.linalg.solve(total + ridge, numerator, left=False)
    return solution.reshape(weights[0].shape)
