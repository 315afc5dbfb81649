"""What is kept of a run, and how it is summed up."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from coin_export.client.gather import Finish, GiveUp

WARM_UP = 0.1  # the share of the first requests that does not count


@dataclass(frozen=True)
class Result:
    """One run, summed up; the first tenth of the requests only warms up. Times are in milliseconds.

    Attributes:
        requests: that count.
        failed: of them.
        mean_ms: of the requests that were answered, as are the quantiles.
        p50_ms: half of them were answered within this time.
        p90_ms: as above.
        p99_ms: as above.
        p999_ms: 999 of 1,000.
        max_ms: the longest.
        extra_request_share: calls executed beyond those for wanted originals, over those; of the whole run.
        decoded_share: of the wanted answers, those that were decoded.
        offered_load: the work of all calls executed, over what all servers can do while requests arrive.
        growth: the median latency of the last quarter of the requests over that of the second quarter; well above
            one when queues grow without end.
    """

    requests: int
    failed: int
    mean_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float
    extra_request_share: float
    decoded_share: float
    offered_load: float
    growth: float


class Tally:
    """Counts what happens to requests, in the order of their beginning.

    Args:
        requests: how many there will be.
        wanted: originals wanted by each.
    """

    def __init__(self, requests: int, wanted: int) -> None:
        self.executed = 0
        self.executed_s = 0.0
        self._wanted = wanted
        self._latency_s = [float("nan")] * requests
        self._decoded = 0
        self._failed = 0
        self._warm_up = int(WARM_UP * requests)

    def ended(self, index: int, latency_s: float, outcome: Finish | GiveUp) -> None:
        """Take note of a request's end."""
        counts = index >= self._warm_up
        if isinstance(outcome, GiveUp):
            self._failed += counts
            return
        self._latency_s[index] = latency_s
        if counts and outcome.decoding is not None:
            self._decoded += len(outcome.decoding.wanted)

    @property
    def latencies_s(self) -> npt.NDArray[np.float64]:
        """Latencies in the order in which requests began; not a number where one failed."""
        return np.asarray(self._latency_s)

    def result(self, capacity_s: float) -> Result:
        """Sum up; ``capacity_s`` is the work that all servers can do while requests arrive."""
        everything = self.latencies_s
        latencies = everything[self._warm_up :]
        answered = 1e3 * latencies[~np.isnan(latencies)]
        if not len(answered):
            answered = np.array([np.nan])
        p50, p90, p99, p999 = np.percentile(answered, [50, 90, 99, 99.9]).tolist()
        quarter = len(everything) // 4
        early, late = everything[quarter : 2 * quarter], everything[3 * quarter :]
        return Result(
            requests=len(latencies),
            failed=self._failed,
            mean_ms=float(answered.mean()),
            p50_ms=p50,
            p90_ms=p90,
            p99_ms=p99,
            p999_ms=p999,
            max_ms=float(answered.max()),
            extra_request_share=self.executed / (len(everything) * self._wanted) - 1,
            decoded_share=self._decoded / (len(latencies) * self._wanted),
            offered_load=self.executed_s / capacity_s,
            growth=float(np.nanmedian(late) / np.nanmedian(early)),
        )
