"""Regression of the coded model's own features, layer by layer, toward the combined ones: a closed form.

From the first layer to the last: at the coded model's own input features X_c of a layer, with all earlier layers
already set, the layer's weight is moved from the start W_0 (a barycenter) to the minimiser of

    ||X_c W^T - sum_i beta_i Y_i||^2 + ridge ||W - W_0||^2

where Y_i is what the same layer gives inside model i on the same calibration inputs. RegMean uses the features that
each original sees; this uses those that the coded model will see, so that errors of earlier layers are made good.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from coin_export.datasets.calibration import CalibrationInputs
from coin_export.encode.affine import AffineKind, calls_of, kind_of, observing
from coin_export.encode.average import AverageOptions, average
from coin_export.encode.coin import START, coin
from coin_export.encode.cost import CostMeter, Passes
from coin_export.encode.encoding import Encoding
from coin_export.encode.teachers import (
    Inputs,
    batches_of,
    finished_state,
    points_of,
    select,
    working_copy,
    working_inputs,
)
from coin_export.model.signature import Original, name_outputs
from coin_export.model.state import all_equal

# Rows for each feature: enough for least squares, and convolutions have far more positions than they need.
_ROWS_PER_FEATURE = 40


class RegressOptions(BaseModel):
    """From where to regress, and how far to trust it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["regress"] = Field(
        default="regress", description="Layer-wise regression of the coded model's own features; no training."
    )
    start: Literal["average", "coin"] = Field(
        default="coin", description="The barycenter to start at; what cannot be regressed stays as it gives it."
    )
    layers: Literal["all", "head"] = Field(
        default="all", description="head: only the layers whose outputs are the model's own."
    )
    ridge: float = Field(
        default=0.01,
        gt=0,
        allow_inf_nan=False,
        description="Pull toward the start, in units of the mean square of a layer's input features.",
    )
    batch_size: int = Field(default=32, ge=1, description="Points in a forward pass; does not change the result.")


def regress(
    originals: Sequence[Original],
    coefficients: Sequence[float],
    calibration: CalibrationInputs,
    options: RegressOptions,
    cache: Path | None = None,
) -> Encoding:
    """Regress layer after layer; see `Encoder`.

    Regressed are linear layers, convolutions, the projections of self-attention, and scale and shift of normalisation
    layers. Weights shared by several layers, weights or biases that are equal in all originals, and everything else
    stay as the start gives them.

    Raises:
        CoinExportError: as `coin`.
    """
    meter, passes = CostMeter(), Passes()
    start = (
        average(originals, coefficients, calibration, AverageOptions(), cache)
        if options.start == "average"
        else coin(originals, coefficients, calibration, START, cache)
    )
    passes.add(start.cost)
    coded = working_copy(originals[0], start.state_dict)
    models = [working_copy(original, original.module.state_dict()) for original in originals]
    layers = regress_layers(coded, models, coefficients, working_inputs(calibration), options)
    passes.forward += len(calibration) * (len(models) + 1) * len(layers)
    notes = {"regressed_layers": len(layers), "start": options.start}
    return Encoding(finished_state(coded, originals[0]), meter.cost(passes.forward, passes.backward), notes)


def regress_layers(
    coded: nn.Module,
    models: Sequence[nn.Module],
    coefficients: Sequence[float],
    inputs: Inputs,
    options: RegressOptions,
) -> list[str]:
    """Move the layers of ``coded``, in place, and return their names. The forward pass ends at the layer in turn.

    A layer that not all models call alike, such as an expert that some ask about fewer points, stays as it is.
    """
    batches = batches_of(inputs, options.batch_size)
    layers = _in_order(coded, models, select(inputs, slice(0, 1)), options.layers == "head")
    regressed = []
    for name, calls in layers.items():
        layer = coded.get_submodule(name)
        kind = kind_of(layer)
        if kind is not None:
            normal = _normal_equations(kind, name, calls, coded, models, coefficients, batches)
            if normal is None:
                continue
            regressed.append(name)
            moves = _differs(name, kind.weight, models), _differs(name, kind.bias, models)
            _move(layer, kind, *normal, options.ridge, *moves)
    return regressed


def _in_order(coded: nn.Module, models: Sequence[nn.Module], inputs: Inputs, head: bool) -> dict[str, int]:
    """Return the layers to regress, in the order in which they are first called, and how often each is called."""
    uses = Counter(id(parameter) for _, parameter in coded.named_parameters(remove_duplicate=False))
    wanted = {
        name
        for name, layer in coded.named_modules()
        if (kind := kind_of(layer)) is not None
        and uses[id(getattr(layer, kind.weight))] == 1
        and (_differs(name, kind.weight, models) or _differs(name, kind.bias, models))
    }
    calls: Counter[str] = Counter()
    outputs: dict[str, torch.Tensor] = {}  # kept, since memory that is freed is used again

    def observe(name: str, _: torch.Tensor, output: torch.Tensor) -> None:
        calls[name] += 1
        outputs[name] = output

    with torch.no_grad(), observing(coded, wanted, observe):
        returned = name_outputs(coded(*inputs.values()), None)
    ends = {_memory(output) for output in returned.values()}
    return {name: n for name, n in calls.items() if name in wanted and (not head or _memory(outputs[name]) in ends)}


