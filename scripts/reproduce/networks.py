"""The networks of the reproduction, none of them larger than a CPU can train in minutes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import nn
from torch.nn import functional

from coin_export.demo.networks import SmallCnn

NetworkKind = Literal["small_cnn", "resnet", "resnet_bn", "minilm"]


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut, as in ResNet-18; without biases, BatchNorm only if asked for."""

    def __init__(self, channels: int, width: int, stride: int, batch_norm: bool) -> None:
        super().__init__()
        self.first = _convolution(channels, width, 3, stride, batch_norm)
        self.second = _convolution(width, width, 3, 1, batch_norm)
        same = channels == width and stride == 1
        self.shortcut = nn.Identity() if same else _convolution(channels, width, 1, stride, batch_norm)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return features of the block's width."""
        inner = self.second(functional.relu(self.first(features)))
        return functional.relu(inner + self.shortcut(features))


class ResNet(nn.Module):
    """ResNet-18's four stages of two blocks, narrower, with a stem of stride two for 3 x 32 x 32 images."""

    def __init__(self, width: int, batch_norm: bool, classes: int = 10) -> None:
        super().__init__()
        self.stem = _convolution(3, width, 3, 2, batch_norm)
        widths = [width * 2**stage for stage in range(4)]
        blocks = [
            Block(widths[max(0, stage - (block == 0))], widths[stage], 2 if stage and not block else 1, batch_norm)
            for stage in range(4)
            for block in range(2)
        ]
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return logits."""
        features = self.blocks(functional.relu(self.stem(image)))
        logits: torch.Tensor = self.head(features.mean((2, 3)))
        return logits


def _convolution(channels: int, width: int, size: int, stride: int, batch_norm: bool) -> nn.Module:
    convolution = nn.Conv2d(channels, width, size, stride, size // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(width)) if batch_norm else convolution


def _minilm(classes: int) -> nn.Module:
    from scripts.reproduce.minilm import pretrained  # the extra ``reproduce``

    return pretrained(classes)


_MAKERS: Mapping[NetworkKind, Callable[[int, int], nn.Module]] = {
    "small_cnn": lambda width, classes: SmallCnn(classes),
    "resnet": lambda width, classes: ResNet(width, batch_norm=False, classes=classes),
    "resnet_bn": lambda width, classes: ResNet(width, batch_norm=True, classes=classes),
    "minilm": lambda width, classes: _minilm(classes),
}


def make_network(kind: NetworkKind, width: int, classes: int, seed: int) -> nn.Module:
    """Make a network whose fresh weights come from ``seed``; ``width`` is that of the ResNets."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _MAKERS[kind](width, classes)
