"""Tables of studies in Markdown, and their places in a page: between two comments that name them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from coin_export.errors import UserError

Record = Mapping[str, Any]

_GROWING = 2.0  # a run whose latencies grow by more has no steady state


def has_steady_state(record: Record) -> bool:
    """Tell whether a run's queues stayed bounded."""
    return bool(record["growth"] < _GROWING and record["offered_load"] < 1)


def table(axis: str, records: Sequence[Record]) -> str:
    """Lay out one study: a line for each place on its axis, a column for each policy, ``p50 / p99 / p99.9`` in ms."""
    policies = list(dict.fromkeys(record["policy"] for record in records))
    panels = list(dict.fromkeys(record["panel"] for record in records))
    heads = [*([""] if panels != [""] else []), axis, *(f"`{policy}`" for policy in policies)]
    lines = []
    for panel in panels:
        here = [record for record in records if record["panel"] == panel]
        for x in dict.fromkeys(record["x"] for record in here):
            cells = {record["policy"]: _cell(record) for record in here if record["x"] == x}
            start = [panel, _text(x)] if panel else [_text(x)]
            lines.append([*start, *(cells.get(policy, "") for policy in policies)])
    return markdown(heads, lines)


def markdown(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Lay out a table."""
    return "\n".join("| " + " | ".join(line) + " |" for line in (heads, ["---"] * len(heads), *lines))


def insert(page: str, tables: Mapping[str, str]) -> str:
    """Put tables between ``<!-- table: NAME -->`` and ``<!-- end -->``.

    Raises:
        UserError: if the page has no place for one of them.
    """
    for name, text in tables.items():
        start, end = f"<!-- table: {name} -->\n", "<!-- end -->"
        before, found, rest = page.partition(start)
        if not found or end not in rest:
            raise UserError(
                f"the page has no place for the table {name!r}; add a line {start.strip()} and a line {end}"
            )
        page = f"{before}{start}\n{text}\n\n{end}{rest.partition(end)[2]}"
    return page


def _cell(record: Record) -> str:
    if not has_steady_state(record):
        return "queues grow"
    return " / ".join(f"{record[key]:.0f}" for key in ("p50_ms", "p99_ms", "p999_ms"))


def _text(x: float | str) -> str:
    return x if isinstance(x, str) else f"{x:g}"
