import torch

from coin_export.datasets import bundled
from coin_export.demo.networks import SmallCnn
from coin_export.demo.training import common_start, train


def weights(network: SmallCnn) -> torch.Tensor:
    return torch.nn.utils.parameters_to_vector(network.parameters()).detach()


def test_networks_start_alike_and_training_is_repeatable() -> None:
    images = bundled.load("mnist")
    assert torch.equal(weights(common_start(0)), weights(common_start(0)))
    assert not torch.equal(weights(common_start(0)), weights(common_start(1)))
    few = bundled.ImageSet(
        "few", images.train_images[:200], images.train_labels[:200], images.test_images[:0], images.test_labels[:0]
    )
    first, second = (train(common_start(0), few, 2, seed=0) for _ in range(2))
    assert torch.equal(weights(first), weights(second))
    assert not torch.equal(weights(first), weights(common_start(0)))


def test_training_ends_at_the_next_batch_when_told_so() -> None:
    steps = iter(range(100))
    network = train(common_start(0), bundled.load("mnist"), 50, seed=0, stopped=lambda: next(steps) == 3)
    assert next(steps) == 4 and not network.training
