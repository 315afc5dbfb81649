"""Making a user's trained model of an import path and a checkpoint; nothing in a checkpoint is ever executed."""

from __future__ import annotations

import importlib
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from coin_export.errors import ModelError
from coin_export.model.state import check_finite, first_names

# Where training frameworks keep the weights inside a checkpoint that also holds other things.
_NESTED_KEYS = ("state_dict", "model")


def import_object(path: str) -> object:
    """Import what ``package.module:attribute`` names; the attribute may be dotted.

    Raises:
        ModelError: if the path is malformed, the module or the attribute does not exist, or importing fails.
    """
    module_name, colon, attribute = path.partition(":")
    if not colon or not all(part.isidentifier() for part in [*module_name.split("."), *attribute.split(".")]):
        raise ModelError(f"{path!r} is not an import path; write package.module:attribute")
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name + ".").startswith(error.name + "."):
            raise ModelError(
                f"{path!r}: there is no module {error.name!r}; install it or put its folder on PYTHONPATH"
            ) from error
        raise ModelError(f"{path!r}: importing {module_name!r} failed: {error}; install what it needs") from error
    except Exception as error:  # a user's module may raise anything
        raise ModelError(f"{path!r}: importing {module_name!r} failed: {type(error).__name__}: {error}") from error
    for name in attribute.split("."):
        if not hasattr(found, name):
            raise ModelError(f"{path!r}: {module_name!r} has no attribute {attribute!r}")
        found = getattr(found, name)
    return found


def load_module(factory: str, arguments: Mapping[str, Any], checkpoint: Path) -> torch.nn.Module:
    """Make a module and load its trained weights into it.

    Args:
        factory: import path of a callable that returns the module, for example the module's class.
        arguments: its keyword arguments.
        checkpoint: see `read_state_dict`. Of tied weights, as safetensors saves them, one name is enough.

    Returns:
        The module, in eval mode, on the CPU.

    Raises:
        ModelError: if the factory or the checkpoint is unusable, or the one does not fit the other.
        NonFiniteError: if weights hold NaN or infinity.
    """
    module = _make_module(factory, arguments)
    state = _with_tied_weights(module, read_state_dict(checkpoint), checkpoint)
    try:
        module.load_state_dict(state)
    except RuntimeError as error:  # its message lists missing, unexpected and misshapen tensors
        raise ModelError(
            f"{checkpoint}: does not fit the model that {factory!r} makes with arguments {dict(arguments)}: {error}"
        ) from error
    check_finite(module, str(checkpoint))
    return module.eval()


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """Read the weights in a checkpoint, without ever unpickling objects.

    Args:
        path: a ``.safetensors`` file, or anything that ``torch.save`` wrote: a state dict, or a mapping with one
            under ``state_dict`` or ``model``.

    Raises:
        ModelError: if the file is missing, corrupt, holds no state dict, or needs objects to be unpickled.
    """
    if not path.is_file():
        raise ModelError(f"{path}: no such checkpoint")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    candidates = [content]
    if isinstance(content, Mapping):
        candidates += [content[key] for key in _NESTED_KEYS if key in content]
    for candidate in candidates:
        if isinstance(candidate, Mapping) and candidate and all(map(torch.is_tensor, candidate.values())):
            return {str(name): tensor for name, tensor in candidate.items()}
    held = f"a mapping with keys {list(content)[:8]}" if isinstance(content, Mapping) else f"a {type(content).__name__}"
    raise ModelError(
        f"{path}: holds no state dict but {held}; save model.state_dict(), by itself or under 'state_dict' or 'model'"
    )


def _make_module(factory: str, arguments: Mapping[str, Any]) -> torch.nn.Module:
    make = import_object(factory)
    if not callable(make):
        raise ModelError(f"{factory!r} is a {type(make).__name__}; a factory must be callable and return a module")
    try:
        module = make(**arguments)
    except Exception as error:  # a user's factory may raise anything
        raise ModelError(
            f"{factory!r} failed with arguments {dict(arguments)}: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(module, torch.nn.Module):
        raise ModelError(f"{factory!r} returned a {type(module).__name__}; it must return a torch.nn.Module")
    return module


def _with_tied_weights(
    module: torch.nn.Module, state: dict[str, torch.Tensor], checkpoint: Path
) -> dict[str, torch.Tensor]:
    """Give every name of a tied weight the tensor that the checkpoint holds under one of them."""
    complete = dict(state)
    held: dict[str, str] = {}
    first = first_names(module)
    for name in filter(state.__contains__, first):
        other = held.setdefault(first[name], name)
        if other != name and not torch.equal(state[other], state[name]):
            raise ModelError(f"{checkpoint}: {other} and {name} differ, and in the model they are one tied weight")
    saved = module.state_dict().keys()
    for name in saved:
        if name not in state and first.get(name) in held:
            complete[name] = state[held[first[name]]]
    return complete


def _read_safetensors(path: Path) -> object:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: not a valid safetensors file: {error}") from error


def _read_torch(path: Path) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own message recommends to load unsafely, so it is not repeated here.
        if zipfile.is_zipfile(path):
            raise ModelError(
                f"{path}: holds pickled objects, which are refused because reading them can run any code; "
                "save model.state_dict() rather than the model"
            ) from error
        raise ModelError(f"{path}: not a checkpoint written by torch.save") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise ModelError(f"{path}: the checkpoint cannot be read: {error or 'it ends too early'}") from error
