"""Figures of studies; needs matplotlib (the extra ``plots``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from coin_export.evaluate.simulation.tables import Record, has_steady_state

# Coding is drawn in warm colours, replication in cold ones; none in grey.
_STYLES: Mapping[str, tuple[str, str]] = {
    "none": ("#777777", "s"),
    "replicas_equal": ("#9ecae1", "v"),
    "replicas_equal_hedged": ("#6baed6", "^"),
    "replicas_full_balanced": ("#74c476", "p"),
    "replicas_full_hedged": ("#2171b5", "D"),
    "replicas_full_tied": ("#08306b", "x"),
    "replicas_full_at_once": ("#54278f", "*"),
    "coded_at_once": ("#fdae6b", "o"),
    "coded_after_p95": ("#d94801", "o"),
    "coded_after_30_ms": ("#d94801", "o"),
    "replicas_full_after_30_ms": ("#2171b5", "D"),
}


def draw(title: str, axis: str, records: Sequence[Record], path: Path) -> None:
    """Draw p99.9 (solid) and p50 (dotted) of one study's policies, a panel beside the other.

    Args:
        title: of the figure.
        axis: what the records' ``x`` is.
        records: of the study; runs without a steady state are left out.
        path: without suffix; ``.png`` and ``.svg`` are written.
    """
    mpl.rcParams["svg.hashsalt"] = "coin_export"  # the same figure gives the same bytes
    panels = list(dict.fromkeys(record["panel"] for record in records))
    figure = Figure(figsize=(4.2 * len(panels) + 2.4, 4.2), layout="constrained")
    rows: Sequence[Axes] = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, panel in zip(rows, panels, strict=True):
        _draw_panel(axes, [record for record in records if record["panel"] == panel])
        axes.set_title(panel, fontsize=10)
        axes.set_xlabel(axis)
    rows[0].set_ylabel("latency in ms: p99.9 solid, p50 dotted")
    figure.suptitle(title, fontsize=11)
    handles, labels = rows[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=8, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path.with_suffix(".png"), dpi=120)
    figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})


def _draw_panel(axes: Axes, records: Sequence[Record]) -> None:
    places = list(dict.fromkeys(record["x"] for record in records))
    numeric = all(isinstance(x, int | float) for x in places)
    for policy in dict.fromkeys(record["policy"] for record in records):
        mine = [record for record in records if record["policy"] == policy and has_steady_state(record)]
        x = [record["x"] if numeric else places.index(record["x"]) for record in mine]
        color, marker = _STYLES[policy]
        axes.plot(x, [record["p999_ms"] for record in mine], color=color, marker=marker, markersize=5, label=policy)
        axes.plot(x, [record["p50_ms"] for record in mine], color=color, linestyle=":", linewidth=1)
    axes.set_yscale("log")
    axes.grid(alpha=0.3, which="both")
    if not numeric:
        axes.set_xticks(range(len(places)), [str(x) for x in places], rotation=25, ha="right", fontsize=8)
    elif max(places) / min(places) > 10:
        axes.set_xscale("log")
