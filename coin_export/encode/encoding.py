"""The contract of the encoders."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from pydantic_core import to_jsonable_python

from coin_export.code.linear import LinearCode
from coin_export.datasets.calibration import CalibrationInputs
from coin_export.model.signature import Original

StateDict = dict[str, torch.Tensor]


@dataclass(frozen=True)
class EncodeCost:
    """What an encoding took.

    Attributes:
        seconds: wall-clock time.
        forward_passes: calibration points pushed forward through a network, each counted once per network.
        backward_passes: the same, backward.
        peak_memory_bytes: growth of the process's peak resident memory while it ran; 0 when it did not grow.
    """

    seconds: float
    forward_passes: int
    backward_passes: int
    peak_memory_bytes: int


@dataclass(frozen=True, eq=False)
class Encoding:
    """Coded weights and the record of how they were made.

    Attributes:
        state_dict: loads with ``strict=True`` into a module of the originals' architecture.
        cost: what it took.
        notes: short facts worth telling the user, by key (a chosen start, a held-out error, ...).
    """

    state_dict: StateDict
    cost: EncodeCost
    notes: Mapping[str, Any] = field(default_factory=dict)


def plain_notes(notes: Mapping[str, Any]) -> dict[str, Any]:
    """Return notes as JSON has them; what is not finite, as the error of a descent that diverged, becomes None."""
    plain: dict[str, Any] = to_jsonable_python(notes, inf_nan_mode="null")
    return plain


class RowEncoder(Protocol):
    """A function that makes one coded model; it never sees a label."""

    def __call__(
        self,
        originals: Sequence[Original],
        coefficients: Sequence[float],
        calibration: CalibrationInputs,
        options: Any,
        cache: Path | None = None,
    ) -> Encoding:
        """Encode one row of the code.

        Args:
            originals: k models of one architecture, in eval mode; they are left as they are.
            coefficients: k positive numbers that sum to one.
            calibration: unlabeled inputs.
            options: the encoder's own options.
            cache: folder for statistics worth keeping, between the rows of a code or between builds.
        """
        ...


class Encoder(Protocol):
    """A function that makes all coded models of a code, which may depend on each other; it never sees a label."""

    def __call__(
        self,
        originals: Sequence[Original],
        code: LinearCode,
        calibration: CalibrationInputs,
        options: Any,
        cache: Path | None = None,
    ) -> list[Encoding]:
        """Encode every row of the code; see `RowEncoder`."""
        ...


def row_by_row(encoder: RowEncoder) -> Encoder:
    """Make an encoder that encodes each row on its own; statistics are computed once for all rows."""

    def encode(
        originals: Sequence[Original],
        code: LinearCode,
        calibration: CalibrationInputs,
        options: Any,
        cache: Path | None = None,
    ) -> list[Encoding]:
        if cache is not None or code.m == 1:
            return [encoder(originals, row, calibration, options, cache) for row in code.parities]
        with tempfile.TemporaryDirectory(prefix="coin_export_statistics_") as folder:
            return [encoder(originals, row, calibration, options, Path(folder)) for row in code.parities]

    return encode
