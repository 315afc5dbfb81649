"""The records as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from scripts.reproduce.measuring import Record
from scripts.reproduce.methods import METHODS
from scripts.reproduce.provenance import encoders_digest
from scripts.reproduce.settings import FIRST
from scripts.reproduce.summary import (
    TRAIN,
    Reached,
    Spread,
    columns,
    costs,
    costs_of_seeds,
    distillation,
    normalized,
    over_seeds,
    pairs,
    where,
    worst_pair,
)
from scripts.reproduce.targets import targets

_MEBIBYTE = 2**20


def all_tables(records: Sequence[Record], missing: int, planned: int) -> dict[str, str]:
    """Return every table by the name that it has in the page."""
    return {
        "extent": _extent(records, missing, planned),
        "targets": _targets(records),
        "originals": _originals(records),
        "accuracy": _accuracy(records),
        "points": _points(records),
        "epochs": _epochs(records),
        "cost": _cost(records),
        "goal": _goal(records),
        "pairs": _pairs(records),
    }


def _extent(records: Sequence[Record], missing: int, planned: int) -> str:
    text = f"{planned - missing} of {planned} cells measured; an empty place in a table was not measured."
    older = sum(record.get("encoders") != encoders_digest() for record in records)
    return text + (f" {older} of {len(records)} records come from another version of the encoders." if older else "")


def _targets(records: Sequence[Record]) -> str:
    words = {True: "met", False: "missed", None: "not measured"}
    return _table(["target", "reached", ""], [[item.text, item.reached, words[item.met]] for item in targets(records)])


def _originals(records: Sequence[Record]) -> str:
    rows = []
    for setting in dict.fromkeys(record["setting"] for record in records):
        mine = where(records, setting=setting)
        accuracies = {
            task: over_seeds(mine, partial(_original_accuracy, task)) for task in mine[0]["original_accuracy"]
        }
        rows.append([setting, ", ".join(f"{task} {_shown(spread)}" for task, spread in accuracies.items())])
    return _table(["setting", "accuracy of the originals in %"], rows)


def _original_accuracy(task: str, record: Record) -> float:
    return float(record["original_accuracy"][task])


def _accuracy(records: Sequence[Record]) -> str:
    compared, places = where(records, study="comparison"), columns(records)
    heads = ["encoder", *(f"{setting}, P = {points}" for setting, points in places)]
    rows = []
    for method in METHODS:
        cells = [where(compared, setting=setting, points=points, encoder=method) for setting, points in places]
        if any(cells):
            rows.append([_name(method, compared), *(_shown(normalized(cell)) for cell in cells)])
    return _table(heads, rows)


def _points(records: Sequence[Record]) -> str:
    mine = where(records, setting=FIRST, changed={})
    numbers = sorted({record["points"] for record in mine})
    rows = [
        [_name(method, mine), *(_shown(normalized(where(mine, encoder=method, points=points))) for points in numbers)]
        for method in METHODS
        if where(mine, encoder=method)
    ]
    return _table(["encoder", *(f"P = {points}" for points in numbers)], rows)


def _epochs(records: Sequence[Record]) -> str:
    rows = []
    for epochs, points, mine in distillation(records):
        train = over_seeds(mine, lambda record: float(record[TRAIN]))
        rows.append([str(epochs), str(points), _shown(normalized(mine)), _shown(train)])
    return _table(["epochs", "P", "test", "calibration inputs"], rows)


def _cost(records: Sequence[Record]) -> str:
    compared = where(records, study="comparison")
    rows = []
    for setting, points in columns(records):
        for method in METHODS:
            mine = where(compared, setting=setting, points=points, encoder=method)
            if mine:
                rows.append([f"{setting}, P = {points}", _name(method, mine), *_costs(mine)])
    return _table(["setting", "encoder", "seconds", "points forward", "points backward", "peak memory, MiB"], rows)


def _costs(records: Sequence[Record]) -> list[str]:
    seconds = over_seeds(records, lambda record: float(record["encode_seconds"]))
    forward = over_seeds(records, lambda record: float(record["forward_passes"]))
    backward = over_seeds(records, lambda record: float(record["backward_passes"]))
    known = [record for record in records if record["peak_memory_bytes"] is not None]
    memory = max((record["peak_memory_bytes"] for record in known), default=None)
    whole = ["" if spread is None else f"{spread.mean:,.0f}" for spread in (forward, backward)]
    return [_shown(seconds), *whole, "" if memory is None else f"{memory / _MEBIBYTE:,.0f}"]


def _goal(records: Sequence[Record]) -> str:
    rows = []
    for inputs, same in (("the same", True), ("any", False)):
        whole = costs(records, FIRST, same)
        found = [("all", whole), *costs_of_seeds(records, FIRST, same)] if whole is not None else []
        rows += [_row_of_costs(f"{seed}, {inputs}", *pair) for seed, pair in found]
    return _table(["seed, inputs", "`refine`, tuned for it", "distillation from a fresh start", "ratio"], rows)


def _row_of_costs(title: str, default: Reached, fresh: Reached) -> list[str]:
    return [
        title,
        f"{default.seconds:.1f} s ({default.how})",
        f"{fresh.seconds:.1f} s ({fresh.how})" if fresh.reached else f"not in {fresh.seconds:.1f} s ({fresh.how})",
        f"{'' if fresh.reached else '< '}{default.seconds / fresh.seconds:.3f}",
    ]


def _pairs(records: Sequence[Record]) -> str:
    mine = pairs(where(records, study="comparison", m=2))
    methods = [method for method in METHODS if where(mine, encoder=method)]
    patterns = list(dict.fromkeys(tuple(record["erased"]) for record in mine))
    rows = [
        [
            " + ".join(names),
            *(_shown(normalized(where(mine, encoder=method, erased=list(names)))) for method in methods),
        ]
        for names in patterns
    ]
    rows.append(["mean of all pairs", *(_shown(normalized(where(mine, encoder=method))) for method in methods)])
    worst = [worst_pair(where(mine, encoder=method)) for method in methods]
    rows.append(["worst pair of each seed", *("" if found is None else _shown(found[1]) for found in worst)])
    alike = [over_seeds(where(mine, encoder=method), _error_correlation) for method in methods]
    rows.append(["correlation of errors", *("" if found is None else f"{found.mean:.2f}" for found in alike)])
    return _table(["erased", *(f"`{method}`" for method in methods)], rows)


def _error_correlation(record: Record) -> float:
    return float(record["error_correlation"])


def _name(method: str, records: Sequence[Record]) -> str:
    default = any(record["default"] for record in where(records, encoder=method))
    return f"`{method}`" + (" (default)" if default else "")


def _shown(spread: Spread | None) -> str:
    if spread is None:
        return ""
    return f"{spread.mean:.1f}" + (f" ± {spread.deviation:.1f}" if spread.seeds > 1 else "")


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines)
