"""Writing safetensors in a stream: the header first, then slices wherever they belong. Whole, or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from coin_export.merge.checkpoint import Checkpoint, StoredTensor

_ALIGNMENT = 8


class Output:
    """New files with the tensors, metadata and names of another checkpoint, and contents of their own."""

    def __init__(self, like: Checkpoint, paths: Sequence[Path]) -> None:
        self._descriptors: list[int] = []
        self._offsets: dict[str, int] = {}
        for number, path in enumerate(paths):
            tensors = [tensor for tensor in like.tensors.values() if tensor.file == number]
            self._descriptors.append(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644))
            self._begin(number, tensors, like.metadata[number])

    def close(self) -> None:
        """Close the files."""
        while self._descriptors:
            os.close(self._descriptors.pop())

    def write(self, data: memoryview, tensor: StoredTensor, start: int) -> None:
        """Write a tensor's bytes from byte ``start`` on; threads may write at the same time.

        Raises:
            OSError: if there is no room.
        """
        done = 0
        while done < len(data):
            position = self._offsets[tensor.name] + start + done
            done += os.pwrite(self._descriptors[tensor.file], data[done:], position)

    def _begin(self, number: int, tensors: Sequence[StoredTensor], metadata: Mapping[str, str]) -> None:
        header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
        end = 0
        for tensor in tensors:
            place = [end, end + tensor.size]
            header[tensor.name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": place}
            self._offsets[tensor.name], end = end, end + tensor.size
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % _ALIGNMENT)
        whole = len(text).to_bytes(8, "little") + text
        os.pwrite(self._descriptors[number], whole, 0)
        os.ftruncate(self._descriptors[number], len(whole) + end)
        for tensor in tensors:
            self._offsets[tensor.name] += len(whole)


@contextmanager
def writing(target: Path, like: Checkpoint) -> Iterator[Output]:
    """Write a checkpoint of the form of ``like``; it appears under its name when the block ends without an exception.

    Args:
        target: a file for a checkpoint of one file; a folder for a sharded one; its shards keep their names.
        like: gives tensors, shards and metadata.

    Raises:
        OSError: if it cannot be written, or a sharded checkpoint's folder exists; nothing new is there then.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        if like.is_sharded and target.exists():
            raise FileExistsError(f"{target} exists; a sharded checkpoint is written to a new folder")
        output = Output(like, [stage / file.name for file in like.files])
        try:
            yield output
        finally:
            output.close()
        if like.is_sharded:
            shutil.copyfile(like.path, stage / like.path.name)
            stage.chmod(0o755)
            stage.rename(target)
        else:
            (stage / like.files[0].name).replace(target)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
