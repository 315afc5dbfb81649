"""The tensors of a model: which are one and the same, whether they are finite, and a digest of their contents."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import torch

from coin_export.errors import NonFiniteError


def state_digest(state: Mapping[str, torch.Tensor]) -> str:
    """Return ``sha256:...`` over names, dtypes, shapes and contents, whatever the order of the tensors."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        # As bytes, since numpy has no bfloat16; flat, since a scalar cannot be viewed with another item size.
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return "sha256:" + digest.hexdigest()


def first_names(module: torch.nn.Module) -> dict[str, str]:
    """Map each name of a parameter or buffer to the first name of that same tensor: tied weights have several."""
    named = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tensor), name) for name, tensor in named}


def all_equal(tensors: Iterable[torch.Tensor]) -> bool:
    """Tell whether all tensors are the same to the last bit, as a parameter that all originals share is."""
    first, *others = tensors
    return all(torch.equal(first, other) for other in others)


def check_finite(module: torch.nn.Module, where: str) -> None:
    """Check the weights of ``module``.

    A buffer may hold minus infinity, as additive attention masks do; nothing else may be infinite, nothing NaN.

    Raises:
        NonFiniteError: names every tensor with NaN or infinity.
    """
    faulty = [name for name, tensor in module.named_parameters() if not bool(torch.isfinite(tensor).all())]
    for name, tensor in module.named_buffers():
        if tensor.is_floating_point() and not bool((torch.isfinite(tensor) | torch.isneginf(tensor)).all()):
            faulty.append(name)
    if faulty:
        raise NonFiniteError(f"{where}: NaN or infinity in {', '.join(faulty)}; train or save the model again")
