import pytest
import torch
from pydantic import ValidationError
from torch import nn

from coin_export.encode.average import AverageOptions
from coin_export.encode.grams import Layer, patches
from coin_export.encode.registry import encode
from coin_export.encode.regmean import RegMeanOptions
from tests.encode.cases import normal_points, originals_of, output_error, same_bytes, trio, twins
from tests.reference.networks import CASES

PLAIN = RegMeanOptions(off_diagonal=1.0, batch_size=7)
BETA = [0.2, 0.3, 0.5]

LAYERS: list[tuple[Layer, tuple[int, ...]]] = [
    (nn.Linear(4, 3), (2, 5, 4)),
    (nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2), (2, 4, 9)),
    (nn.Conv1d(4, 6, 3), (4, 9)),
    (nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), bias=False), (2, 4, 7, 6)),
    (nn.Conv2d(4, 4, 3, groups=4, dilation=2, padding=2, padding_mode="reflect"), (2, 4, 7, 6)),
    (nn.Conv2d(4, 2, 4, padding="same", dilation=(1, 2)), (2, 4, 7, 6)),
    (nn.Conv2d(4, 2, 2, padding="valid"), (2, 4, 7, 6)),
    (nn.Conv3d(2, 4, (1, 2, 3), stride=(1, 2, 1), padding=1), (2, 2, 3, 4, 5)),
]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=str)
def test_a_layer_is_linear_in_its_patches(layer: Layer, shape: tuple[int, ...]) -> None:
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = patches(layer, inputs)
    weight = layer.weight.reshape(found.shape[0], -1, found.shape[-1])
    outputs = torch.einsum("gpf,gof->pgo", found, weight).flatten(1)
    if layer.bias is not None:
        outputs = outputs + layer.bias
    wanted = layer(inputs)
    if not isinstance(layer, nn.Linear):
        wanted = wanted.reshape(-1, *wanted.shape[-len(layer.kernel_size) - 1 :]).movedim(1, -1)
    torch.testing.assert_close(outputs, wanted.reshape(outputs.shape))


@pytest.mark.parametrize(
    ("name", "modules"),
    [
        ("2", [nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4)) for _ in range(3)]),
        ("1", [nn.Sequential(nn.Flatten(), nn.Linear(3, 4)) for _ in range(3)]),
    ],
)
def test_weights_are_those_of_least_squares(name: str, modules: list[nn.Sequential]) -> None:
    points = normal_points(40)
    originals = originals_of(*modules)
    x = torch.from_numpy(points.arrays["x"])
    with torch.no_grad():
        seen = [module[: int(name)](x).double() for module in modules]
    weights = [module.get_parameter(f"{name}.weight").detach().double() for module in modules]
    rows = torch.cat([beta**0.5 * features for beta, features in zip(BETA, seen, strict=True)])
    wanted = torch.cat([beta**0.5 * f @ w.T for beta, f, w in zip(BETA, seen, weights, strict=True)])
    solution = torch.linalg.lstsq(rows, wanted).solution.T
    found = encode(originals, BETA, points, PLAIN).state_dict
    torch.testing.assert_close(found[f"{name}.weight"].double(), solution, rtol=1e-3, atol=1e-4)
    average = encode(originals, BETA, points, AverageOptions()).state_dict
    assert torch.equal(found[f"{name}.bias"], average[f"{name}.bias"])


def test_convolutions_are_regressed_too() -> None:
    """Each output channel of a group sees its own group's patches only."""
    torch.manual_seed(0)
    modules = [nn.Sequential(nn.Conv2d(2, 4, 1), nn.Tanh(), nn.Conv2d(4, 4, 3, groups=2, bias=False)) for _ in "ab"]
    points = normal_points(20, 2, 6, 6)
    originals = originals_of(*modules, calibration=points)
    found = encode(originals, [0.5, 0.5], points, PLAIN).state_dict["2.weight"]
    x = torch.from_numpy(points.arrays["x"])
    with torch.no_grad():
        seen = [torch.nn.functional.unfold(module[:2](x), 3).movedim(1, -1).flatten(0, 1) for module in modules]
    for group in range(2):
        columns, channels = slice(18 * group, 18 * group + 18), slice(2 * group, 2 * group + 2)
        rows = torch.cat([features[:, columns] for features in seen]).double()
        wanted = torch.cat(
            [
                features[:, columns].double()
                @ module.get_parameter("2.weight")[channels].detach().flatten(1).double().T
                for features, module in zip(seen, modules, strict=True)
            ]
        )
        solution = torch.linalg.lstsq(rows, wanted).solution.T
        torch.testing.assert_close(found[channels].flatten(1).double(), solution, rtol=1e-3, atol=1e-4)


