"""Draw the tail's tables, verdicts and curves from the records of `scripts/bench_tail.py`.

    python scripts/tail_report.py [--results docs/results] [--page docs/tail-latency.md]

Prints the tables and puts them into the page; writes ``tail_latency.png`` and ``tail_latency.svg`` beside the records.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from rich.console import Console
from rich.markdown import Markdown

from scripts.bench.pages import replace_between
from scripts.tail.policies import CONTENDERS
from scripts.tail.records import SHARES, Curve, Records
from scripts.tail.tables import results, verdicts
from scripts.tail.verdict import rows, targets

_STYLES: Mapping[str, dict[str, Any]] = {
    "none": {"color": "#777777"},
    "replicas_equal": {"color": "#d98c00", "linestyle": "--"},
    "replicas_full_hedged": {"color": "#b03060", "linestyle": "--"},
    "coded_at_once": {"color": "#0a6fb7"},
    "coded_after_p95": {"color": "#1b8a4b"},
}


def draw(curves: Mapping[str, Curve], scenarios: Sequence[str], folder: Path) -> None:
    """Draw one panel a scenario: the share of requests that take longer, by latency; one thin line a repeat."""
    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "tail"  # the same records give the same file
    figure, panels = plt.subplots(
        1, len(scenarios), figsize=(4.6 * len(scenarios), 4.2), sharex=True, sharey=True, squeeze=False
    )
    for panel, scenario in zip(panels[0], scenarios, strict=True):
        for policy in CONTENDERS:
            names = [name for name in curves if name.startswith(f"{scenario}/{policy}/")]
            repeats = [np.array(curves[name], dtype=float) for name in names]  # NaN where requests failed
            for curve in repeats:
                panel.plot(curve, SHARES, linewidth=0.6, alpha=0.45, **_STYLES[policy])
            if repeats:
                panel.plot(np.median(repeats, axis=0), SHARES, linewidth=1.8, label=policy, **_STYLES[policy])
        panel.set(title=scenario, xscale="log", yscale="log", xlabel="latency from the intended send time, ms")
        panel.grid(visible=True, which="major", alpha=0.3)
    panels[0][0].set_ylabel("share of requests that take longer")
    panels[0][0].legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(folder / "tail_latency.png", dpi=130, metadata={"Software": None})
    figure.savefig(folder / "tail_latency.svg", metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    """Read, print, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("docs/results"))
    parser.add_argument("--page", type=Path, default=Path("docs/tail-latency.md"))
    options = parser.parse_args()
    records = Records(options.results)
    found = rows(records.records)
    tables = {"results": results(found), "targets": verdicts(targets(found))}
    for table in tables.values():
        Console(width=150).print(Markdown(table))
    if options.page.exists():
        replace_between(options.page, tables)
    draw(records.curves, list(dict.fromkeys(row.scenario for row in found)), options.results)


if __name__ == "__main__":
    main()
