"""Servers that come back as something else: another member of the group, or another build of it."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from coin_export.client import AtOnce, Limits, Policy
from coin_export.errors import UndecodableError
from scripts.faults.cluster import Cluster
from scripts.faults.linear_group import INPUT, TWO_CODED, LinearGroup, random_inputs, write_linear_group
from tests.faults.asking import DEADLINE_S, Asker, addresses_of, all_direct, decoded

pytestmark = pytest.mark.e2e


async def test_servers_that_swap_their_models_are_found_out(four: Cluster, wire: str) -> None:
    async with Asker(four.linear, addresses_of(four, wire).values(), wire) as asker:
        await asker.ask_until(all_direct)
        four.kill("a")
        await asker.ask_until(decoded("a"))
        await asyncio.to_thread(four.restart, "coded_0", model="a")
        await asker.ask_until(all_direct)
        await asyncio.to_thread(four.restart, "a", model="coded_0")
        four.kill("b")
        four.kill("coded_1")
        # Nothing that a client sees tells when it has found the coded model at its new place.
        await asker.recover_until(decoded("b"))


async def test_a_new_build_is_rolled_out_under_load(four: Cluster, tmp_path: Path) -> None:
    later = write_linear_group(tmp_path, TWO_CODED, build=1)
    builds = (four.linear, later)
    async with Asker(four.linear, four.grpc_addresses.values(), policy=Policy(AtOnce())) as asker:
        seen: list[int] = []
        over = asyncio.Event()

        async def keep_asking(seed: int) -> None:
            random = np.random.default_rng(seed)
            while not over.is_set():
                seen.append(await build_of_answers(asker, builds, random))

        requesters = [asyncio.create_task(keep_asking(seed)) for seed in range(3)]
        for name, address in four.grpc_addresses.items():
            await asyncio.to_thread(four.restart, name, repository=later.repository)
            while not holds(asker, address, later):
                done, _ = await asyncio.wait(requesters, timeout=0.02)
                assert not done, "a request was lost, or is wrong"
        assert await build_of_answers(asker, builds, np.random.default_rng(4)) == 1
        over.set()
        await asyncio.gather(*requesters)
        assert seen[0] == 0 and asker.client.group == later.group


async def test_a_client_that_was_idle_meanwhile_does_not_decode_builds_together(
    three: Cluster, wire: str, tmp_path: Path
) -> None:
    later = write_linear_group(tmp_path, build=1)
    limits = Limits(discovery_s=3.0, lookup_interval_s=0.1)
    async with Asker(three.linear, addresses_of(three, wire).values(), wire, limits, policy=Policy(AtOnce())) as asker:
        await asker.ask_until(all_direct)
        await asyncio.to_thread(three.restart, "a", repository=later.repository)
        random = np.random.default_rng(1)
        for _ in range(10):
            assert await build_of_answers(asker, (three.linear, later), random) == 0
        three.kill("b")
        # One server of the old build and one of the new are left: better no answer than a wrong one.
        with pytest.raises(UndecodableError):
            await build_of_answers(asker, (three.linear, later), random)


def holds(asker: Asker, address: str, build: LinearGroup) -> bool:
    """Whether the client knows that a server that is up holds a build."""
    server = asker.client._connected.pool._servers[address]
    return server.usable and server.report is not None and server.report.served[0].generation == build.group.generation


async def build_of_answers(asker: Asker, builds: tuple[LinearGroup, ...], random: np.random.Generator) -> int:
    """Ask, and return the number of the one build that all answers are of."""
    inputs = random_inputs(random)
    answers = await asker.client.infer({INPUT: inputs}, deadline=DEADLINE_S)
    for number, build in enumerate(builds):
        with suppress(AssertionError):
            build.check(inputs, answers)
            return number
    raise AssertionError(f"answers of no single build: {answers}")
