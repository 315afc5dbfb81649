"""The commands that make something: ``build``, ``fisher`` and ``merge``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from coin_export.cli.arguments import JsonFlag, Recipe
from coin_export.cli.console import log, out, print_group, print_json
from coin_export.cli.extras import extra, import_from_working_directory
from coin_export.errors import UserError


def build(
    recipe: Recipe,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything and print the plan; write nothing.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Build the coded models of a recipe and write the model repository."""
    with extra("build"):
        from coin_export.encode.encoding import plain_notes
        from coin_export.pipeline import build as run_build
        from coin_export.pipeline import plan
        from coin_export.recipe import load_recipe
    import_from_working_directory()
    loaded = load_recipe(recipe)
    if dry_run:
        planned = plan(loaded)
        print_json(asdict(planned)) if as_json else out.print(planned.text(), highlight=False)
        return
    report = run_build(loaded, progress=lambda message: log.print(message, style="dim", highlight=False))
    if as_json:
        print_json(report.to_json())
        return
    print_group(report.group)
    for model, notes in report.notes.items():
        if notes:
            out.print(f"{model}: {_told(plain_notes(notes))}", highlight=False)
    out.print(
        f"ONNX Runtime against torch: at most {report.onnx_max_abs_error:.2e} apart. Written: {report.repository}"
    )


def _told(notes: Mapping[str, Any]) -> str:
    """Return what an encoder had to say (what it chose, and why), but for its lists, which are for programs."""
    kept = {key: value for key, value in notes.items() if value not in ({}, None) and not isinstance(value, list)}
    return "; ".join(f"{key.replace('_', ' ')}: {_shown(value)}" for key, value in kept.items())


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_shown(each)}" for key, each in value.items())
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def fisher(
    recipe: Recipe,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the files.")] = Path("artifacts/fisher"),
    as_json: JsonFlag = False,
) -> None:
    """Write the models' diagonal Fisher statistics; `torchrun --no-python coin-export fisher ...` shares the work."""
    with extra("build"):
        from coin_export.pipeline.statistics import statistics_path, write_recipe_statistics
        from coin_export.recipe import load_recipe
    import_from_working_directory()
    points = write_recipe_statistics(load_recipe(recipe), output)
    rows = [{"model": m, "points": count, "file": str(statistics_path(output, m))} for m, count in points.items()]
    if rows and as_json:
        print_json(rows)
    for row in rows if not as_json else ():
        out.print(f"{row['model']}: {row['points']} points, {row['file']}", highlight=False, soft_wrap=True)


def merge(
    target: Annotated[Path, typer.Argument(help="The file to write; a folder if the first checkpoint is sharded.")],
    checkpoints: Annotated[list[Path], typer.Argument(help="Two or more, in safetensors: file, index or folder.")],
    coefficients: Annotated[
        str | None, typer.Option(help="A positive number for each, separated by commas; equal when not given.")
    ] = None,
    fishers: Annotated[
        list[Path] | None, typer.Option("--fisher", help="Statistics of each checkpoint, in order: merge by COIN.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Merge checkpoints of any size by plain averaging, or by COIN with the files of `coin-export fisher`."""
    with extra("build"):
        from coin_export.merge import merge as run_merge
    try:
        betas = [float(text) for text in coefficients.split(",")] if coefficients else [1.0] * len(checkpoints)
    except ValueError as error:
        raise UserError(f"--coefficients {coefficients!r}: write numbers separated by commas") from error
    report = run_merge(checkpoints, betas, target, fishers=fishers or ())
    if as_json:
        print_json(asdict(report))
        return
    notes = f"; {len(report.averaged)} plainly averaged" * bool(report.averaged)
    notes += f"; {len(report.copied)} copied from {checkpoints[0]}" * bool(report.copied)
    out.print(f"{report.combined} tensors merged{notes}. Written: {target}", highlight=False, soft_wrap=True)
