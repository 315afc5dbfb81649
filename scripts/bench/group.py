"""The coded group that the benchmarks serve: the demonstration's two networks and a coded one, on real images."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np

from coin_export.code.manifest import Group
from coin_export.datasets import bundled
from coin_export.datasets.calibration import CalibrationInputs
from coin_export.demo.training import common_start, train
from coin_export.pipeline import Labelled, build_group
from coin_export.recipe import BuildOptions
from coin_export.repository.layout import read_repository

NAME = "bench"
INPUT, OUTPUT = "image", "logits"
DATA_SETS = bundled.NAMES

_EPOCHS = 6
_POINTS_PER_SET = 4000
_STEPS = 4000  # a server that is lost for good is decoded for all that follows, so its quality counts
_SEED = 0


def coded_group(repository: Path) -> Group:
    """Return the group in ``repository``; it is trained, coded with ``refine`` and written there if it is not yet."""
    if not repository.exists():
        _build(repository)
    return read_repository(repository).group(NAME)


def _build(repository: Path) -> None:
    sets = {name: bundled.load(name) for name in DATA_SETS}
    start = common_start(_SEED)
    models = {name: train(copy.deepcopy(start), images, _EPOCHS, _SEED) for name, images in sets.items()}
    calibration = np.concatenate([images.train_images[:_POINTS_PER_SET] for images in sets.values()])
    options = {"encoder": {"name": "refine", "steps": _STEPS}, "outputs": (OUTPUT,), "seed": _SEED}
    build_group(
        NAME,
        models,
        CalibrationInputs({INPUT: calibration}),
        repository,
        options=BuildOptions.model_validate(options),
        evaluation={
            name: Labelled(CalibrationInputs({INPUT: images.test_images}), images.test_labels)
            for name, images in sets.items()
        },
    )
