"""One server as one client sees it: abandoned calls, the client's own breaker, and look-ups.

The counterpart of `client.server.Server` and of the part of `client.pool` that looks servers up.
"""

from __future__ import annotations

from coin_export.client.breaker import Abandoned, Breaker, Lag
from coin_export.client.server import Limits
from coin_export.evaluate.simulation.clock import Clock
from coin_export.evaluate.simulation.server import Server


class Line:
    """A client's view of a server.

    Args:
        clock: the simulation's.
        server: the server.
        limits: the client's bounds.

    Attributes:
        server: as above.
        abandoned: calls under way that nobody waits for.
        down: it counts as down.
        lag: whether it is slow.
    """

    __slots__ = ("_breaker", "_clock", "_limits", "_looking_up", "_next_lookup", "abandoned", "down", "lag", "server")

    def __init__(self, clock: Clock, server: Server, limits: Limits) -> None:
        self.server = server
        self.abandoned = Abandoned(limits.abandoned_per_server)
        self.down = False
        self._clock = clock
        self._limits = limits
        self._breaker = Breaker(limits.misses_in_a_row, limits.silence_s)
        self.lag = Lag(limits.misses_in_a_row, limits.slow_s, limits.lookup_interval_s)
        self._looking_up = False
        self._next_lookup = limits.lookup_interval_s  # it was looked up at the start

    @property
    def has_room(self) -> bool:
        """Whether the bound on abandoned calls allows one more call."""
        return not self.abandoned.too_many

    @property
    def usable(self) -> bool:
        """Whether calls may be sent."""
        return not self.down and self.has_room

    def answered(self) -> None:
        """Take note of an answer, be it late."""
        self._breaker.answered()

    def leave_alone(self) -> None:
        """Take it out of use for some time, as it is slow."""
        self.down = True
        self.lag.pause(self._clock.now)
        self._next_lookup = self.lag.paused_until

    def try_again(self) -> None:
        """Be done with leaving it alone."""
        now = self._clock.now
        if self.lag.paused(now):
            self.lag.paused_until = self._next_lookup = now

    def late(self) -> bool:
        """Take note of a call that was given up later than usual; tell whether the server counts as down now."""
        if self._breaker.late(self._clock.now) and not self.down:
            self.down = True
            return True
        return False

    def look_up(self) -> None:
        """Ask a server that is down whether it is well, if that is due; it says so as soon as it does not stand still.

        Such a question does not wait behind calls.
        """
        now = self._clock.now
        if self.down and not self._looking_up and now >= self._next_lookup:
            self._looking_up = True
            self._next_lookup = now + self._limits.lookup_interval_s
            self._clock.at(self.server.ready(), self._looked_up, None)

    def _looked_up(self, _: object) -> None:
        self._looking_up = False
        if self.lag.paused(self._clock.now):
            self._next_lookup = self.lag.paused_until
        else:
            self.down = False
