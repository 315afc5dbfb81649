"""What is said about a group: tables for people, plain data for machines."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from rich.console import Group as Rows
from rich.table import Table
from rich.text import Text

from coin_export.code.manifest import Group, Quality
from coin_export.code.warning import noise_warning

_SINGULAR = 1e15  # a condition number that only rounding tells from infinity


def group_json(group: Group) -> dict[str, Any]:
    """Return everything known of a group as plain data.

    ``worst_noise_gain`` and ``worst_condition``, the condition number of the worst k rows of the generator matrix, are
    None where some loss of m models cannot be made good. ``warning`` is what `noise_warning` says.
    """
    code = group.code
    gain, condition = code.worst_noise_gain(), code.worst_condition()
    return {
        **asdict(group),
        "generation": group.generation,
        "worst_noise_gain": gain if math.isfinite(gain) else None,
        "worst_condition": condition if condition < _SINGULAR else None,
        "warning": noise_warning(code, [member.name for member in group.members]),
        "survives_any_erasures": code.m if code.survives_any(code.m) else _survived(group),
    }


def group_tables(group: Group) -> Rows:
    """Lay out a group for the terminal: its members, then every erasure pattern."""
    members = Table(title=f"Group {group.name}: k = {group.code.k}, m = {group.code.m}", title_justify="left")
    for heading in ("model", "role", "row of the generator matrix", "accuracy %", "digest"):
        members.add_column(heading, overflow="fold")
    for member in group.members:
        row = "  ".join(f"{value:.3f}" for value in member.row)
        members.add_row(member.name, member.role, row, _percent(member.accuracy), member.digest[:15])
    warning = noise_warning(group.code, [member.name for member in group.members])
    warned = () if warning is None else (Text(f"Warning: {warning}.", style="yellow"),)
    return Rows(members, _worst(group), *warned, quality_table(group), _signature(group))


def _worst(group: Group) -> str:
    gain, condition = group.code.worst_noise_gain(), group.code.worst_condition()
    if not math.isfinite(gain) or condition >= _SINGULAR:
        return f"Not every loss of {group.code.m} of the {group.code.n} models can be made good."
    return (
        f"Any {group.code.m} of the {group.code.n} models lost: noise gain at most {gain:.2f}, condition number of the "
        f"{group.code.k} rows left at most {condition:.1f}."
    )


def quality_table(group: Group) -> Table:
    """Lay out the quality of decoded answers, one line per erasure pattern and lost original."""
    table = Table(title=f"Decoded answers (encoder {group.encoder}, {group.code_space})", title_justify="left")
    table.add_column("erased", overflow="fold")
    table.add_column("decoded", overflow="fold")
    for heading in ("noise\ngain", "relative\nerror", "agree-\nment %", "accu-\nracy %", "norma-\nlized %"):
        table.add_column(heading, justify="right")
    accuracy = {member.name: member.accuracy for member in group.originals}
    for record in group.quality:
        table.add_row(
            ", ".join(record.erased),
            record.decoded,
            f"{record.noise_gain:.2f}",
            f"{record.relative_error:.3f}",
            _percent(record.agreement),
            _percent(record.degraded_accuracy),
            _percent(normalized_accuracy(record, accuracy[record.decoded])),
        )
    return table


def normalized_accuracy(record: Quality, original: float | None) -> float | None:
    """Return degraded over original accuracy in %, where both were measured."""
    if record.degraded_accuracy is None or not original:
        return None
    return 100.0 * record.degraded_accuracy / original


def _signature(group: Group) -> str:
    def text(tensors: tuple[Any, ...]) -> str:
        return ", ".join(f"{tensor.name} {tensor.dtype} {list(tensor.shape)}" for tensor in tensors)

    return f"inputs: {text(group.inputs)}; outputs: {text(group.outputs)}\ngeneration: {group.generation}"


def _survived(group: Group) -> int:
    return max(erasures for erasures in range(group.code.m + 1) if group.code.survives_any(erasures))


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
