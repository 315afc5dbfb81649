"""Fitting a module to the combination of the originals' outputs by gradient descent; see Hinton and others, 2015.

The loss is the mean squared error of all outputs, the divergence to which the decoder's error is proportional.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from coin_export.encode.augmentation import AugmentationOptions, augment, can_augment
from coin_export.encode.combination import Combination, Inputs, points_of, select, squared_errors
from coin_export.encode.muon import Muon, matrices
from coin_export.model.signature import Original, call

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
    module: torch.nn.Module,
    combination: Combination,
    inputs: Inputs,
    schedule: Schedule,
    seed: int,
    augmentation: AugmentationOptions | None = None,
    after_step: Callable[[int], None] = lambda steps: None,
) -> None:
    """Train those parameters of ``module`` that want gradients, in place.

    Args:
        module: a working copy of the originals' architecture.
        combination: answers any input with what is wanted.
        inputs: points to learn from.
        schedule: steps, batch size, learning rate, optimiser.
        seed: of the order of the points and of the augmentation.
        augmentation: None asks for the points as they are, and for what is wanted on them only once.
        after_step: told the number of steps taken.
    """
    optimizers = _optimizers(module, schedule)
    if not optimizers:
        return
    generator = torch.Generator().manual_seed(seed)
    examples = _examples(combination, inputs, schedule.batch_size, generator, augmentation)
    for step in range(schedule.steps):
        batch, wanted = next(examples)
        outputs = call(module, batch, combination.output_names)
        combination.passes.forward += points_of(batch)
        combination.passes.backward += points_of(batch)
        loss = squared_errors(list(outputs.values()), wanted) / sum(tensor.numel() for tensor in wanted)
        module.zero_grad()
        torch.autograd.backward(loss)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = schedule.learning_rate * schedule.factor(step)
            optimizer.step()
        after_step(step + 1)


def train_what_differs(module: torch.nn.Module, originals: Sequence[Original]) -> torch.nn.Module:
    """Let those floating-point parameters want gradients that are not equal in all originals; return the module."""
    first, *others = [dict(original.module.named_parameters()) for original in originals]
    for name, parameter in module.named_parameters():
        differs = any(not torch.equal(first[name], other[name]) for other in others)
        parameter.requires_grad_(differs and parameter.is_floating_point())
    return module


def _optimizers(module: torch.nn.Module, schedule: Schedule) -> list[torch.optim.Optimizer]:
    chosen = list(matrices(module)) if schedule.optimizer == "muon" else []
    taken = {id(parameter) for parameter in chosen}
    others = [parameter for parameter in module.parameters() if id(parameter) not in taken and parameter.requires_grad]
    chosen = [parameter for parameter in chosen if parameter.requires_grad]
    optimizers: list[torch.optim.Optimizer] = [Muon(chosen, schedule.learning_rate)] if chosen else []
    return [*optimizers, torch.optim.Adam(others, schedule.learning_rate)] if others else optimizers


def _examples(
    combination: Combination,
    inputs: Inputs,
    size: int,
    generator: torch.Generator,
    augmentation: AugmentationOptions | None,
) -> Iterator[tuple[Inputs, list[torch.Tensor]]]:
    """Yield batches of points and what is wanted on them, without end."""
    indices = _endless_batches(points_of(inputs), size, generator)
    if augmentation is not None and can_augment(inputs, augmentation):
        for index in indices:
            batch = augment(select(inputs, index), augmentation, generator)
            yield batch, combination(batch)
    else:
        parts = [combination(select(inputs, slice(start, start + size))) for start in range(0, points_of(inputs), size)]
        wanted = [torch.cat(tensors) for tensors in zip(*parts, strict=True)]
        for index in indices:
            yield select(inputs, index), [tensor[index] for tensor in wanted]


def _endless_batches(points: int, size: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Yield full batches of indices, pass after pass over all points, each in a new order."""
    size = min(size, points)
    order = torch.empty(0, dtype=torch.long)
    while True:
        while len(order) < size:
            order = torch.cat([order, torch.randperm(points, generator=generator)])
        yield order[:size]
        order = order[size:]
