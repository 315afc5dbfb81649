"""The arithmetic of a merge on slices, in place on buffers that stay in the processor's cache.

The weighted mean sum_i w_i theta_i / sum_i w_i is followed from checkpoint to checkpoint: each moves it by the share
w_i / (w_1 + ... + w_i) of the way to itself. So equal numbers stay exactly as they are. Plain averaging has
w_i = beta_i, COIN has w_i = beta_i (s_i F_i + d), elementwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

# Counts only where the Fisher values of all checkpoints are zero: the plain mean is taken there.
_LEAST_DAMPING = 1e-30
_LARGE = 1e30


@dataclass(frozen=True)
class Average:
    """Plain averaging.

    Attributes:
        coefficients: beta, one for each checkpoint.
    """

    coefficients: tuple[float, ...]

    def __call__(self, values: Sequence[torch.Tensor], _fishers: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the mean in the first of ``values``."""
        mean, total = values[0], self.coefficients[0]
        for beta, value in zip(self.coefficients[1:], values[1:], strict=True):
            total += beta
            mean.lerp_(value, beta / total)
        return mean


@dataclass(frozen=True)
class Coin:
    """The barycenter for diagonal Fisher information.

    Attributes:
        coefficients: beta, one for each checkpoint.
        scales: s.
        damping: d.
    """

    coefficients: tuple[float, ...]
    scales: tuple[float, ...]
    damping: float

    def __call__(self, values: Sequence[torch.Tensor], fishers: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the mean in the first of ``values``; the others and ``fishers`` are overwritten."""
        mean = values[0]
        for index, (beta, scale, fisher) in enumerate(zip(self.coefficients, self.scales, fishers, strict=True)):
            damping = fisher.new_tensor(beta * max(self.damping, _LEAST_DAMPING))
            factor = beta * scale
            if factor > _LARGE:  # of Fisher values so small that the factor is no float32
                factor **= 0.5
                fisher.mul_(factor)
            weight = torch.add(damping, fisher, alpha=factor, out=fisher)
            if index == 0:
                total = weight
                continue
            total.add_(weight)
            mean.lerp_(values[index], weight.div_(total))
        return mean


Rule = Average | Coin
