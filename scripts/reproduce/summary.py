"""What the records say: means and standard deviations over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from scripts.reproduce.measuring import Record
from scripts.reproduce.methods import ALIKE, METHODS
from scripts.reproduce.settings import FIRST

NORMALIZED = "normalized_decoding_accuracy"
TRAIN = "train_normalized_decoding_accuracy"
GOAL = 97.0  # in %, of the comparison of costs


class Spread(NamedTuple):
    """Mean and standard deviation over seeds; the deviation of a single one is zero."""

    mean: float
    deviation: float
    seeds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Take one value a seed."""
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0, len(values))


def where(records: Iterable[Record], **wanted: Any) -> list[Record]:
    """Return the records that have all of these values."""
    return [record for record in records if all(record[key] == value for key, value in wanted.items())]


def over_seeds(records: Sequence[Record], value: Callable[[Record], float]) -> Spread | None:
    """Average over the records of each seed (models and erasure patterns), then over seeds; None without records."""
    seeds = sorted({record["seed"] for record in records})
    return Spread.of([statistics.fmean(map(value, where(records, seed=seed))) for seed in seeds]) if seeds else None


def normalized(records: Sequence[Record]) -> Spread | None:
    """Return the mean normalized decoding accuracy in %."""
    return over_seeds(records, lambda record: float(record[NORMALIZED]))


def columns(records: Sequence[Record]) -> list[tuple[str, int]]:
    """Return the settings and numbers of points that encoders are compared on, in the order in which they come."""
    return list(dict.fromkeys((item["setting"], item["points"]) for item in where(records, study="comparison")))


def pairs(records: Sequence[Record]) -> list[Record]:
    """Return the records of two erasures."""
    return [record for record in records if len(record["erased"]) == 2]


def weakest_pair(records: Sequence[Record]) -> tuple[str, Spread] | None:
    """Return the pair of erasures that decodes worst in the mean over seeds, and its accuracy.

    Which coded model is the first is chance, so the one that holds most of the first original counts as the first.
    """
    lost: dict[str, list[float]] = {}
    for record in pairs(records):
        held = [row[0] for row in record["coefficients"]]
        order = sorted(range(len(held)), key=held.__getitem__, reverse=True)
        names = {f"coded_{row}": f"coded_{rank}" for rank, row in enumerate(order)}
        title = " + ".join(names.get(name, name) for name in record["erased"])
        lost.setdefault(title, []).append(float(record[NORMALIZED]))
    spreads = {title: Spread.of(values) for title, values in lost.items()}
    return min(spreads.items(), key=lambda item: item[1].mean) if spreads else None


def worst_pair(records: Sequence[Record]) -> tuple[str, Spread] | None:
    """Return the pairs of erasures that decode worst in each seed, and their accuracy over seeds."""
    lost: dict[int, list[Record]] = {}
    for record in pairs(records):
        lost.setdefault(record["seed"], []).append(record)
    worst = [min(lost[seed], key=lambda record: float(record[NORMALIZED])) for seed in sorted(lost)]
    titles = dict.fromkeys(" + ".join(record["erased"]) for record in worst)
    return (" or ".join(titles), Spread.of([float(record[NORMALIZED]) for record in worst])) if worst else None


def distillation(records: Sequence[Record]) -> list[tuple[int, int, list[Record]]]:
    """Return epochs, points and records of the study over epochs of distillation, by points, then epochs."""
    points = {record["points"] for record in where(records, study="epochs")}
    usual = METHODS["distill"].model_dump()["epochs"]
    runs: dict[tuple[int, int], list[Record]] = {}
    for record in where(records, setting=FIRST, encoder="distill"):
        if record["points"] in points and set(record["changed"]) <= {"epochs"}:
            runs.setdefault((record["points"], record["changed"].get("epochs", usual)), []).append(record)
    return [(epochs, place, runs[place, epochs]) for place, epochs in sorted(runs)]


class Reached(NamedTuple):
    """What a method needed to reach the goal.

    Attributes:
        seconds: least processor time of all its ways that reached it, mean over seeds; of the longest if none did.
        how: that way's points and changed options.
        reached: whether one did.
    """

    seconds: float
    how: str
    reached: bool


def reached(records: Sequence[Record], encoder: str) -> Reached | None:
    """Return the cheapest way of an encoder to `GOAL`, over all the points and budgets that it was given.

    A way gets there if its mean over models and seeds does; ways that lack a seed do not count.

    Args:
        records: of one setting, and one seed or several.
        encoder: its name.
    """
    ways: dict[tuple[int, str], list[Record]] = {}
    for record in where(records, encoder=encoder):
        ways.setdefault((record["points"], str(record["changed"])), []).append(record)
    seeds = {record["seed"] for record in records}
    runs = [way for way in ways.values() if {record["seed"] for record in way} == seeds]
    if not runs:
        return None
    there = [way for way in runs if statistics.fmean(record[NORMALIZED] for record in way) >= GOAL]
    chosen = min(there, key=_seconds) if there else max(runs, key=_seconds)
    changed = ", ".join(f"{name} {value}" for name, value in chosen[0]["changed"].items()) or "as it is"
    return Reached(_seconds(chosen), f"{chosen[0]['points']} points, {changed}", bool(there))


def _seconds(way: Sequence[Record]) -> float:
    return statistics.fmean(float(record["encode_seconds"]) for record in way)


def costs(records: Sequence[Record], setting: str, same_inputs: bool) -> tuple[Reached, Reached] | None:
    """Return what the default encoder and distillation from a fresh start needed to reach `GOAL`.

    Both have the same code, with equal coefficients.

    Args:
        records: those of the study of costs count, and any others do not, as these are made in one run.
        setting: of both.
        same_inputs: count those runs of distillation alone that had as many calibration inputs as the default encoder.
    """
    study = where(records, study="cost", setting=setting)
    points = {record["points"] for record in where(study, encoder=ALIKE)}
    alike = [record for record in study if record["points"] in points]
    default, fresh = reached(alike, ALIKE), reached(alike if same_inputs else study, "distill")
    return None if default is None or fresh is None else (default, fresh)


def costs_of_seeds(
    records: Sequence[Record], setting: str, same_inputs: bool
) -> list[tuple[int, tuple[Reached, Reached]]]:
    """Return the same for each seed by itself, whose single runs get there by chance now and then."""
    seeds = sorted({record["seed"] for record in where(records, study="cost", setting=setting)})
    found = [(seed, costs(where(records, seed=seed), setting, same_inputs)) for seed in seeds]
    return [(seed, pair) for seed, pair in found if pair is not None]
