"""The version numbers of an ONNX file, read without loading its weights and without the onnx package.

A file is one protobuf message, ``ModelProto`` of onnx.proto: field 1 is the IR version, field 8 repeats the operator
sets (in each, field 1 is the domain and field 2 the version), field 7 holds the graph, which is skipped.
"""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

_VARINT, _FIXED_64, _BYTES, _FIXED_32 = 0, 1, 2, 5
_FIXED_SIZES = {_FIXED_64: 8, _FIXED_32: 4}
_MAX_READ = 4096


def read_versions(path: Path) -> tuple[int, int]:
    """Return the IR version and the opset of the default domain; 0 for one that is not given.

    Raises:
        ValueError: if the file is not a protobuf message.
        OSError: if it cannot be read.
    """
    ir_version, opset = 0, 0
    with path.open("rb") as file:
        for field, value in _fields(file):
            if field == 1 and isinstance(value, int):
                ir_version = value
            elif field == 8 and isinstance(value, bytes):
                opset = max(opset, _default_opset(value))
    return ir_version, opset


def _default_opset(message: bytes) -> int:
    domain, version = b"", 0
    for field, value in _fields(BytesIO(message)):
        if field == 1 and isinstance(value, bytes):
            domain = value
        elif field == 2 and isinstance(value, int):
            version = value
    return version if domain in (b"", b"ai.onnx") else 0


def _fields(stream: BinaryIO) -> Iterator[tuple[int, int | bytes]]:
    """Yield field numbers and values of one message; values too long for a version number come out empty."""
    while (key := _varint(stream, at_start=True)) is not None:
        field, wire_type = key >> 3, key & 7
        if wire_type == _VARINT:
            yield field, _required_varint(stream)
        elif wire_type == _BYTES:
            size = _required_varint(stream)
            yield field, _take(stream, size)
        elif wire_type in _FIXED_SIZES:
            stream.seek(_FIXED_SIZES[wire_type], 1)
        else:
            raise ValueError(f"wire type {wire_type} is none of protobuf's")


def _take(stream: BinaryIO, size: int) -> bytes:
    if size <= _MAX_READ:
        return stream.read(size)
    stream.seek(size, 1)
    return b""


def _required_varint(stream: BinaryIO) -> int:
    value = _varint(stream, at_start=False)
    if value is None:
        raise ValueError("the file ends within a field")
    return value


def _varint(stream: BinaryIO, *, at_start: bool) -> int | None:
    """Read one variable-length integer; None at the end of the stream, where that is allowed."""
    value = 0
    for shift in range(0, 70, 7):
        byte = stream.read(1)
        if not byte:
            if at_start and shift == 0:
                return None
            raise ValueError("the file ends within a number")
        value |= (byte[0] & 0x7F) << shift
        if not byte[0] & 0x80:
            return value
    raise ValueError("a number is longer than 64 bits")
