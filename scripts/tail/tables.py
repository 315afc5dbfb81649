"""The records as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from scripts.tail.verdict import Row, Spread, Target

_COLUMNS = {
    "p50_ms": ("p50", ".1f"),
    "p90_ms": ("p90", ".1f"),
    "p99_ms": ("p99", ".1f"),
    "p999_ms": ("p99.9", ".1f"),
    "max_ms": ("max", ".0f"),
    "gap_cut": ("gap cut", ".1f"),
    "extra_request_share": ("extra", ".1%"),
    "decoded_share": ("decoded", ".1%"),
    "failed": ("failed", ".0f"),
    "accuracy": ("accuracy", ".2f"),
    "client_late_p999_ms": ("client late", ".1f"),
}
_WITH_SPREAD = ("p50_ms", "p999_ms", "gap_cut")


def results(rows: Sequence[Row]) -> str:
    """Return one table a scenario: medians over the repeats, and for some columns the smallest and largest."""
    scenarios = dict.fromkeys(row.scenario for row in rows)
    return "\n\n".join(
        _titled(scenario, sorted((row for row in rows if row.scenario == scenario), key=_order))
        for scenario in scenarios
    )


def verdicts(targets: Iterable[Target]) -> str:
    """Return the table of targets."""
    lines = ["| target | reached | |", "|---|---|---|"]
    lines += [f"| {target.text} | {target.reached} | {'met' if target.met else 'missed'} |" for target in targets]
    return "\n".join(lines)


def _titled(scenario: str, rows: Sequence[Row]) -> str:
    heads = ["policy", *(title for title, _ in _COLUMNS.values())]
    count = rows[0].repeats
    lines = [
        f"**{scenario}** ({count} repeat{'s' * (count != 1)})",
        "",
        f"| {' | '.join(heads)} |",
        "|---" * len(heads) + "|",
    ]
    for row in rows:
        cells = [f"`{row.policy}`", *(_cell(key, form, row.values.get(key)) for key, (_, form) in _COLUMNS.items())]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(key: str, form: str, spread: Spread | None) -> str:
    if spread is None:
        return ""
    shown = format(spread.median, form)
    return f"{shown} ({spread.low:{form}} to {spread.high:{form}})" if key in _WITH_SPREAD else shown


def _order(row: Row) -> int:
    order = ("none", "replicas_equal", "replicas_full_hedged", "coded_at_once", "coded_after_p95")
    return order.index(row.policy)
