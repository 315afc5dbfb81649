"""A new build is written into the repository that real servers serve from, and they reload their models under load."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http.aio as triton

from coin_export.client import AtOnce, Policy
from scripts.faults.cluster import Cluster
from scripts.faults.linear_group import TWO_CODED, write_linear_group
from tests.faults.asking import Asker, addresses_of
from tests.faults.test_rollout import build_of_answers

pytestmark = pytest.mark.e2e


async def test_no_answer_mixes_builds_while_servers_reload_their_models(tmp_path: Path, wire: str) -> None:
    earlier = write_linear_group(tmp_path, TWO_CODED)
    with Cluster(earlier) as cluster:
        async with Asker(earlier, addresses_of(cluster, wire).values(), wire, policy=Policy(AtOnce())) as asker:
            later = write_linear_group(tmp_path, TWO_CODED, build=1)
            builds, seen, over = (earlier, later), [], asyncio.Event()

            async def keep_asking(seed: int) -> None:
                random = np.random.default_rng(seed)
                while not over.is_set():
                    seen.append(await build_of_answers(asker, builds, random))

            requesters = [asyncio.create_task(keep_asking(seed)) for seed in range(3)]
            await asyncio.wait(requesters, timeout=0.3)
            for name, address in cluster.http_addresses.items():
                async with triton.InferenceServerClient(address) as server:
                    await server.load_model(name)
                done, _ = await asyncio.wait(requesters, timeout=0.3)
                assert not done, "a request was lost, or its answers are of two builds"
            over.set()
            await asyncio.gather(*requesters)
            assert seen[0] == 0 and seen[-1] == 1, "noticed long before all servers are looked up once more"
            assert asker.client.group == later.group
