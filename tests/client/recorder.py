"""An observer that keeps everything that it is told, and clients that it watches on a virtual clock."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from coin_export.client import (
    AtOnce,
    CallEnd,
    CallInfo,
    CallOutcome,
    CodedClient,
    Observer,
    Policy,
    RequestEnd,
    RequestInfo,
)
from coin_export.client.transport import Transport, TransportOptions
from coin_export.errors import UndecodableError
from tests.client.fake_triton import PIXELS, make_group
from tests.client.scripted import Reaction, ScriptedTransport, run_virtually

GROUP = make_group()
NAMES = [member.name for member in GROUP.members]
INPUTS = {"input": np.ones((2, PIXELS), np.float32)}
ADDRESSES = [f"{name.replace('_', '-')}:8001" for name in NAMES]
REPLICA = f"{NAMES[0]}:8002"
NEVER = Reaction(math.inf)


@dataclass
class Recorder(Observer):
    """Keeps everything that it is told."""

    begun: list[RequestInfo] = field(default_factory=list)
    ended: list[tuple[RequestInfo, RequestEnd]] = field(default_factory=list)
    calls: list[CallInfo] = field(default_factory=list)
    calls_ended: list[tuple[CallInfo, CallEnd]] = field(default_factory=list)
    late: list[tuple[CallInfo, float, str]] = field(default_factory=list)
    servers: list[tuple[str, str]] = field(default_factory=list)
    builds: list[tuple[str, str, str]] = field(default_factory=list)

    def request_begun(self, request: RequestInfo) -> None:
        self.begun.append(request)

    def request_ended(self, request: RequestInfo, end: RequestEnd) -> None:
        assert {id(call) for call in self.calls if call.request is request} == {
            id(call) for call, _ in self.calls_ended if call.request is request
        }, "the calls of a request end before it does"
        self.ended.append((request, end))

    def call_begun(self, call: CallInfo) -> Mapping[str, str]:
        assert call.request in self.begun
        self.calls.append(call)
        return {}

    def call_ended(self, call: CallInfo, end: CallEnd) -> None:
        self.calls_ended.append((call, end))

    def call_ended_late(self, call: CallInfo, latency_s: float, error: str) -> None:
        self.late.append((call, latency_s, error))

    def server_down(self, address: str, reason: str) -> None:
        self.servers.append((address, reason))

    def server_up(self, address: str) -> None:
        self.servers.append((address, ""))

    def build_changed(self, group: str, old: str, new: str) -> None:
        self.builds.append((group, old, new))

    def outcomes(self) -> dict[str, CallOutcome]:
        """By model, of the last call to each."""
        return {call.model: end.outcome for call, end in self.calls_ended}


class Wire:
    """Makes the transports of a client; the script holds the reactions of each member, the last one for ever."""

    def __init__(self, script: Sequence[Sequence[Reaction]], *, may_cancel: bool = False) -> None:
        self.transports: list[ScriptedTransport] = []
        self._script = script
        self._may_cancel = may_cancel

    def __call__(self, address: str, options: TransportOptions) -> Transport:
        row = NAMES.index(address.partition(":")[0].replace("-", "_"))
        found = ScriptedTransport(address, GROUP, [NAMES[row]], lasting(self._script[row]), may_cancel=self._may_cancel)
        self.transports.append(found)
        return found


def lasting(reactions: Sequence[Reaction]) -> Iterator[Reaction]:
    return itertools.chain(reactions, itertools.repeat(reactions[-1]))


def watched(
    *reactions: Reaction, policy: Policy | None = None, may_cancel: bool = False, deadline: float | None = None
) -> Recorder:
    """Run one request on a virtual clock, with one reaction for each member, and close the client."""
    recorder = Recorder()

    async def work() -> None:
        wire = Wire([[reaction] for reaction in reactions], may_cancel=may_cancel)
        client = CodedClient(ADDRESSES, policy=policy or Policy(AtOnce()), make_transport=wire, observers=[recorder])
        async with client:
            with contextlib.suppress(UndecodableError):
                await client.infer(INPUTS, deadline=deadline, request_id="r1")

    run_virtually(work())
    return recorder
