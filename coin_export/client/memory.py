"""What a client remembers from one request to the next; policies are values and remember nothing."""

from __future__ import annotations

from coin_export.client.budget import TokenBucket
from coin_export.client.latency import SLOW, Latencies
from coin_export.client.policy import Policy

_LATE = 0.95  # of the recent latencies
_PATIENCE_S = 1.0  # while too few of them are known


class Memory:
    """The memory of one client.

    Attributes:
        latencies: of calls to wanted originals, from the start of their request; late answers included.
        bucket: what is left of the extra-load budget.
    """

    def __init__(self, policy: Policy) -> None:
        self.latencies = Latencies()
        self.bucket = TokenBucket(policy.budget)

    @property
    def patience_s(self) -> float:
        """After how long a call that is given up counts against its server."""
        usual = self.latencies.quantile(_LATE)
        return _PATIENCE_S if usual is None else usual

    @property
    def slow_s(self) -> float:
        """How long a call takes too long, compared with those to the typical member."""
        typical = self.latencies.typical(_LATE)
        return SLOW * (self.patience_s if typical is None else typical)
