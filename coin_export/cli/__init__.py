"""The command ``coin-export``: parse, call, print.

Exit codes: 0 done; 1 something failed; 2 the user asked for something that cannot be, and the message says what to
change; 130 interrupted.
"""

from __future__ import annotations

import logging
import signal
import sys
from typing import Annotated

import typer
from rich.logging import RichHandler

from coin_export import __version__
from coin_export.cli.asking import infer
from coin_export.cli.building import build, fisher, merge
from coin_export.cli.console import log, out
from coin_export.cli.demonstration import demo
from coin_export.cli.looking import evaluate, inspect, verify
from coin_export.cli.serving import serve
from coin_export.errors import CoinExportError, UserError

_FAILURE, _USER_ERROR = 1, 2

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Erasure-coded fan-out inference for NVIDIA Triton: build coded models, serve them, ask and decode.",
)
for _command in (build, fisher, merge, inspect, verify, serve, infer, evaluate, demo):
    app.command()(_command)


def main() -> None:
    """Run the command; an error becomes one line on stderr and an exit code."""
    signal.signal(signal.SIGTERM, _interrupt)
    logging.basicConfig(format="%(message)s", handlers=[RichHandler(console=log, show_time=False, show_path=False)])
    try:
        app()
    except CoinExportError as error:
        log.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(_USER_ERROR if isinstance(error, UserError) else _FAILURE)
    except OSError as error:
        log.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(_FAILURE)


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Print the version when asked."""
    if version:
        out.print(__version__)
        raise typer.Exit


def _interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt
