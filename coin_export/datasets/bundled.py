"""The real images that ship with the package: balanced subsets of MNIST and Fashion-MNIST.

Made by ``scripts/make_bundled_data.py``; licences and origin stand beside the files in ``data/``.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np
import numpy.typing as npt

NAMES = ("mnist", "fashion_mnist")


@dataclass(frozen=True, eq=False)
class ImageSet:
    """A labelled image set.

    Attributes:
        name: one of ``NAMES``.
        train_images: float32 in [0, 1], shape (points, 1, 28, 28).
        train_labels: int64, shape (points,).
        test_images: as ``train_images``.
        test_labels: as ``train_labels``.
    """

    name: str
    train_images: npt.NDArray[np.float32]
    train_labels: npt.NDArray[np.int64]
    test_images: npt.NDArray[np.float32]
    test_labels: npt.NDArray[np.int64]


def load(name: str) -> ImageSet:
    """Load a bundled set by name, one of ``NAMES``."""
    file = resources.files("coin_export.datasets") / "data" / f"{name}.npz"
    with file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
        return ImageSet(
            name,
            _scaled(arrays["train_images"]),
            arrays["train_labels"].astype(np.int64),
            _scaled(arrays["test_images"]),
            arrays["test_labels"].astype(np.int64),
        )


def _scaled(images: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    return images[:, None].astype(np.float32) / np.float32(255)
