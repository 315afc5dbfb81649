"""What a user's own module might hold: importable by the tests as `tests.model.user_models`."""

import torch
from torch import nn

from tests.reference.networks import TiedAutoencoder

NUMBER = 3


class Net(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.hidden = nn.Linear(3, width)
        self.norm = nn.BatchNorm1d(width)
        self.head = nn.Linear(width, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.norm(self.hidden(x)))
        return logits


class Nested:
    make = Net


def tied() -> TiedAutoencoder:
    return TiedAutoencoder()


def tied_twice() -> nn.Module:
    layer = nn.Linear(2, 2)
    return nn.ModuleDict({"a": layer, "b": layer, "c": layer})


def not_a_module() -> int:
    return NUMBER


def fails() -> nn.Module:
    raise KeyError("no such size")
