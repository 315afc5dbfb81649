"""Erasure-coded fan-out inference for NVIDIA Triton.

The two halves are imported when first used, so that a client needs neither torch nor onnx, and a build no server:

- build: `build`, `build_group`, `load_recipe`, `BuildOptions`, `Labelled`
- client: `CodedClient`, `Source`
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coin_export.client import CodedClient, Source
    from coin_export.pipeline import Labelled, build, build_group
    from coin_export.recipe import BuildOptions, load_recipe

__version__ = "0.1.0"

__all__ = ["BuildOptions", "CodedClient", "Labelled", "Source", "build", "build_group", "load_recipe"]

_HOMES = {
    "BuildOptions": "coin_export.recipe",
    "CodedClient": "coin_export.client",
    "Labelled": "coin_export.pipeline",
    "Source": "coin_export.client",
    "build": "coin_export.pipeline",
    "build_group": "coin_export.pipeline",
    "load_recipe": "coin_export.recipe",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
