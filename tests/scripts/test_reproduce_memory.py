import sys

import numpy as np
import pytest

from scripts.reproduce.memory import PeakMemory


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_memory_that_came_and_went_is_seen_each_time() -> None:
    for _ in range(2):
        peak = PeakMemory()
        np.ones(4_000_000)
        grown = peak.grown_bytes()
        assert grown is not None and grown > 20_000_000
    assert PeakMemory().grown_bytes() is not None
