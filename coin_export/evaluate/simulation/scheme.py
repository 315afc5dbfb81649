"""What is compared: coding, and the ways to do without it. All of them are codes and policies of the client.

A copy of a model is a row of the generator matrix with a single one in it, so replication runs through the very
same objects as coding does. Only what the client does not decide is a flag here: which of two copies is asked
first, and whether the servers drop a call whose twin has begun.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum

from coin_export.client.policy import AfterQuantile, AsSoonAsDecodable, AtOnce, OnlyWhenDown, Policy
from coin_export.code.design import default_code
from coin_export.code.linear import LinearCode


class Redundancy(Enum):
    """What a group has beside its k originals."""

    NOTHING = "nothing"
    CODED = "m coded models"
    SOME_COPIES = "copies of m originals"
    ALL_COPIES = "copies of all originals"


@dataclass(frozen=True)
class Scheme:
    """One way to answer requests.

    Attributes:
        name: as in the tables.
        redundancy: what the group has beside its originals.
        policy: the client's.
        balanced: the copy with fewer calls outstanding is asked first.
        tied: both copies are asked, and whichever begins drops the other.
    """

    name: str
    redundancy: Redundancy
    policy: Policy = field(default_factory=Policy)
    balanced: bool = False
    tied: bool = False

    def code(self, k: int, m: int) -> LinearCode:
        """Return the group's code; m counts where the redundancy says so."""
        if self.redundancy is Redundancy.SOME_COPIES:
            return LinearCode.from_rows(_copies(k, m))
        if self.redundancy is Redundancy.ALL_COPIES:
            return LinearCode.from_rows(_copies(k, k))
        return default_code(k, m)

    def members(self, k: int, m: int) -> int:
        """Return the number of models that are served for a group."""
        return k if self.redundancy is Redundancy.NOTHING else self.code(k, m).n


def coded_models(k: int) -> int:
    """Return how many coded models the studies give a group of k: a quarter of k, at least one."""
    return math.ceil(k / 4)


def _copies(k: int, m: int) -> list[list[float]]:
    """Rows of copies: the j-th is one of original j."""
    return [[float(column == row) for column in range(k)] for row in range(m)]


# A copy's answer is as good as the original's: there is no reason to wait for that one.
NOW = AsSoonAsDecodable()
NEVER, AT_ONCE, LATE = Policy(OnlyWhenDown()), Policy(AtOnce(), NOW), Policy(AfterQuantile(0.95), NOW)

NONE = Scheme("none", Redundancy.NOTHING, NEVER)
REPLICAS_EQUAL = Scheme("replicas_equal", Redundancy.SOME_COPIES, AT_ONCE)
REPLICAS_EQUAL_HEDGED = Scheme("replicas_equal_hedged", Redundancy.SOME_COPIES, LATE, balanced=True)
REPLICAS_FULL_BALANCED = Scheme("replicas_full_balanced", Redundancy.ALL_COPIES, NEVER, balanced=True)
REPLICAS_FULL_HEDGED = Scheme("replicas_full_hedged", Redundancy.ALL_COPIES, LATE, balanced=True)
REPLICAS_FULL_AT_ONCE = Scheme("replicas_full_at_once", Redundancy.ALL_COPIES, AT_ONCE)
REPLICAS_FULL_TIED = Scheme("replicas_full_tied", Redundancy.ALL_COPIES, AT_ONCE, tied=True)
CODED_AT_ONCE = Scheme("coded_at_once", Redundancy.CODED, Policy(AtOnce()))
CODED_AFTER_P95 = Scheme("coded_after_p95", Redundancy.CODED, Policy(AfterQuantile(0.95)))

STANDARD = (
    NONE,
    REPLICAS_EQUAL,
    REPLICAS_EQUAL_HEDGED,
    REPLICAS_FULL_HEDGED,
    REPLICAS_FULL_TIED,
    CODED_AT_ONCE,
    CODED_AFTER_P95,
)
