"""The arithmetic of a merge on slices, in place on buffers that stay in the processor's cache.

    theta = theta_1 + sum_i w_i (theta_i - theta_1) / sum_i w_i

is the weighted mean in a form that leaves equal numbers exactly as they are. Plain averaging has w_i = beta_i, COIN has
w_i = beta_i (s_i F_i + d), elementwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Average:
    """Plain averaging.

    Attributes:
        coefficients: beta, one for each checkpoint; they sum to one.
    """

    coefficients: tuple[float, ...]

    def __call__(self, values: Sequence[torch.Tensor], _fishers: Sequence[torch.Tensor], work: Work) -> torch.Tensor:
        """Return the mean, in a buffer of ``work`` or the first of ``values``."""
        total, first = work.total[: len(values[0])], values[0]
        total.copy_(first)
        for beta, value in zip(self.coefficients[1:], values[1:], strict=True):
            total.add_(value.sub_(first), alpha=beta)
        return total


@dataclass(frozen=True)
class Coin:
    """The barycenter for diagonal Fisher information.

    Attributes:
        scales: beta_i s_i, one for each checkpoint.
        dampings: beta_i d.
    """

    scales: tuple[float, ...]
    dampings: tuple[float, ...]
    coefficients: tuple[float, ...]

    def __call__(self, values: Sequence[torch.Tensor], fishers: Sequence[torch.Tensor], work: Work) -> torch.Tensor:
        """Return the mean; plain where nothing weighs at all."""
        size, first = len(values[0]), values[0]
        total, weight = work.total[:size].zero_(), work.weight[:size].fill_(sum(self.dampings))
        plain = torch.zeros_like(total) if not any(self.dampings) else None
        for index, (scale, damping) in enumerate(zip(self.scales, self.dampings, strict=True)):
            fisher = fishers[index]
            weight.add_(fisher, alpha=scale)
            if index == 0:
                continue
            step = values[index].sub_(first)
            total.addcmul_(fisher, step, value=scale)
            if plain is None:
                total.add_(step, alpha=damping)
            else:
                plain.add_(step, alpha=self.coefficients[index])
        if plain is None:
            return total.div_(weight).add_(first)
        return torch.where(weight > 0, total / weight, plain).add_(first)


class Work:
    """Accumulators of one thread, for slices of up to ``elements``."""

    def __init__(self, elements: int, dtype: torch.dtype) -> None:
        self.total = torch.empty(elements, dtype=dtype)
        self.weight = torch.empty(elements, dtype=dtype)


Rule = Average | Coin
