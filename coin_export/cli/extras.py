"""What a command needs from outside the base installation: optional packages, and the modules of a recipe."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from coin_export.errors import MissingDependencyError


@contextmanager
def extra(extra: str) -> Iterator[None]:
    """Turn the absence of an optional part into an error that names what to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("coin_export"):
            raise
        raise MissingDependencyError(
            f"this command needs {error.name}, which is not installed: pip install 'coin-export[{extra}]'"
        ) from error


def import_from_working_directory() -> None:
    """Let import paths of a recipe find modules beside the caller, as ``python -m`` does."""
    if "" not in sys.path:
        sys.path.insert(0, "")
