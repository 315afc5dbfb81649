import copy
from collections.abc import Sequence
from itertools import permutations
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError
from torch import nn

from coin_export.datasets.calibration import CalibrationInputs
from coin_export.encode import registry
from coin_export.encode.architecture import coded_module
from coin_export.encode.auto import AutoOptions
from coin_export.encode.average import AverageOptions
from coin_export.encode.barycenter_cg import BarycenterCgOptions
from coin_export.encode.coin import CoinOptions, Normalization
from coin_export.encode.distill import DistillOptions
from coin_export.encode.encoding import EncodeCost, Encoding, StateDict
from coin_export.encode.refine import RefineOptions
from coin_export.encode.registry import DEFAULT_ENCODER, ENCODERS, EncoderOptions, encode, encode_rows
from coin_export.encode.regmean import RegMeanOptions
from coin_export.encode.regress import RegressOptions
from coin_export.errors import ArchitectureError, CodeError, NonFiniteError
from coin_export.fisher.diagonal import diagonal_fisher
from coin_export.fisher.options import FisherOptions
from coin_export.model.signature import Original, infer_signature
from tests.encode.cases import originals_of, output_error
from tests.encode.quick import QUICK
from tests.reference.networks import CASES

EXACT = FisherOptions(estimate="exact")
AVERAGE = AverageOptions()
NORMALIZATIONS: tuple[Normalization, ...] = ("none", "per_model", "per_tensor")
COINS = [CoinOptions(normalization=how, damping=damping) for how in NORMALIZATIONS for damping in (0.0, 0.1)]


def trio(case: str = "mlp") -> list[Original]:
    return [CASES[case].original(name, seed) for seed, name in enumerate("abc")]


def assert_equal(left: StateDict, right: StateDict) -> None:
    assert left.keys() == right.keys()
    for name, tensor in right.items():
        assert left[name].dtype == tensor.dtype
        torch.testing.assert_close(left[name], tensor, rtol=1e-6, atol=1e-7, msg=name)


def named(option: BaseModel) -> str:
    return "-".join(str(value) for key, value in option.model_dump().items() if key != "fisher")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("options", [AVERAGE, *COINS], ids=named)
