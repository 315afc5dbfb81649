"""Ensemble distillation, the paper's baseline: a network trained to give sum_i beta_i f_i(x) (arXiv 2409.01420)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from coin_export.code.linear import LinearCode
from coin_export.datasets.calibration import CalibrationInputs
from coin_export.encode.average import AverageOptions, average
from coin_export.encode.coin import START, coin
from coin_export.encode.cost import CostMeter, Passes
from coin_export.encode.criterion import Criterion
from coin_export.encode.distillation import Schedule, fit, train_what_differs
from coin_export.encode.encoding import Encoding
from coin_export.encode.teachers import Teachers, finished_state, working_copy, working_inputs
from coin_export.errors import ModelError, NonFiniteError
from coin_export.model.signature import Original
from coin_export.model.state import all_equal


class DistillOptions(BaseModel):
    """How the network is trained: Adam, mean squared error of the outputs, learning rate falling along a cosine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["distill"] = Field(default="distill", description="Ensemble distillation on the calibration inputs.")
    start: Literal["fresh", "average", "coin"] = Field(
        default="fresh",
        description="fresh: the architecture with its layers re-initialised, as in the paper; average or coin: that "
        "barycenter.",
    )
    epochs: int = Field(default=40, ge=1, description="Passes over the calibration inputs.")
    batch_size: int = Field(default=64, ge=1, description="Points in a step.")
    learning_rate: float = Field(default=1e-3, gt=0, allow_inf_nan=False, description="Adam's, at its highest.")
    seed: int = Field(default=0, ge=0, description="Seed of the fresh weights and of the order of points.")


def distill(
    originals: Sequence[Original],
    coefficients: Sequence[float],
    calibration: CalibrationInputs,
    options: DistillOptions,
    cache: Path | None = None,
) -> Encoding:
    """Train a network of the originals' architecture; see `Encoder`.

    BatchNorm estimates its statistics anew from a fresh start, and keeps averaged ones otherwise. What is equal in all
    originals, such as a frozen backbone, stays as it is, from a fresh start too.

    Raises:
        ModelError: if the start is fresh and a layer cannot be re-initialised.
        NonFiniteError: if it diverges.
        CoinExportError: as `coin`.
    """
    meter, passes = CostMeter(), Passes()
    if options.start == "fresh":
        module = working_copy(originals[0], originals[0].module.state_dict())
        reinitialise(module, options.seed)
        train_what_differs(_with_what_is_shared(module, originals), originals)
    else:
        encoding = (
            average(originals, coefficients, calibration, AverageOptions(), cache)
            if options.start == "average"
            else coin(originals, coefficients, calibration, START, cache)
        )
        passes.add(encoding.cost)
        module = train_what_differs(working_copy(originals[0], encoding.state_dict), originals)
    inputs, error = working_inputs(calibration), Criterion(LinearCode((tuple(coefficients),)), "error")
    teachers = Teachers(originals, passes).hastened(inputs, "float32")
    steps = options.epochs * math.ceil(len(calibration) / options.batch_size)
    schedule = Schedule(steps, options.batch_size, options.learning_rate)
    taken = fit([module], teachers, error, inputs, schedule, options.seed)
    if taken < steps:
        raise NonFiniteError(
            f"distillation diverged after {taken} of {steps} steps; choose a learning_rate below "
            f"{options.learning_rate:g}"
        )
    state = finished_state(module, originals[0])
    return Encoding(state, meter.cost(passes.forward, passes.backward), {"steps": steps})


def _with_what_is_shared(module: torch.nn.Module, originals: Sequence[Original]) -> torch.nn.Module:
    """Put back what is equal in all originals; BatchNorm with shared statistics follows its batches no more."""
    states = [original.module.state_dict() for original in originals]
    shared = {name for name in states[0] if all_equal(state[name] for state in states)}
    module.load_state_dict({name: states[0][name] for name in shared}, strict=False)
    for name, part in module.named_modules():
        if isinstance(part, torch.nn.modules.batchnorm._BatchNorm) and f"{name}.running_mean".lstrip(".") in shared:
            part.eval()
    return module


def reinitialise(module: torch.nn.Module, seed: int) -> None:
    """Give every layer new weights through its ``reset_parameters`` and let BatchNorm follow its batches.

    Raises:
        ModelError: names the layers that hold parameters and cannot reset them.
    """
    layers = {name: part for name, part in module.named_modules() if list(part.parameters(recurse=False))}
    # `nn.MultiheadAttention` has its own under a private name.
    resets = {
        name: getattr(part, "reset_parameters", getattr(part, "_reset_parameters", None))
        for name, part in layers.items()
    }
    missing = [f"{name or 'the model'} ({type(layers[name]).__name__})" for name, reset in resets.items() if not reset]
    if missing:
        raise ModelError(
            f"distillation from a fresh start: no reset_parameters() in {', '.join(missing)}; "
            "add one, or start at 'average' or 'coin'"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for reset in resets.values():
            if reset is not None:
                reset()
    for part in module.modules():
        if isinstance(part, torch.nn.modules.batchnorm._BatchNorm):
            part.train()
