"""A request that its build could not answer waits for servers that may have been replaced, and begins again once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from coin_export.client import CodedClient, Source
from tests.client.fake_triton import FakeTriton, aborting, eventually, one_each, started
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
    servers = [kind(OLD, [member.name]) for member in OLD.members]
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
