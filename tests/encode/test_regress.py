import copy

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from coin_export.datasets.calibration import CalibrationInputs
from coin_export.encode.affine import KINDS, kind_of, observing
from coin_export.encode.average import AverageOptions
from coin_export.encode.coin import START
from coin_export.encode.encoding import StateDict
from coin_export.encode.registry import encode
from coin_export.encode.regress import RegressOptions
from tests.encode.cases import deep_linear_originals, normal_points, originals_of, output_error, same_bytes, trio
from tests.reference.networks import CASES

BETA = [0.2, 0.3, 0.5]
TIGHT = RegressOptions(ridge=1e-6)

LAYERS: list[tuple[nn.Module, tuple[int, ...]]] = [
    (nn.Linear(4, 3), (2, 5, 4)),
    (nn.Linear(4, 3, bias=False), (2, 4)),
    (nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2), (2, 4, 9)),
    (nn.Conv2d(4, 4, 3, groups=4, dilation=2, padding=2), (2, 4, 7, 6)),
    (nn.Conv2d(4, 8, 3, groups=4, bias=False), (2, 4, 7, 6)),
    (nn.Conv3d(2, 4, (1, 2, 3), stride=(1, 2, 1), padding=1), (2, 2, 3, 4, 5)),
    (nn.BatchNorm1d(4).eval(), (2, 4)),
    (nn.BatchNorm2d(4).eval(), (2, 4, 3, 2)),
    (nn.GroupNorm(2, 4), (2, 4, 3, 2)),
    (nn.LayerNorm(4), (2, 5, 4)),
    (nn.LayerNorm((3, 4)), (2, 5, 3, 4)),
    (nn.RMSNorm(4), (2, 5, 4)),
    (nn.MultiheadAttention(4, 2, batch_first=True), (2, 5, 4)),
]


def drawn(module: nn.Module) -> nn.Module:
    """Other weights and statistics than those of a new layer, such as a scale of one."""
    torch.manual_seed(5)
    with torch.no_grad():
        for tensor in module.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand_like(tensor) + 0.1)
    return module


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=str)
def test_a_layer_is_affine_in_its_features(layer: nn.Module, shape: tuple[int, ...]) -> None:
    layer = drawn(layer)
    kind = kind_of(layer)
    assert kind is not None
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    calls: list[tuple[torch.Tensor, torch.Tensor]] = []
    with observing(layer, {""}, lambda _, given, output: calls.append((given, output))):
        layer(*[inputs] * (3 if isinstance(layer, nn.MultiheadAttention) else 1))
    ((seen, output),) = calls
    features, outputs = kind.features(layer, seen), kind.outputs(layer, output)
    groups, points, _, width = features.shape
    assert points == shape[0]
    weight = getattr(layer, kind.weight).reshape(groups, 1, -1, width)
    wanted = features @ weight.transpose(2, 3)
    bias = getattr(layer, kind.bias, None)
    if bias is not None:
        wanted = wanted + bias.reshape(groups, 1, 1, -1)
    torch.testing.assert_close(outputs, wanted)


def test_subclasses_and_layers_without_weights_are_not_taken_for_affine() -> None:
    class Doubled(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    assert kind_of(Doubled(3, 2)) is None
    assert kind_of(nn.LayerNorm(3, elementwise_affine=False)) is None
    assert kind_of(nn.BatchNorm1d(3, track_running_stats=False)) is None
    assert kind_of(nn.ReLU()) is None


@pytest.mark.parametrize("layer", [nn.Linear(3, 2), nn.LayerNorm(3), nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))])
def test_models_whose_features_are_alike_are_combined_exactly(layer: nn.Module) -> None:
    originals, points = originals_of(*(drawn(copy.deepcopy(layer)) for _ in "abc")), normal_points()
    with torch.no_grad():
        for shift, original in enumerate(originals):
            for parameter in original.module.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.3 * shift)
    found = encode(originals, BETA, points, TIGHT)
    assert output_error(found.state_dict, originals, BETA, points) < 1e-8


def test_errors_of_earlier_layers_are_made_good() -> None:
    """The combination is linear in the input, so the last layer alone can reach it from any features of full rank."""
    originals, points = deep_linear_originals(3), normal_points()
    coin = encode(originals, BETA, points, START).state_dict
    found = encode(originals, BETA, points, TIGHT).state_dict
    assert output_error(coin, originals, BETA, points) > 1e-3
    assert output_error(found, originals, BETA, points) < 1e-8


