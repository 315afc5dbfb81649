"""The KL barycenter to second order with its full curvature: a yardstick for the diagonal that COIN keeps.

    theta_c = argmin_theta sum_i beta_i (theta - theta_i)^T G_i (theta - theta_i) + d ||theta - theta_mean||^2

where G_i = E_x[J_i^T J_i] is the Gauss-Newton matrix of model i for Gaussian outputs, which is never formed: conjugate
gradients need products with it only, a few passes over a batch each. They start at COIN, are preconditioned with its
diagonal, and stop early.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn
from torch.func import vjp
from torch.nn.attention import SDPBackend, sdpa_kernel

from coin_export.datasets.calibration import CalibrationInputs
from coin_export.encode.coin import START, coin
from coin_export.encode.cost import CostMeter, Passes
from coin_export.encode.encoding import Encoding
from coin_export.encode.teachers import Inputs, batches_of, finished_state, points_of, working_copy, working_inputs
from coin_export.errors import ModelError
from coin_export.fisher.cache import cached_diagonal_fisher
from coin_export.fisher.options import FisherOptions
from coin_export.model.functional import Slots
from coin_export.model.signature import Original, name_outputs
from coin_export.model.state import all_equal

Vector = torch.Tensor
Product = Callable[[Vector], Vector]


class BarycenterCgOptions(BaseModel):
    """How far to go."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["barycenter_cg"] = Field(
        default="barycenter_cg",
        description="Barycenter with full Gauss-Newton curvature by conjugate gradients; a yardstick, slow.",
    )
    damping: float = Field(
        default=0.01,
        gt=0,
        allow_inf_nan=False,
        description="Pull toward the plain average, in units of the curvature's mean diagonal element.",
    )
    iterations: int = Field(
        default=50,
        ge=1,
        description="Most iterations, of one forward and three backward passes of each model over all points.",
    )
    tolerance: float = Field(
        default=1e-3, gt=0, lt=1, description="Stop when the residual is so small a part of that at the start."
    )
    batch_size: int = Field(default=32, ge=1, description="Points in a pass; does not change the result.")
    seed: int = Field(default=0, ge=0, description="Seed of the estimate of the diagonal.")


def barycenter_cg(
    originals: Sequence[Original],
    coefficients: Sequence[float],
    calibration: CalibrationInputs,
    options: BarycenterCgOptions,
    cache: Path | None = None,
) -> Encoding:
    """Solve for the barycenter; see `RowEncoder`. Parameters that are equal in all originals stay as they are.

    Raises:
        ModelError: if a model has an operation that cannot be differentiated twice.
        CoinExportError: as `coin`.
    """
    meter, passes = CostMeter(), Passes()
    start = coin(originals, coefficients, calibration, START, cache)
    passes.add(start.cost)
    models = [working_copy(original, original.module.state_dict()) for original in originals]
    names = _differing(models)
    if not names:
        return Encoding(start.state_dict, meter.cost(passes.forward, passes.backward), {"iterations": 0})
    fisher = FisherOptions(seed=options.seed)
    fishers = [cached_diagonal_fisher(original, calibration, fisher, cache) for original in originals]
    for found in fishers:
        passes.forward, passes.backward = passes.forward + found.forward_passes, passes.backward + found.backward_passes
    diagonal = sum(
        (beta * _flat(found.diagonal, names) for beta, found in zip(coefficients, fishers, strict=True)),
        torch.zeros(()),
    )
    pull = max(options.damping * float(diagonal.mean()), torch.finfo(torch.float32).tiny)
    batches = batches_of(working_inputs(calibration), options.batch_size)
    products = [
        _gauss_newton(original.name, model, names, batches, passes)
        for original, model in zip(originals, models, strict=True)
    ]
    coded = working_copy(originals[0], start.state_dict)
    parameters = dict(coded.named_parameters())
    here = _flat(parameters, names)
    offsets = [_flat(dict(model.named_parameters()), names) - here for model in models]
    mean_offset = sum((beta * offset for beta, offset in zip(coefficients, offsets, strict=True)), torch.zeros(()))

    def curvature(vector: Vector) -> Vector:
        total = pull * vector
        for beta, product in zip(coefficients, products, strict=True):
            total = total + beta * product(vector)
        return total

    wanted = pull * mean_offset
    for beta, product, offset in zip(coefficients, products, offsets, strict=True):
        wanted = wanted + beta * product(offset)
    solution = conjugate_gradients(curvature, wanted, diagonal + pull, options.iterations, options.tolerance)
    with torch.no_grad():
        for name, change in _unflat(solution.vector, parameters, names).items():
            parameters[name].add_(change)
    notes = {"iterations": solution.iterations, "relative_residual": solution.relative_residual}
    return Encoding(finished_state(coded, originals[0]), meter.cost(passes.forward, passes.backward), notes)


