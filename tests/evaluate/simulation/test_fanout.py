"""The simulation against the real client: the same requests, the same service times, the same latencies."""

from __future__ import annotations

import asyncio
import math
import selectors
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from coin_export.client import AfterGrace, AfterQuantile, Answers, AtOnce, Budget, CodedClient, Limits, Policy, Source
from coin_export.client.answer import Array
from coin_export.client.transport import ModelConfig, Reply, RequestOptions, Transport, TransportOptions
from coin_export.code.design import default_code
from coin_export.code.manifest import PARAMETER_KEY, Group
from coin_export.evaluate.simulation.group import simulate_group
from coin_export.evaluate.simulation.scheme import Redundancy, Scheme
from tests.client.fake_triton import CLASSES, PIXELS, make_group

REQUESTS = 400
# Breakers open and close, and the bound on abandoned calls is reached.
STRICT = Limits(misses_in_a_row=3, silence_s=0.02, abandoned_per_server=6, lookup_interval_s=0.2)
# Servers count as slow, and soon no longer.
HASTY = Limits(misses_in_a_row=2, silence_s=60.0, slow_s=0.01, lookup_interval_s=0.2)


class JumpingSelector(selectors.DefaultSelector):
    """Instead of waiting, moves the time on."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        found = super().select(0)
        if not found and timeout:
            self.now += timeout
        return found


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop in which nothing takes time but sleeping."""

    def __init__(self) -> None:
        self._jumping = JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now


class OneWorker(Transport):
    """A server in this process that executes one call after the other, each for as long as it is told."""

    def __init__(self, group: Group, row: int, works: Sequence[Sequence[float]]) -> None:
        self.address = f"127.0.0.1:{8001 + row}"
        self._group = group
        self._row = row
        self._works = works
        self._free_at = 0.0

    @property
    def version(self) -> str:
        return "2.51.0"

    @property
    def may_cancel(self) -> bool:
        return False

    async def server_metadata(self) -> str:
        return self.version

    async def ready(self) -> bool:
        return True

    async def model_index(self) -> dict[str, tuple[str, ...]]:
        return {self._group.members[self._row].name: ("1",)}

    async def model_config(self, model: str, version: str = "") -> ModelConfig:
        return ModelConfig(model, 8, {PARAMETER_KEY: self._group.to_json(model)})

    def encode(self, inputs: Mapping[str, Array], datatypes: Mapping[str, str]) -> Any:
        return None

    async def infer(
        self, model: str, encoded: Any, outputs: Sequence[str], options: RequestOptions, version: str = ""
    ) -> Reply:
        loop = asyncio.get_running_loop()
        self._free_at = max(self._free_at, loop.time()) + self._works[int(options.request_id)][self._row]
        await asyncio.sleep(self._free_at - loop.time())
        return Reply({"logits": np.zeros((1, CLASSES), np.float32)}, "1")

    async def close(self) -> None:
        pass


async def ask_for_real(
    group: Group, policy: Policy, limits: Limits, arrivals: Sequence[float], works: Sequence[Sequence[float]]
) -> tuple[list[float], int]:
    """Return latencies in seconds, and how many answers were decoded."""
    loop = asyncio.get_running_loop()

    def transport(address: str, options: TransportOptions) -> Transport:
        return OneWorker(group, int(address.split(":")[1]) - 8001, works)

    async def one(client: CodedClient, index: int) -> tuple[float, Answers]:
        await asyncio.sleep(begun + arrivals[index] - loop.time())
        started = loop.time()
        answers = await client.infer({"input": np.zeros((1, PIXELS), np.float32)}, request_id=str(index))
        return loop.time() - started, answers

    addresses = [f"127.0.0.1:{8001 + row}" for row in range(group.code.n)]
    async with CodedClient(addresses, policy=policy, limits=limits, make_transport=transport) as client:
        begun = loop.time()
        ends = await asyncio.gather(*(one(client, index) for index in range(len(arrivals))))
        await asyncio.sleep(60)  # abandoned calls end, so that closing has nothing to wait for
    decoded = sum(answer.source is Source.DECODED for _, answers in ends for answer in answers.values())
    return [latency for latency, _ in ends], decoded


@pytest.mark.parametrize(
    "policy",
    [
        Policy(AtOnce()),
        Policy(AfterQuantile(q=0.8), budget=Budget(share=0.2, burst=3.0)),
        Policy(AfterQuantile(q=0.5), AfterGrace(at_least_s=0.0, share=0.5), Budget(share=10.0, burst=100.0)),
    ],
    ids=["at_once", "within_a_budget", "eager"],
)
@pytest.mark.parametrize(("k", "m"), [(2, 1), (3, 2)])
@pytest.mark.parametrize("limits", [Limits(), STRICT, HASTY], ids=["usual_limits", "strict_limits", "hasty_limits"])
def test_latencies_are_those_of_the_real_client(policy: Policy, limits: Limits, k: int, m: int) -> None:
    random = np.random.default_rng(5)
    arrivals = np.cumsum(random.standard_exponential(REQUESTS) * 0.02).tolist()
    works = (0.002 + 0.008 * random.pareto(1.8, size=(REQUESTS, k + m))).clip(max=0.5).tolist()
    group = make_group(default_code(k, m))
    loop = VirtualLoop()
    try:
        latencies, decoded = loop.run_until_complete(ask_for_real(group, policy, limits, arrivals, works))
    finally:
        loop.close()
    scheme = replace(Scheme("as the client", Redundancy.CODED), policy=policy)
    tally = simulate_group(scheme, group.code, arrivals, works, limits=limits)
    np.testing.assert_allclose(tally.latencies_s, latencies, atol=1e-6)
    assert decoded > 0 and not math.isnan(tally.latencies_s.sum())
