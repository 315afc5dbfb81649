"""Which kinds of layer have a fast rule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from coin_export.fisher.layers import convolution, linear, normalization

Squares = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Rule:
    """How a layer's squared gradients are found.

    Attributes:
        applies: whether the rule holds for this module and input; the input's first dimension is the points.
        squares: from module, input and the gradient of the output, the sum over points of squared gradients, by the
            name of the module's own parameter. Names that the module does not have may be there.
    """

    applies: Callable[[nn.Module, torch.Tensor], bool]
    squares: Callable[[nn.Module, torch.Tensor, torch.Tensor], Squares]


_LINEAR = Rule(linear.linear_applies, linear.linear)
_CONVOLUTION = Rule(convolution.convolution_applies, convolution.convolution)
_TRANSPOSED = Rule(convolution.convolution_applies, convolution.transposed)
_LAYER_NORM = Rule(normalization.layer_norm_applies, normalization.layer_norm)
_BATCH_NORM = Rule(normalization.batch_norm_applies, normalization.batch_norm)

# By exact type: a subclass may compute something else.
RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: _LINEAR,
    NonDynamicallyQuantizableLinear: _LINEAR,  # the output projection of MultiheadAttention
    nn.Conv1d: _CONVOLUTION,
    nn.Conv2d: _CONVOLUTION,
    nn.Conv3d: _CONVOLUTION,
    nn.ConvTranspose1d: _TRANSPOSED,
    nn.ConvTranspose2d: _TRANSPOSED,
    nn.ConvTranspose3d: _TRANSPOSED,
    nn.LayerNorm: _LAYER_NORM,
    nn.RMSNorm: _LAYER_NORM,
    nn.GroupNorm: Rule(normalization.group_norm_applies, normalization.group_norm),
    nn.BatchNorm1d: _BATCH_NORM,
    nn.BatchNorm2d: _BATCH_NORM,
    nn.BatchNorm3d: _BATCH_NORM,
    nn.Embedding: Rule(linear.embedding_applies, linear.embedding),
}
IN_PROJECTION = Rule(linear.linear_applies, linear.in_projection)