def test_convolutions_may_be_left_to_the_average() -> None:
    originals, points = trio("cnn"), CASES["cnn"].calibration()
    found = encode(originals, BETA, points, RegMeanOptions(layers="linear"))
    everything = encode(originals, BETA, points, RegMeanOptions()).state_dict
    average = encode(originals, BETA, points, AverageOptions()).state_dict
    assert found.notes == {"regressed_layers": 1}
    assert torch.equal(found.state_dict["5.weight"], everything["5.weight"])
    assert torch.equal(found.state_dict["2.weight"], average["2.weight"])
    assert not torch.allclose(everything["2.weight"], average["2.weight"])


def test_linear_models_are_combined_exactly() -> None:
    torch.manual_seed(0)
    originals, points = originals_of(nn.Linear(3, 2), nn.Linear(3, 2)), normal_points()
    found = encode(originals, [0.3, 0.7], points, RegMeanOptions())
    assert output_error(found.state_dict, originals, [0.3, 0.7], points) < 1e-10
    assert found.notes == {"regressed_layers": 1}
    assert (found.cost.forward_passes, found.cost.backward_passes) == (2 * 60, 0)


def test_directions_that_no_point_takes_keep_the_plain_average() -> None:
    """With fewer points than features the ridge alone decides there, and rounding must not outweigh it."""
    torch.manual_seed(0)
    modules = [nn.Sequential(nn.Linear(3, 512), nn.ReLU(), nn.Linear(512, 4)) for _ in range(2)]
    originals, points = originals_of(*modules), normal_points(40)
    x = torch.from_numpy(points.arrays["x"])
    with torch.no_grad():
        seen = torch.cat([module[:2](x).double() for module in modules])
    _, values, directions = torch.linalg.svd(seen)
    unseen = directions[int((values > 1e-6 * values[0]).sum()) :]
    assert len(unseen) > 400
    found = encode(originals, [0.5, 0.5], points, PLAIN).state_dict["2.weight"].double()
    average = torch.stack([module.get_parameter("2.weight").detach().double() for module in modules]).mean(0)
    torch.testing.assert_close(found @ unseen.T, average @ unseen.T, rtol=0, atol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_identical_models_stay_that_model(case: str) -> None:
    originals = twins(case)
    found = encode(originals, [0.3, 0.7], CASES[case].calibration(), RegMeanOptions()).state_dict
    for name, tensor in originals[0].module.state_dict().items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6)


def test_without_correlations_and_with_equal_inputs_it_is_the_average() -> None:
    originals, points = trio("mlp"), CASES["mlp"].calibration()
    found = encode(originals, BETA, points, RegMeanOptions(off_diagonal=0)).state_dict
    average = encode(originals, BETA, points, AverageOptions()).state_dict
    torch.testing.assert_close(found["0.weight"], average["0.weight"])
    assert not torch.allclose(found["4.weight"], average["4.weight"])


def test_inputs_that_are_always_zero_leave_the_average() -> None:
    originals, points = trio("mlp"), CASES["mlp"].calibration()
    points.arrays["x"][:, 1] = 0
    found = encode(originals, BETA, points, RegMeanOptions()).state_dict
    average = encode(originals, BETA, points, AverageOptions()).state_dict
    torch.testing.assert_close(found["0.weight"][:, 1], average["0.weight"][:, 1])


def test_tied_weights_are_averaged_and_a_second_run_gives_the_same_bytes() -> None:
    originals, points = trio("tied"), CASES["tied"].calibration()
    found = encode(originals, BETA, points, RegMeanOptions())
    average = encode(originals, BETA, points, AverageOptions()).state_dict
    assert found.notes == {"regressed_layers": 1}
    assert found.state_dict["head.weight"] is found.state_dict["embedding.weight"]
    assert torch.equal(found.state_dict["head.weight"], average["head.weight"])
    assert same_bytes(found.state_dict, encode(originals, BETA, points, RegMeanOptions()).state_dict)


def test_weights_that_are_computed_are_left_to_the_average() -> None:
    torch.manual_seed(0)
    make = nn.utils.parametrizations.weight_norm
    originals = originals_of(*(nn.Sequential(make(nn.Linear(3, 4)), nn.ReLU(), nn.Linear(4, 2)) for _ in "ab"))
    found = encode(originals, [0.5, 0.5], normal_points(), RegMeanOptions())
    average = encode(originals, [0.5, 0.5], normal_points(), AverageOptions())
    assert found.notes == {"regressed_layers": 1}
    for name, tensor in average.state_dict.items():
        assert torch.equal(found.state_dict[name], tensor) == (name != "2.weight")


def test_the_batch_size_does_not_matter() -> None:
    originals, points = trio("cnn"), CASES["cnn"].calibration()
    states = [encode(originals, BETA, points, RegMeanOptions(batch_size=size)).state_dict for size in (1, 3, 64)]
    for state in states[1:]:
        for name, tensor in state.items():
            torch.testing.assert_close(tensor, states[0][name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("values", [{"off_diagonal": -0.1}, {"off_diagonal": 1.1}, {"batch_size": 0}, {"x": 1}])
def test_bad_options_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        RegMeanOptions.model_validate(values)
