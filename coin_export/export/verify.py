"""The numeric check of an export: ONNX Runtime against torch on real inputs, at several batch sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from coin_export.datasets.calibration import Array, CalibrationInputs
from coin_export.errors import ExportMismatchError, NonFiniteError
from coin_export.export.onnx import evaluating
from coin_export.export.onnx_file import check_versions, file_digest, load_session
from coin_export.export.options import ExportOptions
from coin_export.model.signature import Signature, call, to_tensors

__all__ = ["OnnxCheck", "OutputCheck", "check_versions", "compare", "file_digest", "load_session"]

_LEAST_HALF_TOLERANCE = 1e-2  # ten units in the last place of float16


@dataclass(frozen=True)
class OutputCheck:
    """How far ONNX Runtime was from torch in one output, over all batch sizes.

    Attributes:
        name: the output.
        max_abs_error: largest absolute difference.
        max_relative_error: the same as a share of the largest magnitude in torch's output of that batch.
        argmax_agreement: share, in %, of points whose largest entry is at the same place.
    """

    name: str
    max_abs_error: float
    max_relative_error: float
    argmax_agreement: float


@dataclass(frozen=True)
class OnnxCheck:
    """How far ONNX Runtime was from torch; the worst over all outputs, and each of them.

    Attributes:
        max_abs_error: see `OutputCheck`.
        max_relative_error: see `OutputCheck`.
        argmax_agreement: see `OutputCheck`.
        outputs: each output.
        batch_sizes: those that were tried.
    """

    max_abs_error: float
    max_relative_error: float
    argmax_agreement: float
    outputs: tuple[OutputCheck, ...]
    batch_sizes: tuple[int, ...]


def compare(
    path: Path,
    module: torch.nn.Module,
    signature: Signature,
    calibration: CalibrationInputs,
    options: ExportOptions,
) -> OnnxCheck:
    """Run an exported file and the module it came from on the same inputs.

    Batches larger than the number of calibration points repeat points.

    Raises:
        NonFiniteError: if either gives NaN or infinity.
        ExportMismatchError: if ONNX Runtime fails at a batch size, or differs in an output's shape, dtype or, by
            more than the tolerance, values.
    """
    session = load_session(path)
    names = [spec.name for spec in signature.outputs]
    pairs: dict[str, list[_Pair]] = {name: [] for name in names}
    for size in options.batch_sizes:
        batch = calibration.take(np.arange(size) % len(calibration)).arrays
        expected = _run_torch(module, batch, names)
        actual = _run_onnx(session, batch, names, f"{path.name} at batch size {size}")
        for name in names:
            pair = _Pair(f"{path.name}: output {name!r} at batch size {size}", actual[name], expected[name])
            _check_pair(pair, options)
            pairs[name].append(pair)
    outputs = tuple(_summary(name, items) for name, items in pairs.items())
    return OnnxCheck(
        max_abs_error=max(output.max_abs_error for output in outputs),
        max_relative_error=max(output.max_relative_error for output in outputs),
        argmax_agreement=min(output.argmax_agreement for output in outputs),
        outputs=outputs,
        batch_sizes=options.batch_sizes,
    )


@dataclass(frozen=True, eq=False)
class _Pair:
    """One output of one batch by ONNX Runtime and by torch."""

    where: str
    actual: Array
    expected: Array

    @property
    def scale(self) -> float:
        return float(np.abs(self.expected.astype(np.float64)).max())

    @property
    def abs_error(self) -> float:
        return float(np.abs(self.actual.astype(np.float64) - self.expected.astype(np.float64)).max())

    @property
    def relative_error(self) -> float:
        return self.abs_error / self.scale if self.scale > 0 else self.abs_error


def _run_torch(module: torch.nn.Module, batch: Mapping[str, Array], names: list[str]) -> dict[str, Array]:
    with torch.no_grad(), evaluating(module):
        return {name: tensor.numpy() for name, tensor in call(module, to_tensors(batch), names).items()}


def _run_onnx(session: Any, batch: Mapping[str, Array], names: list[str], where: str) -> dict[str, Array]:
    try:
        return dict(zip(names, session.run(names, dict(batch)), strict=True))
    except Exception as error:  # ONNX Runtime's exceptions have no common base but this
        raise ExportMismatchError(f"{where}: ONNX Runtime fails where torch does not: {error}") from error


def _check_pair(pair: _Pair, options: ExportOptions) -> None:
    for runtime, array in (("torch", pair.expected), ("ONNX Runtime", pair.actual)):
        if not np.isfinite(array).all():
            raise NonFiniteError(
                f"{pair.where} contains NaN or infinity in {runtime}; look for such values in the weights, and for "
                "overflow in half precision"
            )
    if (pair.actual.shape, pair.actual.dtype) != (pair.expected.shape, pair.expected.dtype):
        raise ExportMismatchError(
            f"{pair.where}: ONNX Runtime gives {pair.actual.dtype} of shape {pair.actual.shape}, "
            f"torch gives {pair.expected.dtype} of shape {pair.expected.shape}"
        )
    relative = options.relative_tolerance
    if pair.expected.dtype == np.float16:
        relative = max(relative, _LEAST_HALF_TOLERANCE)
    allowed = options.absolute_tolerance + relative * pair.scale
    if pair.abs_error > allowed:
        raise ExportMismatchError(
            f"{pair.where}: ONNX Runtime and torch differ by {pair.abs_error:.3g}, and {allowed:.3g} is allowed "
            f"(the largest magnitude is {pair.scale:.3g}); an operation is exported wrongly: try another opset, or "
            "raise the tolerances if this much does not matter"
        )


def _summary(name: str, pairs: list[_Pair]) -> OutputCheck:
    same = np.concatenate([(pair.actual.argmax(-1) == pair.expected.argmax(-1)).ravel() for pair in pairs])
    return OutputCheck(
        name=name,
        max_abs_error=max(pair.abs_error for pair in pairs),
        max_relative_error=max(pair.relative_error for pair in pairs),
        argmax_agreement=100.0 * float(same.mean()),
    )
