"""One cell of the comparison: its servers, its load, its faults, and what they came to."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from coin_export.serve.embedded import EmbeddedServer, start_all, stop_all
from scripts.tail.asking import asker
from scripts.tail.load import Images, Trace, offer
from scripts.tail.policies import CONTENDERS
from scripts.tail.repositories import served
from scripts.tail.schedule import SCENARIOS, Fault, arrivals

WARM_UP_S = 2.0  # of the same load, before what is measured


@dataclass(frozen=True)
class Cell:
    """What is run.

    Attributes:
        policy: one of `CONTENDERS`.
        scenario: one of `SCENARIOS`.
        repeat: numbers the repeats; also the seed of arrivals and faults, which all policies share.
        requests: measured ones.
        rate: requests a second.
    """

    policy: str
    scenario: str
    repeat: int
    requests: int
    rate: float


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a cell came to.

    Attributes:
        trace: of the measured requests.
        originals: the number of originals.
        extra_calls: calls to servers other than the originals', warm-up excluded.
    """

    trace: Trace
    originals: int
    extra_calls: int


def run_cell(cell: Cell, models: Path) -> Outcome:
    """Start servers, run the load, stop them.

    Args:
        cell: what to run.
        models: folder of the model repositories; what is missing is built.
    """
    contender = CONTENDERS[cell.policy]
    repository, originals, extras = served(models, contender.extra)
    servers = {model: EmbeddedServer(repository, models=[model]) for model in (*originals, *extras)}
    with ExitStack() as stack:
        stack.callback(stop_all, list(servers.values()))
        start_all(list(servers.values()))
        stack.callback(_resume_all, list(servers.values()))
        return asyncio.run(_measure(cell, servers, originals))


async def _measure(cell: Cell, servers: dict[str, EmbeddedServer], originals: Sequence[str]) -> Outcome:
    addresses = {model: server.grpc_address for model, server in servers.items()}
    due = arrivals(cell.requests, cell.rate, cell.repeat)
    faults = SCENARIOS[cell.scenario](float(due[-1]), len(originals), cell.repeat)
    images = Images()
    async with asker(addresses, CONTENDERS[cell.policy].policy) as client:
        await offer(client, images, arrivals(round(WARM_UP_S * cell.rate), cell.rate, cell.repeat + 1000))
        client.calls.clear()
        victims = [servers[model] for model in originals]
        trace = await offer(client, images, due, [(fault.at_s, _inflict(fault, victims)) for fault in faults])
        extra_calls = sum(calls for model, calls in client.calls.items() if model not in originals)
        _resume_all(list(servers.values()))
    return Outcome(trace, len(originals), extra_calls)


def _inflict(fault: Fault, victims: Sequence[EmbeddedServer]) -> Callable[[], None]:
    victim = victims[fault.victim]
    if fault.number == signal.SIGSTOP:
        return victim.suspend
    if fault.number == signal.SIGCONT:
        return victim.resume
    # Killing returns when all is cleaned up behind the server; arrivals do not wait for that.
    return threading.Thread(target=victim.kill).start


def _resume_all(servers: Sequence[EmbeddedServer]) -> None:
    for server in servers:
        if server.is_alive():
            server.resume()


def summary(cell: Cell, outcome: Outcome) -> dict[str, str | int | float]:
    """Return a cell's record. Quantiles and accuracy are of the requests that were answered."""
    trace = outcome.trace
    answered = ~np.isnan(trace.latency_s)
    ms = 1e3 * trace.latency_s[answered]
    quantiles = np.percentile(ms, [50, 90, 99, 99.9, 100], method="inverted_cdf")
    answers = outcome.originals * int(answered.sum())
    return {
        "policy": cell.policy,
        "scenario": cell.scenario,
        "repeat": cell.repeat,
        "requests": cell.requests,
        "failed": cell.requests - int(answered.sum()),
        **dict(zip(("p50_ms", "p90_ms", "p99_ms", "p999_ms", "max_ms"), quantiles.tolist(), strict=True)),
        "extra_request_share": outcome.extra_calls / (outcome.originals * cell.requests),
        "decoded_share": float(trace.decoded.sum()) / answers,
        "accuracy": 100.0 * float(trace.correct[answered].mean()),
        "rate": cell.rate,
        "seed": cell.repeat,
        "client_late_p999_ms": 1e3 * float(np.nanpercentile(trace.late_s, 99.9)),
    }
