"""Servers that answer anything at all: the client counts an erasure or raises an error of its own, and nothing else.

Every warning is an error here, numpy's included, and a request that hangs fails the test by its deadline.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Iterator, Sequence
from contextlib import AsyncExitStack, suppress
from typing import Any, TypeVar

import grpc  # type: ignore[import-untyped]  # grpcio ships no type information
import numpy as np
import pytest
from aiohttp import web
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2, service_pb2_grpc

from coin_export.client import Answers, AtOnce, CodedClient, HttpTransport, Limits, Policy, Source
from coin_export.client.transport_grpc import GrpcTransport
from coin_export.code.manifest import PARAMETER_KEY, from_json
from coin_export.errors import ClientError, ManifestError, UndecodableError
from tests.client.fake_http import HttpTriton
from tests.client.fake_triton import (
    CLASSES,
    PIXELS,
    FakeTriton,
    make_group,
    one_each_of,
    response_of,
    started,
    weights_of,
)

T = TypeVar("T")

GROUP = make_group()
BATCH = np.ones((2, PIXELS), np.float32)
DEADLINE_S = 30.0
# No breaker: every answer is to be looked at. A look-up that hangs is not waited for.
LIMITS = Limits(misses_in_a_row=10**9, lookup_interval_s=3600.0, discovery_s=DEADLINE_S, close_s=0.1)
_LENGTH = "Inference-Header-Content-Length"


class Loop:
    """An event loop in which servers run, and a client that asks them."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._stack = AsyncExitStack()
        self.reported: list[object] = []
        self._loop.set_exception_handler(lambda loop, context: self.reported.append(context))

    def run(self, work: Awaitable[T]) -> T:
        return self._loop.run_until_complete(work)

    def serve(self, servers: Sequence[FakeTriton]) -> list[str]:
        return self.run(self._stack.enter_async_context(started(*servers)))

    def connect(self, addresses: list[str], wire: str) -> CodedClient:
        return self.run(self._stack.enter_async_context(client_of(addresses, wire)))

    def close(self) -> None:
        self.run(self._stack.aclose())
        self._loop.close()
        assert self.reported == []


def client_of(addresses: list[str], wire: str) -> CodedClient:
    transport = HttpTransport if wire == "http" else GrpcTransport
    return CodedClient(addresses, policy=Policy(AtOnce()), limits=LIMITS, make_transport=transport)


@pytest.fixture
def loop(caplog: pytest.LogCaptureFixture) -> Iterator[Loop]:
    caplog.set_level(logging.CRITICAL)  # gRPC logs every answer that it cannot read
    loop = Loop()
    yield loop
    loop.close()


def check(answers: Answers) -> None:
    """What is not our business is decoded rightly; what could be read looks as it should."""
    for name, answer in answers.items():
        array = answer.outputs["logits"]
        assert array.dtype == np.float32 and array.shape == (2, CLASSES) and np.isfinite(array).all()
        if answer.source is Source.DECODED:
            np.testing.assert_allclose(array, BATCH @ weights_of(GROUP, name), rtol=1e-4, atol=1e-5)


class RawTriton(FakeTriton):
    """Answers every inference request with the same bytes."""

    body = b""

    async def start(self) -> None:
        handler = grpc.unary_unary_rpc_method_handler(self._raw)
        self._server = grpc.aio.server(interceptors=[_Override(handler)], options=[("grpc.so_reuseport", 0)])
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()

    async def _raw(self, request: bytes, context: Any) -> bytes:
        return self.body


