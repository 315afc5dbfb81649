"""The commands that look at a group: ``inspect``, ``verify`` and ``evaluate``."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from coin_export.cli.arguments import GroupName, JsonFlag, Repository, pair
from coin_export.cli.console import out, print_group, print_json
from coin_export.cli.extras import extra

if TYPE_CHECKING:
    from coin_export.code.manifest import Group


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

        print_json([group_json(item) for item in groups])
    else:
        for item in groups:
            print_group(item)


def verify(repository: Repository, as_json: JsonFlag = False) -> None:
    """Check a repository: digests, strict configuration, ONNX versions, and that every model runs."""
    with extra("build"):
        from coin_export.repository.check import verify_repository
    findings = verify_repository(repository)
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        table = Table("model", "check", "", "what was found")
        for finding in findings:
            table.add_row(finding.model, finding.check, "ok" if finding.ok else "FAILED", finding.message)
        out.print(table)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


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
    with extra("build"):
        from coin_export.evaluate.report import group_json
        from coin_export.pipeline import evaluate_repository
    measured = evaluate_repository(repository, dict(pair(item, "--data") for item in data), labels, group)
    print_json(group_json(measured)) if as_json else print_group(measured)


def _groups_of_repository(path: Path, name: str | None) -> list[Group]:
    from coin_export.repository.layout import read_repository

    repository = read_repository(path)
    return list(repository.groups) if name is None else [repository.group(name)]


async def _discover(addresses: list[str], group: str | None) -> Group:
    from coin_export.client import CodedClient

    async with CodedClient(addresses, group=group) as client:
        return client.group
