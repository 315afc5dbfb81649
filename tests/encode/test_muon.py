import pytest
import torch
from torch import nn

from coin_export.encode.muon import Muon, matrices, orthogonal


@pytest.mark.parametrize("shape", [(4, 4), (3, 8), (9, 2)])
def test_steps_have_singular_values_near_one_and_the_right_directions(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    found = orthogonal(matrix)
    values = torch.linalg.svdvals(found)
    assert bool(((values > 0.5) & (values < 1.3)).all())
    inside = u.T @ found @ v.T
    torch.testing.assert_close(inside, torch.diag(inside.diagonal()), rtol=0, atol=1e-4)


def test_zero_stays_zero() -> None:
    assert torch.equal(orthogonal(torch.zeros(3, 2)), torch.zeros(3, 2))


def test_kernels_are_matrices_and_embeddings_are_not() -> None:
    module = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 2), nn.Conv2d(2, 2, 3), nn.LayerNorm(2))
    assert [id(parameter) for parameter in matrices(module)] == [id(module[1].weight), id(module[2].weight)]


def test_a_quadratic_is_descended() -> None:
    goal = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    parameter = nn.Parameter(torch.zeros_like(goal))
    optimizer = Muon([parameter], lr=0.1)
    for step in range(200):
        optimizer.param_groups[0]["lr"] = 0.2 * (1 - step / 200)
        parameter.grad = parameter.detach() - goal
        optimizer.step()
    assert float((parameter.detach() - goal).norm() / goal.norm()) < 0.05


def test_a_layer_without_a_gradient_comes_to_rest() -> None:
    """Its momentum dies away, below what a norm in single precision can hold; it neither moves on nor becomes NaN."""
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(4, 6))
    optimizer = Muon([weight], lr=1e-3)
    weight.grad = torch.randn(4, 6)
    optimizer.step()
    weight.grad = torch.zeros(4, 6)
    places = []
    for step in range(3000):
        optimizer.step()
        if step % 1000 == 999:
            places.append(weight.detach().clone())
    assert all(bool(torch.isfinite(place).all()) for place in places)
    assert torch.equal(places[1], places[2])
