import copy
import logging

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn

from coin_export.datasets.calibration import Array, CalibrationInputs
from coin_export.errors import CalibrationError, ModelError, NonFiniteError
from coin_export.fisher.diagonal import DiagonalFisher, diagonal_fisher
from coin_export.fisher.options import FisherOptions
from coin_export.model.signature import Original, infer_signature
from tests.reference.fisher import reference_fisher
from tests.reference.networks import CASES

GAUSSIAN = FisherOptions(estimate="exact")
CATEGORICAL = FisherOptions(likelihood="categorical", estimate="exact")


def assert_close(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], tolerance: float) -> None:
    """Compare in units of each tensor's largest value."""
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        scale = float(tensor.abs().max()) + 1e-30
        torch.testing.assert_close(found[name].double() / scale, tensor / scale, rtol=0, atol=tolerance, msg=name)


def signed(module: nn.Module, arrays: CalibrationInputs) -> Original:
    return Original("net", module.eval(), infer_signature(module, arrays))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("options", [GAUSSIAN, CATEGORICAL], ids=["gaussian", "categorical"])
def test_exact_is_the_reference(name: str, options: FisherOptions) -> None:
    original, calibration = CASES[name].original(), CASES[name].calibration()
    found = diagonal_fisher(original, calibration, options)
    outputs = tuple(spec.name for spec in original.signature.outputs)
    wanted = reference_fisher(original.module, calibration, outputs, options.likelihood)
    assert_close(found.diagonal, wanted, 1e-5)
    assert all(tensor.dtype == torch.float32 for tensor in found.diagonal.values())
    assert any(bool((tensor > 0).any()) for tensor in found.diagonal.values())


def test_passes_are_counted() -> None:
    original, calibration = CASES["two_heads"].original(), CASES["two_heads"].calibration()
    exact = diagonal_fisher(original, calibration, GAUSSIAN)
    assert (exact.points, exact.forward_passes, exact.backward_passes) == (5, 5, 5 * (2 + 6))
    probed = diagonal_fisher(original, calibration, FisherOptions(samples=3))
    assert (probed.points, probed.forward_passes, probed.backward_passes) == (5, 5, 5 * 3)


@pytest.mark.parametrize(
    "options",
    [
        FisherOptions(samples=2),
        FisherOptions(likelihood="categorical", estimate="sampled"),
        FisherOptions(likelihood="categorical", estimate="sign_probe"),
        CATEGORICAL,
    ],
    ids=lambda options: f"{options.likelihood}-{options.estimate}",
)
def test_the_batch_size_changes_nothing(options: FisherOptions) -> None:
    original, calibration = CASES["cnn"].original(), CASES["cnn"].calibration()
    whole = diagonal_fisher(original, calibration, options)
    for size in (1, 2, 3):
        split = diagonal_fisher(original, calibration, options.model_copy(update={"batch_size": size}))
        assert_close(split.diagonal, {name: tensor.double() for name, tensor in whole.diagonal.items()}, 1e-6)


def test_the_seed_changes_a_random_estimate_and_repeats_it() -> None:
    original, calibration = CASES["mlp"].original(), CASES["mlp"].calibration()
    one, again, other = (diagonal_fisher(original, calibration, FisherOptions(seed=seed)) for seed in (1, 1, 2))
    assert all(torch.equal(one.diagonal[name], again.diagonal[name]) for name in one.diagonal)
    assert any(not torch.equal(one.diagonal[name], other.diagonal[name]) for name in one.diagonal)


@pytest.mark.parametrize("case", ["mlp", "two_heads"])
@pytest.mark.parametrize(
    ("options", "exact"),
    [
        (FisherOptions(samples=2, batch_size=4000), GAUSSIAN),
        (FisherOptions(likelihood="categorical", estimate="sign_probe", samples=2, batch_size=4000), CATEGORICAL),
        (FisherOptions(likelihood="categorical", estimate="sampled", samples=2, batch_size=4000), CATEGORICAL),
    ],
    ids=["gaussian-sign_probe", "categorical-sign_probe", "categorical-sampled"],
)
def test_random_estimates_converge_to_the_exact_one(case: str, options: FisherOptions, exact: FisherOptions) -> None:
    original, few = CASES[case].original(), CASES[case].calibration().take(slice(0, 2))
    many = CalibrationInputs({name: np.tile(array, (2000, 1)) for name, array in few.arrays.items()})
    found = diagonal_fisher(original, many, options).diagonal
    wanted = diagonal_fisher(original, few, exact).diagonal
    # The standard error of 8000 squared draws is about one or two percent of the largest value.
    assert_close(found, {name: tensor.double() for name, tensor in wanted.items()}, 0.1)


