"""What the fast path must leave to the general one, and that together they are always right."""

import copy
import gc
import logging
import weakref
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from coin_export.datasets.calibration import CalibrationInputs
from coin_export.fisher.diagonal import diagonal_fisher
from coin_export.fisher.fast import FastPath
from coin_export.fisher.general import GeneralPath
from coin_export.fisher.likelihood import directions
from coin_export.fisher.options import FisherOptions
from coin_export.fisher.verified import VerifiedPath
from coin_export.model.signature import Original
from tests.fisher.networks import (
    CalledInVain,
    CalledTwice,
    CrossAttention,
    Folded,
    InPlaceActivation,
    Overwritten,
    OwnParameter,
    Plain,
    SeparateProjections,
    Subclassed,
    Transposed,
    Unused,
    UsedInAndOutside,
    UsedOutside,
    hooked,
    parametrized,
    replaced,
    resnet,
    tied,
    transformer,
)
from tests.fisher.paths import POINTS, PROBE, assert_equal, both, describe
from tests.reference.fisher import reference_fisher

BODY = {"body.weight", "body.bias"}
LAYER = {"layer.weight", "layer.bias"}
CASES: dict[str, tuple[Callable[[], nn.Module], set[str]]] = {
    "plain": (Plain, BODY | LAYER),
    "called twice": (CalledTwice, BODY),
    "used outside": (UsedOutside, BODY),
    "used in and outside": (UsedInAndOutside, BODY),
    "called in vain": (CalledInVain, BODY),
    "transposed": (Transposed, BODY),
    "folded": (Folded, BODY),
    "own parameter": (OwnParameter, BODY | LAYER),
    "subclassed": (Subclassed, BODY),
    "tied": (tied, {"body.bias", "layer.bias"}),
    "hooked": (hooked, BODY),
    "replaced": (replaced, BODY),
    "parametrized": (parametrized, BODY),
    "in-place activation": (InPlaceActivation, BODY),
    "unused": (Unused, BODY | LAYER),
    "cross attention": (CrossAttention, BODY),
}


@pytest.mark.parametrize("name", CASES)
def test_only_what_is_certain_is_claimed_and_the_rest_is_right(name: str) -> None:
    make, claimed = CASES[name]
    torch.manual_seed(0)
    inputs = torch.randn(POINTS, 4, dtype=torch.float64)
    original = describe(make().double(), inputs)
    before = [dict(vars(module)) for module in original.module.modules()]
    vectors = directions(PROBE, range(POINTS), original.signature.outputs[0].shape[0])
    found, wanted = both(original, (inputs,))
    assert found.keys() == claimed
    assert_equal(found, wanted)
    together, finite = VerifiedPath(original, PROBE)((inputs,), vectors)
    assert list(together) == [key for key, _ in original.module.named_parameters()] and finite == [True]
    assert_equal(together, wanted)
    assert before == [dict(vars(module)) for module in original.module.modules()]


def test_inputs_that_were_overwritten_are_not_used() -> None:
    inputs = torch.randn(POINTS, 4, dtype=torch.float64)
    original = describe(Overwritten().double(), inputs)
    vectors = directions(PROBE, range(POINTS), 4)
    assert FastPath(original, PROBE)((inputs,), vectors).squares.keys() == LAYER


@pytest.mark.parametrize("points", [2, 4, 5])
def test_a_dimension_as_long_as_the_points_is_not_taken_for_them(points: int) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(points, 4, dtype=torch.float64)
    original = describe(Transposed().double(), inputs)
    vectors = directions(PROBE, range(points), 16)
    found, _ = VerifiedPath(original, PROBE)((inputs,), vectors)
    assert_equal(found, GeneralPath(original, PROBE)((inputs,), vectors)[0])


class Mixing(nn.Module):
    """Normalised by the batch at hand: single points get other outputs than batches."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.layer(x)
        out: torch.Tensor = self.head(torch.tanh(hidden - 0.5 * hidden.mean(0)))
        return out


def test_a_model_that_mixes_points_takes_the_general_path(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(POINTS, 4)
    original, vectors = describe(Mixing(), inputs), directions(PROBE, range(POINTS), 3)
    path = VerifiedPath(original, PROBE)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            found, _ = path((inputs,), vectors)
    assert_equal(found, GeneralPath(original, PROBE)((inputs,), vectors)[0], 1e-6)
    assert [record.message.split(",")[0] for record in caplog.records] == [
        "model 'net' takes the slow path: on a batch"
    ]


class RoundsOtherwise(nn.Module):
    """Gives the first point another answer in a batch than by itself, as a ReLU at its threshold does."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        at_the_threshold = (x[:, :1] == 0.0) & (len(x) > 1)
        out: torch.Tensor = self.layer(torch.where(at_the_threshold, 2.0 * x, x))
        return out