def _memory(tensor: torch.Tensor) -> int:
    """Return where a tensor's values are: a layer's output that was only reshaped still is the model's."""
    return tensor.untyped_storage().data_ptr()


def _differs(layer: str, parameter: str, models: Sequence[nn.Module]) -> bool:
    """Tell whether a layer's parameter is there and not the same in all models."""
    found = [getattr(model.get_submodule(layer), parameter, None) for model in models]
    tensors = [tensor for tensor in found if tensor is not None]
    return bool(tensors) and not all_equal(tensors)


def _normal_equations(
    kind: AffineKind,
    name: str,
    calls: int,
    coded: nn.Module,
    models: Sequence[nn.Module],
    coefficients: Sequence[float],
    batches: Sequence[Inputs],
) -> tuple[torch.Tensor, torch.Tensor, int] | None:
    """Return, in float64, X^T X, X^T (wanted outputs - own outputs) and the number of rows; X ends in a column of ones.

    The first two have the shapes (groups, features + 1, features + 1) and (groups, features + 1, outputs). None if in
    some batch the models call the layer with different numbers of rows, or not equally often.
    """
    gram, cross, rows = torch.zeros(()), torch.zeros(()), 0
    points = sum(points_of(inputs) for inputs in batches)
    first = 0
    for inputs in batches:
        own = calls_of(coded, name, calls, inputs)
        teachers = [calls_of(model, name, calls, inputs) for model in models]
        if any(_shapes(teacher) != _shapes(own) for teacher in teachers):
            return None
        for call, (seen, output) in enumerate(own):
            features = kind.features(coded.get_submodule(name), seen)
            residual = -kind.outputs(coded.get_submodule(name), output)
            for beta, model, teacher in zip(coefficients, models, teachers, strict=True):
                residual = residual + beta * kind.outputs(model.get_submodule(name), teacher[call][1])
            x = _thinned(nn.functional.pad(features, (0, 1), value=1.0), points, first)
            gram = gram + (x.transpose(1, 2) @ x).double()
            cross = cross + (x.transpose(1, 2) @ _thinned(residual, points, first, x.shape[-1])).double()
            rows += x.shape[1]
        first += points_of(inputs)
    return gram, cross, rows


def _shapes(calls: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> list[torch.Size]:
    return [output.shape for _, output in calls]


def _thinned(rows: torch.Tensor, points: int, first: int, width: int | None = None) -> torch.Tensor:
    """Keep enough positions of each point and flatten to (groups, rows, width).

    Which ones depends on the point's index alone, so not on the batch size.
    """
    groups, here, positions, own_width = rows.shape
    kept = max(1, min(positions, -(-_ROWS_PER_FEATURE * (width or own_width) // points)))
    if kept < positions:
        offset = (torch.arange(first, first + here) * 0.6180339887 % 1.0 * positions).long()[:, None]
        index = (offset + torch.arange(kept) * positions // kept) % positions
        rows = rows[:, torch.arange(here)[:, None], index]
    return rows.reshape(groups, -1, own_width)


def _move(
    layer: nn.Module,
    kind: AffineKind,
    gram: torch.Tensor,
    cross: torch.Tensor,
    rows: int,
    ridge: float,
    with_weight: bool,
    with_bias: bool,
) -> None:
    """Solve for the change of weight, bias or both, and make it."""
    features = gram.shape[-1] - 1
    scale = gram.diagonal(dim1=1, dim2=2)[:, :features].mean(-1)
    diagonal = (ridge * scale).clamp_min(torch.finfo(torch.float32).tiny)[:, None].expand(-1, features + 1).clone()
    diagonal[:, features] = ridge * rows
    kept = slice(0 if with_weight else features, features + with_bias)
    change = torch.zeros_like(cross)
    change[:, kept] = torch.linalg.solve((gram + torch.diag_embed(diagonal))[:, kept, kept], cross[:, kept])
    with torch.no_grad():
        if with_weight:
            weight = getattr(layer, kind.weight)
            weight += change[:, :features].transpose(1, 2).reshape(weight.shape).to(weight.dtype)
        if with_bias:
            bias = getattr(layer, kind.bias)
            bias += change[:, features].reshape(bias.shape).to(bias.dtype)
