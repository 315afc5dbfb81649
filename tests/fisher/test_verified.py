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
from torch.nn.utils import parametrizations

from coin_export.datasets.calibration import CalibrationInputs
from coin_export.fisher.diagonal import diagonal_fisher
from coin_export.fisher.fast import FastPath
from coin_export.fisher.general import GeneralPath
from coin_export.fisher.likelihood import directions
from coin_export.fisher.options import FisherOptions
from coin_export.fisher.verified import VerifiedPath
from coin_export.model.signature import Original
from tests.fisher.paths import POINTS, PROBE, assert_equal, both, describe
from tests.reference.fisher import reference_fisher


class Block(nn.Module):
    """A body and a layer that its subclasses use in ways of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 4)
        self.layer = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.use(torch.tanh(self.body(x)))
        return out

    def use(self, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


class CalledTwice(Block):
    def use(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layer(torch.tanh(self.layer(x)))
        return out


class UsedOutside(Block):
    def use(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.layer.weight, self.layer.bias)


class UsedInAndOutside(Block):
    def use(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layer(x) + self.layer.bias + self.layer.weight.sum()
        return out


class CalledInVain(Block):
    """The recorded call is the one that does not matter."""

    def use(self, x: torch.Tensor) -> torch.Tensor:
        self.layer(x)
        return F.linear(x, self.layer.weight, self.layer.bias)


class Transposed(Block):
    """The layer's first dimension is not the points, though as long where there are four points."""

    def use(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layer((x[:, :, None] * torch.ones(4)).transpose(0, 1)).transpose(0, 1).flatten(1)
        return out


class Folded(Block):
    def use(self, x: torch.Tensor) -> torch.Tensor:
        tokens = (x[:, :, None] * torch.arange(4.0).to(x)).reshape(-1, 4)
        out: torch.Tensor = self.layer(tokens).reshape(len(x), -1)
        return out


class OwnParameter(Block):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))

    def use(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.scale * self.layer(x)
        return out


class OwnLinear(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight.square(), self.bias)


class Subclassed(Block):
    def __init__(self) -> None:
        super().__init__()
        self.layer = OwnLinear(4, 4)

    def use(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layer(x)
        return out


class Plain(Block):
    def use(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layer(x)
        return out


class Overwritten(Plain):
    """What the first layer saw is changed after it saw it; autograd does not look at the inputs of a first layer."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        given = x.clone()
        hidden = self.body(given)
        given.zero_()
        return self.use(hidden)


class InPlaceActivation(Block):
    """Inplace on the output of a layer, which is a view where there are tokens."""

    def use(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.layer(x[:, None].repeat(1, 3, 1))
        out: torch.Tensor = tokens.relu_().flatten(1)
        return out


class Unused(Block):
    def use(self, x: torch.Tensor) -> torch.Tensor:
        return x


class CrossAttention(Block):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.MultiheadAttention(4, 2, batch_first=True)  # type: ignore[assignment]  # tests only

    def use(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x[:, None] * torch.arange(1.0, 4.0)[:, None].to(x)
        out: torch.Tensor = self.layer(tokens, tokens.cos(), tokens.sin())[0].flatten(1)
        return out


def tied() -> nn.Module:
    module = Plain()
    module.layer.weight = module.body.weight
    return module


def hooked() -> nn.Module:
    module = Plain()
    module.layer.register_forward_hook(lambda _module, _args, output: 2.0 * output)
    return module


def replaced() -> nn.Module:
    module = Plain()
    layer = module.layer
    vars(layer)["forward"] = lambda x: F.linear(x, layer.weight.cos(), layer.bias)
    return module


def parametrized() -> nn.Module:
    module = Plain()
    parametrizations.weight_norm(module.layer)
    return module


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


class Residual(nn.Module):
    def __init__(self, wide: int, tall: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(wide, tall, 3, stride, 1, bias=False), nn.BatchNorm2d(tall))
        self.second = nn.Sequential(nn.Conv2d(tall, tall, 3, 1, 1, bias=False), nn.BatchNorm2d(tall))
        self.short = nn.Sequential(nn.Conv2d(wide, tall, 1, stride, bias=False), nn.BatchNorm2d(tall))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu_(self.second(F.relu(self.first(x), inplace=True)) + self.short(x))


def resnet() -> nn.Module:
    blocks = [Residual(4, 4, 1), Residual(4, 6, 2)]
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))


def transformer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, norm_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return nn.Sequential(nn.Embedding(9, 4), encoder, nn.Flatten(), nn.Linear(20, 3))


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
