"""The diagonal Fisher information of a model under its own predictive distribution, averaged over inputs.

F_jj = E_x sum_r ((J^T v_r)_j)^2, see `likelihood`: gradients are squared point by point, then averaged. Squaring the
gradient of a whole batch instead gives another quantity, which depends on the batch size. Labels are never used.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch

from coin_export.datasets.calibration import CalibrationInputs
from coin_export.errors import CalibrationError, CoinExportError, ModelError, NonFiniteError
from coin_export.fisher.general import Squares
from coin_export.fisher.likelihood import directions, passes
from coin_export.fisher.options import FisherOptions
from coin_export.fisher.verified import VerifiedPath
from coin_export.model.copying import sharing_copy
from coin_export.model.functional import check_differentiable
from coin_export.model.signature import FORWARD_ERRORS, Original, dtype_hint, to_tensors

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class DiagonalFisher:
    """The diagonal of a model's Fisher information.

    Attributes:
        diagonal: by parameter name, float32, of the parameter's shape. Tied weights appear under their first name.
        points: number of inputs averaged over.
        forward_passes: points pushed through the network to find it; 0 when it was read from a cache.
        backward_passes: the same, backward.
    """

    diagonal: dict[str, torch.Tensor] = field(repr=False)
    points: int
    forward_passes: int
    backward_passes: int

    def mean(self) -> float:
        """Return the mean over all elements of all parameters."""
        elements = sum(tensor.numel() for tensor in self.diagonal.values())
        return sum(float(tensor.sum(dtype=torch.float64)) for tensor in self.diagonal.values()) / elements


def diagonal_fisher(original: Original, calibration: CalibrationInputs, options: FisherOptions) -> DiagonalFisher:
    """Estimate the diagonal of the Fisher information.

    All outputs count, flattened and concatenated; all parameters get statistics, also those that were frozen in
    training. The result depends on the seed but not on the batch size, up to rounding.

    Raises:
        ModelError: if the model is in training mode, has no parameters, fails on one point at a time, or autograd sees
            no output depend on any parameter.
        CalibrationError: if the inputs are not those of the model's signature.
        NonFiniteError: if outputs or statistics hold NaN or infinity.
    """
    totals = summed_squares(original, calibration, options, range(len(calibration)))
    return averaged(original, options, totals, len(calibration))


def summed_squares(original: Original, calibration: CalibrationInputs, options: FisherOptions, part: range) -> Squares:
    """Sum squared gradients over a ``part`` of the points, in float64; see `diagonal_fisher`.

    Sums of parts that make up the whole add up to that of the whole: what is random depends on a point's index alone.
    """
    _check(original, calibration)
    width = _width(original)
    path = VerifiedPath(replace(original, module=sharing_copy(original.module)), options)
    totals: Squares = {}
    try:
        for points in _batches(part, options):
            batch = calibration.take(slice(points.start, points.stop))
            squares, finite = path(list(to_tensors(batch.arrays).values()), directions(options, points, width))
            _check_outputs(original, finite, points)
            _add(totals, squares)
        if len(part) and not any(bool(total.any()) for total in totals.values()):
            check_differentiable(
                original.module, to_tensors(calibration.take(slice(part.start, part.start + 1)).arrays)
            )
    except CoinExportError:
        raise
    except FORWARD_ERRORS as error:
        raise ModelError(
            f"model {original.name!r} cannot be differentiated on single calibration points: {error}{dtype_hint(error)}"
        ) from error
    return totals


def averaged(original: Original, options: FisherOptions, totals: Squares, points: int) -> DiagonalFisher:
    """Divide sums by the number of points.

    What is zero throughout is told in the log: nothing is known of it.

    Raises:
        NonFiniteError: if the result holds NaN or infinity.
    """
    diagonal = {name: (total / points).float() for name, total in totals.items()}
    faulty = [name for name, tensor in diagonal.items() if not bool(torch.isfinite(tensor).all())]
    if faulty:
        raise NonFiniteError(
            f"model {original.name!r}: the Fisher statistics hold NaN or infinity in {', '.join(faulty)}; "
            "check the scale of the calibration inputs"
        )
    zero = [name for name, tensor in diagonal.items() if tensor.numel() and not bool(tensor.any())]
    if zero:
        _log.warning("model %r: on the calibration inputs no output depends on %s", original.name, ", ".join(zero[:5]))
    return DiagonalFisher(diagonal, points, points, points * passes(options, _width(original)))


def _add(totals: Squares, squares: Squares) -> None:
    """Sum in float64, and in place: large models have room for few copies of themselves."""
    for name, square in squares.items():
        if name in totals:
            totals[name] += square
        else:
            totals[name] = square.double()


def _width(original: Original) -> int:
    return sum(math.prod(spec.shape) for spec in original.signature.outputs)


def _batches(part: range, options: FisherOptions) -> Iterator[range]:
    for start in range(part.start, part.stop, options.batch_size):
        yield range(start, min(start + options.batch_size, part.stop))


def _check(original: Original, calibration: CalibrationInputs) -> None:
    module, signature = original.module, original.signature
    if any(part.training for part in module.modules()):
        raise ModelError(f"model {original.name!r} is in training mode; call eval() on it first")
    if not any(parameter.numel() for parameter in module.parameters()):
        raise ModelError(f"model {original.name!r} has no parameters to code")
    given = [(name, tuple(array.shape[1:]), str(array.dtype)) for name, array in calibration.arrays.items()]
    asked = [(spec.name, spec.shape, str(spec.dtype).removeprefix("torch.")) for spec in signature.inputs]
    if given != asked:
        raise CalibrationError(
            f"the calibration inputs are {given}; model {original.name!r} takes {asked} (name, shape of a point, dtype)"
        )


def _check_outputs(original: Original, finite: list[bool], points: range) -> None:
    faulty = [spec.name for spec, good in zip(original.signature.outputs, finite, strict=True) if not good]
    if faulty:
        raise NonFiniteError(
            f"model {original.name!r}: NaN or infinity in output {', '.join(faulty)} "
            f"on calibration points {points.start} to {points.stop - 1}"
        )
