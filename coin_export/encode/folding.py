"""BatchNorm folded into the layer before it, within the same architecture.

A convolution and the BatchNorm after it compute gamma (W x + b - mean) / sqrt(var + eps) + beta. What counts is the
product of gamma / sqrt(var + eps) and W; originals may split it differently between the two, and then neither average
is that of the product. Folded, the convolution holds the product, and BatchNorm does nothing but add a bias. What was
made of folded originals is unfolded again, so that its weights are of the size that the originals' are: a descent that
goes on from there, with rates that suit such weights, is much worse otherwise.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import nn

from coin_export.encode.affine import observing
from coin_export.encode.teachers import Inputs, select, working_copy
from coin_export.model.signature import Original, call
from coin_export.model.state import all_equal, first_names

# By exact type: a subclass may compute something else.
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_FEW = 16  # points on which the folded originals must answer as before
_TOLERANCE = 1e-3  # of the largest output

_Pair: TypeAlias = tuple[str, str]
"""Names of a layer and of the BatchNorm that its output goes to."""


@dataclass(frozen=True, eq=False)
class Folded:
    """Originals whose BatchNorm is folded, and how it was before.

    Attributes:
        originals: answer as those that they were made of.
    """

    originals: Sequence[Original]
    _pairs: Sequence[_Pair]
    _before: Sequence[Original]

    def unfold(self, module: nn.Module) -> None:
        """Give a combination of the folded originals their mean statistics and scale, in place; it answers as before.

        The scale is the root of the mean square, lest scales of opposite signs cancel.
        """
        for pair in self._pairs:
            layer, norm = (module.get_submodule(name) for name in pair)
            _unfold(layer, norm, [[one.module.get_submodule(name) for name in pair] for one in self._before])


def fold(originals: Sequence[Original], inputs: Inputs) -> Folded | None:
    """Fold BatchNorm in copies of the originals, in float32 if theirs is half precision.

    Only linear layers on vectors and convolutions are folded, and only if the BatchNorm is all that uses their output.
    Layers that are called more than once, whose weight is tied, or that share a tensor of theirs or of their
    BatchNorm's with all other originals, as in a shared backbone, stay as they are.

    Returns:
        The folded originals; None if nothing can be folded.
    """
    if not any(_has_statistics(layer) for layer in originals[0].module.modules()):
        return None
    modules = [working_copy(original, original.module.state_dict()) for original in originals]
    names = [spec.name for spec in originals[0].signature.outputs]
    few = select(inputs, slice(0, _FEW))

    def answers() -> list[torch.Tensor]:
        with torch.no_grad():
            return [answer for module in modules for answer in call(module, few, names).values()]

    expected = answers()
    folded = [
        pair
        for pair in _pairs(modules[0], inputs)
        if not _share_a_tensor(modules, pair) and _folds(modules, pair, lambda: _equal(expected, answers()))
    ]
    if not folded:
        return None
    copies = [Original(one.name, module, one.signature) for one, module in zip(originals, modules, strict=True)]
    return Folded(copies, folded, originals)


def _folds(modules: Sequence[nn.Module], pair: _Pair, same: Callable[[], bool]) -> bool:
    """Fold a pair in all modules; or, if they do not answer the same then, in none."""
    parts = [module.get_submodule(name) for module in modules for name in pair]
    before = [copy.deepcopy(part.state_dict()) for part in parts]
    for layer, norm in zip(parts[::2], parts[1::2], strict=True):
        _fold(layer, norm)
    if same():
        return True
    for part, state in zip(parts, before, strict=True):
        part.load_state_dict(state)
    return False


def _has_statistics(layer: nn.Module) -> bool:
    return type(layer) in _NORMS and layer.running_mean is not None


def _pairs(module: nn.Module, inputs: Inputs) -> list[_Pair]:
    """Find what may be folded; whether something else uses the layer's output, too, shows in the answers."""
    layers = {name: layer for name, layer in module.named_modules() if type(layer) in _LAYERS}
    norms = {name for name, layer in module.named_modules() if _has_statistics(layer)}
    if not norms:
        return []
    outputs: dict[int, tuple[str, torch.Tensor]] = {}  # with the tensor, so that no other takes its identity
    calls: Counter[str] = Counter()
    found: list[_Pair] = []

    def observe(name: str, given: torch.Tensor, output: torch.Tensor) -> None:
        calls[name] += 1
        if name in layers:
            outputs[id(output)] = name, output
        elif name in norms and id(given) in outputs:
            layer = outputs[id(given)][0]
            if type(layers[layer]) is not nn.Linear or given.ndim == 2:
                found.append((layer, name))

    with torch.no_grad(), observing(module, norms.union(layers), observe):
        module(*select(inputs, slice(0, 1)).values())
    uses = Counter(first_names(module).values())
    return [(layer, norm) for layer, norm in found if calls[layer] == calls[norm] == 1 and uses[f"{layer}.weight"] == 1]