@settings(max_examples=20, deadline=None)
@given(weights=st.lists(st.floats(-2, 2, width=32), min_size=2, max_size=2), x=st.floats(-2, 2, width=32))
def test_logistic_regression_by_hand(weights: list[float], x: float) -> None:
    """Two classes with logits w_c x: p = sigmoid((w_0 - w_1) x), and the Fisher of each w_c is p (1 - p) x^2."""
    layer = nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weights)[:, None])
    calibration = CalibrationInputs({"x": np.array([[x]], dtype=np.float32)})
    found = diagonal_fisher(signed(layer, calibration), calibration, CATEGORICAL).diagonal["weight"]
    p = 1 / (1 + np.exp(-(weights[0] - weights[1]) * x))
    np.testing.assert_allclose(found.numpy().ravel(), p * (1 - p) * x**2, rtol=1e-4, atol=1e-10)


def test_points_are_squared_before_they_are_summed() -> None:
    """Gradients of opposite points cancel in a batch sum, whose square would be zero; the Fisher is E[x^2]."""
    calibration = CalibrationInputs({"x": np.array([[3.0], [-3.0]], dtype=np.float32)})
    original = signed(nn.Linear(1, 1, bias=False), calibration)
    for options in (GAUSSIAN, FisherOptions(samples=5)):
        assert diagonal_fisher(original, calibration, options).diagonal["weight"].item() == pytest.approx(9.0)


def test_frozen_parameters_and_the_module_itself_are_left_alone() -> None:
    original, calibration = CASES["batch_norm"].original(), CASES["batch_norm"].calibration()
    trainable = diagonal_fisher(original, calibration, FisherOptions())
    original.module.requires_grad_(False)
    before = copy.deepcopy(original.module.state_dict())
    frozen = diagonal_fisher(original, calibration, FisherOptions())
    assert all(torch.equal(frozen.diagonal[name], trainable.diagonal[name]) for name in trainable.diagonal)
    assert all(torch.equal(before[name], tensor) for name, tensor in original.module.state_dict().items())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in original.module.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_models_get_float32_statistics(dtype: torch.dtype) -> None:
    """Gradients of 1e-4 have squares of 1e-8, below what float16 can hold."""
    torch.manual_seed(0)
    half = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).to(dtype)
    wide = copy.deepcopy(half).float()
    small = (1e-4 * np.random.default_rng(0).normal(size=(4, 3))).astype(np.float16)
    inputs = CalibrationInputs({"x": small.astype(np.float32)})
    given = CalibrationInputs({"x": small})
    if dtype == torch.float16:
        original = signed(half, given)
    else:  # numpy has no bfloat16: such a model takes float32 and converts it

        class Converting(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = half

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                out: torch.Tensor = self.inner(x.to(next(self.parameters()).dtype))
                return out

        original, given = signed(Converting(), inputs), inputs
    found = diagonal_fisher(original, given, GAUSSIAN).diagonal
    wanted = diagonal_fisher(signed(wide, inputs), inputs, GAUSSIAN).diagonal
    found = {name.removeprefix("inner."): tensor for name, tensor in found.items()}
    assert_close(found, {name: tensor.double() for name, tensor in wanted.items()}, 1e-4)
    assert float(found["0.weight"].max()) > 0


def test_a_model_that_names_its_half_precision_is_refused() -> None:
    class Halving(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2).half()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.layer(x.half())
            return out

    calibration = CASES["mlp"].calibration()
    with pytest.raises(ModelError, match="must take its dtype from its weights"):
        diagonal_fisher(signed(Halving(), calibration), calibration, FisherOptions())


def test_what_cannot_be_vectorised_is_handled_point_by_point(caplog: pytest.LogCaptureFixture) -> None:
    original, calibration = CASES["recurrent"].original(), CASES["recurrent"].calibration()
    with caplog.at_level(logging.WARNING):
        diagonal_fisher(original, calibration, FisherOptions(batch_size=2))
    assert [record.message.split(",")[0] for record in caplog.records] == ["model 'a' is handled point by point"]


def test_the_mean_is_over_all_elements() -> None:
    fisher = DiagonalFisher({"a": torch.ones(3), "b": torch.full((1,), 5.0)}, 1, 1, 1)
    assert fisher.mean() == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"likelihood": "gaussian", "estimate": "sampled"}, "no labels to sample"),
        ({"estimate": "exact", "samples": 2}, "leave out samples"),
        ({"samples": 0}, "samples"),
        ({"batch_size": 0}, "batch_size"),
        ({"probes": 1}, "probes"),
    ],
)
def test_senseless_options_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        FisherOptions.model_validate(values)


