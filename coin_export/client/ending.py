"""Waits that end: for work in bounded time, and for tasks that were cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

_ROUNDS = 10


async def within(seconds: float, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of the work, which gets a bounded time.

    Unlike `asyncio.wait_for` before Python 3.12, this never swallows a cancellation that comes together with the
    result; the caller would go on as if nothing had happened, and whoever cancelled it would wait for ever.

    Raises:
        TimeoutError: if it takes longer (`asyncio.TimeoutError`, which is another class before Python 3.11).
    """
    task = asyncio.get_running_loop().create_task(work)
    task.add_done_callback(_retrieve)
    try:
        await asyncio.wait([task], timeout=seconds)
        if task.done():
            return task.result()
        raise asyncio.TimeoutError
    finally:
        task.cancel()


async def ended(tasks: Collection[asyncio.Task[Any]], seconds: float) -> None:
    """Wait for tasks, but not longer."""
    if tasks:
        await asyncio.wait(tasks, timeout=seconds)


async def cancelled(tasks: Collection[asyncio.Task[Any]], seconds: float) -> None:
    """Cancel tasks and wait until they have ended, but not longer; again and again, as some swallow it at first."""
    pending = {task for task in tasks if not task.done()}
    for _ in range(_ROUNDS):
        if not pending:
            return
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=seconds / _ROUNDS)


def _retrieve(task: asyncio.Task[Any]) -> None:
    """Ask for a task's exception, lest asyncio report it as never retrieved when nobody waits any more."""
    if not task.cancelled():
        task.exception()
