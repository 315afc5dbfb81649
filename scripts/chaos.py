"""Two minutes in which servers are killed and stopped at random, under load: nothing is lost, and nothing is wrong.

    python scripts/chaos.py --seconds 120 --json docs/results/chaos.json

One real tritonserver per member of a group of two originals and two coded models. Every few seconds one of them is
killed, stopped, or stopped and then killed, and comes back later; at most as many are away at a time as there are
coded models. A server counts as back when the client has had an answer of it again. Every answer is checked.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console

from coin_export.client import CallEnd, CallInfo, CodedClient, HttpTransport, Limits, Observer, Source
from coin_export.client.observer import CallOutcome
from coin_export.client.transport_grpc import GrpcTransport
from scripts.bench.machine import describe
from scripts.faults.cluster import Cluster
from scripts.faults.linear_group import INPUT, TWO_CODED, random_inputs, write_linear_group

DEADLINE_S = 20.0
LIMITS = Limits(discovery_s=20.0, lookup_interval_s=0.5)
KINDS = ("kill", "stop", "stop, then kill")
SHAKEN_OFF = "ended by itself after a stop"

_REQUESTERS = 8
_THINK_S = 0.02  # between the requests of one requester
_AWAY_S = (0.5, 4.0)
_BETWEEN_S = (0.5, 2.5)
_BACK_WITHIN_S = 120.0
_NOTICED_S = 1.0  # in which a server that is needed is asked, and one that was lost is looked up
_DIRECT_WITHIN = 5000  # requests


@dataclass(frozen=True)
class Result:
    """What a run showed.

    Attributes:
        wire: ``grpc`` or ``http``.
        seconds: how long servers came and went, at the most.
        requests: how many were made; every one was answered, and rightly.
        decoded: how many of their answers were decoded.
        faults: how many there were, by kind.
        most_away: the most servers that were away at a time.
        requests_until_direct: how many requests it took at the end until all answers were direct.
        p50_before_ms: the median latency before, in ms.
        p50_after_ms: the median latency after the last server was back, in ms.
    """

    wire: str
    seconds: float
    requests: int
    decoded: int
    faults: dict[str, int]
    most_away: int
    requests_until_direct: int
    p50_before_ms: float
    p50_after_ms: float


class LastAnswers(Observer):
    """What each server was last asked and last gave, and which count as down."""

    def __init__(self) -> None:
        self._begun: dict[str, dict[CallInfo, float]] = defaultdict(dict)  # without end
        self._failed: dict[str, float] = defaultdict(float)  # when the last call that failed began
        self._answered: dict[str, float] = defaultdict(float)
        self._down: set[str] = set()

    def in_use(self, address: str, since: float) -> bool:
        """Tell whether it does not count as down, and has answered since then or was not needed.

        A call that was cancelled, as another server had answered, says neither, and there may be no other for long.
        """
        needed = max(self._failed[address], *self._begun[address].values(), 0.0) >= since
        return address not in self._down and (not needed or self._answered[address] >= since)

    def state(self, address: str) -> str:
        """Say what is known of it, for a message."""
        return (
            f"{'down' if address in self._down else 'not down'}, {len(self._begun[address])} calls under way, "
            f"the last that failed began at {self._failed[address]:.1f} s, "
            f"the last answer came at {self._answered[address]:.1f} s"
        )

    def call_begun(self, call: CallInfo) -> Mapping[str, str]:
        """See `Observer`."""
        self._begun[call.server][call] = time.monotonic()
        return {}

    def call_ended(self, call: CallInfo, end: CallEnd) -> None:
        """See `Observer`."""
        if end.outcome is CallOutcome.CANCELLED:
            del self._begun[call.server][call]
        elif end.outcome is not CallOutcome.ABANDONED:
            self._end(call, failed=end.outcome is CallOutcome.FAILED)

    def call_ended_late(self, call: CallInfo, latency_s: float, error: str) -> None:
        """See `Observer`."""
        self._end(call, failed=bool(error))

    def _end(self, call: CallInfo, failed: bool) -> None:
        begun = self._begun[call.server].pop(call)
        if failed:
            self._failed[call.server] = max(self._failed[call.server], begun)
        else:
            self._answered[call.server] = time.monotonic()

    def server_down(self, address: str, reason: str) -> None:
        """See `Observer`."""
        self._down.add(address)

    def server_up(self, address: str) -> None:
        """See `Observer`."""
        self._down.discard(address)


class Chaos:
    """One run against the servers of a cluster.

    Args:
        cluster: the servers, all up.
        wire: ``grpc`` or ``http``.
        seed: of what happens when, and of the inputs.
        pace: how many times as fast as usual servers come and go.
    """

    def __init__(self, cluster: Cluster, wire: str = "grpc", seed: int = 0, pace: float = 1.0) -> None:
        self._cluster = cluster
        self._wire = wire
        self._pace = pace
        self._addresses = cluster.http_addresses if wire == "http" else cluster.grpc_addresses
        self._random = np.random.default_rng(seed)
        self._seen = LastAnswers()
        self._client = CodedClient(
            list(self._addresses.values()),
            limits=LIMITS,
            observers=[self._seen],
            make_transport=HttpTransport if wire == "http" else GrpcTransport,
        )
        self._away: set[str] = set()
        self._most_away = 0
        self._faults = Counter(dict.fromkeys(KINDS, 0))
        self._latencies_s: list[float] = []
        self._decoded = 0

    async def run(self, seconds: float, calm_s: float, enough: int | None = None) -> Result:
        """Make requests for ``calm_s`` in peace, for ``seconds`` in chaos, and for ``calm_s`` in peace again.

        The chaos ends earlier once there were ``enough`` faults.

        Raises:
            AssertionError: if an answer is wrong, or servers that are back are not used again.
            UndecodableError: if a request was lost.
        """
        async with self._client:
            before = await self._under_load(self._peace, calm_s)
            during = await self._under_load(partial(self._faults_for, enough=enough), seconds)
            needed = await self._until_all_are_direct()
            after = await self._under_load(self._peace, calm_s)
        return Result(
            self._wire,
            seconds,
            len(before) + len(during) + needed + len(after),
            self._decoded,
            dict(self._faults),
            self._most_away,
            needed,
            1e3 * float(np.median(before)),
            1e3 * float(np.median(after)),
        )

    async def _under_load(self, what: Callable[[float], Awaitable[None]], seconds: float) -> list[float]:
        """Have something happen while requests are made; return their latencies in seconds."""
        latencies_s: list[float] = []
        requesters = [asyncio.create_task(self._keep_asking(latencies_s)) for _ in range(_REQUESTERS)]
        happening = asyncio.ensure_future(what(seconds))
        try:
            done, _ = await asyncio.wait([happening, *requesters], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()  # a requester ends by an error only
        finally:
            for task in (happening, *requesters):
                task.cancel()
            await asyncio.gather(happening, *requesters, return_exceptions=True)
        return latencies_s

    async def _keep_asking(self, latencies_s: list[float]) -> None:
        while True:
            started = time.perf_counter()
            await self._ask()
            latencies_s.append(time.perf_counter() - started)
            await asyncio.sleep(_THINK_S)

    async def _ask(self) -> int:
        """Make one request, check its answers, and return how many of them are decoded."""
        inputs = random_inputs(self._random)
        answers = await self._client.infer({INPUT: inputs}, deadline=DEADLINE_S)
        self._cluster.linear.check(inputs, answers)
        decoded = sum(answer.source is Source.DECODED for answer in answers.values())
        self._decoded += decoded
        return decoded

    async def _peace(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def _faults_for(self, seconds: float, enough: int | None) -> None:
        ends = time.monotonic() + seconds
        faults: set[asyncio.Task[None]] = set()
        try:
            while time.monotonic() < ends and (enough is None or self._faults.total() < enough):
                if len(self._away) < self._cluster.linear.group.code.m:
                    faults.add(asyncio.create_task(self._fault()))
                await asyncio.sleep(self._random.uniform(*_BETWEEN_S) / self._pace)
                for task in [task for task in faults if task.done()]:
                    faults.discard(task)
                    task.result()
            await asyncio.gather(*faults)
        finally:
            for task in faults:
                task.cancel()

    async def _fault(self) -> None:
        """Have one server go, and come back."""
        name = str(self._random.choice([name for name in self._cluster.linear.members if name not in self._away]))
        kind = str(self._random.choice(KINDS))
        away_s = self._random.uniform(*_AWAY_S) / self._pace
        self._away.add(name)
        self._most_away = max(self._most_away, len(self._away))
        self._faults[kind] += 1
        if kind == "kill":
            await asyncio.to_thread(self._cluster.kill, name)
        else:
            self._cluster.suspend(name)
        await asyncio.sleep(away_s)
        if kind == "stop":
            self._cluster.resume(name)
        else:
            await asyncio.to_thread(self._cluster.restart, name)
        await self._seen_again(name)
        self._away.discard(name)

    async def _seen_again(self, name: str) -> None:
        address, back_at = self._addresses[name], time.monotonic()
        await asyncio.sleep(_NOTICED_S)
        while not self._seen.in_use(address, back_at):
            if self._cluster.has_crashed(name) and self._cluster.was_shaken_off(name):
                self._faults[SHAKEN_OFF] += 1
                await asyncio.to_thread(self._cluster.restart, name)
                back_at = time.monotonic()
            elif self._cluster.has_crashed(name):
                raise AssertionError(f"server {name} ended by itself: {self._cluster.last_words(name)}")
            if time.monotonic() > back_at + _BACK_WITHIN_S:
                raise AssertionError(
                    f"server {name} at {address} is back and was not in use within {_BACK_WITHIN_S} s; "
                    f"back at {back_at:.1f} s, {self._seen.state(address)}"
                )
            await asyncio.sleep(0.02)

    async def _until_all_are_direct(self) -> int:
        for count in range(1, _DIRECT_WITHIN + 1):
            if await self._ask() == 0:
                return count
            await asyncio.sleep(_THINK_S)
        raise AssertionError(f"after {_DIRECT_WITHIN} requests with every server up, answers are still decoded")


def main() -> None:
    """Run it over both wires; print and write what it showed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120.0, help="of chaos, over each wire")
    parser.add_argument("--calm", type=float, default=10.0, help="seconds of load without faults before and after")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--wires", nargs="+", choices=["grpc", "http"], default=["grpc", "http"])
    parser.add_argument("--json", type=Path, help="write the results here")
    options = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory(prefix="coin_export_chaos_") as folder:
        linear = write_linear_group(Path(folder), TWO_CODED)
        for wire in options.wires:
            with Cluster(linear) as cluster:
                results.append(asyncio.run(Chaos(cluster, wire, options.seed).run(options.seconds, options.calm)))
            Console().print(results[-1])
    if options.json:
        content = {"seed": options.seed, "runs": [asdict(result) for result in results], "machine": describe()}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
