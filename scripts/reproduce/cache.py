"""What takes long, kept on disk under a digest of what determines it; a file is there as a whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from coin_export.code.decode import Array

T = TypeVar("T")
State = dict[str, torch.Tensor]


def kept_json(path: Path, make: Callable[[], Any]) -> Any:
    """Return plain data, made only once."""

    def write(path: Path, value: Any) -> None:
        path.write_text(json.dumps(value, allow_nan=False) + "\n", encoding="utf-8")

    return _kept(path, lambda path: json.loads(path.read_text("utf-8")), write, make)


def kept_state(path: Path, make: Callable[[], State]) -> State:
    """Return weights, made only once."""

    def write(path: Path, state: State) -> None:
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)

    return _kept(path, load_file, write, make)


def kept_arrays(path: Path, make: Callable[[], dict[str, Array]]) -> dict[str, Array]:
    """Return arrays, made only once."""

    def read(path: Path) -> dict[str, Array]:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}

    def write(path: Path, value: dict[str, Array]) -> None:
        np.savez(path, **value)

    return _kept(path, read, write, make)


def path_of(folder: Path, title: str, key: Any, suffix: str) -> Path:
    """Return where to keep what ``key``, plain data, determines."""
    text = json.dumps(key, sort_keys=True)
    return folder / f"{title}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.{suffix}"


def _kept(path: Path, read: Callable[[Path], T], write: Callable[[Path, T], None], make: Callable[[], T]) -> T:
    if path.exists():
        return read(path)
    value = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{os.getpid()}-{path.name}")  # keeps its suffix, which numpy would append
    try:
        write(beside, value)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    return value
