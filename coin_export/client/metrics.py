"""Prometheus metrics of a client (extra ``metrics``). The only module that knows prometheus-client."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

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
    from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
    from prometheus_client.metrics import MetricWrapperBase
except ImportError as error:
    raise MissingDependencyError(
        "metrics need prometheus-client, which is not installed: pip install 'coin-export[metrics]'"
    ) from error

LATENCY_BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
DECODE_BUCKETS_S = (0.00001, 0.00002, 0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.1)


_Metric = TypeVar("_Metric", bound=MetricWrapperBase)


class _Family(Generic[_Metric]):
    """The metrics of one name, by their labels; remembers them, as ``labels`` takes a lock each time."""

    def __init__(self, metric: _Metric) -> None:
        self._metric = metric
        self._found: dict[tuple[str, ...], _Metric] = {}

    def __call__(self, *labels: str) -> _Metric:
        """Return the one with these labels."""
        found = self._found.get(labels)
        if found is None:
            found = self._found[labels] = self._metric.labels(*labels)
        return found


class MetricsObserver(Observer):
    """Counts what one client or several do; ``CodedClient(..., observers=[MetricsObserver()])``.

    ======================================== ========= ==========================================================
    name                                     type      meaning; labels
    ======================================== ========= ==========================================================
    coin_client_requests_total               counter   requests ended; group, outcome (direct, decoded, failed,
                                                       cancelled)
    coin_client_request_duration_seconds     histogram how long they took, cancelled ones left out; group
    coin_client_answers_total                counter   wanted answers; group, model, source (direct, decoded, failed)
    coin_client_decode_duration_seconds      histogram time spent on decoding, where there was any; group
    coin_client_calls_total                  counter   calls sent, counted when their request ends; group, model,
                                                       server, role (original, coded), purpose (wanted, help),
                                                       outcome (used, wasted, failed, abandoned, cancelled)
    coin_client_call_duration_seconds        histogram how long answered calls took, late ones included; model, server
    coin_client_late_calls_total             counter   abandoned calls that have ended; server, outcome (answered,
                                                       failed)
    coin_client_abandoned_calls              gauge     abandoned calls that the server still works on; server
    coin_client_breaker_open                 gauge     1 while a server counts as down, else 0; server
    coin_client_breaker_openings_total       counter   how often it came to count as down; server
    coin_client_build_changes_total          counter   times that requests turned to another build of the group; group
    coin_client_budget_tokens                gauge     helping calls that the budget allows now; group
    coin_client_budget_refusals_total        counter   times that it allowed too few for a slow request; group
    ======================================== ========= ==========================================================

    Args:
        registry: where the metrics are registered; prometheus-client's own when not given.
        latency_buckets_s: upper bounds of the histograms of requests and calls, in seconds.

    Raises:
        MissingDependencyError: on import of this module, if prometheus-client is not installed.
        ValueError: by prometheus-client, if the registry has these metrics already: share one observer.
    """

    def __init__(
        self,
        registry: CollectorRegistry = REGISTRY,
        latency_buckets_s: Sequence[float] = LATENCY_BUCKETS_S,
    ) -> None:
        def counter(name: str, meaning: str, *labels: str) -> _Family[Counter]:
            return _Family(Counter(f"coin_client_{name}", meaning, labels, registry=registry))

        def gauge(name: str, meaning: str, *labels: str) -> _Family[Gauge]:
            return _Family(Gauge(f"coin_client_{name}", meaning, labels, registry=registry))

        def histogram(name: str, meaning: str, buckets: Sequence[float], *labels: str) -> _Family[Histogram]:
            return _Family(Histogram(f"coin_client_{name}", meaning, labels, buckets=buckets, registry=registry))

        latency = tuple(latency_buckets_s)
        self._requests = counter("requests_total", "Requests ended, by outcome.", "group", "outcome")
        self._request_seconds = histogram("request_duration_seconds", "Duration of requests.", latency, "group")
        self._answers = counter("answers_total", "Wanted answers, by source.", "group", "model", "source")
        self._decode_seconds = histogram(
            "decode_duration_seconds", "Time spent on decoding.", DECODE_BUCKETS_S, "group"
        )
        self._calls = counter(
            "calls_total", "Calls sent, by outcome.", "group", "model", "server", "role", "purpose", "outcome"
        )
        self._call_seconds = histogram(
            "call_duration_seconds", "Duration of answered calls, late ones included.", latency, "model", "server"
        )
        self._late = counter("late_calls_total", "Abandoned calls that have ended.", "server", "outcome")
        self._abandoned = gauge("abandoned_calls", "Abandoned calls that servers still work on.", "server")
        self._open = gauge("breaker_open", "Whether a server counts as down.", "server")
        self._openings = counter("breaker_openings_total", "How often a server came to count as down.", "server")
        self._builds = counter("build_changes_total", "Times that requests turned to another build.", "group")
        self._tokens = gauge("budget_tokens", "Helping calls that the budget allows.", "group")
        self._refusals = counter("budget_refusals_total", "Times that the budget allowed too few.", "group")

    def request_ended(self, request: RequestInfo, end: RequestEnd) -> None:
        """See `Observer`."""
        group = request.group
        self._requests(group, end.outcome.value).inc()
        self._tokens(group).set(end.budget_left)
        self._refusals(group).inc(end.refusals)
        if end.outcome is RequestOutcome.CANCELLED:
            return
        self._request_seconds(group).observe(end.elapsed_s)
        if end.outcome is RequestOutcome.DECODED:
            self._decode_seconds(group).observe(end.decode_s)
        for model in request.wanted:
            source = end.sources.get(model)
            self._answers(group, model, "failed" if source is None else source.value).inc()

    def call_ended(self, call: CallInfo, end: CallEnd) -> None:
        """See `Observer`."""
        role = "coded" if call.coded else "original"
        purpose = "wanted" if call.wanted else "help"
        self._calls(call.request.group, call.model, call.server, role, purpose, end.outcome.value).inc()
        if end.outcome in (CallOutcome.USED, CallOutcome.WASTED):
            self._call_seconds(call.model, call.server).observe(end.latency_s)
        elif end.outcome is CallOutcome.ABANDONED:
            self._abandoned(call.server).inc()

    def call_ended_late(self, call: CallInfo, latency_s: float, error: str) -> None:
        """See `Observer`."""
        self._abandoned(call.server).dec()
        self._late(call.server, "failed" if error else "answered").inc()
        if not error:
            self._call_seconds(call.model, call.server).observe(latency_s)

    def server_down(self, address: str, reason: str) -> None:
        """See `Observer`."""
        self._open(address).set(1)
        self._openings(address).inc()

    def server_up(self, address: str) -> None:
        """See `Observer`."""
        self._open(address).set(0)

    def build_changed(self, group: str, old: str, new: str) -> None:
        """See `Observer`."""
        self._builds(group).inc()
