from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from coin_export.datasets.sources import collect_batches, read_arrays, select_inputs
from coin_export.errors import CalibrationError

IMAGES = np.arange(12, dtype=np.float32).reshape(4, 3)


def test_arrays_are_read_from_every_kind_of_file(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", image=IMAGES)
    np.save(tmp_path / "a.npy", IMAGES)
    save_file({"image": IMAGES}, tmp_path / "a.safetensors")
    for name, key in [("a.npz", "image"), ("a.npy", "input"), ("a.safetensors", "image")]:
        np.testing.assert_array_equal(read_arrays(tmp_path / name)[key], IMAGES)


def test_pickled_objects_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(CalibrationError, match="allow_pickle"):
        read_arrays(tmp_path / "a.npy")


@pytest.mark.parametrize("suffix", [".npz", ".npy", ".safetensors"])
def test_broken_files_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"not an array")
    with pytest.raises(CalibrationError, match=rf"a{suffix}: "):
        read_arrays(path)


def test_missing_files_and_unknown_kinds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="no such file"):
        read_arrays(tmp_path / "a.npz")
    (tmp_path / "a.csv").write_text("1,2")
    with pytest.raises(CalibrationError, match="unknown kind"):
        read_arrays(tmp_path / "a.csv")


def test_inputs_are_picked_and_ordered_by_name() -> None:
    arrays = {"b": IMAGES, "a": IMAGES + 1, "labels": IMAGES[:, 0]}
    chosen = select_inputs(arrays, ["a", "b"], "here")
    assert list(chosen.arrays) == ["a", "b"]
    assert list(select_inputs({"anything": IMAGES}, ["image"], "here").arrays) == ["image"]
    with pytest.raises(CalibrationError, match="here: no array named 'c'"):
        select_inputs(arrays, ["c"], "here")


@pytest.mark.parametrize(
    "batches",
    [
        [IMAGES[:3], IMAGES[3:]],
        [torch.from_numpy(IMAGES)],
        lambda: iter([{"input": IMAGES, "other": IMAGES}]),
        torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(torch.from_numpy(IMAGES), torch.zeros(4)), batch_size=3
        ),
    ],
    ids=["arrays", "tensors", "callable of mappings", "data loader with labels"],
)
def test_iterables_of_batches_are_gathered(batches: object) -> None:
    np.testing.assert_array_equal(collect_batches(batches, None, "here").arrays["input"], IMAGES)


@pytest.mark.parametrize(
    ("batches", "names", "message"),
    [
        (7, None, "is a int; it must be an iterable"),
        ([], None, "yielded no batch"),
        ([{"x": IMAGES}], ["y"], "batch 0: no input named 'y'"),
        ([(IMAGES,)], ["x", "y"], "batch 0: has 1 entries"),
        ([IMAGES, IMAGES[:, :2]], None, "do not fit together"),
    ],
)
def test_unusable_iterables_are_refused(batches: object, names: list[str] | None, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        collect_batches(batches, names, "here")
