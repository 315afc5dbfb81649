"""The safety rule on the wire: what may be cancelled is, what may not is abandoned, bounded and silent."""

from __future__ import annotations

import asyncio
import gc
import logging
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from coin_export.client import AfterGrace, AfterQuantile, AsSoonAsDecodable, AtOnce, CodedClient, Limits, Policy, Source
from coin_export.client.metrics import MetricsObserver
from coin_export.errors import UndecodableError
from tests.client.fake_triton import PIXELS, aborting, ask_until, eventually, make_group, one_each, started
from tests.client.recorder import Recorder

GROUP = make_group()
BATCH = np.ones((1, PIXELS), np.float32)
SOON = Policy(AtOnce(), AsSoonAsDecodable())
PATIENT = Policy(decode=AfterGrace(at_least_s=30.0))


@pytest.mark.parametrize(
    ("version", "cancels"), [("2.51.0", 0), ("2.58.9", 0), ("2.59.0", 1), ("2.60.0", 1), ("dev", 0)]
)
async def test_a_loser_is_cancelled_only_on_servers_that_survive_it(version: str, cancels: int) -> None:
    servers = one_each(GROUP, version=version)
    servers[0].hold.clear()
    async with started(*servers) as addresses, CodedClient(addresses, policy=SOON) as client:
        assert (await client.infer({"input": BATCH}))["a"].source is Source.DECODED
        if cancels:
            await eventually(lambda: servers[0].cancelled == 1)
        servers[0].hold.set()
        await eventually(lambda: servers[0].answered + servers[0].cancelled == 1)
    assert servers[0].cancelled == cancels
    assert not any(server.had_deadline for server in servers)


async def test_a_cancelled_caller_ends_its_wait_at_once_and_cancels_nothing_on_the_wire() -> None:
    servers = one_each(GROUP)
    for server in servers:
        server.hold.clear()
    async with started(*servers) as addresses, CodedClient(addresses) as client:
        caller = asyncio.create_task(client.infer({"input": BATCH}))
        await eventually(lambda: all(server.asked for server in servers))
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        for server in servers:
            server.hold.set()
        await eventually(lambda: all(server.answered for server in servers))
    assert [server.cancelled for server in servers] == [0, 0, 0]


async def test_abandoned_calls_are_bounded_and_the_server_is_used_again_when_they_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    servers = one_each(GROUP)
    servers[0].hold.clear()
    limits = Limits(abandoned_per_server=3)
    async with started(*servers) as addresses, CodedClient(addresses, policy=SOON, limits=limits) as client:
        for _ in range(10):
            assert (await client.infer({"input": BATCH}))["a"].source is Source.DECODED
        await eventually(lambda: servers[0].asked == 3)
        servers[1].reply = aborting("INTERNAL", "out of memory")
        with pytest.raises(UndecodableError, match="3 abandoned calls to it are still unanswered"):
            await client.infer({"input": BATCH})
        servers[1].reply = None
        servers[0].hold.set()
        await eventually(lambda: servers[0].answered == 3)
        await ask_until(client, lambda _: servers[0].asked > 3)
    assert caplog.text.count("abandoned calls unanswered") == 1


async def test_reaching_the_bound_on_abandoned_calls_and_falling_below_it_are_told() -> None:
    recorder, registry = Recorder(), CollectorRegistry()
    servers = one_each(GROUP)
    servers[0].hold.clear()
    options: dict[str, Any] = {"policy": SOON, "limits": Limits(abandoned_per_server=2)}
    async with started(*servers) as addresses:
        full, up = (addresses[0], "2 abandoned calls to it are still unanswered"), [(item, "") for item in addresses]

        def is_down() -> bool:
            return registry.get_sample_value("coin_client_breaker_open", {"server": addresses[0]}) == 1

        observers = [recorder, MetricsObserver(registry)]
        async with CodedClient(addresses, observers=observers, **options) as client:
            await client.infer({"input": BATCH})
            assert recorder.servers == up and not is_down() and client._connected.pool.build.strength == (3, 3)
            for _ in range(3):
                await client.infer({"input": BATCH})
            assert recorder.servers == [*up, full] and is_down() and client._connected.pool.build.strength == (2, 2)
            servers[0].hold.set()
            await eventually(lambda: not is_down())
            assert recorder.servers == [*up, full, up[0]] and client._connected.pool.build.strength == (3, 3)


