"""Readers of the public data sets, in the formats in which a data folder holds them.

mnist/, fashion-mnist/   gzip IDX, as published
cifar10/                 cifar10_jpeg_packed.npz: all images as JPEG streams, one after the other, and their offsets
text/                    TREC.train.all, TREC.test.all, subj.all: one "label sentence" a line, latin-1
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from coin_export.datasets.calibration import Array
from coin_export.datasets.idx import read_idx
from coin_export.errors import CalibrationError

IDX_SETS = ("mnist", "fashion-mnist")

_SUBJ_SHUFFLE = 0  # the file is sorted by label and has no split; its order is drawn once, from this seed


@dataclass(frozen=True, eq=False)
class Images:
    """Labelled images: uint8 of shape (points, height, width) or (points, height, width, 3)."""

    pixels: Array
    labels: Array


@dataclass(frozen=True, eq=False)
class Sentences:
    """Labelled sentences."""

    texts: Sequence[str]
    labels: Array


def read_idx_images(folder: Path, part: str) -> Images:
    """Read the ``train`` or ``test`` part of MNIST or Fashion-MNIST.

    Raises:
        CalibrationError: if a file is missing or malformed.
    """
    prefix = {"train": "train", "test": "t10k"}[part]
    return Images(
        read_idx(folder / f"{prefix}-images-idx3-ubyte.gz"), read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz")
    )


def read_packed_images(path: Path, part: str) -> Images:
    """Decode the ``train`` or ``test`` part of an archive of JPEG streams.

    The archive holds, for each part, ``jpeg_PART`` (uint8, the streams one after the other), ``offset_PART`` (where
    each begins, and the end of the last) and ``y_PART``.

    Raises:
        CalibrationError: if the file cannot be read as such an archive.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            streams, offsets = archive[f"jpeg_{part}"].tobytes(), archive[f"offset_{part}"].tolist()
            labels = archive[f"y_{part}"]
        pixels = [_decoded(streams[start:end]) for start, end in pairwise(offsets)]
    except (OSError, KeyError, ValueError) as error:
        raise CalibrationError(f"{path}: not an archive of packed JPEG images: {error}") from error
    return Images(np.stack(pixels), labels)


def _decoded(stream: bytes) -> Array:
    with Image.open(io.BytesIO(stream)) as image:
        return np.asarray(image.convert("RGB"))


def read_trec(folder: Path, part: str) -> Sentences:
    """Read the ``train`` or ``test`` part of TREC: questions of six classes."""
    return _read_sentences(folder / f"TREC.{part}.all")


def read_subj(folder: Path, part: str, test_points: int = 1000) -> Sentences:
    """Read SUBJ, subjective and objective sentences; ``test`` is the last ``test_points`` of a fixed random order."""
    everything = _read_sentences(folder / "subj.all")
    order = np.random.default_rng(_SUBJ_SHUFFLE).permutation(len(everything.texts))
    chosen = order[-test_points:] if part == "test" else order[:-test_points]
    return Sentences([everything.texts[index] for index in chosen], everything.labels[chosen])


def _read_sentences(path: Path) -> Sentences:
    try:
        lines = path.read_text(encoding="latin-1").split("\n")  # splitlines() also splits at latin-1 control bytes
        pairs = [line.split(" ", 1) for line in lines if line.strip()]
        return Sentences([text.strip() for _, text in pairs], np.array([int(label) for label, _ in pairs]))
    except (OSError, ValueError) as error:
        raise CalibrationError(f'{path}: not a file of "label sentence" lines: {error}') from error