def test_the_weights_are_those_of_ridge_regression() -> None:
    originals, points = trio("mlp"), normal_points(40)
    options = RegressOptions(ridge=0.1)
    start = encode(originals, BETA, points, START).state_dict
    found = encode(originals, BETA, points, options).state_dict
    module = copy.deepcopy(originals[0].module)
    assert isinstance(module, nn.Sequential)
    module.load_state_dict({**found, "4.weight": start["4.weight"], "4.bias": start["4.bias"]})
    x = torch.from_numpy(points.arrays["x"])
    with torch.no_grad():
        outputs = [beta * original.module(x).double() for beta, original in zip(BETA, originals, strict=True)]
        wanted = torch.stack(outputs).sum(0)
        features = module[:4](x).double()
    ridge = 0.1 * features.square().sum(0).mean()
    rows = torch.cat([features, torch.ones(40, 1, dtype=torch.float64)], 1)
    pull = torch.diag(torch.tensor([*[float(ridge) ** 0.5] * 4, 4.0**0.5], dtype=torch.float64))
    before = torch.cat([start["4.weight"], start["4.bias"][:, None]], 1).double().T
    solution = torch.linalg.lstsq(torch.cat([rows, pull]), torch.cat([wanted, pull @ before])).solution
    torch.testing.assert_close(found["4.weight"].double(), solution[:4].T, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["4.bias"].double(), solution[4], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_the_batch_size_does_not_matter(case: str) -> None:
    originals, points = trio(case), CASES[case].calibration()
    states = [encode(originals, BETA, points, RegressOptions(batch_size=size)).state_dict for size in (1, 2, 64)]
    for state in states[1:]:
        assert_close(state, states[0])


def test_memory_decides_how_often_the_originals_are_asked_and_not_what_comes_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    originals, points = trio("cnn"), CASES["cnn"].calibration()
    together = encode(originals, BETA, points, RegressOptions())
    monkeypatch.setattr("coin_export.encode.regress._MEMORY", 1)
    one_by_one = encode(originals, BETA, points, RegressOptions())
    assert same_bytes(one_by_one.state_dict, together.state_dict)
    layers = together.notes["regressed_layers"]
    saved = one_by_one.cost.forward_passes - together.cost.forward_passes
    assert layers > 1 and saved == (layers - 1) * len(originals) * len(points)


def assert_close(found: StateDict, wanted: StateDict) -> None:
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, wanted[name], rtol=1e-3, atol=1e-4)


def test_a_convolution_with_many_positions_takes_a_part_of_them_whatever_the_batch_size() -> None:
    torch.manual_seed(0)
    points = normal_points(8, 2, 40, 40)
    originals = originals_of(*(nn.Conv2d(2, 3, 3) for _ in "ab"), calibration=points)
    states = [encode(originals, [0.5, 0.5], points, RegressOptions(batch_size=size)).state_dict for size in (1, 3, 8)]
    for state in states:
        assert_close(state, states[0])
        assert output_error(state, originals, [0.5, 0.5], points) < 1e-8


@pytest.mark.parametrize("case", CASES)
def test_what_fits_better_layer_by_layer_fits_better_at_the_end(case: str) -> None:
    originals, points = trio(case), CASES[case].calibration()
    found = encode(originals, BETA, points, TIGHT)
    start = encode(originals, BETA, points, START).state_dict
    assert found.notes["regressed_layers"] > 0
    assert output_error(found.state_dict, originals, BETA, points) < output_error(start, originals, BETA, points)


def test_what_the_originals_share_stays_as_it_is() -> None:
    originals = trio("mlp")
    shared = {name: originals[0].module.state_dict()[name].clone() for name in ("0.weight", "0.bias", "4.bias")}
    with torch.no_grad():
        for original in originals:
            for name, tensor in shared.items():
                original.module.get_parameter(name).copy_(tensor)
    found = encode(originals, BETA, normal_points(), RegressOptions())
    assert found.notes["regressed_layers"] == 2
    assert all(torch.equal(found.state_dict[name], tensor) for name, tensor in shared.items())


def test_tied_weights_stay_tied_and_a_second_run_gives_the_same_bytes() -> None:
    originals, points = trio("tied"), CASES["tied"].calibration()
    found = encode(originals, BETA, points, RegressOptions())
    assert found.notes["regressed_layers"] == 1
    assert found.state_dict["head.weight"] is found.state_dict["embedding.weight"]
    assert same_bytes(found.state_dict, encode(originals, BETA, points, RegressOptions()).state_dict)


def test_the_originals_are_left_as_they_are() -> None:
    originals = trio("transformer")
    before = [copy.deepcopy(original.module.state_dict()) for original in originals]
    encode(originals, BETA, CASES["transformer"].calibration(), RegressOptions())
    for original, state in zip(originals, before, strict=True):
        assert same_bytes(original.module.state_dict(), state)
        assert not any("forward" in vars(part) or part._forward_hooks for part in original.module.modules())


@pytest.mark.parametrize(("case", "count"), [("mlp", 1), ("two_heads", 2), ("tied", 0), ("transformer", 1)])
def test_the_head_alone_can_be_regressed(case: str, count: int) -> None:
    originals, points = trio(case), CASES[case].calibration()
    found = encode(originals, BETA, points, RegressOptions(start="average", layers="head"))
    average = encode(originals, BETA, points, AverageOptions()).state_dict
    changed = {name for name, tensor in found.state_dict.items() if not torch.equal(tensor, average[name])}
    assert found.notes["regressed_layers"] == count
    assert len(changed) == 2 * count
    if count:
        error = output_error(found.state_dict, originals, BETA, points)
        assert error < output_error(average, originals, BETA, points)


