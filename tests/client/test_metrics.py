"""The metrics as Prometheus reads them, of a client that talks to servers on the wire."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from coin_export.client import AfterGrace, AtOnce, Budget, CodedClient, Limits, OnlyWhenDown, Policy
from coin_export.client.metrics import MetricsObserver
from coin_export.errors import UndecodableError
from tests.client.fake_triton import PIXELS, aborting, eventually, make_group, one_each, started

GROUP = make_group()
INPUTS = {"input": np.ones((1, PIXELS), np.float32)}
PATIENT = Policy(AtOnce(), AfterGrace(at_least_s=30.0), Budget(0.5, 4.0))


class Scrape:
    """What Prometheus would see now."""

    def __init__(self, registry: CollectorRegistry) -> None:
        families = text_string_to_metric_families(generate_latest(registry).decode())
        self._samples = [sample for family in families for sample in family.samples]

    def __call__(self, name: str, **labels: str) -> float:
        """Add up the samples of a name that have these labels."""
        return sum(
            sample.value
            for sample in self._samples
            if sample.name == f"coin_client_{name}" and labels.items() <= sample.labels.items()
        )


async def test_requests_answers_calls_servers_and_the_budget_are_counted() -> None:
    registry = CollectorRegistry()
    servers = one_each(GROUP)
    limits = Limits(misses_in_a_row=2, lookup_interval_s=3600)
    async with started(*servers) as addresses:
        client = CodedClient(addresses, policy=PATIENT, limits=limits, observers=[MetricsObserver(registry)])
        async with client:
            seen = Scrape(registry)
            assert [seen("breaker_open", server=address) for address in addresses] == [0, 0, 0]
            await client.infer(INPUTS)
            servers[0].reply = aborting("INTERNAL", "out of memory")
            for _ in range(2):
                await client.infer(INPUTS)
            servers[1].reply = aborting("INTERNAL", "out of memory")
            with pytest.raises(UndecodableError):
                await client.infer(INPUTS)
    seen = Scrape(registry)
    assert seen("requests_total", group="digits") == 4
    for outcome, count in {"direct": 1, "decoded": 2, "failed": 1}.items():
        assert seen("requests_total", outcome=outcome) == count
    assert seen("request_duration_seconds_count", group="digits") == 4
    assert seen("decode_duration_seconds_count", group="digits") == 2
    for source, count in {"direct": 1, "decoded": 2, "failed": 1}.items():
        assert seen("answers_total", model="a", source=source) == count
    assert seen("answers_total", model="b", source="direct") == 3
    assert seen("calls_total", model="a", outcome="failed", server=addresses[0]) == 3, "the last one as a last resort"
    assert seen("calls_total", model="a") == 4
    assert seen("calls_total", model="coded_0", role="coded", purpose="help") == seen("calls_total", role="coded") == 4
    assert seen("call_duration_seconds_count", server=addresses[0]) == 1
    assert seen("call_duration_seconds_bucket", server=addresses[0], le="+Inf") == 1
    assert seen("breaker_open", server=addresses[0]) == seen("breaker_openings_total", server=addresses[0]) == 1
    assert seen("breaker_open", server=addresses[1]) == 0
    assert seen("budget_tokens", group="digits") == 4


async def test_abandoned_calls_are_under_way_until_they_end_late() -> None:
    registry = CollectorRegistry()
    servers = one_each(GROUP)
    servers[0].hold.clear()
    policy = Policy(AtOnce(), AfterGrace(at_least_s=0.0, share=0.0))
    async with started(*servers) as addresses:
        async with CodedClient(addresses, policy=policy, observers=[MetricsObserver(registry)]) as client:
            for _ in range(3):
                await client.infer(INPUTS)
            seen = Scrape(registry)
            assert seen("calls_total", outcome="abandoned") == seen("abandoned_calls", server=addresses[0]) == 3
            assert seen("call_duration_seconds_count", server=addresses[0]) == 0
            servers[0].hold.set()
            await eventually(lambda: Scrape(registry)("abandoned_calls") == 0)
        seen = Scrape(registry)
        assert seen("late_calls_total", server=addresses[0], outcome="answered") == 3
        assert seen("call_duration_seconds_count", server=addresses[0]) == 3


async def test_a_budget_that_is_spent_is_seen() -> None:
    registry = CollectorRegistry()
    servers = one_each(GROUP)
    servers[0].hold.clear()
    policy = Policy(OnlyWhenDown(), budget=Budget(0.0, 0.0))
    async with started(*servers) as addresses:
        client = CodedClient(addresses, policy=policy, observers=[MetricsObserver(registry)])
        async with client:
            with pytest.raises(UndecodableError):
                await client.infer(INPUTS, deadline=0.05)
    assert Scrape(registry)("budget_tokens", group="digits") == 0


async def test_two_clients_share_one_observer() -> None:
    registry = CollectorRegistry()
    metrics = MetricsObserver(registry)
    async with started(*one_each(GROUP)) as addresses:
        for _ in range(2):
            async with CodedClient(addresses, policy=PATIENT, observers=[metrics]) as client:
                await client.infer(INPUTS)
    assert Scrape(registry)("requests_total") == 2
    with pytest.raises(ValueError, match="Duplicated"):
        MetricsObserver(registry)


@pytest.mark.parametrize(("package", "extra"), [("prometheus_client", "metrics"), ("opentelemetry", "tracing")])
def test_a_missing_extra_is_named(package: str, extra: str) -> None:
    code = f"import sys; sys.modules[{package!r}] = None; import coin_export.client.{extra}"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "MissingDependencyError" in found.stderr and f"pip install 'coin-export[{extra}]'" in found.stderr
