"""Tiny real networks, one for each kind of layer that statistics and encoders must get right."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from coin_export.datasets.calibration import Array, CalibrationInputs
from coin_export.model.signature import Original, infer_signature

POINTS = 5


class TiedAutoencoder(nn.Module):
    """An embedding whose weight is also that of the output layer, as in language models."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.hidden = nn.Linear(4, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(torch.tanh(self.hidden(self.embedding(tokens))).mean(1))
        return logits


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(3, 4), nn.Linear(2, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(torch.tanh(self.left(left) * self.right(right)))
        return logits


class TwoHeads(nn.Module):
    """Returns a dict; the second output has a position dimension before its classes."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(3, 4)
        self.first, self.second = nn.Linear(4, 2), nn.Linear(4, 6)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden = torch.tanh(self.body(x))
        return {"label": self.first(hidden), "tags": self.second(hidden).reshape(-1, 2, 3)}


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))
        return logits


class Recurrent(nn.Module):
    """`torch.func.vmap` cannot handle it: it takes the point-by-point path."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRU(3, 4, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.cell(x)[0][:, -1])
        return logits


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1, bias=False),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, groups=2),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(4, 3),
    )


def batch_norm() -> nn.Module:
    """A convolution with BatchNorm whose running statistics are not those of a new network."""
    network = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 2))
    with torch.no_grad():
        for _ in range(3):
            network(2.0 * torch.randn(8, 2, 6, 6) + 0.5)
    return network


def layer_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 6), nn.LayerNorm(6), nn.GELU(), nn.Linear(6, 3))


def embedding() -> nn.Module:
    return nn.Sequential(nn.Embedding(7, 3, padding_idx=0), nn.Flatten(), nn.Linear(12, 3))


def transformer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    return nn.Sequential(layer, nn.Flatten(), nn.Linear(12, 2))


def _normal(*shape: int) -> Array:
    values: Array = np.random.default_rng(0).normal(size=(POINTS, *shape)).astype(np.float32)
    return values


def _tokens() -> Array:
    return np.random.default_rng(0).integers(0, 7, size=(POINTS, 4))


@dataclass(frozen=True)
class Case:
    """A network and inputs for it."""

    make: Callable[[], nn.Module]
    arrays: Callable[[], dict[str, Array]]

    def original(self, name: str = "a", seed: int = 0) -> Original:
        torch.manual_seed(seed)
        module = self.make().eval()
        return Original(name, module, infer_signature(module, self.calibration()))

    def calibration(self) -> CalibrationInputs:
        return CalibrationInputs(self.arrays())


CASES = {
    "mlp": Case(mlp, lambda: {"x": _normal(3)}),
    "cnn": Case(cnn, lambda: {"x": _normal(2, 6, 6)}),
    "batch_norm": Case(batch_norm, lambda: {"x": _normal(2, 6, 6)}),
    "layer_norm": Case(layer_norm, lambda: {"x": _normal(3)}),
    "embedding": Case(embedding, lambda: {"tokens": _tokens()}),
    "attention": Case(Attention, lambda: {"x": _normal(3, 4)}),
    "transformer": Case(transformer, lambda: {"x": _normal(3, 4)}),
    "tied": Case(TiedAutoencoder, lambda: {"tokens": _tokens()}),
    "two_inputs": Case(TwoInputs, lambda: {"left": _normal(3), "right": _normal(2)}),
    "two_heads": Case(TwoHeads, lambda: {"x": _normal(3)}),
    "recurrent": Case(Recurrent, lambda: {"x": _normal(3, 3)}),
}
