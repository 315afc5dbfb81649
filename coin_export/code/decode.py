"""Decoding in numpy: lost outputs as weighted sums of those that arrived."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from coin_export.code.linear import Decoding

Array = npt.NDArray[Any]


def decode(decoding: Decoding, outputs: Sequence[Array]) -> list[Array]:
    """Compute the wanted outputs.

    Args:
        decoding: the weights, from `LinearCode.decoding`.
        outputs: one array per entry of ``decoding.sources``, all of one shape; floating point.

    Returns:
        One array per entry of ``decoding.wanted``, of the inputs' shape and dtype. Where an original arrived
        itself, its array is returned as it is, not a copy.
    """
    return [_weighted_sum(row, outputs) for row in decoding.weights]


def _weighted_sum(weights: npt.NDArray[np.float64], outputs: Sequence[Array]) -> Array:
    terms = [(weight, output) for weight, output in zip(weights.tolist(), outputs, strict=True) if weight != 0.0]
    weight, output = terms[0]
    if len(terms) == 1 and weight == 1.0:
        return output
    # Half-precision sums of large terms that nearly cancel would lose most of their digits.
    total = np.multiply(output, weight, dtype=np.result_type(output.dtype, np.float32))
    scratch = np.empty_like(total)
    for weight, output in terms[1:]:
        total += np.multiply(output, weight, out=scratch)
    return total.astype(output.dtype, copy=False)
