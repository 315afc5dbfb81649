"""The paper's Figure 2 as measured here, and the encoders side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import itemgetter
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scripts.reproduce.measuring import Record
from scripts.reproduce.methods import METHODS
from scripts.reproduce.settings import FIRST
from scripts.reproduce.summary import NORMALIZED, TRAIN, columns, distillation, normalized, over_seeds, where

_COLOURS: Mapping[str, str] = {
    "average": "#777777",
    "coin": "#0a6fb7",
    "coin_undamped": "#9ecae1",
    "coin_categorical": "#54278f",
    "regmean": "#b03060",
    "regmean_linear": "#e7a1b8",
    "regress": "#1b8a4b",
    "barycenter_cg": "#8c6d31",
    "auto": "#74c476",
    "distill": "#d98c00",
    "distill_average": "#c7b299",
    "refine_alike": "#fdae6b",
    "refine": "#d94801",
}
_AXIS = "normalized decoding accuracy, %"


def draw(records: Sequence[Record], folder: Path) -> None:
    """Write ``reproduce_points``, ``reproduce_epochs`` and ``reproduce_settings`` as PNG and SVG; error bars: seeds."""
    mpl.rcParams["svg.hashsalt"] = "coin_export"  # the same records give the same bytes
    for name, panel, size in (
        ("points", _points, (6.4, 4.4)),
        ("epochs", _epochs, (6.4, 4.4)),
        ("settings", _settings, (12.0, 4.8)),
    ):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        panel(axes, records)
        axes.grid(alpha=0.3)
        axes.set_ylabel(_AXIS)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize="small")
        figure.savefig(folder / f"reproduce_{name}.png", dpi=110)
        figure.savefig(folder / f"reproduce_{name}.svg", metadata={"Date": None})


def _points(axes: Axes, records: Sequence[Record]) -> None:
    for method in METHODS:
        mine = where(records, setting=FIRST, encoder=method, changed={})
        numbers = sorted({record["points"] for record in mine})
        spreads = [spread for number in numbers if (spread := normalized(where(mine, points=number))) is not None]
        if len(numbers) > 1:
            means, deviations = [item.mean for item in spreads], [item.deviation for item in spreads]
            axes.errorbar(numbers, means, deviations, label=method, color=_COLOURS[method], marker="o", capsize=2)
    axes.set(xscale="log", xlabel="calibration inputs of each task, P", title=FIRST)


def _epochs(axes: Axes, records: Sequence[Record]) -> None:
    for points in sorted({place for _, place, _ in distillation(records)}):
        runs = [(epochs, mine) for epochs, place, mine in distillation(records) if place == points]
        for title, style in (("test", "-"), ("calibration inputs", ":")):
            key = itemgetter(NORMALIZED if title == "test" else TRAIN)
            found = [over_seeds(mine, key) for _, mine in runs]
            means, deviations = ([value[part] for value in found if value] for part in (0, 1))
            axes.errorbar(
                [epochs for epochs, _ in runs],
                means,
                deviations,
                label=f"distillation, P = {points}, {title}",
                color=_COLOURS["distill"],
                linestyle=style,
                marker="o",
                capsize=2,
            )
    axes.set(xscale="log", xlabel="epochs", title=FIRST)


def _settings(axes: Axes, records: Sequence[Record]) -> None:
    places = columns(records)
    compared = where(records, study="comparison")
    methods = [method for method in METHODS if where(compared, encoder=method)]
    width = 0.8 / max(1, len(methods))
    for index, method in enumerate(methods):
        found = [
            (place, spread)
            for place, (setting, points) in enumerate(places)
            if (spread := normalized(where(compared, setting=setting, points=points, encoder=method))) is not None
        ]
        left = [place + index * width - 0.4 for place, _ in found]
        means, deviations = ([spread[part] for _, spread in found] for part in (0, 1))
        axes.bar(left, means, width, yerr=deviations, label=method, color=_COLOURS[method], align="edge")
    labels = [f"{setting.replace(' ', chr(10), 1)}\nP = {points}" for setting, points in places]
    axes.set_xticks(range(len(places)), labels, fontsize=7)
    axes.set_ylim(0, 105)