@dataclass(frozen=True, eq=False)
class Solution:
    """What conjugate gradients found.

    Attributes:
        vector: the solution.
        iterations: how many were made.
        relative_residual: norm of the residual over that of the right-hand side, both in the preconditioner's metric.
    """

    vector: Vector
    iterations: int
    relative_residual: float


def conjugate_gradients(
    product: Product, wanted: Vector, diagonal: Vector, iterations: int, tolerance: float
) -> Solution:
    """Solve ``product(x) = wanted`` from x = 0 for a positive definite product (Hestenes and Stiefel, 1952).

    Args:
        product: multiplies by the matrix.
        wanted: right-hand side.
        diagonal: positive; the preconditioner divides by it.
        iterations: most of them.
        tolerance: of the relative residual.
    """
    x, residual = torch.zeros_like(wanted), wanted.clone()
    scaled = residual / diagonal
    direction, size = scaled.clone(), _dot(residual, scaled)
    first = size
    done = 0
    while done < iterations and size > tolerance**2 * first:
        curved = product(direction)
        step = size / _dot(direction, curved)
        x, residual = x + step * direction, residual - step * curved
        scaled = residual / diagonal
        before, size = size, _dot(residual, scaled)
        direction = scaled + (size / before) * direction
        done += 1
    return Solution(x, done, (size / first) ** 0.5 if first > 0 else 0.0)


def _gauss_newton(
    model_name: str, model: nn.Module, names: Sequence[str], batches: Sequence[Inputs], passes: Passes
) -> Product:
    """Return the product with E_x[J^T J], J the Jacobian of all outputs with respect to the named parameters."""
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    moving = {name: parameters[name] for name in names}
    points, slots = sum(points_of(inputs) for inputs in batches), Slots(model)

    def product(vector: Vector) -> Vector:
        direction = _unflat(vector, moving, names)
        total = torch.zeros_like(vector)
        for inputs in batches:

            def outputs(moved: dict[str, torch.Tensor], inputs: Inputs = inputs) -> tuple[torch.Tensor, ...]:
                returned = slots.call({**parameters, **moved}, tuple(inputs.values()))
                return tuple(name_outputs(returned, None).values())

            with sdpa_kernel(SDPBackend.MATH):  # the others cannot be differentiated twice
                returned, back = vjp(outputs, moving)[:2]
                # J^T u is linear in u, so its own transposed derivative is J: no forward mode, which some layers lack.
                along = vjp(lambda cotangents, back=back: back(cotangents)[0], returned)[1]
                total += _flat(back(along(direction)[0])[0], names)
            passes.forward += points_of(inputs)
            passes.backward += 3 * points_of(inputs)
        return total / points

    def checked(vector: Vector) -> Vector:
        try:
            return product(vector)
        # Torch has nothing narrower for what it cannot differentiate twice.
        except (RuntimeError, NotImplementedError) as error:
            raise ModelError(
                f"model {model_name!r} cannot be differentiated twice, as encoder barycenter_cg does; "
                f"choose another encoder: {error}"
            ) from error

    return checked


def _differing(models: Sequence[nn.Module]) -> list[str]:
    own = [dict(model.named_parameters()) for model in models]
    return [
        name
        for name, parameter in own[0].items()
        if parameter.is_floating_point() and not all_equal(parameters[name] for parameters in own)
    ]


def _flat(tensors: Mapping[str, torch.Tensor], names: Sequence[str]) -> Vector:
    return torch.cat([tensors[name].detach().reshape(-1).float() for name in names])


def _unflat(vector: Vector, like: Mapping[str, torch.Tensor], names: Sequence[str]) -> dict[str, torch.Tensor]:
    parts = torch.split(vector, [like[name].numel() for name in names])
    return {name: part.view_as(like[name]).to(like[name].dtype) for name, part in zip(names, parts, strict=True)}


def _dot(left: Vector, right: Vector) -> float:
    return float(left.double() @ right.double())
