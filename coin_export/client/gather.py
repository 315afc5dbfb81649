"""One request as a state machine: what to send, how long to wait, when to finish. No IO, no clock, no threads.

The driver (asyncio, or a simulation on a virtual clock) tells it what happened and when; it answers with
actions to carry out, in order. Members are the rows of the generator matrix, numbered from 0, the originals
first. Every request ends exactly once, with `Finish` or `GiveUp`; whatever is told later is ignored.

Times are seconds on one clock of the driver's choice that never goes back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

from coin_export.client.memory import Memory
from coin_export.client.policy import Begun, Policy
from coin_export.code.linear import Decoding, LinearCode


class Send(NamedTuple):
    """Ask these members; report each of them by `Gather.arrived` or `Gather.failed`."""

    rows: tuple[int, ...]


class Wake(NamedTuple):
    """Call `Gather.woken` at this time, never if it is infinite; replaces every earlier `Wake`."""

    at: float


class Finish(NamedTuple):
    """The request succeeded.

    Attributes:
        direct: the wanted originals that arrived themselves.
        decoding: how the other wanted originals follow from what arrived; None when there are none.
        erased: all members that did not arrive, asked or not; empty when nothing is decoded.
    """

    direct: tuple[int, ...]
    decoding: Decoding | None
    erased: tuple[int, ...]


class Cause(Enum):
    """Why a request was given up."""

    DEADLINE = "the deadline passed"
    TOO_FEW = "too many members failed"


class GiveUp(NamedTuple):
    """The request failed."""

    cause: Cause


Action = Send | Wake | Finish | GiveUp


class Gather:
    """The state of one request.

    Args:
        code: the group's code.
        wanted: the originals whose answers are asked for.
        policy: when to send and when to decode.
        memory: of earlier requests; learns from this one, also from what is told after its end.
        started: when the request began.
        deadline: when it must have ended; infinite for never.

    Attributes:
        started: when the request began.
        ended: whether `Finish` or `GiveUp` was returned.
        refusals: how often the budget had too little left for the helping requests that were due.
    """

    def __init__(
        self,
        code: LinearCode,
        wanted: Sequence[int],
        policy: Policy,
        memory: Memory,
        started: float,
        deadline: float = math.inf,
    ) -> None:
        self._code = code
        self._wanted = tuple(wanted)
        self._policy = policy
        self._memory = memory
        self.started = started
        self._deadline = deadline
        self._arrived: set[int] = set()
        self._failed: set[int] = set()
        self._missing = set(wanted)
        self._helpers = tuple(row for row in range(code.n) if row not in self._missing)
        self._helpers_at = policy.coded.coded_at(Begun(started, deadline, len(self._wanted)), memory.latencies)
        self._helped_at = started
        self._replaces = False  # whether help is in place of a wanted member that failed
        self._decode_at: float | None = None  # None until decodable
        self._wake_at = math.inf
        self.ended = False
        self.refusals = 0

    @property
    def patience_s(self) -> float:
        """After how long a call that is given up counts against its server."""
        return self._memory.patience_s

    def start(self) -> list[Action]:
        """Begin; must be called first and once."""
        self._memory.bucket.earn(len(self._wanted))
        if self._helpers_at > self.started:
            return [Send(self._wanted), *self._wake()]
        rows = tuple(range(self._code.n))
        self._helpers = ()
        return [Send(rows), *self._wake()]

    def arrived(self, row: int, now: float) -> list[Action]:
        """Tell that a usable answer of a member that was asked has arrived, also if it is too late."""
        self._learn(row, now)
        if self.ended:
            return []
        self._arrived.add(row)
        self._missing.discard(row)
        return self._proceed(now)

    def failed(self, row: int, now: float) -> list[Action]:
        """Tell that a member that was to be asked will not answer usably."""
        if self.ended:
            return []
        self._failed.add(row)
        if not self._decodable(set(range(self._code.n)) - self._failed):
            return self._give_up(Cause.TOO_FEW)
        self._replaces = self._replaces or row in self._missing
        return self._proceed(now)

    def overtaken(self, row: int, now: float) -> None:
        """Tell that a call was ended unanswered, as the request had ended: it would have taken longer than this."""
        self._learn(row, now)

    def woken(self, now: float) -> list[Action]:
        """Tell that the time of the last `Wake` has come, or that any other time has."""
        if self.ended:
            return []
        self._wake_at = math.inf
        return self._proceed(now)

    def _proceed(self, now: float) -> list[Action]:
        if not self._missing:
            return self._finish()
        if self._decode_at is None and self._decodable(self._arrived):
            self._decode_at = self._policy.decode.decode_at(self._helped_at, now)
        if self._decode_at is not None:
            nothing_to_wait_for = self._missing <= self._failed
            if nothing_to_wait_for or now >= min(self._decode_at, self._deadline):
                return self._finish()
        elif now >= self._deadline:
            return self._give_up(Cause.DEADLINE)
        return [*self._send_helpers(now), *self._wake()]

    def _decodable(self, rows: set[int]) -> bool:
        """Tell whether ``rows`` determine what is wanted; a count rules out most sets without any algebra."""
        coded = sum(row >= self._code.k for row in rows)
        if coded < sum(row not in rows for row in self._missing):
            return False
        return self._code.decodable(rows, self._wanted)

    def _send_helpers(self, now: float) -> list[Action]:
        if not self._helpers or (now < self._helpers_at and not self._replaces):
            return []
        if not self._replaces and not self._memory.bucket.spend(len(self._helpers)):
            self.refusals += 1
            self._helpers_at = now + (now - self.started)  # try again after as long again
            return []
        rows, self._helpers = self._helpers, ()
        self._helped_at = now
        return [Send(rows)]

    def _learn(self, row: int, now: float) -> None:
        if row in self._wanted:  # these are all asked when the request begins
            self._memory.latencies.add(now - self.started)

    def _wake(self) -> list[Action]:
        at = self._deadline
        if self._decode_at is not None:
            at = min(at, self._decode_at)
        if self._helpers:
            at = min(at, self._helpers_at)
        if at == self._wake_at:
            return []
        self._wake_at = at
        return [Wake(at)]

    def _finish(self) -> list[Action]:
        self.ended = True
        if not self._missing:
            return [Finish(self._wanted, None, ())]
        direct = tuple(row for row in self._wanted if row in self._arrived)
        missing = tuple(row for row in self._wanted if row in self._missing)
        erased = tuple(row for row in range(self._code.n) if row not in self._arrived)
        return [Finish(direct, self._code.decoding(self._arrived, missing), erased)]

    def _give_up(self, cause: Cause) -> list[Action]:
        self.ended = True
        return [GiveUp(cause)]
