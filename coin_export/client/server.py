"""One server as a client sees it: its calls under way, those abandoned, and whether it counts as down.

Health: calls that fail, or are given up later than usual, one after the other without any answer in between, open
the breaker (see `breaker`): the server counts as down. So does one whose answers, one after the other, cannot be used
(NaN, a wrong shape) while others' answers to the same requests can, and one that answers, but slowly for long, where
the others suffice without it. It is then looked up (see `pool`), at most once at a time; a look-up that succeeds puts
it on probation, in which one more miss opens the breaker again and an answer, of a slow server some prompt ones, closes
it for good.

The safety rule: where cancelling a call is unsafe for the server (see `transport`), a call that nobody waits for
any more is abandoned: it runs to its end in its own task, and its answer is dropped. As each of them still costs the
server its work and the client its memory, a server that has too many of them counts as down, too, and is sent nothing
until no more than half as many are left.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from coin_export.client.breaker import Abandoned, Breaker, Lag
from coin_export.client.discovery import Report, ask
from coin_export.client.transport import RefusedError, Transport
from coin_export.errors import UserError

logger = logging.getLogger("coin_export.client")

Task = asyncio.Task[None]
OnEnd = Callable[[Any, BaseException | None], None]
"""Gets what a call returned, or what it raised: CancelledError if it was cancelled."""


@dataclass(frozen=True)
class Limits:
    """Bounds on what a client does besides waiting for answers.

    Attributes:
        abandoned_per_server: with this many abandoned calls under way, or more, a server counts as down and is sent
            nothing until no more than half as many are left. Calls that are under way by then may be abandoned on top.
        misses_in_a_row: after this many calls that failed or were given up late, and none that was answered, a
            server counts as down; after this many answers that were unusable where others' were not, as well.
        silence_s: seconds between the first and the last of these calls, where any of them was only late: a short
            stall puts no server out of use.
        slow_s: a server of whose calls for so many seconds ``misses_in_a_row`` more took at least twice the usual time
            than did not counts as down, too, if the others are prompt and suffice without it; infinite for never.
        discovery_s: how long connecting waits for each server (all are asked at the same time), and how long a
            request that cannot be answered waits for servers that may have been replaced.
        lookup_interval_s: a server that is down is looked up again at most this often, when requests are made; all
            servers are, while they hold different builds.
        rediscovery_interval_s: all servers are looked up again after this time, when requests are made. A model that
            was replaced behind the same connection, under the same version number, shows only then.
        close_s: how long closing waits for calls under way.

    Raises:
        UserError: if one is out of its range.
    """

    abandoned_per_server: int = 64
    misses_in_a_row: int = 5
    silence_s: float = 0.1
    slow_s: float = 1.0
    discovery_s: float = 5.0
    lookup_interval_s: float = 1.0
    rediscovery_interval_s: float = 30.0
    close_s: float = 2.0

    def __post_init__(self) -> None:
        for name in ("abandoned_per_server", "misses_in_a_row"):
            if not getattr(self, name) >= 1:
                raise UserError(f"Limits.{name} is {getattr(self, name)}; give a number of at least 1")
        for name in ("silence_s", "slow_s", "discovery_s", "lookup_interval_s", "rediscovery_interval_s", "close_s"):
            if not getattr(self, name) >= 0:
                raise UserError(f"Limits.{name} is {getattr(self, name)}; give seconds, none or more")


class Server:
    """A server and the calls to it.

    Args:
        transport: reaches it.
        limits: bounds on calls without an answer.
        on_doubt: told why the server is to count as down; nothing (an empty text) when a call only failed in a way
            that lets another server have taken its place.
        on_room: told when the bound on abandoned calls is reached, and when there is room again.
        on_slow: told with every call that takes too long that such calls have gone on for long.

    Attributes:
        lag: whether it is slow.
        report: what it serves; None until it was looked up.
        down: why it is not asked, but for the bound on abandoned calls; empty when it is.
        next_lookup: not before this time of the event loop.
    """

    def __init__(
        self,
        transport: Transport,
        limits: Limits,
        on_doubt: Callable[[Server, str], None],
        on_room: Callable[[Server], None] = lambda server: None,
        on_slow: Callable[[Server], None] = lambda server: None,
    ) -> None:
        self.transport = transport
        self.address = transport.address
        self.report: Report | None = None
        self.down = "it has not been looked up yet"
        self.next_lookup = 0.0
        self._limits = limits
        self._on_doubt = on_doubt
        self._on_room = on_room
        self._on_slow = on_slow
        self._look_up: Task | None = None
        # Whether what it holds is in doubt, and how often that was said: a look-up settles what was said before it.
        self._doubted = False
        self._doubts = self._doubts_at_look_up = 0
        self._breaker = Breaker(limits.misses_in_a_row, limits.silence_s)
        self._unusable = Breaker(limits.misses_in_a_row, limits.silence_s)  # of answers, where others' were usable
        self.lag = Lag(limits.misses_in_a_row, limits.slow_s, limits.lookup_interval_s)
        self._calls: dict[Task, OnEnd | None] = {}
        self._abandoned = Abandoned(limits.abandoned_per_server)

    @property
    def calls(self) -> tuple[Task, ...]:
        """The calls under way, abandoned ones included."""
        return tuple(self._calls)

    @property
    def outstanding(self) -> int:
        """The number of calls under way, abandoned ones included: the server works on those too."""
        return len(self._calls)

    @property
    def look_up_under_way(self) -> Task | None:
        """The look-up under way, if there is one."""
        return self._look_up

    @property
    def looking_up(self) -> bool:
        """Whether a look-up is under way."""
        return self._look_up is not None

    @property
    def in_doubt(self) -> bool:
        """Whether another server may have taken its place, or other models that of its own, since it was looked up."""
        return self._doubted or not self.transport.connected

    @property
    def usable(self) -> bool:
        """Whether requests may be sent to it: it does not count as down, and what it holds is known."""
        return not (self.down or self._doubted) and self.has_room and self.transport.connected

    @property
    def has_room(self) -> bool:
        """Whether the bound on abandoned calls allows one more call."""
        return not self._abandoned.too_many

    @property
    def why_down(self) -> str:
        """Why it counts as down, the bound on abandoned calls included; empty when it does not."""
        if self.down or self.has_room:
            return self.down
        return f"{len(self._abandoned)} abandoned calls to it are still unanswered"

    @property
    def why_not_usable(self) -> str:
        """Why requests may not be sent to it."""
        if not self.down and self.in_doubt:
            return "it, or its models, may have been replaced a moment ago; it is being looked up again"
        return self.why_down

    def look_up(self, versions: Mapping[str, str], on_end: OnEnd) -> Task:
        """Ask the server what it serves (see `ask`); says nothing about how it answers requests."""
        self._doubted = self.in_doubt  # as the first call makes a lost connection anew
        if self._doubted:
            self.lag.forget()
        self._doubts_at_look_up = self._doubts
        self._look_up = self.call(on_end, ask, self.transport, versions)
        return self._look_up

    def looked_up(self, report: Report) -> None:
        """Take in what it serves."""
        self.report = report
        self._doubted = self._doubts != self._doubts_at_look_up

    def doubt(self) -> None:
        """Ask it nothing more before it was looked up again: it seems to hold other models by now."""
        self._doubted = True
        self._doubts += 1
        self.recheck()

    def recheck(self) -> None:
        """Have it looked up soon, as it is in doubt."""
        self._on_doubt(self, "")

    def call(self, on_end: OnEnd, work: Callable[..., Awaitable[Any]], *args: Any) -> Task:
        """Run ``work(*args)`` in its own task, which tells ``on_end`` how it ended, unless it was released before."""
        task = asyncio.get_running_loop().create_task(self._run(work, args))
        self._calls[task] = on_end
        return task

    def release(self, task: Task, on_late: OnEnd | None = None, *, overdue: bool = False) -> bool:
        """Lose interest in a call: it is cancelled where that is safe, and abandoned where it is not.

        Args:
            task: the call; nothing happens if it has ended.
            on_late: is told how an abandoned call ended.
            overdue: the answer should have been there by now.

        Returns:
            Whether the call was cancelled.
        """
        if task not in self._calls:
            return False
        if overdue:
            self.late()
        if self.transport.may_cancel:
            self._calls[task] = None
            task.add_done_callback(self._forget)  # a task that is cancelled before it began says nothing
            return task.cancel()
        self._calls[task] = on_late
        if self._abandoned.add(task):
            self._on_room(self)
            logger.warning(
                "server %s leaves %d abandoned calls unanswered; it counts as down until far fewer are left",
                self.address,
                len(self._abandoned),
                extra={"event": "abandoned_overflow", "server": self.address, "abandoned": len(self._abandoned)},
            )
        return False

    def late(self) -> None:
        """Take note of a call whose answer should have been there by now, be it waited for any longer or not."""
        self._missed(self._breaker.late(asyncio.get_running_loop().time()), "no answer in the usual time")

    def usable_answer(self) -> None:
        """Take note of an answer that could be used."""
        self._unusable.answered()

    def unusable(self, problem: str) -> None:
        """Take note of an answer that could not be used, to a request that others answered usably."""
        self._missed(self._unusable.failed(asyncio.get_running_loop().time()), problem)

    def took_too_long(self, sent: float, now: float) -> None:
        """Take note of a call that has taken far longer than usual since it was sent, be it answered or not."""
        if self.lag.late(now, sent) and not self.down:
            self._on_slow(self)

    async def _run(self, work: Callable[..., Awaitable[Any]], args: tuple[Any, ...]) -> None:
        # Telling from within the task spares a turn of the event loop, which a callback of the task would take.
        result, problem = None, None
        try:
            result = await work(*args)
        except (Exception, asyncio.CancelledError) as error:
            problem = error
        task = asyncio.current_task()
        assert task is not None
        self._end(task, result, problem)

    def _end(self, task: Task, result: Any, error: BaseException | None) -> None:
        on_end = self._calls.pop(task)
        makes_room = self._abandoned.discard(task)
        cancelled = isinstance(error, asyncio.CancelledError)
        if task is self._look_up:
            self._look_up = None
        elif not cancelled:
            self._judge(error)
        if error is not None and not cancelled and (self.transport.version is None or not self.transport.connected):
            self.recheck()
        if makes_room:
            self._on_room(self)
        if on_end is not None:
            on_end(result, error)

    def _forget(self, task: Task) -> None:
        self._calls.pop(task, None)

    def _judge(self, error: BaseException | None) -> None:
        if error is None or isinstance(error, RefusedError):
            self._breaker.answered()
        else:
            self._missed(self._breaker.failed(asyncio.get_running_loop().time()), str(error))

    def _missed(self, opens: bool, what: str) -> None:
        if opens and not self.down:
            self._on_doubt(self, f"{self._limits.misses_in_a_row} calls in a row were missed, the last: {what}")
