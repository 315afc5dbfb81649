"""Connections that stall, break, half-close, garble or crawl between a client and servers that are well."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from coin_export.client import Limits
from scripts.faults.cluster import Cluster
from tests.faults.asking import LIMITS, Asker, addresses_of, all_direct, decoded
from tests.faults.proxy import Proxy, proxying

pytestmark = pytest.mark.e2e
REQUESTS = 10


async def test_a_stalled_connection_s_answers_are_decoded_until_it_flows_again(three: Cluster, wire: str) -> None:
    addresses = dict(addresses_of(three, wire))
    async with proxying(addresses["a"]) as proxy:
        addresses["a"] = proxy.address
        async with Asker(three.linear, addresses.values(), wire) as asker:
            await asker.ask_until(all_direct)
            proxy.flowing.clear()
            for _ in range(REQUESTS):
                assert decoded("a")(await asker.ask())
            proxy.flowing.set()
            await asker.ask_until(all_direct)


@pytest.mark.parametrize("break_off", [Proxy.cut, Proxy.end_answers, Proxy.end_requests])
async def test_connections_that_break_off_under_load_lose_no_request(
    three: Cluster, wire: str, break_off: Callable[[Proxy], None]
) -> None:
    addresses = dict(addresses_of(three, wire))
    async with proxying(addresses["b"]) as proxy:
        addresses["b"] = proxy.address
        async with Asker(three.linear, addresses.values(), wire) as asker:
            await asker.ask_until(all_direct)
            over = asyncio.Event()

            async def keep_asking() -> None:
                while not over.is_set():
                    await asker.ask()

            requesters = [asyncio.create_task(keep_asking()) for _ in range(2)]
            for _ in range(3):
                before = proxy.connections
                break_off(proxy)
                while proxy.connections == before:
                    await asker.ask()
                await asker.ask_until(all_direct)
            over.set()
            await asyncio.gather(*requesters)


async def test_garbled_answers_are_decoded_until_they_are_readable_again(three: Cluster, wire: str) -> None:
    addresses = dict(addresses_of(three, wire))
    async with proxying(addresses["a"]) as proxy:
        addresses["a"] = proxy.address
        async with Asker(three.linear, addresses.values(), wire) as asker:
            await asker.ask_until(all_direct)
            proxy.corrupt = True
            await asker.ask_until(decoded("a"))
            for _ in range(REQUESTS):
                assert decoded("a")(await asker.ask())
            proxy.corrupt = False
            await asker.ask_until(all_direct)


async def test_a_server_that_is_slow_to_say_what_it_serves_is_used_once_it_has(three: Cluster, wire: str) -> None:
    addresses = dict(addresses_of(three, wire))
    async with proxying(addresses["a"]) as proxy:
        addresses["a"] = proxy.address
        proxy.flowing.clear()
        async with Asker(three.linear, addresses.values(), wire, Limits(discovery_s=4.0, close_s=0.2)) as asker:
            assert decoded("a")(await asker.ask())
            proxy.flowing.set()
            await asker.ask_until(all_direct)


async def test_a_slow_discovery_within_the_limit_is_waited_for(three: Cluster, wire: str) -> None:
    addresses = dict(addresses_of(three, wire))
    async with proxying(addresses["a"]) as proxy:
        addresses["a"] = proxy.address
        proxy.delay_s = 0.1
        async with Asker(three.linear, addresses.values(), wire, LIMITS) as asker:
            assert asker.client.servers["a"] == (proxy.address,)
            proxy.delay_s = 0.0
            await asker.ask_until(all_direct)
