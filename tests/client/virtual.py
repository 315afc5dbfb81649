"""Drives a `Gather` on a virtual clock: each member answers, fails or stays silent as scripted."""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from coin_export.client.gather import Action, Finish, Gather, GiveUp, Send, Wake
from coin_export.client.memory import Memory
from coin_export.client.policy import Policy
from coin_export.code.linear import LinearCode


def vandermonde(k: int, m: int) -> LinearCode:
    """Positive rows of which any m survive any m erasures."""
    return LinearCode.from_rows([[(1 + index) ** power for index in range(k)] for power in range(m)])


@dataclass(frozen=True)
class Fate:
    """What becomes of a member's call, ``after`` seconds from its sending; infinite for never.

    A member that counts as ``down`` is asked only as a last resort.
    """

    after: float
    fails: bool = False
    down: bool = False


@dataclass
class Run:
    """What happened, and when."""

    outcome: Finish | GiveUp
    ended_at: float
    arrived_at: dict[int, float]
    failed_at: dict[int, float]
    sent_at: dict[int, float]
    withheld_at: dict[int, float]
    late_actions: list[Action] = field(default_factory=list)


def run(
    code: LinearCode,
    wanted: Sequence[int],
    policy: Policy,
    fates: Sequence[Fate],
    *,
    started: float = 0.0,
    deadline: float = math.inf,
    memory: Memory | None = None,
    combination: tuple[float, ...] | None = None,
) -> Run | None:
    """Run one request to its end; None when it would wait for ever."""
    gather = Gather(code, wanted, policy, memory or Memory(policy), started, deadline, combination)
    events: list[tuple[float, int]] = []
    ends: list[tuple[Finish | GiveUp, float]] = []
    sent: dict[int, float] = {}
    arrived: dict[int, float] = {}
    failed: dict[int, float] = {}
    withheld: dict[int, float] = {}
    wake = math.inf

    def carry_out(actions: Sequence[Action], now: float) -> None:
        nonlocal wake
        pending = deque(actions)
        while pending:
            action = pending.popleft()
            if isinstance(action, Send):
                for row in action.rows:
                    if fates[row].down and not action.though_down:
                        assert row not in withheld, "a member was withheld twice"
                        withheld[row] = now
                        pending.extend(gather.withheld(row, now))
                        continue
                    assert row not in sent, "a member was asked twice"
                    sent[row] = now
                    heapq.heappush(events, (now + fates[row].after, row))
            elif isinstance(action, Wake):
                wake = action.at
            else:
                ends.append((action, now))

    carry_out(gather.start(), started)
    while not ends:
        at = min(wake, events[0][0] if events else math.inf)
        if at == math.inf:
            return None
        if wake <= at:
            wake = math.inf
            carry_out(gather.woken(at), at)
            continue
        _, row = heapq.heappop(events)
        (failed if fates[row].fails else arrived)[row] = at
        carry_out(gather.failed(row, at) if fates[row].fails else gather.arrived(row, at), at)
    (outcome, ended_at), *others = ends
    late = [action for _, row in events for action in (*gather.arrived(row, at), *gather.failed(row, at))]
    return Run(
        outcome,
        ended_at,
        arrived,
        failed,
        sent,
        withheld,
        [*(end for end, _ in others), *late, *gather.woken(at + 1)],
    )
