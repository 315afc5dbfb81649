"""What observers are told when a new build is rolled out while a request is under way."""

from __future__ import annotations

import asyncio
from collections import Counter

from prometheus_client import CollectorRegistry

from coin_export.client import CallOutcome, CodedClient, OnlyWhenDown, Policy, RequestOutcome, Source
from coin_export.client.metrics import MetricsObserver
from tests.client.fake_triton import one_each, started
from tests.client.recorder import Recorder
from tests.client.test_rollout import BATCH, NEW, OFTEN, OLD, lose_the_old_build


async def test_a_request_that_begins_again_on_another_build_is_one_request_whose_calls_end_once() -> None:
    recorder, registry = Recorder(), CollectorRegistry()
    servers = one_each(OLD)
    for server in servers[:2]:
        server.hold.clear()
    async with started(*servers) as addresses:
        client = CodedClient(
            addresses, policy=Policy(OnlyWhenDown()), limits=OFTEN, observers=[recorder, MetricsObserver(registry)]
        )
        async with client:
            request = asyncio.create_task(client.infer({"input": BATCH}))
            await lose_the_old_build(client, servers)
            await request
    ((begun, end),) = recorder.ended
    assert recorder.begun == [begun] and end.outcome is RequestOutcome.DECODED
    assert end.sources == {"a": Source.DECODED, "b": Source.DECODED}
    assert Counter(id(call) for call, _ in recorder.calls_ended) == Counter(map(id, recorder.calls))
    used = {call.model for call, end in recorder.calls_ended if end.outcome is CallOutcome.USED}
    assert used == {"coded_0", "coded_1"}
    assert recorder.builds[0] == ("digits", OLD.generation, NEW.generation)
    assert registry.get_sample_value("coin_client_build_changes_total", {"group": "digits"}) == len(recorder.builds)
