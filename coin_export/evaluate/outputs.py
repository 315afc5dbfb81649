"""Outputs of an exported model on many inputs, by ONNX Runtime: exactly what will be served."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from coin_export.code.decode import Array
from coin_export.datasets.calibration import CalibrationInputs
from coin_export.export.verify import load_session

BATCH_SIZE = 64


def run_onnx(path: Path, inputs: CalibrationInputs) -> dict[str, Array]:
    """Run every point through the model at ``path`` and return its outputs by name, in the model's order."""
    session = load_session(path)
    names = [output.name for output in session.get_outputs()]
    batches = [session.run(names, batch) for batch in inputs.batches(BATCH_SIZE)]
    return {name: np.concatenate([batch[index] for batch in batches]) for index, name in enumerate(names)}
