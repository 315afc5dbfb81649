"""The contract of every encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

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


class Encoder(Protocol):
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
