"""Does things at their time on the event loop, to within microseconds: the loop's own timers are up to 1 ms late.

Linux only: a timer descriptor, through the C library until Python 3.13 has it.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

_ABSOLUTE = 1  # TFD_TIMER_ABSTIME
_C = ctypes.CDLL(None, use_errno=True)


class Event(NamedTuple):
    """Something to do at a time of the monotonic clock."""

    at: float
    act: Callable[[], object]


async def play(events: Sequence[Event]) -> None:
    """Do everything in order of time; returns after the last of it."""
    loop = asyncio.get_running_loop()
    left = deque(sorted(events, key=lambda event: event.at))
    ended = asyncio.Event()
    timer = _C.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
    if timer < 0:
        raise OSError(ctypes.get_errno(), "timerfd_create failed")

    def due() -> None:
        os.read(timer, 8)
        act()

    def act() -> None:
        while left and left[0].at <= time.monotonic():
            left.popleft().act()
        if left:
            _set(timer, left[0].at)
        else:
            ended.set()

    loop.add_reader(timer, due)
    try:
        act()
        await ended.wait()
    finally:
        loop.remove_reader(timer)
        os.close(timer)


def _set(timer: int, at: float) -> None:
    seconds, fraction = divmod(at, 1)
    setting = (ctypes.c_long * 4)(0, 0, int(seconds), int(1e9 * fraction))
    if _C.timerfd_settime(timer, _ABSOLUTE, setting, None):
        raise OSError(ctypes.get_errno(), "timerfd_settime failed")
