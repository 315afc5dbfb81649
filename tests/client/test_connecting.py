"""Connecting and closing, several at once."""

from __future__ import annotations

import asyncio
from itertools import repeat

import numpy as np
import pytest

from coin_export.client import CodedClient, TransportOptions
from coin_export.errors import ClientError
from tests.client.fake_triton import PIXELS, make_group
from tests.client.scripted import Reaction, ScriptedTransport, run_virtually

GROUP = make_group()
BATCH = np.ones((1, PIXELS), np.float32)


class Slow(ScriptedTransport):
    """Says what it is after a second; counts how many there are."""

    made: int = 0
    open: int = 0

    def __init__(self, address: str, _: TransportOptions) -> None:
        super().__init__(address, GROUP, [member.name for member in GROUP.members], repeat(Reaction()))
        Slow.made += 1
        Slow.open += 1

    async def server_metadata(self) -> str:
        await asyncio.sleep(1.0)
        return "2.51.0"

    async def close(self) -> None:
        Slow.open -= 1


@pytest.fixture(autouse=True)
def _none_yet() -> None:
    Slow.made = Slow.open = 0


def test_two_that_connect_at_once_share_one_connection() -> None:
    async def run() -> None:
        client = CodedClient(["server:1"], make_transport=Slow)
        await asyncio.gather(client.connect(), client.connect())
        assert Slow.made == 1
        await client.infer({"input": BATCH})
        await client.close()

    run_virtually(run())
    assert Slow.open == 0


def test_closing_a_client_that_connects_closes_it() -> None:
    async def run() -> None:
        client = CodedClient(["server:1"], make_transport=Slow)
        connecting = asyncio.create_task(client.connect())
        await asyncio.sleep(0.5)
        await client.close()
        await connecting
        with pytest.raises(ClientError, match="not connected"):
            await client.infer({"input": BATCH})

    run_virtually(run())
    assert Slow.made == 1 and Slow.open == 0
