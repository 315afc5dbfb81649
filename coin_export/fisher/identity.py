"""A digest of all that decides what a module computes, so that it never gets the statistics of another one.

Weights and buffers, saved or not, and which of them are one; the attributes of every part, hooks included; the code of
every class, with the file it stands in and those of the user's other modules that this one refers to, since
``forward`` may call helpers there; and the settings in all these, global variables that some function uses. Whatever
cannot be described counts as new each time: the statistics are then computed again.
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
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
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
_NO_VALUES = (type, BuiltinFunctionType, FunctionType, MethodType, ModuleType, partial)
_PLAIN = (type(None), bool, int, float, complex, str, bytes, range, torch.dtype, torch.device, np.generic)


def module_digest(module: torch.nn.Module) -> str:
    """Return a hexadecimal digest; equal ones mean that the modules compute the same."""
    return hashlib.sha256(repr(_Description().module(module)).encode()).hexdigest()


class _Description:
    """Describes objects as nested tuples of text; remembers what it has met, for objects that refer to each other."""

    def __init__(self, with_settings: bool = True) -> None:
        self._with_settings = with_settings
        self._settings: dict[str, list[str]] = {}
        self._met: dict[int, int] = {}
        self._alive: list[object] = []  # an id stays one object's own while that object lives

    def module(self, module: torch.nn.Module) -> object:
        tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        attributes = [
            (name, self._class(type(part)), self.of({key: v for key, v in vars(part).items() if key not in _LEFT_OUT}))
            for name, part in module.named_modules(remove_duplicate=False)
        ]
        return torch.__version__, state_digest(tensors), sorted(first_names(module).items()), attributes

    def _class(self, kind: type[Any]) -> object:
        modules = {base.__module__ for base in kind.__mro__ if _is_described(base)} if self._with_settings else set()
        for name in modules - self._settings.keys():
            self._settings[name] = _settings(name)
        return _class_code(kind), [self._settings[name] for name in sorted(modules)]

    def of(self, value: object) -> object:
        if isinstance(value, _PLAIN):
            return repr(value)
        if isinstance(value, torch.Tensor):
            return state_digest({"": value})
        if isinstance(value, (type, ModuleType)):
            return self._class(value) if isinstance(value, type) else value.__name__
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
            return self._class(type(value)), self.of(dict(vars(value)))
        return f"indescribable {uuid.uuid4()}"


def _class_code(kind: type[Any]) -> tuple[str, ...]:
    """Describe a class by its own code and that of its bases; torch's own by name, since its version is told."""
    described = []
    for base in kind.__mro__:
        described.append(f"{base.__module__}.{base.__qualname__}")
        if _is_described(base):
            described += [*_file_digests(base.__module__), *_methods(base)]
    return tuple(described)


def _is_described(kind: type[Any]) -> bool:
    return kind.__module__.split(".")[0] not in {"builtins", "torch"}


def _methods(kind: type[Any]) -> list[str]:
    constants = [f"{key}={item!r}" for key, item in vars(kind).items() if isinstance(item, _PLAIN)]
    return [_code(function) for function in _functions(kind)] + constants


def _functions(kind: type[Any]) -> list[FunctionType]:
    """Return the methods of a class, properties among them."""
    found = [getattr(item, "__func__", getattr(item, "fget", item)) for item in vars(kind).values()]
    return [item for item in found if isinstance(item, FunctionType)]


def _code(function: FunctionType) -> str:
    code = marshal.dumps(function.__code__.replace(co_filename=""))
    return f"{function.__module__}.{function.__qualname__} {hashlib.sha256(code).hexdigest()}"


def _file_digests(name: str) -> tuple[str, ...]:
    """Describe the files of all that can be reached from a module."""
    return tuple(_file_digest(each) for each in _reached(name))


def _settings(name: str) -> list[str]:
    """Describe the global variables of the user's modules that can be reached from one, as they are now.

    Those that no function there names, such as what a script has computed by now, decide nothing.
    """
    own = [sys.modules[each] for each in _reached(name) if each in sys.modules and _is_users_own(each)]
    used = {each for module in own for each in _names_in(module)}
    return [
        f"{module.__name__}.{key}={_Description(with_settings=False).of(value)!r}"
        for module in own
        for key, value in sorted(vars(module).items())
        if key in used and _is_data(value)
    ]


def _names_in(module: ModuleType) -> set[str]:
    """Return all names of globals and attributes that the functions of a module use."""
    functions = [item for item in vars(module).values() if isinstance(item, FunctionType)]
    for item in vars(module).values():
        if isinstance(item, type) and item.__module__ == module.__name__:
            functions += _functions(item)
    waiting = [function.__code__ for function in functions]
    names: set[str] = set()
    while waiting:
        code = waiting.pop()
        names.update(code.co_names)
        waiting += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return names


def _is_data(value: object) -> bool:
    """Say whether a global is a value, or an object of the user's that holds some; not a function, module or class."""
    if isinstance(value, (*_PLAIN, torch.Tensor, np.ndarray)):
        return True
    if isinstance(value, Mapping):
        return all(_is_data(item) for pair in value.items() for item in pair)
    if isinstance(value, (list, tuple, set, frozenset)):
        return all(map(_is_data, value))
    return not isinstance(value, _NO_VALUES) and _is_users_own(type(value).__module__)


@lru_cache(maxsize=4096)
def _reached(name: str) -> tuple[str, ...]:
    """Return a module and all modules of the user's that can be reached from it."""
    reached, waiting = {name}, [name]
    while waiting:
        found = {other for value in vars(sys.modules.get(waiting.pop(), object)).values() for other in _modules(value)}
        new = {other for other in found - reached if _is_users_own(other)}
        reached |= new
        waiting += sorted(new)
    return tuple(sorted(reached))


def _modules(value: object) -> Iterator[str]:
    """Yield the name of the module that a global is, or that it or its class was made in."""
    if isinstance(value, ModuleType):
        yield value.__name__
    else:
        yield str((value if isinstance(value, (type, FunctionType)) else type(value)).__module__)


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
