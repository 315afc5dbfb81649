"""Copies of a user's modules, so that nothing done here is left on them."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator

import torch

from coin_export.errors import ModelError


def copied(module: torch.nn.Module, shared: Iterable[torch.Tensor] = ()) -> torch.nn.Module:
    """Copy a module.

    Args:
        module: the module.
        shared: parameters and buffers that are not copied: both then have them.

    Raises:
        ModelError: if it cannot be copied.
    """
    known = {id(tensor): tensor for tensor in shared}
    # Many a forward keeps an activation or a loss on its module, but `deepcopy` refuses what autograd has made.
    for part in module.modules():
        for tensor in _tensors(vars(part)):
            if not tensor.is_leaf:
                known.setdefault(id(tensor), tensor.detach().clone())
    try:
        return copy.deepcopy(module, known)
    except Exception as error:  # what a user's module holds may raise anything
        raise ModelError(f"a {type(module).__name__} cannot be copied: {type(error).__name__}: {error}") from error


def sharing_copy(module: torch.nn.Module) -> torch.nn.Module:
    """Copy a module that keeps its parameters and buffers.

    What a forward pass, hooks or `torch.func` leave on the copy does not show on the module.

    Raises:
        ModelError: if it cannot be copied.
    """
    return copied(module, [*module.parameters(), *module.buffers()])


def _tensors(value: object) -> Iterator[torch.Tensor]:
    """Yield the tensors in nested containers."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, (list, tuple, set)):
        for item in value:
            yield from _tensors(item)
