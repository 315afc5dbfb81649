from dataclasses import replace
from pathlib import Path

import pytest
import torch

from scripts.reproduce.cache import kept_json
from scripts.reproduce.originals import Originals, Recipe
from scripts.reproduce.tasks import Data
from scripts.reproduce.training import Training
from tests.scripts.conftest import TRAIN

TINY = Training(points=16, epochs=1, learning_rate=1e-3, batch_size=8)
PRETRAINED = Recipe("resnet", (("cifar10", TINY), ("mnist", TINY)), width=2, pretraining=replace(TINY, points=TRAIN))


@pytest.fixture
def originals(data_folder: Path, tmp_path: Path) -> Originals:
    return Originals(PRETRAINED, Data(data_folder, tmp_path))


def weights(module: torch.nn.Module) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in module.state_dict().values()])


def test_originals_are_trained_once_and_then_found(originals: Originals) -> None:
    first = weights(originals.original("mnist", seed=1))
    files = {path: path.stat().st_mtime_ns for path in (originals.data.cache / "originals").iterdir()}
    assert torch.equal(weights(originals.original("mnist", seed=1)), first)
    assert {path: path.stat().st_mtime_ns for path in files} == files
    assert all(path.suffix == ".safetensors" for path in files)


def test_seeds_share_the_pretrained_start_and_nothing_else(originals: Originals) -> None:
    first, second = (weights(originals.original("mnist", seed)) for seed in (0, 1))
    assert not torch.equal(first, second)
    assert len(list((originals.data.cache / "originals").glob("resnet-pretrained-*"))) == 1


def test_what_the_start_was_trained_on_is_not_used_again(originals: Originals) -> None:
    everything = originals.data.part("cifar10", "train", "resnet")
    pool = originals.pool("cifar10")
    assert (pool.inputs["image"] == everything.inputs["image"][TRAIN : TRAIN + 16]).all()


def test_originals_of_a_random_start_share_it_within_a_seed(data_folder: Path, tmp_path: Path) -> None:
    still = replace(TINY, learning_rate=1e-12)
    recipe = Recipe("small_cnn", (("mnist", still), ("fashion-mnist", still)))
    originals = Originals(recipe, Data(data_folder, tmp_path))
    mnist, fashion, other = (
        weights(originals.original(task, seed)) for task, seed in (("mnist", 0), ("fashion-mnist", 0), ("mnist", 1))
    )
    torch.testing.assert_close(mnist, fashion, atol=1e-6, rtol=0)
    assert (mnist - other).abs().max() > 1e-3


def test_other_training_makes_other_originals(originals: Originals) -> None:
    longer = replace(PRETRAINED, tasks=(("mnist", replace(TINY, epochs=2)),))
    originals.original("mnist", 0)
    Originals(longer, originals.data).original("mnist", 0)
    assert len(list((originals.data.cache / "originals").glob("resnet-mnist-*"))) == 2


def test_nothing_half_made_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "cell.json"
    with pytest.raises(ValueError, match="not JSON compliant"):
        kept_json(path, lambda: float("nan"))
    assert list(path.parent.iterdir()) == []
    assert kept_json(path, lambda: [1]) == [1] and kept_json(path, lambda: [2]) == [1]
