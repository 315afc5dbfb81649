"""Statistics as files that a streaming merge reads: safetensors, with the mean of each tensor in the metadata."""

from __future__ import annotations

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


def write_statistics(fisher: DiagonalFisher, path: Path, tied: Mapping[str, str] | None = None) -> None:
    """Write statistics by parameter name, float32; a reader sees the whole file or none.

    Args:
        fisher: the statistics.
        path: of the file.
        tied: further names of tied weights, and the name under which the statistics have each.

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
        }
        save_file(fisher.diagonal, temporary, metadata=metadata)
        Path(temporary).replace(path)
    finally:
        Path(temporary).unlink(missing_ok=True)
