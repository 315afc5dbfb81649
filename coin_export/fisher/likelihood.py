"""The Fisher information of a model's outputs under its own predictive distribution, as vectors.

With J the Jacobian of the outputs with respect to the parameters, the Fisher information of the parameters is
F = E_x[J^T H J]. H is that of the outputs: the identity for a Gaussian N(f(x), I), and diag(p) - p p^T for a
categorical distribution p = softmax(f(x)). Each estimate here is a set of vectors v_r with sum_r v_r v_r^T = H,
exactly or in expectation, so diag F = E_x sum_r (J^T v_r)^2, and each v_r costs one backward pass.

Write H = B B^T, with B = I or B = diag(s) - p s^T where s = sqrt(p). The exact vectors are the columns of B. A random
sign vector z has E[z z^T] = I, so B z will do (Hutchinson, 1990). For a label y drawn from p, the score e_y - p has
second moment H: that is the definition of the Fisher information.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from coin_export.fisher.options import FisherOptions


def passes(options: FisherOptions, width: int) -> int:
    """Return the number of vectors for each point, with ``width`` output elements to a point."""
    return width if options.estimate == "exact" else options.samples


def directions(options: FisherOptions, points: range, width: int) -> torch.Tensor:
    """Return what the vectors of each point are made of, shape (points, passes, width), float32.

    Unit vectors for exact, random signs for sign_probe, Gumbel noise for sampled. What is random depends on the seed
    and the point's index alone, so neither on the batch size nor on how points are shared between processes.
    """
    if options.estimate == "exact":
        return torch.eye(width).expand(len(points), -1, -1)
    shape = (options.samples, width)
    generators = (np.random.default_rng([options.seed, point]) for point in points)
    if options.estimate == "sampled":
        drawn = [generator.gumbel(size=shape) for generator in generators]
    else:
        drawn = [1.0 - 2.0 * generator.integers(2, size=shape) for generator in generators]
    return torch.from_numpy(np.stack(drawn)).float()


def cotangents(
    options: FisherOptions, outputs: Sequence[torch.Tensor], direction: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Return one vector v_r of one point, in the shapes of its ``outputs``.

    Args:
        options: likelihood and estimate.
        outputs: the point's outputs, each of shape (..., classes).
        direction: a row of `directions`, as long as all outputs together.
    """
    parts = torch.split(direction, [output.numel() for output in outputs])
    shaped = [part.reshape(output.shape).to(output.dtype) for part, output in zip(parts, outputs, strict=True)]
    scale = 1.0 if options.estimate == "exact" else options.samples**-0.5
    if options.likelihood == "gaussian":
        return tuple(scale * part for part in shaped)
    along = _score if options.estimate == "sampled" else _root
    return tuple(scale * along(output, part) for output, part in zip(outputs, shaped, strict=True))


def _root(logits: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
    """Multiply by B = diag(s) - p s^T."""
    probabilities = logits.softmax(-1)
    scaled = probabilities.sqrt() * vector
    return scaled - probabilities * scaled.sum(-1, keepdim=True)


def _score(logits: torch.Tensor, gumbel: torch.Tensor) -> torch.Tensor:
    """Draw a label, as the arg-max of logits plus Gumbel noise, and return the gradient of its log probability."""
    label = (logits + gumbel).argmax(-1, keepdim=True)
    return torch.zeros_like(logits).scatter(-1, label, 1.0) - logits.softmax(-1)
