"""What a client remembers from one request to the next; policies are values and remember nothing."""

from __future__ import annotations

from coin_export.client.budget import TokenBucket
from coin_export.client.latency import Latencies
from coin_export.client.policy import Policy


class Memory:
    """The memory of one client.

    Attributes:
        latencies: of calls to wanted originals, from the start of their request; late answers included.
        bucket: what is left of the extra-load budget.
    """

    def __init__(self, policy: Policy) -> None:
        self.latencies = Latencies()
        self.bucket = TokenBucket(policy.budget)
