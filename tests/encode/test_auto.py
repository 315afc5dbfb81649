import pytest
import torch
from pydantic import ValidationError
from torch import nn

from coin_export.encode.auto import AutoOptions
from coin_export.encode.average import AverageOptions
from coin_export.encode.coin import START
from coin_export.encode.registry import EncoderOptions, encode, encode_rows
from coin_export.encode.regmean import RegMeanOptions
from coin_export.encode.regress import RegressOptions
from coin_export.errors import NonFiniteError
from tests.encode.cases import decoded_divergence, normal_points, originals_of, same_bytes, trio
from tests.reference.networks import CASES

BETA = [0.2, 0.3, 0.5]


@pytest.mark.parametrize("case", ["mlp", "cnn", "tied", "two_inputs"])
def test_the_candidate_that_decodes_held_out_inputs_best_is_chosen(case: str) -> None:
    originals, calibration, options = trio(case), CASES[case].calibration(), AutoOptions(held_out=0.4)
    found = encode(originals, BETA, calibration, options)
    used, held_out = calibration.split(options.held_out, options.seed)
    made: dict[str, EncoderOptions] = {
        "average": AverageOptions(),
        "coin": START,
        "head": RegressOptions(start="average", layers="head"),
        "regmean": RegMeanOptions(),
        "regress": RegressOptions(),
    }
    candidates = {name: encode(originals, BETA, used, item).state_dict for name, item in made.items()}
    errors = {name: decoded_divergence([state], originals, [BETA], held_out) for name, state in candidates.items()}
    assert found.notes["held_out_errors"] == errors
    assert found.notes["chosen"] == min(errors, key=lambda name: errors[name])
    assert found.notes["why"] == "least divergence of the decoded outputs on 2 held-out points"
    assert same_bytes(found.state_dict, candidates[found.notes["chosen"]])


def test_coded_models_are_chosen_together() -> None:
    originals, calibration, rows = trio("mlp"), CASES["mlp"].calibration(), [[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]]
    encodings = encode_rows(originals, rows, calibration, AutoOptions(held_out=0.4))
    first, second = encodings
    assert first.notes == second.notes
    _, held_out = calibration.split(0.4, 0)
    error = decoded_divergence([first.state_dict, second.state_dict], originals, rows, held_out)
    assert error == min(first.notes["held_out_errors"].values())


def test_costs_are_those_of_all_candidates() -> None:
    """Three points to encode with, two held out; Fisher statistics are computed once."""
    cost = encode(trio("mlp"), BETA, CASES["mlp"].calibration(), AutoOptions(held_out=0.4)).cost
    wanted_on_held_out, candidates, fisher = 3 * 2, 5 * 2, 3 * 3
    head, regmean = (3 + 1) * 3, 3 * 3
    regress = (3 + 3) * 3  # each of three originals once for all layers, the coded model for each of three
    forward = wanted_on_held_out + candidates + fisher + head + regmean + regress
    assert (cost.forward_passes, cost.backward_passes) == (forward, fisher)


def test_of_equals_the_simplest_is_taken() -> None:
    torch.manual_seed(0)
    module = nn.Linear(3, 2)
    found = encode(originals_of(module, module), [0.5, 0.5], normal_points(), AutoOptions())
    assert found.notes["chosen"] == "average"


def test_candidates_that_all_overflow_are_named() -> None:
    originals = originals_of(nn.Linear(3, 2), nn.Linear(3, 2))
    with torch.no_grad():
        for original in originals:
            original.module.get_parameter("bias").fill_(3e38)
    calibration = normal_points()
    calibration.arrays["x"][:] *= 1e38
    with pytest.raises(NonFiniteError):
        encode(originals, [0.5, 0.5], calibration, AutoOptions())


@pytest.mark.parametrize(
    "values",
    [
        {"candidates": ()},
        {"candidates": ("magic",)},
        {"criterion": "loss"},
        {"held_out": 0},
        {"held_out": 1},
        {"seed": -1},
        {"x": 1},
    ],
)
def test_bad_options_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        AutoOptions.model_validate(values)
