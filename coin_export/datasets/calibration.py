"""Calibration inputs: named arrays that every model of a group can be asked."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from coin_export.errors import CalibrationError

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class CalibrationInputs:
    """Unlabeled inputs on which the combination of the originals is wanted.

    Attributes:
        arrays: by input name, in the order of the models' forward arguments; all with the same first dimension,
            the number of points.

    Raises:
        CalibrationError: if there is no array, no point, unequal numbers of points, NaN or infinity, or what is no
            number.
    """

    arrays: Mapping[str, Array]

    def __post_init__(self) -> None:
        if not self.arrays:
            raise CalibrationError("calibration inputs: no array was given; give one array per model input")
        for name, array in self.arrays.items():
            if array.ndim < 1 or array.shape[0] == 0:
                raise CalibrationError(
                    f"calibration input {name!r} has shape {array.shape} and holds no point; "
                    "its first dimension must be the number of points, at least one"
                )
            if array.dtype.kind not in "biufc":
                raise CalibrationError(f"calibration input {name!r} holds {array.dtype}; it must hold numbers")
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise CalibrationError(f"calibration input {name!r} contains NaN or infinity; remove those points")
        counts = {name: array.shape[0] for name, array in self.arrays.items()}
        if len(set(counts.values())) > 1:
            raise CalibrationError(f"calibration inputs differ in their number of points: {counts}")

    def __len__(self) -> int:
        return int(next(iter(self.arrays.values())).shape[0])

    def take(self, index: slice | npt.NDArray[np.intp]) -> CalibrationInputs:
        """Select points."""
        return CalibrationInputs({name: array[index] for name, array in self.arrays.items()})

    def batches(self, size: int) -> Iterator[dict[str, Array]]:
        """Yield successive batches of at most ``size`` points; the last may be smaller."""
        for start in range(0, len(self), size):
            yield {name: array[start : start + size] for name, array in self.arrays.items()}

    def split(self, held_out: float, seed: int) -> tuple[CalibrationInputs, CalibrationInputs]:
        """Split at random into a part to fit on and a held-out part, each of at least one point.

        Raises:
            CalibrationError: if there are fewer than two points.
        """
        if len(self) < 2:
            raise CalibrationError("calibration inputs: at least two points are needed to hold some out")
        order = np.random.default_rng(seed).permutation(len(self))
        count = min(max(1, round(held_out * len(self))), len(self) - 1)
        return self.take(np.sort(order[count:])), self.take(np.sort(order[:count]))

    def digest(self) -> str:
        """Return ``sha256:...`` over names, dtypes, shapes and contents."""
        state = hashlib.sha256()
        for name, array in self.arrays.items():
            state.update(f"{name}|{array.dtype.str}|{array.shape}|".encode())
            state.update(np.ascontiguousarray(array).data)
        return "sha256:" + state.hexdigest()
