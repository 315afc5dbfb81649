from typing import Literal

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from coin_export.datasets.calibration import CalibrationInputs
from coin_export.encode.coin import CoinOptions
from coin_export.encode.distill import DistillOptions, reinitialise
from coin_export.encode.refine import RefineOptions
from coin_export.encode.registry import encode
from coin_export.errors import ModelError, NonFiniteError
from tests.encode.cases import deep_linear_originals, normal_points, originals_of, output_error, same_bytes, trio
from tests.reference.networks import CASES

Start = Literal["fresh", "average", "coin"]
STARTS: tuple[Start, ...] = ("fresh", "average", "coin")
BETA = [0.2, 0.3, 0.5]


@pytest.mark.parametrize("start", STARTS)
def test_the_exact_combination_of_linear_models_is_reached(start: Start) -> None:
    originals, points = deep_linear_originals(3), normal_points()
    options = DistillOptions(start=start, epochs=100, batch_size=16, learning_rate=2e-2)
    found = encode(originals, BETA, points, options)
    assert output_error(found.state_dict, originals, BETA, points) < 1e-8
    assert found.notes == {"steps": 400}


@pytest.mark.parametrize(
    ("case", "start"), [*((case, "fresh") for case in CASES), ("tied", "coin"), ("batch_norm", "average")]
)
def test_every_network_can_be_distilled_and_twice_alike(case: str, start: Start) -> None:
    originals, calibration = trio(case), CASES[case].calibration()
    options = DistillOptions(start=start, epochs=3, batch_size=2)
    first = encode(originals, BETA, calibration, options)
    torch.manual_seed(99)
    assert same_bytes(first.state_dict, encode(originals, BETA, calibration, options).state_dict)
    assert first.cost.backward_passes == 3 * 3 * 2 + (15 if start == "coin" else 0)
    assert all(tensor.is_contiguous() for tensor in first.state_dict.values())


def test_a_fresh_start_knows_nothing_of_the_originals_weights() -> None:
    module = CASES["batch_norm"].original().module
    other = CASES["batch_norm"].original(seed=1).module
    assert not same_bytes(module.state_dict(), other.state_dict())
    for part in (module, other):
        reinitialise(part, seed=5)
    state = {name: tensor for name, tensor in module.state_dict().items() if not name.endswith("tracked")}
    assert same_bytes(state, {name: other.state_dict()[name] for name in state})


def test_batch_norm_estimates_its_statistics_from_a_fresh_start_only() -> None:
    originals, calibration = trio("batch_norm"), CASES["batch_norm"].calibration()
    averaged = sum(
        beta * original.module.get_buffer("1.running_mean") for beta, original in zip(BETA, originals, strict=True)
    )
    for start in STARTS:
        state = encode(originals, BETA, calibration, DistillOptions(start=start, epochs=2)).state_dict
        assert torch.allclose(state["1.running_mean"], torch.as_tensor(averaged)) == (start != "fresh")


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.scale = nn.Linear(3, 2), nn.Parameter(torch.ones(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.scale * self.layer(x)
        return outputs


def test_layers_that_cannot_be_initialised_are_named() -> None:
    originals = originals_of(nn.Sequential(Scaled()), nn.Sequential(Scaled()))
    with pytest.raises(ModelError, match=r"no reset_parameters\(\) in 0 \(Scaled\)"):
        encode(originals, [0.5, 0.5], normal_points(), DistillOptions())
    encode(originals, [0.5, 0.5], normal_points(), DistillOptions(start="average", epochs=1))


def test_the_random_state_of_the_process_is_left_alone() -> None:
    originals = trio("mlp")
    torch.manual_seed(7)
    wanted = torch.rand(3)
    torch.manual_seed(7)
    encode(originals, BETA, CASES["mlp"].calibration(), DistillOptions(epochs=1))
    assert torch.equal(torch.rand(3), wanted)


def test_a_descent_that_diverges_is_refused() -> None:
    options = DistillOptions(start="average", epochs=30, learning_rate=1e30)
    with pytest.raises(NonFiniteError, match=r"diverged after \d+ of 30 steps; choose a learning_rate below 1e\+30"):
        encode(trio("mlp"), [0.2, 0.3, 0.5], normal_points(), options)


class WithUnused(nn.Module):
    def __init__(self, detach: bool = False) -> None:
        super().__init__()
        self.used, self.unused, self.detach = nn.Linear(3, 2), nn.Linear(3, 2), detach

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.used(x.detach() if self.detach else x)
        return out.detach() if self.detach else out


def test_a_layer_that_no_output_uses_is_left_where_it_starts() -> None:
    modules = [WithUnused() for _ in "ab"]
    modules[1].used.load_state_dict(modules[0].used.state_dict())
    found = encode(originals_of(*modules), [0.5, 0.5], normal_points(), DistillOptions(start="average", epochs=1))
    wanted = (modules[0].unused.weight + modules[1].unused.weight) / 2
    torch.testing.assert_close(found.state_dict["unused.weight"], wanted.detach())


def test_outputs_that_autograd_cannot_follow_are_refused() -> None:
    originals = originals_of(WithUnused(detach=True), WithUnused(detach=True))
    for options in (DistillOptions(epochs=1), RefineOptions(budget=64), CoinOptions()):
        with pytest.raises(ModelError, match="no output depends on any weight"):
            encode(originals, [0.5, 0.5], normal_points(), options)


def test_one_point_is_enough_without_batch_norm() -> None:
    point = CalibrationInputs({"x": np.ones((1, 3), np.float32)})
    found = encode(trio("mlp"), BETA, point, DistillOptions(start="average", epochs=2))
    assert found.cost.backward_passes == 2


@pytest.mark.parametrize(
    "values", [{"start": "best"}, {"epochs": 0}, {"batch_size": 0}, {"learning_rate": 0}, {"seed": -1}, {"steps": 3}]
)
def test_bad_options_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        DistillOptions.model_validate(values)