def test_what_no_output_depends_on_is_told_and_outputs_that_depend_on_nothing_are_refused(
    caplog: pytest.LogCaptureFixture,
) -> None:
    calibration = CASES["mlp"].calibration()

    class Half(nn.Module):
        def __init__(self, all_detached: bool) -> None:
            super().__init__()
            self.first, self.second, self.all_detached = nn.Linear(3, 3), nn.Linear(3, 2), all_detached

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.second(self.first(x).detach())
            return out.detach() if self.all_detached else out

    diagonal_fisher(signed(Half(False), calibration), calibration, FisherOptions())
    assert "no output depends on first.weight, first.bias" in caplog.text
    with pytest.raises(ModelError, match=r"^no output depends on any weight"):
        diagonal_fisher(signed(Half(True), calibration), calibration, FisherOptions())


def test_training_mode_is_refused() -> None:
    original, calibration = CASES["batch_norm"].original(), CASES["batch_norm"].calibration()
    original.module.get_submodule("1").train()
    with pytest.raises(ModelError, match=r"'a' is in training mode; call eval\(\)"):
        diagonal_fisher(original, calibration, FisherOptions())


def test_a_model_without_parameters_is_refused() -> None:
    calibration = CASES["mlp"].calibration()
    with pytest.raises(ModelError, match="no parameters"):
        diagonal_fisher(signed(nn.Tanh(), calibration), calibration, FisherOptions())


@pytest.mark.parametrize(
    "arrays",
    [
        {"x": np.zeros((4, 2), np.float32)},
        {"x": np.zeros((4, 3), np.float64)},
        {"y": np.zeros((4, 3), np.float32)},
        {"x": np.zeros((4, 3), np.float32), "y": np.zeros((4, 3), np.float32)},
    ],
    ids=["shape", "dtype", "name", "surplus"],
)
def test_inputs_of_another_signature_are_refused(arrays: dict[str, Array]) -> None:
    with pytest.raises(CalibrationError, match=r"model 'a' takes \[\('x', \(3,\), 'float32'\)\]"):
        diagonal_fisher(CASES["mlp"].original(), CalibrationInputs(arrays), FisherOptions())


@pytest.mark.parametrize(("case", "output"), [("two_heads", "tags"), ("recurrent", "output")])
def test_outputs_that_are_not_finite_are_named(case: str, output: str) -> None:
    original, calibration = CASES[case].original(), CASES[case].calibration()
    *_, bias = original.module.parameters()
    with torch.no_grad():
        bias.fill_(float("inf"))
    with pytest.raises(NonFiniteError, match=f"model 'a': NaN or infinity in output {output} "):
        diagonal_fisher(original, calibration, FisherOptions())


def test_points_with_outputs_that_are_not_finite_are_named() -> None:
    calibration = CalibrationInputs({"x": np.array([[1.0]] * 5 + [[3e38]], dtype=np.float32)})
    layer = nn.Linear(1, 1)
    nn.init.constant_(layer.weight, 2.0)
    with pytest.raises(NonFiniteError, match="on calibration points 4 to 5"):
        diagonal_fisher(signed(layer, calibration), calibration, FisherOptions(batch_size=2))


def test_statistics_that_are_not_finite_are_named() -> None:
    calibration = CalibrationInputs({"x": np.full((2, 1), 1e25, np.float32)})
    with pytest.raises(NonFiniteError, match="NaN or infinity in weight;"):
        diagonal_fisher(signed(nn.Linear(1, 1), calibration), calibration, FisherOptions())


def test_a_model_that_needs_whole_batches_is_refused() -> None:
    class NeedsTwo(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.layer(x - x[1:2].expand(len(x), 3))
            return out

    calibration = CASES["mlp"].calibration()
    with pytest.raises(ModelError, match="cannot be differentiated on single calibration points"):
        diagonal_fisher(signed(NeedsTwo(), calibration), calibration, FisherOptions())
