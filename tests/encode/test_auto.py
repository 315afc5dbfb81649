import pytest
import torch
from pydantic import ValidationError
from torch import nn

from coin_export.encode.auto import AutoOptions
from coin_export.encode.average import AverageOptions
from coin_export.encode.coin import CoinOptions
from coin_export.encode.combination import Combination
from coin_export.encode.cost import Passes
from coin_export.encode.registry import encode
from coin_export.encode.selection import HeldOut
from coin_export.errors import NonFiniteError
from tests.encode.cases import normal_points, originals_of, output_error, same_bytes, trio
from tests.reference.networks import CASES

BETA = [0.2, 0.3, 0.5]


@pytest.mark.parametrize("case", ["mlp", "cnn", "tied", "two_inputs"])
def test_the_candidate_with_the_least_held_out_error_is_chosen(case: str) -> None:
    originals, calibration, options = trio(case), CASES[case].calibration(), AutoOptions(held_out=0.4)
    found = encode(originals, BETA, calibration, options)
    used, held_out = calibration.split(options.held_out, options.seed)
    candidates = {"average": encode(originals, BETA, used, AverageOptions()).state_dict}
    for damping in options.dampings:
        name = f"coin, damping {damping:g}"
        candidates[name] = encode(originals, BETA, used, CoinOptions(damping=damping)).state_dict
    errors = {name: output_error(state, originals, BETA, held_out) for name, state in candidates.items()}
    assert found.notes["held_out_errors"] == errors
    assert found.notes["chosen"] == min(errors, key=lambda name: errors[name])
    assert "2 held-out points" in found.notes["why"]
    assert same_bytes(found.state_dict, candidates[found.notes["chosen"]])


def test_statistics_are_computed_once() -> None:
    cost = encode(trio("mlp"), BETA, CASES["mlp"].calibration(), AutoOptions(held_out=0.4)).cost
    wanted_on_held_out, candidates, fisher = 3 * 2, 4 * 2, 3 * 3
    assert (cost.forward_passes, cost.backward_passes) == (wanted_on_held_out + candidates + fisher, fisher)


def test_of_equals_the_simplest_is_taken() -> None:
    torch.manual_seed(0)
    module = nn.Linear(3, 2)
    found = encode(originals_of(module, module), [0.5, 0.5], normal_points(), AutoOptions())
    assert found.notes["chosen"] == "average"


def test_the_error_is_the_mean_over_points_and_output_elements() -> None:
    originals, points = trio("two_heads"), CASES["two_heads"].calibration()
    passes = Passes()
    held_out = HeldOut(Combination(originals, BETA, passes), points)
    candidate = originals[0].module
    with torch.no_grad():
        x = torch.from_numpy(points.arrays["x"])
        outputs = [torch.cat([out.flatten(1) for out in original.module(x).values()], 1) for original in originals]
        wanted = sum(beta * out for beta, out in zip(BETA, outputs, strict=True))
        assert held_out.error(candidate) == pytest.approx(float((outputs[0] - wanted).square().mean()), rel=1e-5)
    assert (passes.forward, passes.backward) == (4 * 5, 0)


def test_candidates_that_all_overflow_are_named() -> None:
    originals = originals_of(nn.Linear(3, 2), nn.Linear(3, 2))
    with torch.no_grad():
        for original in originals:
            original.module.get_parameter("bias").fill_(3e38)
    calibration = normal_points()
    calibration.arrays["x"][:] *= 1e38
    with pytest.raises(NonFiniteError):
        encode(originals, [0.5, 0.5], calibration, AutoOptions(dampings=()))


@pytest.mark.parametrize("values", [{"dampings": (-1.0,)}, {"held_out": 0}, {"held_out": 1}, {"seed": -1}, {"x": 1}])
def test_bad_options_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        AutoOptions.model_validate(values)
