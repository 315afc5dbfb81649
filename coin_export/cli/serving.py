"""The command ``serve``: start the servers, say where they are, and wait."""

from __future__ import annotations

import json
import sys
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from coin_export.cli.arguments import JsonFlag, Repository
from coin_export.cli.console import log, out
from coin_export.errors import ServeError

if TYPE_CHECKING:
    from coin_export.serve.embedded import EmbeddedServer


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
