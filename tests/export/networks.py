"""Small networks and what they are asked, for the tests of the export."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from coin_export.datasets.calibration import CalibrationInputs
from coin_export.model.signature import Signature, infer_signature


class Convolutional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(2)
        )
        self.head = nn.Linear(16, 3)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        head: torch.Tensor = self.head(self.body(image).flatten(1))
        return head


class Attention(nn.Module):
    """Token ids and a mask in; an encoder layer and a bare scaled dot product attention."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.norm = nn.LayerNorm(16)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.query = nn.Linear(16, 48)
        self.head = nn.Linear(16, 3)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.embed(ids))
        query, key, value = self.query(x).view(x.shape[0], 5, 3, 2, 8).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None, :])
        x = self.layer(x) + y.transpose(1, 2).flatten(2)
        head: torch.Tensor = self.head(x.mean(1))
        return head


class TwoOutputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.linear(x)
        return {"logits": logits, "again": logits, "features": x}


class Tuple(TwoOutputs):
    def forward(self, x: torch.Tensor) -> Any:
        return tuple(super().forward(x).values())


class Half(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3).half()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.linear(x)
        return out


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.LSTM(4, 8, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        states: torch.Tensor = self.cells(x)[0]
        return states[:, -1]


class Applied(nn.Module):
    """A function of tensors as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.function(*inputs)


def case(module: nn.Module, **arrays: np.ndarray[Any, Any]) -> tuple[nn.Module, CalibrationInputs, Signature]:
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    calibration = CalibrationInputs(arrays)
    return module.eval(), calibration, infer_signature(module.eval(), calibration)


def normal(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def convolutional() -> tuple[nn.Module, CalibrationInputs, Signature]:
    return case(Convolutional(), image=normal(9, 1, 8, 8))