class _Override(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # untyped base
    def __init__(self, handler: Any) -> None:
        self._handler = handler

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        return self._handler if details.method.endswith("/ModelInfer") else await continuation(details)


class RawHttpTriton(HttpTriton):
    """Answers with bodies, headers and bytes as told.

    Attributes:
        by_path: bodies of the answers to questions.
        response: status, body and headers of the answer to an inference request.
        raw: what is sent in place of any HTTP response, before the connection is closed.
    """

    def __init__(self, members: Sequence[str]) -> None:
        super().__init__(GROUP, members)
        self.by_path: dict[str, bytes] = {}
        self.response: tuple[int, bytes, dict[str, str]] | None = None
        self.raw: bytes | None = None

    async def _infer(self, request: web.Request) -> web.Response:
        if self.raw is not None:
            await request.read()
            assert request.transport is not None
            request.transport.write(self.raw)
            request.transport.close()
        if self.response is None:
            return await super()._infer(request)
        status, body, headers = self.response
        return web.Response(status=status, body=body, headers=headers)

    async def _metadata(self, request: web.Request) -> web.Response:
        return self._told(request) or await super()._metadata(request)

    async def _index(self, request: web.Request) -> web.Response:
        return self._told(request) or await super()._index(request)

    async def _config(self, request: web.Request) -> web.Response:
        return self._told(request) or await super()._config(request)

    def _told(self, request: web.Request) -> web.Response | None:
        kind = request.path.rpartition("/")[2]
        return web.Response(body=self.by_path[kind]) if kind in self.by_path else None


names = st.sampled_from(["logits", "logits", "logits", "other", ""])
datatypes = st.sampled_from(
    ["FP32", "FP32", "FP32", "FP16", "FP64", "BF16", "INT8", "INT64", "BYTES", "BOOL", "NO", ""]
)
sizes = st.sampled_from([-(2**63), -1, 0, 1, 2, CLASSES, 2**31, 2**62, 2**63 - 1])
shapes = st.just([2, CLASSES]) | st.lists(sizes, max_size=4)
good = np.ones((2, CLASSES), np.float32).tobytes()
raws = (
    st.just(good)
    | st.binary(max_size=40)
    | st.integers(0, len(good)).map(lambda size: good[:size])
    | st.sampled_from([np.full(6, value, np.float32).tobytes() for value in (np.nan, np.inf, -np.inf)])
)


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """A response with any outputs, whole or damaged."""
    response = service_pb2.ModelInferResponse(model_name="m", model_version=draw(st.sampled_from(["1", "", "x"])))
    for _ in range(draw(st.integers(0, 2))):
        tensor = response.outputs.add(name=draw(names), datatype=draw(datatypes), shape=draw(shapes))
        if draw(st.booleans()):
            tensor.contents.bytes_contents.extend(draw(st.lists(st.binary(max_size=5), max_size=3)))
    response.raw_output_contents.extend(draw(st.lists(raws, max_size=3)))
    return draw(damaged(response.SerializeToString()))


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """Bytes as they are, cut off, changed in places, not UTF-8 any more, or replaced."""
    how = draw(st.sampled_from(["whole", "whole", "cut", "changed", "not text", "replaced"]))
    if how == "cut":
        return whole[: draw(st.integers(0, len(whole)))]
    if how == "changed" and whole:
        content = bytearray(whole)
        for _ in range(draw(st.integers(1, 4))):
            content[draw(st.integers(0, len(whole) - 1))] = draw(st.integers(0, 255))
        return bytes(content)
    if how == "not text":
        return whole.replace(b"logits", b"\xff\xfe\xfdits")
    return draw(st.binary(max_size=60)) if how == "replaced" else whole


def test_any_grpc_answer_is_an_answer_or_an_erasure(loop: Loop) -> None:
    servers = [RawTriton(GROUP, ["a"]), FakeTriton(GROUP, ["b"]), FakeTriton(GROUP, ["coded_0"])]
    client = loop.connect(loop.serve(servers), "grpc")
    servers[0].body = response_of(np.ones((2, CLASSES), np.float32)).SerializeToString()
    assert loop.run(client.infer({"input": BATCH}, deadline=DEADLINE_S))["a"].source is Source.DIRECT

    @settings(max_examples=150)
    @given(messages())
    @example(b"\n")  # no protobuf: gRPC hands over None
    def fuzz(body: bytes) -> None:
        servers[0].body = body
        check(loop.run(client.infer({"input": BATCH}, deadline=DEADLINE_S)))

    fuzz()


def test_grpc_answers_that_are_all_nonsense_raise_our_own_error(loop: Loop) -> None:
    servers = one_each_of(RawTriton, GROUP)
    client = loop.connect(loop.serve(servers), "grpc")

    @settings(max_examples=100)
    @given(st.lists(messages(), min_size=3, max_size=3))
    def fuzz(bodies: list[bytes]) -> None:
        for server, body in zip(servers, bodies, strict=True):
            server.body = body
        try:
            answers = loop.run(client.infer({"input": BATCH}, deadline=DEADLINE_S))
        except UndecodableError:
            return
        assert all(answer.outputs["logits"].shape == (2, CLASSES) for answer in answers.values())

    fuzz()


numbers = st.integers(-(10**6), 10**6) | st.sampled_from([2**63, 10**40, 1e300, 1e39, -0.5]) | st.floats()
scalars = st.none() | st.booleans() | numbers | st.text(max_size=5) | st.just("logits")
jsons = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)
parameters = st.fixed_dictionaries({}, optional={"binary_data_size": st.sampled_from([24, 0, -1, 12, 10**30]) | jsons})
tensors = st.fixed_dictionaries(
    {},
    optional={
        "name": names | jsons,
        "datatype": datatypes | jsons,
        "shape": shapes | jsons,
        "parameters": parameters | jsons,
        "data": st.lists(numbers, min_size=6, max_size=6) | jsons,
    },
)
whole_tensors = st.fixed_dictionaries(
    {
        "name": st.just("logits"),
        "datatype": datatypes,
        "shape": st.just([2, CLASSES]),
        "data": st.lists(numbers, min_size=6, max_size=6),
    }
)
headers_of_answers = st.fixed_dictionaries(
    {}, optional={"outputs": st.lists(tensors | whole_tensors, max_size=2) | jsons, "model_version": jsons}
)
encodings = st.sampled_from([{}, {}, {}, {"Content-Encoding": "gzip"}, {"Content-Encoding": "deflate"}])
statuses = st.sampled_from([200, 200, 200, 200, 201, 400, 404, 500, 503])


