"""The tasks on which originals are trained, as the networks take them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from coin_export.code.decode import Array
from scripts.reproduce.cache import kept_arrays, path_of
from scripts.reproduce.networks import NetworkKind
from scripts.reproduce.readers import (
    IDX_SETS,
    Images,
    Sentences,
    read_idx_images,
    read_packed_images,
    read_subj,
    read_trec,
)

LONGEST_SENTENCE = 24  # tokens; longer ones are cut
CLASSES: Mapping[str, int] = {"mnist": 10, "fashion-mnist": 10, "cifar10": 10, "trec": 6, "subj": 2}
_SENTENCES: Mapping[str, Callable[[Path, str], Sentences]] = {"trec": read_trec, "subj": read_subj}
_MEAN, _SPREAD = 0.45, 0.25  # of pixels between 0 and 1, about those of CIFAR-10


@dataclass(frozen=True, eq=False)
class Part:
    """Labelled points: inputs by name, each of shape (points, ...), and labels of shape (points,), int64."""

    inputs: Mapping[str, Array]
    labels: Array

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: slice | Array) -> Part:
        """Select points."""
        return Part({name: array[index] for name, array in self.inputs.items()}, self.labels[index])

    def digest(self) -> str:
        """Return a digest of the contents."""
        state = hashlib.sha256(self.labels.tobytes())
        for name, array in self.inputs.items():
            state.update(f"{name}{array.dtype}{array.shape}".encode() + np.ascontiguousarray(array).data)
        return state.hexdigest()


@dataclass(frozen=True)
class Data:
    """Where data sets are, and where what is made of them is kept."""

    folder: Path
    cache: Path

    def part(self, task: str, part: str, network: NetworkKind, first: int = 0, last: int | None = None) -> Part:
        """Return points ``first`` to ``last`` of the ``train`` or ``test`` part of a task, as a network takes them.

        The small CNN takes images of 1 x 28 x 28 in [0, 1]; the ResNets 3 x 32 x 32, about of mean zero and variance
        one, grey images framed by black and repeated for each colour; MiniLM token ids and masks.
        """
        return _part(self, task, part, network, slice(first, last))

    def images(self, task: str, part: str) -> Images:
        """Read labelled images; decoded JPEG streams are kept in the cache."""
        if task in IDX_SETS:
            return read_idx_images(self.folder / task, part)
        path = self.folder / "cifar10" / "cifar10_jpeg_packed.npz"

        def decode() -> dict[str, Array]:
            images = read_packed_images(path, part)
            return {"pixels": images.pixels, "labels": images.labels}

        size = path.stat().st_size if path.exists() else 0
        return Images(
            **kept_arrays(path_of(self.cache / "images", f"cifar10-{part}", [str(path.resolve()), size], "npz"), decode)
        )


def _part(data: Data, task: str, part: str, network: NetworkKind, points: slice) -> Part:
    if network == "minilm":
        from scripts.reproduce.minilm import tokens

        sentences = _SENTENCES[task](data.folder / "text", part)
        return Part(tokens(sentences.texts[points], LONGEST_SENTENCE), sentences.labels[points].astype(np.int64))
    images = data.images(task, part)
    scaled = images.pixels[points].astype(np.float32) / np.float32(255)
    image = scaled[:, None] if network == "small_cnn" else _coloured(scaled)
    return Part({"image": image}, images.labels[points].astype(np.int64))


def _coloured(images: Array) -> Array:
    """Turn images of height x width or 32 x 32 x 3 into normalised ones of 3 x 32 x 32."""
    if images.ndim == 3:
        frame = (32 - images.shape[1]) // 2
        images = np.pad(images, ((0, 0), (frame, frame), (frame, frame)))[..., None].repeat(3, axis=3)
    channels_first = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    channels_first -= np.float32(_MEAN)
    channels_first /= np.float32(_SPREAD)
    return channels_first
