"""Whether a server that misses calls, is slow for long, or has too many abandoned calls counts as down. No IO.

Misses in a row, without an answer in between, open the breaker. Errors do so by their number alone. Lateness must
also have gone on for a time: on a busy client one short stall (a garbage collection, a page fault, a neighbour)
makes a dozen calls late within a few milliseconds, and a server that is about to answer is no dead server.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass, field

_LONGEST_PAUSE = 30.0  # in units of the first one
_TRIAL = 2  # late calls in excess, after a pause,
_TRIAL_SHARE = 0.1  # and so much of the time, so that a server may be cold at first


@dataclass
class Breaker:
    """The misses of one server.

    Attributes:
        misses_in_a_row: so many open it.
        silence_s: seconds between the first and the last miss of the row, if any of them was only late.
    """

    misses_in_a_row: int
    silence_s: float
    _misses: int = field(default=0, init=False)
    _errors: int = field(default=0, init=False)
    _since: float = field(default=0.0, init=False)

    def answered(self) -> None:
        """Take note of a sign of life: the row of misses is over."""
        self._misses = self._errors = 0

    def failed(self, now: float) -> bool:
        """Take note of an error; tell whether the breaker opens."""
        self._errors += 1
        return self._missed(now)

    def late(self, now: float) -> bool:
        """Take note of a call that was given up later than usual; tell whether the breaker opens."""
        return self._missed(now)

    def _missed(self, now: float) -> bool:
        # The row goes on after the breaker has opened: once the server is in use again, one more miss is enough.
        if not self._misses:
            self._since = now
        self._misses += 1
        by_errors = self._errors >= self.misses_in_a_row
        by_silence = self._misses >= self.misses_in_a_row and now - self._since >= self.silence_s
        return by_errors or by_silence


@dataclass
class Lag:
    """By how many the calls to one server that took too long outnumber its prompt answers.

    A server that answers everything, but slowly, never opens a `Breaker`; and one whose processor is rationed answers
    some calls promptly. This is a cumulative sum (Page, 1954) that late calls raise and prompt ones lower, never below
    zero: of a stop that is over nothing is left after some calls.

    Attributes:
        excess: so many more late calls than prompt ones show that the server is slow; twice as many are the most that
            count,
        slow_s: if late ones have been in excess for so many seconds.
        pause_s: seconds for which it is left alone then, before it is tried again; twice as many after every trial
            that fails, up to thirty times as many.
        paused_until: when that is over.
    """

    excess: int
    slow_s: float
    pause_s: float
    paused_until: float = field(default=-math.inf, init=False)
    _sum: int = field(default=0, init=False)
    _since: float = field(default=0.0, init=False)
    _pauses: float = field(default=1.0, init=False)
    _on_trial: bool = field(default=False, init=False)

    @property
    def lagging(self) -> bool:
        """Whether late calls are in excess."""
        return self._sum > 0

    def paused(self, now: float) -> bool:
        """Tell whether the server is to be left alone."""
        return self.paused_until > now

    def prompt(self, now: float) -> None:
        """Take note of a prompt answer; some time after a pause it shows that the server is as prompt as before."""
        self._sum = max(self._sum - 1, 0)
        if not self._sum and now >= self.paused_until + self.slow_s:
            self._pauses, self._on_trial = 1.0, False

    def late(self, now: float, sent: float) -> bool:
        """Take note of a call that took too long; tell whether the server is slow.

        One that was ``sent`` before the end of a pause says nothing new.
        """
        if sent < self.paused_until:
            return False
        if not self._sum:
            self._since = now
        self._sum = min(self._sum + 1, 2 * self.excess)
        if self._on_trial:
            return self._sum >= min(_TRIAL, self.excess) and now - self._since >= _TRIAL_SHARE * self.slow_s
        return self._sum >= self.excess and now - self._since >= self.slow_s

    def pause(self, now: float) -> None:
        """Leave the server alone for some time. Some late calls must show after that that it is slow still."""
        self.paused_until = now + self.pause_s * self._pauses
        self._pauses = min(2 * self._pauses, _LONGEST_PAUSE)
        self._sum, self._on_trial = 0, True

    def forget(self) -> None:
        """Begin anew, as another server may have taken its place."""
        self.paused_until, self._sum, self._pauses, self._on_trial = -math.inf, 0, 1.0, False


@dataclass
class Abandoned:
    """The calls to one server that nobody waits for any more, and whether they are too many.

    Once they are, they stay so until no more than half the bound is left: else a server that does not keep up would be
    sent one more call for each that it ends, and all of these would be in vain.

    Attributes:
        bound: so many are too many.
        too_many: whether they are.
    """

    bound: int
    too_many: bool = field(default=False, init=False)
    _calls: set[Hashable] = field(default_factory=set, init=False)

    def __len__(self) -> int:
        return len(self._calls)

    def add(self, call: Hashable) -> bool:
        """Take note of a call that is abandoned; tell whether they have become too many by it."""
        self._calls.add(call)
        becomes = not self.too_many and len(self._calls) >= self.bound
        self.too_many |= becomes
        return becomes

    def discard(self, call: Hashable) -> bool:
        """Take note that a call, abandoned or not, has ended; tell whether they are too many no more."""
        self._calls.discard(call)
        ends = self.too_many and 2 * len(self._calls) <= self.bound
        self.too_many &= not ends
        return ends
