"""The coded group that the benchmarks serve: the demonstration's two networks and a coded one, on real images."""

from __future__ import annotations

from pathlib import Path

from coin_export.code.manifest import Group
from coin_export.datasets.bundled import NAMES
from coin_export.repository.layout import read_repository

NAME = "bench"
INPUT, OUTPUT = "image", "logits"
DATA_SETS = NAMES


def coded_group(repository: Path) -> Group:
    """Return the group in ``repository``; it is trained, coded and written there if it is not yet."""
    if not repository.exists():
        from scripts.bench.building import build

        build(NAME, DATA_SETS, (INPUT, OUTPUT), repository)
    return read_repository(repository).group(NAME)
