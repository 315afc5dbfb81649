"""Regression of the coded model's own features, layer by layer, toward the combined ones: a closed form.

From the first layer to the last: at the coded model's own input features X_c of a layer, with all earlier layers
already set, the layer's weight is moved from the start W_0 (a barycenter) to the minimiser of

    ||X_c W^T - sum_i beta_i Y_i||^2 + ridge ||W - W_0||^2

where Y_i is what the same layer gives inside model i on the same calibration inputs. RegMean uses the features that
each original sees; this uses those that the coded model will see, so that errors of earlier layers are made good.

The coded model has a forward pass for each layer, which ends there. The originals' outputs depend on nothing that
changes, so they are asked for as many layers at a time as there is memory for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from coin_export.datasets.calibration import CalibrationInputs
from coin_export.encode.affine import AffineKind, calls_of, kind_of, observe_calls, observing
from coin_export.encode.average import AverageOptions, average
from coin_export.encode.coin import START, coin
from coin_export.encode.cost import CostMeter, Passes
from coin_export.encode.encoding import Encoding
from coin_export.encode.grams import GramSum
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
_MEMORY = 256 * 2**20  # bytes, for what originals give at several layers


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
    layers = regress_layers(coded, models, coefficients, working_inputs(calibration), options, passes)
    notes = {"regressed_layers": len(layers), "start": options.start}
    return Encoding(finished_state(coded, originals[0]), meter.cost(passes.forward, passes.backward), notes)


def regress_layers(
    coded: nn.Module,
    models: Sequence[nn.Module],
    coefficients: Sequence[float],
    inputs: Inputs,
    options: RegressOptions,
    passes: Passes,
) -> list[str]:
    """Move the layers of ``coded``, in place, and return their names.

    A layer that not all models call alike, such as an expert that some ask about fewer points, stays as it is.
    """
    batches, points = batches_of(inputs, options.batch_size), points_of(inputs)
    regressed = []
    for layers in _together(_in_order(coded, models, inputs, options.layers == "head")):
        combined = _combined(layers, models, coefficients, batches)
        passes.forward += points * (len(models) + len(layers))
        for name, layer in layers.items():
            normal = _normal_equations(layer, coded, combined.pop(name), batches)
            if normal is not None:
                regressed.append(name)
                moves = _differs(name, layer.kind.weight, models), _differs(name, layer.kind.bias, models)
                _move(coded.get_submodule(name), layer.kind, *normal, options.ridge, *moves)
    return regressed


@dataclass
class _Layer:
    """A layer to regress.

    Attributes:
        name: of the layer.
        kind: how to see it as an affine map.
        width: number of features, a column of ones among them.
        calls: in one forward pass.
        size: bytes of what it gives in them, as far as it is kept, on all points.
    """

    name: str
    kind: AffineKind
    width: int
    calls: int = 0
    size: int = 0


def _in_order(coded: nn.Module, models: Sequence[nn.Module], inputs: Inputs, head: bool) -> dict[str, _Layer]:
    """Return the layers to regress, in the order in which they are first called."""
    uses = Counter(id(parameter) for _, parameter in coded.named_parameters(remove_duplicate=False))
    wanted = {
        name: kind
        for name, layer in coded.named_modules()
        if (kind := kind_of(layer)) is not None
        and uses[id(getattr(layer, kind.weight))] == 1
        and (_differs(name, kind.weight, models) or _differs(name, kind.bias, models))
    }
    points = points_of(inputs)
    layers: dict[str, _Layer] = {}
    outputs: dict[str, torch.Tensor] = {}  # kept, since memory that is freed is used again

    def observe(name: str, given: torch.Tensor, output: torch.Tensor) -> None:
        if name not in wanted:
            return
        kind, module = wanted[name], coded.get_submodule(name)
        layer = layers.setdefault(name, _Layer(name, kind, kind.features(module, given).shape[-1] + 1))
        layer.calls += 1
        layer.size += 4 * points * _thinned(kind.outputs(module, output), layer.width, points, 0).numel()
        outputs[name] = output

    with torch.no_grad(), observing(coded, set(wanted), observe):
        returned = name_outputs(coded(*select(inputs, slice(0, 1)).values()), None)
    ends = {_memory(output) for output in returned.values()}
    return {name: layer for name, layer in layers.items() if not head or _memory(outputs[name]) in ends}


def _together(layers: Mapping[str, _Layer]) -> Iterator[dict[str, _Layer]]:
    """Split layers, in order, into such that fit into memory together; one at least."""
    group: dict[str, _Layer] = {}
    for name, layer in layers.items():
        if group and sum(other.size for other in group.values()) + layer.size > _MEMORY:
            yield group
            group = {}
        group[name] = layer
    if group:
        yield group


def _memory(tensor: torch.Tensor) -> int:
    """Return where a tensor's values are: a layer's output that was only reshaped still is the model's."""
    return tensor.untyped_storage().data_ptr()


