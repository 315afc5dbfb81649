"""Convolutions of one, two and three dimensions, transposed ones too: strides, dilation, groups, every padding.

Two ways to the gradient of each point. *Unfolding* copies the windows of the input into columns and multiplies
matrices. *Grouping* lays points beside each other as groups of channels of a single point, so that the weight gradient
of one grouped convolution holds those of all. Grouping copies nothing and is the faster one while the gradients of
several points stay in the cache; with large weights its memory traffic dominates.

A transposed convolution is the backward pass of a convolution, so the gradient of its weight is that of this
convolution with inputs and output gradients exchanged.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from coin_export.fisher.layers.products import summed_squares

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
Transposed = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d

# Weight elements up to which grouping is faster, and how many are held at once, for all points of a chunk together.
_GROUPED_ELEMENTS = 50_000
_GROUPED_CHUNK = 600_000
# Below so many input channels to a group the grouped kernels are slow and the columns small.
_GROUPED_CHANNELS = 4


@dataclass(frozen=True)
class _Geometry:
    """What a convolution does, apart from its weight.

    Attributes:
        weight_shape: (output channels, input channels of a group, *kernel).
        padding: zeros still to be added to the inputs, on both sides of each dimension.
    """

    weight_shape: tuple[int, ...]
    groups: int
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[int, ...]

    @property
    def kernel(self) -> tuple[int, ...]:
        return self.weight_shape[2:]


def convolution_applies(module: nn.Module, inputs: torch.Tensor) -> bool:
    """Inputs are (points, channels, ...), not a single unbatched one."""
    assert isinstance(module, Convolution | Transposed)
    return inputs.ndim == 2 + len(module.kernel_size)


def convolution(module: nn.Module, inputs: torch.Tensor, gradients: torch.Tensor) -> dict[str, torch.Tensor]:
    """Square the gradients of a convolution."""
    assert isinstance(module, Convolution)
    inputs, padding = _padded(module, inputs)
    shape = tuple(module.weight.shape)
    geometry = _Geometry(shape, module.groups, module.stride, module.dilation, padding)
    return {"weight": _weight_squares(geometry, inputs, gradients), **_bias_squares(module, gradients)}


def transposed(module: nn.Module, inputs: torch.Tensor, gradients: torch.Tensor) -> dict[str, torch.Tensor]:
    """Square the gradients of a transposed convolution; output padding adds outputs that no weight reaches."""
    assert isinstance(module, Transposed)
    padding = tuple(int(amount) for amount in module.padding)
    geometry = _Geometry(tuple(module.weight.shape), module.groups, module.stride, module.dilation, padding)
    return {"weight": _weight_squares(geometry, gradients, inputs), **_bias_squares(module, gradients)}


def _bias_squares(module: Convolution | Transposed, gradients: torch.Tensor) -> dict[str, torch.Tensor]:
    return {} if module.bias is None else {"bias": gradients.flatten(2).sum(2).square_().sum(0)}


def _weight_squares(geometry: _Geometry, inputs: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
    channels, elements = geometry.weight_shape[1], _product(geometry.weight_shape)
    depthwise = channels == 1 and geometry.groups > 1
    if elements <= _GROUPED_ELEMENTS and (depthwise or channels >= _GROUPED_CHANNELS):
        return _by_grouping(geometry, inputs, gradients, max(1, _GROUPED_CHUNK // elements))
    return _by_unfolding(geometry, inputs, gradients)


def _by_grouping(geometry: _Geometry, inputs: torch.Tensor, gradients: torch.Tensor, size: int) -> torch.Tensor:
    shape = geometry.weight_shape
    total = gradients.new_zeros(shape)
    for some, gradient in zip(torch.split(inputs, size), torch.split(gradients, size), strict=True):
        points = len(some)
        found = torch.ops.aten.convolution_backward(
            gradient.reshape(1, -1, *gradient.shape[2:]),
            some.reshape(1, -1, *some.shape[2:]),
            gradients.new_empty(points * shape[0], *shape[1:]),  # only its shape matters to the weight's gradient
            None,
            geometry.stride,
            geometry.padding,
            geometry.dilation,
            False,
            [0] * len(geometry.padding),
            points * geometry.groups,
            [False, True, False],
        )[1]
        total += found.reshape(points, *shape).square_().sum(0)
    return total


def _by_unfolding(geometry: _Geometry, inputs: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
    inputs = F.pad(inputs, [side for amount in reversed(geometry.padding) for side in (amount, amount)])
    windows = _windows(geometry, inputs, gradients.shape[2:])
    points, groups = len(inputs), geometry.groups
    wide, tall = geometry.weight_shape[1], geometry.weight_shape[0] // groups
    squares = []
    for group in range(groups):
        columns = windows[:, group * wide : (group + 1) * wide].reshape(points, -1, _product(gradients.shape[2:]))
        rows = gradients[:, group * tall : (group + 1) * tall].flatten(2)
        squares.append(summed_squares(rows.transpose(1, 2), columns.transpose(1, 2)))
    return torch.cat(squares).reshape(geometry.weight_shape)


def _windows(geometry: _Geometry, padded: torch.Tensor, positions: torch.Size) -> torch.Tensor:
    """View the windows of the input, shape (points, channels, *kernel, *positions)."""
    padded = padded.contiguous()
    strides = padded.stride()
    inside = [step * dilation for step, dilation in zip(strides[2:], geometry.dilation, strict=True)]
    between = [step * stride for step, stride in zip(strides[2:], geometry.stride, strict=True)]
    shape = (*padded.shape[:2], *geometry.kernel, *positions)
    return padded.as_strided(shape, (*strides[:2], *inside, *between))


def _padded(module: Convolution, inputs: torch.Tensor) -> tuple[torch.Tensor, tuple[int, ...]]:
    """Return inputs and the zeros that are still to be added on both sides of each dimension."""
    if isinstance(module.padding, str):
        spans = [step * (size - 1) for step, size in zip(module.dilation, module.kernel_size, strict=True)]
        wanted = spans if module.padding == "same" else [0] * len(spans)
        sides = [(total // 2, total - total // 2) for total in wanted]
    else:
        sides = [(amount, amount) for amount in module.padding]
    if module.padding_mode == "zeros" and all(before == after for before, after in sides):
        return inputs, tuple(before for before, _ in sides)
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    amounts = [amount for pair in reversed(sides) for amount in pair]
    return F.pad(inputs, amounts, mode=mode), (0,) * len(sides)


def _product(numbers: tuple[int, ...]) -> int:
    return torch.Size(numbers).numel()
