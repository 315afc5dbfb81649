"""One server as a client sees it: its calls under way, those abandoned, and whether it counts as down.

The safety rule: where cancelling a call is unsafe for the server (see `transport`), a call that nobody waits for
any more is abandoned: it runs to its end in its own task, its answer is dropped, and the number of such calls is
bounded, since each of them still costs the server its work and the client its memory.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from coin_export.client.discovery import Report
from coin_export.client.transport import Transport

logger = logging.getLogger("coin_export.client")

Task = asyncio.Task[Any]


@dataclass(frozen=True)
class Limits:
    """Bounds on what a client does besides waiting for answers.

    Attributes:
        abandoned_per_server: with this many abandoned calls under way a server counts as down.
        discovery_s: how long connecting waits for each server (all are asked at the same time).
        lookup_interval_s: a server that is down is looked up again at most this often, when requests are made.
        close_s: how long closing waits for calls under way.
    """

    abandoned_per_server: int = 64
    discovery_s: float = 5.0
    lookup_interval_s: float = 1.0
    close_s: float = 2.0


class Server:
    """A server and the calls to it.

    Args:
        transport: reaches it.
        abandoned_limit: see `Limits`.
        on_unavailable: told when a call failed in a way that lets another server have taken its place.

    Attributes:
        report: what it serves; None until it was looked up.
        down: why it is not asked; empty when it is.
        looking_up: whether a look-up is under way.
        next_lookup: not before this time of the event loop.
    """

    def __init__(self, transport: Transport, abandoned_limit: int, on_unavailable: Callable[[Server], None]) -> None:
        self.transport = transport
        self.address = transport.address
        self.report: Report | None = None
        self.down = "it has not been looked up yet"
        self.looking_up = False
        self.next_lookup = 0.0
        self._abandoned_limit = abandoned_limit
        self._on_unavailable = on_unavailable
        self._calls: dict[Task, Callable[[Task], None] | None] = {}
        self._abandoned: set[Task] = set()
        self._overflow_logged = False

    @property
    def calls(self) -> tuple[Task, ...]:
        """The calls under way, abandoned ones included."""
        return tuple(self._calls)

    @property
    def usable(self) -> bool:
        """Whether requests may be sent to it."""
        return not self.down and len(self._abandoned) < self._abandoned_limit

    @property
    def why_not_usable(self) -> str:
        """Why requests may not be sent to it."""
        return self.down or f"{len(self._abandoned)} abandoned calls to it are still unanswered"

    def call(self, work: Coroutine[Any, Any, Any], on_done: Callable[[Task], None]) -> Task:
        """Run a call in its own task; ``on_done`` gets the finished task, unless it was released before."""
        task = asyncio.get_running_loop().create_task(work)
        self._calls[task] = on_done
        task.add_done_callback(self._done)
        return task

    def release(self, task: Task, on_late: Callable[[Task], None] | None = None) -> bool:
        """Lose interest in a call: it is cancelled where that is safe, and abandoned where it is not.

        Args:
            task: the call; nothing happens if it has ended.
            on_late: gets the finished task of an abandoned call.

        Returns:
            Whether the call was cancelled.
        """
        if task not in self._calls:
            return False
        if self.transport.may_cancel:
            self._calls[task] = None
            return task.cancel()
        self._calls[task] = on_late
        self._abandoned.add(task)
        if len(self._abandoned) >= self._abandoned_limit and not self._overflow_logged:
            self._overflow_logged = True
            logger.warning(
                "server %s leaves %d abandoned calls unanswered; it counts as down until some of them end",
                self.address,
                len(self._abandoned),
                extra={"server": self.address},
            )
        return False

    def _done(self, task: Task) -> None:
        on_done = self._calls.pop(task)
        self._abandoned.discard(task)
        if not self._abandoned:
            self._overflow_logged = False
        # Asking for the exception also keeps asyncio from reporting it as never retrieved.
        failed = not task.cancelled() and task.exception() is not None
        if failed and self.transport.version is None:
            self._on_unavailable(self)
        if on_done is not None:
            on_done(task)
