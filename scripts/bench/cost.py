"""What the client costs without a wire: whole requests on a scripted transport, and one decoding; processor time."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from coin_export.client import AsSoonAsDecodable, AtOnce, CodedClient, Policy
from coin_export.code.decode import decode
from coin_export.code.helping import helpers
from coin_export.code.linear import LinearCode
from scripts.bench.scripted import ScriptedServers


def iqr(values: Sequence[float]) -> list[float]:
    """Return the first and the third quartile."""
    return [float(value) for value in np.percentile(values, [25, 75])]


async def bench_cost(k: int, case: str, requests: int, repeats: int) -> dict[str, Any]:
    """Time whole requests of ``k`` originals on a transport without a wire."""
    servers = ScriptedServers(k)
    decoding = case == "decoding"
    policy = Policy(coded=AtOnce(), decode=AsSoonAsDecodable()) if decoding else Policy()
    async with CodedClient(servers.addresses, policy=policy, make_transport=servers.transport) as client:
        seconds = []
        for repeat in range(repeats + 1):
            gc.collect()
            gc.freeze()
            start = time.thread_time()
            for _ in range(requests):
                await servers.ask(client, late=decoding)
            if repeat:  # the first warms up
                seconds.append((time.thread_time() - start) / requests)
    cost = [1e6 * value for value in seconds]
    return {
        "mode": "policy_and_decode",
        "case": case,
        "k": k,
        "microseconds": statistics.median(cost),
        "microseconds_iqr": iqr(cost),
        "requests": requests,
        "repeats": repeats,
    }


def bench_choice(k: int, m: int, late: int, repeats: int) -> dict[str, Any]:
    """Time the choice of whom to ask in place of ``late`` of k originals, in situations that were not met before."""
    generator = np.random.default_rng(0)
    wanted = tuple(range(k))
    seconds = []
    for _ in range(10 * repeats):
        code = LinearCode.from_rows(generator.dirichlet(np.ones(k), size=m).tolist())  # nothing is known of a new code
        lost = frozenset(generator.choice(k, size=late, replace=False).tolist())
        askable = code.members.difference(wanted)
        start = time.thread_time()
        helpers(code, wanted, frozenset(wanted) - lost, lost, askable)
        seconds.append(1e6 * (time.thread_time() - start))
    return {
        "mode": "choose_helpers",
        "case": f"{late} late, {m} coded",
        "k": k,
        "microseconds": statistics.median(seconds),
        "microseconds_iqr": iqr(seconds),
        "repeats": len(seconds),
    }


def bench_decode(repeats: int) -> dict[str, Any]:
    """Time the decoding of one lost original of eight, batch 32, 1,000 classes."""
    k, shape = 8, (32, 1000)
    decoding = LinearCode.from_rows([[1.0] * k]).decoding(range(1, k + 1))
    generator = np.random.default_rng(0)
    outputs = [generator.normal(size=shape).astype(np.float32) for _ in decoding.sources]
    seconds = []
    for _ in range(100 * repeats):
        start = time.thread_time()
        decode(decoding, outputs)
        seconds.append(1e6 * (time.thread_time() - start))
    return {
        "mode": "decode",
        "case": "one of k lost",
        "k": k,
        "shape": list(shape),
        "microseconds": statistics.median(seconds),
        "microseconds_iqr": iqr(seconds),
        "repeats": len(seconds),
    }
