"""Layers as affine maps of features: output = features @ weight + bias, for rows of features and of outputs.

Linear layers see their inputs, convolutions patches of theirs, and normalisation layers with a learnt scale and shift
see the normalised inputs, one channel at a time. Rows have the shape (groups, points, positions, width).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from coin_export.encode.grams import batched, patches
from coin_export.fisher.layers.attention import self_attention, self_attention_applies

Observer = Callable[[str, torch.Tensor, torch.Tensor], None]
"""Told a layer's name, its input and its output."""


@dataclass(frozen=True)
class AffineKind:
    """How to see a kind of layer as an affine map.

    Attributes:
        features: from layer and input, rows of features.
        outputs: from layer and output, rows of outputs.
        weight: the layer's name of the weight; it has the shape (groups * outputs, ...).
        bias: the layer's name of the bias, which it may lack.
    """

    features: Callable[[Any, torch.Tensor], torch.Tensor]
    outputs: Callable[[Any, torch.Tensor], torch.Tensor]
    weight: str = "weight"
    bias: str = "bias"


def kind_of(layer: nn.Module) -> AffineKind | None:
    """Return how to see a layer as an affine map of features; None where that is not known, as for a subclass.

    BatchNorm without running statistics is none, as it is another map for every batch.
    """
    kind = KINDS.get(type(layer))
    if kind is None or getattr(layer, kind.weight) is None or (kind is _BATCH_NORM and layer.running_mean is None):
        return None
    return kind


@contextmanager
def observing(module: nn.Module, names: set[str], observer: Observer) -> Iterator[None]:
    """Tell ``observer`` each call of the named layers while the block runs the module.

    The fused projection of `nn.MultiheadAttention` is a layer of its own, under the attention's name.
    """
    handles = []
    replaced = []
    fused = torch.backends.mha.get_fastpath_enabled()

    def called(name: str, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: torch.Tensor) -> None:
        observer(name, next(iter([*args, *kwargs.values()])), output)

    def attend(name: str, layer: nn.MultiheadAttention, *args: Any, **kwargs: Any) -> Any:
        if not self_attention_applies(layer, *args, **kwargs):
            return nn.MultiheadAttention.forward(layer, *args, **kwargs)
        return self_attention(layer, partial(observer, name), *args, **kwargs)

    try:
        torch.backends.mha.set_fastpath_enabled(False)  # it calls no layer inside a transformer's
        for name, layer in module.named_modules():
            if type(layer) is nn.MultiheadAttention:
                replaced.append(layer)
                layer.forward = partial(attend, name, layer)  # type: ignore[method-assign]  # for one pass
            elif name in names:
                handles.append(layer.register_forward_hook(partial(called, name), with_kwargs=True))
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for handle in handles:
            handle.remove()
        for layer in replaced:
            del layer.forward


class _Reached(Exception):  # noqa: N818  # no error
    """The layers asked for have been called for the last time."""


def observe_calls(
    module: nn.Module, calls: Mapping[str, int], inputs: Mapping[str, torch.Tensor], observer: Observer
) -> None:
    """Tell ``observer`` so many calls of each of the named layers; the forward pass ends at the last of them.

    What follows may write into the tensors that it is told of.
    """
    left = dict(calls)

    def observe(name: str, given: torch.Tensor, output: torch.Tensor) -> None:
        if left.get(name):
            left[name] -= 1
            observer(name, given, output)
            if not any(left.values()):
                raise _Reached

    with torch.no_grad(), observing(module, set(calls), observe), suppress(_Reached):
        module(*inputs.values())


def calls_of(
    module: nn.Module, name: str, calls: int, inputs: Mapping[str, torch.Tensor]
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Run the module up to the last call of a layer; return the inputs and outputs of its calls."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    observe_calls(module, {name: calls}, inputs, lambda _, given, output: seen.append((given.clone(), output.clone())))
    return seen


def _last(layer: nn.Module, tensor: torch.Tensor) -> torch.Tensor:
    """Lay out a tensor whose last dimension is the layer's width; without others it is one for all points."""
    return tensor.reshape(1, tensor.shape[0] if tensor.ndim > 1 else 1, -1, tensor.shape[-1])


def _patches(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, inputs: torch.Tensor) -> torch.Tensor:
    found = patches(layer, inputs)
    return found.reshape(layer.groups, len(batched(layer, inputs)), -1, found.shape[-1])


def _maps(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, output: torch.Tensor) -> torch.Tensor:
    """Lay out feature maps of shape (points, channels, ...)."""
    maps = batched(layer, output)
    grouped = maps.reshape(len(maps), layer.groups, maps.shape[1] // layer.groups, -1)
    return grouped.permute(1, 0, 3, 2)


def _channels(_: nn.Module, tensor: torch.Tensor) -> torch.Tensor:
    """Lay out each channel of a tensor of shape (points, channels, ...) on its own."""
    return tensor.reshape(*tensor.shape[:2], -1, 1).transpose(0, 1)


def _elements(layer: nn.LayerNorm | nn.RMSNorm, tensor: torch.Tensor) -> torch.Tensor:
    """Lay out each of the normalised elements on its own; they are the last dimensions."""
    width = layer.weight.numel()
    points = tensor.shape[0] if tensor.ndim > len(layer.normalized_shape) else 1
    return tensor.reshape(points, -1, width, 1).permute(2, 0, 1, 3)


def _batch_normalised(layer: _BatchNorm, inputs: torch.Tensor) -> torch.Tensor:
    return _channels(layer, functional.batch_norm(inputs, layer.running_mean, layer.running_var, eps=layer.eps))


def _group_normalised(layer: nn.GroupNorm, inputs: torch.Tensor) -> torch.Tensor:
    return _channels(layer, functional.group_norm(inputs, layer.num_groups, eps=layer.eps))


def _layer_normalised(layer: nn.LayerNorm, inputs: torch.Tensor) -> torch.Tensor:
    return _elements(layer, functional.layer_norm(inputs, list(layer.normalized_shape), eps=layer.eps))


def _rms_normalised(layer: nn.RMSNorm, inputs: torch.Tensor) -> torch.Tensor:
    return _elements(layer, functional.rms_norm(inputs, list(layer.normalized_shape), eps=layer.eps))


_LINEAR = AffineKind(_last, _last)
_CONVOLUTION = AffineKind(_patches, _maps)
_BATCH_NORM = AffineKind(_batch_normalised, _channels)

# By exact type: a subclass may compute something else.
KINDS: dict[type[nn.Module], AffineKind] = {
    nn.Linear: _LINEAR,
    NonDynamicallyQuantizableLinear: _LINEAR,  # the output projection of MultiheadAttention
    nn.Conv1d: _CONVOLUTION,
    nn.Conv2d: _CONVOLUTION,
    nn.Conv3d: _CONVOLUTION,
    nn.BatchNorm1d: _BATCH_NORM,
    nn.BatchNorm2d: _BATCH_NORM,
    nn.BatchNorm3d: _BATCH_NORM,
    nn.GroupNorm: AffineKind(_group_normalised, _channels),
    nn.LayerNorm: AffineKind(_layer_normalised, _elements),
    nn.RMSNorm: AffineKind(_rms_normalised, _elements),
    nn.MultiheadAttention: AffineKind(_last, _last, "in_proj_weight", "in_proj_bias"),
}
