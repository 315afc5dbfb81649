"""The spans of a client that talks to servers on the wire, and the trace context that the servers get."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Sampler
from opentelemetry.trace import SpanKind, StatusCode

from coin_export.client import AfterGrace, AtOnce, CodedClient, HttpTransport, Limits, Policy, SyncCodedClient
from coin_export.client.tracing import TracingObserver
from coin_export.errors import UndecodableError
from tests.client.fake_http import HttpTriton
from tests.client.fake_triton import PIXELS, aborting, make_group, one_each, one_each_of, started

GROUP = make_group()
INPUTS = {"input": np.ones((2, PIXELS), np.float32)}
PATIENT = Policy(AtOnce(), AfterGrace(at_least_s=30.0))
SOON = Policy(AtOnce(), AfterGrace(at_least_s=0.0, share=0.0))


class Traces:
    """A tracer provider of its own, and what it exported."""

    def __init__(self, sampler: Sampler = ALWAYS_ON) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider(sampler=sampler)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.observer = TracingObserver(self.provider)

    def client(self, addresses: list[str], policy: Policy) -> CodedClient:
        return CodedClient(addresses, policy=policy, limits=Limits(close_s=0.05), observers=[self.observer])

    def request(self) -> ReadableSpan:
        """The span of the only request."""
        (span,) = [span for span in self._exporter.get_finished_spans() if span.name == "coin_client.infer digits"]
        return span

    def call(self, model: str) -> ReadableSpan:
        """The span of the only call to a model."""
        (span,) = [span for span in self._exporter.get_finished_spans() if span.name == f"ModelInfer {model}"]
        return span

    def count(self) -> int:
        """How many spans there are."""
        return len(self._exporter.get_finished_spans())

    def is_child(self, child: ReadableSpan, parent: ReadableSpan) -> bool:
        return child.parent is not None and parent.context is not None and child.parent == parent.context


def traceparent(span: ReadableSpan) -> str:
    assert span.context is not None
    return f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-{span.context.trace_flags:02x}"


async def test_a_request_is_a_span_and_each_call_a_child_that_the_server_can_join() -> None:
    traces = Traces()
    servers = one_each(GROUP)
    async with started(*servers) as addresses, traces.client(addresses, PATIENT) as client:
        with traces.provider.get_tracer("service").start_as_current_span("handler") as handler:
            await client.infer(INPUTS, deadline=60.0, request_id="r1")
    request = traces.request()
    assert request.parent == handler.get_span_context(), "it belongs to the caller's trace"
    assert request.attributes == {
        "coin_client.group": "digits",
        "coin_client.wanted": ("a", "b"),
        "coin_client.batch": 2,
        "coin_client.request_id": "r1",
        "coin_client.deadline_s": 60.0,
        "coin_client.outcome": "direct",
    }
    assert request.status.status_code is StatusCode.UNSET and not request.events
    for member, server in zip(GROUP.members, servers, strict=True):
        if not server.asked:
            continue  # the coded model's call may have been overtaken on its way
        call = traces.call(member.name)
        assert traces.is_child(call, request) and call.kind is SpanKind.CLIENT
        assert call.attributes is not None
        assert call.attributes["rpc.system"] == "grpc" and call.attributes["rpc.method"] == "ModelInfer"
        assert call.attributes["rpc.service"] == "inference.GRPCInferenceService"
        assert call.attributes["server.address"] == "127.0.0.1" and call.attributes["server.port"] == server.port
        assert call.attributes["coin_client.model"] == member.name
        assert call.attributes["coin_client.role"] == member.role
        assert server.headers["traceparent"] == traceparent(call)


async def test_a_decoded_request_has_an_event_and_the_straggler_an_ended_span() -> None:
    traces = Traces()
    servers = one_each(GROUP)
    servers[0].hold.clear()
    async with started(*servers) as addresses, traces.client(addresses, SOON) as client:
        await client.infer(INPUTS)
        request, straggler = traces.request(), traces.call("a")
        servers[0].hold.set()
    (event,) = request.events
    assert event.name == "decoded" and event.attributes is not None
    assert event.attributes["coin_client.models"] == ("a",) and float(str(event.attributes["coin_client.decode_s"])) > 0
    assert request.attributes is not None and request.attributes["coin_client.outcome"] == "decoded"
    assert straggler.attributes is not None and straggler.attributes["coin_client.outcome"] == "abandoned"
    assert straggler.end_time is not None and straggler.start_time is not None
    assert straggler.end_time > straggler.start_time


async def test_failures_are_errors_with_their_cause() -> None:
    traces = Traces()
    servers = one_each(GROUP)
    for server in servers[1:]:
        server.reply = aborting("INTERNAL", "out of memory")
    async with started(*servers) as addresses, traces.client(addresses, PATIENT) as client:
        with pytest.raises(UndecodableError):
            await client.infer(INPUTS)
    for span in (traces.request(), traces.call("b"), traces.call("coded_0")):
        assert span.status.status_code is StatusCode.ERROR and "out of memory" in str(span.status.description)
        assert span.attributes is not None and span.attributes["error.type"] == "_OTHER"


async def test_a_request_that_the_caller_cancels_ends_its_spans_without_an_error() -> None:
    traces = Traces()
    servers = one_each(GROUP)
    for server in servers:
        server.hold.clear()
    async with started(*servers) as addresses, traces.client(addresses, PATIENT) as client:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(client.infer(INPUTS), 0.05)
    request = traces.request()
    assert request.attributes is not None and request.attributes["coin_client.outcome"] == "cancelled"
    assert request.status.status_code is StatusCode.UNSET
    assert traces.is_child(traces.call("a"), request)


async def test_the_callers_span_is_found_through_the_synchronous_client_and_over_http() -> None:
    traces = Traces()
    servers = one_each_of(HttpTriton, GROUP)
    for server in servers:
        await server.start()

    def ask() -> None:
        addresses = [server.address for server in servers]
        with (
            SyncCodedClient(addresses, make_transport=HttpTransport, observers=[traces.observer]) as client,
            traces.provider.get_tracer("service").start_as_current_span("handler"),
        ):
            client.infer(INPUTS)

    await asyncio.to_thread(ask)
    for server in servers:
        await server.stop()
    request, call = traces.request(), traces.call("a")
    assert request.parent is not None and traces.is_child(call, request)
    assert call.attributes is not None and call.attributes["http.request.method"] == "POST"
    assert servers[0].headers["traceparent"] == traceparent(call)


async def test_a_request_that_is_not_sampled_tells_the_servers_so_and_records_nothing() -> None:
    traces = Traces(ALWAYS_OFF)
    servers = one_each(GROUP)
    async with started(*servers) as addresses, traces.client(addresses, PATIENT) as client:
        await client.infer(INPUTS)
    assert traces.count() == 0
    flags = int(servers[0].headers["traceparent"].rsplit("-", 1)[1], 16)
    assert not flags & 1
