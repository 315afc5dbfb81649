"""Self-attention of `torch.nn.MultiheadAttention`, with its fused projection as a linear layer of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F


def self_attention_applies(
    module: nn.MultiheadAttention, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any
) -> bool:
    """Batched self-attention without learned extra keys; anything else is left to torch."""
    fused = module.in_proj_weight is not None and module.bias_k is None and not module.add_zero_attn
    return fused and query is key and key is value and query.ndim == 3


def self_attention(
    module: nn.MultiheadAttention,
    record: Callable[[torch.Tensor, torch.Tensor], None],
    query: torch.Tensor,
    _key: torch.Tensor,
    _value: torch.Tensor,
    key_padding_mask: torch.Tensor | None = None,
    need_weights: bool = True,
    attn_mask: torch.Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Compute what the module's forward does in evaluation.

    Args:
        module: the attention; its output projection is called as a module.
        record: called with inputs and output of the fused projection, both (points, tokens, features).
        query: also key and value.
        key_padding_mask: as all further arguments, see torch.
        need_weights: see torch.
        attn_mask: see torch.
        average_attn_weights: see torch.
        is_causal: a hint that ``attn_mask`` is the causal one; the mask says it all.
    """
    inputs = query if module.batch_first else query.transpose(0, 1)
    projected = F.linear(inputs, module.in_proj_weight, module.in_proj_bias)
    record(inputs, projected)
    # (3, points, heads, tokens, features of a head)
    queries, keys, values = torch.unflatten(projected, -1, (3, module.num_heads, -1)).permute(2, 0, 3, 1, 4)
    mask = _mask(module, inputs, key_padding_mask, attn_mask)
    weights = None
    if need_weights:
        scores = queries @ keys.transpose(-2, -1) * module.head_dim**-0.5
        weights = (scores if mask is None else scores + mask).softmax(-1)
        mixed = weights @ values
        weights = weights.mean(1) if average_attn_weights else weights
    else:
        mixed = F.scaled_dot_product_attention(queries, keys, values, mask)
    output = module.out_proj(mixed.transpose(1, 2).flatten(2))
    return (output if module.batch_first else output.transpose(0, 1)), weights


def _mask(
    module: nn.MultiheadAttention, inputs: torch.Tensor, padding: torch.Tensor | None, attention: torch.Tensor | None
) -> torch.Tensor | None:
    """Sum both masks, to be added to scores of shape (points, heads, queries, keys)."""
    masks = []
    if padding is not None:
        masks.append(_additive(padding, inputs)[:, None, None, :])
    if attention is not None:
        mask = _additive(attention, inputs)
        masks.append(torch.unflatten(mask, 0, (-1, module.num_heads)) if mask.ndim == 3 else mask)
    return sum(masks[1:], masks[0]) if masks else None


def _additive(mask: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """Turn True for "do not look" into minus infinity."""
    if mask.dtype != torch.bool:
        return mask.to(inputs.dtype)
    return inputs.new_zeros(mask.shape).masked_fill(mask, float("-inf"))