@st.composite
def http_answers(draw: st.DrawFn) -> tuple[int, bytes, dict[str, str]]:
    """Status, body and headers: JSON of about the right form, binary data, and a header's length that may be wrong."""
    header = json.dumps(draw(headers_of_answers | jsons)).encode()
    lengths = st.just(len(header)) | st.sampled_from([0, -1, 1, 10**6, 10**30])
    length = draw(lengths.map(str) | st.sampled_from(["", "many", "1.5"]) | st.none())
    body = draw(damaged(header + draw(raws | st.just(b""))))
    return draw(statuses), body, {**draw(encodings), **({} if length is None else {_LENGTH: length})}


def json_answer(datatype: str, data: list[float]) -> bytes:
    tensor = {"name": "logits", "datatype": datatype, "shape": [2, CLASSES], "data": data}
    return json.dumps({"outputs": [tensor]}).encode()


def test_any_http_answer_is_an_answer_or_an_erasure(loop: Loop) -> None:
    servers = [RawHttpTriton([member.name]) for member in GROUP.members]
    client = loop.connect(loop.serve(servers), "http")

    @settings(max_examples=200)
    @given(http_answers())
    @example((200, b"{}", {"Content-Encoding": "gzip"}))
    @example((200, b"{}", {"Content-Encoding": "deflate"}))
    @example((200, json_answer("FP32", [1e300] * 6), {}))
    @example((200, json_answer("FP32", [10**400] * 6), {}))
    @example((200, json_answer("INT8", [1000] * 6), {}))
    def fuzz(response: tuple[int, bytes, dict[str, str]]) -> None:
        servers[0].response = response
        check(loop.run(client.infer({"input": BATCH}, deadline=DEADLINE_S)))

    fuzz()


starts = st.sampled_from(
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n{",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
    ]
)
raw_http = st.binary(max_size=60) | st.tuples(starts, st.binary(max_size=20)).map(b"".join)


def test_bytes_that_are_no_http_are_an_erasure(loop: Loop) -> None:
    servers = [RawHttpTriton([member.name]) for member in GROUP.members]
    client = loop.connect(loop.serve(servers), "http")

    @settings(max_examples=100)
    @given(raw_http)
    def fuzz(raw: bytes) -> None:
        servers[0].raw = raw
        check(loop.run(client.infer({"input": BATCH}, deadline=DEADLINE_S)))

    fuzz()


@st.composite
def discovery_answers(draw: st.DrawFn) -> dict[str, bytes]:
    """Bodies of answers to what a client asks when it connects."""
    config = {"name": "a", "max_batch_size": 8, "parameters": {PARAMETER_KEY: {"string_value": GROUP.to_json("a")}}}
    usual: dict[str, Any] = {
        "v2": {"name": "triton", "version": "2.51.0"},
        "index": [{"name": "a", "version": "1", "state": "READY"}],
        "config": config,
    }
    kind = draw(st.sampled_from(sorted(usual)))
    usual[kind] = draw(jsons | changed(usual[kind]))
    return {kind: draw(damaged(json.dumps(usual[kind]).encode()))}


@st.composite
def changed(draw: st.DrawFn, content: Any) -> Any:
    """JSON with one value somewhere replaced or left out."""
    if not isinstance(content, dict | list) or not content or draw(st.integers(0, 3)) == 0:
        return draw(jsons)
    key = draw(st.sampled_from(sorted(content) if isinstance(content, dict) else range(len(content))))
    copy: Any = content.copy()
    if draw(st.booleans()):
        inner: Any = draw(changed(copy[key]))
        copy[key] = inner
    else:
        del copy[key]
    return copy


def test_a_server_that_says_anything_about_itself_is_tolerated_or_refused(loop: Loop) -> None:
    servers = [RawHttpTriton([member.name]) for member in GROUP.members]
    addresses = loop.serve(servers)

    async def connect_and_ask() -> None:
        async with client_of(addresses, "http") as client:
            check(await client.infer({"input": BATCH}, deadline=DEADLINE_S))

    @settings(max_examples=100)
    @given(discovery_answers())
    def fuzz(bodies: dict[str, bytes]) -> None:
        servers[0].by_path = bodies
        with suppress(ClientError):
            loop.run(connect_and_ask())

    fuzz()


@settings(max_examples=150)
@given(st.data())
def test_any_description_of_a_group_is_read_or_refused(data: st.DataObject) -> None:
    content = data.draw(changed(json.loads(GROUP.to_json("a"))))
    text = data.draw(st.just(json.dumps(content)) | st.text(max_size=20))
    try:
        group, member = from_json(text, "here")
    except ManifestError:
        return
    assert member in [item.name for item in group.members]
