"""Reading inputs and labels that a user names: array files, or an importable iterable of batches."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from coin_export.datasets.calibration import Array, CalibrationInputs
from coin_export.errors import CalibrationError

DEFAULT_INPUT_NAME = "input"


def read_arrays(path: Path) -> dict[str, Array]:
    """Read the arrays of a ``.npz``, ``.npy`` or ``.safetensors`` file by name; nothing is ever unpickled.

    The single array of a ``.npy`` file is named ``input``.

    Raises:
        CalibrationError: if the file is missing, of another kind, broken, or holds pickled objects.
    """
    if not path.is_file():
        raise CalibrationError(f"{path}: no such file")
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files}
        if path.suffix == ".npy":
            return {DEFAULT_INPUT_NAME: np.load(path, allow_pickle=False)}
        if path.suffix == ".safetensors":
            from safetensors import SafetensorError
            from safetensors.numpy import load_file

            try:
                return dict(load_file(path))
            except SafetensorError as error:
                raise CalibrationError(f"{path}: not a valid safetensors file: {error}") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise CalibrationError(f"{path}: cannot be read as {path.suffix}: {error}") from error
    raise CalibrationError(f"{path}: of an unknown kind; give a .npz, .npy or .safetensors file")


def select_inputs(arrays: Mapping[str, Array], names: Sequence[str] | None, where: str) -> CalibrationInputs:
    """Pick and order the arrays that are model inputs.

    Args:
        arrays: what a file holds, by name.
        names: the inputs in the order of the models' forward arguments; None takes all arrays as they come. A single
            array may have any name.
        where: the file, for error messages.

    Raises:
        CalibrationError: if a named array is missing.
    """
    if names is None:
        return CalibrationInputs(dict(arrays))
    if len(names) == 1 and len(arrays) == 1:
        return CalibrationInputs({names[0]: next(iter(arrays.values()))})
    missing = [name for name in names if name not in arrays]
    if missing:
        raise CalibrationError(f"{where}: no array named {missing[0]!r}; it holds {sorted(arrays)}")
    return CalibrationInputs({name: arrays[name] for name in names})


def collect_batches(batches: object, names: Sequence[str] | None, where: str) -> CalibrationInputs:
    """Gather an iterable of batches into arrays.

    Args:
        batches: an iterable, or a callable without arguments that returns one. Each item is one batch: an array or
            tensor, a mapping by input name, or a tuple in the order of ``names``, of which surplus entries (labels,
            as a data loader yields them) are dropped.
        names: the inputs in the order of the models' forward arguments; None means the one input ``input``.
        where: the import path, for error messages.

    Raises:
        CalibrationError: if it is no iterable of such batches, or they do not fit together.
    """
    iterable = batches() if callable(batches) else batches
    if not isinstance(iterable, Iterable):
        raise CalibrationError(f"{where}: is a {type(iterable).__name__}; it must be an iterable of batches")
    wanted = list(names or [DEFAULT_INPUT_NAME])
    parts: dict[str, list[Array]] = {name: [] for name in wanted}
    for number, batch in enumerate(iterable):
        for name, value in _named(batch, wanted, f"{where}: batch {number}").items():
            parts[name].append(np.asarray(value))
    if not parts[wanted[0]]:
        raise CalibrationError(f"{where}: yielded no batch")
    try:
        return CalibrationInputs({name: np.concatenate(arrays) for name, arrays in parts.items()})
    except ValueError as error:
        raise CalibrationError(f"{where}: the batches do not fit together: {error}") from error


def _named(batch: Any, names: Sequence[str], where: str) -> dict[str, Any]:
    if isinstance(batch, Mapping):
        missing = [name for name in names if name not in batch]
        if missing:
            raise CalibrationError(f"{where}: no input named {missing[0]!r}; it has {sorted(map(str, batch))}")
        return {name: batch[name] for name in names}
    values = batch if isinstance(batch, (tuple, list)) else (batch,)
    if len(values) < len(names):
        raise CalibrationError(f"{where}: has {len(values)} entries; the inputs are {list(names)}")
    return dict(zip(names, values, strict=False))
