"""BatchNorm folded into the layer before it, within the same architecture.

A convolution and the BatchNorm after it compute gamma (W x + b - mean) / sqrt(var + eps) + beta. What counts is the
product of gamma / sqrt(var + eps) and W; originals may split it differently between the two, and then neither average
is that of the product. Folded, the convolution holds the product, and BatchNorm does nothing but add a bias.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import nn

from coin_export.encode.affine import observing
from coin_export.encode.teachers import Inputs, select, working_copy
from coin_export.model.signature import Original, call
from coin_export.model.state import first_names

# By exact type: a subclass may compute something else.
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_FEW = 16  # points on which the folded originals must answer as before
_TOLERANCE = 1e-3  # of the largest output


def fold(originals: Sequence[Original], inputs: Inputs) -> list[Original]:
    """Fold BatchNorm in copies of the originals, in float32 if theirs is half precision.

    Left as they are: layers that are called more than once or whose weight is tied, and those that share a tensor
    with all other originals, as in a shared backbone.

    Returns:
        Originals that answer as these do; empty if nothing can be folded, or something else than BatchNorm uses what
        is folded, so that they would not.
    """
    if not any(_tracks(layer) for layer in originals[0].module.modules()):
        return []
    modules = [working_copy(original, original.module.state_dict()) for original in originals]
    pairs = [pair for pair in _pairs(modules[0], inputs) if not _share_a_tensor(modules, pair)]
    if not pairs:
        return []
    folded = []
    few = select(inputs, slice(0, _FEW))
    for original, module in zip(originals, modules, strict=True):
        before = _answers(original, module, few)
        for layer, norm in pairs:
            _fold(module.get_submodule(layer), module.get_submodule(norm))
        if not _equal(before, _answers(original, module, few)):
            return []
        folded.append(Original(original.name, module, original.signature))
    return folded


def _pairs(module: nn.Module, inputs: Inputs) -> list[tuple[str, str]]:
    """Find the layers whose output goes to a BatchNorm; each by its name, together with that of the BatchNorm."""
    layers = {name: layer for name, layer in module.named_modules() if type(layer) in _LAYERS}
    norms = {name for name, layer in module.named_modules() if _tracks(layer)}
    outputs: dict[int, tuple[str, torch.Tensor]] = {}  # with the tensor, so that no other takes its identity
    calls: Counter[str] = Counter()
    found: list[tuple[str, str]] = []

    def observe(name: str, given: torch.Tensor, output: torch.Tensor) -> None:
        calls[name] += 1
        if name in layers:
            outputs[id(output)] = name, output
        elif id(given) in outputs and (type(layers[outputs[id(given)][0]]) is not nn.Linear or given.ndim == 2):
            found.append((outputs[id(given)][0], name))

    with torch.no_grad(), observing(module, norms.union(layers), observe):
        module(*select(inputs, slice(0, 1)).values())
    tied = Counter(first_names(module).values())
    return [
        (layer, norm)
        for layer, norm in found
        if calls[layer] == calls[norm] == 1 and tied[f"{layer}.weight".lstrip(".")] == 1
    ]


def _tracks(layer: nn.Module) -> bool:
    return type(layer) in _NORMS and layer.running_mean is not None


def _share_a_tensor(modules: Sequence[nn.Module], pair: tuple[str, str]) -> bool:
    first, *others = [_tensors(module, pair) for module in modules]
    return any(all(torch.equal(tensor, other[name]) for other in others) for name, tensor in first.items())


def _tensors(module: nn.Module, pair: tuple[str, str]) -> dict[tuple[str, str], torch.Tensor]:
    return {
        (name, key): tensor
        for name in pair
        for key, tensor in module.get_submodule(name).state_dict().items()
        if tensor.is_floating_point()
    }


def _fold(layer: nn.Module, norm: nn.Module) -> None:
    assert isinstance(layer, _LAYERS) and isinstance(norm, _NORMS)
    assert norm.running_mean is not None and norm.running_var is not None
    with torch.no_grad():
        scale = (norm.running_var.double() + norm.eps).rsqrt()
        if norm.affine:
            scale *= norm.weight.double()
        shift = -norm.running_mean.double() * scale
        if layer.bias is not None:
            shift += layer.bias.double() * scale
            layer.bias.zero_()
        layer.weight.copy_(layer.weight.double() * scale.reshape(-1, *[1] * (layer.weight.ndim - 1)))
        norm.running_mean.zero_()
        norm.running_var.fill_(1.0 - norm.eps)
        if norm.affine:
            norm.weight.fill_(1.0)
            norm.bias.add_(shift)
        else:
            norm.running_mean.sub_(shift)


def _answers(original: Original, module: nn.Module, inputs: Inputs) -> list[torch.Tensor]:
    with torch.no_grad():
        return list(call(module, inputs, [spec.name for spec in original.signature.outputs]).values())


def _equal(before: Sequence[torch.Tensor], after: Sequence[torch.Tensor]) -> bool:
    return all(
        bool((one - other).abs().max() <= _TOLERANCE * one.abs().max())
        for one, other in zip(before, after, strict=True)
    )
