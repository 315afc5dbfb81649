"""One request as a state machine: what to send, how long to wait, when to finish. No IO, no clock, no threads.

The driver (asyncio, or a simulation on a virtual clock) tells it what happened and when; it answers with
actions to carry out, in order. Members are the rows of the generator matrix, numbered from 0, the originals
first. Every request ends exactly once, with `Finish` or `GiveUp`; whatever is told later is ignored.

Times are seconds on one clock of the driver's choice that never goes back.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from enum import Enum
from typing import NamedTuple

from coin_export.client.comparison import Comparison
from coin_export.client.memory import Memory
from coin_export.client.policy import Begun, Decodable, Policy
from coin_export.code.helping import helpers
from coin_export.code.linear import Decoding, LinearCode, Wanted


class Send(NamedTuple):
    """Ask these members; report each of them by `Gather.arrived` or `Gather.failed`.

    A member whose servers all count as down is not asked, and reported by `Gather.withheld`; unless ``though_down``
    says to ask it as a last resort.
    """

    rows: tuple[int, ...]
    though_down: bool = False


class Wake(NamedTuple):
    """Call `Gather.woken` at this time, never if it is infinite; replaces every earlier `Wake`."""

    at: float


class Finish(NamedTuple):
    """The request succeeded.

    Attributes:
        direct: the wanted originals that arrived themselves; none when a combination is wanted.
        decoding: how the other wanted originals, or the combination, follow from what arrived; None if there are none.
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
        wanted: the originals whose answers are asked for, or that the combination needs.
        policy: when to send and when to decode.
        memory: of earlier requests; learns from this one, also from what is told after its end.
        started: when the request began.
        deadline: when it must have ended; infinite for never.
        combination: k coefficients; not the wanted originals themselves are asked for then, but this combination of
            them, which is direct when all of them have arrived.
        coded: whether members that are not wanted may be asked, too; nothing is decoded otherwise.
        arrived: members whose answers are at hand already, from an earlier attempt at the same request.

    Attributes:
        started: when the request began.
        comparison: of its calls, by which servers are found to be slow; where there is no help against slowness, or not
            all originals are wanted, it finds nothing.
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
        combination: tuple[float, ...] | None = None,
        *,
        coded: bool = True,
        arrived: Collection[int] = (),
    ) -> None:
        self._code = code
        self._members = code.members if coded else frozenset(wanted)
        self._wanted = tuple(wanted)
        self._wants_all = len(self._wanted) == code.k
        self._goal: tuple[Wanted, ...] = self._wanted if combination is None else (combination,)
        self._policy = policy
        self._memory = memory
        self.started = started
        self._deadline = deadline
        self._arrived = set(arrived)
        self._coded = sum(row >= code.k for row in arrived)  # how many of those that arrived are coded models
        self._failed: set[int] = set()
        self._missing = set(wanted).difference(arrived)
        self._askable = self._members.difference(arrived)  # not asked yet
        self._withheld: set[int] = set()  # not asked, as their servers count as down
        self._resorted: set[int] = set()  # asked as a last resort, although their servers count as down
        self._late_at: dict[int, float] = {}  # of the members that were asked and have neither answered nor failed
        self._doubted: set[int] = set()  # members whose servers came to count as down while nobody had answered
        self._help_at = self._late_after(started, len(self._missing)) if coded else math.inf
        self._helps_the_late = self._help_at < math.inf
        self._helped_at = started
        self._fell_out = False  # whether a member has failed or was withheld since help was last thought about
        self._to_replace = 0  # how many of those have nobody in their place yet
        self._decode_at: float | None = None  # None until decodable
        self._wake_at = math.inf
        # Where not all originals are wanted it takes more than one call to replace one, so none is called slow.
        compares = self._wants_all and self._helps_the_late
        self.comparison = Comparison(self._wanted, memory.slow_s if compares else math.inf)
        self.ended = False
        self.refusals = 0

    @property
    def lacked(self) -> frozenset[int]:
        """Whose answers the request lacks: the wanted ones that are missing; everybody's while decoding takes more."""
        decodable = not self._missing or self._decode_at is not None
        return frozenset(self._missing) if decodable else self._members - self._arrived

    @property
    def patience_s(self) -> float:
        """After how long a call that is given up counts against its server."""
        return self._memory.patience_s

    def start(self) -> list[Action]:
        """Begin; must be called first and once."""
        self._memory.bucket.earn(len(self._missing))
        rows = tuple(row for row in self._wanted if row in self._missing)
        if self._help_at <= self.started:
            rows = tuple(sorted(self._askable))
            # Everybody is asked, and nobody is late yet: what is withheld must not be asked in place of the others.
            self._help_at = min(self.started + self.patience_s, self._resort_at(self.started))
        return [self._ask(Send(rows), self._help_at), *self._wake()]

    def arrived(self, row: int, now: float) -> list[Action]:
        """Tell that a usable answer of a member that was asked has arrived, also if it is too late."""
        self._learn(row, now)
        if self.ended:
            return []
        self._arrived.add(row)
        self._coded += row >= self._code.k
        self._late_at.pop(row, None)
        self._missing.discard(row)
        if self._doubted:
            for doubted in self._doubted & self._late_at.keys():
                self._fall_out(doubted)
            self._doubted.clear()
        return self._proceed(now)

    def failed(self, row: int, now: float) -> list[Action]:
        """Tell that a member that was to be asked will not answer usably."""
        if self.ended:
            return []
        self._failed.add(row)
        self._fall_out(row)
        self._askable -= {row}
        if not self._code.decodable(self._members - self._failed, self._goal):
            return self._give_up(Cause.TOO_FEW)
        return self._proceed(now)

    def withheld(self, row: int, now: float) -> list[Action]:
        """Tell that a member was not asked, as its servers count as down; it may be asked as a last resort."""
        if self.ended:
            return []
        self._withheld.add(row)
        self._fall_out(row)
        resort_at = self._resort_at(now)
        self._late_at = {other: min(at, resort_at) for other, at in self._late_at.items()}
        return self._proceed(now)

    def doubted(self, row: int, now: float) -> list[Action]:
        """Tell that the server of a member that was asked counts as down by now; its answer is welcome all the same."""
        if self.ended or row not in self._late_at or row in self._resorted:
            return []
        if not self._arrived and len(self._wanted) > 1:
            self._doubted.add(row)  # as long as nobody answers, everything may be slow: the budget holds
            return []
        self._fall_out(row)
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

    def _fall_out(self, row: int) -> None:
        """Count no longer on a member; it is to be replaced if it was counted on."""
        self._to_replace += self._late_at.pop(row, None) is not None
        self._fell_out = True

    def _proceed(self, now: float) -> list[Action]:
        if not self._missing:
            return self._finish()
        # Each of what is missing takes a coded answer: a count rules out most arrivals without any algebra.
        may_decode = self._decode_at is None and self._coded >= min(len(self._missing), len(self._goal))
        if may_decode and self._code.decodable(self._arrived, self._goal):
            self._decode_at = self._policy.decode.decode_at(
                Decodable(self.started, self._helped_at, now), self._memory.latencies
            )
        if self._decode_at is not None:
            nothing_to_wait_for = self._missing.isdisjoint(self._late_at)
            if nothing_to_wait_for or now >= min(self._decode_at, self._deadline):
                return self._finish()
            return self._wake()
        if now >= self._deadline:
            return self._give_up(Cause.DEADLINE)
        if (self._askable or self._withheld) and (self._fell_out or now >= self._help_at or self._resorts(now)):
            return [*self._help(now), *self._wake()]
        return self._wake()

    def _help(self, now: float) -> list[Action]:
        """Ask the fewest members that make up for those that failed, then, within the budget, for those late."""
        self._fell_out = False
        replacing = self._helpers(self._arrived.union(self._late_at), frozenset())
        self._memory.bucket.charge(max(0, len(replacing) - self._to_replace))
        self._to_replace = max(0, self._to_replace - len(replacing))
        actions = self._ask_for_help(self._with_spares(replacing, now), now)
        late = frozenset(row for row, at in self._late_at.items() if at <= now)
        expected = self._arrived.union(self._late_at) - late
        rows = self._helpers(expected, late)
        self._help_at = math.inf
        # From the last resort on, those that count as down cost nothing: no request is lost for want of a token.
        if self._memory.bucket.spend(len(rows - self._withheld if self._resorts(now) else rows)):
            rows = self._with_spares(rows, now)
        else:
            self.refusals += 1
            self._help_at = now + (now - self.started or self.patience_s)  # try again after as long again
            saves = self._resorts(now) and self._code.decodable(expected | self._withheld, self._goal)
            rows = self._withheld if saves else set()
        actions += self._ask_for_help(rows, now)
        self._help_at = min([self._help_at, *(at for at in self._late_at.values() if at > now)])
        if self._withheld and not self._resorts(now):
            self._help_at = min(self._help_at, self._resort_at(self.started))
        return actions

    def _helpers(self, expected: set[int], late: frozenset[int]) -> set[int]:
        """Choose among the members not asked yet; if these cannot suffice, among those withheld as well."""
        given = frozenset(expected)
        rows = set(helpers(self._code, self._goal, given, late, self._askable))
        if self._withheld and not self._code.decodable(expected | rows, self._goal):
            rows = set(helpers(self._code, self._goal, given, late, self._askable | self._withheld))
        return rows

    def _with_spares(self, rows: set[int], now: float) -> set[int]:
        """Add all those withheld where one of them is asked, as it may be down indeed.

        Where the lack of one of them would be noticed in time, only as the budget allows.
        """
        spares = self._withheld - rows
        if not rows & self._withheld:
            return rows
        free = self._resorts(now) or not self._helps_the_late
        return rows | spares if free or self._memory.bucket.spend(len(spares)) else rows

    def _ask_for_help(self, rows: set[int], now: float) -> list[Action]:
        if not rows:
            return []
        self._helped_at = now
        late_at = self._late_after(now, len(rows))
        last_resort = tuple(sorted(rows & self._withheld))
        usual = tuple(sorted(rows - self._withheld))
        self._withheld = self._withheld.difference(last_resort)
        self._resorted.update(last_resort)
        asked = (Send(usual), Send(last_resort, though_down=True))
        return [self._ask(send, late_at) for send in asked if send.rows]

    def _ask(self, send: Send, late_at: float) -> Send:
        self._askable = self._askable.difference(send.rows)
        self._late_at.update(dict.fromkeys(send.rows, late_at))
        return send

    def _late_after(self, asked: float, calls: int) -> float:
        """Return when ``calls`` calls count as late; the same patience holds for helping calls as for the first."""
        late_at = self._policy.coded.coded_at(Begun(asked, self._deadline, calls), self._memory.latencies)
        return min(late_at, self._resort_at(asked)) if self._withheld else late_at

    def _resorts(self, now: float) -> bool:
        """Tell whether, from now on, whatever happens is looked at for whether a last resort would do."""
        return bool(self._withheld) and now >= self._resort_at(self.started)

    def _resort_at(self, now: float) -> float:
        """Return when a last resort is due: half the time that is left; never if there is no help against slowness."""
        return (now + self._deadline) / 2 if self._helps_the_late else math.inf

    def _learn(self, row: int, now: float) -> None:
        if row < self._code.k and row in self._wanted:  # these are all asked when the request begins
            self._memory.latencies.add(now - self.started, row if self._wants_all else None)

    def _wake(self) -> list[Action]:
        at = self._deadline
        if self._decode_at is not None:
            at = min(at, self._decode_at)
        elif self._askable or self._withheld:
            at = min(at, self._help_at)
        if at == self._wake_at:
            return []
        self._wake_at = at
        return [Wake(at)]

    def _finish(self) -> list[Action]:
        self.ended = True
        complete, combined = not self._missing, self._goal != self._wanted
        if complete and not combined:
            return [Finish(self._wanted, None, ())]
        direct = () if combined else tuple(row for row in self._wanted if row in self._arrived)
        erased = () if complete else tuple(row for row in range(self._code.n) if row not in self._arrived)
        goal = tuple(item for item in self._goal if item not in direct)
        return [Finish(direct, self._code.decoding(self._arrived, goal), erased)]

    def _give_up(self, cause: Cause) -> list[Action]:
        self.ended = True
        return [GiveUp(cause)]
