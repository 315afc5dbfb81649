"""How much a piece of work makes the process grow at its peak."""

from __future__ import annotations

import ctypes
from pathlib import Path

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # proc(5): set the peak resident set size to what is resident now


class PeakMemory:
    """Gives freed memory back to the system and forgets earlier peaks when made; Linux only."""

    def __init__(self) -> None:
        self._known = _CLEAR.exists()
        if self._known:
            _give_back()
            _CLEAR.write_text(_RESET_PEAK, encoding="ascii")
            self._before = _resident_bytes("VmRSS")

    def grown_bytes(self) -> int | None:
        """Return the peak since then, less what was resident then; None where the system does not tell."""
        return _resident_bytes("VmHWM") - self._before if self._known else None


def _give_back() -> None:
    """Return what earlier work has freed, which would hide as much of the growth to come; glibc only."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _resident_bytes(key: str) -> int:
    lines = _STATUS.read_text(encoding="ascii").splitlines()
    (line,) = [line for line in lines if line.startswith(f"{key}:")]
    return 1024 * int(line.split()[1])
