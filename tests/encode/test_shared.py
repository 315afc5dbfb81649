"""What the originals share is coded once and stays shared: to the last bit, under every encoder."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from coin_export.datasets.calibration import CalibrationInputs
from coin_export.encode.architecture import coded_module
from coin_export.encode.registry import ENCODERS, encode
from coin_export.model.state import first_names
from tests.encode.cases import normal_points, originals_of
from tests.encode.quick import QUICK

IMAGES = normal_points(20, 2, 5, 5)


def backbone() -> nn.Module:
    """Convolution, BatchNorm with lived-in statistics, and a linear layer."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(2, 3, 3, bias=False), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 4), nn.Tanh()
    )
    with torch.no_grad():
        network(1.0 + 2.0 * torch.randn(8, 2, 5, 5))
    return network


class TiedHead(nn.Module):
    """Embedding and output layer are one weight; the layer between them is another for each task."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = nn.Linear(4, 3, bias=False)
        self.hidden = nn.Linear(3, 3)
        self.output = nn.Linear(4, 3, bias=False)
        self.output.weight = self.embedding.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.hidden(self.embedding(x))) @ self.output.weight


def networks(dtype: torch.dtype) -> list[nn.Module]:
    """Three networks on one frozen backbone, heads from seeds of their own."""
    shared = backbone()
    shared.requires_grad_(False)
    return [nn.Sequential(copy.deepcopy(shared), TiedHead(seed)).to(dtype) for seed in (1, 2, 3)]


def test_every_encoder_is_tried() -> None:
    assert {options.name for options in QUICK.values()} == set(ENCODERS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", QUICK)
def test_a_shared_backbone_stays_shared_to_the_last_bit(name: str, dtype: torch.dtype) -> None:
    calibration = CalibrationInputs({"x": IMAGES.arrays["x"].astype(str(dtype).removeprefix("torch."))})
    originals = originals_of(*networks(dtype), calibration=calibration)
    # Coefficients whose sum is one only up to rounding.
    state = encode(originals, [0.1, 0.7, 0.2], calibration, QUICK[name]).state_dict
    first, *others = [original.module.state_dict() for original in originals]
    for key, tensor in first.items():
        if key.startswith("0."):
            assert torch.equal(state[key], tensor), key
        else:
            assert not torch.equal(tensor, others[0][key])
            assert state[key].dtype == dtype


@pytest.mark.parametrize("name", QUICK)
def test_tied_weights_stay_tied(name: str) -> None:
    originals = originals_of(*networks(torch.float32), calibration=IMAGES)
    state = encode(originals, [0.1, 0.7, 0.2], IMAGES, QUICK[name]).state_dict
    assert state["1.output.weight"] is state["1.embedding.weight"]
    coded = coded_module(originals[0].module, state)
    assert first_names(coded)["1.output.weight"] == "1.embedding.weight"


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.parametrize("part", [lambda key: "bias" in key, lambda key: key == "1.hidden.weight"])
def test_any_part_may_be_shared(name: str, part: Callable[[str], bool]) -> None:
    modules = networks(torch.float32)
    for module in modules[1:]:
        module.load_state_dict({key: t for key, t in modules[0].state_dict().items() if part(key)}, strict=False)
    originals = originals_of(*modules, calibration=IMAGES)
    state = encode(originals, [0.1, 0.7, 0.2], IMAGES, QUICK[name]).state_dict
    assert all(torch.equal(state[key], tensor) for key, tensor in modules[0].state_dict().items() if part(key))
