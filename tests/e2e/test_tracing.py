"""A real Triton in OpenTelemetry mode puts its own spans beneath those of the client's calls."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from torch import nn

from coin_export import build_group
from coin_export.client import CodedClient, HttpTransport
from coin_export.client.tracing import TracingObserver
from coin_export.recipe import BuildOptions
from coin_export.serve import runtime
from coin_export.serve.embedded import EmbeddedServer

pytestmark = pytest.mark.e2e

_EXPORT_S = 10.0
_PATIENCE_S = 120.0


class Collector(ThreadingHTTPServer):
    """Takes spans in OTLP's JSON, as Triton sends them."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.bodies: list[bytes] = []

    def spans(self) -> list[dict[str, Any]]:
        """All spans received so far."""
        return [
            span
            for body in list(self.bodies)
            for resource in json.loads(body)["resourceSpans"]
            for scope in resource["scopeSpans"]
            for span in scope["spans"]
        ]


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        self.server.bodies.append(self.rfile.read(int(self.headers["content-length"])))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def collecting() -> Iterator[Collector]:
    with Collector() as collector:
        thread = threading.Thread(target=collector.serve_forever)
        thread.start()
        try:
            yield collector
        finally:
            collector.shutdown()
            thread.join()


def hex_of(span: ReadableSpan) -> tuple[str, str]:
    """Trace and span, as on the wire."""
    assert span.context is not None
    return f"{span.context.trace_id:032x}", f"{span.context.span_id:016x}"


def was_used(span: ReadableSpan) -> bool:
    """Whether it is of a call whose answer counted."""
    return span.attributes is not None and span.attributes.get("coin_client.outcome") == "used"


def arrives(collector: Collector, calls: set[tuple[str, str]]) -> bool:
    """Wait a while for spans of Triton's beneath every one of the calls."""
    ends = time.monotonic() + _EXPORT_S
    while time.monotonic() < ends:
        if calls <= {(span["traceId"], span.get("parentSpanId", "")) for span in collector.spans()}:
            return True
        time.sleep(0.1)
    return False


def make_repository(folder: Path) -> Path:
    """Two small originals and a coded model."""
    repository = folder / "repository"
    calibration = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    options = BuildOptions.model_validate({"encoder": {"name": "average"}})
    build_group("pair", {name: nn.Linear(4, 3) for name in "ab"}, {"x": calibration}, repository, options=options)
    return repository


def test_tritons_spans_are_children_of_the_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = make_repository(tmp_path)
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))

    async def ask(server: EmbeddedServer) -> None:
        inputs = {"x": np.zeros((1, 4), np.float32)}
        observers = [TracingObserver(provider)]
        async with CodedClient([server.grpc_address], observers=observers) as client:
            await client.infer(inputs)
        async with CodedClient([server.http_address], make_transport=HttpTransport, observers=observers) as client:
            await client.infer(inputs)

    with collecting() as collector:
        original = runtime.command
        settings = ("mode=opentelemetry", "rate=1", "level=TIMESTAMPS", "opentelemetry,bsp_schedule_delay=100")
        url = f"opentelemetry,url=http://127.0.0.1:{collector.server_port}/v1/traces"

        def command(*args: Any, **options: Any) -> list[str]:
            return [*original(*args, **options), *(f"--trace-config={setting}" for setting in (*settings, url))]

        monkeypatch.setattr(runtime, "command", command)
        with EmbeddedServer(repository) as server:
            ends = time.monotonic() + _PATIENCE_S
            while True:  # Triton 24.10 starts a trace of its own for about one gRPC call in twenty
                exporter.clear()
                asyncio.run(ask(server))
                calls = {hex_of(span) for span in exporter.get_finished_spans() if was_used(span)}
                if arrives(collector, calls):
                    break
                assert time.monotonic() < ends, (calls, collector.spans())
    assert len(calls) >= 4
