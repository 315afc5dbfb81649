"""A request that its build could not answer waits for servers that may have been replaced, and begins again."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from coin_export.client import CallOutcome, CodedClient, OnlyWhenDown, Policy, Source
from coin_export.errors import UndecodableError
from tests.client.fake_triton import (
    FakeTriton,
    aborting,
    eventually,
    one_each,
    one_each_of,
    response_of,
    started,
    weights_of,
)
from tests.client.recorder import Recorder
from tests.client.test_rollout import BATCH, OLD, QUICK, WIRES, build_of, holds


async def lose_connections(client: CodedClient, servers: Sequence[FakeTriton]) -> None:
    """Restart servers as they were, and wait until the client has noticed."""
    for server in servers:
        await server.stop()
        await server.start()
    known = [client._connected.pool._servers[server.address] for server in servers]
    await eventually(lambda: all(server.in_doubt for server in known))


@pytest.mark.parametrize(("kind", "transport"), WIRES)
async def test_a_look_up_that_hangs_is_not_waited_for_when_the_other_servers_suffice(
    kind: type[FakeTriton], transport: Any
) -> None:
    servers = one_each_of(kind, OLD)
    options: dict[str, Any] = {"limits": QUICK, "make_transport": transport}
    async with started(*servers) as addresses, CodedClient(addresses, **options) as client:
        await lose_connections(client, servers)
        servers[0].metadata_hold.clear()
        answers = await client.infer({"input": BATCH}, deadline=20.0)
        assert build_of(answers) == OLD and answers["a"].source is Source.DECODED


async def test_look_ups_are_waited_for_until_they_make_up_for_what_failed() -> None:
    servers = one_each(OLD)
    async with started(*servers) as addresses, CodedClient(addresses, limits=QUICK) as client:
        for server in servers[:2]:
            server.reply = aborting("INTERNAL", "out of memory")  # such a server is up, and of no use here
        await lose_connections(client, servers[2:])
        servers[3].metadata_hold.clear()
        request = asyncio.create_task(client.infer({"input": BATCH}))
        await eventually(lambda: holds(client, servers[2], OLD))
        servers[3].metadata_hold.set()
        answers = await request
        assert {answer.source for answer in answers.values()} == {Source.DECODED}


async def test_the_time_that_the_last_resort_took_counts() -> None:
    servers = one_each(OLD)
    async with started(*servers) as addresses, CodedClient(addresses, limits=QUICK) as client:
        await lose_connections(client, servers)
        for server in servers:
            server.metadata_hold.clear()
        with pytest.raises(UndecodableError, match="too many members failed") as caught:
            await client.infer({"input": BATCH}, deadline=0.5)
        assert caught.value.elapsed_s > 0.4


@pytest.mark.parametrize("coded", [True, False])
async def test_a_request_for_one_original_needs_no_other_server_to_come_back(coded: bool) -> None:
    servers = one_each(OLD)
    async with started(*servers) as addresses, CodedClient(addresses, limits=QUICK) as client:
        others = [client._connected.pool._servers[server.address] for server in servers[1:]]
        for server in servers[1:]:
            await server.stop()
        await eventually(lambda: all(server.in_doubt for server in others))
        await lose_connections(client, servers[:1])
        answers = await client.infer({"input": BATCH}, wanted=["a"], coded=coded, deadline=60.0)
        assert answers["a"].source is Source.DIRECT


async def test_what_arrived_at_first_is_used_by_the_second_attempt() -> None:
    servers, recorder = one_each(OLD), Recorder()
    options: dict[str, Any] = {"limits": QUICK, "policy": Policy(OnlyWhenDown()), "observers": [recorder]}
    async with started(*servers) as addresses, CodedClient(addresses, **options) as client:
        first = client._connected.pool._servers[addresses[0]]
        servers[1].reply = aborting("INTERNAL", "out of memory")
        servers[1].hold.clear()
        await lose_connections(client, servers[2:])
        for server in servers[2:]:
            server.metadata_hold.clear()
        request = asyncio.create_task(client.infer({"input": BATCH}))
        await eventually(lambda: servers[0].answered == 1 and first.outstanding == 0)
        servers[1].hold.set()
        await eventually(lambda: servers[1].answered == 1)
        servers[2].metadata_hold.set()
        answers = await request
        servers[3].metadata_hold.set()
    assert (answers["a"].source, answers["b"].source) == (Source.DIRECT, Source.DECODED)
    assert build_of(answers) == OLD and servers[0].asked == 1
    assert {call.model for call, end in recorder.calls_ended if end.outcome is CallOutcome.USED} == {"a", "coded_0"}


async def test_what_arrived_at_first_is_handed_over_when_the_second_attempt_fails_too() -> None:
    servers = one_each(OLD)
    failing = aborting("INTERNAL", "out of memory")

    async def answer_once(batch: Any, context: Any) -> Any:
        return response_of(batch @ weights_of(OLD, "a")) if servers[0].answered == 1 else await failing(batch, context)

    # The second attempt fails, too, and then servers are waited for no longer than connecting would.
    options: dict[str, Any] = {"limits": replace(QUICK, discovery_s=3.0), "policy": Policy(OnlyWhenDown())}
    async with started(*servers) as addresses, CodedClient(addresses, **options) as client:
        first = client._connected.pool._servers[addresses[0]]
        servers[0].reply, servers[1].reply, servers[2].reply = answer_once, failing, failing
        servers[1].hold.clear()
        await lose_connections(client, servers[2:])
        servers[3].metadata_hold.clear()
        request = asyncio.create_task(client.infer({"input": BATCH}))
        await eventually(lambda: servers[0].answered == 1 and first.outstanding == 0)
        servers[1].hold.set()
        with pytest.raises(UndecodableError, match=r"arrived: a; missing: b: .*; coded_0: .*; coded_1: ") as caught:
            await request
        assert servers[0].asked == 1, "what has arrived is not asked for again"
        assert set(caught.value.arrived) == {"a"} and set(caught.value.failures) == {"b", "coded_0", "coded_1"}
