"""The coded group that the benchmarks serve: the demonstration's two networks and a coded one, on real images."""

from __future__ import annotations

from pathlib import Path

from coin_export.code.manifest import Group
from coin_export.datasets import bundled
from coin_export.demo.phases import INPUT, OUTPUT
from coin_export.repository.layout import read_repository

__all__ = ["DATA_SETS", "INPUT", "OUTPUT", "coded_group"]

DATA_SETS = bundled.NAMES

_NAME = "bench"
_POINTS_PER_SET = 4000
_BUDGET = 128_000  # a server that is lost for good is decoded for all that follows, so the quality counts


def coded_group(repository: Path) -> Group:
    """Return the group in ``repository``; it is trained, coded and written there if it is not yet."""
    if not repository.exists():
        from coin_export.demo.group import build_on_images, train_side_by_side  # only this needs torch

        sets = {name: bundled.load(name) for name in DATA_SETS}
        encoder = {"name": "refine", "budget": _BUDGET}
        models = train_side_by_side(sets)
        build_on_images(_NAME, models, sets, repository, encoder=encoder, points_per_set=_POINTS_PER_SET)
    return read_repository(repository).group(_NAME)
