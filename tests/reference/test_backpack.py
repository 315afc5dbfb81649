"""Another implementation's exact Gauss-Newton diagonal as an oracle: BackPACK's, in float64."""

from collections.abc import Callable

import pytest
import torch
from backpack import backpack, extend  # type: ignore[import-untyped]  # ships no type information
from backpack.extensions import DiagGGNExact  # type: ignore[import-untyped]
from torch import nn

from coin_export.datasets.calibration import CalibrationInputs
from coin_export.fisher.diagonal import diagonal_fisher
from coin_export.fisher.options import FisherOptions
from coin_export.model.signature import Original, infer_signature
from tests.reference.fisher import reference_fisher

# BackPACK hooks every module, the first too, whose input wants no gradient.
pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing")
POINTS = 6


def classified(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers, nn.Sigmoid(), nn.Flatten(), nn.LazyLinear(3))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)), (5,)),
    "conv1d": (lambda: classified(nn.Conv1d(2, 4, 3, stride=2)), (2, 9)),
    "conv2d": (
        lambda: classified(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 3, bias=False)),
        (2, 6, 6),
    ),
    "conv2d grouped": (lambda: classified(nn.Conv2d(4, 4, 3, groups=2, dilation=2)), (4, 6, 6)),
    "conv3d": (lambda: classified(nn.Conv3d(2, 3, 2, stride=(1, 2, 1))), (2, 3, 4, 3)),
    "transposed 1d": (lambda: classified(nn.ConvTranspose1d(2, 3, 3, stride=2)), (2, 4)),
    "transposed 2d": (lambda: classified(nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1)), (2, 3, 3)),
}


def backpack_diagonal(module: nn.Module, inputs: torch.Tensor, likelihood: str) -> dict[str, torch.Tensor]:
    """Average of diag(J^T H J): H is 2 I for a sum of squares, and diag(p) - p p^T for the cross entropy."""
    gaussian = likelihood == "gaussian"
    extended = extend(module)
    loss = extend(nn.MSELoss(reduction="sum") if gaussian else nn.CrossEntropyLoss(reduction="sum"))
    outputs = extended(inputs)
    targets = torch.zeros_like(outputs) if gaussian else torch.zeros(len(inputs), dtype=torch.long)
    with backpack(DiagGGNExact()):
        loss(outputs, targets).backward()
    scale = (2 if gaussian else 1) * len(inputs)
    return {name: parameter.diag_ggn_exact / scale for name, parameter in module.named_parameters()}  # type: ignore[attr-defined]


@pytest.mark.parametrize("likelihood", ["gaussian", "categorical"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_exact_diagonal_is_that_of_backpack(name: str, likelihood: str) -> None:
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    inputs = torch.randn(POINTS, *shape)
    module = make()
    module(inputs)  # gives lazy layers their size
    module = module.double().eval()
    calibration = CalibrationInputs({"x": inputs.double().numpy()})
    original = Original("net", module, infer_signature(module, calibration))
    options = FisherOptions.model_validate({"likelihood": likelihood, "estimate": "exact"})
    found = diagonal_fisher(original, calibration, options).diagonal
    slow = reference_fisher(module, calibration, ("output",), likelihood)
    oracle = backpack_diagonal(module, inputs.double(), likelihood)
    assert found.keys() == oracle.keys()
    for parameter, wanted in oracle.items():
        torch.testing.assert_close(slow[parameter], wanted, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(found[parameter].double(), wanted, rtol=1e-5, atol=1e-7)
