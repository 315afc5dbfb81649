"""A server that answers everything, but slowly: it is done without, as long as the others are not slow as well."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from coin_export.client import AfterDelay, AtOnce, Budget, CodedClient, Limits, OnlyWhenDown, Policy, Source
from tests.client.fake_triton import PIXELS, FakeTriton, make_group, one_each, started

GROUP = make_group()
BATCH = np.ones((1, PIXELS), np.float32)
# A call that takes so long is no silence, so that slowness alone is what finds the server out.
SLOW_S, SILENCE_S = 0.25, 60.0
# What a model takes where the first call after a second of rest, itself a few milliseconds longer, must not look slow.
USUAL_S = 0.02
LIMITS = Limits(misses_in_a_row=3, silence_s=SILENCE_S, slow_s=0.5, lookup_interval_s=3600, close_s=0.5)


async def ask(client: CodedClient, count: int) -> list[Source]:
    return [(await client.infer({"input": BATCH}))["a"].source for _ in range(count)]


async def grown_slow(client: CodedClient, servers: Sequence[FakeTriton], count: int = 20) -> list[Source]:
    """Make servers slow; return where the last half of so many answers came from."""
    await ask(client, 30)
    for server in servers:
        server.delay_s = SLOW_S
    return (await ask(client, count))[count // 2 :]


async def grown_slow_until_spared(client: CodedClient, server: FakeTriton) -> None:
    """Make it slow, and ask, a hundred requests a second at most, until ten in a row have left it alone."""
    await grown_slow(client, [server])
    asked, spared = server.asked, 0
    for _ in range(1000):
        await ask(client, 1)
        await asyncio.sleep(0.01)
        spared = spared + 1 if server.asked == asked else 0
        asked = server.asked
        if spared == 10:
            return
    raise AssertionError(f"still asked after {asked} calls")


@pytest.mark.parametrize("policy", [Policy(), Policy(AtOnce()), Policy(budget=Budget(0.0, 0.0))])
async def test_it_is_done_without(policy: Policy, caplog: pytest.LogCaptureFixture) -> None:
    """Also without any budget, where requests wait for it until it is found out."""
    servers = one_each(GROUP)
    async with started(*servers) as addresses, CodedClient(addresses, policy=policy, limits=LIMITS) as client:
        await grown_slow_until_spared(client, servers[0])
        assert await ask(client, 5) == [Source.DECODED] * 5
        assert (
            f"server {addresses[0]} counts as down: most calls have taken twice the usual time or longer" in caplog.text
        )


async def test_it_is_tried_with_a_few_calls_per_look_up_and_used_again_when_it_is_as_fast_as_before() -> None:
    servers = one_each(GROUP)
    limits = replace(LIMITS, lookup_interval_s=0.3)
    async with started(*servers) as addresses, CodedClient(addresses, limits=limits) as client:
        await grown_slow_until_spared(client, servers[0])
        asked, looked_up = servers[0].asked, servers[0].metadata_calls
        for _ in range(100):
            await ask(client, 1)
            await asyncio.sleep(0.01)
        assert servers[0].asked - asked <= 5 * (servers[0].metadata_calls - looked_up + 1)
        servers[0].delay_s = 0.0
        for _ in range(500):
            await asyncio.sleep(0.01)
            if await ask(client, 10) == [Source.DIRECT] * 10:
                return
        raise AssertionError("it is not used again")


async def test_trials_that_fail_become_seldom() -> None:
    """However few requests there are: here, each would be a trial."""
    servers = one_each(GROUP)
    limits = replace(LIMITS, lookup_interval_s=0.05)
    async with started(*servers) as addresses, CodedClient(addresses, limits=limits) as client:
        await grown_slow_until_spared(client, servers[0])
        asked = servers[0].asked
        for _ in range(25):
            await ask(client, 1)
            await asyncio.sleep(0.1)
        assert 1 <= servers[0].asked - asked <= 15


@pytest.mark.parametrize("policy", [Policy(), Policy(AfterDelay(1.0)), Policy(budget=Budget(0.0, 0.0))])
async def test_when_all_are_slow_none_is(policy: Policy, caplog: pytest.LogCaptureFixture) -> None:
    servers = one_each(GROUP)
    async with started(*servers) as addresses, CodedClient(addresses, policy=policy, limits=LIMITS) as client:
        await grown_slow(client, servers)
        assert "counts as down" not in caplog.text


async def test_it_stays_in_use_where_who_would_help_is_slower() -> None:
    servers = one_each(GROUP)
    policy = Policy(budget=Budget(0.0, 0.0))
    async with started(*servers) as addresses, CodedClient(addresses, policy=policy, limits=LIMITS) as client:
        servers[0].delay_s, servers[1].delay_s, servers[2].delay_s = USUAL_S, USUAL_S, 4 * SLOW_S
        found = await grown_slow(client, servers[:1], count=24)
        assert found[-4:] == [Source.DIRECT] * 4


async def test_what_is_asked_of_one_alone_is_compared_with_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """It may take longer for what is asked, such as a large batch."""
    servers = one_each(GROUP)
    policy = Policy(budget=Budget(0.0, 0.0))
    async with started(*servers) as addresses, CodedClient(addresses, policy=policy, limits=LIMITS) as client:
        await ask(client, 30)
        servers[0].delay_s = SLOW_S
        for _ in range(8):
            answers = await client.infer({"input": BATCH}, wanted=["a"])
            assert answers["a"].source is Source.DIRECT
        assert "counts as down" not in caplog.text


@pytest.mark.parametrize(
    ("policy", "limits"),
    [
        (Policy(OnlyWhenDown()), LIMITS),
        (Policy(budget=Budget(0.0, 0.0)), replace(LIMITS, slow_s=math.inf)),
    ],
)
async def test_it_is_waited_for_where_that_is_wished(policy: Policy, limits: Limits) -> None:
    servers = one_each(GROUP)
    async with started(*servers) as addresses, CodedClient(addresses, policy=policy, limits=limits) as client:
        assert set(await grown_slow(client, servers[:1])) == {Source.DIRECT}
