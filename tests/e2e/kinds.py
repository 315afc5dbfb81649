"""Small networks of every kind that the package promises to take, each with inputs of its own."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from coin_export.datasets.calibration import Array

POINTS = 40
TOKENS = 11


class OwnAttention(nn.Module):
    """Scaled dot-product attention with a mask, written by hand around torch's function."""

    def __init__(self) -> None:
        super().__init__()
        self.project, self.head = nn.Linear(8, 24), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        query, key, value = self.project(x).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None, :])
        logits: torch.Tensor = self.head(seen.transpose(1, 2).flatten(2).mean(1))
        return logits


class Recurrent(nn.Module):
    """Keeps its last state, as for plots."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.GRU(4, 6, batch_first=True), nn.Linear(6, 3)
        self.state: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        _, self.state = self.layer(x)
        logits: torch.Tensor = self.head(self.state[0])
        return logits


def normalised(normalise: Callable[[nn.Linear], nn.Module]) -> nn.Module:
    """A layer whose weight is computed of others."""
    return nn.Sequential(normalise(nn.Linear(6, 8)), nn.Tanh(), nn.Linear(8, 3))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))
        return logits


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(TOKENS, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(8, 3)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.encoder(self.embedding(tokens)).mean(1))
        return logits


class Tied(nn.Module):
    """A language model's first and last layer: one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.hidden = nn.Embedding(TOKENS, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, TOKENS, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(torch.tanh(self.hidden(self.embedding(tokens).mean(1))))
        return logits


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Linear(6, 8), nn.Embedding(TOKENS, 8), nn.Linear(8, 3)

    def forward(self, left: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(torch.tanh(self.left(left) * self.right(tokens).mean(1)))
        return logits


class Bilinear(nn.Module):
    """A parameter that no known layer holds."""

    def __init__(self) -> None:
        super().__init__()
        self.core = nn.Parameter(0.3 * torch.randn(3, 6, 6))
        self.shift = nn.Parameter(torch.zeros(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(torch.einsum("ni,cij,nj->nc", x, self.core, x)) + self.shift


def images() -> nn.Module:
    """Convolutions without bias: plain, depthwise, grouped, strided, dilated; BatchNorm with lived-in statistics."""
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 8, 3, groups=4, padding=1, bias=False),
        nn.ReLU(),
        nn.Conv2d(8, 6, 3, stride=2, groups=2, bias=False),
        nn.ReLU(),
        nn.Conv2d(6, 4, 2, dilation=2, bias=False),
        nn.Flatten(),
        nn.Linear(4, 3, bias=False),
    )
    with torch.no_grad():
        network(0.5 + 2.0 * torch.randn(16, 3, 8, 8))
    return network


def volumes() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(2, 4, 2),
        nn.BatchNorm3d(4),
        nn.ConvTranspose3d(4, 4, 1),
        nn.GroupNorm(2, 4),
        nn.SiLU(),
        nn.Flatten(),
        nn.Linear(32, 3),
    )


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 3))


def repeated() -> nn.Module:
    """One layer in two places."""
    layer = nn.Linear(6, 6)
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Tanh(), nn.Linear(6, 3))


def normal(*shape: int) -> Array:
    values: Array = np.random.default_rng(0).normal(size=(POINTS, *shape)).astype(np.float32)
    return values


def tokens(*shape: int) -> Array:
    return np.random.default_rng(1).integers(0, TOKENS, size=(POINTS, *shape))


def mlp(dtype: torch.dtype = torch.float32) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)


@dataclass(frozen=True)
class Kind:
    """A network and calibration inputs for it.

    Attributes:
        make: makes it.
        inputs: makes those.
        frozen: parameters that fine-tuning leaves alone.
    """

    make: Callable[[], nn.Module]
    inputs: Callable[[], dict[str, Array]]
    frozen: tuple[str, ...] = ()

    def tuned(self, seed: int) -> nn.Module:
        """Make the network, fine-tuned a little: the same start for every seed, and another end."""
        torch.manual_seed(0)
        module = self.make()
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                if name not in self.frozen:
                    parameter.add_((0.02 * torch.randn(parameter.shape, generator=generator)).to(parameter.dtype))
        return module.eval()


def _masked() -> dict[str, Array]:
    mask = np.arange(5) < np.random.default_rng(2).integers(1, 6, size=(POINTS, 1))
    return {"x": normal(5, 8), "mask": mask}


KINDS = {
    "mlp": Kind(plain, lambda: {"x": normal(6)}),
    "conv1d": Kind(
        lambda: nn.Sequential(
            nn.Conv1d(2, 4, 3, stride=2), nn.BatchNorm1d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)
        ),
        lambda: {"x": normal(2, 9)},
    ),
    "conv2d": Kind(images, lambda: {"x": normal(3, 8, 8)}),
    "conv3d": Kind(volumes, lambda: {"x": normal(2, 3, 3, 3)}),
    "transposed": Kind(
        lambda: nn.Sequential(
            nn.ConvTranspose2d(2, 4, 3, stride=2, output_padding=1),
            nn.ReLU(),
            nn.Conv2d(4, 1, 3, stride=2, bias=False),
            nn.Flatten(),
        ),
        lambda: {"x": normal(2, 4, 4)},
    ),
    "transposed1d": Kind(
        lambda: nn.Sequential(nn.ConvTranspose1d(2, 3, 3, stride=2), nn.GELU(), nn.Flatten(), nn.Linear(33, 3)),
        lambda: {"x": normal(2, 5)},
    ),
    "weight_norm": Kind(lambda: normalised(parametrizations.weight_norm), lambda: {"x": normal(6)}),
    "spectral_norm": Kind(lambda: normalised(parametrizations.spectral_norm), lambda: {"x": normal(6)}),
    "recurrent": Kind(Recurrent, lambda: {"x": normal(5, 4)}),
    "shared": Kind(plain, lambda: {"x": normal(6)}, frozen=("0.weight", "0.bias", "1.weight")),
    "repeated": Kind(repeated, lambda: {"x": normal(6)}),
    "attention": Kind(Attention, lambda: {"x": normal(5, 8)}),
    "transformer": Kind(Encoder, lambda: {"tokens": tokens(5)}),
    "own_attention": Kind(OwnAttention, _masked),
    "tied": Kind(Tied, lambda: {"tokens": tokens(5)}),
    "two_inputs": Kind(TwoInputs, lambda: {"left": normal(6), "tokens": tokens(4)}),
    "unknown": Kind(Bilinear, lambda: {"x": normal(6)}),
    "float16": Kind(lambda: mlp(torch.float16), lambda: {"x": normal(6).astype(np.float16)}),
    "bfloat16": Kind(lambda: mlp(torch.bfloat16), lambda: {"x": normal(6)}),
}
