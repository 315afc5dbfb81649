"""Nothing that a call does can keep a client from closing."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from coin_export.client import AsSoonAsDecodable, AtOnce, CodedClient, Limits, Policy, RequestOptions, TransportOptions
from coin_export.client.ending import cancelled, within
from coin_export.client.transport import Reply
from tests.client.fake_triton import PIXELS, make_group
from tests.client.scripted import ScriptedTransport, run_virtually

GROUP = make_group()
BATCH = np.ones((1, PIXELS), np.float32)


async def test_work_in_time_returns_or_raises_and_late_work_is_cancelled() -> None:
    async def work(seconds: float, error: Exception | None = None) -> str:
        await asyncio.sleep(seconds)
        if error is not None:
            raise error
        return "done"

    assert await within(30.0, work(0.0)) == "done"
    with pytest.raises(ValueError, match="bad"):
        await within(30.0, work(0.0, ValueError("bad")))
    with pytest.raises(asyncio.TimeoutError):
        await within(0.01, work(3600.0))
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_cancellation_that_comes_together_with_the_result_is_not_swallowed() -> None:
    answer = asyncio.get_running_loop().create_future()
    went_on = False

    async def questions() -> None:
        nonlocal went_on
        await within(30.0, wait_for_answer())
        went_on = True
        await asyncio.sleep(3600)

    async def wait_for_answer() -> None:
        await answer

    task = asyncio.create_task(questions())
    for _ in range(3):
        await asyncio.sleep(0)
    answer.set_result(None)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not went_on


def test_tasks_that_swallow_a_cancellation_are_cancelled_again_and_in_the_end_left() -> None:
    async def stubborn(times: int) -> None:
        for _ in range(times):
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                continue
        await asyncio.sleep(3600)

    async def run() -> tuple[bool, bool, float]:
        once, always = asyncio.create_task(stubborn(1)), asyncio.create_task(stubborn(99))
        await asyncio.sleep(0)
        started = asyncio.get_running_loop().time()
        await cancelled([once, always], 1.0)
        return once.cancelled(), always.done(), asyncio.get_running_loop().time() - started

    swallowed_once, swallowed_always, took_s = run_virtually(run())
    assert swallowed_once and not swallowed_always and took_s == pytest.approx(1.0)


class Stubborn(ScriptedTransport):
    """Its calls never end, and swallow being cancelled; nor does closing it end."""

    async def infer(
        self, model: str, encoded: Any, outputs: Sequence[str], options: RequestOptions, version: str = ""
    ) -> Reply:
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                continue

    async def close(self) -> None:
        await asyncio.sleep(3600)


def test_closing_is_bounded_whatever_the_calls_do() -> None:
    def transport(address: str, options: TransportOptions) -> Stubborn:
        return Stubborn(address, GROUP, [member.name for member in GROUP.members], iter(()))

    async def run() -> float:
        limits, policy = Limits(close_s=2.0), Policy(AtOnce(), AsSoonAsDecodable())
        client = CodedClient(["server:1"], limits=limits, policy=policy, make_transport=transport)
        await client.connect()
        request = asyncio.create_task(client.infer({"input": BATCH}))
        await asyncio.sleep(1.0)
        started = asyncio.get_running_loop().time()
        await client.close()
        took_s = asyncio.get_running_loop().time() - started
        request.cancel()
        return took_s

    assert run_virtually(run()) <= 4.0 + 1e-6
