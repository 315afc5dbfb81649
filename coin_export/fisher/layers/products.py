"""The sum over points of squared matrix products, which is what the weights of linear maps come down to.

With inputs a_n and gradients g_n of the outputs of point n, the gradient of the weight is P_n = g_n a_n^T, summed over
positions (tokens, pixels). Wanted is S = sum_n P_n * P_n, elementwise.
"""

from __future__ import annotations

import torch

# Up to so many positions, pairs of positions are cheaper than a matrix for each point.
_FEW_POSITIONS = 4
# Elements of per-point matrices that are held at once: about what a cache holds.
_CHUNK_ELEMENTS = 2**15


def summed_squares(gradients: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """Return S, shape (out, in), of gradients (points, positions, out) and inputs (points, positions, in)."""
    if gradients.shape[1] <= _FEW_POSITIONS:
        return _by_pairs(gradients, inputs)
    return _by_chunks(gradients.transpose(1, 2), inputs)


def _by_pairs(gradients: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """Use (sum_t g_t a_t)^2 = sum_{s,t} (g_s g_t) (a_s a_t): one matrix product over points and pairs s <= t."""
    positions = gradients.shape[1]
    first, second = torch.triu_indices(positions, positions, device=gradients.device)
    times = torch.where(first == second, 1.0, 2.0).to(gradients.dtype)[:, None]
    left = times * gradients[:, first] * gradients[:, second]
    right = inputs[:, first] * inputs[:, second]
    return left.flatten(0, 1).T @ right.flatten(0, 1)


def _by_chunks(gradients: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """Form P_n for a few points at a time; ``gradients`` has shape (points, out, positions)."""
    shape = gradients.shape[1], inputs.shape[2]
    size = max(1, _CHUNK_ELEMENTS // (shape[0] * shape[1]))
    total, product = gradients.new_zeros(shape), gradients.new_empty(shape)
    if size == 1:
        for gradient, point in zip(gradients, inputs, strict=True):
            torch.mm(gradient, point, out=product)
            total.addcmul_(product, product)
        return total
    for gradient, point in zip(torch.split(gradients, size), torch.split(inputs, size), strict=True):
        total += torch.bmm(gradient, point).square_().sum(0)
    return total
