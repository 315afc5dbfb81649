import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn

from coin_export.datasets.calibration import CalibrationInputs
from coin_export.encode.augmentation import AugmentationOptions
from coin_export.encode.average import AverageOptions
from coin_export.encode.encoding import Encoding
from coin_export.encode.refine import RefineOptions, rungs
from coin_export.encode.registry import encode, encode_rows
from coin_export.errors import CalibrationError
from tests.encode.cases import (
    decoded_divergence,
    deep_linear_originals,
    normal_points,
    originals_of,
    output_error,
    same_bytes,
    trio,
    twins,
)
from tests.reference.networks import CASES

SHORT = RefineOptions(budget=80, trial_steps=4, batch_size=4, held_out=0.4)
AS_THEY_ARE = AugmentationOptions(mixed=0, shift=0, warp=0, exchanged=0)
BETA = [0.2, 0.3, 0.5]


def improved(found: Encoding) -> bool:
    return bool(found.notes["held_out_error"] < min(found.notes["start_errors"].values()))


def test_the_exact_combination_is_reached_from_a_start_that_misses_it() -> None:
    originals, points = deep_linear_originals(), normal_points()
    average = encode(originals, [0.4, 0.6], points, AverageOptions()).state_dict
    # What a linear model answers on mixtures follows from the rest, so any options lead there.
    options = RefineOptions(budget=4800, batch_size=16, criterion="error", learning_rates=(1e-2, 3e-2), trial_steps=20)
    found = encode(originals, [0.4, 0.6], points, options)
    before = output_error(average, originals, [0.4, 0.6], points)
    after = output_error(found.state_dict, originals, [0.4, 0.6], points)
    assert before > 1e-3
    assert after < 1e-3 * before
    assert found.notes["held_out_error"] < 1e-3 * before


def test_linear_models_are_combined_exactly() -> None:
    torch.manual_seed(0)
    originals, points = originals_of(nn.Linear(3, 2), nn.Linear(3, 2)), normal_points(20)
    found = encode(originals, [0.3, 0.7], points, SHORT)
    assert output_error(found.state_dict, originals, [0.3, 0.7], points) < 1e-10


@pytest.mark.parametrize(
    ("case", "optimizer"), [*((case, "muon") for case in CASES), ("mlp", "adam"), ("two_heads", "adam")]
)
def test_it_is_never_worse_than_its_start_on_the_held_out_points(case: str, optimizer: str) -> None:
    originals, calibration = trio(case), CASES[case].calibration()
    options = RefineOptions.model_validate({**SHORT.model_dump(), "optimizer": optimizer, "augmentation": AS_THEY_ARE})
    found = encode(originals, BETA, calibration, options)
    start_errors = found.notes["start_errors"]
    assert found.notes["start"] in start_errors
    assert found.notes["held_out_error"] <= min(start_errors.values())
    _, held_out = calibration.split(options.held_out, options.seed)
    assert decoded_divergence([found.state_dict], originals, [BETA], held_out) == pytest.approx(
        found.notes["held_out_error"], rel=1e-4, abs=1e-9
    )


def test_coded_models_are_refined_together() -> None:
    originals, points, rows = deep_linear_originals(3), normal_points(), [[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]]
    options = RefineOptions(budget=1600, batch_size=16, learning_rates=(1e-2,), augmentation=AS_THEY_ARE)
    first, second = encode_rows(originals, rows, points, options)
    assert first.notes == second.notes
    assert abs(first.cost.backward_passes - second.cost.backward_passes) <= 1
    _, held_out = points.split(options.held_out, options.seed)
    error = decoded_divergence([first.state_dict, second.state_dict], originals, rows, held_out)
    assert error == pytest.approx(first.notes["held_out_error"], rel=1e-4)
    assert error < 0.3 * min(first.notes["start_errors"].values())


def test_a_learning_rate_far_too_large_leaves_the_start() -> None:
    originals, calibration = trio("mlp"), CASES["mlp"].calibration()
    options = SHORT.model_copy(update={"learning_rates": (1e6,)})
    found = encode(originals, BETA, calibration, options)
    assert found.notes["held_out_error"] == min(found.notes["start_errors"].values())


@pytest.mark.parametrize("case", ["batch_norm", "tied", "two_inputs"])
def test_identical_models_stay_that_model(case: str) -> None:
    originals = twins(case)
    found = encode(originals, [0.3, 0.7], CASES[case].calibration(), SHORT)
    assert same_bytes(found.state_dict, originals[0].module.state_dict())


