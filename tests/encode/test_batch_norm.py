import copy

import pytest
import torch
from torch import nn

from coin_export.encode.auto import AutoOptions
from coin_export.encode.batch_norm import estimate_statistics
from coin_export.encode.registry import encode
from coin_export.encode.teachers import working_inputs
from tests.encode.cases import normal_points, originals_of, trio
from tests.reference.networks import CASES

BETA = [0.2, 0.3, 0.5]


@pytest.mark.parametrize("points", [1, 300])
def test_statistics_are_those_of_the_layers_own_inputs(points: int) -> None:
    """Two layers in a row: the second sees what the first gives with its new statistics. More points than a batch."""
    torch.manual_seed(0)
    make = [nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))] * 2
    images = normal_points(points, 2, 6, 6)
    originals = originals_of(*(copy.deepcopy(module) for module in make), calibration=images)
    for original in originals:
        for name, buffer in original.module.named_buffers():
            if not name.endswith("tracked"):
                buffer.uniform_(0.5, 2.0)
    module = copy.deepcopy(originals[0].module)
    inputs = working_inputs(images)
    assert estimate_statistics(module, originals, inputs) == ["1", "4"]
    assert isinstance(module, nn.Sequential)
    with torch.no_grad():
        for index in (1, 4):
            seen = module[:index](*inputs.values())
            torch.testing.assert_close(module[index].running_mean, seen.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
            variance = seen.var((0, 2, 3), unbiased=False)
            torch.testing.assert_close(module[index].running_var, variance, rtol=1e-4, atol=1e-5)


def test_statistics_that_all_originals_share_are_left_alone() -> None:
    originals = trio("batch_norm")
    for original in originals[1:]:
        for buffer in ("1.running_mean", "1.running_var"):
            original.module.get_buffer(buffer).copy_(originals[0].module.get_buffer(buffer))
    before = copy.deepcopy(originals[0].module.state_dict())
    module = copy.deepcopy(originals[0].module)
    assert estimate_statistics(module, originals, working_inputs(CASES["batch_norm"].calibration())) == []
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_the_policy_says_what_is_tried() -> None:
    originals, points = trio("batch_norm"), CASES["batch_norm"].calibration()
    for original, shift in zip(originals, (0.1, 0.2, 0.3), strict=True):  # as after training
        with torch.no_grad():
            original.module.get_parameter("1.weight").add_(shift)
            original.module.get_parameter("1.bias").add_(shift)

    def tried(**options: object) -> list[str]:
        chosen = AutoOptions.model_validate({"candidates": ("average", "coin"), **options})
        return list(encode(originals, BETA, points, chosen).notes["held_out_errors"])

    def ways(*endings: str) -> list[str]:
        return [f"{name}{ending}" for name in ("average", "coin") for ending in endings]

    assert tried(batch_norm="average") == ways("")
    assert tried(batch_norm="estimate") == ways(", BatchNorm estimated")
    assert tried(batch_norm="fold") == ways(", BatchNorm folded")
    assert tried() == ways("", ", BatchNorm estimated", ", BatchNorm folded")


def test_networks_without_batch_norm_are_tried_once() -> None:
    points = CASES["mlp"].calibration()
    for policy in ("auto", "estimate", "fold"):
        options = AutoOptions.model_validate({"candidates": ("average",), "batch_norm": policy})
        assert list(encode(trio("mlp"), BETA, points, options).notes["held_out_errors"]) == ["average"]
