"""Simulate a measured cell: the same arrivals, the same stops of the same servers, the same policy."""

from __future__ import annotations

import signal
from itertools import islice

import numpy as np

from coin_export.client import OnlyWhenDown, Policy
from coin_export.evaluate.simulation.group import simulate_group
from coin_export.evaluate.simulation.scheme import Redundancy, Scheme
from coin_export.evaluate.simulation.service import Law, rows
from coin_export.evaluate.simulation.slowness import Periods
from scripts.tail.cells import WARM_UP_S
from scripts.tail.policies import CONTENDERS, Extra
from scripts.tail.schedule import SCENARIOS, Fault, arrivals

K = 2  # originals of the comparison
REPLAYED = ("healthy", "straggle_2", "straggle_5", "slow_server")  # without those in which a server is lost
_REDUNDANCY: dict[Extra, Redundancy] = {
    "none": Redundancy.NOTHING,
    "coded": Redundancy.CODED,
    "one_replica": Redundancy.SOME_COPIES,
    "all_replicas": Redundancy.ALL_COPIES,
}


def replay(policy: str, scenario: str, requests: int, rate: float, seed: int, law: Law) -> dict[str, float]:
    """Return the quantiles of a cell's latencies in milliseconds, named as in its record.

    Args:
        policy: see `Cell`, as for the following.
        scenario: one of `REPLAYED`.
        requests: measured ones.
        rate: requests a second.
        seed: of arrivals and stops.
        law: of service times.
    """
    contender = CONTENDERS[policy]
    scheme = Scheme(policy, _REDUNDANCY[contender.extra], contender.policy or Policy(OnlyWhenDown()))
    code = scheme.code(K, 1)
    warm_up = arrivals(round(WARM_UP_S * rate), rate, seed + 1000)
    due = arrivals(requests, rate, seed)
    faults = SCENARIOS[scenario](float(due[-1]), K, seed)
    stops = [_periods(faults, row, float(warm_up[-1])) for row in range(code.n)]
    times = np.concatenate([warm_up, warm_up[-1] + due])
    works = list(islice(rows(law, np.random.default_rng(seed), code.n), len(times)))
    tally = simulate_group(scheme, code, times.tolist(), works, stops)
    milliseconds = 1e3 * tally.latencies_s[len(warm_up) :]
    p50, p99, p999 = np.percentile(milliseconds, [50, 99, 99.9], method="inverted_cdf").tolist()
    return {"p50_ms": p50, "p99_ms": p99, "p999_ms": p999}


def _periods(faults: list[Fault], victim: int, after: float) -> Periods:
    mine = [fault for fault in faults if fault.victim == victim]
    starts = [after + fault.at_s for fault in mine if fault.number == signal.SIGSTOP]
    ends = [after + fault.at_s for fault in mine if fault.number == signal.SIGCONT]
    return list(zip(starts, ends, strict=True))
