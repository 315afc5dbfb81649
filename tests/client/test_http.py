"""The client over HTTP: the same answers, the same erasures, and calls that are cancelled for real."""

from __future__ import annotations

import asyncio
from functools import partialmethod
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest

from coin_export.client import (
    AfterGrace,
    AsSoonAsDecodable,
    AtOnce,
    CodedClient,
    HttpTransport,
    Limits,
    OnlyWhenDown,
    Policy,
    Source,
    SyncCodedClient,
    TransportOptions,
)
from coin_export.client.transport import RefusedError, RequestOptions
from coin_export.errors import DiscoveryError, TransportError, UndecodableError, UserError
from tests.client.fake_http import HttpTriton
from tests.client.fake_triton import (
    CLASSES,
    PIXELS,
    Reply,
    aborting,
    ask_until,
    eventually,
    make_group,
    one_each_of,
    replying,
    response_of,
    started,
    weights_of,
)
from tests.client.test_sync import serving

GROUP = make_group()
BATCH = np.ones((2, PIXELS), np.float32)
PATIENT = Policy(OnlyWhenDown(), AfterGrace(at_least_s=30.0))
SOON = Policy(AtOnce(), AsSoonAsDecodable())
QUICK = Limits(discovery_s=1.0, lookup_interval_s=0.01, close_s=0.05)
PLAIN = RequestOptions()


def one_each(version: str = "2.51.0") -> list[HttpTriton]:
    return one_each_of(HttpTriton, GROUP, version=version)


def client_of(addresses: list[str], policy: Policy = PATIENT, **options: Any) -> CodedClient:
    return CodedClient(addresses, policy=policy, make_transport=HttpTransport, limits=QUICK, **options)


async def test_everything_is_learned_and_answered_as_over_grpc() -> None:
    servers = one_each()
    async with started(*servers) as addresses, client_of(addresses) as client:
        assert client.group == GROUP and set(client.server_versions.values()) == {"2.51.0"}
        answers = await client.infer({"input": BATCH}, request_id="r7", priority=1, parameters={"flag": True})
        for name, answer in answers.items():
            assert answer.source is Source.DIRECT and answer.model_version == "1"
            np.testing.assert_array_equal(answer.as_numpy("logits"), BATCH @ weights_of(GROUP, name))
        assert servers[0].request.id == "r7" and servers[0].http_parameters == {"priority": 1, "flag": True}
        assert servers[2].asked == 0


@pytest.mark.parametrize(
    "reply",
    [
        aborting("INTERNAL", "out of memory"),
        aborting("UNAVAILABLE", "the queue is full"),
        replying(response_of(np.full((2, CLASSES), np.nan, np.float32))),
        replying(response_of(np.zeros((2, CLASSES), np.float32), name="other")),
        replying(response_of(np.zeros(5, np.int8), "NONSENSE")),
    ],
)
async def test_an_unusable_answer_is_decoded(reply: Reply) -> None:
    servers = one_each()
    servers[0].reply = reply
    async with started(*servers) as addresses, client_of(addresses) as client:
        answers = await client.infer({"input": BATCH})
        assert answers["a"].source is Source.DECODED
        np.testing.assert_allclose(answers["a"].outputs["logits"], BATCH @ weights_of(GROUP, "a"), rtol=1e-4)


@pytest.mark.parametrize(
    "body",
    [b"", b"\x00\xff", b"[]", b"{}", b'{"outputs": 3}', b'{"outputs": [{"name": "logits"}]}'],
)
async def test_garbage_is_decoded(body: bytes) -> None:
    servers = one_each()
    servers[0].body = body
    async with started(*servers) as addresses, client_of(addresses) as client:
        assert (await client.infer({"input": BATCH}))["a"].source is Source.DECODED


async def test_servers_that_close_every_connection_are_used_all_the_same() -> None:
    servers = one_each()
    for server in servers:
        server.keeps_alive = False
    async with started(*servers) as addresses, client_of(addresses) as client:
        for _ in range(3):
            assert (await client.infer({"input": BATCH}))["a"].source is Source.DIRECT
        assert [server.metadata_calls for server in servers] == [1, 1, 1], "looked up no more than others"


async def test_losers_are_cancelled_for_real_on_every_version() -> None:
    servers = one_each(version="2.40.0")
    servers[0].hold.clear()
    async with started(*servers) as addresses, client_of(addresses, SOON) as client:
        assert (await client.infer({"input": BATCH}))["a"].source is Source.DECODED
        await eventually(lambda: servers[0].cancelled == 1)
        servers[0].hold.set()
        await ask_until(client, lambda answers: len(answers) == 2)


async def test_cancelled_losers_put_no_server_in_doubt() -> None:
    servers = one_each()
    servers[0].hold.clear()

    async def lose(client: CodedClient) -> None:
        """Ask; the call to the first server is cancelled after it got there."""
        before = servers[0].asked
        servers[1].hold.clear()
        request = asyncio.create_task(client.infer({"input": BATCH}))
        await eventually(lambda: servers[0].asked > before)
        servers[1].hold.set()
        assert (await request)["a"].source is Source.DECODED
        await eventually(lambda: servers[0].cancelled == servers[0].asked)

    async with started(*servers) as addresses, client_of(addresses, SOON) as client:
        await lose(client)
        await lose(client)
        assert [server.metadata_calls for server in servers] == [1, 1, 1]


