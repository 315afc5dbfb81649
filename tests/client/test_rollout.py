"""A new build is rolled out under load: no request fails, and no answer mixes two builds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from coin_export.client import (
    Answers,
    AsSoonAsDecodable,
    AtOnce,
    CodedClient,
    HttpTransport,
    Limits,
    OnlyWhenDown,
    Policy,
    Source,
)
from coin_export.client.discovery import ask
from coin_export.client.transport import TransportOptions
from coin_export.client.transport_grpc import GrpcTransport
from coin_export.code.linear import LinearCode
from coin_export.code.manifest import Group
from coin_export.errors import TransportError, UndecodableError
from tests.client.fake_http import HttpTriton
from tests.client.fake_triton import (
    PIXELS,
    FakeTriton,
    aborting,
    ask_until,
    eventually,
    make_group,
    one_each,
    one_each_of,
    started,
    weights_of,
)

CODE = LinearCode.from_rows([[1, 1], [1, 2]])
OLD, NEW = make_group(CODE), make_group(CODE, salt="new")
BATCH = np.ones((1, PIXELS), np.float32)
# No server is to count as down because this machine is slow.
QUICK = Limits(misses_in_a_row=10**9, lookup_interval_s=0.01, discovery_s=60.0, close_s=0.05)
OFTEN = replace(QUICK, rediscovery_interval_s=0.01)
POLICIES = [Policy(), Policy(AtOnce(), AsSoonAsDecodable())]


def build_of(answers: Answers, builds: Sequence[Group] = (OLD, NEW)) -> Group:
    """The one build from which all of the answers are, decoded or not."""
    found = [
        build
        for build in builds
        if all(
            np.allclose(answer.outputs["logits"], BATCH @ weights_of(build, name), rtol=1e-3, atol=1e-3)
            for name, answer in answers.items()
        )
    ]
    assert len(found) == 1, "the answers are from no build, or mixed from two"
    return found[0]


def holds(client: CodedClient, server: FakeTriton, build: Group) -> bool:
    """Whether the client knows that a server that is usable holds a build."""
    known = client._connected.pool._servers[server.address]
    return known.usable and known.report is not None and known.report.served[0].generation == build.generation


async def turned(client: CodedClient) -> None:
    """Wait for the new build without asking for anything."""
    while client.group != NEW:
        client._connected.pool.look_up_due()
        await asyncio.sleep(0.01)


async def lose_the_old_build(client: CodedClient, servers: Sequence[FakeTriton]) -> None:
    """Replace the coded models under a request that asked the originals, then drop these."""
    await eventually(lambda: servers[0].asked == servers[1].asked == 1)
    for server in servers[2:]:
        await reload(server)
    await turned(client)
    for server in servers[:2]:
        await server.stop()


async def restart(server: FakeTriton) -> None:
    await server.stop()
    server.group = NEW
    await asyncio.sleep(0.02)
    await server.start()


async def restart_with_a_new_version_number(server: FakeTriton) -> None:
    await server.stop()
    await reload(server)
    await server.start()


async def reload(server: FakeTriton) -> None:
    server.group = NEW
    server.model_versions = dict.fromkeys(server.members, ("2",))


@pytest.mark.parametrize("policy", POLICIES, ids=["help late", "at once"])
@pytest.mark.parametrize(
    ("kind", "transport", "roll"),
    [
        (FakeTriton, GrpcTransport, restart),
        (FakeTriton, GrpcTransport, restart_with_a_new_version_number),
        (FakeTriton, GrpcTransport, reload),
        (HttpTriton, HttpTransport, restart_with_a_new_version_number),
        (HttpTriton, HttpTransport, reload),
    ],
)
async def test_one_server_after_another(
    kind: type[FakeTriton], transport: Any, roll: Callable[[FakeTriton], Any], policy: Policy
) -> None:
    servers = one_each_of(kind, OLD)
    seen: list[Group] = []
    stop = asyncio.Event()

    async def ask(client: CodedClient) -> None:
        while not stop.is_set():
            seen.append(build_of(await client.infer({"input": BATCH}, deadline=60.0)))
            await asyncio.sleep(0.001)

    options: dict[str, Any] = {"policy": policy, "limits": QUICK, "make_transport": transport}
    async with started(*servers) as addresses, CodedClient(addresses, **options) as client:
        users = [asyncio.create_task(ask(client)) for _ in range(4)]
        await eventually(lambda: len(seen) > 8)
        for server in servers:
            await roll(server)
            await eventually(lambda server=server: holds(client, server, NEW))  # type: ignore[misc]
            count = len(seen)
            await eventually(lambda count=count: len(seen) > count + 8)  # type: ignore[misc]
        stop.set()
        await asyncio.gather(*users)
        assert client.group == NEW
        assert seen[0] == OLD and seen[-1] == NEW
        turn = seen.index(NEW)
        assert seen[turn + len(users) :].count(OLD) == 0, "it turns once, but for requests that were under way"


async def test_the_new_build_is_used_only_when_it_can_be_decoded_and_more_of_it_is_there() -> None:
    servers = one_each(OLD)
    async with started(*servers) as addresses, CodedClient(addresses, limits=OFTEN) as client:
        for count, expected in enumerate([OLD, NEW, NEW, NEW]):
            await reload(servers[count])
            await ask_until(client, lambda _, count=count: holds(client, servers[count], NEW))  # type: ignore[misc]
            await ask_until(client, lambda answers, expected=expected: build_of(answers) == expected)  # type: ignore[misc]


async def test_a_model_that_is_replaced_in_silence_is_found_at_the_interval() -> None:
    servers = one_each(OLD)
    async with started(*servers) as addresses, CodedClient(addresses, limits=OFTEN) as client:
        for server in servers:
            server.group = NEW  # same connection, same version number
        await ask_until(client, lambda _: client.group == NEW)
        assert build_of(await client.infer({"input": BATCH})) == NEW


async def test_the_load_stays_with_the_build_that_more_servers_hold() -> None:
    replicas = [FakeTriton(OLD, [member.name for member in OLD.members]) for _ in range(4)]
    async with started(*replicas) as addresses, CodedClient(addresses, limits=OFTEN) as client:
        for count, expected in enumerate([OLD, NEW, NEW]):
            await reload(replicas[count])
            await ask_until(client, lambda _, count=count: holds(client, replicas[count], NEW))  # type: ignore[misc]
            await ask_until(client, lambda _, expected=expected: client.group == expected)  # type: ignore[misc]


async def test_a_request_ends_on_the_build_that_it_began_with() -> None:
    servers = one_each(OLD)
    servers[1].hold.clear()
    policy = Policy(OnlyWhenDown())
    async with started(*servers) as addresses, CodedClient(addresses, policy=policy, limits=OFTEN) as client:
        request = asyncio.create_task(client.infer({"input": BATCH}))
        await eventually(lambda: servers[0].answered == servers[1].asked == 1)
        for server in (servers[2], servers[3]):
            await reload(server)
        await turned(client)
        servers[1].hold.set()
        assert build_of(await request) == OLD


async def test_a_request_whose_build_is_gone_begins_again_on_the_new_one() -> None:
    servers = one_each(OLD)
    servers[0].hold.clear()
    servers[1].hold.clear()
    policy = Policy(OnlyWhenDown())
    async with started(*servers) as addresses, CodedClient(addresses, policy=policy, limits=OFTEN) as client:
        request = asyncio.create_task(client.infer({"input": BATCH}))
        await lose_the_old_build(client, servers)
        answers = await request
        assert build_of(answers) == NEW
        assert {answer.source for answer in answers.values()} == {Source.DECODED}


async def test_a_request_survives_that_the_servers_of_its_second_attempt_are_replaced_too() -> None:
    servers = one_each(OLD)
    for server in servers:
        server.hold.clear()
    policy = Policy(OnlyWhenDown())
    async with started(*servers) as addresses, CodedClient(addresses, policy=policy, limits=OFTEN) as client:
        request = asyncio.create_task(client.infer({"input": BATCH}, deadline=60.0))
        await lose_the_old_build(client, servers)
        await eventually(lambda: servers[2].asked == servers[3].asked == 1)
        for server in (servers[2], servers[3]):
            server.hold.set()
            await server.stop()
            await server.start()
        assert build_of(await request) == NEW


async def test_a_request_that_brings_servers_down_does_not_go_on_for_ever() -> None:
    servers = one_each(OLD)

    async def fall(server: FakeTriton) -> None:
        await server.stop()
        await server.start()

    def falling(server: FakeTriton) -> Any:
        async def reply(batch: Any, context: Any) -> Any:
            fallen.append(asyncio.create_task(fall(server)))
            await asyncio.sleep(60.0)

        return reply

    fallen: list[asyncio.Task[None]] = []
    async with started(*servers) as addresses, CodedClient(addresses, limits=OFTEN) as client:
        for server in servers:
            server.reply = falling(server)
        with pytest.raises(UndecodableError, match="too many members failed"):
            await client.infer({"input": BATCH}, deadline=60.0)
        assert sum(server.asked for server in servers) <= 4 * len(servers)
        await asyncio.gather(*fallen)


class ReplacedMeanwhile(FakeTriton):
    """Takes the new build, under a new version number each time, while its models' configurations are read."""

    times = 1

    async def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: N802 - the protocol's name
        if self.times:
            self.times -= 1
            self.group = NEW
            self.model_versions = {"a": (str(9 - self.times),)}
        return await super().ModelConfig(request, context)


