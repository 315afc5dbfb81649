"""Servers that are killed, stopped and restarted at random under load; `scripts/chaos.py` holds the loop."""

from __future__ import annotations

import pytest

from scripts.chaos import Chaos
from scripts.faults.cluster import Cluster

pytestmark = pytest.mark.e2e


# Long enough for dozens of faults on a quiet machine, and for some on a busy one.
@pytest.mark.parametrize("seconds", [120.0])
async def test_nothing_is_lost_nor_wrong_while_servers_come_and_go(four: Cluster, seconds: float) -> None:
    result = await Chaos(four).run(seconds, calm_s=2.0)
    assert result.most_away == 2 and sum(result.faults.values()) >= 4
    assert result.decoded > 0
