"""Clients that come and go leave nothing behind: no descriptor, no task, no thread, no warning."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from typing import Any

import numpy as np
import psutil
import pytest

from coin_export.client import (
    AsSoonAsDecodable,
    AtOnce,
    CodedClient,
    HttpTransport,
    Limits,
    Policy,
    Source,
    SyncCodedClient,
)
from coin_export.client.transport_grpc import GrpcTransport
from coin_export.errors import UndecodableError
from tests.client.fake_http import HttpTriton
from tests.client.fake_triton import PIXELS, FakeTriton, aborting, eventually, make_group, started
from tests.client.test_sync import serving

GROUP = make_group()
BATCH = np.ones((1, PIXELS), np.float32)
OPTIONS: dict[str, Any] = {"policy": Policy(AtOnce(), AsSoonAsDecodable()), "limits": Limits(close_s=0.05)}
WIRES = [(FakeTriton, GrpcTransport), (HttpTriton, HttpTransport)]
ROUNDS = 15


def descriptors() -> int:
    gc.collect()
    return psutil.Process().num_fds()


def ours() -> list[str]:
    """The tasks under way that are not the servers'."""
    return [repr(task) for task in asyncio.all_tasks() if "coin_export" in repr(task) or "tritonclient" in repr(task)]


@pytest.mark.parametrize(("kind", "transport"), WIRES)
async def test_connecting_asking_abandoning_and_closing(kind: type[FakeTriton], transport: Any) -> None:
    servers = [kind(GROUP, [member.name]) for member in GROUP.members]
    reported: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: reported.append(context))

    async def use() -> None:
        async with CodedClient(addresses, make_transport=transport, **OPTIONS) as client:
            await client.infer({"input": BATCH})
            servers[0].hold.clear()
            assert (await client.infer({"input": BATCH}))["a"].source is Source.DECODED  # leaves a call behind
            servers[1].reply = aborting("INTERNAL", "out of memory")
            with pytest.raises(UndecodableError):
                await client.infer({"input": BATCH}, deadline=0.02)
        servers[0].hold.set()
        servers[1].reply = None

    async with started(*servers) as addresses:
        for _ in range(2):
            await use()
        before = descriptors()
        for _ in range(ROUNDS):
            await use()
        await eventually(lambda: descriptors() <= before)  # the servers' ends of the connections close a little later
        assert ours() == [] and reported == []


@pytest.mark.parametrize(("kind", "transport"), WIRES)
def test_the_synchronous_face(kind: type[FakeTriton], transport: Any) -> None:
    with serving(lambda: [kind(GROUP, [member.name]) for member in GROUP.members]) as (_, addresses):

        def use() -> None:
            with SyncCodedClient(addresses, make_transport=transport, **OPTIONS) as client:
                client.infer({"input": BATCH})

        for _ in range(2):
            use()
        before = descriptors()
        for _ in range(ROUNDS):
            use()
        assert "coin_export.client" not in {thread.name for thread in threading.enumerate()}
        while descriptors() > before:  # the servers' ends of the connections close a little later
            time.sleep(0.01)
