"""A new build is written into the repository that real servers serve from, and they reload their models under load."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
import numpy as np
import pytest
import tritonclient.http.aio as triton

from coin_export.client import AtOnce, Policy
from coin_export.errors import UndecodableError
from scripts.faults.cluster import Cluster
from scripts.faults.linear_group import TWO_CODED, write_linear_group
from tests.faults.asking import Asker, addresses_of
from tests.faults.test_rollout import build_of_answers

pytestmark = pytest.mark.e2e
_ATTEMPTS = 3


async def test_no_answer_mixes_builds_while_servers_reload_their_models(tmp_path: Path, wire: str) -> None:
    for attempt in range(_ATTEMPTS):
        folder = tmp_path / str(attempt)
        with Cluster(write_linear_group(folder, TWO_CODED)) as cluster:
            try:
                return await reload_under_load(cluster, folder, wire)
            except (UndecodableError, aiohttp.ClientError) as error:
                crashed = [name for name in cluster.servers if cluster.has_crashed(name)]
                if not any(map(cluster.was_shaken_off, crashed)):
                    logs = {name: cluster.last_words(name) for name in crashed}
                    raise AssertionError(f"a request was lost; servers that ended by themselves: {logs}") from error
    raise AssertionError(f"{_ATTEMPTS} times in a row, a server was shaken off")


async def reload_under_load(cluster: Cluster, folder: Path, wire: str) -> None:
    earlier = cluster.linear
    async with Asker(earlier, addresses_of(cluster, wire).values(), wire, policy=Policy(AtOnce())) as asker:
        later = write_linear_group(folder, TWO_CODED, build=1)
        seen: list[int] = []
        over = asyncio.Event()

        async def keep_asking(seed: int) -> None:
            random = np.random.default_rng(seed)
            while not over.is_set():
                seen.append(await build_of_answers(asker, (earlier, later), random))

        requesters = [asyncio.create_task(keep_asking(seed)) for seed in range(3)]
        try:
            await asyncio.wait(requesters, timeout=0.3)
            for name, address in cluster.http_addresses.items():
                async with triton.InferenceServerClient(address) as server:
                    await server.load_model(name)
                done, _ = await asyncio.wait(requesters, timeout=0.3)
                for ended in done:
                    ended.result()  # says why: a request was lost, or its answers are of two builds
                assert not done
        finally:
            over.set()
            results = await asyncio.gather(*requesters, return_exceptions=True)
        for result in results:
            if result is not None:
                raise result
        assert seen[0] == 0 and seen[-1] == 1, "noticed long before all servers are looked up once more"
        assert asker.client.group == later.group
