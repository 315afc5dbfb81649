"""Health on the wire: a server that fails or does not answer is found out, routed around, and used again."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from coin_export.client import (
    AfterGrace,
    AtDeadline,
    AtOnce,
    Budget,
    CodedClient,
    Limits,
    OnlyWhenDown,
    Policy,
    Source,
    TransportOptions,
)
from coin_export.client.server import Server, Task
from coin_export.client.transport import RefusedError
from coin_export.client.transport_grpc import GrpcTransport
from coin_export.errors import TransportError, UndecodableError
from tests.client.fake_triton import PIXELS, FakeTriton, aborting, ask_until, eventually, make_group, one_each, started
from tests.client.scripted import ScriptedTransport

GROUP = make_group()
BATCH = np.ones((1, PIXELS), np.float32)
PATIENT = Policy(OnlyWhenDown(), AfterGrace(at_least_s=30.0))
SELDOM = Limits(misses_in_a_row=3, lookup_interval_s=3600, close_s=0.05)
OFTEN = Limits(misses_in_a_row=3, lookup_interval_s=0.01, close_s=0.05)


async def ending(error: Exception | None) -> None:
    """A call that is answered, or fails."""
    if error is not None:
        raise error


def nobody(result: object, error: BaseException | None) -> None:
    """Whom the end of a call does not matter."""


async def finish(task: Task) -> None:
    await asyncio.wait([task])
    await asyncio.sleep(0)


async def test_the_breaker_opens_after_misses_in_a_row_and_after_a_look_up_one_more_is_enough() -> None:
    doubts: list[str] = []
    transport = ScriptedTransport("127.0.0.1:1", GROUP, ["a"], iter(()))
    server = Server(transport, Limits(misses_in_a_row=3), lambda server, reason: doubts.append(reason))
    server.down = ""
    internal = TransportError("out of memory", address=server.address)

    async def call(error: Exception | None) -> None:
        await finish(server.call(nobody, ending, error))

    for error in (internal, internal, None, internal, internal):
        await call(error)
    assert doubts == []
    await call(RefusedError("unexpected shape", address=server.address))  # the request's fault: a sign of life
    for _ in range(3):
        await call(internal)
    assert doubts == ["3 calls in a row were missed, the last: out of memory"]
    await call(internal)
    assert len(doubts) == 2, "on probation one miss is enough"
    await call(None)
    await call(internal)
    assert len(doubts) == 2, "an answer ends the probation"


async def test_a_call_given_up_late_is_a_miss_and_one_given_up_early_is_not() -> None:
    doubts: list[str] = []
    transport = GrpcTransport("127.0.0.1:1", TransportOptions())
    server = Server(transport, Limits(misses_in_a_row=2, silence_s=0.0), lambda server, reason: doubts.append(reason))
    server.down = ""
    hold = asyncio.Event()
    tasks = [server.call(nobody, hold.wait) for _ in range(4)]
    for task, overdue in zip(tasks, (False, True, False, True), strict=True):
        assert doubts == []
        server.release(task, overdue=overdue)
    assert len(doubts) == 1 and "no answer in the usual time" in doubts[0]
    hold.set()
    await asyncio.wait(tasks)
    await transport.close()


async def test_a_server_that_fails_again_and_again_is_no_longer_asked(caplog: pytest.LogCaptureFixture) -> None:
    servers = one_each(GROUP)
    servers[0].reply = aborting("INTERNAL", "out of memory")
    async with started(*servers) as addresses, CodedClient(addresses, policy=PATIENT, limits=SELDOM) as client:
        for _ in range(20):
            assert (await client.infer({"input": BATCH}))["a"].source is Source.DECODED
        await eventually(lambda: f"server {addresses[0]} counts as down: 3 calls in a row" in caplog.text)
        assert servers[0].asked == 3
        servers[1].reply = aborting("INTERNAL", "out of memory")
        with pytest.raises(UndecodableError, match="too many members failed"):
            await client.infer({"input": BATCH})
        assert servers[0].asked == 4, "as a last resort it is asked once more"


async def test_a_silent_server_costs_a_few_waits_and_then_none_although_the_budget_is_spent() -> None:
    servers = one_each(GROUP)
    policy = Policy(OnlyWhenDown(), AfterGrace(), Budget(0.0, 0.0))
    async with started(*servers) as addresses, CodedClient(addresses, policy=policy, limits=SELDOM) as client:
        for _ in range(20):
            await client.infer({"input": BATCH})
        servers[0].hold.clear()
        servers[0].metadata_hold.clear()
        for _ in range(3):
            with pytest.raises(UndecodableError):
                await client.infer({"input": BATCH}, deadline=0.5)
        looked_up = servers[0].metadata_calls
        for _ in range(20):
            assert (await client.infer({"input": BATCH}))["a"].source is Source.DECODED
        assert servers[0].asked == 23
        assert servers[0].metadata_calls <= looked_up + 1, "one probe at a time"
        servers[0].hold.set()


async def test_a_server_that_recovers_is_used_again() -> None:
    servers = one_each(GROUP)
    servers[0].reply = aborting("INTERNAL", "out of memory")
    async with started(*servers) as addresses, CodedClient(addresses, policy=PATIENT, limits=OFTEN) as client:
        for _ in range(6):
            await client.infer({"input": BATCH})
        servers[0].reply = None
        await ask_until(client, lambda answers: answers["a"].source is Source.DIRECT)
        for _ in range(5):
            assert (await client.infer({"input": BATCH}))["a"].source is Source.DIRECT


async def test_a_server_whose_look_ups_succeed_and_whose_calls_fail_is_tried_once_per_look_up() -> None:
    servers = one_each(GROUP)
    servers[0].reply = aborting("INTERNAL", "out of memory")
    async with started(*servers) as addresses, CodedClient(addresses, policy=PATIENT, limits=OFTEN) as client:
        await ask_until(client, lambda _: servers[0].metadata_calls >= 6)
        probes = servers[0].metadata_calls - 1
        assert servers[0].asked <= 3 + probes


@pytest.mark.parametrize("status", ["INVALID_ARGUMENT", "UNAUTHENTICATED", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED"])
async def test_refused_requests_put_no_server_out_of_use(status: str) -> None:
    servers = one_each(GROUP)
    async with started(*servers) as addresses, CodedClient(addresses, policy=PATIENT, limits=SELDOM) as client:
        for server in servers:
            server.reply = aborting(status, "unexpected parameter")
        for _ in range(10):
            with pytest.raises(UndecodableError):
                await client.infer({"input": BATCH})
        for server in servers:
            server.reply = None
        assert (await client.infer({"input": BATCH}))["a"].source is Source.DIRECT


async def test_short_deadlines_put_no_server_out_of_use() -> None:
    servers = one_each(GROUP)
    policy = Policy(AtOnce(), AtDeadline())
    async with started(*servers) as addresses, CodedClient(addresses, policy=policy, limits=SELDOM) as client:
        for server in servers:
            server.hold.clear()
        for _ in range(5):
            with pytest.raises(UndecodableError, match="the deadline passed"):
                await client.infer({"input": BATCH}, deadline=0.001)
        for server in servers:
            server.hold.set()
        assert (await client.infer({"input": BATCH}))["a"].source is Source.DIRECT


async def test_the_replica_with_the_fewest_calls_under_way_is_asked() -> None:
    servers = [*one_each(GROUP), FakeTriton(GROUP, ["a"])]
    async with started(*servers) as addresses, CodedClient(addresses, policy=PATIENT) as client:
        servers[0].hold.clear()
        first = asyncio.create_task(client.infer({"input": BATCH}))
        await eventually(lambda: servers[0].asked == 1)
        for _ in range(3):
            await client.infer({"input": BATCH})
        assert servers[0].asked == 1 and servers[3].asked == 3
        servers[0].hold.set()
        await first
