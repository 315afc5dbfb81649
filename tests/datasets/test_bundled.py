from pathlib import Path

import numpy as np
import pytest

from coin_export.datasets import bundled
from coin_export.datasets.calibration import Array, CalibrationInputs
from coin_export.datasets.idx import read_idx
from coin_export.errors import CalibrationError


@pytest.mark.parametrize("name", bundled.NAMES)
def test_bundled_set_is_balanced_and_large_enough(name: str) -> None:
    images = bundled.load(name)
    assert images.train_images.shape == (4000, 1, 28, 28)
    assert images.test_images.shape == (1000, 1, 28, 28)
    assert np.bincount(images.train_labels).tolist() == [400] * 10
    assert np.bincount(images.test_labels).tolist() == [100] * 10
    assert images.train_images.dtype == np.float32
    assert images.train_images.min() == 0.0 and images.train_images.max() == 1.0


def test_bundled_data_stays_under_four_megabytes_and_carries_its_licences() -> None:
    folder = Path(bundled.__file__).parent / "data"
    assert sum(path.stat().st_size for path in folder.iterdir()) < 4_000_000
    for name in bundled.NAMES:
        assert (folder / f"LICENSE-{name}.txt").is_file()


def test_read_idx_reads_what_the_header_states(tmp_path: Path) -> None:
    path = tmp_path / "images"
    path.write_bytes(b"\0\0\x08\x02" + (2).to_bytes(4, "big") + (3).to_bytes(4, "big") + bytes(range(6)))
    assert read_idx(path).tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an IDX file"),
        (b"\0\0\x0d\x01\0\0\0\1\0\0\0\0", "not an IDX file of unsigned bytes"),
        (b"\0\0\x08\x01\0\0\0\5abc", "promises shape"),
        (b"\x1f\x8bbroken", "cannot be read"),
    ],
)
def test_read_idx_refuses_broken_files(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "images"
    path.write_bytes(content)
    with pytest.raises(CalibrationError, match=message):
        read_idx(path)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "no array"),
        ({"x": np.zeros((0, 3))}, "holds no point"),
        ({"x": np.zeros(())}, "holds no point"),
        ({"x": np.zeros((2, 3)), "y": np.zeros((3, 3))}, "number of points"),
        ({"x": np.array([[1.0, np.nan]])}, "NaN or infinity"),
    ],
)
def test_unusable_calibration_inputs_are_refused(arrays: dict[str, Array], message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        CalibrationInputs(arrays)


def test_calibration_split_is_a_seeded_partition() -> None:
    inputs = CalibrationInputs({"x": np.arange(10.0)[:, None]})
    fit, held_out = inputs.split(0.3, seed=1)
    assert len(fit) == 7 and len(held_out) == 3
    assert sorted([*fit.arrays["x"].ravel(), *held_out.arrays["x"].ravel()]) == list(range(10))
    assert inputs.split(0.3, seed=1)[1].digest() == held_out.digest()
    assert inputs.split(0.3, seed=2)[1].digest() != held_out.digest()


def test_calibration_digest_sees_names_dtypes_shapes_and_values() -> None:
    base = CalibrationInputs({"x": np.zeros((2, 2), np.float32)})
    others = [
        CalibrationInputs({"y": np.zeros((2, 2), np.float32)}),
        CalibrationInputs({"x": np.zeros((2, 2), np.int32)}),
        CalibrationInputs({"x": np.zeros((2, 2, 1), np.float32)}),
        CalibrationInputs({"x": np.eye(2, dtype=np.float32)}),
    ]
    assert len({inputs.digest() for inputs in [base, *others]}) == 5
    assert base.digest() == CalibrationInputs({"x": np.zeros((2, 2), np.float32)}).digest()


def test_batches_cover_every_point_once() -> None:
    inputs = CalibrationInputs({"x": np.arange(7)[:, None]})
    batches = list(inputs.batches(3))
    assert [batch["x"].shape[0] for batch in batches] == [3, 3, 1]
    assert np.concatenate([batch["x"] for batch in batches]).ravel().tolist() == list(range(7))
