"""How much accuracy originals lose when their logits are off: whom a code should protect more. No label is seen.

An error e of the logits moves the softmax p by a divergence of about e^T H e / 2, H = diag(p) - p p^T. For errors alike
in all directions that grows with the trace of H, 1 - q, where q = sum_c p_c^2 is the purity of the answer: an original
that is sure of its answers bears larger errors than one that is not.

That counts for inputs of its own task. What it says of others' is worth little, though it may be just as sure of it.
Whose an input is, nobody tells; but the energy of an answer, log sum_c exp z_c of logits z less their mean, is higher
on inputs like those of the training than on others (Liu, Wang, Owens and Li, Energy-based Out-of-distribution
Detection, NeurIPS 2020). So each input is shared out by how far each original's energy stands out from its energies on
all inputs, with odds as if energies were two standard deviations higher on own ones. In an ensemble that shares its
task they go together, so that all get about the same. An answer that is not sure at all is likely about another's
input in spite of its energy, and counts less, by the square of its purity.

With s_i^2 = E[q^2 (1 - q)] / E[q^2] over its shares, the accuracy that original i loses at a noise gain g was about in
proportion to (s_i g)^2 where it was measured (docs/results.md). With one coded model g = 1 / beta_i, and the mean loss
of all originals is least where beta_i is in proportion to s_i^(2/3). With several, the worst of many losses is least
where all are alike, so gains should be inverse to s_i.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from coin_export.datasets.calibration import CalibrationInputs
from coin_export.encode.cost import Passes
from coin_export.encode.criterion import absent_classes, is_distribution
from coin_export.encode.teachers import Teachers, batches_of, concatenated, working_inputs
from coin_export.model.signature import Original

_BATCH = 256
_POINTS = 2_000  # enough for a mean
_FURTHEST = 2.0  # from the middle one, up or down, so that a single one does not distort the code
# Below, coefficients stay equal: a coded model then gives the plain mean of the ensemble, which is worth more.
_LEAST = 1.25
_HIGHER = 2.0  # energies on own inputs, in standard deviations
_CONSTANT = 1e-6  # energies that deviate by less


def sensitivities(
    originals: Sequence[Original], calibration: CalibrationInputs, parities: int = 1
) -> tuple[float, ...]:
    """Return a weight for each original to protect it by, the larger the more sensitive its answers are.

    Outputs of shape (points, classes) or (points, positions, classes) are taken for logits; others say nothing, and
    so do those in which an original has fewer than two classes. Classes to which an original answers exactly zero
    throughout are those that its padded head lacks.

    Args:
        originals: of one architecture, heads padded.
        calibration: inputs to ask them, evenly spaced ones if there are more than 2,000.
        parities: number of coded models; of the sensitivities s_i, weights are s_i^(2/3) for one, s_i for more.

    Returns:
        One for the least sensitive, at most four, to two decimals; one for all if none reaches 1.25, if no output says
        anything, or if some answer is NaN or infinite.
    """
    alike = (1.0,) * len(originals)
    teachers = Teachers(originals, Passes())
    spaced = np.unique(np.linspace(0, len(calibration) - 1, _POINTS).astype(np.intp))
    answers = concatenated([teachers(batch) for batch in batches_of(working_inputs(calibration.take(spaced)), _BATCH)])
    if not all(torch.isfinite(output).all() for output in answers):
        return alike
    found = [_energy_and_purity(output) for output in answers if _says_something(output)]
    if not found:
        return alike
    shares = _shares(torch.stack([energy.mean(-1) for energy, _ in found]).sum(0))
    squares = torch.stack([_impurity(shares, purity) for _, purity in found]).sum(0)
    weights = squares.clamp_min(torch.finfo(torch.float32).tiny) ** (1 / 3 if parities == 1 else 1 / 2)
    weights /= weights.log().quantile(0.5).exp()
    weights.clamp_(1 / _FURTHEST, _FURTHEST)
    weights /= weights.min()
    return tuple(round(weight, 2) for weight in weights.tolist()) if weights.max() >= _LEAST else alike


def _says_something(output: torch.Tensor) -> bool:
    return is_distribution(output) and bool(((~absent_classes(output)).sum(-1) > 1).all())


def _energy_and_purity(output: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log sum_c exp z_c, of logits less their mean, and q, both of shape (models, points, positions)."""
    absent = absent_classes(output)
    mean = output.double().sum(-1, keepdim=True) / (~absent).sum(-1, keepdim=True)
    logits = (output - mean).masked_fill(absent, -math.inf)
    energy, purity = logits.logsumexp(-1), logits.softmax(-1).square().sum(-1)
    return energy.reshape(*output.shape[:2], -1), purity.reshape(*output.shape[:2], -1)


def _impurity(shares: torch.Tensor, purity: torch.Tensor) -> torch.Tensor:
    """Return E[q^2 (1 - q)] / E[q^2] of each original over its shares of all inputs."""
    worth = shares.unsqueeze(-1) * purity.square()
    return (worth * (1 - purity)).sum((1, 2)) / worth.sum((1, 2))


def _shares(energies: torch.Tensor) -> torch.Tensor:
    """Return the share of each original in each input, which add up to one; shape (models, points)."""
    deviation = energies - energies.mean(1, keepdim=True)
    standing_out = deviation / energies.std(1, correction=0, keepdim=True).clamp_min(_CONSTANT)
    return (_HIGHER * standing_out).softmax(0)
