"""How much originals' answers suffer when their logits are off: whom a code should protect more. No label is seen.

An error e of the logits moves the softmax p by a divergence of about e^T H e / 2, H = diag(p) - p p^T. For errors alike
in all directions that grows with the trace of H, 1 - q, where q = sum_c p_c^2 is the purity of the answer: an original
that is sure of its answers bears larger errors than one that is not. Answers of which an original is not sure at all,
about inputs of another's task for instance, are worth little, so each counts by the square of its purity. A decoded
answer's error grows with the noise gain, so divergences are alike when noise gains are inverse to
sqrt(E[q^2 (1 - q)] / E[q^2]).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from coin_export.datasets.calibration import CalibrationInputs
from coin_export.encode.cost import Passes
from coin_export.encode.teachers import Teachers, batches_of, working_inputs
from coin_export.model.signature import Original

_BATCH = 256
# Below, coefficients stay equal: a coded model then gives the plain mean of the ensemble, which is worth more.
_LEAST = 1.25
_MOST = 4.0


def sensitivities(originals: Sequence[Original], calibration: CalibrationInputs) -> tuple[float, ...]:
    """Return a weight for each original to `protect` it by, in proportion to how sensitive its answers are.

    Outputs are taken for logits over their last dimension; those with a single class say nothing. Classes to which an
    original answers exactly zero throughout are those that its padded head lacks.

    Args:
        originals: of one architecture, heads padded.
        calibration: inputs to ask them.

    Returns:
        One for the least sensitive, at most four, to two decimals; one for all if none reaches 1.25, if there are no
        logits, or some are NaN or infinite.
    """
    teachers = Teachers(originals, Passes())
    batches = batches_of(working_inputs(calibration), _BATCH)
    asked = [teachers(batch) for batch in batches]
    found = torch.zeros(len(originals), dtype=torch.float64)
    for parts in zip(*asked, strict=True):
        if parts[0].ndim > 2 and parts[0].shape[-1] > 1:
            found += torch.stack([_sensitivity(logits) for logits in torch.cat(parts, 1).double()])
    least = found.min().clamp_min(torch.finfo(torch.float32).tiny)
    weights = (found.clamp_min(least) / least).sqrt().clamp_max(_MOST)
    if not weights.max() >= _LEAST:  # NaN is not
        return (1.0,) * len(originals)
    return tuple(round(weight, 2) for weight in weights.tolist())


def _sensitivity(logits: torch.Tensor) -> torch.Tensor:
    """Return E[q^2 (1 - q)] / E[q^2] over all but the last dimension."""
    absent = (logits == 0).flatten(0, -2).all(0)
    purity = logits.masked_fill(absent, -math.inf).softmax(-1).square().sum(-1)
    worth = purity.square()
    return (worth * (1 - purity)).sum() / worth.sum()
