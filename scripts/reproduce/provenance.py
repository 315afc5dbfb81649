"""Which version of the encoders a record comes from, so that figures of several versions are not taken for one."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

import coin_export

_PACKAGES = ("code", "encode", "fisher", "model")


@cache
def encoders_digest() -> str:
    """Return a digest of the sources that determine coded weights and how they are decoded."""
    root, digest = Path(coin_export.__file__).parent, hashlib.sha256()
    for path in sorted(path for package in _PACKAGES for path in (root / package).rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]
