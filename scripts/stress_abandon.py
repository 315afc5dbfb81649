"""Abandon half of very many calls to a real tritonserver, which cancelling them would kill; or look for leaks.

    python scripts/stress_abandon.py --rounds 50000 --output docs/results
    python scripts/stress_abandon.py --scripted 1000000 --output docs/results

The first runs rounds of requests over gRPC with deadlines so short that about half the calls are given up, through a
relay that counts what is cancelled on the wire, and asks at the end whether the server still answers rightly. The
second makes requests over a scripted transport and looks for tasks, sockets, objects and warnings left behind.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from scripts.bench.machine import describe
from scripts.faults.abandoning import Abandoned, abandon
from scripts.faults.leaks import Leaks, look_for_leaks


def main() -> None:
    """Run one of the two; print and write what it showed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50_000)
    parser.add_argument("--scripted", type=int, metavar="REQUESTS", help="look for leaks in so many requests instead")
    parser.add_argument("--output", type=Path, help="folder of the JSON file")
    options = parser.parse_args()
    started = time.monotonic()
    name, result = _run(options.rounds, options.scripted)
    content = {**asdict(result), "seconds": round(time.monotonic() - started, 1), "machine": describe()}
    Console().print(result)
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _run(rounds: int, scripted: int | None) -> tuple[str, Abandoned | Leaks]:
    if scripted is not None:
        return "stress_scripted", look_for_leaks(scripted)
    with tempfile.TemporaryDirectory(prefix="coin_export_stress_") as folder:
        return "stress_abandon", asyncio.run(abandon(Path(folder), rounds))


if __name__ == "__main__":
    main()
