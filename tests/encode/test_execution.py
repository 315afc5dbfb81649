import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from coin_export.encode.cost import Passes
from coin_export.encode.distill import DistillOptions
from coin_export.encode.execution import EXACT, Execution, Precision, fastest
from coin_export.encode.refine import RefineOptions
from coin_export.encode.registry import EncoderOptions, encode
from coin_export.encode.teachers import Teachers
from tests.encode.cases import normal_points, originals_of, same_bytes, trio
from tests.reference.networks import CASES

PRECISIONS: list[Precision] = ["float32", "bfloat16"]
IMAGES = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Pooled(nn.Module):
    """A small network of images; `flat` is how it leaves the convolution."""

    def __init__(self, flat: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.convolution, self.head = nn.Conv2d(3, 4, 3), nn.Linear(36, 5)
        self.flat = flat

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        features = nn.functional.max_pool2d(torch.relu(self.convolution(image)), 2)
        outputs: torch.Tensor = self.head(self.flat(features))
        return outputs


class OneLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)


class UnderAMask(OneLayer):
    """Assigns what the layer gives to a part of a float32 tensor."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        positive = x[:, 0] > 0
        out = torch.zeros(len(x), 2)
        out[positive] = self.layer(x[positive])
        return out


class OnTopOfALargeNumber(OneLayer):
    """Loses what it computes to rounding, but in single precision."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.layer(x)
        return (outputs + 1000) - 1000


class BackwardInOneDtype(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: torch.Tensor) -> torch.Tensor:
        if gradients[0].dtype != torch.float32:
            raise RuntimeError("float32 only")
        return gradients[0]


class OwnFunction(nn.Sequential):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = BackwardInOneDtype.apply(self[0](x))  # type: ignore[no-untyped-call]  # torch does not type it
        outputs: torch.Tensor = self[1](hidden)
        return outputs


def viewed(features: torch.Tensor) -> torch.Tensor:
    return features.view(features.shape[0], -1)


def flattened(features: torch.Tensor) -> torch.Tensor:
    return features.flatten(1)


def chosen(module: nn.Module, points: torch.Tensor, precision: Precision) -> Execution:
    return fastest([module.eval()], {"x": points}, ["output"], precision)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_kernels_of_images_have_channels_last_where_forward_takes_it(precision: Precision) -> None:
    torch.manual_seed(0)
    bfloat16 = precision == "bfloat16"
    assert chosen(Pooled(flattened), IMAGES, precision) == Execution(channels_last=True, bfloat16=bfloat16)
    assert chosen(Pooled(viewed), IMAGES, precision) == Execution(channels_last=False, bfloat16=bfloat16)
    assert chosen(nn.Linear(3, 2), torch.randn(6, 3), precision) == Execution(channels_last=False, bfloat16=bfloat16)


@pytest.mark.parametrize("module", [UnderAMask(), OnTopOfALargeNumber(), OwnFunction(nn.Linear(3, 4), nn.Linear(4, 2))])
def test_models_that_do_not_bear_bfloat16_run_in_float32(module: nn.Module) -> None:
    points = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    assert chosen(module, points, "bfloat16") == EXACT


