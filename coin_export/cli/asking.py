"""The command ``infer``: ask servers once."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from coin_export.cli.arguments import GroupName, JsonFlag, read_inputs
from coin_export.cli.console import out, print_json


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

    arrays = read_inputs(inputs)
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
        print_json(rows)
        return
    table = Table("model", "source", "noise gain", "agreement expected %", "outputs")
    for row, answer in zip(rows, answers.values(), strict=True):
        agreement = answer.quality and answer.quality.agreement
        expected = "-" if agreement is None else f"{agreement:.1f}"
        shapes = ", ".join(f"{key} {shape}" for key, shape in row["outputs"].items())
        table.add_row(str(row["model"]), str(row["source"]), f"{answer.noise_gain:.2f}", expected, shapes)
    out.print(table)


async def _infer(
    addresses: list[str], group: str | None, inputs: Mapping[str, Any], deadline: float | None
) -> Mapping[str, Any]:
    from coin_export.client import CodedClient

    async with CodedClient(addresses, group=group) as client:
        return await client.infer(inputs, deadline=deadline)
