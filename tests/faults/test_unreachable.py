"""Addresses that were never any good: closed, swallowed, mute, or talking nonsense."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from coin_export.client import Limits
from coin_export.errors import DiscoveryError
from scripts.faults.cluster import Cluster
from tests.faults.asking import Asker, addresses_of, all_direct, decoded
from tests.faults.proxy import answer_garbage, black_hole, closed_port, listening, never_answer

pytestmark = pytest.mark.e2e
REQUESTS = 10
# Waits in full for a server that is mute, and generously for one that is well.
LIMITS = Limits(discovery_s=3.0, lookup_interval_s=0.1, close_s=0.2)


@asynccontextmanager
async def place(kind: str) -> AsyncIterator[str]:
    if kind == "closed":
        yield closed_port()
    elif kind == "black hole":
        with black_hole() as address:
            yield address
    else:
        async with listening(never_answer if kind == "mute" else answer_garbage) as address:
            yield address


@pytest.mark.parametrize("kind", ["closed", "black hole", "mute", "garbage"])
async def test_the_others_make_good_for_an_address_that_is_no_use(three: Cluster, wire: str, kind: str) -> None:
    addresses = dict(addresses_of(three, wire))
    async with place(kind) as bad:
        addresses["b"] = bad
        async with Asker(three.linear, addresses.values(), wire, LIMITS) as asker:
            for _ in range(REQUESTS):
                assert decoded("b")(await asker.ask())
            three.kill("a")
            await asker.fail_naming({"a": addresses["a"], "b": bad})


@pytest.mark.parametrize("kind", ["closed", "mute", "garbage"])
async def test_an_address_in_place_of_a_coded_model_s_costs_nothing(three: Cluster, kind: str) -> None:
    addresses = dict(three.grpc_addresses)
    async with place(kind) as addresses["coded_0"], Asker(three.linear, addresses.values(), limits=LIMITS) as asker:
        for _ in range(REQUESTS):
            assert all_direct(await asker.ask())


async def test_two_of_them_at_once(four: Cluster, wire: str) -> None:
    addresses = dict(addresses_of(four, wire))
    async with (
        place("mute") as addresses["a"],
        place("garbage") as addresses["coded_0"],
        Asker(four.linear, addresses.values(), wire, LIMITS) as asker,
    ):
        for _ in range(REQUESTS):
            assert decoded("a")(await asker.ask())


async def test_where_too_few_are_left_connecting_says_why_of_each(three: Cluster, wire: str) -> None:
    good = addresses_of(three, wire)["a"]
    async with place("mute") as mute, place("garbage") as garbage:
        with pytest.raises(DiscoveryError, match="only 1 of its 3 members can be reached") as caught:
            async with Asker(three.linear, [good, mute, garbage], wire, LIMITS):
                pass
    assert f"{mute}: " in str(caught.value) and f"{garbage}: " in str(caught.value)
