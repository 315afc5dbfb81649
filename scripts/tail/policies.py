"""The policies that are compared: which extra servers each has, and how its client uses them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from coin_export.client import AsSoonAsDecodable, AtOnce, Policy

Extra = Literal["none", "coded", "one_replica", "all_replicas"]


@dataclass(frozen=True)
class Contender:
    """A policy of the comparison.

    Attributes:
        extra: what serves besides the originals.
        policy: of the client; None for a bare gather of calls to the originals.
    """

    extra: Extra
    policy: Policy | None


# A replica's answer is as good as the original's, so there is nothing to wait for once it is there.
CONTENDERS: Mapping[str, Contender] = {
    "none": Contender("none", None),
    "replicas_equal": Contender("one_replica", Policy(coded=AtOnce(), decode=AsSoonAsDecodable())),
    "replicas_full_hedged": Contender("all_replicas", Policy(decode=AsSoonAsDecodable())),
    "coded_at_once": Contender("coded", Policy(coded=AtOnce())),
    "coded_after_p95": Contender("coded", Policy()),
}