async def test_what_was_read_while_a_model_was_replaced_is_read_again() -> None:
    server = ReplacedMeanwhile(OLD, ["a"])
    async with started(server) as (address,):
        transport = GrpcTransport(address, TransportOptions())
        report = await ask(transport, {})
        assert [(item.generation, item.version) for item in report.served] == [(NEW.generation, "9")] and report.ready
        server.times = 3
        with pytest.raises(TransportError, match="replaced while they were looked up, 3 times in a row: a"):
            await ask(transport, {})
        await transport.close()


class LoadsMore(FakeTriton):
    """Has one more version of its model whenever it is asked for its index."""

    async def RepositoryIndex(self, request: Any, context: Any) -> Any:  # noqa: N802 - the protocol's name
        versions = self.model_versions.get("a", ("1",))
        self.model_versions = {"a": (*versions, str(len(versions) + 1))}
        return await super().RepositoryIndex(request, context)


async def test_versions_that_are_loaded_beside_the_one_asked_for_change_nothing() -> None:
    async with started(LoadsMore(NEW, ["a"])) as (address,):
        transport = GrpcTransport(address, TransportOptions())
        report = await ask(transport, {"a": "2"})
        assert [item.version for item in report.served] == ["2"]
        await transport.close()


async def test_a_server_with_another_kind_of_build_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    servers = one_each(OLD)
    async with started(*servers) as addresses, CodedClient(addresses, limits=OFTEN) as client:
        servers[2].group, servers[2].members = make_group(), ["coded_0"]  # of a group with three members
        await ask_until(client, lambda _: "with other models, inputs or outputs; connect anew" in caplog.text)
        servers[0].reply = aborting("INTERNAL", "out of memory")
        assert build_of(await client.infer({"input": BATCH})) == OLD


