"""Arguments and options that several commands share, and how their texts are read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from coin_export.errors import RequestError

Recipe = Annotated[Path, typer.Argument(help="The build recipe, a YAML file.")]
Repository = Annotated[Path, typer.Argument(help="A model repository that `coin-export build` wrote.")]
GroupName = Annotated[str | None, typer.Option("--group", help="The group, where there are several.")]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON for machines in place of tables.")]


def read_inputs(items: list[str]) -> dict[str, Any]:
    """Read the arrays of files, given as FILE or as NAME=FILE.

    Raises:
        RequestError: if a text is neither, or a file given as NAME=FILE holds several arrays.
        CalibrationError: if a file cannot be read.
    """
    from coin_export.datasets.sources import read_arrays

    arrays: dict[str, Any] = {}
    for item in items:
        if "=" not in item:
            arrays |= read_arrays(Path(item))
            continue
        name, path = pair(item, "--input")
        held = read_arrays(path)
        if len(held) != 1:
            raise RequestError(f"{path} holds {sorted(held)}; NAME=FILE wants a file with one array")
        arrays[name] = next(iter(held.values()))
    return arrays


def pair(item: str, option: str) -> tuple[str, Path]:
    """Take NAME=FILE apart.

    Raises:
        RequestError: if it is written in another way.
    """
    name, separator, path = item.partition("=")
    if not separator or not name or not path:
        raise RequestError(f"{option} {item!r}: write it as NAME=FILE")
    return name, Path(path)
