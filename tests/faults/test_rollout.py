"""Servers that come back as something else: another member of the group, or another build of it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from coin_export.client import AtOnce, Policy
from scripts.faults.cluster import Cluster
from scripts.faults.linear_group import INPUT, OUTPUT, LinearGroup, random_inputs, write_linear_group
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


async def test_another_build_is_never_decoded_together_with_this_one(three: Cluster, wire: str, tmp_path: Path) -> None:
    later = write_linear_group(tmp_path, build=1)
    addresses = addresses_of(three, wire)
    async with Asker(three.linear, addresses.values(), wire, policy=Policy(AtOnce())) as asker:
        builds: set[int] = set()
        over = asyncio.Event()

        async def keep_asking() -> None:
            random = np.random.default_rng(1)
            while not over.is_set():
                builds.add(await build_of_answers(asker, (three.linear, later), random))

        requesters = [asyncio.create_task(keep_asking()) for _ in range(3)]
        await asyncio.to_thread(three.restart, "a", repository=later.repository)
        await asyncio.sleep(1.0)
        assert builds == {0}
        over.set()
        await asyncio.gather(*requesters)


async def build_of_answers(asker: Asker, builds: tuple[LinearGroup, ...], random: np.random.Generator) -> int:
    """Ask, and return the number of the one build that all answers are of."""
    inputs = random_inputs(random)
    answers = await asker.client.infer({INPUT: inputs}, deadline=DEADLINE_S)
    for number, build in enumerate(builds):
        if all(
            np.allclose(answer.outputs[OUTPUT], build.truth(name, inputs), rtol=1e-4, atol=1e-3)
            for name, answer in answers.items()
        ):
            return number
    raise AssertionError(f"answers of no single build: {answers}")
