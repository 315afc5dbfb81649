import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from coin_export.code.linear import LinearCode
from coin_export.encode import barycenter_cg
from coin_export.encode.architecture import coded_module
from coin_export.encode.average import AverageOptions
from coin_export.encode.barycenter_cg import BarycenterCgOptions, conjugate_gradients
from coin_export.encode.registry import encode
from coin_export.evaluate.accuracy import decoded_outputs
from tests.encode.cases import normal_points, originals_of, output_error, trio
from tests.reference.networks import CASES

BETA = [0.2, 0.3, 0.5]


def test_linear_models_under_full_curvature_decode_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    """From a start far from the solution: COIN's own would be it, since linear models all have the same Fisher."""
    torch.manual_seed(0)
    originals, points = originals_of(*(nn.Linear(3, 2) for _ in "abc")), normal_points()
    off = encode(originals, [0.98, 0.01, 0.01], points, AverageOptions())
    monkeypatch.setattr(barycenter_cg, "coin", lambda *_: off)
    found = encode(originals, BETA, points, BarycenterCgOptions(tolerance=1e-6))
    assert output_error(off.state_dict, originals, BETA, points) > 1e-2
    assert output_error(found.state_dict, originals, BETA, points) < 1e-10
    code, x = LinearCode.from_rows([BETA]), torch.from_numpy(points.arrays["x"])
    models = [*(original.module for original in originals), coded_module(originals[0].module, found.state_dict)]
    outputs = [{"y": model(x).detach().numpy()} for model in models]
    for lost in range(3):
        np.testing.assert_allclose(decoded_outputs(code, outputs, [lost], lost)["y"], outputs[lost]["y"], atol=1e-4)


def flat(module: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()]).double()


def gauss_newton(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The slow obvious matrix: a Jacobian for each point and output."""
    total = torch.zeros(len(flat(module)), len(flat(module)), dtype=torch.float64)
    for point in x:
        for output in module(point[None])[0]:
            gradient = torch.autograd.grad(output, list(module.parameters()), retain_graph=True)
            row = torch.cat([part.flatten() for part in gradient]).double()
            total += torch.outer(row, row)
    return total / len(x)


def test_it_solves_the_normal_equations() -> None:
    originals, points = trio("mlp"), normal_points(20)
    x = torch.from_numpy(points.arrays["x"])
    found = encode(originals, BETA, points, BarycenterCgOptions(damping=0.3, iterations=400, tolerance=1e-6))
    matrices = [beta * gauss_newton(original.module, x) for beta, original in zip(BETA, originals, strict=True)]
    models = [flat(original.module) for original in originals]
    average = torch.stack([beta * model for beta, model in zip(BETA, models, strict=True)]).sum(0)
    coded = torch.cat([found.state_dict[name].flatten() for name in originals[0].module.state_dict()]).double()
    pulls = torch.stack([matrix @ (model - coded) for matrix, model in zip(matrices, models, strict=True)]).sum(0)
    # The damping's unit is an estimate: any positive one balances the pulls of the models along their sum.
    pull = (average - coded) @ pulls / -(average - coded).square().sum()
    assert pull > 0
    torch.testing.assert_close(pulls, -pull * (average - coded), rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("size", [1, 4, 9])
def test_conjugate_gradients_end_after_as_many_iterations_as_unknowns(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    root = torch.randn(size, size, generator=generator, dtype=torch.float64)
    matrix, wanted = root @ root.T + torch.eye(size), torch.randn(size, generator=generator, dtype=torch.float64)
    found = conjugate_gradients(lambda vector: matrix @ vector, wanted, matrix.diagonal(), 50, 1e-9)
    assert found.iterations <= size + 1
    torch.testing.assert_close(found.vector, torch.linalg.solve(matrix, wanted), rtol=1e-6, atol=1e-8)
    assert conjugate_gradients(lambda v: matrix @ v, 0 * wanted, matrix.diagonal(), 50, 1e-9).iterations == 0


@pytest.mark.parametrize("case", CASES)
def test_the_residual_falls(case: str) -> None:
    originals, points = trio(case), CASES[case].calibration()
    short, long = (encode(originals, BETA, points, BarycenterCgOptions(iterations=n)).notes for n in (2, 12))
    assert short["iterations"] == 2
    assert long["relative_residual"] < short["relative_residual"] < math.inf


def test_the_batch_size_does_not_matter() -> None:
    originals, points = trio("cnn"), CASES["cnn"].calibration()
    states = [
        encode(originals, BETA, points, BarycenterCgOptions(iterations=3, batch_size=size)).state_dict
        for size in (2, 64)
    ]
    for name, tensor in states[0].items():
        torch.testing.assert_close(tensor, states[1][name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "values", [{"damping": 0}, {"iterations": 0}, {"tolerance": 0}, {"tolerance": 1}, {"batch_size": 0}, {"x": 1}]
)
def test_bad_options_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        BarycenterCgOptions.model_validate(values)