def test_identical_models_are_coded_as_that_model(case: str, options: EncoderOptions) -> None:
    one = CASES[case].original("a")
    originals = [one, Original("b", copy.deepcopy(one.module), one.signature)]
    encoding = encode(originals, [0.3, 0.7], CASES[case].calibration(), options)
    state = one.module.state_dict()
    assert encoding.state_dict.keys() == state.keys()
    assert all(torch.equal(encoding.state_dict[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("options", [AVERAGE, *COINS], ids=named)
def test_numbers_that_are_equal_in_all_models_are_coded_as_they_are(case: str, options: EncoderOptions) -> None:
    """Each tensor differs in its first element, so that no tensor is equal as a whole."""
    one = CASES[case].original("a")
    other = copy.deepcopy(one.module)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.view(-1)[0] += 1.0
    originals = [one, Original("b", other, one.signature)]
    found = encode(originals, [0.3, 0.7], CASES[case].calibration(), options).state_dict
    for name, parameter in one.module.named_parameters():
        before, after = parameter.detach().flatten(), found[name].flatten()
        torch.testing.assert_close(after[1:], before[1:], rtol=1e-6, atol=0)
        assert before[0] <= after[0] <= before[0] + 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("options", [AVERAGE, CoinOptions(fisher=EXACT)], ids=named)
def test_half_precision_is_rounded_once(dtype: torch.dtype, options: EncoderOptions) -> None:
    """Weights that nearly cancel: sums of half-precision terms would lose most digits of what is left."""
    calibration = CASES["mlp"].calibration()
    torch.manual_seed(0)
    large = 100 * torch.rand(2, 3)
    originals = []
    for name, weight in {"a": large, "b": -large, "c": torch.rand(2, 3)}.items():
        module = nn.Linear(3, 2, bias=False)
        module.weight.data = weight
        module = module.to(dtype).eval()
        originals.append(Original(name, module, infer_signature(copy.deepcopy(module).float(), calibration)))
    coefficients = [0.35, 0.35, 0.3]
    weights = [original.module.get_parameter("weight").detach().double() for original in originals]
    wanted = torch.stack([beta * weight for beta, weight in zip(coefficients, weights, strict=True)]).sum(0)
    found = encode(originals, coefficients, calibration, options).state_dict["weight"]
    assert found.dtype == dtype
    torch.testing.assert_close(found, wanted.to(dtype), rtol=float(torch.finfo(dtype).eps), atol=1e-4)


@pytest.mark.parametrize("case", ["batch_norm", "tied"])
@pytest.mark.parametrize("options", [AVERAGE, *COINS], ids=named)
def test_the_order_of_the_models_does_not_matter(case: str, options: EncoderOptions) -> None:
    originals, coefficients = trio(case), [0.2, 0.3, 0.5]
    wanted = encode(originals, coefficients, CASES[case].calibration(), options).state_dict
    for order in permutations(range(3)):
        found = encode(
            [originals[i] for i in order], [coefficients[i] for i in order], CASES[case].calibration(), options
        )
        assert_equal(found.state_dict, wanted)


@pytest.mark.parametrize("options", [RegMeanOptions(), RegressOptions(), BarycenterCgOptions(iterations=3)], ids=named)
def test_the_order_of_the_models_does_not_matter_to_closed_forms(options: EncoderOptions) -> None:
    originals, coefficients, calibration = trio(), [0.2, 0.3, 0.5], CASES["mlp"].calibration()
    wanted = encode(originals, coefficients, calibration, options).state_dict
    for order in permutations(range(3)):
        found = encode([originals[i] for i in order], [coefficients[i] for i in order], calibration, options).state_dict
        for name, tensor in found.items():
            torch.testing.assert_close(tensor, wanted[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [AutoOptions(held_out=0.4), DistillOptions(epochs=5), RefineOptions(budget=80, batch_size=4, held_out=0.4)],
    ids=lambda options: options.name,
)
def test_the_order_of_the_models_does_not_matter_to_those_that_choose_or_learn(options: EncoderOptions) -> None:
    """But for rounding, of which steps make more."""
    originals, coefficients, calibration = trio(), [0.2, 0.3, 0.5], CASES["mlp"].calibration()
    wanted = encode(originals, coefficients, calibration, options).state_dict
    assert not all(torch.equal(tensor, originals[0].module.state_dict()[name]) for name, tensor in wanted.items())
    for order in permutations(range(3)):
        found = encode([originals[i] for i in order], [coefficients[i] for i in order], calibration, options).state_dict
        for name, tensor in found.items():
            torch.testing.assert_close(tensor, wanted[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_coin_is_its_formula(normalization: Normalization) -> None:
    originals, coefficients, calibration = trio(), [0.2, 0.3, 0.5], CASES["mlp"].calibration()
    options = CoinOptions(fisher=EXACT, damping=0.5, normalization=normalization)
    fishers = [diagonal_fisher(original, calibration, EXACT).diagonal for original in originals]
    if normalization == "per_tensor":
        fishers = [{name: tensor / tensor.mean() for name, tensor in fisher.items()} for fisher in fishers]
    means = [float(torch.cat([tensor.flatten() for tensor in fisher.values()]).mean()) for fisher in fishers]
    if normalization == "per_model":
        fishers = [{n: t / mean for n, t in fisher.items()} for fisher, mean in zip(fishers, means, strict=True)]
        means = [1.0, 1.0, 1.0]
    damping = 0.5 * sum(beta * mean for beta, mean in zip(coefficients, means, strict=True))
    wanted = {}
    for name in fishers[0]:
        weights = torch.stack(
            [beta * (fisher[name] + damping) for beta, fisher in zip(coefficients, fishers, strict=True)]
        )
        tensors = torch.stack([original.module.get_parameter(name).detach() for original in originals])
        wanted[name] = (weights * tensors).sum(0) / weights.sum(0)
    assert_equal(encode(originals, coefficients, calibration, options).state_dict, wanted)


@pytest.mark.parametrize("case", ["mlp", "batch_norm", "two_heads"])
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_large_damping_gives_the_average(case: str, normalization: Normalization) -> None:
    originals, coefficients, calibration = trio(case), [0.2, 0.3, 0.5], CASES[case].calibration()
    coin = CoinOptions(damping=1e12, normalization=normalization)
    found = encode(originals, coefficients, calibration, coin).state_dict
    assert_equal(found, encode(originals, coefficients, calibration, AVERAGE).state_dict)
    undamped = encode(
        originals, coefficients, calibration, CoinOptions(damping=0, normalization=normalization)
    ).state_dict
    assert any(not torch.allclose(undamped[name], found[name], rtol=1e-2) for name in found)


@settings(max_examples=20, deadline=None)
@given(left=st.floats(-100, 100, width=32), right=st.floats(-100, 100, width=32), beta=st.floats(0.05, 0.95))
def test_equal_fishers_give_the_average(left: float, right: float, beta: float) -> None:
    """The Fisher of a linear model does not depend on its weights."""
    calibration = CASES["mlp"].calibration()
    modules = [nn.Linear(3, 2), nn.Linear(3, 2)]
    for module, value in zip(modules, (left, right), strict=True):
        nn.init.constant_(module.weight, value)
    originals = [Original(n, m, infer_signature(m.eval(), calibration)) for n, m in zip("ab", modules, strict=True)]
    found = encode(originals, [beta, 1 - beta], calibration, CoinOptions(fisher=EXACT)).state_dict
    average = encode(originals, [beta, 1 - beta], calibration, AVERAGE).state_dict
    for name, tensor in average.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-4)


def test_a_model_with_larger_fisher_pulls_the_coded_model_to_itself() -> None:
    """f = w_2 w_1 x with w_1 = 1: the Fisher of w_1 is (w_2 x)^2, so weights 9 to 1 for w_2 = 3 and 1."""
    calibration = CalibrationInputs({"x": CASES["mlp"].calibration().arrays["x"][:, :1]})
    originals = []
    for name, (first, second) in {"strong": (2.0, 3.0), "weak": (-1.0, 1.0)}.items():
        module = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)).eval()
        nn.init.constant_(module.get_parameter("0.weight"), first)
        nn.init.constant_(module.get_parameter("1.weight"), second)
        originals.append(Original(name, module, infer_signature(module, calibration)))
    state = encode(originals, [0.5, 0.5], calibration, CoinOptions(damping=0, normalization="none")).state_dict
    assert state["0.weight"].item() == pytest.approx((9 * 2.0 + 1 * -1.0) / 10)
    assert state["1.weight"].item() == pytest.approx((4 * 3.0 + 1 * 1.0) / 5)


def test_elements_without_any_fisher_are_averaged() -> None:
    """Token 6 is never asked, so the statistics of its row are zero in every model."""
    case = CASES["embedding"]
    originals = trio("embedding")
    seen = case.calibration().arrays["tokens"] % 6
    calibration = CalibrationInputs({"tokens": seen})
    state = encode(originals, [0.2, 0.3, 0.5], calibration, CoinOptions(damping=0)).state_dict
    rows = [original.module.state_dict()["0.weight"][6] for original in originals]
    torch.testing.assert_close(state["0.weight"][6], 0.2 * rows[0] + 0.3 * rows[1] + 0.5 * rows[2])


@pytest.mark.parametrize("options", [AVERAGE, CoinOptions()], ids=named)
def test_buffers_are_averaged_and_counters_are_the_first(options: EncoderOptions) -> None:
    originals = trio("batch_norm")
    with torch.no_grad():
        originals[1].module.get_buffer("1.num_batches_tracked").add_(7)
    state = encode(originals, [0.2, 0.3, 0.5], CASES["batch_norm"].calibration(), options).state_dict
    for name in ("1.running_mean", "1.running_var"):
        buffers = [original.module.get_buffer(name) for original in originals]
        torch.testing.assert_close(state[name], 0.2 * buffers[0] + 0.3 * buffers[1] + 0.5 * buffers[2])
    assert state["1.num_batches_tracked"].item() == 3


def test_other_integer_buffers_that_differ_are_noted() -> None:
    originals = trio()[:2]
    for value, original in enumerate(originals):
        original.module.register_buffer("version", torch.tensor(value))
        original.module.register_buffer("same", torch.tensor(1))
    encoding = encode(originals, [0.5, 0.5], CASES["mlp"].calibration(), AVERAGE)
    assert encoding.notes == {"taken from 'a'": ["version"]}
    assert encoding.state_dict["version"].item() == 0


@pytest.mark.parametrize("options", [AVERAGE, *COINS], ids=named)
def test_tied_weights_are_coded_once(options: EncoderOptions) -> None:
    originals = trio("tied")
    state = encode(originals, [0.2, 0.3, 0.5], CASES["tied"].calibration(), options).state_dict
    assert state["head.weight"] is state["embedding.weight"]
    coded = coded_module(originals[0].module, state)
    assert torch.equal(coded.get_parameter("embedding.weight"), state["head.weight"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("options", [AVERAGE, CoinOptions(damping=0.1)], ids=named)
def test_dtypes_are_kept(dtype: torch.dtype, options: EncoderOptions) -> None:
    class Converting(nn.Module):
        """Takes and returns float32, since numpy has no bfloat16."""

        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).to(dtype)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.layers(x.to(next(self.parameters()).dtype)).float()
            return out

    calibration = CASES["mlp"].calibration()
    originals = []
    for name in "ab":
        module = Converting().eval()
        originals.append(Original(name, module, infer_signature(module, calibration)))
    state = encode(originals, [0.5, 0.5], calibration, options).state_dict
    states = [original.module.state_dict() for original in originals]
    for name, tensor in state.items():
        assert tensor.dtype == dtype
        low, high = torch.minimum(states[0][name], states[1][name]), torch.maximum(states[0][name], states[1][name])
        assert bool(((low <= tensor) & (tensor <= high)).all())


@pytest.mark.parametrize("options", [AVERAGE, CoinOptions()], ids=named)
def test_the_originals_are_left_as_they_are(options: EncoderOptions) -> None:
    originals = trio("batch_norm")
    before = [copy.deepcopy(original.module.state_dict()) for original in originals]
    encode(originals, [0.2, 0.3, 0.5], CASES["batch_norm"].calibration(), options)
    for original, state in zip(originals, before, strict=True):
        assert all(torch.equal(tensor, state[name]) for name, tensor in original.module.state_dict().items())


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_of_several_dampings_coin_takes_the_one_of_least_output_error(normalization: Normalization) -> None:
    originals, coefficients, calibration = trio(), [0.2, 0.3, 0.5], CASES["mlp"].calibration()
    options = CoinOptions(normalization=normalization)
    assert options.damping == "auto" and len(options.dampings()) == 3
    states = {
        damping: encode(
            originals, coefficients, calibration, options.model_copy(update={"damping": damping})
        ).state_dict
        for damping in options.dampings()
    }
    found = encode(originals, coefficients, calibration, options)
    errors = {damping: output_error(state, originals, coefficients, calibration) for damping, state in states.items()}
    assert found.notes["output_errors"] == pytest.approx({f"{key:g}": error for key, error in errors.items()}, rel=1e-5)
    assert found.notes["damping"] == min(errors, key=errors.__getitem__)
    assert_equal(found.state_dict, states[found.notes["damping"]])


def test_costs_are_told() -> None:
    originals, calibration = trio(), CASES["mlp"].calibration()
    average = encode(originals, [0.2, 0.3, 0.5], calibration, AVERAGE).cost
    assert (average.forward_passes, average.backward_passes) == (0, 0)
    for options, tried in ((CoinOptions(fisher=EXACT, normalization="none", damping=0.3), 0), (CoinOptions(), 3 + 3)):
        coin = encode(originals, [0.2, 0.3, 0.5], calibration, options).cost
        passes = 3 if options.fisher == EXACT else 1
        assert (coin.forward_passes, coin.backward_passes) == (3 * 5 + tried * 5, 3 * 5 * passes)
        assert coin.seconds > 0 and coin.peak_memory_bytes >= 0


@pytest.mark.parametrize("kept", [True, False])
def test_statistics_are_computed_once_for_all_rows(kept: bool, tmp_path: Path) -> None:
    originals, calibration, rows = trio(), CASES["mlp"].calibration(), [[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]]
    encodings = encode_rows(originals, rows, calibration, CoinOptions(), tmp_path if kept else None)
    assert [encoding.cost.backward_passes for encoding in encodings] == [15, 0]
    assert len(list(tmp_path.iterdir())) == (3 if kept else 0)
    for row, encoding in zip(rows, encodings, strict=True):
        assert_equal(encoding.state_dict, encode(originals, row, calibration, CoinOptions()).state_dict)


@pytest.mark.parametrize(
    ("coefficients", "message"),
    [
        ([0.5, 0.5], "2 coefficients for 3 originals"),
        ([0.5, 0.5, 0.0], "coefficient 2 is 0, so original 2 would not be protected"),
        ([0.5, 1.0, -0.5], "negative"),
        ([0.5, 0.5, float("nan")], "finite"),
        ([0.5, 0.5, 0.5], r"sum to 1\.5"),
    ],
)
def test_bad_coefficients_are_refused(coefficients: list[float], message: str) -> None:
    with pytest.raises(CodeError, match=message):
        encode(trio(), coefficients, CASES["mlp"].calibration(), AVERAGE)


def test_models_that_cannot_be_combined_are_refused() -> None:
    originals = [CASES["mlp"].original("a"), CASES["layer_norm"].original("b")]
    with pytest.raises(ArchitectureError, match=r"0\.weight"):
        encode(originals, [0.5, 0.5], CASES["mlp"].calibration(), AVERAGE)


def test_coded_weights_that_are_not_finite_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def faulty(originals: Sequence[Original], *_: object) -> list[Encoding]:
        state = {name: tensor.clone() for name, tensor in originals[0].module.state_dict().items()}
        state["2.bias"][0] = float("nan")
        return [Encoding(state, EncodeCost(0.0, 0, 0, 0))]

    monkeypatch.setattr(registry, "ENCODERS", {"average": (AverageOptions, faulty)})
    with pytest.raises(NonFiniteError, match=r"weights coded by 'average': NaN or infinity in 2\.bias"):
        encode(trio(), [0.2, 0.3, 0.5], CASES["mlp"].calibration(), AVERAGE)


class Holder(BaseModel):
    encoder: EncoderOptions = DEFAULT_ENCODER


def test_options_are_chosen_by_name() -> None:
    assert Holder().encoder == RefineOptions()
    assert Holder.model_validate({"encoder": {"name": "average"}}).encoder == AverageOptions()
    nested = {"name": "coin", "fisher": {"likelihood": "categorical", "estimate": "sampled"}, "damping": 1}
    assert Holder.model_validate({"encoder": nested}).encoder == CoinOptions(
        fisher=FisherOptions(likelihood="categorical", estimate="sampled"), damping=1.0
    )
    for name, (options, _) in ENCODERS.items():
        assert options.model_fields["name"].default == name
        assert all(field.description for field in options.model_fields.values())


@pytest.mark.parametrize(
    "values",
    [
        {"name": "magic"},
        {"name": "average", "damping": 1},
        {"name": "coin", "damping": -1},
        {"name": "coin", "damping": float("inf")},
        {"name": "coin", "normalization": "trace"},
        {"name": "coin", "fisher": {"estimate": "sampled"}},
    ],
)
def test_senseless_options_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Holder.model_validate({"encoder": values})


class Keeping(nn.Module):
    """Keeps its last activation; a raw parameter has it take the general path of the Fisher statistics, too."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.scale = nn.Linear(3, 4), nn.Parameter(torch.ones(4))
        self.head = nn.Linear(4, 2)
        self.last: torch.Tensor | None = None

    def reset_parameters(self) -> None:
        nn.init.ones_(self.scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.last = torch.tanh(self.scale * self.layer(x))
        out: torch.Tensor = self.head(self.last)
        return out


@pytest.mark.parametrize("options", QUICK.values(), ids=QUICK)
def test_models_that_keep_an_activation_are_coded_and_can_still_be_copied_and_used(options: EncoderOptions) -> None:
    points = CASES["mlp"].calibration()
    modules = [Keeping() for _ in "ab"]
    for module in modules:
        module(torch.ones(1, 3)).sum().backward()
    encode(originals_of(*modules), [0.5, 0.5], points, options)
    for module in modules:
        assert module.last is not None and module.last.numpy().shape[1] == 4
        copy.deepcopy(module)
