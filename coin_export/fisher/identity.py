"""A digest of all that decides what a module computes, so that it never gets the statistics of another one.

Weights and buffers, saved or not, and which of them are one; the attributes of every part, hooks included; the code of
every class, with the file it stands in and those of the user's other modules that this one refers to, since
``forward`` may call helpers there. Whatever cannot be described counts as new each time: the statistics are then
computed again.
"""

from __future__ import annotations

import hashlib
import inspect
import marshal
import sys
import uuid
import weakref
from collections.abc import Iterator, Mapping
from functools import lru_cache, partial
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch

from coin_export.model.state import first_names, state_digest

# Described by name and contents, or without effect on a forward pass.
_LEFT_OUT = {
    "_parameters",
    "_buffers",
    "_modules",
    "_non_persistent_buffers_set",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
}
_PLAIN = (type(None), bool, int, float, complex, str, bytes, range, torch.dtype, torch.device, np.generic)


def module_digest(module: torch.nn.Module) -> str:
    """Return a hexadecimal digest; equal ones mean that the modules compute the same."""
    return hashlib.sha256(repr(_Description().module(module)).encode()).hexdigest()


class _Description:
    """Describes objects as nested tuples of text; remembers what it has met, for objects that refer to each other."""

    def __init__(self) -> None:
        self._met: dict[int, int] = {}
        self._alive: list[object] = []  # an id stays one object's own while that object lives

    def module(self, module: torch.nn.Module) -> object:
        tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        attributes = [
            (name, _class_code(type(part)), self.of({key: v for key, v in vars(part).items() if key not in _LEFT_OUT}))
            for name, part in module.named_modules(remove_duplicate=False)
        ]
        return torch.__version__, state_digest(tensors), sorted(first_names(module).items()), attributes

    def of(self, value: object) -> object:
        if isinstance(value, _PLAIN):
            return repr(value)
        if isinstance(value, torch.Tensor):
            return state_digest({"": value})
        if isinstance(value, (type, ModuleType)):
            return _class_code(value) if isinstance(value, type) else value.__name__
        if id(value) in self._met:
            return f"met {self._met[id(value)]}"
        self._met[id(value)] = len(self._met)
        self._alive.append(value)
        return self._container(value) or self._callable(value) or self._object(value)

    def _container(self, value: object) -> object:
        if isinstance(value, Mapping):
            return type(value).__name__, [(self.of(key), self.of(item)) for key, item in value.items()]
        if isinstance(value, (list, tuple)):
            return type(value).__name__, [self.of(item) for item in value]
        if isinstance(value, (set, frozenset)):
            return type(value).__name__, sorted(repr(self.of(item)) for item in value)
        if isinstance(value, np.ndarray):
            return str(value.dtype), value.shape, hashlib.sha256(value.tobytes()).hexdigest()
        return None

    def _callable(self, value: object) -> object:
        if isinstance(value, FunctionType):
            closure = [cell.cell_contents for cell in value.__closure__ or ()]
            return _code(value), self.of(closure), self.of(value.__defaults__), self.of(value.__kwdefaults__)
        if isinstance(value, MethodType):
            return self.of(value.__func__), self.of(value.__self__)
        if isinstance(value, partial):
            return "partial", self.of(value.func), self.of(value.args), self.of(value.keywords)
        if isinstance(value, BuiltinFunctionType):
            return f"{value.__module__}.{value.__qualname__}"
        return None

    def _object(self, value: object) -> object:
        if isinstance(value, torch.nn.Module):  # held in an attribute that is no child
            return self.module(value)
        if isinstance(value, weakref.ref):
            return "weak reference"
        if hasattr(value, "__dict__") and not hasattr(type(value), "__slots__"):
            return _class_code(type(value)), self.of(dict(vars(value)))
        return f"indescribable {uuid.uuid4()}"


def _class_code(kind: type[Any]) -> tuple[str, ...]:
    """Describe a class by its own code and that of its bases; torch's own by name, since its version is told."""
    described = []
    for base in kind.__mro__:
        described.append(f"{base.__module__}.{base.__qualname__}")
        if base.__module__.split(".")[0] not in {"builtins", "torch"}:
            described += [*_file_digests(base.__module__), *_methods(base)]
    return tuple(described)


def _methods(kind: type[Any]) -> list[str]:
    functions = [getattr(item, "__func__", getattr(item, "fget", item)) for item in vars(kind).values()]
    constants = [f"{key}={item!r}" for key, item in vars(kind).items() if isinstance(item, _PLAIN)]
    return [_code(item) for item in functions if isinstance(item, FunctionType)] + constants


def _code(function: FunctionType) -> str:
    code = marshal.dumps(function.__code__.replace(co_filename=""))
    return f"{function.__module__}.{function.__qualname__} {hashlib.sha256(code).hexdigest()}"


@lru_cache(maxsize=4096)
def _file_digests(name: str) -> tuple[str, ...]:
    """Describe a module's file, and those of all modules of the user's that can be reached from it."""
    reached, waiting = {name}, [name]
    while waiting:
        found = {other for value in vars(sys.modules.get(waiting.pop(), object)).values() for other in _modules(value)}
        new = {other for other in found - reached if _is_users_own(other)}
        reached |= new
        waiting += sorted(new)
    return tuple(_file_digest(each) for each in sorted(reached))


def _modules(value: object) -> Iterator[str]:
    """Yield the name of the module that a global refers to, or that what it refers to was made in."""
    if isinstance(value, ModuleType):
        yield value.__name__
    elif isinstance(value, (type, FunctionType)):
        yield str(value.__module__)


def _is_users_own(name: str) -> bool:
    """Say whether a module is neither of Python nor installed: those come with versions, and change with them."""
    if name.split(".")[0] in sys.stdlib_module_names:
        return False
    parts = Path(getattr(sys.modules.get(name), "__file__", None) or "site-packages").parts
    return not {"site-packages", "dist-packages"} & set(parts)


@lru_cache(maxsize=4096)
def _file_digest(name: str) -> str:
    try:
        return hashlib.sha256(inspect.getsource(sys.modules[name]).encode()).hexdigest()
    except (OSError, TypeError, KeyError):  # made at run time
        return "no file"
