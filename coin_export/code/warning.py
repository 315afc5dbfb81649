"""A code that decodes badly is told of before anybody depends on it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from coin_export.code.linear import LinearCode

NOISE_GAIN_BOUND = 100.0
"""A decoding of more noise gain is warned of: there, a coding error of one percent is as large as the output itself."""


def noise_warning(code: LinearCode, names: Sequence[str]) -> str | None:
    """Say which loss is made good at too high a noise gain, and what to do; None if none is.

    Args:
        code: the code.
        names: the models', the originals' first.
    """
    worst = code.worst_loss
    if worst.original is None or not NOISE_GAIN_BOUND < worst.noise_gain < math.inf:
        return None
    lost = " and ".join(repr(names[index]) for index in worst.lost)
    fewer = "fewer coded models, " if code.m > 1 else ""
    return (
        f"with {lost} lost, decoding {names[worst.original]!r} multiplies the coding error by {worst.noise_gain:,.0f}; "
        f"above {NOISE_GAIN_BOUND:.0f} little is left of an answer: choose {fewer}smaller groups or other coefficients"
    )