class PaddedEncoder(nn.Module):
    """A transformer encoder, which computes in another way where no token is padding, or only the last ones."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(20, 16)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2)
        self.head = nn.Linear(16, 5)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        features = self.encoder(self.tokens(tokens), src_key_padding_mask=tokens == 0)
        outputs: torch.Tensor = self.head(features.mean(1))
        return outputs


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_what_does_not_bear_bfloat16_on_some_points_runs_in_float32_on_these() -> None:
    torch.manual_seed(0)
    module = PaddedEncoder().eval()
    full = {"x": torch.randint(1, 20, (4, 6))}
    padded = {"x": full["x"].where(torch.arange(6) != 2, 0)}
    execution = fastest([module], padded, ["output"], "bfloat16")
    assert execution.bfloat16
    with torch.no_grad():
        with pytest.raises(RuntimeError, match="BFloat16"):
            execution.call_strictly(module, full, ["output"])
        assert torch.equal(execution.call(module, full, ["output"])["output"], module(full["x"]))
        assert not torch.equal(execution.call(module, padded, ["output"])["output"], module(padded["x"]))


def test_what_cannot_run_at_all_is_told() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        Execution(bfloat16=True).call(nn.Linear(3, 2), {"x": torch.zeros(4, 5)}, ["output"])


def test_one_original_that_does_not_bear_it_decides_for_all() -> None:
    torch.manual_seed(0)
    modules = [Pooled(flattened).eval(), Pooled(viewed).eval()]
    assert fastest(modules, {"x": IMAGES}, ["output"], "bfloat16") == Execution(bfloat16=True)


@pytest.mark.parametrize("units", [True, False])
def test_auto_is_bfloat16_where_the_processor_has_units_for_it(units: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": units}, raising=False)
    assert chosen(nn.Linear(3, 2), torch.randn(6, 3), "auto") == Execution(bfloat16=units)
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert chosen(nn.Linear(3, 2), torch.randn(6, 3), "auto") == EXACT


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_hastened_originals_answer_as_they_do_and_are_left_as_they_are(case: str, precision: Precision) -> None:
    originals, calibration = trio(case), CASES[case].calibration()
    before = [copy.deepcopy(original.module.state_dict()) for original in originals]
    strides = [[tensor.stride() for tensor in state.values()] for state in before]
    teachers = Teachers(originals, Passes())
    points = {name: torch.from_numpy(array) for name, array in calibration.arrays.items()}
    expected, found = teachers(points), teachers.hastened(points, precision)(points)
    for left, right in zip(found, expected, strict=True):
        assert left.dtype == right.dtype
        assert float((left - right).norm() / right.norm()) < (0.05 if precision == "bfloat16" else 1e-5)
    after = [original.module.state_dict() for original in originals]
    assert all(same_bytes(*pair) for pair in zip(after, before, strict=True))
    assert [[tensor.stride() for tensor in state.values()] for state in after] == strides


def test_copies_share_all_but_kernels_of_images() -> None:
    module = Pooled(flattened)
    laid_out = Execution(channels_last=True).copy(module)
    assert isinstance(laid_out, Pooled)
    assert laid_out.head.weight is module.head.weight
    assert laid_out.convolution.weight.is_contiguous(memory_format=torch.channels_last)
    assert module.convolution.weight.is_contiguous()
    assert EXACT.copy(module) is module


def test_parametrised_kernels_of_the_originals_keep_their_layout() -> None:
    module = weight_norm(nn.Conv2d(3, 4, 3))
    kernel = module.parametrizations.weight.original1
    Execution(channels_last=True).copy(module)
    assert kernel.is_contiguous()


def test_a_tied_kernel_is_one_tensor_in_the_copy_too() -> None:
    module = nn.Sequential(nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3))
    module[1].weight = module[0].weight
    laid_out = Execution(channels_last=True).copy(module)
    assert isinstance(laid_out, nn.Sequential)
    assert laid_out[0].weight is laid_out[1].weight


@pytest.mark.parametrize("flat", [viewed, flattened])
@pytest.mark.parametrize(
    "options",
    [
        *(RefineOptions(budget=200, batch_size=10, precision=precision) for precision in PRECISIONS),
        DistillOptions(epochs=2, start="average"),
    ],
)
def test_networks_that_view_their_features_are_fitted(
    options: EncoderOptions, flat: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    torch.manual_seed(0)
    points = normal_points(40, 3, 8, 8)
    originals = originals_of(Pooled(flat), Pooled(flat), calibration=points)
    found = encode(originals, [0.5, 0.5], points, options)
    weight = found.state_dict["convolution.weight"]
    assert weight.is_contiguous()
    own = [original.module.state_dict()["convolution.weight"] for original in originals]
    assert not torch.equal(weight, (own[0] + own[1]) / 2)


def test_an_input_that_is_viewed_is_shifted() -> None:
    torch.manual_seed(0)
    points = normal_points(40, 3, 8, 8)
    networks = [nn.Sequential(nn.Flatten(), nn.Linear(192, 5)) for _ in range(2)]
    for network in networks:
        network[0].forward = viewed
    encode(originals_of(*networks, calibration=points), [0.5, 0.5], points, RefineOptions(budget=200, batch_size=10))