def _share_a_tensor(modules: Sequence[nn.Module], pair: _Pair) -> bool:
    tensors = [_tensors(module, pair) for module in modules]
    return any(all_equal(own[name] for own in tensors) for name in tensors[0])


def _tensors(module: nn.Module, pair: _Pair) -> dict[tuple[str, str], torch.Tensor]:
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
        scale = _scale(norm)
        if norm.weight is not None:
            norm.weight.fill_(1.0)
        shift = -norm.running_mean.double() * scale
        if layer.bias is not None:
            shift += layer.bias.double() * scale
            layer.bias.zero_()
        layer.weight.copy_(layer.weight.double() * scale.reshape(-1, *[1] * (layer.weight.ndim - 1)))
        norm.running_mean.zero_()
        norm.running_var.fill_(1.0 - norm.eps)
        if norm.bias is not None:
            norm.bias.add_(shift)
        else:
            norm.running_mean.sub_(shift)


def _unfold(layer: nn.Module, norm: nn.Module, before: Sequence[Sequence[nn.Module]]) -> None:
    assert isinstance(layer, _LAYERS) and isinstance(norm, _NORMS)
    assert norm.running_mean is not None and norm.running_var is not None
    with torch.no_grad():
        scale = torch.stack([_scale(one) for _, one in before]).square().mean(0).sqrt()
        scale = torch.where(scale > 0, scale, 1.0)  # of a channel that is zero in all
        shift = -norm.running_mean.double() if norm.bias is None else norm.bias.double() - norm.running_mean.double()
        layer.weight.copy_(layer.weight.double() / scale.reshape(-1, *[1] * (layer.weight.ndim - 1)))
        if layer.bias is not None:
            shift += layer.bias.double()
            layer.bias.copy_(_mean_of("bias", [one for one, _ in before]))
        if norm.weight is None:
            norm.running_var.copy_(scale.square().reciprocal() - norm.eps)
        else:
            norm.running_var.copy_(_mean_of("running_var", [one for _, one in before]))
            norm.weight.copy_(scale * (norm.running_var.double() + norm.eps).sqrt())
        offset = 0.0 if layer.bias is None else layer.bias.double()
        if norm.bias is None:
            norm.running_mean.copy_(offset - shift / scale)
        else:
            norm.running_mean.copy_(_mean_of("running_mean", [one for _, one in before]))
            norm.bias.copy_(shift - scale * (offset - norm.running_mean.double()))


def _scale(norm: nn.Module) -> torch.Tensor:
    """Return by what BatchNorm multiplies each channel."""
    assert isinstance(norm, _NORMS) and norm.running_var is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    return scale if norm.weight is None else scale * norm.weight.double()


def _mean_of(name: str, layers: Sequence[nn.Module]) -> torch.Tensor:
    return torch.stack([getattr(layer, name).double() for layer in layers]).mean(0)


def _equal(before: Sequence[torch.Tensor], after: Sequence[torch.Tensor]) -> bool:
    return all(
        bool((one - other).abs().max() <= _TOLERANCE * one.abs().max())
        for one, other in zip(before, after, strict=True)
    )
