"""The demonstration's network."""

from __future__ import annotations

import torch
from torch import nn


class SmallCnn(nn.Module):
    """Five layers, 0.2 million parameters: three convolutions and two linear layers for 28 x 28 images.

    Input shape (points, 1, 28, 28), output shape (points, classes).
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
        )
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(64 * 7 * 7, 64), nn.ReLU(), nn.Linear(64, classes))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return logits."""
        logits: torch.Tensor = self.head(self.features(image))
        return logits
