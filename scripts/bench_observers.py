"""Measure what observers cost per request, on a transport without a wire.

    python scripts/bench_observers.py [--quick] [--output docs/results] [--page docs/client.md]

Whole requests of `CodedClient.infer` as in ``bench_client.py``, for two originals and one coded model: answered
directly while the coded model is held back (2 calls), and with one answer decoded as its model's own comes too late
(3 calls). Each of these is run by a client without observers, with one that does nothing, with Prometheus metrics,
with traces of which none is sampled, with traces of which each is sampled and then dropped by the exporter, and with
metrics and sampled traces. The clients take turns in short blocks in random order, so that a busy machine disturbs all
alike; the extra cost is taken within a repeat, and the median over repeats counts.

Time is the process's processor time: nothing here waits. Writes ``observers.json``: the machine, and one record per
case and observer with microseconds per request.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from prometheus_client import CollectorRegistry
from rich.console import Console
from rich.table import Table

from coin_export.client import AsSoonAsDecodable, AtOnce, CodedClient, Observer, Policy
from coin_export.client.metrics import MetricsObserver
from coin_export.client.tracing import TracingObserver
from scripts.bench.machine import describe
from scripts.bench.pages import replace_between
from scripts.bench.scripted import ScriptedServers

K = 2
CASES = {"direct": Policy(), "decoded": Policy(coded=AtOnce(), decode=AsSoonAsDecodable())}


class _Drop(SpanProcessor):
    """An exporter that costs nothing: what remains is the cost of making spans."""

    def on_end(self, span: ReadableSpan) -> None:
        """Drop the span."""


def _metrics() -> Observer:
    return MetricsObserver(CollectorRegistry())


def _tracing(*, sampled: bool) -> Observer:
    provider = TracerProvider() if sampled else TracerProvider(sampler=ALWAYS_OFF)
    provider.add_span_processor(_Drop())
    return TracingObserver(provider)


OBSERVERS: dict[str, Callable[[], Sequence[Observer]]] = {
    "none": lambda: [],
    "no-op": lambda: [Observer()],
    "metrics": lambda: [_metrics()],
    "tracing, unsampled": lambda: [_tracing(sampled=False)],
    "tracing, sampled": lambda: [_tracing(sampled=True)],
    "metrics and tracing": lambda: [_metrics(), _tracing(sampled=True)],
}


@dataclass
class Subject:
    """A connected client, its servers, and what its requests took."""

    client: CodedClient
    servers: ScriptedServers
    decodes: bool
    seconds: float = 0.0
    repeats_us: list[float] = field(default_factory=list)

    async def run(self, requests: int) -> None:
        """Make requests, one after the other."""
        start = time.process_time()
        for _ in range(requests):
            await self.servers.ask(self.client, late=self.decodes)
        self.seconds += time.process_time() - start

    def end_repeat(self, requests: int) -> None:
        """Keep the mean over the requests of one repeat."""
        self.repeats_us.append(1e6 * self.seconds / requests)
        self.seconds = 0.0


async def connect(stack: AsyncExitStack, case: str, observers: Sequence[Observer]) -> Subject:
    """Make a client and its servers."""
    servers = ScriptedServers(K)
    client = CodedClient(servers.addresses, policy=CASES[case], make_transport=servers.transport, observers=observers)
    await stack.enter_async_context(client)
    return Subject(client, servers, decodes=case == "decoded")


async def bench(case: str, repeats: int, blocks: int, requests: int) -> list[dict[str, Any]]:
    """Measure all observers in one case."""
    shuffler = random.Random(0)
    async with AsyncExitStack() as stack:
        subjects = {name: await connect(stack, case, make()) for name, make in OBSERVERS.items()}
        order = list(subjects.values())
        for subject in order:
            await subject.run(requests)
            subject.seconds = 0.0
        for _ in range(repeats):
            for _ in range(blocks):
                shuffler.shuffle(order)
                for subject in order:
                    gc.collect()
                    gc.freeze()
                    await subject.run(requests)
            for subject in order:
                subject.end_repeat(blocks * requests)
    without = subjects["none"].repeats_us
    return [
        {
            "case": case,
            "observer": name,
            "calls_per_request": K + subject.decodes,
            "microseconds": statistics.median(subject.repeats_us),
            "microseconds_iqr": _iqr(subject.repeats_us),
            **_extra([ours - base for ours, base in zip(subject.repeats_us, without, strict=True)]),
            "repeats": repeats,
            "requests_per_repeat": blocks * requests,
        }
        for name, subject in subjects.items()
    ]


def _extra(differences: Sequence[float]) -> dict[str, Any]:
    return {"extra_microseconds": statistics.median(differences), "extra_microseconds_iqr": _iqr(differences)}


def _iqr(values: Sequence[float]) -> list[float]:
    return [float(value) for value in np.percentile(values, [25, 75])]


def show(records: Sequence[dict[str, Any]]) -> None:
    """Print both kinds of figures, with their spread."""
    table = Table("case", "observer", "us per request (IQR)", "extra us (IQR)", title="What observers cost")
    for record in records:
        table.add_row(
            record["case"], record["observer"], _cell(record, "microseconds"), _cell(record, "extra_microseconds")
        )
    Console(width=120).print(table)


def page_table(records: Sequence[dict[str, Any]]) -> str:
    """Return the table for the page: medians, what each observer adds."""
    names = dict.fromkeys(record["observer"] for record in records)
    lines = [["microseconds per request", *names], ["---"] * (1 + len(names))]
    for case in dict.fromkeys(record["case"] for record in records):
        none, *observers = [record for record in records if record["case"] == case]
        extras = [f"+{record['extra_microseconds']:.0f}" for record in observers]
        lines.append([case, f"{none['microseconds']:.0f}", *extras])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _cell(record: dict[str, Any], key: str) -> str:
    low, high = record[f"{key}_iqr"]
    return f"{record[key]:.0f} ({low:.0f} to {high:.0f})"


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="three short repeats")
    parser.add_argument("--output", type=Path, help="folder of the JSON file")
    parser.add_argument("--page", type=Path, help="page whose table is replaced")
    options = parser.parse_args()
    repeats, blocks, requests = (3, 2, 100) if options.quick else (options.repeats, 4, 250)
    records = [record for case in CASES for record in asyncio.run(bench(case, repeats, blocks, requests))]
    show(records)
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"machine": describe(), "records": records}, indent=2)
        (options.output / "observers.json").write_text(text + "\n", encoding="utf-8")
    if options.page:
        replace_between(options.page, {"observers": page_table(records)})


if __name__ == "__main__":
    main()
