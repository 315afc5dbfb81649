"""Rounds of requests to a real tritonserver over gRPC of which about half the calls are abandoned."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from coin_export.client import AsSoonAsDecodable, AtOnce, CallEnd, CallInfo, CodedClient, Limits, Observer, Policy
from coin_export.client.observer import CallOutcome
from coin_export.errors import UndecodableError
from coin_export.serve.embedded import EmbeddedServer
from scripts.faults.frames import HEADERS, RST_STREAM, FrameCounter
from scripts.faults.linear_group import INPUT, LinearGroup, random_inputs, write_linear_group

# The calls under way are bounded as for everybody; but no server is to count as down, whatever it misses.
LIMITS = Limits(misses_in_a_row=10**9, discovery_s=60.0, close_s=60.0)
POLICY = Policy(AtOnce(), AsSoonAsDecodable())

_REQUESTERS = 4
_FIRST_DEADLINE_S = 0.002
_STEP = 1.02  # by which the deadline follows the share of abandoned calls
_RIGHT_AT_THE_END = 200
_PATIENT_S = 60.0
_MB = 1e6


@dataclass(frozen=True)
class Abandoned:
    """What a run showed.

    Attributes:
        rounds: requests that sent at least one call.
        calls: calls sent.
        abandoned: of them, calls that nobody waited for any more when their answer came.
        answered_late: of those, calls that the server answered in the end.
        rounds_without_answer: rounds that ended at their deadline with too few answers.
        calls_on_the_wire: gRPC calls counted on the wire, those of discovery included.
        cancelled_on_the_wire: gRPC calls reset by the client (RST_STREAM).
        connections: that the client made; one, if none was lost.
        right_at_the_end: requests with time enough that were answered, rightly, after the last round.
        server_mb: resident memory of the server and its model processes after a tenth of the rounds and at the end.
        client_mb: resident memory of this process, likewise.
    """

    rounds: int
    calls: int
    abandoned: int
    answered_late: int
    rounds_without_answer: int
    calls_on_the_wire: int
    cancelled_on_the_wire: int
    connections: int
    right_at_the_end: int
    server_mb: tuple[float, float]
    client_mb: tuple[float, float]


class _Calls(Observer):
    """Counts calls, by outcome."""

    def __init__(self) -> None:
        self.begun = 0
        self.ended: Counter[CallOutcome] = Counter()
        self.late = 0

    def call_begun(self, call: CallInfo) -> dict[str, str]:
        self.begun += 1
        return {}

    def call_ended(self, call: CallInfo, end: CallEnd) -> None:
        self.ended[end.outcome] += 1

    def call_ended_late(self, call: CallInfo, latency_s: float, error: str) -> None:
        self.late += not error


async def abandon(folder: Path, rounds: int) -> Abandoned:
    """Serve a group from one tritonserver and run the rounds against it.

    Raises:
        AssertionError: if an answer is wrong.
        UndecodableError: if requests with time enough are not answered at the end.
        ServeError: if the server does not survive.
    """
    linear = write_linear_group(folder)
    calls, frames = _Calls(), FrameCounter()
    with EmbeddedServer(linear.repository) as server:
        async with (
            frames.before(server.grpc_address) as address,
            CodedClient([address], policy=POLICY, limits=LIMITS, observers=[calls]) as client,
        ):
            run = _Rounds(linear, client, calls)
            await run.until(max(rounds // 10, 1))
            server_before, client_before = _memory_mb(server.pid), _memory_mb(os.getpid())
            await run.until(rounds)
            await run.settle()
            right = await run.ask_patiently(_RIGHT_AT_THE_END)
            server_after, client_after = _memory_mb(server.pid), _memory_mb(os.getpid())
            cancelled = frames.sent[RST_STREAM]  # closing the client may reset nothing either, but is another matter
        return Abandoned(
            run.rounds,
            calls.begun,
            calls.ended[CallOutcome.ABANDONED],
            calls.late,
            run.unanswered,
            frames.sent[HEADERS],
            cancelled,
            frames.connections,
            right,
            (server_before, server_after),
            (client_before, client_after),
        )


class _Rounds:
    def __init__(self, linear: LinearGroup, client: CodedClient, calls: _Calls) -> None:
        self.rounds = 0
        self.unanswered = 0
        self._linear = linear
        self._client = client
        self._calls = calls
        self._random = np.random.default_rng(0)
        self._deadline_s = _FIRST_DEADLINE_S

    async def until(self, rounds: int) -> None:
        await asyncio.gather(*(self._keep_asking(rounds) for _ in range(_REQUESTERS)))

    async def settle(self) -> None:
        """Wait until the server has answered all that was abandoned."""
        for _ in range(int(_PATIENT_S / 0.1)):
            if self._calls.late >= self._calls.ended[CallOutcome.ABANDONED]:
                return
            await asyncio.sleep(0.1)

    async def ask_patiently(self, requests: int) -> int:
        for _ in range(requests):
            await self._ask(_PATIENT_S)
        return requests

    async def _keep_asking(self, rounds: int) -> None:
        while self.rounds < rounds:
            begun, abandoned = self._calls.begun, self._calls.ended[CallOutcome.ABANDONED]
            try:
                await self._ask(self._deadline_s)
            except UndecodableError:
                self.unanswered += 1
            if self._calls.begun == begun:  # as many calls as may be are abandoned already
                await asyncio.sleep(self._deadline_s)
                continue
            self.rounds += 1
            share = (self._calls.ended[CallOutcome.ABANDONED] - abandoned) / (self._calls.begun - begun)
            self._deadline_s *= _STEP if share > 0.5 else 1 / _STEP

    async def _ask(self, deadline_s: float) -> None:
        inputs = random_inputs(self._random)
        answers = await self._client.infer({INPUT: inputs}, deadline=deadline_s)
        self._linear.check(inputs, answers)


def _memory_mb(pid: int) -> float:
    process = psutil.Process(pid)
    processes = [process] if pid == os.getpid() else [process, *process.children(recursive=True)]
    return round(sum(each.memory_info().rss for each in processes) / _MB, 1)
