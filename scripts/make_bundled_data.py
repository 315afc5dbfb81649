"""Make the image subsets that ship with the package from the full MNIST and Fashion-MNIST.

    python scripts/make_bundled_data.py --data-dir DIR

DIR holds ``mnist/`` and ``fashion-mnist/``, each with the four published IDX files (gzip). The first images of each
class in the published order are taken, so nothing is chosen by hand; the same input gives the same bytes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt

from coin_export.datasets.idx import read_idx

TRAIN_PER_CLASS = 400
TEST_PER_CLASS = 100
SETS = {"mnist": "mnist", "fashion_mnist": "fashion-mnist"}
TARGET = Path(__file__).parent.parent / "coin_export" / "datasets" / "data"


def balanced(folder: Path, prefix: str, per_class: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Return the first ``per_class`` images and labels of each class, in the published order."""
    images = read_idx(folder / f"{prefix}-images-idx3-ubyte.gz")
    labels = read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz")
    chosen = np.sort(np.concatenate([np.flatnonzero(labels == label)[:per_class] for label in np.unique(labels)]))
    return images[chosen], labels[chosen]


def main() -> None:
    """Write one compressed file per set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, help="folder with mnist/ and fashion-mnist/")
    folder: Path = parser.parse_args().data_dir
    for name, source in SETS.items():
        train_images, train_labels = balanced(folder / source, "train", TRAIN_PER_CLASS)
        test_images, test_labels = balanced(folder / source, "t10k", TEST_PER_CLASS)
        path = TARGET / f"{name}.npz"
        np.savez_compressed(
            path,
            train_images=train_images,
            train_labels=train_labels,
            test_images=test_images,
            test_labels=test_labels,
        )
        print(f"{path}: {len(train_images)} train, {len(test_images)} test images, {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
