"""Measure how long a call takes real servers that do nothing else; the simulation draws service times from it.

    python scripts/measure_service_times.py [--quick] [--output docs/results/service_times.json]

One embedded Triton for each model of the benchmarks' group, one image a call, gRPC, timed by the client: what the
wire and the client cost is in it. Two cases, each a grid of quantiles:

"alone": one call after the other to one server: how long it is occupied by a call. The simulation draws from these.
"together": all servers asked at the same moment, with random pauses of 10 ms on average: what they cost each other and
the client on the few cores of one machine.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc.aio as triton
from rich.console import Console
from rich.table import Table

from coin_export.datasets import bundled
from coin_export.serve.embedded import EmbeddedServer, start_all, stop_all
from scripts.bench.group import DATA_SETS, INPUT, OUTPUT, coded_group
from scripts.bench.machine import describe

MEAN_GAP_S = 0.010  # between rounds in the case "together"
# Between calls in the case "alone": processes of real-time priority that never pause are held up by the kernel.
PAUSE_S = 0.001
LEVELS = np.concatenate([np.linspace(0, 0.98, 99), np.linspace(0.981, 0.999, 19), [0.9995, 0.9998, 0.9999, 1.0]])
_WARM_UP = 200


class Caller:
    """Calls one model.

    Args:
        model: its name.
        address: of its server's gRPC endpoint.
    """

    def __init__(self, model: str, address: str) -> None:
        image = bundled.load(DATA_SETS[0]).test_images[:1]
        self._model = model
        self._client = triton.InferenceServerClient(address)
        self._outputs = [triton.InferRequestedOutput(OUTPUT)]
        self._input = triton.InferInput(INPUT, image.shape, "FP32")
        self._input.set_data_from_numpy(image)

    async def call(self) -> float:
        """Return the seconds that a call takes."""
        start = time.perf_counter()
        await self._client.infer(self._model, [self._input], outputs=self._outputs)
        return time.perf_counter() - start

    async def close(self) -> None:
        """Close the connection."""
        await self._client.close()


async def measure(addresses: Mapping[str, str], calls: int) -> dict[str, list[float]]:
    """Return seconds by case; ``calls`` are those of each case to each server."""
    callers = [Caller(model, address) for model, address in addresses.items()]
    generator = np.random.default_rng(0)
    try:
        for _ in range(_WARM_UP):
            await asyncio.gather(*(caller.call() for caller in callers))
        gc.collect()
        gc.freeze()
        alone: list[float] = []
        for caller in callers:
            for _ in range(calls):
                alone.append(await caller.call())
                await asyncio.sleep(PAUSE_S)
        together: list[float] = []
        for pause in generator.exponential(MEAN_GAP_S, size=calls).tolist():
            together += await asyncio.gather(*(caller.call() for caller in callers))
            await asyncio.sleep(pause)
    finally:
        for caller in callers:
            await caller.close()
    return {"alone": alone, "together": together}


def grid(seconds: list[float]) -> dict[str, Any]:
    """Return the quantiles of a case."""
    values = np.asarray(seconds)
    return {
        "calls": len(values),
        "mean_s": round(float(values.mean()), 7),
        "levels": [round(float(level), 4) for level in LEVELS],
        "times_s": [round(float(value), 7) for value in np.quantile(values, LEVELS)],
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repository", type=Path, default=Path("artifacts/bench/coded"), help="built if missing")
    parser.add_argument("--quick", action="store_true", help="few calls")
    parser.add_argument("--output", type=Path, help="JSON file")
    options = parser.parse_args()
    group = coded_group(options.repository)
    servers = {member.name: EmbeddedServer(options.repository, models=[member.name]) for member in group.members}
    with ExitStack() as stack:
        stack.callback(stop_all, list(servers.values()))
        start_all(list(servers.values()))
        addresses = {model: server.grpc_address for model, server in servers.items()}
        seconds = asyncio.run(measure(addresses, 300 if options.quick else 6000))
    table = Table("case", "calls", *(f"{name} ms" for name in ("mean", "p50", "p99", "p99.9", "max")))
    for case, values in seconds.items():
        milliseconds = 1e3 * np.asarray(values)
        quantiles = np.percentile(milliseconds, [50, 99, 99.9, 100])
        table.add_row(case, str(len(values)), *(f"{value:.2f}" for value in (milliseconds.mean(), *quantiles)))
    Console().print(table)
    if options.output:
        content = {case: grid(values) for case, values in seconds.items()} | {"meta": describe()}
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(content) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
