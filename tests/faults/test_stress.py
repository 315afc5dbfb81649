"""The safety rule under stress, shortly; `scripts/stress_abandon.py` runs 50,000 rounds and a million requests."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc.aio as triton

from scripts.faults.abandoning import abandon
from scripts.faults.frames import HEADERS, RST_STREAM, FrameCounter
from scripts.faults.leaks import look_for_leaks
from tests.client.fake_triton import PIXELS, FakeTriton, eventually, make_group, started


@pytest.mark.e2e
async def test_a_server_of_which_half_the_calls_are_abandoned_lives_and_answers_rightly(tmp_path: Path) -> None:
    result = await abandon(tmp_path, 1000)
    assert result.rounds >= 1000 and result.right_at_the_end > 0
    assert 0.2 < result.abandoned / result.calls < 0.8
    assert result.answered_late == result.abandoned
    assert result.calls_on_the_wire > result.calls and result.connections == 1
    assert result.cancelled_on_the_wire == 0


async def test_a_cancelled_call_would_be_seen_on_the_wire() -> None:
    frames, server = FrameCounter(), FakeTriton(make_group(), ["a"])
    server.hold.clear()
    async with started(server) as (address,), frames.before(address) as relayed:
        client = triton.InferenceServerClient(relayed)
        tensor = triton.InferInput("input", [1, PIXELS], "FP32").set_data_from_numpy(np.ones((1, PIXELS), np.float32))
        call = asyncio.ensure_future(client.infer("a", [tensor]))
        await eventually(lambda: server.asked == 1)
        assert frames.sent[HEADERS] == 1 and frames.sent[RST_STREAM] == 0
        call.cancel()
        await eventually(lambda: server.cancelled == 1)
        assert frames.sent[RST_STREAM] == 1
        await client.close()


def test_nothing_piles_up_nor_is_left_behind() -> None:
    result = look_for_leaks(5000)
    assert result.decoded > 0 and result.warnings == []
    # What other tests left may end meanwhile.
    assert result.tasks_left == 0 and result.threads_left <= 0 and result.descriptors_left <= 0
    before, after = result.objects
    assert after - before < 1000, "objects pile up, one or more for every few requests"
