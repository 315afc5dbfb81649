"""Fitting coded models to the originals' outputs by gradient descent; see Hinton and others, 2015."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from coin_export.encode.augmentation import AugmentationOptions, answered, augment, can_augment
from coin_export.encode.criterion import Answers, Criterion
from coin_export.encode.muon import Muon, matrices
from coin_export.encode.teachers import Inputs, Teachers, batches_of, concatenated, points_of, select
from coin_export.model.functional import check_differentiable
from coin_export.model.signature import Original
from coin_export.model.state import all_equal

OptimizerName = Literal["adam", "muon"]

_WARM_UP_STEPS = 10


@dataclass(frozen=True)
class Schedule:
    """How to descend: the learning rate rises for ten steps and then falls to zero along a cosine."""

    steps: int
    batch_size: int
    learning_rate: float
    optimizer: OptimizerName = "adam"

    def factor(self, step: int) -> float:
        """Return the share of the learning rate that step number ``step`` uses, counted from zero."""
        warm_up = min(1.0, (step + 1) / _WARM_UP_STEPS)
        return warm_up * 0.5 * (1 + math.cos(math.pi * step / self.steps))


def fit(
    modules: Sequence[torch.nn.Module],
    teachers: Teachers,
    criterion: Criterion,
    inputs: Inputs,
    schedule: Schedule,
    seed: int,
    augmentation: AugmentationOptions | None = None,
    units: Mapping[str, float] | None = None,
) -> int:
    """Train those parameters of ``modules`` that want gradients, in place.

    Args:
        modules: a working copy of the originals' architecture for each coded model, fitted together.
        teachers: the originals, which answer any input; modules run as they do.
        criterion: what to descend on.
        inputs: points to learn from.
        schedule: steps, batch size, learning rate, optimiser.
        seed: of the order of the points and of the augmentation.
        augmentation: None takes the points as they are, and asks the originals only once.
        units: of each parameter by name, what its learning rate is a multiple of; None is one for all.

    Returns:
        The steps taken; fewer than those of the schedule if the criterion was no longer finite.

    Raises:
        ModelError: if autograd sees no output depend on any weight.
    """
    for module in modules:
        teachers.execution.lay_out(module)
    optimizers = _optimizers(modules, schedule, units)
    if not optimizers:  # all steps change nothing
        return schedule.steps
    generator = torch.Generator().manual_seed(seed)
    examples = _examples(teachers, inputs, schedule.batch_size, generator, augmentation)
    for step in range(schedule.steps):
        batch, answers = next(examples)
        loss = criterion(teachers.ask(modules, batch), answers)
        if not torch.isfinite(loss):
            return step
        if not loss.requires_grad:  # what would be fitted is not used
            check_differentiable(modules[0], batch)
            return schedule.steps
        teachers.passes.backward += len(modules) * points_of(batch)
        for optimizer in optimizers:
            optimizer.zero_grad()
        torch.autograd.backward(loss)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = schedule.learning_rate * schedule.factor(step) * group["unit"]
            optimizer.step()
    return schedule.steps


def train_what_differs(module: torch.nn.Module, originals: Sequence[Original]) -> torch.nn.Module:
    """Let those floating-point parameters want gradients that are not equal in all originals; return the module."""
    own = [dict(original.module.named_parameters()) for original in originals]
    for name, parameter in module.named_parameters():
        differs = not all_equal(parameters[name] for parameters in own)
        parameter.requires_grad_(differs and parameter.is_floating_point())
    return module


def _optimizers(
    modules: Sequence[torch.nn.Module], schedule: Schedule, units: Mapping[str, float] | None
) -> list[torch.optim.Optimizer]:
    """Return what moves the parameters that want gradients, each with a ``unit`` of its learning rate."""
    as_matrices = {id(parameter) for module in modules for parameter in matrices(module)}
    if schedule.optimizer == "adam":
        as_matrices = set()
    chosen: list[dict[str, Any]] = []
    others: list[dict[str, Any]] = []
    for module in modules:
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                group = {"params": [parameter], "unit": 1.0 if units is None else units[name]}
                (chosen if id(parameter) in as_matrices else others).append(group)
    optimizers: list[torch.optim.Optimizer] = [Muon(chosen, schedule.learning_rate)] if chosen else []
    return [*optimizers, torch.optim.Adam(others, schedule.learning_rate)] if others else optimizers


def _examples(
    teachers: Teachers,
    inputs: Inputs,
    size: int,
    generator: torch.Generator,
    augmentation: AugmentationOptions | None,
) -> Iterator[tuple[Inputs, Answers]]:
    """Yield batches of points and what the originals answer to them, without end."""
    indices = _endless_batches(points_of(inputs), size, generator)
    if augmentation is not None and can_augment(inputs, augmentation):
        for index in indices:
            plain = select(inputs, index)
            yield answered(teachers, augment(plain, augmentation, generator), plain)
    else:
        answers = concatenated([teachers(batch) for batch in batches_of(inputs, size)])
        for index in indices:
            yield select(inputs, index), [tensor[:, index] for tensor in answers]


def _endless_batches(points: int, size: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Yield full batches of indices, pass after pass over all points, each in a new order."""
    size = min(size, points)
    order = torch.empty(0, dtype=torch.long)
    while True:
        while len(order) < size:
            order = torch.cat([order, torch.randperm(points, generator=generator)])
        yield order[:size]
        order = order[size:]
