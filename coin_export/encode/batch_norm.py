"""BatchNorm's running statistics in a coded model: those averaged over the originals fit none of its own features."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from coin_export.encode.affine import calls_of, observing
from coin_export.encode.teachers import Inputs, batches_of, select
from coin_export.model.signature import Original
from coin_export.model.state import all_equal

BatchNormPolicy: TypeAlias = Literal["auto", "average", "estimate", "fold"]
_BATCH = 128


def estimate_statistics(module: nn.Module, originals: Sequence[Original], inputs: Inputs) -> list[str]:
    """Set the statistics of BatchNorm layers to those of their inputs, in place, from the first layer to the last.

    Layers whose statistics are equal in all originals, as in a shared backbone, and layers without any are left alone.

    Returns:
        The names of the layers set, in the order in which they are called.
    """
    wanted = {name for name, layer in module.named_modules() if _tracks(layer) and _differs(name, originals)}
    if not wanted:
        return []
    calls: Counter[str] = Counter()
    with torch.no_grad(), observing(module, wanted, lambda name, *_: calls.update([name])):
        module(*select(inputs, slice(0, 1)).values())
    layers = {name: count for name, count in calls.items() if name in wanted}
    for name, count in layers.items():
        _estimate(module, name, count, inputs)
    return list(layers)


def _estimate(module: nn.Module, name: str, calls: int, inputs: Inputs) -> None:
    layer = module.get_submodule(name)
    assert isinstance(layer, _BatchNorm) and layer.running_mean is not None and layer.running_var is not None
    total = torch.zeros(layer.num_features, dtype=torch.float64)
    squares, values = torch.zeros_like(total), 0
    for batch in batches_of(inputs, _BATCH):
        for seen, _ in calls_of(module, name, calls, batch):
            channels = seen.double().transpose(0, 1).flatten(1)
            total += channels.sum(1)
            squares += channels.square().sum(1)
            values += channels.shape[1]
    mean = total / values
    layer.running_mean.copy_(mean)
    layer.running_var.copy_((squares / values - mean.square()).clamp_min(0))


def _tracks(layer: nn.Module) -> bool:
    return isinstance(layer, _BatchNorm) and layer.running_mean is not None


def _differs(name: str, originals: Sequence[Original]) -> bool:
    layers = [original.module.get_submodule(name) for original in originals]
    return any(not all_equal(getattr(layer, buffer) for layer in layers) for buffer in ("running_mean", "running_var"))
