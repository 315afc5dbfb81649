"""Servers that are killed, stopped and restarted at random under load; `scripts/chaos.py` holds the loop."""

from __future__ import annotations

import pytest

from scripts.chaos import Chaos
from scripts.faults.cluster import Cluster

pytestmark = pytest.mark.e2e


async def test_nothing_is_lost_nor_wrong_while_servers_come_and_go(four: Cluster) -> None:
    result = await Chaos(four, pace=2.0).run(120.0, calm_s=2.0, enough=24)  # a busy machine has time for some of them
    assert result.most_away == 2 and sum(result.faults.values()) >= 4
    assert result.decoded > 0
