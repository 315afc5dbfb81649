"""Measuring what an encoding takes."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from coin_export.encode.encoding import EncodeCost, Encoding, StateDict


@dataclass
class Passes:
    """Counts points pushed forward and backward through networks, as `EncodeCost` wants them."""

    forward: int = 0
    backward: int = 0

    def add(self, cost: EncodeCost) -> None:
        """Add the passes of an encoding that was part of the work."""
        self.forward += cost.forward_passes
        self.backward += cost.backward_passes


class CostMeter:
    """Started when made; `cost` tells what has been spent since."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._peak = _peak_resident_bytes()

    def cost(self, forward_passes: int = 0, backward_passes: int = 0) -> EncodeCost:
        """Return the cost so far, with passes as counted by the encoder."""
        return EncodeCost(
            seconds=time.perf_counter() - self._start,
            forward_passes=forward_passes,
            backward_passes=backward_passes,
            peak_memory_bytes=_peak_resident_bytes() - self._peak,
        )

    def share(self, states: Sequence[StateDict], passes: Passes, notes: Mapping[str, Any]) -> list[Encoding]:
        """Return encodings that were made together, with equal shares of the cost so far and the same notes."""
        total, count = self.cost(passes.forward, passes.backward), len(states)
        costs = [
            replace(
                total,
                seconds=total.seconds / count,
                forward_passes=total.forward_passes // count + (index < total.forward_passes % count),
                backward_passes=total.backward_passes // count + (index < total.backward_passes % count),
            )
            for index in range(count)
        ]
        return [Encoding(state, cost, notes) for state, cost in zip(states, costs, strict=True)]


def _peak_resident_bytes() -> int:
    """Return the process's peak resident memory; 0 where the system does not tell."""
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, others KiB
