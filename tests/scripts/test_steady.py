import os
import subprocess
import sys

import psutil
import pytest

from scripts.bench.steady import steady

HELD = """
from scripts.bench.steady import steady
with steady() as permitted:
    print(permitted, flush=True)
    input()
"""


def test_what_is_measured_comes_first_and_processors_stay_awake_until_it_ends() -> None:
    before = os.sched_getscheduler(0)
    others = set(psutil.Process().children())
    with steady() as permitted:
        if not permitted:
            pytest.skip("no permission for real-time priority")
        assert os.sched_getscheduler(0) == os.SCHED_RR
        spinning = set(psutil.Process().children()) - others
        assert len(spinning) == len(os.sched_getaffinity(0))
    assert os.sched_getscheduler(0) == before
    assert not spinning & set(psutil.Process().children())


def test_without_the_permission_nothing_is_changed() -> None:
    unprivileged = ["setpriv", "--bounding-set", "-sys_nice", "--inh-caps", "-sys_nice"] if os.getuid() == 0 else []
    held = subprocess.run([*unprivileged, sys.executable, "-c", HELD], input="\n", capture_output=True, text=True)
    assert held.returncode == 0 and held.stdout.strip() == "False", held.stderr
