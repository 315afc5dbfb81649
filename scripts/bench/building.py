"""Training and coding of the group that the benchmarks serve; apart, since only this needs torch."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from coin_export.datasets import bundled
from coin_export.datasets.calibration import CalibrationInputs
from coin_export.demo.training import common_start, train
from coin_export.pipeline import Labelled, build_group
from coin_export.recipe import BuildOptions

_EPOCHS = 6
_POINTS_PER_SET = 4000
_BUDGET = 128_000  # a server that is lost for good is decoded for all that follows, so the quality counts
_SEED = 0


def build(group: str, data_sets: Sequence[str], tensors: tuple[str, str], repository: Path) -> None:
    """Train the demonstration's network once for each data set, code with ``refine`` and write the repository.

    Args:
        group: the group's name.
        data_sets: bundled ones; they name the models.
        tensors: names of the input and of the output.
        repository: where to write.
    """
    sets = {name: bundled.load(name) for name in data_sets}
    start = common_start(_SEED)
    models = {name: train(copy.deepcopy(start), images, _EPOCHS, _SEED) for name, images in sets.items()}
    calibration = np.concatenate([images.train_images[:_POINTS_PER_SET] for images in sets.values()])
    image, logits = tensors
    options = {"encoder": {"name": "refine", "budget": _BUDGET}, "outputs": (logits,), "seed": _SEED}
    build_group(
        group,
        models,
        CalibrationInputs({image: calibration}),
        repository,
        options=BuildOptions.model_validate(options),
        evaluation={
            name: Labelled(CalibrationInputs({image: images.test_images}), images.test_labels)
            for name, images in sets.items()
        },
    )
