"""Training of the demonstration's networks: plain supervised learning from one common start."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch.nn.functional import cross_entropy

from coin_export.datasets.bundled import ImageSet
from coin_export.demo.networks import SmallCnn

BATCH_SIZE = 64
PEAK_LEARNING_RATE = 3e-3


def common_start(seed: int) -> SmallCnn:
    """Make the network from which every original is trained."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return SmallCnn()


def train(
    network: SmallCnn,
    images: ImageSet,
    epochs: int,
    seed: int,
    on_epoch: Callable[[], object] = lambda: None,
    stopped: Callable[[], bool] = lambda: False,
) -> SmallCnn:
    """Train ``network`` in place on the training part and return it in eval mode.

    One thread is enough for so small a network; several networks train side by side. Training ends early, at the next
    batch, once ``stopped`` says so.
    """
    torch.set_num_threads(1)
    inputs, labels = torch.from_numpy(images.train_images), torch.from_numpy(images.train_labels)
    optimizer = torch.optim.Adam(network.parameters())
    steps = epochs * math.ceil(len(inputs) / BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LEARNING_RATE, total_steps=steps)
    generator = torch.Generator().manual_seed(seed)
    network.train()
    for _ in range(epochs):
        for index in torch.split(torch.randperm(len(inputs), generator=generator), BATCH_SIZE):
            if stopped():
                return network.eval()
            optimizer.zero_grad()
            torch.autograd.backward(cross_entropy(network(inputs[index]), labels[index]))
            optimizer.step()
            schedule.step()
        on_epoch()
    return network.eval()
