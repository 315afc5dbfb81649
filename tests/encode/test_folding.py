"""BatchNorm is folded into the layer before it where that changes no answer, and nowhere else."""

import copy
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import nn

from coin_export.datasets.calibration import CalibrationInputs
from coin_export.encode.auto import AutoOptions
from coin_export.encode.average import AverageOptions
from coin_export.encode.folding import fold
from coin_export.encode.refine import RefineOptions
from coin_export.encode.registry import encode
from coin_export.encode.teachers import Inputs, working_copy, working_inputs
from coin_export.model.signature import Original
from tests.encode.cases import normal_points, originals_of

IMAGES = normal_points(40, 4, 5, 5)


def lived_in(module: nn.Module, seed: int) -> nn.Module:
    """Give every tensor values of its own; variances are positive."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in module.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2.0, generator=generator)
        elif tensor.is_floating_point():
            tensor.normal_(generator=generator)
    return module


def pair_of(make: Callable[[], nn.Module]) -> list[Original]:
    return originals_of(*(lived_in(make(), seed) for seed in (1, 2)), calibration=IMAGES)


def folds(originals: Sequence[Original], inputs: Inputs) -> Sequence[Original]:
    folded = fold(originals, inputs)
    assert folded is not None
    return folded.originals


def changed(original: Original, folded: Original) -> set[str]:
    before, after = original.module.state_dict(), folded.module.state_dict()
    return {name for name in before if not torch.equal(before[name], after[name])}


def plain() -> nn.Module:
    return nn.Sequential(nn.Conv2d(4, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten())


def grouped() -> nn.Module:
    return nn.Sequential(nn.Conv2d(4, 6, 2, groups=2, bias=False), nn.BatchNorm2d(6), nn.Flatten())


def without_scale() -> nn.Module:
    return nn.Sequential(nn.Conv2d(4, 3, 3), nn.BatchNorm2d(3, affine=False), nn.Flatten())


def linear() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(100, 5), nn.BatchNorm1d(5), nn.Tanh())


def without_bias() -> nn.Module:
    return nn.Sequential(nn.Conv2d(4, 3, 3), nn.BatchNorm2d(3, bias=False), nn.Flatten())


class Bad(nn.Module):
    """A pair that can be folded, and after it one that cannot; as it is, its layer is called by nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.good = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.layer: nn.Module = nn.Conv2d(4, 4, 3, padding=1)
        self.norm: nn.Module = nn.BatchNorm2d(4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.flatten(self.bad(self.good(images)), 1)

    def bad(self, maps: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


class UsedTwice(Bad):
    """The convolution's output goes elsewhere, too, as in a network of pre-activation blocks."""

    def bad(self, maps: torch.Tensor) -> torch.Tensor:
        maps = self.layer(maps)
        return torch.add(maps, self.norm(maps))


class CalledTwice(Bad):
    """Both are called twice, one after the other, so that folded they would answer the same."""

    def bad(self, maps: torch.Tensor) -> torch.Tensor:
        for _ in range(2):
            maps = self.norm(self.layer(maps))
        return maps


class Tied(Bad):
    """Another convolution has the same weight; what it gives counts for nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Conv2d(4, 4, 3, padding=1)
        self.other.weight = self.layer.weight  # type: ignore[assignment]  # Module does not say that it has one

    def bad(self, maps: torch.Tensor) -> torch.Tensor:
        return torch.add(self.norm(self.layer(maps)), 0.0 * self.other(maps))


class OtherChannels(Bad):
    """The linear layer's features are not the channels that BatchNorm normalises, though there are as many."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(25, 4)
        self.norm = nn.BatchNorm1d(4)

    def bad(self, maps: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.norm(self.layer(maps.flatten(2))))


class AfterActivation(Bad):
    """BatchNorm gets the very tensor that the convolution gave, changed in place."""

    def bad(self, maps: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.norm(torch.relu_(self.layer(maps))))


class AfterAttention(Bad):
    """What BatchNorm gets is of attention, which is observed with every layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.MultiheadAttention(25, 5, batch_first=True)
        self.norm = nn.BatchNorm1d(4)

    def bad(self, maps: torch.Tensor) -> torch.Tensor:
        sequence = maps.flatten(2)
        return torch.as_tensor(self.norm(self.layer(sequence, sequence, sequence)[0]))


@pytest.mark.parametrize("make", [plain, grouped, without_scale, without_bias, linear])
def test_folded_originals_answer_as_before_and_their_batch_norm_only_shifts(make: Callable[[], nn.Module]) -> None:
    originals, inputs = pair_of(make), working_inputs(IMAGES)
    before = [copy.deepcopy(original.module.state_dict()) for original in originals]
    folded = folds(originals, inputs)
    assert [original.name for original in folded] == [original.name for original in originals]
    for original, same, state in zip(originals, folded, before, strict=True):
        torch.testing.assert_close(same.module(*inputs.values()), original.module(*inputs.values()))
        (norm,) = (layer for layer in same.module.children() if isinstance(layer, nn.modules.batchnorm._BatchNorm))
        assert norm.running_var is not None
        torch.testing.assert_close(norm.running_var + norm.eps, torch.ones_like(norm.running_var))
        if norm.weight is not None:
            assert torch.equal(norm.weight, torch.ones_like(norm.weight))
        assert all(torch.equal(tensor, state[name]) for name, tensor in original.module.state_dict().items())


@pytest.mark.parametrize("make", [plain, grouped, without_scale, without_bias, linear])
def test_unfolded_it_answers_as_before_with_the_mean_statistics_of_all(make: Callable[[], nn.Module]) -> None:
    originals, inputs = pair_of(make), working_inputs(IMAGES)
    folded = fold(originals, inputs)
    assert folded is not None
    state = encode(folded.originals, [0.5, 0.5], IMAGES, AverageOptions()).state_dict
    module = working_copy(originals[0], state)
    with torch.no_grad():
        before = module(*inputs.values())
        folded.unfold(module)
        torch.testing.assert_close(module(*inputs.values()), before, rtol=1e-4, atol=1e-5)
    name, norm = next((name, part) for name, part in module.named_children() if hasattr(part, "running_var"))
    for buffer in ["running_var"] * (norm.weight is not None) + ["running_mean"] * (norm.bias is not None):
        own = [original.module.get_buffer(f"{name}.{buffer}") for original in originals]
        torch.testing.assert_close(module.get_buffer(f"{name}.{buffer}"), torch.stack(own).mean(0))


@pytest.mark.parametrize("make", [UsedTwice, CalledTwice, Tied, OtherChannels, AfterActivation, AfterAttention])
def test_what_folding_would_change_is_left_alone_and_the_rest_is_folded(make: Callable[[], nn.Module]) -> None:
    originals, inputs = pair_of(make), working_inputs(IMAGES)
    folded = folds(originals, inputs)
    assert [changed(*both) for both in zip(originals, folded, strict=True)] == [
        {f"good.{name}" for name in ("0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var")}
    ] * 2
    with torch.no_grad():
        for original, same in zip(originals, folded, strict=True):
            expected = original.module(*inputs.values())
            assert (same.module(*inputs.values()) - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("network", [nn.Linear(100, 3), nn.BatchNorm1d(100)])
def test_nothing_to_fold(network: nn.Module) -> None:
    originals = pair_of(lambda: nn.Sequential(nn.Flatten(), copy.deepcopy(network)))
    assert fold(originals, working_inputs(IMAGES)) is None


def test_a_layer_that_shares_a_tensor_with_all_originals_is_left_alone() -> None:
    """Of two layers, one of a shared backbone."""

    def make() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(4, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), nn.Flatten()
        )

    one, other = pair_of(make)
    other.module.get_parameter("0.weight").data = one.module.get_parameter("0.weight").data.clone()
    folded = folds([one, other], working_inputs(IMAGES))
    assert [changed(*both) for both in zip([one, other], folded, strict=True)] == [
        {"3.weight", "3.bias", "4.weight", "4.bias", "4.running_mean", "4.running_var"}
    ] * 2


def test_half_precision_is_folded_in_single() -> None:
    half = CalibrationInputs({name: array.astype(np.float16) for name, array in IMAGES.arrays.items()})
    originals = originals_of(*(lived_in(plain(), seed).half() for seed in (1, 2)), calibration=half)
    folded = folds(originals, working_inputs(half))
    assert {tensor.dtype for original in folded for tensor in original.module.parameters()} == {torch.float32}
    assert {tensor.dtype for original in originals for tensor in original.module.parameters()} == {torch.float16}


def test_two_ways_to_write_nearly_one_network_average_to_it_once_folded() -> None:
    """The second original has its convolution twice as large, and its BatchNorm undoes that."""
    one = lived_in(plain(), 1)
    other = copy.deepcopy(one)
    with torch.no_grad():
        factors = {"0.weight": 2.0, "0.bias": 2.0, "1.running_mean": 2.0, "1.running_var": 9.0, "1.weight": 1.5}
        for name, factor in factors.items():
            other.state_dict()[name].mul_(factor)
        other.get_parameter("1.bias").add_(1e-4)  # what is the same in both would be left alone
    originals, inputs = originals_of(one, other, calibration=IMAGES), working_inputs(IMAGES)

    def miss(models: Sequence[Original]) -> float:
        state = encode(models, [0.5, 0.5], IMAGES, AverageOptions()).state_dict
        expected = one(*inputs.values())
        return float((working_copy(models[0], state)(*inputs.values()) - expected).abs().max() / expected.abs().max())

    with torch.no_grad():
        assert miss(originals) > 0.05
        assert miss(folds(originals, inputs)) < 1e-3


@pytest.mark.parametrize("options", [AutoOptions(batch_norm="fold"), RefineOptions(batch_norm="fold", budget=512)])
def test_encoders_code_folded_originals(options: AutoOptions | RefineOptions) -> None:
    """In notes and weights, and what all share stays shared: here the first layer, next to a pair that is folded."""

    def make() -> nn.Module:
        return nn.Sequential(
            *(nn.Conv2d(4, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), nn.Flatten())
        )

    originals = pair_of(make)
    for name in ("0.weight", "1.running_var"):
        source, target = (original.module.state_dict()[name] for original in originals)
        target.copy_(source)
    encoding = encode(originals, [0.5, 0.5], IMAGES, options)
    tried = encoding.notes["held_out_errors" if isinstance(options, AutoOptions) else "start_errors"]
    assert all(name.endswith(", BatchNorm folded") for name in tried if name != "regress")
    for name in ("0.weight", "1.running_var"):
        assert torch.equal(encoding.state_dict[name], originals[0].module.state_dict()[name])