def test_what_the_originals_share_stays_as_it_is() -> None:
    originals = trio("mlp")[:2]
    shared = originals[0].module.get_parameter("0.weight")
    with torch.no_grad():
        originals[1].module.get_parameter("0.weight").copy_(shared)
    found = encode(originals, [0.5, 0.5], normal_points(), SHORT)
    assert improved(found)
    assert torch.equal(found.state_dict["0.weight"], shared)


@pytest.mark.parametrize("case", ["cnn", "tied", "two_heads"])
def test_a_second_run_gives_the_same_bytes(case: str) -> None:
    originals, calibration = trio(case), CASES[case].calibration()
    first = encode(originals, BETA, calibration, SHORT)
    torch.manual_seed(99)
    second = encode(originals, BETA, calibration, SHORT)
    assert same_bytes(first.state_dict, second.state_dict)
    assert first.notes == second.notes


@pytest.mark.parametrize("k", [2, 3, 4])
def test_the_budget_is_for_each_original_beyond_the_first(k: int) -> None:
    originals = deep_linear_originals(k)
    options = RefineOptions(budget=320, batch_size=16, starts=("average",), good_enough=0.0)
    found = encode(originals, [1 / k] * k, normal_points(), options)
    assert sum(rung["steps"] for rung in found.notes["rungs"]) == 20 * (k - 1)


def test_the_seed_matters() -> None:
    originals, points = deep_linear_originals(), normal_points()
    runs = [encode(originals, [0.5, 0.5], points, SHORT.model_copy(update={"seed": seed})) for seed in (0, 1)]
    assert not same_bytes(runs[0].state_dict, runs[1].state_dict)


def test_tied_weights_stay_tied() -> None:
    found = encode(trio("tied"), BETA, CASES["tied"].calibration(), SHORT)
    assert improved(found)
    assert found.state_dict["head.weight"] is found.state_dict["embedding.weight"]


class HalfPrecision(nn.Module):
    """Takes and returns float32, since numpy has no bfloat16."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2)).to(dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.layers(x.to(next(self.parameters()).dtype)).float()
        return outputs


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_comes_back_as_it_came(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    originals = originals_of(HalfPrecision(dtype), HalfPrecision(dtype))
    options = SHORT.model_copy(update={"budget": 400, "starts": ("average",)})
    found = encode(originals, [0.5, 0.5], normal_points(), options)
    assert improved(found)
    assert {tensor.dtype for tensor in found.state_dict.values()} == {dtype}
    assert {parameter.dtype for original in originals for parameter in original.module.parameters()} == {dtype}


def test_the_originals_are_left_as_they_are() -> None:
    originals = trio("batch_norm")
    before = [{name: tensor.clone() for name, tensor in original.module.state_dict().items()} for original in originals]
    encode(originals, BETA, CASES["batch_norm"].calibration(), SHORT)
    for original, state in zip(originals, before, strict=True):
        assert same_bytes(original.module.state_dict(), state)
        assert all(parameter.requires_grad and parameter.grad is None for parameter in original.module.parameters())
        assert not any(part.training for part in original.module.modules())


@pytest.mark.parametrize(
    ("case", "augmented"), [("mlp", True), ("mlp", False), ("embedding", True), ("embedding", False)]
)
def test_passes_are_counted(case: str, augmented: bool) -> None:
    """Five points: three to learn from, two held out; 20 steps, 2 trials of 2 of them; all batches of three points.

    With augmentation three more points stand by each held-out one, and teachers are asked every step in place of once
    a descent.
    """
    originals = trio(case)
    augmentation = AugmentationOptions() if augmented else AS_THEY_ARE
    more = {"learning_rates": (1e-3, 3e-3), "starts": ("average",), "augmentation": augmentation}
    options = SHORT.model_copy(update={**more, "budget": 40})
    cost = encode(originals, BETA, CASES[case].calibration(), options).cost
    descents, points, steps = 3, 3, 20
    assert cost.backward_passes == steps * points
    held_out = 2 * 4 if augmented else 2
    wanted_on_held_out, start, checks = 3 * held_out, held_out, (descents + 2) * held_out  # two for squared errors
    teachers = 3 * points * (steps if augmented else descents)
    assert cost.forward_passes == wanted_on_held_out + start + checks + steps * points + teachers


class Detector(nn.Module):
    """Logits of classes beside the four numbers of a box."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body, self.label, self.box = nn.Linear(3, 16), nn.Linear(16, 3), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden = torch.tanh(self.body(x))
        return {"label": self.label(hidden), "box": 20 + 30 * self.box(hidden)}


