"""Exporting models, and comparing what was exported with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from coin_export.datasets.calibration import CalibrationInputs
from coin_export.errors import ExportError
from coin_export.export.onnx import export_onnx
from coin_export.export.options import ExportOptions
from coin_export.export.verify import OnnxCheck, compare
from coin_export.model.signature import Original


def export_all(
    models: Sequence[Original], points: CalibrationInputs, options: ExportOptions, folder: Path
) -> dict[str, Path]:
    """Write an ONNX file for each model; return them by name.

    Raises:
        ExportError: names the model that cannot be exported.
    """
    files = {model.name: folder / f"{model.name}.onnx" for model in models}
    for model in models:
        try:
            export_onnx(model.module, model.signature, points, files[model.name], options)
        except ExportError as error:
            raise ExportError(f"model {model.name!r}: {error}") from error
    return files


def compare_all(
    models: Sequence[Original], files: Mapping[str, Path], points: CalibrationInputs, options: ExportOptions
) -> dict[str, OnnxCheck]:
    """Compare each file in ONNX Runtime with its model in torch.

    Raises:
        CoinExportError: as `compare`; names the file.
    """
    return {model.name: compare(files[model.name], model.module, model.signature, points, options) for model in models}
