"""The command ``coin-export``: parse, call, print.

Exit codes: 0 done; 1 something failed; 2 the user asked for something that cannot be, and the message says what to
change; 130 interrupted.
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table

from coin_export import __version__
from coin_export.errors import (
    CoinExportError,
    MissingDependencyError,
    RequestError,
    ServeError,
    UserError,
)

if TYPE_CHECKING:
    from coin_export.code.manifest import Group
    from coin_export.serve.embedded import EmbeddedServer

FAILURE, USER_ERROR = 1, 2

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Erasure-coded fan-out inference for NVIDIA Triton: build coded models, serve them, ask and decode.",
)
out = Console()
log = Console(stderr=True)

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON for machines in place of tables.")]
Repository = Annotated[Path, typer.Argument(help="A model repository that `coin-export build` wrote.")]
GroupName = Annotated[str | None, typer.Option("--group", help="The group, where there are several.")]


def main() -> None:
    """Run the command; an error becomes one line on stderr and an exit code."""
    signal.signal(signal.SIGTERM, _interrupt)
    logging.basicConfig(format="%(message)s", handlers=[RichHandler(console=log, show_time=False, show_path=False)])
    try:
        app()
    except CoinExportError as error:
        log.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(USER_ERROR if isinstance(error, UserError) else FAILURE)
    except OSError as error:
        log.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(FAILURE)


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Print the version when asked."""
    if version:
        out.print(__version__)
        raise typer.Exit


