"""OpenTelemetry traces of a client (extra ``tracing``). The only module that knows opentelemetry, and only its API.

Names follow OpenTelemetry's semantic conventions for remote procedure calls and HTTP where there is one, and begin
with ``coin_client.`` where there is none.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import NamedTuple

from coin_export.client.answer import Source
from coin_export.client.observer import (
    CallEnd,
    CallInfo,
    CallOutcome,
    Observer,
    RequestEnd,
    RequestInfo,
    RequestOutcome,
)
from coin_export.errors import MissingDependencyError

try:
    from opentelemetry import trace
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, SpanKind, Status, StatusCode, TracerProvider
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
    from opentelemetry.util.types import AttributeValue
except ImportError as error:
    raise MissingDependencyError(
        "tracing needs opentelemetry-api, which is not installed: pip install 'coin-export[tracing]'"
    ) from error

_WIRE: Mapping[str, Mapping[str, AttributeValue]] = {
    "grpc": {"rpc.system": "grpc", "rpc.service": "inference.GRPCInferenceService", "rpc.method": "ModelInfer"},
    "http": {"http.request.method": "POST"},
    "": {},
}


class _RequestSpan(NamedTuple):
    span: Span
    context: Context


class _CallSpan(NamedTuple):
    span: Span
    started_ns: int


class TracingObserver(Observer):
    """Makes a span of each request and a child of it of each call: ``CodedClient(..., observers=[TracingObserver()])``.

    A request's span is a child of the span that is current where `CodedClient.infer` is called. Each call carries
    W3C trace context (the header ``traceparent``), so that the spans of a Triton server that runs with
    ``--trace-config mode=opentelemetry`` become children of the call's span. The span of an abandoned call ends
    when its request does.

    Args:
        tracer_provider: the process's global one when not given.

    Raises:
        MissingDependencyError: on import of this module, if opentelemetry-api is not installed.
    """

    def __init__(self, tracer_provider: TracerProvider | None = None) -> None:
        self._tracer = trace.get_tracer("coin_export.client", tracer_provider=tracer_provider)
        self._propagator = TraceContextTextMapPropagator()
        self._requests: dict[RequestInfo, _RequestSpan] = {}
        self._calls: dict[CallInfo, _CallSpan] = {}

    def request_begun(self, request: RequestInfo) -> None:
        """See `Observer`."""
        attributes: dict[str, AttributeValue] = {
            "coin_client.group": request.group,
            "coin_client.wanted": request.wanted,
            "coin_client.batch": request.batch,
        }
        if request.request_id:
            attributes["coin_client.request_id"] = request.request_id
        if request.deadline_s < math.inf:
            attributes["coin_client.deadline_s"] = request.deadline_s
        span = self._tracer.start_span(f"coin_client.infer {request.group}", attributes=attributes)
        self._requests[request] = _RequestSpan(span, trace.set_span_in_context(span))

    def request_ended(self, request: RequestInfo, end: RequestEnd) -> None:
        """See `Observer`."""
        span = self._requests.pop(request).span
        span.set_attribute("coin_client.outcome", end.outcome.value)
        if end.refusals:
            span.set_attribute("coin_client.budget_refusals", end.refusals)
        if end.outcome is RequestOutcome.DECODED:
            models = tuple(model for model, source in end.sources.items() if source is Source.DECODED)
            span.add_event("decoded", {"coin_client.models": models, "coin_client.decode_s": end.decode_s})
        if end.outcome is RequestOutcome.FAILED:
            _fail(span, end.error)
        span.end()

    def call_begun(self, call: CallInfo) -> Mapping[str, str]:
        """See `Observer`; returns trace context also when nothing is recorded, so that the server records nothing."""
        parent = self._requests[call.request]
        context = self._begin(call, parent.context) if parent.span.is_recording() else parent.context
        headers: dict[str, str] = {}
        self._propagator.inject(headers, context=context)
        return headers

    def _begin(self, call: CallInfo, parent: Context) -> Context:
        host, _, port = call.server.rpartition(":")
        attributes: dict[str, AttributeValue] = {
            **_WIRE[call.protocol],
            "server.address": host,
            "server.port": int(port),
            "coin_client.model": call.model,
            "coin_client.role": "coded" if call.coded else "original",
            "coin_client.purpose": "wanted" if call.wanted else "help",
        }
        if call.though_down:
            attributes["coin_client.though_down"] = True
        started_ns = time.time_ns()
        span = self._tracer.start_span(
            f"ModelInfer {call.model}",
            context=parent,
            kind=SpanKind.CLIENT,
            attributes=attributes,
            start_time=started_ns,
        )
        self._calls[call] = _CallSpan(span, started_ns)
        return trace.set_span_in_context(span)

    def call_ended(self, call: CallInfo, end: CallEnd) -> None:
        """See `Observer`."""
        begun = self._calls.pop(call, None)
        if begun is None:
            return
        span, started_ns = begun
        span.set_attribute("coin_client.outcome", end.outcome.value)
        if end.outcome is CallOutcome.FAILED:
            _fail(span, end.error)
        span.end(started_ns + round(1e9 * end.latency_s))


def _fail(span: Span, error: str) -> None:
    span.set_attribute("error.type", "_OTHER")  # the conventions' value where causes are not told apart
    span.set_status(Status(StatusCode.ERROR, error))
