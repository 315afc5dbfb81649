from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest

from coin_export.client import Limits
from coin_export.client.server import Server
from coin_export.errors import UserError
from tests.client.fake_triton import make_group
from tests.client.scripted import ScriptedTransport


async def test_a_released_call_runs_to_its_end_and_nobody_is_told() -> None:
    ended: list[str] = []
    told: list[str] = []

    async def work(name: str) -> str:
        await asyncio.sleep(0)
        ended.append(name)
        return name

    def tell(name: str, error: BaseException | None) -> None:
        told.append(name)

    transport = ScriptedTransport("127.0.0.1:1", make_group(), ["a"], iter(()))
    room: list[bool] = []
    server = Server(
        transport,
        Limits(abandoned_per_server=1),
        lambda server, reason: None,
        lambda server: room.append(server.has_room),
    )
    server.down = ""
    kept, released = server.call(tell, work, "kept"), server.call(tell, work, "released")
    server.release(released)
    assert not server.usable and server.why_not_usable == "1 abandoned calls to it are still unanswered"
    assert room == [False]
    await asyncio.wait(server.calls)
    assert ended == ["kept", "released"] and told == ["kept"]
    assert server.usable and server.calls == () and room == [False, True]
    server.release(kept)  # a call that has ended stays as it is
    assert server.usable


@pytest.mark.parametrize(
    "limits",
    [
        {"abandoned_per_server": 0},
        {"misses_in_a_row": 0},
        {"silence_s": -0.1},
        {"slow_s": math.nan},
        {"close_s": -1.0},
    ],
)
def test_limits_out_of_range_are_refused(limits: dict[str, Any]) -> None:
    ((name, value),) = limits.items()
    with pytest.raises(UserError, match=f"Limits.{name} is {value}; give"):
        Limits(**limits)


async def test_a_server_with_too_many_abandoned_calls_is_used_again_when_half_the_bound_is_left() -> None:
    held = [asyncio.Event() for _ in range(5)]
    transport = ScriptedTransport("127.0.0.1:1", make_group(), ["a"], iter(()))
    server = Server(transport, Limits(abandoned_per_server=4), lambda server, reason: None)
    server.down = ""
    for event in held:
        server.release(server.call(lambda result, error: None, event.wait))
    usable = [server.usable]
    for event in held:
        event.set()
        for _ in range(3):
            await asyncio.sleep(0)
        usable.append(server.usable)
    assert usable == [False, False, False, True, True, True]


async def test_a_call_that_is_cancelled_before_it_began_leaves_nothing_behind() -> None:
    told: list[object] = []

    async def work() -> None:
        told.append("began")

    transport = ScriptedTransport("127.0.0.1:1", make_group(), ["a"], iter(()), may_cancel=True)
    server = Server(transport, Limits(), lambda server, reason: None)
    task = server.call(lambda result, error: told.append(result), work)
    assert server.release(task) and server.outstanding == 1
    await asyncio.wait([task])
    await asyncio.sleep(0)
    assert server.outstanding == 0 and told == []
