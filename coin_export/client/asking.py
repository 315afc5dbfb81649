"""One request, from what is asked for to the answers: attempted on a build, and again while servers are replaced."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from typing import NamedTuple

from coin_export.client.answer import Answers
from coin_export.client.build import Build
from coin_export.client.fanout import Fanout, Request
from coin_export.client.gather import Finish, Gather, GiveUp
from coin_export.client.memory import Memory
from coin_export.client.observer import Observers
from coin_export.client.outcome import undecodable
from coin_export.client.policy import Policy
from coin_export.client.pool import ServerPool
from coin_export.client.watch import RequestWatch
from coin_export.code.linear import LinearCode

# A roll-out may take one server after another from under a request. One that itself brings servers down must end.
_MOST_ATTEMPTS = 4


class Goal(NamedTuple):
    """What is asked for.

    Attributes:
        rows: the originals that it needs.
        combination: the coefficients of the combination of all originals that is wanted; None for themselves.
        result: makes the answers.
        coded: whether other members than these may be asked, too.
    """

    rows: tuple[int, ...]
    combination: tuple[float, ...] | None
    result: Callable[[Fanout, Finish], Answers]
    coded: bool = True

    def met_by(self, code: LinearCode, members: Collection[int]) -> bool:
        """Tell whether the answers of these members determine what is asked for."""
        usable = members if self.coded else set(members).intersection(self.rows)
        return code.decodable(usable, self.rows if self.combination is None else (self.combination,))


class Asking:
    """A request under way.

    Args:
        pool: has the builds and their servers.
        policy: when to send and when to decode.
        memory: of earlier requests.
        goal: what is asked for.
        request: what is sent.
    """

    def __init__(self, pool: ServerPool, policy: Policy, memory: Memory, goal: Goal, request: Request) -> None:
        self._pool = pool
        self._policy = policy
        self._memory = memory
        self._goal = goal
        self._request = request
        self._attempts: list[Fanout] = []

    async def answers(self, build: Build, watch: RequestWatch | None = None) -> Answers:
        """Return the answers.

        Args:
            build: to begin with.
            watch: is told of every call; None when nobody watches.

        Raises:
            UndecodableError: if too few members answered in time.
        """
        outcome = await self._attempt(build, watch, self._request.started)
        gave_up = asyncio.get_running_loop().time()
        while isinstance(outcome, GiveUp) and len(self._attempts) < _MOST_ATTEMPTS:
            arrived = set(self._attempts[-1].replies)
            again = await self._pool.another_chance(
                build, len(self._attempts), gave_up, self._request.ends, arrived, self._goal.met_by
            )
            if again is None:
                break
            earlier: Fanout | None = self._attempts[-1]
            if again is not build:  # answers of two builds do not go together
                build, earlier = again, None
                if watch is not None:
                    watch.settle()
            outcome = await self._attempt(build, watch, asyncio.get_running_loop().time(), earlier)
        if isinstance(outcome, Finish):
            return self._goal.result(self._attempts[-1], outcome)
        raise undecodable(self._attempts[-1], outcome.cause)

    async def watched_answers(self, build: Build, observers: Observers) -> Answers:
        """Return the answers as `answers` does, and tell observers how the request goes."""
        goal, request, group = self._goal, self._request, build.group
        due = (group.name,) if goal.combination else tuple(group.members[row].name for row in goal.rows)
        watch = RequestWatch(
            observers, group, goal.rows, due, request.batch, request.options, request.started, self._request.ends
        )
        found, problem = None, None
        try:
            found = await self.answers(build, watch)
            return found
        except BaseException as error:
            problem = error
            raise
        finally:
            decode_s = sum(attempt.decode_s for attempt in self._attempts)
            refusals = sum(attempt.refusals for attempt in self._attempts)
            watch.end(found, problem, decode_s=decode_s, refusals=refusals, budget_left=self._memory.bucket.left)

    async def _attempt(
        self, build: Build, watch: RequestWatch | None, begins: float, earlier: Fanout | None = None
    ) -> Finish | GiveUp:
        goal = self._goal
        gather = Gather(
            build.code,
            goal.rows,
            self._policy,
            self._memory,
            begins,
            self._request.ends,
            goal.combination,
            coded=goal.coded,
            arrived=earlier.replies if earlier else (),
        )
        fanout = Fanout(gather, build, self._request, watch, earlier)
        self._attempts.append(fanout)
        try:
            fanout.start()
            return await fanout.outcome
        finally:
            fanout.close()
