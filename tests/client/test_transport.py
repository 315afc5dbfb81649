from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from tritonclient.utils import deserialize_bytes_tensor

from coin_export.client import RequestOptions, TransportOptions
from coin_export.client.transport_grpc import GrpcTransport
from coin_export.errors import TransportError, UserError
from tests.client.fake_triton import PIXELS, FakeTriton, aborting, make_group, started, weights_of

GROUP = make_group()
BATCH = np.ones((1, PIXELS), np.float32)
PLAIN = RequestOptions()


async def test_an_answer_comes_as_arrays_by_name() -> None:
    async with started(FakeTriton(GROUP, ["a"])) as (address,):
        transport = GrpcTransport(address, TransportOptions())
        encoded = transport.encode({"input": BATCH}, {"input": "FP32"})
        outputs, version = await transport.infer("a", encoded, ["logits", "missing"], PLAIN)
        assert list(outputs) == ["logits"] and version == "1"
        np.testing.assert_array_equal(outputs["logits"], BATCH @ weights_of(GROUP, "a"))
        assert await transport.ready()
        assert await transport.model_index() == {"a": ("1",)}
        await transport.close()


async def test_the_parts_of_a_request_make_up_one_message() -> None:
    server = FakeTriton(GROUP, ["a"])
    texts = np.array([["two", "words"], ["\u00e9", ""]], dtype=object)
    async with started(server) as (address,):
        transport = GrpcTransport(address, TransportOptions())
        inputs = {"input": np.asfortranarray(np.arange(2 * PIXELS, dtype=np.float32).reshape(2, PIXELS)), "tags": texts}
        encoded = transport.encode(inputs, {"input": "FP32", "tags": "BYTES"})
        await transport.infer("a", encoded, ["logits", "missing"], RequestOptions("seven", priority=3), "12")
        await transport.close()
    request = server.request
    assert (request.model_name, request.model_version, request.id) == ("a", "12", "seven")
    assert [(tensor.name, tensor.datatype, list(tensor.shape)) for tensor in request.inputs] == [
        ("input", "FP32", [2, PIXELS]),
        ("tags", "BYTES", [2, 2]),
    ]
    assert [tensor.name for tensor in request.outputs] == ["logits", "missing"]
    numbers, words = request.raw_input_contents
    np.testing.assert_array_equal(np.frombuffer(numbers, np.float32).reshape(2, PIXELS), inputs["input"])
    assert [text.decode() for text in deserialize_bytes_tensor(words)] == texts.ravel().tolist()
    assert request.parameters["priority"].uint64_param == 3


@pytest.mark.parametrize("compression", ["gzip", "deflate"])
async def test_headers_and_compression_pass_through(compression: Any) -> None:
    server = FakeTriton(GROUP, ["a"])
    async with started(server) as (address,):
        options = TransportOptions(headers={"authorization": "Bearer secret"}, compression=compression)
        transport = GrpcTransport(address, options)
        await transport.infer("a", transport.encode({"input": BATCH}, {"input": "FP32"}), ["logits"], PLAIN)
        await transport.close()
    assert server.headers["authorization"] == "Bearer secret"
    assert "secret" not in repr(options)


async def test_channel_arguments_pass_through() -> None:
    async with started(FakeTriton(GROUP, ["a"])) as (address,):
        transport = GrpcTransport(address, TransportOptions(channel_args={"grpc.max_send_message_length": 8}))
        with pytest.raises(TransportError, match="RESOURCE_EXHAUSTED"):
            await transport.infer("a", transport.encode({"input": BATCH}, {"input": "FP32"}), ["logits"], PLAIN)
        await transport.close()


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="Linux only")
async def test_a_peer_that_vanished_is_given_up_by_the_kernel_and_not_by_pings() -> None:
    async with started(FakeTriton(GROUP, ["a"])) as (address,):
        transport = GrpcTransport(address, TransportOptions())
        await transport.server_metadata()
        assert user_timeouts_ms(int(address.rpartition(":")[2])) == [30_000]
        await transport.close()


def user_timeouts_ms(port: int) -> list[int]:
    """How long unacknowledged data may stay on this process's connections to a port."""
    found = []
    for connection in psutil.Process().net_connections("tcp"):
        if connection.raddr and connection.raddr.port == port:
            with socket.socket(fileno=os.dup(connection.fd)) as copy:
                found.append(copy.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT))
    return found


async def test_errors_name_server_model_and_cause() -> None:
    server = FakeTriton(GROUP, ["a"])
    server.reply = aborting("INVALID_ARGUMENT", "unexpected shape")
    async with started(server) as (address,):
        transport = GrpcTransport(address, TransportOptions())
        with pytest.raises(TransportError) as caught:
            await transport.infer("a", transport.encode({"input": BATCH}, {"input": "FP32"}), ["logits"], PLAIN)
        assert str(caught.value) == f"server {address}, model 'a': INVALID_ARGUMENT: unexpected shape"
        assert caught.value.address == address
        await transport.close()
        with pytest.raises(TransportError, match=r"UsageError: Channel is closed"):
            await transport.ready()


async def test_certificates_that_cannot_be_read_are_reported(tmp_path: Path) -> None:
    missing = TransportOptions(ssl=True, root_certificates=str(tmp_path / "missing.pem"))
    with pytest.raises(TransportError, match=r"the channel cannot be made: .*missing\.pem"):
        GrpcTransport("127.0.0.1:1", missing)


async def test_a_server_is_not_cancelled_while_its_version_is_unknown() -> None:
    server = FakeTriton(GROUP, ["a"], version="2.60.0")
    async with started(server) as (address,):
        transport = GrpcTransport(address, TransportOptions())
        assert transport.version is None and not transport.may_cancel
        assert await transport.server_metadata() == "2.60.0"
        assert transport.version == "2.60.0" and transport.may_cancel
        server.reply = aborting("UNAVAILABLE", "shutting down")
        with pytest.raises(TransportError, match="shutting down"):
            await transport.infer("a", transport.encode({"input": BATCH}, {"input": "FP32"}), ["logits"], PLAIN)
        assert transport.version is None and not transport.may_cancel
        await transport.close()


@pytest.mark.parametrize("option", [{"response_compression": "gzip"}, {"query_params": {"tenant": "t"}}])
def test_what_only_http_has_is_refused(option: dict[str, Any]) -> None:
    (name,) = option
    with pytest.raises(UserError, match=f"{name} .* is HTTP's; leave it out over gRPC"):
        GrpcTransport("127.0.0.1:1", TransportOptions(**option))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"headers": {"Bad Name": "x"}}, "header 'Bad Name'"),
        ({"headers": {"name": 1}}, "header 'name'"),
        ({"compression": "zstd"}, "compression 'zstd' is unknown"),
        ({"response_compression": "br"}, "response_compression 'br' is unknown"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TransportOptions(**options)
