"""Servers against theory and against slow, obvious versions."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coin_export.evaluate.simulation.clock import Clock
from coin_export.evaluate.simulation.scenario import Scenario, run
from coin_export.evaluate.simulation.scheme import NONE
from coin_export.evaluate.simulation.server import Call, Server
from coin_export.evaluate.simulation.service import Bimodal, Fixed, Law, LogNormal, ShiftedExponential
from coin_export.evaluate.simulation.slowness import Pace, Periods


def second_moment(law: Law) -> float:
    """E[S^2] for a mean of one second."""
    if isinstance(law, Fixed):
        return 1.0
    if isinstance(law, ShiftedExponential):
        return 1.0 + (1 - law.fixed) ** 2
    if isinstance(law, LogNormal):
        return math.exp(law.sigma**2)
    assert isinstance(law, Bimodal)
    fast = 1 / (1 - law.slow + law.slow * law.ratio)
    return fast**2 * (1 - law.slow + law.slow * law.ratio**2)


def mean_and_error(scenario: Scenario, seeds: int = 6) -> tuple[float, float]:
    """The mean latency of requests that want one original, and its standard error, from independent runs."""
    means = []
    for seed in range(seeds):
        tally, _ = run(Scenario(**{**vars(scenario), "seed": seed}))
        means.append(float(tally.latencies_s[len(tally.latencies_s) // 10 :].mean()))
    return float(np.mean(means)), float(np.std(means, ddof=1) / math.sqrt(seeds))


@pytest.mark.parametrize(
    ("law", "load"),
    [
        (ShiftedExponential(1.0, fixed=0.0), 0.7),
        (ShiftedExponential(1.0, fixed=0.5), 0.3),
        (Fixed(1.0), 0.7),
        (LogNormal(1.0, 0.7), 0.5),
        (Bimodal(1.0, ratio=5.0), 0.5),
    ],
)
def test_mean_latency_is_that_of_pollaczek_and_khinchine(law: Law, load: float) -> None:
    scenario = Scenario(NONE, law, load, wanted=1, servers=10, domains=1, requests=5_000)
    found, error = mean_and_error(scenario)
    assert found == pytest.approx(1 + load * second_moment(law) / (2 * (1 - load)), abs=4 * error)
    assert error < 0.05 * found


def test_mean_latency_of_two_workers_is_that_of_erlang() -> None:
    load = 0.7
    scenario = Scenario(
        NONE, ShiftedExponential(1.0, 0.0), load, wanted=1, servers=10, workers=2, domains=1, requests=5_000
    )
    found, error = mean_and_error(scenario)
    assert found == pytest.approx(1 / (1 - load**2), abs=4 * error)  # M/M/2


def executed(
    arrivals: Sequence[float], works: Sequence[float], workers: int = 1, periods: Periods = (), speed: float = 0.0
) -> list[float]:
    """When each call ends."""
    clock, ends = Clock(), [math.nan] * len(works)

    def done(call: Call) -> None:
        ends[call.row] = clock.now

    server = Server(clock, Pace(periods, speed), workers, done)
    for row, (arrival, work) in enumerate(zip(arrivals, works, strict=True)):
        clock.at(arrival, server.submit, Call(None, row, work))
    clock.run()
    assert server.outstanding == 0 and server.worked_s == pytest.approx(sum(works))
    return ends


SOME = st.lists(st.tuples(st.floats(0, 5), st.floats(0.01, 3)), min_size=1, max_size=30)


@given(SOME, st.integers(1, 3))
def test_calls_are_executed_in_order_by_the_first_worker_that_is_free(
    calls: list[tuple[float, float]], workers: int
) -> None:
    arrivals, works = np.cumsum([gap for gap, _ in calls]).tolist(), [work for _, work in calls]
    free, expected = [0.0] * workers, []
    for arrival, work in zip(arrivals, works, strict=True):
        end = max(arrival, heapq.heappop(free)) + work
        heapq.heappush(free, end)
        expected.append(end)
    assert executed(arrivals, works, workers) == pytest.approx(expected)


PERIODS = st.lists(st.tuples(st.floats(0.01, 2), st.floats(0.01, 2)), max_size=8)


def periods_of(gaps: list[tuple[float, float]]) -> list[tuple[float, float]]:
    bounds = np.cumsum([value for pair in gaps for value in pair]).tolist()
    return list(zip(bounds[::2], bounds[1::2], strict=True))


@given(PERIODS, st.sampled_from([0.0, 0.1, 0.5]), st.lists(st.tuples(st.floats(0, 2), st.floats(0.01, 3)), min_size=1))
def test_work_ends_when_the_speed_over_time_adds_up_to_it(
    gaps: list[tuple[float, float]], speed: float, calls: list[tuple[float, float]]
) -> None:
    periods = periods_of(gaps)
    pace = Pace(periods, speed)
    now = 0.0
    for wait, work in calls:
        now += wait
        end = pace.end(now, work)
        slow = sum(max(min(end, stop) - max(now, start), 0.0) for start, stop in periods)
        assert (end - now - slow) + speed * slow == pytest.approx(work)


@given(PERIODS, st.floats(0, 20))
def test_work_can_begin_unless_the_server_stands_still(gaps: list[tuple[float, float]], now: float) -> None:
    periods = periods_of(gaps)
    stop = next((end for start, end in periods if start <= now < end), now)
    assert Pace(periods, 0.0).ready(now) == stop
    assert Pace(periods, 0.5).ready(now) == now


def test_a_server_that_stands_still_delays_the_calls_that_wait_for_it() -> None:
    ends = executed([0.0, 1.0, 9.0], [2.0, 1.0, 1.0], periods=[(1.0, 5.0), (9.5, 10.0)])
    assert ends == [6.0, 7.0, 10.5]


def twins(first_work: float, stopped: Periods, busy: float = 0.0) -> tuple[list[float], list[float]]:
    """Submit tied calls to two servers at time 1, the first of which is busy since 0, then one more to each.

    Returns:
        When calls of the first and of the second server end.
    """
    clock = Clock()
    ends: tuple[list[float], list[float]] = ([], [])
    servers = [
        Server(clock, Pace(periods, 0.0), 1, lambda call: ends[call.row].append(clock.now)) for periods in (stopped, ())
    ]
    pair = [Call(None, row, first_work) for row in (0, 1)]
    pair[0].twin, pair[1].twin = pair[1], pair[0]

    def submit(_: object) -> None:
        for call in pair:
            if not call.dropped:
                servers[call.row].submit(call)
        for row in (0, 1):
            servers[row].submit(Call(None, row, 1.0))

    if busy:
        clock.at(0.0, servers[0].submit, Call(None, 0, busy))
        clock.at(0.0, servers[1].submit, Call(None, 1, busy + 1))
    clock.at(1.0, submit, None)
    clock.run()
    assert all(server.outstanding == 0 for server in servers)
    return ends


def test_of_tied_calls_only_the_one_that_begins_first_is_executed() -> None:
    assert twins(3.0, ()) == ([4.0, 5.0], [2.0])  # both idle: the first one asked
    assert twins(3.0, (), busy=4.0) == ([4.0, 7.0, 8.0], [5.0, 6.0])  # both busy: the first one free


def test_a_server_that_stands_still_does_not_drop_the_twin() -> None:
    assert twins(3.0, [(0.5, 9.0)]) == ([10.0], [4.0, 5.0])
