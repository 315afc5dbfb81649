"""Reproduce the paper's tables and figures, and hold the default encoder to its targets: see docs/results.md.

    python scripts/reproduce_paper.py --data-dir ../shared/data            # everything; many hours on two cores
    python scripts/reproduce_paper.py --data-dir ../shared/data --quick    # a small version

Trains originals, runs encoders on them in worker processes of one thread each, decodes every erasure pattern on the
test parts, writes ``reproduce.json`` and the figures, prints the tables and puts them into the page. Originals and
finished cells are kept in the cache: a run that was interrupted goes on where it was. Of cells that the cache lacks,
records that ``reproduce.json`` already holds stay in it, until the cell's options change.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown

from scripts.bench.machine import describe
from scripts.bench.pages import replace_between
from scripts.reproduce.cells import plan
from scripts.reproduce.figures import draw
from scripts.reproduce.methods import METHODS
from scripts.reproduce.running import done, run_cells, train_all
from scripts.reproduce.settings import FULL, QUICK
from scripts.reproduce.tables import all_tables
from scripts.reproduce.tasks import Data

STAGES = ("train", "measure", "report")
RESULTS, PAGE = Path("docs/results"), Path("docs/results.md")


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, measure, report."""
    options = _parse(arguments)
    console = Console(width=160)
    output = options.output or (options.cache / "quick" if options.quick else RESULTS)
    scale, data = QUICK if options.quick else FULL, Data(options.data_dir, options.cache)
    cells = plan(scale)
    wanted = [cell for cell in cells if cell.method in options.encoders]
    if "train" in options.stages:
        train_all(wanted, data, options.workers, console.print)
    if "measure" in options.stages:
        run_cells(wanted, data, options.workers, console.print)
    if "report" in options.stages:
        output.mkdir(parents=True, exist_ok=True)
        path = output / "reproduce.json"
        measured = done(cells, data, json.loads(path.read_text("utf-8")) if path.exists() else [])
        missing, records = len(cells) - len(measured), list(chain(*measured))
        lines = ",\n".join(json.dumps(record, allow_nan=False) for record in records)
        part = path.with_suffix(".part")
        part.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
        part.replace(path)  # records of other machines are nowhere else
        command = "python scripts/reproduce_paper.py" + (" --quick" if options.quick else "")
        about = describe() | {"command": command, "cells": len(cells), "cells_missing": missing}
        (output / "reproduce.meta.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        tables = all_tables(records, missing, len(cells))
        for table in tables.values():
            console.print(Markdown(table))
        if page := options.page or (PAGE if output == RESULTS and not options.quick else None):
            replace_between(page, tables)
        draw(records, output)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=Path("../shared/data"), help="folder with the data sets")
    parser.add_argument("--quick", action="store_true", help="small networks, one seed; leaves the page alone")
    parser.add_argument("--cache", type=Path, default=Path("artifacts/reproduce"), help="originals and finished cells")
    parser.add_argument("--output", type=Path, help="default: docs/results; with --quick, a folder in the cache")
    parser.add_argument("--page", type=Path, help=f"page that shows the tables; default: {PAGE}, or none with --output")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument(
        "--stages",
        nargs="+",
        choices=STAGES,
        default=STAGES[1:],
        help="train trains all originals at once, measure those that are missing as it goes; default: measure, report",
    )
    parser.add_argument("--encoders", nargs="+", choices=METHODS, default=tuple(METHODS), help="measure only these")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
