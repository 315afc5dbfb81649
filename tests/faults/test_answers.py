"""Servers that answer, and not what they should: NaN, infinity, a full queue."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path

import psutil
import pytest

from coin_export.client import AfterGrace, Answers, Limits, OnlyWhenDown, Policy
from coin_export.repository.options import RepositoryOptions
from scripts.faults.cluster import Cluster
from scripts.faults.linear_group import TWO_CODED, write_linear_group
from tests.faults.asking import Asker, addresses_of, all_direct, decoded

pytestmark = pytest.mark.e2e
REQUESTS = 10


async def test_nan_and_infinity_are_erasures_and_are_named(tmp_path: Path) -> None:
    spoiled = {"a": math.nan, "coded_1": -math.inf}
    with Cluster(write_linear_group(tmp_path, TWO_CODED, spoiled=spoiled)) as cluster:
        for wire in ("grpc", "http"):
            addresses = addresses_of(cluster, wire)
            # A server that only ever answers NaN still answers: nothing here may count on its being down.
            async with Asker(cluster.linear, addresses.values(), wire) as asker:
                for _ in range(REQUESTS):
                    assert decoded("a")(await asker.ask())
        cluster.kill("b")
        async with Asker(cluster.linear, cluster.grpc_addresses.values()) as asker:
            await asker.fail_naming({"a": cluster.grpc_addresses["a"], "b": cluster.grpc_addresses["b"]})
            with pytest.raises(Exception, match="'a': its output 'y' contains NaN or infinity"):
                await asker.ask()


async def test_requests_that_a_full_queue_refuses_are_decoded(three: Cluster, tmp_path: Path) -> None:
    bounded = write_linear_group(tmp_path, options=RepositoryOptions(max_queue_size=1))
    await asyncio.to_thread(three.restart, "a", repository=bounded.repository)
    # Only failures bring help here, and only refused requests fail: what waits in the queue is just slow.
    policy = Policy(OnlyWhenDown(), AfterGrace(at_least_s=0.0))
    limits = Limits(misses_in_a_row=1000, close_s=0.2)
    async with Asker(three.linear, three.grpc_addresses.values(), limits=limits, policy=policy) as asker:
        assert all_direct(await asker.ask())
        (model,) = psutil.Process(three.servers["a"].pid).children()
        model.suspend()  # the server itself stays in order, and refuses what its queue does not hold
        requests: set[asyncio.Task[Answers]] = set()
        answered: set[asyncio.Task[Answers]] = set()
        while len(answered) < REQUESTS:
            requests.add(asyncio.create_task(asker.ask(deadline=300.0)))
            answered, waiting = await asyncio.wait(requests, timeout=0.2)
        assert all(decoded("a")(request.result()) for request in answered)
        assert waiting
        # Triton 24.10 may forget to wake the queue when the model goes on, for long; so its server ends here.
        three.kill("a")
        for request in waiting:
            assert decoded("a")(await request)
