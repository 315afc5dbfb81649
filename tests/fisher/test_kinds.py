"""The statistics of every kind of network that the whole way is tested with: right, and never a silent zero."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from coin_export.datasets.calibration import CalibrationInputs
from coin_export.fisher.diagonal import diagonal_fisher
from coin_export.fisher.options import FisherOptions
from coin_export.model.signature import Original, infer_signature
from tests.e2e.kinds import KINDS
from tests.fisher.paths import POINTS, assert_equal, both, describe
from tests.reference.fisher import reference_fisher


@pytest.mark.parametrize("likelihood", ["gaussian", "categorical"])
@pytest.mark.parametrize("name", KINDS)
def test_every_parameter_gets_its_own_statistics(name: str, likelihood: str) -> None:
    module = copy.deepcopy(KINDS[name].tuned(1)).float()  # as the pipeline takes bfloat16
    arrays = {key: array[:POINTS] for key, array in KINDS[name].inputs().items()}
    arrays = {key: array.astype("float32") if array.dtype == "float16" else array for key, array in arrays.items()}
    calibration = CalibrationInputs(arrays)
    original = Original(name, module, infer_signature(module, calibration))
    options = FisherOptions.model_validate({"likelihood": likelihood, "estimate": "exact"})
    found = diagonal_fisher(original, calibration, options).diagonal
    wanted = reference_fisher(module, calibration, ("output",), likelihood)
    assert found.keys() == wanted.keys()
    assert_equal(found, wanted, 1e-5)
    for parameter, square in found.items():
        assert bool((square > 0).any()), parameter


class CrossAttention(nn.Module):
    """Keys from elsewhere, a mask for each head: torch's own forward, so the projections take the general path."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True, add_bias_kv=True)
        self.queries = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mask = torch.ones(3, 5, dtype=torch.bool).triu(3)
        out: torch.Tensor = self.attention(self.queries(x[:, :3]), x, x, attn_mask=mask, need_weights=False)[0]
        return out.flatten(1)


class Recurrence(nn.Module):
    """Layers without a rule of their own, and a parameter used at every step."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.decay = nn.Bilinear(4, 4, 4), nn.Parameter(torch.rand(4))
        self.shape = nn.PReLU(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = torch.zeros_like(x[:, 0])
        for step in range(x.shape[1]):
            state = self.shape(F.softsign(self.inside(x[:, step], state)) + self.decay * state + x[:, step])
        return state


@pytest.mark.parametrize("make", [CrossAttention, Recurrence])
def test_what_has_no_fast_rule_takes_the_general_path(make: type[nn.Module]) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(POINTS, 5, 4, dtype=torch.float64)
    original = describe(make().double(), inputs)
    exact = FisherOptions(estimate="exact")
    _, general = both(original, (inputs,), exact)
    calibration = CalibrationInputs({"x0": inputs.numpy()})
    wanted = reference_fisher(original.module, calibration, ("output",), "gaussian")
    assert_equal({name: square / POINTS for name, square in general.items()}, wanted)
    found = diagonal_fisher(original, calibration, exact).diagonal
    assert found.keys() == wanted.keys()
    assert_equal(found, wanted, 1e-6)
    assert all(bool((square > 0).any()) for square in found.values())
