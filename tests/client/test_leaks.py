"""Tens of thousands of requests leave nothing behind: no task, no file, no memory. On a virtual clock."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import tracemalloc
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from coin_export.client import CodedClient, TransportOptions
from coin_export.errors import UndecodableError
from tests.client.fake_triton import PIXELS, make_group
from tests.client.scripted import Reaction, ScriptedTransport, run_virtually

GROUP = make_group()
INPUTS = {"input": np.ones((1, PIXELS), np.float32)}
WARM_UP, REQUESTS, TRACED_REQUESTS, CALLERS = 1000, 10_000, 1000, 20


def reactions(seed: int) -> Iterator[Reaction]:
    """Mostly quick answers; some that are late, some that fail or hold NaN, some that come after the request's end."""
    random = np.random.default_rng(seed)
    while True:
        chance, quick = random.random(), random.exponential(0.001)
        yield Reaction(0.02 if chance < 0.03 else quick, fails=0.03 < chance < 0.05, nan=0.05 < chance < 0.06)


async def ask(client: CodedClient, requests: int, transports: list[ScriptedTransport]) -> int:
    """Make requests, many at a time, until all their calls have ended; return how many failed."""
    failed = 0

    async def call() -> None:
        nonlocal failed
        for _ in range(requests // CALLERS):
            try:
                await client.infer(INPUTS, deadline=0.1)
            except UndecodableError:
                failed += 1

    await asyncio.gather(*(call() for _ in range(CALLERS)))
    await asyncio.sleep(2.0)
    for transport in transports:
        transport.sent.clear()
    gc.collect()
    return failed


@pytest.mark.parametrize("may_cancel", [False, True])
def test_requests_leave_no_task_file_or_object_behind(may_cancel: bool) -> None:
    async def measure(client: CodedClient, transports: list[ScriptedTransport]) -> None:
        await ask(client, WARM_UP, transports)
        files, objects = open_files(), len(gc.get_objects())
        failed = await ask(client, REQUESTS, transports)
        assert failed < REQUESTS / 20
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert open_files() <= files  # fewer, where what an earlier test left is closed meanwhile
        assert len(gc.get_objects()) - objects < REQUESTS / 20

    run_virtually(connected(measure, may_cancel))


@pytest.mark.parametrize("may_cancel", [False, True])
def test_requests_leave_no_memory_behind(may_cancel: bool) -> None:
    async def measure(client: CodedClient, transports: list[ScriptedTransport]) -> None:
        await ask(client, WARM_UP, transports)
        before, _ = tracemalloc.get_traced_memory()
        await ask(client, TRACED_REQUESTS, transports)
        after, _ = tracemalloc.get_traced_memory()
        assert after - before < 25 * TRACED_REQUESTS, "less than the smallest object for each request"

    with traced():
        run_virtually(connected(measure, may_cancel))


async def connected(
    measure: Callable[[CodedClient, list[ScriptedTransport]], Awaitable[None]], may_cancel: bool
) -> None:
    transports: list[ScriptedTransport] = []
    members = {f"{member.name}:1": member.name for member in GROUP.members}

    def transport(address: str, _: TransportOptions) -> ScriptedTransport:
        script = reactions(len(transports))
        transports.append(ScriptedTransport(address, GROUP, [members[address]], script, may_cancel=may_cancel))
        return transports[-1]

    async with CodedClient(list(members), make_transport=transport) as client:
        await measure(client, transports)


@contextlib.contextmanager
def traced() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()


def open_files() -> int:
    files = Path("/proc/self/fd")
    return len(list(files.iterdir())) if files.is_dir() else 0  # Linux only
