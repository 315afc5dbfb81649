"""Measure what the client costs while all is well, against a bare ``asyncio.gather`` of tritonclient's calls.

    python scripts/bench_client.py [--quick] [--output docs/results] [--page docs/overhead.md]

Real servers, one process for each model. "held_back" is the client with its default policy against a gather of calls
to the same originals; "at_once" asks the coded model as well, against a gather of calls to all models. Both sides make
their requests' tensors and read all answers as numpy arrays. They take turns in short blocks in random order, so that
a busy machine disturbs both alike; ratios are of one repeat's blocks, and the median over repeats counts.

The second part has no wire: the whole of `CodedClient.infer` on a transport that answers at once, for k originals and
one coded model; "decoding" has one original's answer come too late each time. It also times the choice of whom to ask
in place of several late originals, and one decoding of eight originals of 32 x 1,000 outputs.

Writes ``client_overhead.json`` (the ratios), ``client_cost.json`` (microseconds) and ``client_overhead.meta.json``.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markdown import Markdown

from coin_export.client import AtOnce, CodedClient, Policy
from coin_export.datasets import bundled
from coin_export.serve.embedded import EmbeddedServer, start_all, stop_all
from scripts.bench.bare import BareGather
from scripts.bench.cost import bench_choice, bench_cost, bench_decode, iqr
from scripts.bench.group import DATA_SETS, INPUT, OUTPUT, coded_group
from scripts.bench.machine import describe
from scripts.bench.pages import replace_between

MODES = {"held_back": Policy(), "at_once": Policy(coded=AtOnce())}
TARGET_P50, TARGET_THROUGHPUT = 1.10, 0.90

Ask = Callable[[], Awaitable[object]]


@dataclass
class Tally:
    """What one side did within one repeat."""

    latencies_s: list[float] = field(default_factory=list)
    elapsed_s: float = 0.0

    @property
    def p50_s(self) -> float:
        """Median latency in seconds."""
        return statistics.median(self.latencies_s)

    @property
    def throughput(self) -> float:
        """Requests a second."""
        return len(self.latencies_s) / self.elapsed_s


async def run_block(ask: Ask, requests: int, concurrency: int, tally: Tally) -> None:
    """Make requests, always ``concurrency`` of them under way."""
    left = requests

    async def work() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            start = time.perf_counter()
            await ask()
            tally.latencies_s.append(time.perf_counter() - start)

    start = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(concurrency)))
    tally.elapsed_s += time.perf_counter() - start


async def compare(
    ours: Ask, bare: Ask, concurrency: int, size: dict[str, int], seed: int
) -> tuple[list[Tally], list[Tally]]:
    """Return one tally a repeat for each side."""
    shuffler = random.Random(seed)
    tallies: tuple[list[Tally], list[Tally]] = ([], [])
    for ask in (ours, bare):
        await run_block(ask, size["requests"], concurrency, Tally())
    for _ in range(size["repeats"]):
        pair = (Tally(), Tally())
        for _ in range(size["blocks"]):
            sides = [(ours, pair[0]), (bare, pair[1])]
            shuffler.shuffle(sides)
            for ask, tally in sides:
                gc.collect()
                gc.freeze()
                await run_block(ask, size["requests"], concurrency, tally)
        for tally, all_of_side in zip(pair, tallies, strict=True):
            all_of_side.append(tally)
    return tallies


async def bench_mode(
    mode: str, addresses: dict[str, str], concurrencies: Sequence[int], size: dict[str, int]
) -> list[dict[str, Any]]:
    """Measure one mode at every concurrency."""
    image = bundled.load(DATA_SETS[0]).test_images[:1]
    asked = addresses if mode == "at_once" else {model: addresses[model] for model in DATA_SETS}
    bare = BareGather(asked, INPUT, OUTPUT)
    records = []
    try:
        async with CodedClient(list(addresses.values()), policy=MODES[mode]) as client:
            for concurrency in concurrencies:
                ours, theirs = await compare(
                    lambda: client.infer({INPUT: image}), lambda: bare.infer(image), concurrency, size, concurrency
                )
                records.append(_ratios(mode, concurrency, ours, theirs) | size)
    finally:
        await bare.close()
    return records


def _ratios(mode: str, concurrency: int, ours: list[Tally], theirs: list[Tally]) -> dict[str, Any]:
    p50 = [our.p50_s / their.p50_s for our, their in zip(ours, theirs, strict=True)]
    throughput = [our.throughput / their.throughput for our, their in zip(ours, theirs, strict=True)]
    return {
        "concurrency": concurrency,
        "mode": mode,
        "p50_ratio": statistics.median(p50),
        "p50_ratio_iqr": iqr(p50),
        "throughput_ratio": statistics.median(throughput),
        "throughput_ratio_iqr": iqr(throughput),
        "p50_ms": 1e3 * statistics.median(tally.p50_s for tally in ours),
        "bare_p50_ms": 1e3 * statistics.median(tally.p50_s for tally in theirs),
        "throughput": statistics.median(tally.throughput for tally in ours),
        "bare_throughput": statistics.median(tally.throughput for tally in theirs),
    }


def bench_servers(
    repository: Path, modes: Sequence[str], concurrencies: Sequence[int], size: dict[str, int]
) -> list[dict[str, Any]]:
    """Measure against real servers."""
    group = coded_group(repository)
    servers = {member.name: EmbeddedServer(repository, models=[member.name]) for member in group.members}
    with ExitStack() as stack:
        stack.callback(stop_all, list(servers.values()))
        start_all(list(servers.values()))
        addresses = {model: server.grpc_address for model, server in servers.items()}
        return [record for mode in modes for record in asyncio.run(bench_mode(mode, addresses, concurrencies, size))]


def ratios_table(records: Sequence[dict[str, Any]]) -> str:
    """Return the ratios as Markdown."""
    lines = [
        "| mode | concurrency | p50, ours over bare | throughput, ours over bare | p50 | bare p50 | |",
        "|---" * 7 + "|",
    ]
    for record in records:
        met = record["p50_ratio"] <= TARGET_P50 and record["throughput_ratio"] >= TARGET_THROUGHPUT
        lines.append(
            f"| `{record['mode']}` | {record['concurrency']} | {_cell(record, 'p50_ratio', '.2f')} "
            f"| {_cell(record, 'throughput_ratio', '.2f')} | {record['p50_ms']:.2f} ms "
            f"| {record['bare_p50_ms']:.2f} ms | {'met' if met else 'missed'} |"
        )
    return "\n".join(lines)


def costs_table(records: Sequence[dict[str, Any]]) -> str:
    """Return the costs without a wire as Markdown."""
    lines = ["| what | case | k | microseconds |", "|---" * 4 + "|"]
    for record in records:
        cost = _cell(record, "microseconds", ".0f")
        lines.append(f"| `{record['mode']}` | {record['case']} | {record['k']} | {cost} |")
    return "\n".join(lines)


def _cell(record: dict[str, Any], key: str, form: str) -> str:
    low, high = record[f"{key}_iqr"]
    return f"{record[key]:{form}} ({low:{form}} to {high:{form}})"


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repository", type=Path, default=Path("artifacts/bench/coded"), help="built if missing")
    parser.add_argument("--modes", choices=MODES, nargs="*", default=list(MODES))
    parser.add_argument("--concurrencies", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="three short repeats")
    parser.add_argument("--output", type=Path, help="folder of the JSON files")
    parser.add_argument("--page", type=Path, help="page whose tables are replaced")
    options = parser.parse_args()
    repeats = 3 if options.quick else options.repeats
    size = {"repeats": repeats, "blocks": 2 if options.quick else 3, "requests": 150 if options.quick else 300}
    costs = [
        asyncio.run(bench_cost(k, case, 300 if options.quick else 1000, repeats))
        for case in ("direct", "decoding")
        for k in (2, 4, 8, 16, 32)
    ]
    costs += [bench_choice(k, m, late, repeats) for k, m, late in ((2, 1, 1), (8, 2, 2), (16, 4, 3), (32, 8, 4))]
    costs.append(bench_decode(repeats))
    ratios = bench_servers(options.repository, options.modes, options.concurrencies, size) if options.modes else []
    tables = {"ratios": ratios_table(ratios), "costs": costs_table(costs)}
    for table in tables.values():
        Console(width=130).print(Markdown(table))
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        contents = {"client_overhead": ratios, "client_cost": costs, "client_overhead.meta": describe()}
        for name, content in contents.items():
            (options.output / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    if options.page:
        replace_between(options.page, tables)


if __name__ == "__main__":
    main()
