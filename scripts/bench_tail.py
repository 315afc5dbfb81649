"""Measure the tail: open-loop load on real servers, stragglers by a seeded schedule, policies side by side.

    python scripts/bench_tail.py [--output docs/results]

Two originals on real test images, one embedded Triton server a model, one client, all on this machine. Requests arrive
as a Poisson process; a request's latency counts from its intended send time, so that waiting is not omitted. Within a
repeat all policies meet the same arrivals and the same faults of the originals' servers, in shuffled order, each with
servers started afresh. Cells that the output folder already holds are skipped, and each is written as soon as it is
measured, so the run may be interrupted.

The policies are those of `scripts/tail/policies.py`, the scenarios those of `scripts/tail/schedule.py`. The processor
must be mostly idle under this load, or queues hide what is to be seen; see ``client_late_p999_ms`` in the records.
`scripts/tail_report.py` draws tables and plots from the records.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from scripts.bench.machine import describe
from scripts.bench.steady import steady
from scripts.tail.cells import Cell, run_cell, summary
from scripts.tail.policies import CONTENDERS
from scripts.tail.records import Records, curve
from scripts.tail.schedule import SCENARIOS


def cells(options: argparse.Namespace) -> Iterator[Cell]:
    """Yield the cells in order: repeat by repeat, scenario by scenario, policies shuffled."""
    for repeat in range(options.repeats):
        for scenario in options.scenarios:
            policies = list(options.policies)
            random.Random(f"{scenario} {repeat}").shuffle(policies)
            for policy in policies:
                yield Cell(policy, scenario, repeat, options.requests, options.rate)


def main() -> None:
    """Measure what is missing; write each cell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenarios", choices=SCENARIOS, nargs="+", default=list(SCENARIOS))
    parser.add_argument("--policies", choices=CONTENDERS, nargs="+", default=list(CONTENDERS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--requests", type=int, default=20_000, help="of each cell")
    parser.add_argument("--rate", type=float, default=100.0, help="requests a second")
    parser.add_argument("--cells", type=int, help="measure at most this many cells, then end")
    parser.add_argument("--models", type=Path, default=Path("artifacts/bench"), help="repositories, built if missing")
    parser.add_argument("--output", type=Path, default=Path("docs/results"), help="folder of the JSON files")
    options = parser.parse_args()
    console = Console()
    records = Records(options.output)
    missing = [cell for cell in cells(options) if not records.have(cell.policy, cell.scenario, cell.repeat)]
    with steady() as permitted:
        if not permitted:
            console.print("no permission for real-time priority (CAP_SYS_NICE): latencies will vary more")
        for cell in missing[: options.cells]:
            outcome = run_cell(cell, options.models)
            record = summary(cell, outcome)
            records.add(record, curve(outcome.trace.latency_s))
            console.print_json(json.dumps(record), indent=None)
            (options.output / "tail_latency.meta.json").write_text(
                json.dumps(describe() | {"processors_kept_awake": permitted}, indent=2) + "\n", encoding="utf-8"
            )
    console.print(f"{len(missing[: options.cells])} of {len(missing)} missing cells measured")


if __name__ == "__main__":
    main()