def _differs(layer: str, parameter: str, models: Sequence[nn.Module]) -> bool:
    """Tell whether a layer's parameter is there and not the same in all models."""
    found = [getattr(model.get_submodule(layer), parameter, None) for model in models]
    tensors = [tensor for tensor in found if tensor is not None]
    return bool(tensors) and not all_equal(tensors)


@dataclass(frozen=True, eq=False)
class _Given:
    """What a layer gives in one call: the output's shape, and the rows that are kept, (groups, rows, outputs)."""

    shape: torch.Size
    rows: torch.Tensor


def _combined(
    layers: Mapping[str, _Layer],
    models: Sequence[nn.Module],
    coefficients: Sequence[float],
    batches: Sequence[Inputs],
) -> dict[str, list[list[_Given] | None]]:
    """Return, for each layer and batch, the combination of what it gives in the models, call by call.

    None where some model calls the layer with another number of rows, or more seldom.
    """
    points = sum(points_of(inputs) for inputs in batches)
    combined: dict[str, list[list[_Given] | None]] = {name: [] for name in layers}
    first = 0
    for inputs in batches:
        shares = [
            _share(layers, model, beta, inputs, points, first) for beta, model in zip(coefficients, models, strict=True)
        ]
        for name, found in combined.items():
            found.append(_sum([share[name] for share in shares]))
        first += points_of(inputs)
    return combined


def _share(
    layers: Mapping[str, _Layer], model: nn.Module, beta: float, inputs: Inputs, points: int, first: int
) -> dict[str, list[_Given]]:
    """Return ``beta`` times what layers give in a model on a batch, call by call."""
    given: dict[str, list[_Given]] = {name: [] for name in layers}

    def observe(name: str, _: torch.Tensor, output: torch.Tensor) -> None:
        layer = layers[name]
        rows = _thinned(layer.kind.outputs(model.get_submodule(name), output), layer.width, points, first)
        given[name].append(_Given(output.shape, beta * rows))

    observe_calls(model, {name: layer.calls for name, layer in layers.items()}, inputs, observe)
    return given


def _sum(shares: Sequence[Sequence[_Given]]) -> list[_Given] | None:
    """Add up what models give, call by call; None if they do not call alike."""
    shapes = [[given.shape for given in calls] for calls in shares]
    if any(own != shapes[0] for own in shapes):
        return None
    return [
        _Given(calls[0].shape, sum((given.rows for given in calls), torch.zeros(())))
        for calls in zip(*shares, strict=True)
    ]


def _normal_equations(
    layer: _Layer, coded: nn.Module, combined: Sequence[Sequence[_Given] | None], batches: Sequence[Inputs]
) -> tuple[torch.Tensor, torch.Tensor, int] | None:
    """Return, in float64, X^T X, X^T (wanted outputs - own outputs) and the number of rows; X ends in a column of ones.

    The first two have the shapes (groups, features + 1, features + 1) and (groups, features + 1, outputs). None if in
    some batch the models do not call the layer alike.
    """
    grams, rows = GramSum(layer.width), 0
    points = sum(points_of(inputs) for inputs in batches)
    module, kind = coded.get_submodule(layer.name), layer.kind
    first = 0
    for inputs, wanted in zip(batches, combined, strict=True):
        own = calls_of(coded, layer.name, layer.calls, inputs)
        if wanted is None or [given.shape for given in wanted] != [output.shape for _, output in own]:
            return None
        for (seen, output), due in zip(own, wanted, strict=True):
            features = _thinned(kind.features(module, seen), layer.width, points, first)
            x = nn.functional.pad(features, (0, 1), value=1.0)
            residual = due.rows - _thinned(kind.outputs(module, output), layer.width, points, first)
            grams.add(torch.cat([x, residual], -1))
            rows += x.shape[1]
        first += points_of(inputs)
    total = grams.total()
    return total[..., : layer.width], total[..., layer.width :], rows


def _kept(positions: int, width: int, points: int) -> int:
    """Return how many positions of each point to keep for so many features."""
    return max(1, min(positions, -(-_ROWS_PER_FEATURE * width // points)))


def _thinned(rows: torch.Tensor, width: int, points: int, first: int) -> torch.Tensor:
    """Keep enough positions of each point for ``width`` features; flatten to (groups, rows, ...).

    Which ones depends on the point's index alone, so not on the batch size.

    Args:
        rows: shape (groups, points here, positions, ...).
        width: number of features.
        points: number of all points.
        first: index of the first one here.
    """
    groups, here, positions, own_width = rows.shape
    kept = _kept(positions, width, points)
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
