"""Supervised training of originals: Adam, one cycle of the learning rate, small shifts and flips where they help."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from coin_export.model.signature import to_tensors
from scripts.reproduce.tasks import Part

_LARGEST_NORM = 2.0  # of a gradient; networks without BatchNorm now and then give larger ones
_SHIFT = 2  # pixels


@dataclass(frozen=True)
class Training:
    """How a network is trained.

    Attributes:
        points: of the task's training part.
        epochs: passes over them.
        learning_rate: Adam's, at its highest.
        batch_size: points in a step.
        augment: flip and shift the images of a batch; for photographs, not for digits.
    """

    points: int
    epochs: int
    learning_rate: float
    batch_size: int = 64
    augment: bool = False


def train(network: nn.Module, part: Part, training: Training, seed: int) -> nn.Module:
    """Train ``network`` in place and return it in eval mode."""
    inputs, labels = to_tensors(part.inputs), torch.from_numpy(part.labels)
    optimizer = torch.optim.Adam(network.parameters())
    batches = len(part) // training.batch_size
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, training.learning_rate, total_steps=training.epochs * batches
    )
    generator = torch.Generator().manual_seed(seed)
    network.train()
    for _ in range(training.epochs):
        order = torch.randperm(len(part), generator=generator)[: batches * training.batch_size]
        for index in torch.split(order, training.batch_size):
            batch = _without_padding({name: tensor[index] for name, tensor in inputs.items()})
            if training.augment:
                batch = {name: _augmented(tensor, generator) for name, tensor in batch.items()}
            optimizer.zero_grad()
            torch.autograd.backward(cross_entropy(network(*batch.values()), labels[index]))
            nn.utils.clip_grad_norm_(network.parameters(), _LARGEST_NORM)
            optimizer.step()
            schedule.step()
    return network.eval()


def _without_padding(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Cut sentences to the longest of the batch."""
    if "mask" not in batch:
        return batch
    longest = int(batch["mask"].sum(1).max())
    return {name: tensor[:, :longest] for name, tensor in batch.items()}


def _augmented(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Flip half of the images, and shift all of the batch alike; what leaves on one side comes in on the other."""
    flipped = torch.rand(len(images), generator=generator) < 0.5
    images = torch.where(flipped[:, None, None, None], images.flip(3), images)
    rows, columns = torch.randint(-_SHIFT, _SHIFT + 1, (2,), generator=generator).tolist()
    return images.roll((rows, columns), (2, 3))
