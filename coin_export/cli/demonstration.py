"""The command ``demo``."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from coin_export.cli.arguments import JsonFlag
from coin_export.cli.console import log, out, print_json
from coin_export.cli.extras import extra
from coin_export.errors import UserError


def demo(
    repository: Annotated[Path, typer.Option(help="Where the model repository is written.")] = Path("model_repository"),
    artifacts: Annotated[Path, typer.Option(help="Folder for demo.json and the servers' logs.")] = Path("artifacts"),
    encoder: Annotated[str, typer.Option(help="The encoder that makes the coded model, with its defaults.")] = "coin",
    as_json: JsonFlag = False,
) -> None:
    """Train two networks, code them, serve all on three Triton servers, stop one, kill one, and count."""
    # Servers that are stopped and killed on purpose need no warning.
    logging.getLogger("coin_export.client").setLevel(logging.ERROR)
    with extra("build,serve"):
        from coin_export.demo.report import print_result
        from coin_export.demo.run import run_demo
        from coin_export.encode.registry import ENCODERS
    if encoder not in ENCODERS:
        raise UserError(f"--encoder {encoder!r}: choose one of {', '.join(ENCODERS)}")
    result = run_demo(repository, artifacts, log, encoder)
    if as_json:
        print_json(result.to_json())
        return
    print_result(result, out)
    out.print(f"Numbers: {artifacts / 'demo.json'}; repository: {repository} (try `coin-export inspect {repository}`)")
