"""The extra load that a client may cause: a share of its ordinary load, saved up in a token bucket."""

from __future__ import annotations

import math
from dataclasses import dataclass

from coin_export.errors import UserError


@dataclass(frozen=True)
class Budget:
    """A bound on helping requests that are sent because an answer is slow.

    Every wanted original that is asked earns ``share`` of a token, up to ``burst`` of them; every helping request
    costs one. So over any time, N ordinary requests are joined by at most ``share * N + burst`` helping ones,
    however slow the servers are. A request that needs more helpers than ``burst`` waits for its own answers.

    Not bounded are helping requests in place of a member that failed outright or is known to be down, which did
    not do its part of the work; those that go out at once with the request (`AtOnce`), which are no reaction; and
    those to servers that count as down, once half of the time to the deadline has passed or where a policy gives no
    help against slowness. Where it takes more than one to replace a member, as it does when few originals are wanted,
    the others are charged, up to ``burst`` on credit: no request is lost for want of a token, but the slow get no help
    until that is paid back.

    Raises:
        UserError: if an attribute is negative or not finite.
    """

    share: float = 0.10
    burst: float = 32.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value < math.inf:
                raise UserError(f"Budget.{name} is {value}; give a finite number that is not negative")


class TokenBucket:
    """What is left of a budget; full at first."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._tokens = float(budget.burst)

    @property
    def left(self) -> float:
        """The tokens left; negative while some are owed."""
        return self._tokens

    def earn(self, requests: int) -> None:
        """Take note of ordinary requests."""
        self._tokens = min(self._tokens + self._budget.share * requests, self._budget.burst)

    def charge(self, requests: int) -> None:
        """Pay for helping requests that must go out; what is owed is never more than a full bucket."""
        self._tokens = max(self._tokens - requests, -self._budget.burst)

    def spend(self, requests: int) -> bool:
        """Pay for helping requests, for all of them or none; tell whether there was enough."""
        if requests > max(self._tokens, 0.0):  # nothing costs nothing, whatever is owed
            return False
        self._tokens -= requests
        return True
