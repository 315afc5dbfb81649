"""Normalisation layers: the weight multiplies the normalised inputs elementwise."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def layer_norm_applies(module: nn.Module, inputs: torch.Tensor) -> bool:
    """The points are not themselves normalised over."""
    assert isinstance(module, (nn.LayerNorm, nn.RMSNorm))
    return inputs.ndim > len(module.normalized_shape)


def layer_norm(module: nn.Module, inputs: torch.Tensor, gradients: torch.Tensor) -> dict[str, torch.Tensor]:
    """Square the gradients of LayerNorm and RMSNorm; positions are all dimensions but the first and the last ones."""
    assert isinstance(module, (nn.LayerNorm, nn.RMSNorm))
    shape = list(module.normalized_shape)
    if isinstance(module, nn.LayerNorm):
        normalised = F.layer_norm(inputs, shape, eps=module.eps)
    else:
        normalised = F.rms_norm(inputs, shape, eps=module.eps)
    grouped = (len(inputs), -1, *shape)
    return _elementwise(normalised.reshape(grouped), gradients.reshape(grouped), 1)


def group_norm_applies(module: nn.Module, inputs: torch.Tensor) -> bool:
    """Inputs are (points, channels, ...)."""
    return inputs.ndim >= 2


def group_norm(module: nn.Module, inputs: torch.Tensor, gradients: torch.Tensor) -> dict[str, torch.Tensor]:
    """Square the gradients of GroupNorm."""
    assert isinstance(module, nn.GroupNorm)
    normalised = F.group_norm(inputs, module.num_groups, eps=module.eps)
    return _by_channel(normalised, gradients)


def batch_norm_applies(module: nn.Module, inputs: torch.Tensor) -> bool:
    """Only with running statistics: those of the batch would tie its points together."""
    assert isinstance(module, _BATCH_NORMS)
    running = module.running_mean is not None and module.running_var is not None
    return running and not module.training and inputs.ndim >= 2


def batch_norm(module: nn.Module, inputs: torch.Tensor, gradients: torch.Tensor) -> dict[str, torch.Tensor]:
    """Square the gradients of BatchNorm in evaluation."""
    assert isinstance(module, _BATCH_NORMS)
    assert module.running_mean is not None and module.running_var is not None
    mean, variance = module.running_mean.to(inputs.dtype), module.running_var.to(inputs.dtype)
    grouped = (*gradients.shape[:2], -1)
    gradients = gradients.reshape(grouped)
    sums = gradients.sum(2)
    # The sum of (x - mean) g, without a copy of either.
    weight = torch.einsum("ncp,ncp->nc", inputs.reshape(grouped), gradients) - mean * sums
    return {"weight": weight.square_().sum(0) / (variance + module.eps), "bias": sums.square_().sum(0)}


def _by_channel(normalised: torch.Tensor, gradients: torch.Tensor) -> dict[str, torch.Tensor]:
    grouped = (*gradients.shape[:2], -1)
    return _elementwise(normalised.reshape(grouped), gradients.reshape(grouped), 2)


def _elementwise(normalised: torch.Tensor, gradients: torch.Tensor, positions: int) -> dict[str, torch.Tensor]:
    """Square the per-point gradients of ``y = w * x + b``; ``positions`` is the dimension to sum over first."""
    weight = (normalised * gradients).sum(positions)
    return {"weight": weight.square_().sum(0), "bias": gradients.sum(positions).square_().sum(0)}
