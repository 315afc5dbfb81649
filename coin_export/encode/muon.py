"""Muon: momentum made orthogonal, for the matrices of a network; Adam for the rest (Jordan and others, 2024).

The step of a matrix has all singular values near one, so rare directions move as fast as common ones. Kernels of
convolutions count as matrices of shape (output channels, rest). `torch.optim.Muon` takes matrices only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn

# Newton-Schulz quintic of the original, tuned for speed: singular values end near one, between about 0.7 and 1.2.
_QUINTIC = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_MOMENTUM = 0.95
# Gives a matrix's step the root mean square that Adam's typically has (Liu and others, 2025): one learning rate fits.
_ADAM_RMS = 0.2
# As in Adam: of a layer that has no gradient any more, the momentum that is left must not move it for ever; nor may its
# norm underflow.
_EPSILON = 1e-8


class Muon(torch.optim.Optimizer):
    """Nesterov momentum with orthogonal steps, for tensors of two dimensions or more."""

    def __init__(self, parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]], lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]  # it is overloaded in torch
        """Take one step."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                momentum = state.setdefault("momentum", torch.zeros_like(parameter))
                momentum.lerp_(parameter.grad, 1 - _MOMENTUM)
                update = parameter.grad.lerp(momentum, _MOMENTUM).flatten(1)
                scale = _ADAM_RMS * max(update.shape) ** 0.5
                parameter.sub_(orthogonal(update).view_as(parameter), alpha=group["lr"] * scale)


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """Return, approximately, the orthogonal matrix nearest in direction: U V^T of U S V^T; next to zero stays there."""
    a, b, c = _QUINTIC
    tall = matrix.shape[0] > matrix.shape[1]
    x: torch.Tensor = matrix.T if tall else matrix
    x = x / (x.norm() + _EPSILON)
    # Every iteration multiplies x from the left by a polynomial of its Gram matrix, which is the smaller of the two.
    gram, whole = x @ x.T, torch.eye(len(x), dtype=x.dtype, device=x.device)
    for _ in range(_ITERATIONS):
        polynomial = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        polynomial.diagonal().add_(a)
        gram, whole = polynomial @ gram @ polynomial, polynomial @ whole
    x = whole @ x
    return x.T if tall else x


def matrices(module: nn.Module) -> Iterator[nn.Parameter]:
    """Yield the parameters that act as matrices: not those of embeddings, whose rows are rarely all asked."""
    tables = {id(part.weight) for part in module.modules() if isinstance(part, (nn.Embedding, nn.EmbeddingBag))}
    for parameter in module.parameters():
        if parameter.ndim >= 2 and parameter.is_floating_point() and id(parameter) not in tables:
            yield parameter
