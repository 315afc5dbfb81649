import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from coin_export.datasets.calibration import CalibrationInputs
from coin_export.encode.architecture import check_same_architecture, coded_module
from coin_export.errors import ArchitectureError, ModelError, NonFiniteError
from coin_export.model.signature import Original, infer_signature
from tests.reference.networks import CASES, TiedAutoencoder, mlp

MLP = CASES["mlp"]


def signed(name: str, module: nn.Module, calibration: CalibrationInputs | None = None) -> Original:
    return Original(name, module.eval(), infer_signature(module, calibration or MLP.calibration()))


@pytest.mark.parametrize("case", CASES)
def test_models_of_one_architecture_pass(case: str) -> None:
    check_same_architecture([CASES[case].original("a", 0), CASES[case].original("b", 1), CASES[case].original("c", 2)])


def test_every_difference_of_every_model_is_listed() -> None:
    def net(width: int, outputs: int, bias: bool = True) -> nn.Module:
        return nn.Sequential(nn.Linear(3, width), nn.Linear(width, outputs, bias=bias))

    originals = [signed("first", net(4, 2)), signed("wide", net(5, 2)), signed("other", net(4, 3, bias=False))]
    with pytest.raises(ArchitectureError) as caught:
        check_same_architecture(originals)
    lines = [" ".join(line.split()) for line in str(caught.value).splitlines()]
    assert lines == [
        "the originals cannot be combined; they differ from 'first':",
        "first wide",
        "0.weight (4, 3) float32 (5, 3) float32",
        "0.bias (4,) float32 (5,) float32",
        "1.weight (2, 4) float32 (2, 5) float32",
        "first other",
        "1.weight (2, 4) float32 (3, 4) float32",
        "1.bias (2,) float32 -",
        "output 0 output (2,) float32 output (3,) float32",
    ]


def with_buffer(module: nn.Module) -> nn.Module:
    module.register_buffer("scale", torch.ones(2))
    return module


def doubled_inside(module: nn.Module) -> nn.Module:
    """Weights of another dtype behind the same inputs and outputs."""

    class Wrapped(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self:
                x = layer(x.double()) if isinstance(layer, nn.Linear) else layer(x)
            return x.float()

    return Wrapped(*module.double().children())


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (with_buffer, "scale - (2,) float32"),
        (doubled_inside, "0.weight (5, 3) float32 (5, 3) float64"),
        (lambda module: nn.Sequential(*module, nn.Unflatten(1, (3, 1))), "output 0 output (3,) .* output (3, 1) "),
    ],
)
def test_other_differences_are_found(change: Callable[[nn.Module], nn.Module], line: str) -> None:
    with pytest.raises(ArchitectureError) as caught:
        check_same_architecture([signed("a", mlp()), signed("b", change(mlp()))])
    for part in line.split(" .* "):
        assert part.strip() in " ".join(str(caught.value).split())


def test_a_tie_that_only_one_model_has_is_found() -> None:
    untied = TiedAutoencoder()
    untied.head.weight = nn.Parameter(untied.head.weight.detach().clone())
    calibration = CASES["tied"].calibration()
    with pytest.raises(
        ArchitectureError, match=r"head\.weight +\(7, 4\) float32 = embedding\.weight +\(7, 4\) float32"
    ):
        check_same_architecture([CASES["tied"].original(), signed("untied", untied, calibration)])


def test_two_models_of_one_name_and_single_models_are_refused() -> None:
    with pytest.raises(ModelError, match="several originals are named 'a'"):
        check_same_architecture([MLP.original("a"), MLP.original("a", 1), MLP.original("b", 2)])
    with pytest.raises(ModelError, match="at least two originals, not 1"):
        check_same_architecture([MLP.original("a")])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(value: float) -> None:
    originals = [MLP.original("a"), MLP.original("b")]
    with torch.no_grad():
        originals[1].module.get_parameter("2.bias")[0] = value
    with pytest.raises(NonFiniteError, match=r"model 'b': NaN or infinity in 2\.bias;"):
        check_same_architecture(originals)


def test_complex_weights_are_refused() -> None:
    modules = [mlp(), mlp()]
    for module in modules:
        module.register_parameter("wave", nn.Parameter(torch.ones(1, dtype=torch.complex64)))
    with pytest.raises(ModelError, match="complex weights are not supported: wave"):
        check_same_architecture([signed("a", modules[0]), signed("b", modules[1])])


def test_buffers_that_are_not_saved_must_be_equal() -> None:
    modules = [mlp() for _ in "ab"]
    for module, value in zip(modules, (1.0, 2.0), strict=True):
        module.register_buffer("scale", torch.tensor(value), persistent=False)
    check_same_architecture([signed("a", modules[0]), signed("b", copy.deepcopy(modules[0]))])
    with pytest.raises(ModelError, match=r"'a' and 'b' differ in scale, buffers that are not saved"):
        check_same_architecture([signed("a", modules[0]), signed("b", modules[1])])


class WithExtraState(nn.Linear):
    def get_extra_state(self) -> dict[str, int]:
        return {"version": 1}

    def set_extra_state(self, state: dict[str, int]) -> None:
        pass


def test_what_is_no_tensor_in_a_state_dict_is_refused() -> None:
    with pytest.raises(ModelError, match="'a': _extra_state in its state dict is no tensor"):
        check_same_architecture([signed(name, WithExtraState(3, 2)) for name in "ab"])


def test_a_coded_module_is_a_copy_with_other_weights() -> None:
    original = MLP.original()
    before = copy.deepcopy(original.module.state_dict())
    coded = coded_module(original.module.train(), {name: tensor + 1 for name, tensor in before.items()})
    assert not coded.training
    for name, tensor in before.items():
        assert torch.equal(coded.state_dict()[name], tensor + 1)
        assert torch.equal(original.module.state_dict()[name], tensor)


def test_tied_weights_of_a_coded_module_stay_tied() -> None:
    original = CASES["tied"].original()
    coded = coded_module(original.module, original.module.state_dict())
    assert isinstance(coded, TiedAutoencoder)
    assert coded.head.weight is coded.embedding.weight


def test_coded_weights_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ModelError, match=r"(?s)do not fit the originals' architecture: .*0\.weight"):
        coded_module(mlp(), {"1.weight": torch.ones(1)})
