"""Convolutions of one, two and three dimensions: strides, dilation, groups, every padding.

Two ways to the gradient of each point. *Unfolding* copies the windows of the input into columns and multiplies
matrices. *Grouping* lays points beside each other as groups of channels of a single point, so that the weight gradient
of one grouped convolution holds those of all. Grouping copies nothing and is the faster one while the gradients of
several points stay in the cache; with large weights its memory traffic dominates.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from coin_export.fisher.layers.products import summed_squares

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d

# Weight elements up to which grouping is faster, and how many are held at once, for all points of a chunk together.
_GROUPED_ELEMENTS = 50_000
_GROUPED_CHUNK = 600_000
# Below so many input channels to a group the grouped kernels are slow and the columns small.
_GROUPED_CHANNELS = 4


def convolution_applies(module: nn.Module, inputs: torch.Tensor) -> bool:
    """Inputs are (points, channels, ...), not a single unbatched one."""
    assert isinstance(module, Convolution)
    return inputs.ndim == 2 + len(module.kernel_size)


def convolution(module: nn.Module, inputs: torch.Tensor, gradients: torch.Tensor) -> dict[str, torch.Tensor]:
    """Square the gradients of a convolution."""
    assert isinstance(module, Convolution)
    squares = {} if module.bias is None else {"bias": gradients.flatten(2).sum(2).square_().sum(0)}
    channels = module.in_channels // module.groups
    elements = module.out_channels * channels * _product(module.kernel_size)
    depthwise = channels == 1 and module.groups > 1
    if elements <= _GROUPED_ELEMENTS and (depthwise or channels >= _GROUPED_CHANNELS):
        squares["weight"] = _by_grouping(module, inputs, gradients, max(1, _GROUPED_CHUNK // elements))
    else:
        squares["weight"] = _by_unfolding(module, inputs, gradients)
    return squares


def _by_grouping(module: Convolution, inputs: torch.Tensor, gradients: torch.Tensor, size: int) -> torch.Tensor:
    inputs, padding = _padded(module, inputs)
    shape = module.out_channels, module.in_channels // module.groups, *module.kernel_size
    total = gradients.new_zeros(shape)
    for some, gradient in zip(torch.split(inputs, size), torch.split(gradients, size), strict=True):
        points = len(some)
        found = torch.ops.aten.convolution_backward(
            gradient.reshape(1, -1, *gradient.shape[2:]),
            some.reshape(1, -1, *some.shape[2:]),
            gradients.new_empty(points * shape[0], *shape[1:]),  # only its shape matters to the weight's gradient
            None,
            module.stride,
            padding,
            module.dilation,
            False,
            [0] * len(padding),
            points * module.groups,
            [False, True, False],
        )[1]
        total += found.reshape(points, *shape).square_().sum(0)
    return total


def _by_unfolding(module: Convolution, inputs: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
    inputs, padding = _padded(module, inputs)
    inputs = F.pad(inputs, [side for amount in reversed(padding) for side in (amount, amount)])
    windows = _windows(module, inputs, gradients.shape[2:])
    points, groups = len(inputs), module.groups
    squares = []
    for group in range(groups):
        wide, tall = module.in_channels // groups, module.out_channels // groups
        columns = windows[:, group * wide : (group + 1) * wide].reshape(points, -1, _product(gradients.shape[2:]))
        rows = gradients[:, group * tall : (group + 1) * tall].flatten(2)
        squares.append(summed_squares(rows.transpose(1, 2), columns.transpose(1, 2)))
    return torch.cat(squares).reshape(module.out_channels, -1, *module.kernel_size)


def _windows(module: Convolution, padded: torch.Tensor, positions: torch.Size) -> torch.Tensor:
    """View the windows of the input, shape (points, channels, *kernel, *positions)."""
    padded = padded.contiguous()
    strides = padded.stride()
    inside = [step * dilation for step, dilation in zip(strides[2:], module.dilation, strict=True)]
    between = [step * stride for step, stride in zip(strides[2:], module.stride, strict=True)]
    shape = (*padded.shape[:2], *module.kernel_size, *positions)
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
