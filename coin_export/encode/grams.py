"""What linear layers and convolutions see: Gram matrices of their inputs, sum over points of x x^T.

A convolution is a linear layer on patches (im2col), of which it sees one for each output position.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional

Layer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
_KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def regressable(module: nn.Module) -> dict[str, Layer]:
    """Return the linear layers and convolutions by name, but for weights that are also others' or computed."""
    owners: dict[int, int] = {}
    for _, parameter in module.named_parameters(remove_duplicate=False):
        owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    return {
        name: part
        for name, part in module.named_modules()
        if isinstance(part, _KINDS) and owners.get(id(part.weight)) == 1
    }


class GramSum:
    """Sum over rows (x, y) of x^T (x, y), in float64, for rows that come in parts.

    Parts are kept until they have as many rows as the sum has: adding up large matrices takes longer than multiplying.

    Args:
        width: of x.
    """

    def __init__(self, width: int) -> None:
        self._width = width
        self._parts: list[torch.Tensor] = []
        self._sum = torch.zeros((), dtype=torch.float64)

    def add(self, rows: torch.Tensor) -> None:
        """Add rows, shape (groups, rows, width of x and y together)."""
        self._parts.append(rows)
        if sum(part.shape[1] for part in self._parts) >= self._width:
            self._sum = self.total()
            self._parts = []
        else:
            self._parts[-1] = rows.clone()  # what follows may write into them

    def total(self) -> torch.Tensor:
        """Return the sum, shape (groups, width, width of x and y together)."""
        if not self._parts:
            return self._sum
        rows = torch.cat(self._parts, 1)
        return self._sum + (rows[..., : self._width].transpose(1, 2) @ rows).double()


@contextmanager
def observed_grams(layers: Mapping[str, Layer], dtype: torch.dtype) -> Iterator[dict[str, GramSum]]:
    """Collect Gram matrices of the named layers while the block runs their model.

    Args:
        layers: by name.
        dtype: in which a batch is multiplied.

    Yields:
        By layer name, sums of shape (groups, fan_in, fan_in) over all calls. Layers whose forward is not called are
        absent.
    """
    grams: dict[str, GramSum] = {}

    def observer(name: str, layer: Layer) -> Any:
        def observe(_: nn.Module, args: tuple[torch.Tensor, ...], kwargs: dict[str, torch.Tensor]) -> None:
            found = patches(layer, (args[0] if args else kwargs["input"]).detach().to(dtype))
            grams.setdefault(name, GramSum(found.shape[-1])).add(found)

        return observe

    handles = [
        layer.register_forward_pre_hook(observer(name, layer), with_kwargs=True) for name, layer in layers.items()
    ]
    try:
        yield grams
    finally:
        for handle in handles:
            handle.remove()


def patches(layer: Layer, inputs: torch.Tensor) -> torch.Tensor:
    """Lay out what each output of ``layer`` is computed from, shape (groups, positions, fan_in)."""
    if isinstance(layer, nn.Linear):
        return inputs.reshape(1, -1, layer.in_features)
    spatial = len(layer.kernel_size)
    found = _padded(layer, batched(layer, inputs))
    for axis in range(spatial):
        # Dimension 2 + axis becomes the output positions; the offsets in the kernel go to the end.
        size, stride, dilation = layer.kernel_size[axis], layer.stride[axis], layer.dilation[axis]
        count = (found.shape[2 + axis] - dilation * (size - 1) - 1) // stride + 1
        index = torch.arange(count)[:, None] * stride + torch.arange(size) * dilation
        before, after = found.shape[: 2 + axis], found.shape[3 + axis :]
        columns = found.index_select(2 + axis, index.flatten()).reshape(*before, count, size, *after)
        found = columns.movedim(3 + axis, -1)
    points, channels = found.shape[:2]
    positions, offsets = found.shape[2 : 2 + spatial].numel(), found.shape[2 + spatial :].numel()
    grouped = found.reshape(points, layer.groups, channels // layer.groups, positions, offsets)
    return grouped.permute(1, 0, 3, 2, 4).reshape(layer.groups, points * positions, -1)


def batched(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, maps: torch.Tensor) -> torch.Tensor:
    """Give the feature maps of a single point, as a layer may be called with, the dimension of points."""
    return maps if maps.ndim == len(layer.kernel_size) + 2 else maps.unsqueeze(0)


def _padded(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, inputs: torch.Tensor) -> torch.Tensor:
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    amounts = [amount for pair in reversed(_padding(layer)) for amount in pair]
    return functional.pad(inputs, amounts, mode=mode)


def _padding(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> Sequence[tuple[int, int]]:
    """Return what is added before and after, by dimension."""
    if layer.padding == "valid":
        return [(0, 0) for _ in layer.kernel_size]
    if layer.padding == "same":
        totals = [dilation * (size - 1) for size, dilation in zip(layer.kernel_size, layer.dilation, strict=True)]
        return [(total // 2, total - total // 2) for total in totals]
    return [(int(amount), int(amount)) for amount in layer.padding]
