"""Checkpoints in safetensors, one file or several with an index, of which slices are read without loading the rest.

The format: eight bytes with the length of a JSON header, the header, then the tensors' bytes. The header gives each
tensor's dtype, shape and place behind it (https://huggingface.co/docs/safetensors).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from coin_export.errors import ModelError

INDEX_SUFFIX = ".safetensors.index.json"
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_MOST_HEADER_BYTES = 100_000_000  # the format's own limit


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor is.

    Attributes:
        name: its name.
        dtype: as the format calls it.
        shape: its shape.
        file: the place of its file in `Checkpoint.files`.
        offset: of its first byte in the file.
        size: bytes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: int
    offset: int
    size: int


class Checkpoint:
    """An open checkpoint. A context manager that closes its files.

    Args:
        path: a ``.safetensors`` file, an ``.safetensors.index.json``, or a folder that holds one of the two.

    Attributes:
        path: the file or index.
        files: its files, in the order of their names.
        tensors: by name.
        metadata: of each file.

    Raises:
        ModelError: if a file is missing, no safetensors, cut short, or does not hold what the index says.
    """

    def __init__(self, path: Path) -> None:
        self.path = _located(path)
        self.files = _files(self.path)
        self.tensors: dict[str, StoredTensor] = {}
        self.metadata: list[Mapping[str, str]] = []
        self._descriptors: list[int] = []
        try:
            for number, file in enumerate(self.files):
                self._open(number, file)
            _check_index(self.path, self.tensors, self.files)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the files; may be repeated."""
        while self._descriptors:
            os.close(self._descriptors.pop())

    @property
    def is_sharded(self) -> bool:
        """Whether an index names the files."""
        return self.path.name.endswith(INDEX_SUFFIX)

    def read_into(self, buffer: memoryview, tensor: StoredTensor, start: int) -> None:
        """Fill ``buffer`` with a tensor's bytes from byte ``start`` on; threads may read at the same time.

        Raises:
            ModelError: if the file ends too early.
        """
        done = 0
        while done < len(buffer):
            count = os.preadv(self._descriptors[tensor.file], [buffer[done:]], tensor.offset + start + done)
            if count == 0:
                raise ModelError(f"{self.files[tensor.file]}: ends inside {tensor.name!r}; it was cut while being read")
            done += count

    def _open(self, number: int, file: Path) -> None:
        try:
            self._descriptors.append(os.open(file, os.O_RDONLY))
            size = os.fstat(self._descriptors[-1]).st_size
        except OSError as error:
            raise ModelError(f"{file}: cannot be read: {error.strerror}") from error
        try:
            header, begin = _header(self._descriptors[-1], size)
            self.metadata.append(dict(header.pop("__metadata__", {})))
            for name, item in header.items():
                first, last = map(int, item["data_offsets"])
                shape = tuple(map(int, item["shape"]))
                found = StoredTensor(name, str(item["dtype"]), shape, number, begin + first, last - first)
                _check(found, size)
                if name in self.tensors:
                    raise ValueError(f"tensor {name!r} is in another file too")
                self.tensors[name] = found
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(f"{file}: not a valid safetensors file: {error}") from error


def _located(path: Path) -> Path:
    if not path.is_dir():
        return path
    found = sorted(path.glob(f"*{INDEX_SUFFIX}")) or sorted(path.glob("*.safetensors"))
    if len(found) != 1:
        raise ModelError(f"{path}: holds {len(found)} checkpoints in safetensors; name the file or the index to use")
    return found[0]


def _files(path: Path) -> Sequence[Path]:
    if not path.name.endswith(INDEX_SUFFIX):
        return (path,)
    return tuple(path.parent / name for name in sorted(set(_weight_map(path).values())))


def _weight_map(path: Path) -> dict[str, str]:
    try:
        weights: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        names = set(weights.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path}: not an index of a sharded checkpoint: {error}") from error
    if any(Path(name).name != name for name in names):
        raise ModelError(f"{path}: names files in other folders; the shards must be beside the index")
    return weights


def _check_index(path: Path, tensors: Mapping[str, StoredTensor], files: Sequence[Path]) -> None:
    if not path.name.endswith(INDEX_SUFFIX):
        return
    held = {name: files[tensor.file].name for name, tensor in tensors.items()}
    listed = _weight_map(path)
    differing = sorted(name for name in held | listed if held.get(name) != listed.get(name))
    if differing:
        raise ModelError(f"{path}: the index and the files disagree about {', '.join(differing[:5])}; save them again")


def _header(descriptor: int, size: int) -> tuple[dict[str, Any], int]:
    length = int.from_bytes(os.pread(descriptor, 8, 0), "little")
    if size < 8 or length > min(size - 8, _MOST_HEADER_BYTES):
        raise ValueError("its header is longer than the file")
    header = json.loads(os.pread(descriptor, length, 8))
    if not isinstance(header, dict):
        raise ValueError("its header is no mapping")
    return header, 8 + length


def _check(tensor: StoredTensor, file_size: int) -> None:
    if tensor.dtype not in DTYPES:
        raise ValueError(f"tensor {tensor.name!r} is {tensor.dtype}, which cannot be merged")
    expected = torch.Size(tensor.shape).numel() * DTYPES[tensor.dtype].itemsize
    if tensor.size != expected or tensor.offset + tensor.size > file_size:
        raise ValueError(f"tensor {tensor.name!r} does not fit: the file was cut short or is damaged")
