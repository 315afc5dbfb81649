"""Statistics as files that a streaming merge reads: safetensors, with the mean of each tensor in the metadata.

The metadata also say of what they are, so that a merge can tell when it is given those of other weights.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from coin_export.fisher.diagonal import DiagonalFisher

MEANS_KEY = "coin_export.means"
POINTS_KEY = "coin_export.points"
TIED_KEY = "coin_export.tied"
WEIGHTS_KEY = "coin_export.weights"
INPUTS_KEY = "coin_export.inputs"
FINGERPRINTED = 1024  # elements of a tensor, the first ones: training changes all


def fingerprint(first: torch.Tensor) -> str:
    """Return what tells a tensor of weights from others, from its first `FINGERPRINTED` elements or fewer.

    It is the same in every precision that holds these values exactly.
    """
    values = first.detach().flatten()[:FINGERPRINTED].to("cpu", torch.float32)
    return hashlib.sha256(values.numpy().tobytes()).hexdigest()[:16]


def write_statistics(
    fisher: DiagonalFisher,
    path: Path,
    tied: Mapping[str, str] | None = None,
    weights: Mapping[str, torch.Tensor] | None = None,
    inputs: str = "",
) -> None:
    """Write statistics by parameter name, float32; a reader sees the whole file or none.

    Args:
        fisher: the statistics.
        path: of the file.
        tied: further names of tied weights, and the name under which the statistics have each.
        weights: of the model, by parameter name; without them a merge cannot check whose statistics they are.
        inputs: digest of the calibration inputs; without it a merge cannot check that all models had the same.

    Raises:
        OSError: if the file cannot be written; nothing is left of it then.
    """
    means = {
        name: float(tensor.sum(dtype=torch.float64)) / max(1, tensor.numel())
        for name, tensor in fisher.diagonal.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        metadata = {
            MEANS_KEY: json.dumps(means),
            POINTS_KEY: str(fisher.points),
            TIED_KEY: json.dumps(dict(tied or {})),
            WEIGHTS_KEY: json.dumps({name: fingerprint(tensor) for name, tensor in (weights or {}).items()}),
            INPUTS_KEY: inputs,
        }
        save_file(fisher.diagonal, temporary, metadata=metadata)
        Path(temporary).replace(path)
    finally:
        Path(temporary).unlink(missing_ok=True)