async def test_idle_times_put_no_server_in_doubt(monkeypatch: pytest.MonkeyPatch) -> None:
    brief = partialmethod(aiohttp.TCPConnector.__init__, keepalive_timeout=0.01)  # in place of 15 seconds
    monkeypatch.setattr(aiohttp.TCPConnector, "__init__", brief)
    servers = one_each()
    async with started(*servers) as addresses, client_of(addresses) as client:
        for _ in range(3):
            assert (await client.infer({"input": BATCH}))["a"].source is Source.DIRECT
            # Those of the calls are closed.
            await eventually(lambda: [server.connections for server in servers] == [1, 1, 1])
        assert [server.metadata_calls for server in servers] == [1, 1, 1]


async def test_a_server_that_closes_its_connections_is_in_doubt_whatever_this_side_has_closed_before() -> None:
    server = HttpTriton(GROUP, ["a"])
    async with started(server) as (address,):
        transport = HttpTransport(address, TransportOptions())
        assert not transport.connected
        await transport.server_metadata()
        server.hold.clear()
        encoded = transport.encode({"input": BATCH}, {"input": "FP32"})
        call = asyncio.create_task(transport.infer("a", encoded, ["logits"], PLAIN))
        await eventually(lambda: server.asked == 1)
        call.cancel()
        await eventually(lambda: server.cancelled == 1)
        assert transport.connected
        await server.stop()
        await server.start()
        await eventually(lambda: not transport.connected)
        await transport.close()


async def test_a_server_that_died_and_came_back_is_used_again() -> None:
    servers = one_each()
    async with started(*servers) as addresses, client_of(addresses) as client:
        await servers[0].stop()
        await ask_until(client, lambda answers: answers["a"].source is Source.DECODED)
        await servers[0].start()
        await ask_until(client, lambda answers: answers["a"].source is Source.DIRECT)


async def test_too_few_answers_by_the_deadline_are_an_error() -> None:
    servers = one_each()
    for server in servers[:2]:
        server.hold.clear()
    async with started(*servers) as addresses, client_of(addresses, SOON) as client:
        with pytest.raises(UndecodableError, match="the deadline passed"):
            await client.infer({"input": BATCH}, deadline=0.05)


@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
async def test_answers_are_compressed_only_when_that_is_asked_for(compression: Any) -> None:
    server = HttpTriton(GROUP, ["a"])
    async with started(server) as (address,):
        options = TransportOptions(response_compression=compression, query_params={"tenant": "t", "try": 2})
        transport = HttpTransport(address, options)
        encoded = transport.encode({"input": BATCH}, {"input": "FP32"})
        reply = await transport.infer("a", encoded, ["logits"], PLAIN)
        np.testing.assert_allclose(reply.outputs["logits"], BATCH @ weights_of(GROUP, "a"), rtol=1e-5)
        assert server.headers["accept-encoding"] == (compression or "identity")
        assert server.query == {"tenant": "t", "try": "2"}
        await transport.close()


async def test_headers_compression_and_errors() -> None:
    server = HttpTriton(GROUP, ["a"])
    async with started(server) as (address,):
        options = TransportOptions(headers={"authorization": "Bearer secret"}, compression="deflate")
        transport = HttpTransport(address, options)
        encoded = transport.encode({"input": BATCH}, {"input": "FP32"})
        reply = await transport.infer("a", encoded, ["logits", "missing"], RequestOptions(headers={"x-tenant": "t"}))
        assert list(reply.outputs) == ["logits"]
        assert server.headers["authorization"] == "Bearer secret" and server.headers["x-tenant"] == "t"
        server.reply = aborting("INVALID_ARGUMENT", "unexpected shape")
        with pytest.raises(RefusedError) as caught:
            await transport.infer("a", encoded, ["logits"], PLAIN)
        assert str(caught.value) == f"server {address}, model 'a': HTTP 400: unexpected shape"
        server.reply = aborting("PERMISSION_DENIED", "who are you")
        with pytest.raises(RefusedError, match="HTTP 403: who are you"):
            await transport.infer("a", encoded, ["logits"], PLAIN)
        await transport.server_metadata()
        assert transport.version == "2.51.0" and transport.may_cancel
        server.reply = aborting("UNAVAILABLE", "the queue is full")
        with pytest.raises(TransportError, match="HTTP 503"):
            await transport.infer("a", encoded, ["logits"], PLAIN)
        assert transport.version is None
        await transport.close()
        with pytest.raises(TransportError, match="closed"):
            await transport.ready()


async def test_a_server_that_speaks_something_else_is_reported() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"220 welcome\r\n")
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with pytest.raises(DiscoveryError, match="none of the 1 servers"):
        await client_of([f"127.0.0.1:{port}"]).connect()
    server.close()
    await server.wait_closed()


async def test_what_http_cannot_do_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="channel_args"):
        HttpTransport("127.0.0.1:1", TransportOptions(channel_args={"grpc.keepalive_time_ms": 1}))
    missing = TransportOptions(ssl=True, root_certificates=str(tmp_path / "missing.pem"))
    with pytest.raises(TransportError, match=r"missing\.pem.* cannot be read"):
        HttpTransport("127.0.0.1:1", missing)
    alone = TransportOptions(ssl=True, private_key=str(tmp_path / "key.pem"))
    with pytest.raises(TransportError, match=r"key\.pem.* cannot be read"):
        HttpTransport("127.0.0.1:1", alone)


def test_the_synchronous_face_speaks_http_too() -> None:
    with (
        serving(one_each) as (servers, addresses),
        SyncCodedClient(addresses, policy=PATIENT, make_transport=HttpTransport) as client,
    ):
        assert client.infer({"input": BATCH})["a"].source is Source.DIRECT
        servers[0].reply = aborting("INTERNAL", "out of memory")
        assert client.infer({"input": BATCH})["a"].source is Source.DECODED
