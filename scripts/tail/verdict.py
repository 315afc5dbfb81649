"""What the records say: medians and spread over repeats, and each target met or missed."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from scripts.tail.records import Record

STRAGGLING = ("straggle_2", "straggle_5")
CODED = ("coded_at_once", "coded_after_p95")
_MATCHES = 1.10  # a tail that is at most this many times another one matches it


class Spread(NamedTuple):
    """Median, smallest and largest over the repeats."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Take one value a repeat."""
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Row:
    """One policy in one scenario.

    Attributes:
        policy: its name.
        scenario: the scenario's name.
        repeats: how many were measured.
        values: by a record's key; and beside ``none`` in the same repeat, ``gap_cut``, how many times the gap between
            p99.9 and p50 is smaller, ``p50_ratio``, and ``accuracy_gained``, mostly negative.
    """

    policy: str
    scenario: str
    repeats: int
    values: dict[str, Spread]


@dataclass(frozen=True)
class Target:
    """A target, and what was reached."""

    text: str
    reached: str
    met: bool


_KEYS = (
    "failed",
    "p50_ms",
    "p90_ms",
    "p99_ms",
    "p999_ms",
    "max_ms",
    "extra_request_share",
    "decoded_share",
    "accuracy",
    "client_late_p999_ms",
)


def rows(records: Sequence[Record]) -> list[Row]:
    """Sum up the repeats of each cell, in the order in which scenarios and policies first come."""
    cells: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        cells.setdefault((record["scenario"], record["policy"]), []).append(record)
    baseline = {(r["scenario"], r["repeat"]): r for r in records if r["policy"] == "none"}
    found = []
    for (scenario, policy), members in cells.items():
        values = {key: Spread.of([record[key] for record in members]) for key in _KEYS}
        pairs = [
            (record, baseline[scenario, record["repeat"]])
            for record in members
            if (scenario, record["repeat"]) in baseline
        ]
        if pairs:
            values["gap_cut"] = Spread.of([_gap(none) / _gap(record) for record, none in pairs])
            values["p50_ratio"] = Spread.of([record["p50_ms"] / none["p50_ms"] for record, none in pairs])
            values["accuracy_gained"] = Spread.of([record["accuracy"] - none["accuracy"] for record, none in pairs])
        found.append(Row(policy, scenario, len(members), values))
    return found


def targets(found: Sequence[Row]) -> Iterator[Target]:
    """Judge the medians against the targets; what was not measured is left out."""
    table = {(row.scenario, row.policy): row.values for row in found}
    for scenario in STRAGGLING:
        if all((scenario, policy) in table for policy in ("none", *CODED)):
            yield from _straggling(
                scenario, {policy: values for (found_in, policy), values in table.items() if found_in == scenario}
            )
    for scenario in dict.fromkeys(row.scenario for row in found):
        for policy in CODED:
            if (scenario, policy) in table and (scenario, "none") in table:
                yield from _everywhere(scenario, policy, table[scenario, policy])


def _straggling(scenario: str, table: dict[str, dict[str, Spread]]) -> Iterator[Target]:
    def value(policy: str, key: str) -> float:
        return table[policy][key].median

    at_once, after = CODED
    cut = _shown(lambda policy: table[policy]["gap_cut"], "{:.1f}x")
    yield Target(f"{scenario}: {at_once} cuts the gap at least 30x", cut(at_once), value(at_once, "gap_cut") >= 30)
    ratio = _shown(lambda policy: table[policy]["p50_ratio"], "{:.2f}x")
    near = value(at_once, "p50_ratio") <= 1.10
    yield Target(f"{scenario}: {at_once} has a p50 within 10 % of none's", ratio(at_once), near)
    share = 100 * value(at_once, "decoded_share")
    yield Target(f"{scenario}: {at_once} decodes less than 5 %", f"{share:.1f} %", share < 5)
    if "replicas_equal" in table:
        yield Target(
            f"{scenario}: {at_once} is ahead of replicas_equal at p99.9",
            f"{value(at_once, 'p999_ms'):.1f} ms against {value('replicas_equal', 'p999_ms'):.1f} ms",
            value(at_once, "p999_ms") < value("replicas_equal", "p999_ms"),
        )
    yield Target(f"{scenario}: {after} cuts the gap at least 25x", cut(after), value(after, "gap_cut") >= 25)
    extra = 100 * value(after, "extra_request_share")
    yield Target(f"{scenario}: {after} sends at most 2 % more requests", f"{extra:.1f} %", extra <= 2)
    for policy in CODED if "replicas_full_hedged" in table else ():
        full = value("replicas_full_hedged", "p999_ms")
        yield Target(
            f"{scenario}: {policy} matches replicas_full_hedged at p99.9, with one server less",
            f"{value(policy, 'p999_ms'):.1f} ms against {full:.1f} ms",
            value(policy, "p999_ms") <= _MATCHES * full,
        )


def _everywhere(scenario: str, policy: str, ours: dict[str, Spread]) -> Iterator[Target]:
    gained = _shown(lambda _: ours["accuracy_gained"], "{:+.2f} %")
    near = abs(ours["accuracy_gained"].median) <= 0.3
    yield Target(f"{scenario}: {policy} is within 0.3 % of none's accuracy", gained(policy), near)
    failed = int(ours["failed"].high)
    yield Target(f"{scenario}: {policy} fails no request", f"{failed} failed in the worst repeat", failed == 0)


def _gap(record: Record) -> float:
    return float(record["p999_ms"] - record["p50_ms"])


def _shown(spread: Callable[[str], Spread], form: str) -> Callable[[str], str]:
    def show(policy: str) -> str:
        found = spread(policy)
        return f"{form.format(found.median)} ({form.format(found.low)} to {form.format(found.high)})"

    return show