WIRES = [(FakeTriton, GrpcTransport), (HttpTriton, HttpTransport)]


@pytest.mark.parametrize(("kind", "transport"), WIRES)
async def test_a_server_that_was_replaced_while_nobody_asked_is_not_decoded_with_the_others(
    kind: type[FakeTriton], transport: Any
) -> None:
    servers = one_each_of(kind, OLD)
    options: dict[str, Any] = {"limits": QUICK, "make_transport": transport}
    async with started(*servers) as addresses, CodedClient(addresses, **options) as client:
        assert build_of(await client.infer({"input": BATCH})) == OLD
        await servers[0].stop()
        servers[0].group = NEW  # under the same version number
        await servers[0].start()
        servers[1].reply = aborting("INTERNAL", "out of memory")  # so that there is something to decode
        await asyncio.sleep(0.05)
        for _ in range(10):
            assert build_of(await client.infer({"input": BATCH})) == OLD


@pytest.mark.parametrize(("kind", "transport"), WIRES)
async def test_a_connection_that_was_lost_while_nobody_asked_costs_no_request(
    kind: type[FakeTriton], transport: Any
) -> None:
    servers = one_each_of(kind, OLD)
    options: dict[str, Any] = {"limits": QUICK, "make_transport": transport}
    async with started(*servers) as addresses, CodedClient(addresses, **options) as client:
        assert build_of(await client.infer({"input": BATCH})) == OLD
        for server in servers:
            await server.stop()
            server.group = NEW
            await server.start()
        await asyncio.sleep(0.05)
        assert build_of(await client.infer({"input": BATCH})) == NEW
