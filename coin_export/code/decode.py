"""Decoding in numpy: lost outputs as weighted sums of those that arrived.

Originals may have fewer classes than the coded models. What an output lacks counts as zero, and what is decoded has
the wanted original's own size: nothing is ever padded in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from coin_export.code.linear import Decoding

Array = npt.NDArray[Any]


def decode(
    decoding: Decoding, outputs: Sequence[Array], shapes: Sequence[tuple[int, ...]] | None = None
) -> list[Array]:
    """Compute the wanted outputs.

    Args:
        decoding: the weights, from `LinearCode.decoding`.
        outputs: one array per entry of ``decoding.sources``, floating point, of shape (batch, ...).
        shapes: the shape of each wanted output, without the batch, where the outputs are not all of one shape; -1
            stands for the size that the outputs have.

    Returns:
        One array per entry of ``decoding.wanted``, of the outputs' dtype. Where an original arrived itself, its
        array is returned as it is, not a copy. What is too large for the dtype becomes infinite, without a warning.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        return _decode(decoding, outputs, shapes)


def _decode(decoding: Decoding, outputs: Sequence[Array], shapes: Sequence[tuple[int, ...]] | None) -> list[Array]:
    if shapes is None:
        return [_weighted_sum(row, outputs) for row in decoding.weights]
    wanted = [_whole_shape(shape, outputs) for shape in shapes]
    if all(output.shape == shape for output in outputs for shape in wanted):
        return [_weighted_sum(row, outputs) for row in decoding.weights]
    return [_cut_sum(row, outputs, shape) for row, shape in zip(decoding.weights, wanted, strict=True)]


def _whole_shape(shape: tuple[int, ...], outputs: Sequence[Array]) -> tuple[int, ...]:
    """Add the batch and settle free sizes."""
    sizes = outputs[0].shape
    return (sizes[0], *(size if wanted == -1 else wanted for size, wanted in zip(sizes[1:], shape, strict=True)))


def _weighted_sum(weights: npt.NDArray[np.float64], outputs: Sequence[Array]) -> Array:
    terms = [(weight, output) for weight, output in zip(weights.tolist(), outputs, strict=True) if weight != 0.0]
    weight, output = terms[0]
    if len(terms) == 1 and weight == 1.0:
        return output
    # Half-precision sums of large terms that nearly cancel would lose most of their digits.
    total = np.multiply(output, weight, dtype=np.result_type(output.dtype, np.float32))
    scratch: Array | None = None
    for weight, output in terms[1:]:
        if weight == -1.0:  # as for every answer but the coded one when a plain mean is decoded: one pass, not two
            total -= output
        else:
            scratch = np.multiply(output, weight, out=scratch, dtype=total.dtype)
            total += scratch
    return total.astype(output.dtype, copy=False)


def _cut_sum(weights: npt.NDArray[np.float64], outputs: Sequence[Array], shape: tuple[int, ...]) -> Array:
    """Sum what each output has inside ``shape``."""
    terms = [(weight, output) for weight, output in zip(weights.tolist(), outputs, strict=True) if weight != 0.0]
    if len(terms) == 1 and terms[0][0] == 1.0 and terms[0][1].shape == shape:
        return terms[0][1]
    dtype = outputs[0].dtype
    total = np.zeros(shape, dtype=np.result_type(dtype, np.float32))
    for weight, output in terms:
        inside = tuple(slice(min(pair)) for pair in zip(shape, output.shape, strict=True))
        total[inside] += np.multiply(output[inside], weight, dtype=total.dtype)
    return total.astype(dtype, copy=False)