def test_a_layer_that_is_called_twice_sees_both_calls() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.layer(torch.tanh(self.layer(x)))
            return out

    torch.manual_seed(0)
    originals, points = originals_of(Twice(), Twice()), normal_points()
    found = encode(originals, [0.5, 0.5], points, RegressOptions(start="average"))
    average = encode(originals, [0.5, 0.5], points, RegressOptions(start="average", ridge=1e9)).state_dict
    error = output_error(found.state_dict, originals, [0.5, 0.5], points)
    assert error < output_error(average, originals, [0.5, 0.5], points)


class Residual(nn.Module):
    """One layer, called three times around a residual, in place or not."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.inner, self.head, self.in_place = nn.Linear(3, 3), nn.Linear(3, 2), in_place

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = x + 0
        for _ in range(3):
            step = torch.relu(self.inner(hidden))
            hidden = hidden.add_(step) if self.in_place else hidden + step
        out: torch.Tensor = self.head(hidden)
        return out


def test_inputs_that_are_overwritten_later_are_those_that_the_layer_saw() -> None:
    states = []
    for in_place in (False, True):
        torch.manual_seed(0)
        originals = originals_of(*(Residual(in_place) for _ in "ab"))
        states.append(encode(originals, [0.4, 0.6], normal_points(), RegressOptions(start="average")).state_dict)
    assert same_bytes(*states)


class PointByPoint(nn.Module):
    """Calls its convolution with one point after the other, without the dimension of points, or with all at once."""

    def __init__(self, alone: bool) -> None:
        super().__init__()
        self.convolution, self.head, self.alone = nn.Conv1d(2, 4, 3), nn.Linear(4, 2), alone

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = torch.stack([self.convolution(point) for point in x]) if self.alone else self.convolution(x)
        out: torch.Tensor = self.head(torch.relu(maps).mean(-1))
        return out


def test_a_convolution_of_single_points_is_regressed_as_one_of_batches() -> None:
    points, states = normal_points(40, 2, 9), []
    for alone in (False, True):
        torch.manual_seed(0)
        originals = originals_of(*(PointByPoint(alone) for _ in "ab"), calibration=points)
        states.append(encode(originals, [0.4, 0.6], points, RegressOptions(start="average")).state_dict)
    assert_close(states[1], states[0])


class LearnedQuery(nn.Module):
    """Projects and normalises a learned vector that no point has a part in."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.norm = nn.Parameter(torch.randn(4)), nn.Linear(4, 3), nn.LayerNorm(3)
        nn.init.normal_(self.norm.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = x * self.norm(self.key(self.query))
        return out


def test_what_is_computed_once_for_all_points_is_regressed_too() -> None:
    torch.manual_seed(0)
    originals, points = originals_of(LearnedQuery(), LearnedQuery()), normal_points()
    found = encode(originals, [0.4, 0.6], points, RegressOptions(start="average"))
    assert found.notes["regressed_layers"] == 2
    average = encode(originals, [0.4, 0.6], points, AverageOptions()).state_dict
    error = output_error(found.state_dict, originals, [0.4, 0.6], points)
    assert error < output_error(average, originals, [0.4, 0.6], points)


class Experts(nn.Module):
    """Asks one of two experts about each point."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.experts, self.head = (
            nn.Linear(3, 1),
            nn.ModuleList(nn.Linear(3, 4) for _ in "ab"),
            nn.Linear(4, 2),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.gate(x)[:, 0] > 0
        hidden = torch.zeros(len(x), 4)
        for expert, chosen in zip(self.experts, (first, ~first), strict=True):
            if chosen.any():
                hidden[chosen] = expert(x[chosen])
        out: torch.Tensor = self.head(hidden)
        return out


def test_experts_that_models_ask_about_other_points_stay_as_they_are() -> None:
    torch.manual_seed(0)
    originals, points = originals_of(Experts(), Experts()), normal_points()
    found = encode(originals, [0.4, 0.6], points, RegressOptions(start="average"))
    average = encode(originals, [0.4, 0.6], points, AverageOptions()).state_dict
    moved = {name for name, tensor in found.state_dict.items() if not torch.equal(tensor, average[name])}
    assert moved == {"gate.weight", "gate.bias", "head.weight", "head.bias"}


def test_every_kind_is_tested() -> None:
    tested = {type(layer) for layer, _ in LAYERS} | {nn.modules.linear.NonDynamicallyQuantizableLinear, nn.BatchNorm3d}
    assert tested == set(KINDS)


@pytest.mark.parametrize("values", [{"start": "best"}, {"ridge": 0}, {"ridge": float("inf")}, {"batch_size": 0}])
def test_bad_options_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        RegressOptions.model_validate(values)


def test_calibration_of_one_point_is_enough() -> None:
    points = CalibrationInputs({"x": normal_points(1).arrays["x"]})
    encode(trio("mlp"), BETA, points, RegressOptions())
