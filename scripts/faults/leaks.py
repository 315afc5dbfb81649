"""Very many requests over a scripted transport, slow and failing calls among them: does anything pile up?"""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from coin_export.client import AtOnce, Budget, CodedClient, Limits, Policy, Source, TransportOptions
from coin_export.client.transport import Reply, RequestOptions
from coin_export.code.manifest import Group
from coin_export.errors import TransportError, UndecodableError
from scripts.bench.scripted import INPUTS, OUTPUT, ScriptedTransport, scripted_group

_REQUESTERS = 16
_SLOW_EVERY, _SLOW_S = 50, 0.1
_FAILING_EVERY = 333
_NAN_EVERY = 1000
_MB = 1e6


@dataclass(frozen=True)
class Leaks:
    """What a run showed.

    Attributes:
        requests: how many were made.
        decoded: how many of their answers were decoded.
        unanswered: requests that too many scripted faults met at once, or that came too late.
        warnings: every warning, exception in a callback and unraisable exception of the run.
        tasks_left: tasks of asyncio's beside the main one, after closing.
        threads_left: threads more than before.
        descriptors_left: open files and sockets more than before.
        objects: those that Python's garbage collector knows, after a tenth of the requests and at the end.
        memory_mb: resident memory, likewise.
    """

    requests: int
    decoded: int
    unanswered: int
    warnings: list[str]
    tasks_left: int
    threads_left: int
    descriptors_left: int
    objects: tuple[int, int]
    memory_mb: tuple[float, float]


class _Faulty(ScriptedTransport):
    """Answers at once mostly; sometimes late, with NaN, or not at all."""

    def __init__(self, address: str, group: Group, member: str) -> None:
        super().__init__(address, group, member)
        self._numbers = itertools.count(int(address.rpartition(":")[2]))
        self._nan = Reply({OUTPUT: np.full_like(self._reply.outputs[OUTPUT], np.nan)}, "1")

    async def infer(
        self, model: str, encoded: Any, outputs: Sequence[str], options: RequestOptions, version: str = ""
    ) -> Reply:
        """See `Transport`."""
        number = next(self._numbers)
        await asyncio.sleep(_SLOW_S if number % _SLOW_EVERY == 0 else 0)
        if number % _FAILING_EVERY == 0:
            raise TransportError("scripted", address=self.address)
        return self._nan if number % _NAN_EVERY == 0 else self._reply


def look_for_leaks(requests: int) -> Leaks:
    """Make the requests in an event loop of their own."""
    reported: list[str] = []
    threads, descriptors = threading.active_count(), _descriptors()
    with _everything_reported(reported):
        counts, tasks, objects, memory_mb = asyncio.run(_run(requests, reported))
        gc.collect()
    return Leaks(
        requests,
        *counts,
        reported,
        tasks,
        threading.active_count() - threads,
        _descriptors() - descriptors,
        objects,
        memory_mb,
    )


@contextmanager
def _everything_reported(reported: list[str]) -> Iterator[None]:
    """Turn warnings into errors, and note those that nobody can catch."""
    hook = sys.unraisablehook
    sys.unraisablehook = lambda unraisable: reported.append(f"unraisable: {unraisable.exc_value!r}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            yield
    finally:
        sys.unraisablehook = hook


async def _run(requests: int, reported: list[str]) -> tuple[tuple[int, int], int, tuple[int, int], tuple[float, float]]:
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: reported.append(str(context)))
    group = scripted_group(2)
    members = {f"scripted:{index}": member.name for index, member in enumerate(group.members, start=1)}

    def transport(address: str, options: TransportOptions) -> _Faulty:
        return _Faulty(address, group, members[address])

    numbers = iter(range(requests))
    decoded = unanswered = 0

    async def keep_asking() -> None:
        nonlocal decoded, unanswered
        for number in numbers:
            # Every other request may take as long as it likes, the rest less than a slow call does.
            deadline = 10.0 if number % 2 else _SLOW_S / 2
            try:
                answers = await client.infer(INPUTS, deadline=deadline)
            except UndecodableError:
                unanswered += 1
            else:
                decoded += sum(answer.source is Source.DECODED for answer in answers.values())
            if number == requests // 10:
                seen.append(_piled_up())

    seen: list[tuple[int, float]] = []
    policy = Policy(AtOnce(), budget=Budget(1.0))
    limits = Limits(misses_in_a_row=10**9)
    async with CodedClient(list(members), policy=policy, limits=limits, make_transport=transport) as client:
        await asyncio.gather(*(keep_asking() for _ in range(_REQUESTERS)))
        seen.append(_piled_up())
    (objects_before, memory_before), (objects_after, memory_after) = seen
    tasks = len(asyncio.all_tasks()) - 1
    return (decoded, unanswered), tasks, (objects_before, objects_after), (memory_before, memory_after)


def _piled_up() -> tuple[int, float]:
    gc.collect()
    return len(gc.get_objects()), round(psutil.Process().memory_info().rss / _MB, 1)


def _descriptors() -> int:
    return len(list(Path(f"/proc/{os.getpid()}/fd").iterdir()))
