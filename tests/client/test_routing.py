from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coin_export.client import AtOnce, BetterOfTwo, CodedClient, FewestOutstanding, Limits, Policy, Routing, Source
from coin_export.errors import UndecodableError
from tests.client.fake_triton import PIXELS, FakeTriton, aborting, eventually, make_group, one_each, started

GROUP = make_group()
BATCH = np.ones((1, PIXELS), np.float32)
LOADS = st.lists(st.integers(0, 5), min_size=2, max_size=8)


def test_the_default_sends_to_the_server_with_the_fewest_calls_under_way() -> None:
    assert Policy().route == FewestOutstanding()


@given(LOADS, st.integers())
def test_the_fewest_outstanding_is_the_first_of_the_least_loaded(loads: list[int], seed: int) -> None:
    assert FewestOutstanding().choose(loads, random.Random(seed)) == loads.index(min(loads))


@given(LOADS, st.integers())
def test_the_better_of_two_is_never_the_worst_alone_and_follows_from_the_seed(loads: list[int], seed: int) -> None:
    chosen = BetterOfTwo().choose(loads, random.Random(seed))
    assert sum(load >= loads[chosen] for load in loads) >= 2
    assert chosen == BetterOfTwo().choose(loads, random.Random(seed))


def test_the_better_of_two_spreads_over_servers_of_equal_load() -> None:
    rng = random.Random(0)
    counts = Counter(BetterOfTwo().choose([0, 0, 0, 0], rng) for _ in range(4000))
    assert sorted(counts) == [0, 1, 2, 3] and min(counts.values()) > 800


def test_the_better_of_two_keeps_the_greatest_load_near_the_mean() -> None:
    rng = random.Random(0)
    loads = [0] * 100
    for _ in range(10_000):
        loads[BetterOfTwo().choose(loads, rng)] += 1
    assert max(loads) <= 104  # one choice at random: about 130


@pytest.mark.parametrize("routing", [FewestOutstanding(), BetterOfTwo()])
async def test_a_busy_replica_is_left_alone(routing: Routing) -> None:
    servers = [*one_each(GROUP), FakeTriton(GROUP, ["a"])]
    async with started(*servers) as addresses, CodedClient(addresses, policy=Policy(AtOnce(), route=routing)) as client:
        servers[0].hold.clear()
        servers[3].hold.clear()
        await client.infer({"input": BATCH})
        await eventually(lambda: servers[0].asked + servers[3].asked == 1)
        busy, idle = (servers[0], servers[3]) if servers[0].asked else (servers[3], servers[0])
        idle.hold.set()
        for count in range(1, 4):
            await client.infer({"input": BATCH})
            await eventually(lambda count=count: idle.answered == idle.asked == count)  # type: ignore[misc]
        assert busy.asked == 1
        busy.hold.set()


async def test_though_down_finds_a_server_that_counts_as_down() -> None:
    servers = one_each(GROUP)
    limits = Limits(misses_in_a_row=1, lookup_interval_s=3600)
    async with started(*servers) as addresses, CodedClient(addresses, limits=limits) as client:
        build = client._connected.pool.build
        servers[0].reply = aborting("INTERNAL", "out of memory")
        servers[0].metadata_hold.clear()
        assert (await client.infer({"input": BATCH}))["a"].source is Source.DECODED
        assert build.route(0) is None
        last_resort = build.route(0, though_down=True)
        assert last_resort is not None and last_resort.address == addresses[0]
        assert build.route(1, though_down=True) is build.route(1)
        servers[1].reply = aborting("INTERNAL", "out of memory")
        with pytest.raises(UndecodableError):
            await client.infer({"input": BATCH})
