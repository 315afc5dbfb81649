"""A steadier machine to measure on: real-time priority, and processors that do not fall asleep between requests."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_PRIORITY = 10  # of real-time processes: above all ordinary ones, below the kernel's own

# Ends with the process that started it, also when that one was killed.
_SPIN = """
import os, sys
os.sched_setaffinity(0, {int(sys.argv[1])})
os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
parent = os.getppid()
while os.getppid() == parent:
    for _ in range(10_000):
        pass
"""


@contextmanager
def steady() -> Iterator[bool]:
    """Give this process and its children real-time priority and keep every processor awake meanwhile.

    Waking a virtual processor takes longer than a request, and by how much varies; a process that runs only when
    nothing else would keeps it awake, as the kernel's ``idle=poll`` does. Without real-time priority such a process
    gets in the way of those that are measured.

    Yields:
        Whether the system permits it; nothing is changed where it does not (it takes CAP_SYS_NICE).
    """
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(_PRIORITY))
    except PermissionError:
        yield False
        return
    spinning = [
        subprocess.Popen([sys.executable, "-c", _SPIN, str(processor)]) for processor in sorted(os.sched_getaffinity(0))
    ]
    try:
        yield True
    finally:
        for process in spinning:
            process.kill()
            process.wait()
        os.sched_setscheduler(0, policy, parameters)
