import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from coin_export.datasets.calibration import CalibrationInputs
from coin_export.errors import BuildError
from coin_export.fisher.cache import cached_diagonal_fisher, statistics_digest
from coin_export.fisher.diagonal import DiagonalFisher
from coin_export.fisher.options import FisherOptions
from coin_export.model.signature import Original, infer_signature
from tests.reference.networks import CASES

OPTIONS = FisherOptions()
CALIBRATION = CASES["mlp"].calibration()


def same(left: DiagonalFisher, right: DiagonalFisher) -> bool:
    return left.diagonal.keys() == right.diagonal.keys() and all(
        torch.equal(tensor, right.diagonal[name]) for name, tensor in left.diagonal.items()
    )


def only_file(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def test_the_second_call_reads_what_the_first_wrote(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "when needed"
    first = cached_diagonal_fisher(CASES["mlp"].original(), CALIBRATION, OPTIONS, folder)
    # Another object of the same contents, in batches of another size, asks for the same statistics.
    again = OPTIONS.model_copy(update={"batch_size": 2})
    second = cached_diagonal_fisher(CASES["mlp"].original("b"), CALIBRATION, again, folder)
    assert same(first, second)
    assert (first.forward_passes, first.backward_passes) == (5, 5)
    assert (second.points, second.forward_passes, second.backward_passes) == (5, 0, 0)
    assert only_file(folder).suffix == ".safetensors"


def test_without_a_folder_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert cached_diagonal_fisher(CASES["mlp"].original(), CALIBRATION, OPTIONS, None).forward_passes == 5
    assert list(tmp_path.iterdir()) == []


def test_whatever_changes_the_statistics_changes_the_digest() -> None:
    original = CASES["mlp"].original()
    shifted = CalibrationInputs({"x": CALIBRATION.arrays["x"] + np.float32(1e-3)})
    reversed_points = CALIBRATION.take(np.arange(5)[::-1])

    class Unlike(nn.Sequential):  # printed as a Sequential of the same layers, and calls them differently
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self:
                x = layer(x)
            return x.square()

        def _get_name(self) -> str:
            return "Sequential"

    other = Unlike(*original.module.children()).eval()
    digests = [
        statistics_digest(original, CALIBRATION, OPTIONS),
        statistics_digest(CASES["mlp"].original(seed=1), CALIBRATION, OPTIONS),
        statistics_digest(original, shifted, OPTIONS),
        statistics_digest(original, reversed_points, OPTIONS),
        statistics_digest(original, CALIBRATION, FisherOptions(seed=1)),
        statistics_digest(original, CALIBRATION, FisherOptions(samples=2)),
        statistics_digest(original, CALIBRATION, FisherOptions(likelihood="categorical")),
        statistics_digest(Original("a", other, infer_signature(other, CALIBRATION)), CALIBRATION, OPTIONS),
    ]
    assert repr(other) == repr(original.module)
    assert len(set(digests)) == len(digests)


def flip_a_weight(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        flip_a_weight,
        lambda path: path.write_bytes(path.read_bytes()[:-8]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"not safetensors"),
        lambda path: save_file({"0.weight": torch.ones(5, 3)}, path),
    ],
    ids=["flipped", "truncated", "empty", "garbage", "foreign"],
)
def test_a_damaged_file_is_computed_anew(tmp_path: Path, damage: object) -> None:
    first = cached_diagonal_fisher(CASES["mlp"].original(), CALIBRATION, OPTIONS, tmp_path)
    assert callable(damage)
    damage(only_file(tmp_path))
    second = cached_diagonal_fisher(CASES["mlp"].original(), CALIBRATION, OPTIONS, tmp_path)
    assert second.forward_passes == 5 and same(first, second)
    third = cached_diagonal_fisher(CASES["mlp"].original(), CALIBRATION, OPTIONS, tmp_path)
    assert third.forward_passes == 0 and same(first, third)


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BuildError, match=r"cannot be kept in .*file.*choose another cache folder"):
        cached_diagonal_fisher(CASES["mlp"].original(), CALIBRATION, OPTIONS, tmp_path / "file")


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(BuildError, match="No space left"):
        cached_diagonal_fisher(CASES["mlp"].original(), CALIBRATION, OPTIONS, tmp_path)
    assert list(tmp_path.iterdir()) == []
