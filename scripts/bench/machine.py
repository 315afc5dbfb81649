"""What a measurement was made on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from datetime import datetime, timezone
from pathlib import Path

_PACKAGES = ("coin-export", "tritonclient", "grpcio", "nvidia-pytriton", "onnxruntime", "onnxruntime-gpu", "numpy")


def describe() -> dict[str, object]:
    """Return processor, cores, versions, scheduling and the command, as plain data."""
    return {
        "command": " ".join(["python", *(os.path.relpath(part) if Path(part).exists() else part for part in sys.argv)]),
        "measured_at": datetime.now(timezone.utc).isoformat(timespec="minutes"),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "scheduling": {os.SCHED_OTHER: "ordinary", os.SCHED_RR: "real-time"}.get(os.sched_getscheduler(0), "other"),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: version for name in _PACKAGES if (version := _version(name))},
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