@pytest.mark.parametrize("criterion", ["divergence", "error"])
def test_values_that_are_taken_for_logits_are_warned_of(criterion: str, caplog: pytest.LogCaptureFixture) -> None:
    one, other = Detector(1), Detector(1)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.6 * torch.randn_like(parameter))
    originals = originals_of(one, other)
    options = RefineOptions.model_validate({"budget": 4000, "criterion": criterion})
    encode(originals, [0.5, 0.5], normal_points(), options)
    warned = [record.message for record in caplog.records if record.name == "coin_export.encode.refine"]
    if criterion == "error":
        assert not warned
    else:
        (message,) = warned
        assert "output 'box'" in message and "'label'" not in message and "'values'" in message


def test_no_steps_are_no_rungs() -> None:
    assert rungs(0, 10) == []


@given(steps=st.integers(1, 10_000), first=st.integers(1, 500))
def test_rungs_double_and_take_all_steps(steps: int, first: int) -> None:
    lengths = rungs(steps, first)
    assert sum(lengths) == steps
    assert lengths[0] >= min(steps, first)
    assert all(longer >= 2 * shorter for shorter, longer in pairwise(lengths))
    assert len(lengths) == 1 or lengths[0] < 3 * first


def test_each_descent_is_twice_as_long_as_the_one_before_until_the_budget_is_used_up() -> None:
    originals, points = deep_linear_originals(), normal_points()
    values = {"budget": 16 * 70, "first_rung": 16 * 10, "batch_size": 16, "learning_rates": (1e-2,), "good_enough": 0.0}
    found = encode(originals, [0.4, 0.6], points, RefineOptions.model_validate({**values, "starts": ("average",)}))
    steps, errors = ([rung[key] for rung in found.notes["rungs"]] for key in ("steps", "held_out_error"))
    assert steps == [10, 20, 40]
    assert found.notes["held_out_error"] == errors[-1] < errors[0]


def test_a_descent_that_diverges_is_ended_and_a_third_of_its_rate_takes_over() -> None:
    originals, points = deep_linear_originals(), normal_points()
    values = {"budget": 16 * 40, "first_rung": 16 * 40, "batch_size": 16, "starts": ("average",), "criterion": "error"}

    before = encode(originals, [0.4, 0.6], points, RefineOptions.model_validate(values)).notes["start_errors"][
        "average"
    ]

    def rungs_at(rate: float) -> list[dict[str, float]]:
        options = RefineOptions.model_validate({**values, "learning_rates": (rate,)})
        found = encode(originals, [0.4, 0.6], points, options)
        assert found.notes["held_out_error"] == before == min(found.notes["start_errors"].values())
        return list(found.notes["rungs"])

    hopeless = rungs_at(1e30)  # float32 overflows in the second step, and at a third of a third of it as well
    assert [rung["learning_rate"] for rung in hopeless] == pytest.approx([1e30 / 3**fall for fall in range(4)])
    assert all(rung["steps"] == 1 and math.isinf(rung["held_out_error"]) for rung in hopeless)
    # Finite, if no good: all steps are taken, and a third of it takes over all the same, for as many as are left.
    (worse,) = rungs_at(10.0)
    assert worse["steps"] == 40 and before < worse["held_out_error"] < math.inf


def test_after_a_descent_that_diverged_the_others_are_as_long_as_the_steps_left_allow() -> None:
    originals, points = deep_linear_originals(), normal_points()
    values = {"budget": 16 * 70, "first_rung": 16 * 10, "batch_size": 16, "starts": ("average",), "criterion": "error"}
    options = RefineOptions.model_validate({**values, "learning_rates": (24.0,)})
    found = encode(originals, [0.4, 0.6], points, options)
    steps, rates, errors = ([rung[key] for rung in found.notes["rungs"]] for key in found.notes["rungs"][0])
    before = min(found.notes["start_errors"].values())
    assert errors[0] > 2 * before
    assert steps[:2] == [10, rungs(60, 10)[0]] and rates[1] == pytest.approx(24 / 3)


def test_trials_that_all_diverge_leave_the_start() -> None:
    options = SHORT.model_copy(update={"criterion": "error", "learning_rates": (1e30, 1e32)})
    notes = encode(deep_linear_originals(), [0.4, 0.6], normal_points(), options).notes
    assert all(math.isinf(error) for error in notes["trial_errors"].values())
    assert notes["held_out_error"] == notes["start_errors"][notes["start"]] == min(notes["start_errors"].values())
    assert notes["rungs"][0]["learning_rate"] == pytest.approx(1e30 / 3)


@pytest.mark.parametrize(("criterion", "descents"), [("divergence", 1), ("error", 2)])
def test_a_divergence_may_be_good_enough(criterion: str, descents: int) -> None:
    values = {"budget": 16 * 30, "first_rung": 16 * 10, "batch_size": 16, "good_enough": 100.0}
    more = {"criterion": criterion, "learning_rates": (1e-2,), "starts": ("average",)}
    options = RefineOptions.model_validate({**values, **more})
    found = encode(deep_linear_originals(), [0.4, 0.6], normal_points(), options)
    assert len(found.notes["rungs"]) == descents


