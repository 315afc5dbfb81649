"""Where a call goes when several servers could take it. Values only: no clock, no state."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


class Routing(Protocol):
    """Which of several servers gets the next call."""

    def choose(self, outstanding: Sequence[int], rng: random.Random) -> int:
        """Return the index of a server.

        Args:
            outstanding: calls under way at each of the servers, in the order in which their addresses were given;
                two at least.
            rng: the client's source of chance.
        """
        ...


@dataclass(frozen=True)
class FewestOutstanding:
    """The server with the fewest calls under way, the first of several: the best that one client alone can do."""

    def choose(self, outstanding: Sequence[int], rng: random.Random) -> int:
        """See `Routing`."""
        return min(range(len(outstanding)), key=outstanding.__getitem__)


@dataclass(frozen=True)
class BetterOfTwo:
    """Of two servers at random, the one with fewer calls under way.

    For many clients: they see their own calls only, and would all send to the first servers of the same list while
    they have little to do. Two choices are nearly as even as all of them (Mitzenmacher, 2001).
    """

    def choose(self, outstanding: Sequence[int], rng: random.Random) -> int:
        """See `Routing`."""
        one, other = rng.sample(range(len(outstanding)), 2)
        return one if outstanding[one] <= outstanding[other] else other