def test_a_point_at_a_threshold_is_no_reason_for_the_slow_path(caplog: pytest.LogCaptureFixture) -> None:
    inputs = torch.randn(POINTS, 4)
    inputs[0, 0] = 0.0
    original, vectors = describe(RoundsOtherwise(), inputs[1:]), directions(PROBE, range(POINTS), 3)
    path = VerifiedPath(original, PROBE)
    found, _ = path((inputs,), vectors)
    assert caplog.text == ""
    assert_equal(found, FastPath(original, PROBE)((inputs,), vectors).squares)


class OnlySinglePoints(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layer(x.reshape(1, 4))
        return out


def test_a_model_that_takes_single_points_only_takes_the_general_path(caplog: pytest.LogCaptureFixture) -> None:
    inputs = torch.randn(POINTS, 4)
    original, vectors = describe(OnlySinglePoints(), inputs[:1]), directions(PROBE, range(POINTS), 3)
    with caplog.at_level(logging.WARNING):
        found, _ = VerifiedPath(original, PROBE)((inputs,), vectors)
    assert_equal(found, GeneralPath(original, PROBE)((inputs,), vectors)[0])
    assert "cannot be run on batches" in caplog.text


def test_gradients_that_are_only_rounding_are_no_disagreement(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(POINTS, 6, 4)
    original, vectors = describe(SeparateProjections(), inputs), directions(PROBE, range(POINTS), 4)
    for layer in original.module.children():
        assert isinstance(layer, nn.Linear)
        layer.reset_parameters()  # large weights saturate, and both paths round alike
    found, _ = VerifiedPath(original, PROBE)((inputs,), vectors)
    assert caplog.text == ""
    assert float(found["key.bias"].sum()) < 1e-9 * float(found["key.weight"].sum())


class Changing(Plain):
    """Calls its layer once more after the first few points: what was verified no longer holds."""

    calls = 0

    def use(self, x: torch.Tensor) -> torch.Tensor:
        once = self.layer(x)
        out: torch.Tensor = once if len(x) <= 2 else once + self.layer(x) - F.linear(x, self.layer.weight)
        return out


def test_every_batch_is_looked_at() -> None:
    """With the same function for all numbers of points, but other uses of a parameter in larger batches."""
    inputs = torch.randn(POINTS, 4, dtype=torch.float64)
    original, vectors = describe(Changing().double(), inputs), directions(PROBE, range(POINTS), 4)
    path = VerifiedPath(original, PROBE)
    for points in (2, POINTS):
        found, _ = path((inputs[:points],), vectors[:points])
        assert_equal(found, GeneralPath(original, PROBE)((inputs[:points],), vectors[:points])[0])


@pytest.mark.parametrize("likelihood", ["gaussian", "categorical"])
@pytest.mark.parametrize("make", [resnet, transformer])
def test_whole_networks_are_the_reference(make: Callable[[], nn.Module], likelihood: str) -> None:
    torch.manual_seed(0)
    images, tokens = torch.randn(POINTS, 1, 5, 5), torch.randint(9, (POINTS, 5))
    inputs = images.double() if make is resnet else tokens
    original = describe(make().double(), inputs)
    options = FisherOptions.model_validate({"likelihood": likelihood, "estimate": "exact"})
    found, _ = both(original, (inputs,), options)
    calibration = CalibrationInputs({"x0": inputs.numpy()})
    wanted = reference_fisher(original.module, calibration, ("output",), likelihood)
    assert found.keys() == wanted.keys()
    assert_equal({name: square / POINTS for name, square in found.items()}, wanted, 1e-9)
    for size in (1, 2, 5):
        split = diagonal_fisher(original, calibration, options.model_copy(update={"batch_size": size}))
        assert_equal({name: tensor.double() for name, tensor in split.diagonal.items()}, wanted, 1e-6)


def test_nothing_of_a_batch_is_kept() -> None:
    """The autograd graph, its hooks and the recorded inputs refer to each other: that must not keep them alive."""
    inputs = torch.randn(POINTS, 4)
    original, vectors = describe(Plain(), inputs), directions(PROBE, range(POINTS), 4)
    seen: list[weakref.ref[torch.Tensor]] = []
    original.module.get_submodule("body").register_forward_hook(lambda _m, _a, out: seen.append(weakref.ref(out)))
    VerifiedPath(original, PROBE)((inputs,), vectors)
    gc.collect()
    assert len(seen) > 1 and all(reference() is None for reference in seen)


def test_frozen_and_inference_callers_get_the_same() -> None:
    inputs = torch.randn(POINTS, 4)
    original, vectors = describe(Plain(), inputs), directions(PROBE, range(POINTS), 4)
    wanted, _ = both(original, (inputs,))
    frozen = Original("frozen", copy.deepcopy(original.module).requires_grad_(False), original.signature)
    with torch.no_grad():
        found, _ = VerifiedPath(frozen, PROBE)((inputs,), vectors)
    assert_equal(found, wanted)
    assert found.keys() == wanted.keys() == BODY | LAYER
    assert all(np.isfinite(square.numpy()).all() for square in found.values())
