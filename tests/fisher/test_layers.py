"""Every layer that the fast path knows, against the general path, in float64."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from coin_export.datasets.calibration import CalibrationInputs
from coin_export.fisher.layers import convolution, products
from coin_export.fisher.layers.registry import RULES
from coin_export.fisher.options import FisherOptions
from tests.fisher.paths import POINTS, assert_equal, both, describe
from tests.reference.fisher import reference_fisher

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(4, 3), (4,)),
    "linear without bias": (lambda: nn.Linear(4, 3, bias=False), (4,)),
    "linear on tokens": (lambda: nn.Linear(4, 3), (6, 4)),
    "linear on few tokens": (lambda: nn.Linear(4, 3), (2, 4)),
    "linear on tokens without bias": (lambda: nn.Linear(4, 3, bias=False), (7, 4)),
    "linear on a grid": (lambda: nn.Linear(4, 3), (2, 3, 4)),
    "conv1d": (lambda: nn.Conv1d(4, 5, 3, stride=2, padding=1), (4, 9)),
    "conv2d": (lambda: nn.Conv2d(4, 5, 3), (4, 6, 7)),
    "conv2d of one channel": (lambda: nn.Conv2d(1, 5, 3, padding=1), (1, 6, 6)),
    "conv2d 1x1": (lambda: nn.Conv2d(4, 5, 1, stride=2), (4, 5, 5)),
    "conv2d to one position": (lambda: nn.Conv2d(2, 5, 3), (2, 3, 3)),
    "conv2d same": (lambda: nn.Conv2d(4, 5, (2, 4), padding="same", dilation=(1, 2)), (4, 6, 7)),
    "conv2d valid": (lambda: nn.Conv2d(4, 5, 2, padding="valid", bias=False), (4, 4, 4)),
    "conv2d grouped": (lambda: nn.Conv2d(8, 6, 3, groups=2, padding=(1, 0)), (8, 5, 5)),
    "conv2d depthwise": (lambda: nn.Conv2d(4, 8, 3, groups=4, dilation=2), (4, 7, 7)),
    "conv3d": (lambda: nn.Conv3d(2, 3, (1, 2, 3), stride=(1, 2, 1), padding=(0, 1, 1)), (2, 3, 4, 4)),
    "conv3d reflected": (lambda: nn.Conv3d(2, 3, 3, padding=1, padding_mode="reflect"), (2, 3, 3, 3)),
    "transposed 1d": (lambda: nn.ConvTranspose1d(4, 6, 3, stride=2, output_padding=1), (4, 5)),
    "transposed 2d": (lambda: nn.ConvTranspose2d(4, 5, (2, 3), stride=(1, 2), padding=1, dilation=2), (4, 4, 5)),
    "transposed 2d grouped": (lambda: nn.ConvTranspose2d(4, 6, 3, groups=2, bias=False), (4, 3, 3)),
    "transposed 2d depthwise": (lambda: nn.ConvTranspose2d(4, 4, 3, groups=4, stride=2), (4, 3, 3)),
    "transposed 3d": (lambda: nn.ConvTranspose3d(2, 3, 2, stride=2), (2, 2, 3, 2)),
    "layer norm": (lambda: nn.LayerNorm(4), (4,)),
    "layer norm on tokens": (lambda: nn.LayerNorm(4), (3, 4)),
    "layer norm of two dimensions": (lambda: nn.LayerNorm((3, 4), eps=0.1), (2, 3, 4)),
    "layer norm without bias": (lambda: nn.LayerNorm(4, bias=False), (3, 4)),
    "rms norm": (lambda: nn.RMSNorm(4), (3, 4)),
    "group norm": (lambda: nn.GroupNorm(2, 4), (4, 3, 3)),
    "group norm of vectors": (lambda: nn.GroupNorm(2, 4), (4,)),
    "batch norm 1d": (lambda: nn.BatchNorm1d(4), (4,)),
    "batch norm 1d on positions": (lambda: nn.BatchNorm1d(4), (4, 3)),
    "batch norm 2d": (lambda: nn.BatchNorm2d(4, eps=0.1), (4, 3, 3)),
    "batch norm 3d": (lambda: nn.BatchNorm3d(4), (4, 2, 2, 2)),
    "attention": (lambda: nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), (3, 4)),
}
OPTIONS = [
    FisherOptions(samples=3),
    FisherOptions(estimate="exact"),
    FisherOptions(likelihood="categorical", samples=2),
    FisherOptions(likelihood="categorical", estimate="sampled", samples=2),
    FisherOptions(likelihood="categorical", estimate="exact"),
]


def check(module: nn.Module, *inputs: torch.Tensor, options: FisherOptions = OPTIONS[0]) -> None:
    """All parameters are claimed, and rightly."""
    original = describe(module, *inputs)
    found, wanted = both(original, inputs, options)
    assert found.keys() == wanted.keys()
    assert_equal(found, wanted)


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_alone_and_between_others(name: str) -> None:
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    inputs = torch.randn(POINTS, *shape, dtype=torch.float64)
    check(make().double(), inputs)
    first = nn.Sequential(nn.Flatten(), nn.Linear(inputs[0].numel(), inputs[0].numel()), nn.Unflatten(1, shape))
    check(nn.Sequential(first, nn.Tanh(), make(), nn.Tanh(), nn.Flatten()).double(), inputs)


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_the_slow_reference(name: str) -> None:
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    inputs = torch.randn(3, *shape, dtype=torch.float64)
    original = describe(make().double(), inputs)
    found, _ = both(original, (inputs,), FisherOptions(estimate="exact"))
    wanted = reference_fisher(original.module, CalibrationInputs({"x0": inputs.numpy()}), ("output",), "gaussian")
    assert found.keys() == wanted.keys()
    assert_equal(found, {name: 3 * square for name, square in wanted.items()})


def test_every_rule_has_a_layer_here() -> None:
    tested = {type(part) for make, _ in LAYERS.values() for part in make().modules()}
    assert set(RULES) <= tested | {nn.Embedding}  # of integers, tested below


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: f"{options.likelihood}-{options.estimate}")
def test_every_estimate(options: FisherOptions) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)).double()
    check(module, torch.randn(POINTS, 2, 4, 4, dtype=torch.float64), options=options)


@pytest.mark.parametrize("options", [{}, {"padding_idx": 2}], ids=["plain", "padded"])
def test_embedding_sums_what_a_point_looks_up_twice(options: dict[str, Any]) -> None:
    tokens = torch.tensor([[0, 1, 1], [2, 2, 3], [4, 4, 4], [5, 0, 2]])
    check(nn.Sequential(nn.Embedding(7, 3, **options), nn.Flatten(), nn.Linear(9, 2)).double(), tokens)


@pytest.mark.parametrize("grouped", [0, 10**9], ids=["unfolded", "grouped"])
@pytest.mark.parametrize("chunk", [1, 10**9], ids=["one point", "all points"])
@pytest.mark.parametrize("name", [name for name in LAYERS if name.startswith(("conv", "transposed", "linear"))])
def test_every_way_to_the_same_squares(name: str, grouped: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution, "_GROUPED_ELEMENTS", grouped)
    monkeypatch.setattr(convolution, "_GROUPED_CHANNELS", 1)
    monkeypatch.setattr(convolution, "_GROUPED_CHUNK", chunk)
    monkeypatch.setattr(products, "_CHUNK_ELEMENTS", chunk)
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    check(make().double(), torch.randn(POINTS, *shape, dtype=torch.float64))


@pytest.mark.parametrize("positions", [1, 2, 3, 4])
def test_pairs_of_positions(positions: int) -> None:
    torch.manual_seed(0)
    gradients = torch.randn(3, positions, 2, dtype=torch.float64)
    inputs = torch.randn(3, positions, 4, dtype=torch.float64)
    wanted = torch.einsum("nto,nti->noi", gradients, inputs).square().sum(0)
    torch.testing.assert_close(products.summed_squares(gradients, inputs), wanted)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_convolution(data: st.DataObject) -> None:
    dimensions = data.draw(st.integers(1, 3))
    mode = data.draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(data.draw(st.lists(st.integers(low, high), min_size=dimensions, max_size=dimensions)))

    groups, wide, tall = (data.draw(st.integers(1, 3)) for _ in range(3))
    kernel, stride, dilation, size = each(1, 3), each(1, 3), each(1, 2), each(3, 6)
    padding = data.draw(st.one_of(st.just(each(0, 2)), st.sampled_from(["same", "valid"])))
    if padding == "same":
        stride = (1,) * dimensions
    span = [step * (length - 1) for step, length in zip(dilation, kernel, strict=True)]
    assume(all(reach < length for reach, length in zip(span, size, strict=True)))
    kinds: list[Callable[..., nn.Module]] = [nn.Conv1d, nn.Conv2d, nn.Conv3d]
    bias = data.draw(st.booleans())
    layer = kinds[dimensions - 1](
        groups * wide, groups * tall, kernel, stride, padding, dilation, groups, bias, padding_mode=mode
    )
    check(layer.double(), torch.randn(3, groups * wide, *size, dtype=torch.float64))


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("weights", ["none", "averaged", "each"])
@pytest.mark.parametrize("mask", ["none", "boolean", "additive", "by head", "padding"])
def test_attention_is_that_of_torch(batch_first: bool, weights: str, mask: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2, batch_first=batch_first)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            later = torch.ones(3, 3, dtype=torch.bool).triu(1)
            masks: dict[str, dict[str, Any]] = {
                "none": {},
                "boolean": {"attn_mask": later},
                "additive": {"attn_mask": later * torch.tensor(-2.0).to(x)},
                "by head": {"attn_mask": -torch.arange(2).to(x).repeat(len(x))[:, None, None] * later},
                "padding": {"key_padding_mask": (torch.arange(3) == 2).expand(len(x), 3)},
            }
            x = x if batch_first else x.transpose(0, 1)
            output, seen = self.attention(
                x, x, x, need_weights=weights != "none", average_attn_weights=weights == "averaged", **masks[mask]
            )
            output = output if batch_first else output.transpose(0, 1)
            return output.flatten(1) if seen is None else torch.cat([output.flatten(1), seen.flatten(1)], 1)

    torch.manual_seed(0)
    module, inputs = Net().double(), torch.randn(POINTS, 3, 4, dtype=torch.float64)
    original = describe(module, inputs)
    found, wanted = both(original, (inputs,))
    projections = {"attention.in_proj_weight", "attention.in_proj_bias"}
    # Of tokens-first inputs the output projection still sees points first: the fast path lays them out that way.
    assert found.keys() == wanted.keys() >= projections
    assert_equal(found, wanted)
