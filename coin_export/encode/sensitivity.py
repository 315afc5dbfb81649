"""How much originals' answers suffer when their logits are off: whom a code should protect more. No label is seen.

An error e of the logits moves the softmax p by a divergence of about e^T H e / 2, H = diag(p) - p p^T. For errors alike
in all directions that grows with the trace of H, 1 - q, where q = sum_c p_c^2 is the purity of the answer: an original
that is sure of its answers bears larger errors than one that is not. Answers of which an original is not sure at all,
about inputs of another's task for instance, are worth little, so each counts by the square of its purity. A decoded
answer's error grows with the noise gain, so divergences are alike when noise gains are inverse to
sqrt(E[q^2 (1 - q)] / E[q^2]).

What is lost of accuracy differs more between originals than divergences do: where it was measured, it went with the
square of noise gain times that root's square (docs/results.md). With one coded model the mean over originals counts,
which is best near gains inverse to the root itself. With several it is the worst of many losses, and these are alike
when gains are inverse to the root's square.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from coin_export.datasets.calibration import CalibrationInputs
from coin_export.encode.cost import Passes
from coin_export.encode.criterion import absent_classes
from coin_export.encode.teachers import Teachers, batches_of, concatenated, working_inputs
from coin_export.model.signature import Original

_BATCH = 256
_POINTS = 2_000  # enough for a mean
_FURTHEST = 2.0  # from the middle one, up or down, so that a single one does not distort the code
# Below, coefficients stay equal: a coded model then gives the plain mean of the ensemble, which is worth more.
_LEAST = 1.25


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
        parities: number of coded models; weights are in proportion to the sensitivity for one, to its square for more.

    Returns:
        One for the least sensitive, at most four, to two decimals; one for all if none reaches 1.25, if no output says
        anything, or if some answer is NaN or infinite.
    """
    teachers = Teachers(originals, Passes())
    spaced = np.unique(np.linspace(0, len(calibration) - 1, _POINTS).astype(np.intp))
    answers = concatenated([teachers(batch) for batch in batches_of(working_inputs(calibration.take(spaced)), _BATCH)])
    found = [
        _sensitivities(output, absent)
        for output in answers
        if output.ndim in (3, 4) and ((~(absent := absent_classes(output))).sum(-1) > 1).all()
    ]
    if not found or not all(torch.isfinite(output).all() for output in answers):
        return (1.0,) * len(originals)
    weights = torch.stack(found).sum(0).sqrt().clamp_min(torch.finfo(torch.float32).tiny)
    if weights.max() < _LEAST * weights.min():
        return (1.0,) * len(originals)
    if parities > 1:
        weights.square_()
    weights /= weights.log().quantile(0.5).exp()
    weights.clamp_(1 / _FURTHEST, _FURTHEST)
    weights /= weights.min()
    return tuple(round(weight, 2) for weight in weights.tolist())


def _sensitivities(logits: torch.Tensor, absent: torch.Tensor) -> torch.Tensor:
    """Return E[q^2 (1 - q)] / E[q^2] of each original, in float64."""
    purity = logits.double().masked_fill(absent, -math.inf).softmax(-1).square().sum(-1).flatten(1)
    worth = purity.square()
    return (worth * (1 - purity)).sum(1) / worth.sum(1)