@pytest.mark.parametrize(("augmentation", "steps"), [(AS_THEY_ARE, 3 * 2), (AugmentationOptions(), 40)])
def test_inputs_that_cannot_be_mixed_are_shown_a_bounded_number_of_times(
    augmentation: AugmentationOptions, steps: int
) -> None:
    values = {"budget": 16 * 40, "passes": 3, "batch_size": 16, "held_out": 0.2, "learning_rates": (1e-2,)}
    options = RefineOptions.model_validate({**values, "starts": ("average",), "augmentation": augmentation})
    found = encode(deep_linear_originals(), [0.4, 0.6], normal_points(40), options)  # 32 of them in two batches
    assert [rung["steps"] for rung in found.notes["rungs"]] == [steps]


RACE = {"batch_size": 16, "learning_rates": (1e-2, 1e-3), "trial_steps": 3}
ALL = ("average", "coin", "head", "regress")


def test_starts_race_at_the_first_rate_and_the_winner_at_the_others() -> None:
    options = RefineOptions.model_validate({**RACE, "budget": 16 * 60, "starts": ALL, "augmentation": AS_THEY_ARE})
    notes = encode(trio("mlp"), BETA, normal_points(40), options).notes
    trials: dict[str, float] = notes["trial_errors"]
    *raced, last = (name.split(" ") for name in trials)
    assert [rate for _, rate in raced] == ["0.01"] * 3 and last == [notes["start"], "0.001"]
    assert [name for name, _ in raced][1:] == ["head", "regress"], "the best barycenter runs for all of them"
    assert notes["start"] == min(raced, key=lambda entry: trials[" ".join(entry)])[0]
    assert trials[f"{notes['start']} {notes['learning_rate']:g}"] == min(trials.values())


@pytest.mark.parametrize(
    ("augmentation", "budget", "left"),
    [(AS_THEY_ARE, 8 * 160, 0), (AS_THEY_ARE, 8 * 159, 40 - 3), (AugmentationOptions(), 8 * 160, 160 - 4 * 3)],
)
def test_where_points_are_all_there_is_and_the_budget_allows_each_trial_is_the_whole_descent(
    augmentation: AugmentationOptions, budget: int, left: int
) -> None:
    """Twenty passes over two batches are forty steps; three starts at one rate, and one more rate, are four trials."""
    values = {**RACE, "budget": budget, "first_rung": 16 * 500, "starts": ALL, "augmentation": augmentation}
    options = RefineOptions.model_validate({**values, "held_out": 0.2})
    found = encode(trio("mlp"), BETA, normal_points(40), options)
    assert sum(rung["steps"] for rung in found.notes["rungs"]) == left
    if not left:
        assert found.notes["held_out_error"] == min(found.notes["trial_errors"].values())


@pytest.mark.parametrize("distance", [1.0, 1e-2])
def test_one_learning_rate_serves_originals_near_and_far(distance: float) -> None:
    """As after fine-tuning a little and after training from fresh weights: what is reached is the same share."""
    near, points = deep_linear_originals(), normal_points()
    start = near[0].module.state_dict()
    with torch.no_grad():
        for name, parameter in near[1].module.named_parameters():
            parameter.copy_(start[name] + distance * (parameter - start[name]))
    options = RefineOptions(budget=1600, batch_size=16, starts=("average",), criterion="error")
    notes = encode(near, [0.4, 0.6], points, options).notes
    assert notes["held_out_error"] < 0.5 * min(notes["start_errors"].values())


def test_one_point_is_too_few() -> None:
    with pytest.raises(CalibrationError, match="two points"):
        encode(trio("mlp"), BETA, CalibrationInputs({"x": np.zeros((1, 3), np.float32)}), SHORT)


@pytest.mark.parametrize(
    "values",
    [
        {"budget": 0},
        {"first_rung": 0},
        {"good_enough": -1.0},
        {"batch_size": 0},
        {"learning_rates": ()},
        {"learning_rates": (-1.0,)},
        {"learning_rates": (float("inf"),)},
        {"optimizer": "sgd"},
        {"held_out": 0.0},
        {"held_out": 1.0},
        {"starts": ()},
        {"starts": ("magic",)},
        {"criterion": "loss"},
        {"augmentation": {"mixed": 2}},
        {"augmentation": {"shift": -0.1}},
        {"labels": "no"},
    ],
)
def test_bad_options_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        RefineOptions.model_validate(values)
