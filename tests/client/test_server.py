from __future__ import annotations

import asyncio

from coin_export.client import Limits
from coin_export.client.server import Server, Task
from tests.client.fake_triton import make_group
from tests.client.scripted import ScriptedTransport


async def test_a_released_call_runs_to_its_end_and_nobody_is_told() -> None:
    ended: list[str] = []
    told: list[Task] = []

    async def work(name: str) -> None:
        await asyncio.sleep(0)
        ended.append(name)

    transport = ScriptedTransport("127.0.0.1:1", make_group(), ["a"], iter(()))
    server = Server(transport, Limits(abandoned_per_server=1), lambda server, reason: None)
    server.down = ""
    kept, released = server.call(work("kept"), told.append), server.call(work("released"), told.append)
    server.release(released)
    assert not server.usable and server.why_not_usable == "1 abandoned calls to it are still unanswered"
    await asyncio.wait(server.calls)
    await asyncio.sleep(0)
    assert ended == ["kept", "released"] and told == [kept]
    assert server.usable and server.calls == ()
    server.release(kept)  # a call that has ended stays as it is
    assert server.usable
