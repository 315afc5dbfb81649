from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from coin_export.client.gather import Cause, Finish, GiveUp
from coin_export.client.server import Limits
from coin_export.code.design import default_code
from coin_export.code.linear import LinearCode
from coin_export.errors import UserError
from coin_export.evaluate.simulation.group import simulate_group
from coin_export.evaluate.simulation.placement import Placement
from coin_export.evaluate.simulation.results import Tally
from coin_export.evaluate.simulation.scenario import Scenario, run, simulate
from coin_export.evaluate.simulation.scheme import (
    CODED_AFTER_P95,
    CODED_AT_ONCE,
    NONE,
    REPLICAS_FULL_TIED,
    STANDARD,
    Scheme,
)
from coin_export.evaluate.simulation.service import LogNormal, ShiftedExponential
from coin_export.evaluate.simulation.slowness import Slowness

SMALL = Scenario(CODED_AFTER_P95, ShiftedExponential(0.01), 0.5, servers=40, requests=3000, slowness=Slowness(0.02))
PAIR = default_code(2, 1)


@pytest.mark.parametrize("scheme", STANDARD, ids=lambda scheme: scheme.name)
@pytest.mark.parametrize(("k", "m", "wanted"), [(2, 1, None), (8, 2, None), (8, 2, 3)])
def test_every_request_ends_and_every_call_is_executed(scheme: Scheme, k: int, m: int, wanted: int | None) -> None:
    tally, duration_s = run(replace(SMALL, scheme=scheme, k=k, m=m, wanted=wanted))
    assert not np.isnan(tally.latencies_s).any() and (tally.latencies_s > 0).all()
    result = tally.result(40 * duration_s)
    assert result.failed == 0
    if scheme in (NONE, REPLICAS_FULL_TIED) and wanted is None:
        assert result.extra_request_share == 0.0
    elif scheme is CODED_AT_ONCE:
        # Nearly all: a server that counts as down is not asked.
        assert result.extra_request_share == pytest.approx((k + m) / (wanted or k) - 1, abs=0.02)
    else:
        assert result.extra_request_share >= 0.0
    assert result.offered_load == pytest.approx(0.5 * (1 + result.extra_request_share), rel=0.1)


def test_the_same_seed_gives_the_same_result_and_another_one_does_not() -> None:
    assert simulate(SMALL) == simulate(SMALL)
    assert simulate(SMALL) != simulate(replace(SMALL, seed=1))


def test_schemes_meet_the_same_requests_and_the_same_work() -> None:
    """With nothing slow and no queues, helpers that nobody needs change nothing."""
    idle = replace(SMALL, load=0.001, slowness=Slowness(), requests=500, law=LogNormal(0.01, 0.01))
    direct, helped = (run(replace(idle, scheme=scheme))[0] for scheme in (NONE, CODED_AFTER_P95))
    same = np.isclose(direct.latencies_s, helped.latencies_s)
    assert same.mean() > 0.9


def test_failed_requests_are_counted() -> None:
    tally, duration_s = run(replace(SMALL, deadline_s=0.02))
    result = tally.result(40 * duration_s)
    assert result.failed > 0 and result.max_ms <= 20.0 + 1e-6
    assert result.failed == np.isnan(tally.latencies_s[300:]).sum()


def test_a_group_in_one_domain_is_hit_as_a_whole() -> None:
    """Two requests, worked out by hand: the first server stands still from 1.5 s to 5 s.

    The first request asks both servers at 0 and has its answers at 1 and 2 s. The second asks at 1 s: server 0 works
    from 1 s, stands still after half of its second of work, and answers at 5.5 s; server 1 is free at 2 s and answers
    at 3 s.
    """
    tally = simulate_group(NONE, PAIR, [0.0, 1.0], [[1.0, 2.0], [1.0, 1.0]], [[(1.5, 5.0)], [], []])
    assert tally.latencies_s.tolist() == [2.0, 4.5]


def test_the_coded_answer_stands_in_for_the_server_that_stands_still() -> None:
    """As above, with a coded model that takes 1 s: the second request is decodable at 3 s.

    Sent at 1 s and decodable 2 s later, it waits as long again for the direct answer, which would come at 5.5 s,
    and is decoded at 5 s.
    """
    works = [[1.0, 2.0, 1.0], [1.0, 1.0, 1.0]]
    tally = simulate_group(CODED_AT_ONCE, PAIR, [0.0, 1.0], works, [[(1.5, 5.0)], [], []])
    assert tally.latencies_s.tolist() == [2.0, 4.0]
    assert tally.executed == 6


def test_an_abandoned_call_that_its_twin_drops_is_abandoned_no_more() -> None:
    """Three requests are given up while an original and its copy stand still; the original goes on first.

    So the copy's calls are dropped, as many as the bound allows. Later it must be asked in place of the original.
    """
    code = LinearCode.from_rows([[1.0, 0.0], [0.0, 1.0]])
    stops = [[(0.0, 9.0), (50.0, 60.0)], [], [(0.0, 9.5)], []]
    limits = Limits(abandoned_per_server=3, misses_in_a_row=100)
    arrivals, works = [0.0, 0.1, 0.2, 51.0], [[0.1] * 4] * 4
    tally = simulate_group(REPLICAS_FULL_TIED, code, arrivals, works, stops, deadline_s=1.0, limits=limits)
    assert np.isnan(tally.latencies_s).tolist() == [True, True, True, False]


def test_numbers_that_make_no_sense_are_refused() -> None:
    for wrong in ({"load": 0.0}, {"wanted": 3}, {"servers": 0}, {"requests": 0}, {"workers": 0}):
        with pytest.raises(UserError, match="give"):
            replace(SMALL, **wrong)
    with pytest.raises(UserError, match="do not fit"):
        simulate(replace(SMALL, domains=40, placement=Placement.TOGETHER))


def test_a_tally_leaves_the_first_tenth_out() -> None:
    tally = Tally(20, wanted=2)
    for index in range(20):
        tally.ended(index, 1.0 + index, GiveUp(Cause.DEADLINE) if index in (0, 19) else Finish((0, 1), None, ()))
    tally.executed, tally.executed_s = 50, 3.0
    result = tally.result(capacity_s=6.0)
    assert (result.requests, result.failed, result.max_ms) == (18, 1, 19_000.0)
    assert result.extra_request_share == 0.25 and result.offered_load == 0.5
    assert result.p50_ms == 11_000.0 and result.growth == pytest.approx(17.5 / 8)