@app.command()
def build(
    recipe: Annotated[Path, typer.Argument(help="The build recipe, a YAML file.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything and print the plan; write nothing.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Build the coded models of a recipe and write the model repository."""
    with _extra("build"):
        from coin_export.pipeline import build as run_build
        from coin_export.pipeline import plan
        from coin_export.recipe import load_recipe
    _import_from_working_directory()
    loaded = load_recipe(recipe)
    if dry_run:
        planned = plan(loaded)
        _print_json(asdict(planned)) if as_json else out.print(planned.text(), highlight=False)
        return
    report = run_build(loaded, progress=lambda message: log.print(message, style="dim", highlight=False))
    if as_json:
        _print_json(report.to_json())
        return
    _print_group(report.group)
    out.print(
        f"ONNX Runtime against torch: at most {report.onnx_max_abs_error:.2e} apart. Written: {report.repository}"
    )


@app.command()
def fisher(
    recipe: Annotated[Path, typer.Argument(help="The build recipe, a YAML file.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the files.")] = Path("artifacts/fisher"),
    as_json: JsonFlag = False,
) -> None:
    """Write the models' diagonal Fisher statistics; `torchrun --no-python coin-export fisher ...` shares the work."""
    with _extra("build"):
        from coin_export.pipeline.statistics import statistics_path, write_recipe_statistics
        from coin_export.recipe import load_recipe
    _import_from_working_directory()
    points = write_recipe_statistics(load_recipe(recipe), output)
    rows = [{"model": m, "points": count, "file": str(statistics_path(output, m))} for m, count in points.items()]
    if rows and as_json:
        _print_json(rows)
    for row in rows if not as_json else ():
        out.print(f"{row['model']}: {row['points']} points, {row['file']}", highlight=False, soft_wrap=True)


@app.command()
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
    with _extra("build"):
        from coin_export.merge import merge as run_merge
    try:
        betas = [float(text) for text in coefficients.split(",")] if coefficients else [1.0] * len(checkpoints)
    except ValueError as error:
        raise UserError(f"--coefficients {coefficients!r}: write numbers separated by commas") from error
    report = run_merge(checkpoints, betas, target, fishers=fishers or ())
    if as_json:
        _print_json(asdict(report))
        return
    notes = f"; {len(report.averaged)} plainly averaged" * bool(report.averaged)
    notes += f"; {len(report.copied)} copied from {checkpoints[0]}" * bool(report.copied)
    out.print(f"{report.combined} tensors merged{notes}. Written: {target}", highlight=False, soft_wrap=True)


@app.command()
def inspect(
    sources: Annotated[
        list[str], typer.Argument(help="A model repository, or addresses of servers (host:port, gRPC).")
    ],
    group: GroupName = None,
    as_json: JsonFlag = False,
) -> None:
    """Show a group: its code, the noise gain and the measured quality of every erasure pattern."""
    if len(sources) == 1 and (Path(sources[0]).is_dir() or ":" not in sources[0]):
        groups = _groups_of_repository(Path(sources[0]), group)
    else:
        groups = [asyncio.run(_discover(sources, group))]
    if as_json:
        from coin_export.evaluate.report import group_json

        _print_json([group_json(item) for item in groups])
    else:
        for item in groups:
            _print_group(item)


@app.command()
def verify(repository: Repository, as_json: JsonFlag = False) -> None:
    """Check a repository: digests, strict configuration, ONNX versions, and that every model runs."""
    with _extra("build"):
        from coin_export.repository.check import verify_repository
    findings = verify_repository(repository)
    if as_json:
        _print_json([asdict(finding) for finding in findings])
    else:
        table = Table("model", "check", "", "what was found")
        for finding in findings:
            table.add_row(finding.model, finding.check, "ok" if finding.ok else "FAILED", finding.message)
        out.print(table)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(FAILURE)


@app.command()
def serve(
    repository: Repository,
    per_model: Annotated[
        bool, typer.Option("--per-model", help="One server process per model, not one for all.")
    ] = False,
    grpc_port: Annotated[int | None, typer.Option(help="First gRPC port; free ones are chosen when not given.")] = None,
    http_port: Annotated[int | None, typer.Option(help="First HTTP port; free ones are chosen when not given.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    log_dir: Annotated[Path, typer.Option(help="Folder for the servers' logs.")] = Path("artifacts/logs"),
    as_json: JsonFlag = False,
) -> None:
    """Serve a repository with the embedded Triton server until interrupted (SIGINT or SIGTERM)."""
    from coin_export.repository.layout import read_repository
    from coin_export.serve.embedded import EmbeddedServer, start_all, stop_all

    names = [member.name for group in read_repository(repository).groups for member in group.members]
    parts: list[list[str] | None] = [[name] for name in names] if per_model else [None]
    log_dir.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        servers = []
        for index, models in enumerate(parts):
            server = EmbeddedServer(
                repository,
                models=models,
                host=host,
                grpc_port=None if grpc_port is None else grpc_port + index,
                http_port=None if http_port is None else http_port + index,
                log_path=log_dir / f"{models[0] if models else repository.resolve().name}.log",
            )
            servers.append(server)
        stack.callback(stop_all, servers)
        start_all(servers)
        _print_servers(servers, [models or names for models in parts], as_json)
        _wait_while_alive(servers)


@app.command()
def infer(
    addresses: Annotated[list[str], typer.Argument(help="Servers of the group (host:port, gRPC).")],
    inputs: Annotated[list[str], typer.Option("--input", help="FILE (.npz) or NAME=FILE (.npy); may be repeated.")],
    output: Annotated[Path | None, typer.Option(help="Write the outputs to this .npz as MODEL/OUTPUT.")] = None,
    deadline: Annotated[
        float | None, typer.Option(min=0.001, help="Seconds after which the request ends, decoded or failed.")
    ] = None,
    group: GroupName = None,
    as_json: JsonFlag = False,
) -> None:
    """Ask all models of a group one question and decode what is missing."""
    import numpy as np

    arrays = _read_inputs(inputs)
    answers = asyncio.run(_infer(addresses, group, arrays, deadline))
    if output is not None:
        np.savez(output, **{f"{name}/{key}": value for name, a in answers.items() for key, value in a.outputs.items()})
    rows = [
        {
            "model": name,
            "source": answer.source.value,
            "noise_gain": answer.noise_gain,
            "expected": None if answer.quality is None else asdict(answer.quality),
            "outputs": {key: list(value.shape) for key, value in answer.outputs.items()},
        }
        for name, answer in answers.items()
    ]
    if as_json:
        _print_json(rows)
        return
    table = Table("model", "source", "noise gain", "agreement expected %", "outputs")
    for row, answer in zip(rows, answers.values(), strict=True):
        expected = "-" if answer.quality is None else f"{answer.quality.agreement:.1f}"
        shapes = ", ".join(f"{key} {shape}" for key, shape in row["outputs"].items())
        table.add_row(str(row["model"]), str(row["source"]), f"{answer.noise_gain:.2f}", expected, shapes)
    out.print(table)


@app.command()
def evaluate(
    repository: Repository,
    data: Annotated[
        list[str], typer.Option("--data", help="ORIGINAL=FILE: an array file with inputs and labels; may be repeated.")
    ],
    labels: Annotated[str, typer.Option(help="The array that holds the labels.")] = "labels",
    group: GroupName = None,
    as_json: JsonFlag = False,
) -> None:
    """Measure a repository's decoded answers on labelled data, for every erasure pattern."""
    with _extra("build"):
        from coin_export.evaluate.report import group_json
        from coin_export.pipeline import evaluate_repository
    measured = evaluate_repository(repository, dict(_pair(item, "--data") for item in data), labels, group)
    _print_json(group_json(measured)) if as_json else _print_group(measured)


@app.command()
def demo(
    repository: Annotated[Path, typer.Option(help="Where the model repository is written.")] = Path("model_repository"),
    artifacts: Annotated[Path, typer.Option(help="Folder for demo.json and the servers' logs.")] = Path("artifacts"),
    encoder: Annotated[str, typer.Option(help="The encoder that makes the coded model, with its defaults.")] = "coin",
    as_json: JsonFlag = False,
) -> None:
    """Train two networks, code them, serve all on three Triton servers, stop one, kill one, and count."""
    # Servers that are stopped and killed on purpose need no warning.
    logging.getLogger("coin_export.client").setLevel(logging.ERROR)
    with _extra("build,serve"):
        from coin_export.demo.report import print_result
        from coin_export.demo.run import run_demo
        from coin_export.encode.registry import ENCODERS
    if encoder not in ENCODERS:
        raise UserError(f"--encoder {encoder!r}: choose one of {', '.join(ENCODERS)}")
    result = run_demo(repository, artifacts, log, encoder)
    if as_json:
        _print_json(result.to_json())
        return
    print_result(result, out)
    out.print(f"Numbers: {artifacts / 'demo.json'}; repository: {repository} (try `coin-export inspect {repository}`)")


def _interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


@contextmanager
def _extra(extra: str) -> Iterator[None]:
    """Turn the absence of an optional part into an error that names what to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("coin_export"):
            raise
        raise MissingDependencyError(
            f"this command needs {error.name}, which is not installed: pip install 'coin-export[{extra}]'"
        ) from error


def _import_from_working_directory() -> None:
    """Let import paths of a recipe find modules beside the caller, as ``python -m`` does."""
    if "" not in sys.path:
        sys.path.insert(0, "")


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")


def _print_group(group: Group) -> None:
    from coin_export.evaluate.report import group_tables

    out.print(group_tables(group), highlight=False)


def _groups_of_repository(path: Path, name: str | None) -> list[Group]:
    from coin_export.repository.layout import read_repository

    repository = read_repository(path)
    return list(repository.groups) if name is None else [repository.group(name)]


async def _discover(addresses: list[str], group: str | None) -> Group:
    from coin_export.client import CodedClient

    async with CodedClient(addresses, group=group) as client:
        return client.group


async def _infer(
    addresses: list[str], group: str | None, inputs: Mapping[str, Any], deadline: float | None
) -> Mapping[str, Any]:
    from coin_export.client import CodedClient

    async with CodedClient(addresses, group=group) as client:
        return await client.infer(inputs, deadline=deadline)


def _read_inputs(items: list[str]) -> dict[str, Any]:
    from coin_export.datasets.sources import read_arrays

    arrays: dict[str, Any] = {}
    for item in items:
        if "=" not in item:
            arrays |= read_arrays(Path(item))
            continue
        name, path = _pair(item, "--input")
        held = read_arrays(path)
        if len(held) != 1:
            raise RequestError(f"{path} holds {sorted(held)}; NAME=FILE wants a file with one array")
        arrays[name] = next(iter(held.values()))
    return arrays


def _pair(item: str, option: str) -> tuple[str, Path]:
    name, separator, path = item.partition("=")
    if not separator or not name or not path:
        raise RequestError(f"{option} {item!r}: write it as NAME=FILE")
    return name, Path(path)


def _print_servers(servers: list[EmbeddedServer], models: list[list[str]], as_json: bool) -> None:
    rows = [
        {"models": names, "grpc": server.grpc_address, "http": server.http_address, "log": str(server.log_path)}
        for server, names in zip(servers, models, strict=True)
    ]
    if as_json:
        sys.stdout.write(json.dumps(rows) + "\n")
        sys.stdout.flush()
        return
    table = Table("models", "gRPC", "HTTP")
    table.add_column("log", overflow="fold")
    for row in rows:
        table.add_row(", ".join(row["models"]), str(row["grpc"]), str(row["http"]), str(row["log"]))
    out.print(table)
    out.print("Serving; Ctrl-C stops.")


def _wait_while_alive(servers: list[EmbeddedServer]) -> None:
    """Block until interrupted; a server that ends by itself is told, and an error when it was the last one."""
    alive = list(servers)
    pause = threading.Event()
    try:
        while alive:
            for server in [server for server in alive if not server.is_alive()]:
                alive.remove(server)
                ended = f"the server at {server.grpc_address} ended by itself; see its log {server.log_path}"
                log.print(
                    f"{ended}; {len(alive)} of {len(servers)} go on", markup=False, highlight=False, soft_wrap=True
                )
            pause.wait(0.5)
    except KeyboardInterrupt:
        log.print("stopping")
        return
    raise ServeError("no server is left")
