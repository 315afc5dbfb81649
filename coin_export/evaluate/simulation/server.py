"""A server: one queue, first come first served, and workers that take from it. Knows nothing of requests."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from coin_export.evaluate.simulation.clock import Clock
from coin_export.evaluate.simulation.slowness import Pace


class Call:
    """One call to a server.

    Args:
        request: whatever the caller wants to know it by.
        row: the member that is asked.
        work: seconds that it takes a server at its usual speed.
        sent: when.

    Attributes:
        twin: a call for the same answer at another server; whichever begins first drops the other.
        server: where it was sent; None before.
        dropped: it is not to be executed.
        ended: it was executed.
        overdue: it counts as a miss of its server already.
    """

    __slots__ = ("dropped", "ended", "overdue", "request", "row", "sent", "server", "twin", "work")

    def __init__(self, request: object, row: int, work: float, sent: float = 0.0) -> None:
        self.request = request
        self.row = row
        self.work = work
        self.twin: Call | None = None
        self.server: Server | None = None
        self.dropped = False
        self.ended = False
        self.overdue = False
        self.sent = sent

    def drop(self) -> None:
        """Take it out of its queue."""
        self.dropped = True
        if self.server is not None:
            self.server.outstanding -= 1


class Server:
    """Executes calls in the order of their arrival.

    Args:
        clock: the simulation's.
        pace: how fast it is when.
        workers: how many calls it executes at the same time.
        on_done: told of every call that was executed, when it ends.

    Attributes:
        outstanding: calls that are waiting or executed.
        worked_s: seconds of work, at the usual speed, of the calls that have ended.
    """

    __slots__ = ("_clock", "_idle", "_on_done", "_pace", "_queue", "outstanding", "worked_s")

    def __init__(self, clock: Clock, pace: Pace, workers: int, on_done: Callable[[Call], None]) -> None:
        self.outstanding = 0
        self.worked_s = 0.0
        self._clock = clock
        self._pace = pace
        self._idle = workers
        self._on_done = on_done
        self._queue: deque[Call] = deque()

    def submit(self, call: Call) -> None:
        """Take in a call."""
        call.server = self
        self.outstanding += 1
        if self._idle:
            self._idle -= 1
            self._begin(call)
        else:
            self._queue.append(call)

    def ready(self) -> float:
        """Return when it does not stand still any more; now, if it does not."""
        return self._pace.ready(self._clock.now)

    def _begin(self, call: Call) -> None:
        now = self._clock.now
        if call.dropped:  # while it waited for a server that stood still
            self._take_next()
            return
        twin = call.twin
        if twin is not None:
            ready = self.ready()
            if ready > now:  # a server that stands still cannot tell the twin that it begins
                self._clock.at(ready, self._begin, call)
                return
            twin.drop()
            call.twin = twin.twin = None
        self._clock.at(self._pace.end(now, call.work), self._end, call)

    def _end(self, call: Call) -> None:
        self.outstanding -= 1
        self.worked_s += call.work
        call.ended = True
        self._take_next()
        self._on_done(call)

    def _take_next(self) -> None:
        queue = self._queue
        while queue:
            call = queue.popleft()
            if not call.dropped:
                self._begin(call)
                return
        self._idle += 1
