"""Fisher statistics kept on disk under a digest of all that they depend on."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from coin_export.datasets.calibration import CalibrationInputs
from coin_export.errors import BuildError
from coin_export.fisher.diagonal import DiagonalFisher, diagonal_fisher
from coin_export.fisher.identity import module_digest
from coin_export.fisher.options import FisherOptions
from coin_export.model.signature import Original
from coin_export.model.state import state_digest

# Part of every digest: raise it when the same options come to mean other statistics.
_VERSION = 2
_CONTENT = "content"


def cached_diagonal_fisher(
    original: Original, calibration: CalibrationInputs, options: FisherOptions, folder: Path | None
) -> DiagonalFisher:
    """Return the statistics that ``folder`` holds for exactly these arguments, or compute and keep them.

    A file that is corrupt counts as absent. Files are written to a temporary name and renamed, so that processes may
    share the folder. With ``folder`` None nothing is kept.

    Raises:
        BuildError: if the folder cannot be written.
        CoinExportError: as `diagonal_fisher`.
    """
    if folder is None:
        return diagonal_fisher(original, calibration, options)
    path = folder / f"fisher-{statistics_digest(original, calibration, options)}.safetensors"
    diagonal = _read(path)
    if diagonal is not None:
        return DiagonalFisher(diagonal, len(calibration), 0, 0)
    fisher = diagonal_fisher(original, calibration, options)
    try:
        _write(path, fisher.diagonal)
    except (OSError, SafetensorError) as error:
        raise BuildError(f"statistics cannot be kept in {folder}: {error}; choose another cache folder") from error
    return fisher


def statistics_digest(original: Original, calibration: CalibrationInputs, options: FisherOptions) -> str:
    """Return a hexadecimal digest of the module (see `identity`), the inputs and the options.

    The batch size is left out: it does not change the result.
    """
    content = [
        _VERSION,
        module_digest(original.module),
        calibration.digest(),
        repr(original.signature),
        options.model_dump(mode="json", exclude={"batch_size"}),
    ]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _read(path: Path) -> dict[str, torch.Tensor] | None:
    try:
        with safe_open(path, framework="pt") as file:
            diagonal = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no dict
            metadata = file.metadata() or {}
    except (OSError, SafetensorError):
        return None
    return diagonal if metadata.get(_CONTENT) == state_digest(diagonal) else None


def _write(path: Path, diagonal: dict[str, torch.Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".part")
    os.close(handle)
    try:
        save_file(diagonal, temporary, metadata={_CONTENT: state_digest(diagonal)})
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
