"""Reader of the IDX format, in which MNIST and Fashion-MNIST are published (plain or gzip).

Source: "The IDX file format", Y. LeCun, C. Cortes, C. Burges, The MNIST database of handwritten digits.
"""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from coin_export.errors import CalibrationError

_UNSIGNED_BYTE = 0x08


def read_idx(path: Path) -> npt.NDArray[Any]:
    """Read one IDX file of unsigned bytes.

    Returns:
        A uint8 array of the shape that the file's header states.

    Raises:
        CalibrationError: if the file cannot be read, or is not an IDX file of unsigned bytes.
    """
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except (OSError, EOFError) as error:
        raise CalibrationError(f"{path}: cannot be read: {error}") from error
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != _UNSIGNED_BYTE:
        raise CalibrationError(f"{path}: not an IDX file of unsigned bytes")
    dimensions = content[3]
    header = 4 + 4 * dimensions
    shape = tuple(int.from_bytes(content[4 + 4 * axis : 8 + 4 * axis], "big") for axis in range(dimensions))
    if len(content) - header != int(np.prod(shape)):
        raise CalibrationError(
            f"{path}: the header promises shape {shape}, the file holds {len(content) - header} bytes"
        )
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape)
