from __future__ import annotations

import asyncio
import json
import logging
import socket
from dataclasses import replace

import numpy as np
import pytest

from coin_export.client import AfterGrace, CodedClient, Limits, Policy, Source
from coin_export.code.linear import LinearCode
from coin_export.code.manifest import Group
from coin_export.errors import DiscoveryError
from tests.client.fake_triton import (
    PIXELS,
    FakeTriton,
    ask_until,
    edited,
    eventually,
    make_group,
    one_each,
    renamed,
    started,
)

GROUP = make_group()
BATCH = np.ones((1, PIXELS), np.float32)
PATIENT = Policy(decode=AfterGrace(at_least_s=30.0))
QUICK = Limits(discovery_s=1.0, lookup_interval_s=0.01, close_s=0.05)
OF_ANOTHER_RELEASE = json.dumps({**json.loads(GROUP.to_json("a")), "schema_version": 99})


def refused_address() -> str:
    """An address at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


async def discover(addresses: list[str], group: str | None = None) -> Group:
    async with CodedClient(addresses, group=group, limits=QUICK) as client:
        return client.group


async def test_everything_is_learned_from_the_addresses() -> None:
    servers = [FakeTriton(GROUP, ["a", "b"], "2.51.0"), FakeTriton(GROUP, ["coded_0", "a"], "2.60.0")]
    async with started(*servers) as (first, second), CodedClient([first, second, first]) as client:
        assert client.group == GROUP
        assert client.servers == {"a": (first, second), "b": (first,), "coded_0": (second,)}
        assert client.server_versions == {first: "2.51.0", second: "2.60.0"}


async def test_one_server_may_serve_all_members_and_models_of_others() -> None:
    server = FakeTriton(GROUP, [*"ab", "coded_0", "somebody_elses"])
    async with started(server) as addresses, CodedClient(addresses) as client:
        assert (await client.infer({"input": BATCH}))["a"].source is Source.DIRECT


@pytest.mark.parametrize(
    ("addresses", "message"),
    [([], "one 'host:port' per server"), ("127.0.0.1:8001", "one 'host:port' per server"),
     (["http://127.0.0.1:8001"], "is not 'host:port'"), (["127.0.0.1"], "is not 'host:port'")],
)  # fmt: skip
def test_addresses_are_checked(addresses: list[str], message: str) -> None:
    with pytest.raises(DiscoveryError, match=message):
        CodedClient(addresses)


async def test_no_server_reachable_lists_each_with_its_cause() -> None:
    mute = FakeTriton(GROUP, ["a"])
    mute.metadata_hold.clear()
    refused = refused_address()
    async with started(mute) as (silent,):
        with pytest.raises(DiscoveryError, match="none of the 2 servers could be asked") as caught:
            await discover([refused, silent])
        assert f"{silent}: it did not answer within 1 s" in str(caught.value)
        assert refused in str(caught.value) and "Connection refused" in str(caught.value)


async def test_a_server_that_never_answers_is_neither_waited_for_nor_given_a_deadline() -> None:
    servers = one_each(GROUP)
    servers[1].metadata_hold.clear()
    async with started(*servers) as addresses, CodedClient(addresses, limits=QUICK) as client:
        assert (await client.infer({"input": BATCH}))["b"].source is Source.DECODED
        assert not servers[1].had_deadline
        servers[1].metadata_hold.set()  # the answer that was abandoned comes late, and counts
        await ask_until(client, lambda answers: answers["b"].source is Source.DIRECT)
        assert servers[1].metadata_calls == 1


async def test_servers_without_a_group_say_how_to_build_one() -> None:
    server = FakeTriton(GROUP, ["resnet", "bert"])
    async with started(server) as addresses:
        with pytest.raises(DiscoveryError, match="no server serves a model of a coded group") as caught:
            await discover(addresses)
        assert "resnet, bert" in str(caught.value) and "coin-export build" in str(caught.value)


async def test_several_groups_are_listed_and_one_can_be_named() -> None:
    other = renamed(make_group(salt="other"), "letters")
    servers = [*one_each(GROUP), *one_each(other)]
    async with started(*servers) as addresses:
        with pytest.raises(DiscoveryError, match=r"name one of \['digits', 'letters'\] as `group`"):
            await discover(addresses)
        assert await discover(addresses, "letters") == other
        with pytest.raises(DiscoveryError, match=r"no server serves group 'faces'; the groups served are \['digits'"):
            await discover(addresses, "faces")


async def test_different_builds_are_refused_with_who_holds_which() -> None:
    new, newer = make_group(salt="new"), make_group(salt="newer")
    servers = [FakeTriton(GROUP, ["a"]), FakeTriton(new, ["b"]), FakeTriton(newer, ["coded_0"])]
    async with started(*servers) as addresses:
        with pytest.raises(DiscoveryError, match=r"different builds of group 'digits'.* enough members") as caught:
            await discover(addresses)
        for member, address in zip(["a", "b", "coded_0"], addresses, strict=True):
            assert f"{member} on {address}" in str(caught.value)


async def test_builds_that_cannot_take_each_other_s_place_are_refused() -> None:
    other = make_group(LinearCode.from_rows([[1, 1], [1, 2]]), salt="new")
    servers = [*one_each(GROUP), FakeTriton(other, ["coded_1"])]
    async with started(*servers) as addresses:
        with pytest.raises(DiscoveryError, match="different models, inputs or outputs") as caught:
            await discover(addresses)
        assert f"coded_1 on {addresses[3]}" in str(caught.value)


async def test_a_member_that_no_server_serves_is_named() -> None:
    async with started(*one_each(GROUP)[:2]) as addresses:
        with pytest.raises(DiscoveryError, match="coded_0 served by none of the servers") as caught:
            await discover(addresses)
        assert f"{addresses[0]}: a; {addresses[1]}: b" in str(caught.value)


async def test_an_unreachable_server_is_tolerated_and_used_once_it_is_there(caplog: pytest.LogCaptureFixture) -> None:
    servers = one_each(GROUP)
    servers[2].port = int(refused_address().rpartition(":")[2])
    async with started(*servers[:2]) as addresses:
        everybody = [*addresses, servers[2].address]
        async with CodedClient(everybody, limits=QUICK, policy=PATIENT) as client:
            assert f"server {servers[2].address} counts as down" in caplog.text
            assert "model coded_0 is served by none of the servers reached" in caplog.text
            assert (await client.infer({"input": BATCH}))["a"].source is Source.DIRECT
            async with started(servers[2]):
                await ask_until(client, lambda _: servers[2].asked > 0)


async def test_too_few_reachable_members_are_an_error() -> None:
    async with started(FakeTriton(GROUP, ["a"])) as addresses:
        with pytest.raises(DiscoveryError, match="only 1 of its 3 members can be reached, 2 are needed") as caught:
            await discover([*addresses, refused_address()])
        assert "missing: b, coded_0" in str(caught.value) and "Connection refused" in str(caught.value)


async def test_a_server_that_still_loads_is_looked_up_again() -> None:
    servers = one_each(GROUP)
    servers[0].is_ready, servers[0].members = False, []
    async with started(*servers) as addresses, CodedClient(addresses, limits=QUICK, policy=PATIENT) as client:
        assert (await client.infer({"input": BATCH}))["a"].source is Source.DECODED
        servers[0].is_ready, servers[0].members = True, ["a"]
        await ask_until(client, lambda answers: answers["a"].source is Source.DIRECT)


async def test_a_server_that_has_loaded_some_of_its_models_is_looked_up_until_it_is_ready() -> None:
    server = FakeTriton(GROUP, ["a", "coded_0"])
    server.is_ready = False
    async with started(server) as addresses, CodedClient(addresses, limits=QUICK, policy=PATIENT) as client:
        assert (await client.infer({"input": BATCH}))["b"].source is Source.DECODED
        server.members.append("b")
        await ask_until(client, lambda answers: answers["b"].source is Source.DIRECT)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not a group's description"),
        (edited(GROUP, "a", members=[]), "not a group's description|must be one of them"),
        (GROUP.to_json("b"), "model 'a' was built as 'b'"),
    ],
)
async def test_a_description_that_cannot_be_read_is_reported(text: str, message: str) -> None:
    server = FakeTriton(GROUP, ["a", "b", "coded_0"])
    server.configs["a"] = text
    async with started(server) as addresses:
        with pytest.raises(DiscoveryError, match=message):
            await discover(addresses)


async def test_descriptions_of_another_release_are_reported_when_there_is_no_other_group() -> None:
    server = FakeTriton(GROUP, ["a", "b", "coded_0"])
    server.configs = dict.fromkeys(server.members, OF_ANOTHER_RELEASE)
    async with started(server) as addresses:
        with pytest.raises(DiscoveryError, match="no server serves a model of a coded group") as caught:
            await discover(addresses)
        assert f"Models left out: server {addresses[0]}, model 'a': the group's description has schema version 99" in (
            str(caught.value)
        )
        with pytest.raises(DiscoveryError, match=r"no server serves a model of .*schema version 99"):
            await discover(addresses, "digits")


@pytest.mark.parametrize(
    "text",
    ["{", OF_ANOTHER_RELEASE, renamed(GROUP, "letters").to_json("a"), None],
    ids=["unreadable", "of another release", "renamed", "unloaded"],
)
async def test_a_strange_model_does_the_group_no_harm(text: str | None) -> None:
    servers = one_each(GROUP)

    def load_strange_model(server: FakeTriton) -> None:
        server.members.insert(0, "strange")
        if text is None:
            server.unloaded.add("strange")
        else:
            server.configs["strange"] = text

    load_strange_model(servers[0])
    limits = replace(QUICK, rediscovery_interval_s=0.01)
    async with started(*servers) as addresses, CodedClient(addresses, policy=PATIENT, limits=limits) as client:
        assert (await client.infer({"input": BATCH}))["a"].source is Source.DIRECT
        load_strange_model(servers[1])
        looked_up = servers[1].metadata_calls
        await ask_until(client, lambda _: servers[1].metadata_calls > looked_up + 1)
        answers = await client.infer({"input": BATCH})
        assert [answer.source for answer in answers.values()] == [Source.DIRECT, Source.DIRECT]


async def test_a_model_that_is_unloaded_during_the_look_up_is_looked_up_again(caplog: pytest.LogCaptureFixture) -> None:
    servers = one_each(GROUP)
    servers[0].unloaded.add("a")
    async with started(*servers) as addresses, CodedClient(addresses, limits=QUICK, policy=PATIENT) as client:
        assert (await client.infer({"input": BATCH}))["a"].source is Source.DECODED
        assert f"Models left out: server {addresses[0]}, configuration of model 'a': NOT_FOUND" in caplog.text
        servers[0].unloaded.clear()
        await ask_until(client, lambda answers: answers["a"].source is Source.DIRECT)


@pytest.mark.parametrize("where", ["inputs", "outputs"])
async def test_datatypes_that_cannot_be_carried_are_refused(where: str) -> None:
    datatype = "BF16" if where == "inputs" else "INT64"
    tensors = tuple(replace(tensor, dtype=datatype) for tensor in getattr(GROUP, where))
    group = replace(GROUP, inputs=tensors) if where == "inputs" else replace(GROUP, outputs=tensors)
    async with started(*one_each(group)) as addresses:
        with pytest.raises(DiscoveryError, match=f"has datatype {datatype}"):
            await discover(addresses)


async def test_the_smallest_batch_limit_holds() -> None:
    servers = one_each(GROUP)
    servers[0].max_batch_size, servers[1].max_batch_size = 4, 0
    async with started(*servers) as addresses, CodedClient(addresses) as client:
        await client.infer({"input": np.ones((4, PIXELS), np.float32)})
        with pytest.raises(ValueError, match="max_batch_size of 4"):
            await client.infer({"input": np.ones((5, PIXELS), np.float32)})


async def test_a_cancelled_connect_leaves_nothing_behind() -> None:
    server = FakeTriton(GROUP, ["a"])
    server.metadata_hold.clear()
    async with started(server) as addresses:
        client = CodedClient(addresses, limits=Limits(close_s=0.01))
        connecting = asyncio.create_task(client.connect())
        await eventually(lambda: server.metadata_calls == 1)
        connecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connecting


async def test_a_group_with_more_coded_models_survives_as_many_unreachable_servers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    group = make_group(LinearCode.from_rows([[1, 1], [1, 2]]))
    async with started(*one_each(group)[2:]) as addresses:
        everybody = [refused_address(), refused_address(), *addresses]
        async with CodedClient(everybody, limits=QUICK) as client:
            answers = await client.infer({"input": BATCH})
            assert [answer.source for answer in answers.values()] == [Source.DECODED, Source.DECODED]
            assert client.servers["a"] == ()
    assert caplog.text.count("counts as down") == 2
