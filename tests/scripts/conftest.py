"""A tiny data folder in the formats of the real one."""

import gzip
import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

TRAIN, TEST = 48, 16


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images whose class is where they are bright; sentences whose class is a word in them."""
    folder = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    for name in ("mnist", "fashion-mnist"):
        for prefix, points in (("train", TRAIN), ("t10k", TEST)):
            images, labels = _images(generator, points, 28)
            _write_idx(folder / name / f"{prefix}-images-idx3-ubyte.gz", images)
            _write_idx(folder / name / f"{prefix}-labels-idx1-ubyte.gz", labels)
    archive: dict[str, npt.NDArray[np.generic]] = {}
    for part, points in (("train", 2 * TRAIN), ("test", TEST)):
        images, labels = _images(generator, points, 32)
        streams = [_jpeg(np.repeat(image[..., None], 3, axis=2)) for image in images]
        archive[f"jpeg_{part}"] = np.frombuffer(b"".join(streams), np.uint8)
        archive[f"offset_{part}"] = np.cumsum([0, *map(len, streams)])
        archive[f"y_{part}"] = labels
    (folder / "cifar10").mkdir()
    np.savez(folder / "cifar10" / "cifar10_jpeg_packed.npz", **archive)
    text = folder / "text"
    text.mkdir()
    questions = "0 What is caf\xe9 ?\n1 Who wrote\x85 it ?\n"
    (text / "TREC.train.all").write_text(questions, "latin-1")
    (text / "TREC.test.all").write_text("5 How many ?\n", "latin-1")
    (text / "subj.all").write_text("".join(f"{number % 2} sentence {number} . \n" for number in range(20)), "latin-1")
    return folder


def _images(
    generator: np.random.Generator, points: int, size: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    labels = np.resize(np.arange(10, dtype=np.uint8), points)
    images = generator.integers(0, 40, (points, size, size), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[2 * label : 2 * label + 6, 4:20] += 200
    return images, labels


def _write_idx(path: Path, array: npt.NDArray[np.uint8]) -> None:
    path.parent.mkdir(exist_ok=True)
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes()))


def _jpeg(image: npt.NDArray[np.uint8]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=90)
    return stream.getvalue()
