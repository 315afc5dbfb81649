"""Linear layers and embeddings."""

from __future__ import annotations

import torch
from torch import nn

from coin_export.fisher.layers.products import summed_squares


def linear_applies(module: nn.Module, inputs: torch.Tensor) -> bool:
    """Inputs are (points, ..., features)."""
    return inputs.ndim >= 2


def linear(module: nn.Module, inputs: torch.Tensor, gradients: torch.Tensor) -> dict[str, torch.Tensor]:
    """Square the gradients of ``y = x W^T + b``."""
    rows = gradients.flatten(1, -2) if gradients.ndim > 2 else gradients.unsqueeze(1)
    columns = inputs.flatten(1, -2) if inputs.ndim > 2 else inputs.unsqueeze(1)
    return {"weight": summed_squares(rows, columns), "bias": rows.sum(1).square_().sum(0)}


def in_projection(module: nn.Module, inputs: torch.Tensor, gradients: torch.Tensor) -> dict[str, torch.Tensor]:
    """Square the gradients of the fused projection of `torch.nn.MultiheadAttention`."""
    return {f"in_proj_{name}": square for name, square in linear(module, inputs, gradients).items()}


def embedding_applies(module: nn.Module, inputs: torch.Tensor) -> bool:
    """Not where the gradient depends on the other points of the batch, or the forward pass on more than the weight."""
    assert isinstance(module, nn.Embedding)
    return module.max_norm is None and not module.scale_grad_by_freq and not module.sparse


def embedding(module: nn.Module, inputs: torch.Tensor, gradients: torch.Tensor) -> dict[str, torch.Tensor]:
    """Sum the gradients of each row that a point looked up, then square: no dense table for each point."""
    assert isinstance(module, nn.Embedding)
    rows = module.num_embeddings
    indices = inputs.reshape(len(inputs), -1).long()
    keys = indices + rows * torch.arange(len(inputs), device=indices.device)[:, None]
    looked_up, place = torch.unique(keys, return_inverse=True)
    summed = gradients.new_zeros(len(looked_up), module.embedding_dim)
    summed.index_add_(0, place.flatten(), gradients.reshape(-1, module.embedding_dim))
    squares = gradients.new_zeros(rows, module.embedding_dim)
    squares.index_add_(0, looked_up % rows, summed.square_())
    if module.padding_idx is not None:
        squares[module.padding_idx] = 0.0
    return {"weight": squares}