async def test_the_late_answer_of_an_abandoned_call_teaches() -> None:
    servers = one_each(GROUP)
    async with started(*servers) as addresses:
        policy = Policy(AfterQuantile(0.95, window=40), AsSoonAsDecodable())
        async with CodedClient(addresses, policy=policy) as client:
            for _ in range(20):
                servers[0].hold.clear()
                assert (await client.infer({"input": BATCH}))["a"].source is Source.DECODED
                servers[0].hold.set()
                await eventually(lambda: servers[0].answered == servers[0].asked)
            coded = servers[2].asked
            assert (await client.infer({"input": BATCH}))["a"].source is Source.DIRECT
            assert servers[2].asked == coded


async def test_late_failures_of_abandoned_calls_are_silent(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    reported: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: reported.append(context))
    servers = one_each(GROUP)
    servers[0].hold.clear()
    servers[0].reply = aborting("INTERNAL", "too late")
    async with started(*servers) as addresses, CodedClient(addresses, policy=SOON) as client:
        await client.infer({"input": BATCH})
        servers[0].hold.set()
        await eventually(lambda: servers[0].answered == 1)
    gc.collect()
    await asyncio.sleep(0)
    assert reported == []
    assert "too late" not in caplog.text


async def test_closing_lets_calls_under_way_end() -> None:
    servers = one_each(GROUP)
    servers[0].delay_s = 0.2
    async with started(*servers) as addresses:
        async with CodedClient(addresses, policy=SOON, limits=Limits(close_s=30)) as client:
            await client.infer({"input": BATCH})
        assert servers[0].answered == 1 and servers[0].cancelled == 0


async def test_closing_waits_no_longer_than_its_bound_and_leaves_no_task_behind() -> None:
    servers = one_each(GROUP)
    servers[0].hold.clear()
    async with started(*servers) as addresses:
        before = asyncio.all_tasks()
        async with CodedClient(addresses, policy=SOON, limits=Limits(close_s=0.05)) as client:
            await client.infer({"input": BATCH})
        await eventually(lambda: servers[0].cancelled == 1)
        assert [task for task in asyncio.all_tasks() - before if "coin_export" in repr(task)] == []


async def test_closing_ends_requests_under_way_with_an_error() -> None:
    servers = one_each(GROUP)
    for server in servers:
        server.hold.clear()
    async with started(*servers) as addresses:
        client = CodedClient(addresses, limits=Limits(close_s=0.05))
        await client.connect()
        request = asyncio.create_task(client.infer({"input": BATCH}))
        await eventually(lambda: all(server.asked for server in servers))
        await client.close()
        with pytest.raises(UndecodableError, match="the call was cancelled"):
            await request


async def test_a_cancelled_close_still_closes_the_connections() -> None:
    servers = one_each(GROUP)
    servers[0].hold.clear()
    async with started(*servers) as addresses:
        client = CodedClient(addresses, policy=SOON, limits=Limits(close_s=3600))
        await client.connect()
        await client.infer({"input": BATCH})
        closing = asyncio.create_task(client.close())
        await asyncio.sleep(0.01)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        await eventually(lambda: servers[0].cancelled == 1)


async def test_a_server_whose_version_came_into_doubt_is_not_cancelled_until_it_was_asked_again() -> None:
    servers = one_each(GROUP, version="2.60.0")
    async with started(*servers) as addresses:
        async with CodedClient(addresses, policy=PATIENT, limits=Limits(lookup_interval_s=3600)) as client:
            servers[0].reply = aborting("UNAVAILABLE", "shutting down")
            await client.infer({"input": BATCH})
            servers[0].hold.clear()
            caller = asyncio.create_task(client.infer({"input": BATCH}))
            await eventually(lambda: servers[0].asked == 2)
            caller.cancel()
            with pytest.raises(asyncio.CancelledError):
                await caller
            servers[0].hold.set()
            await eventually(lambda: servers[0].answered == 2)
        assert servers[0].cancelled == 0
