"""The demonstration's group: a network trained on each set of images from one start, and coded."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from coin_export.datasets.bundled import ImageSet
from coin_export.datasets.calibration import CalibrationInputs
from coin_export.demo.phases import INPUT, OUTPUT
from coin_export.demo.training import common_start, train
from coin_export.pipeline import BuildReport, Labelled, build_group
from coin_export.recipe import BuildOptions

EPOCHS = 6
_SEED = 0


def train_side_by_side(
    sets: Mapping[str, ImageSet], on_epoch: Callable[[], object] = lambda: None
) -> dict[str, torch.nn.Module]:
    """Train the network once for each set of images, `EPOCHS` epochs each, in threads; return them by the sets' names.

    ``on_epoch`` is called after each epoch of each network, in that network's thread.
    """
    start = common_start(_SEED)
    stop = threading.Event()
    with ThreadPoolExecutor() as threads:
        try:
            jobs = {
                name: threads.submit(train, copy.deepcopy(start), images, EPOCHS, _SEED, on_epoch, stop.is_set)
                for name, images in sets.items()
            }
            return {name: job.result() for name, job in jobs.items()}
        finally:
            stop.set()  # an interrupt ends the threads at their next batch


def build_on_images(
    group: str,
    models: Mapping[str, torch.nn.Module],
    sets: Mapping[str, ImageSet],
    repository: Path,
    *,
    encoder: Mapping[str, object],
    points_per_set: int,
    progress: Callable[[str], None] = lambda message: None,
) -> BuildReport:
    """Calibrate on training images of all sets, without their labels; evaluate on the test parts.

    Args:
        group: the group's name.
        models: the originals, trained.
        sets: the images of each original, by the same names.
        repository: where to write.
        encoder: name and options of the encoder, as in a recipe.
        points_per_set: how many training images of each set are calibration inputs.
        progress: is told which stage runs.

    Raises:
        CoinExportError: as `build_group`.
    """
    calibration = np.concatenate([images.train_images[:points_per_set] for images in sets.values()])
    options = {"encoder": dict(encoder), "outputs": (OUTPUT,), "seed": _SEED}
    return build_group(
        group,
        models,
        CalibrationInputs({INPUT: calibration}),
        repository,
        options=BuildOptions.model_validate(options),
        evaluation={
            name: Labelled(CalibrationInputs({INPUT: images.test_images}), images.test_labels)
            for name, images in sets.items()
        },
        progress=progress,
    )
