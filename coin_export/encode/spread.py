"""How far apart the originals lie: the natural unit of steps between and around them.

What suits a network that was trained from fresh weights would destroy one that was fine-tuned a little, whose originals
differ by a hundredth of that. In units of their spread one learning rate fits both.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


def spreads(models: Sequence[nn.Module]) -> dict[str, float]:
    """Return for each parameter the standard deviation between the models, over its elements.

    It is the root of the mean variance of those elements that are not equal in all models: the rows of an embedding
    that no training has touched say nothing. Zero where all are equal.
    """
    own = [dict(model.named_parameters()) for model in models]
    return {name: _spread([parameters[name] for parameters in own]) for name in own[0]}


def _spread(tensors: Sequence[torch.Tensor]) -> float:
    if len(tensors) < 2 or not tensors[0].is_floating_point():
        return 0.0
    variance = torch.stack([tensor.detach().float() for tensor in tensors]).var(0)
    differing = torch.count_nonzero(variance)
    return float((variance.sum() / differing).sqrt()) if differing else 0.0
