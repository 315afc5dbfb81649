import math

import pytest

from coin_export.client import (
    AfterDelay,
    AfterGrace,
    AfterQuantile,
    AsSoonAsDecodable,
    AtDeadline,
    AtOnce,
    Budget,
    OnlyWhenDown,
    Policy,
)
from coin_export.client.latency import Latencies
from coin_export.client.policy import Begun, Decodable
from coin_export.errors import UserError

BEGUN = Begun(started=3.0, deadline=math.inf, wanted=1)
UNKNOWN = Latencies()


def usually(seconds: float) -> Latencies:
    """All recent calls took the same time."""
    recent = Latencies()
    for _ in range(20):
        recent.add(seconds)
    return recent


def test_times_follow_from_the_policy() -> None:
    assert AtOnce().coded_at(BEGUN, UNKNOWN) == 3.0
    assert AfterDelay(0.5).coded_at(BEGUN, UNKNOWN) == 3.5
    assert OnlyWhenDown().coded_at(BEGUN, UNKNOWN) == math.inf
    decodable = Decodable(started=3.0, helped=3.0, at=4.0)
    assert AsSoonAsDecodable().decode_at(decodable, UNKNOWN) == 4.0
    assert AtDeadline().decode_at(decodable, UNKNOWN) == math.inf


def test_the_grace_is_in_proportion_to_how_long_help_took_and_ends_when_direct_answers_are_late() -> None:
    grace, recent = AfterGrace(share=0.5), usually(0.010)  # late after 12.5 ms

    def decoded(helped: float, at: float) -> float:
        return grace.decode_at(Decodable(3.0, 3.0 + helped, 3.0 + at), recent) - 3.0

    assert decoded(0.0, 0.004) == pytest.approx(0.006)
    assert decoded(0.0, 0.010) == pytest.approx(0.0125)
    assert decoded(0.0, 0.020) == pytest.approx(0.020)
    assert decoded(0.0125, 0.017) == pytest.approx(0.017)


def test_the_grace_has_a_least_length_also_for_direct_answers_that_are_late() -> None:
    decodable = Decodable(3.0, 3.0, 3.5)
    assert AfterGrace(0.1).decode_at(decodable, usually(0.010)) == pytest.approx(3.6)


def test_while_too_few_latencies_are_known_the_grace_is_in_proportion_alone() -> None:
    assert AfterGrace(share=0.5).decode_at(Decodable(3.0, 3.0, 5.0), UNKNOWN) == 6.0


def test_the_default_asks_for_help_a_quarter_later_than_the_recent_p95_within_a_tenth_more_requests() -> None:
    late = AfterQuantile(q=0.95, factor=1.25)
    assert Policy() == Policy(late, AfterGrace(at_least_s=0.0, share=1.0, late=late), Budget(share=0.10))


def test_the_quantile_is_that_of_single_calls_however_many_a_request_makes() -> None:
    recent = Latencies()
    for milliseconds in range(1, 1001):
        recent.add(milliseconds / 1000)
    timing = AfterQuantile(q=0.9, factor=1.0, window=1000)
    for wanted in (1, 2, 32):
        assert timing.coded_at(BEGUN._replace(wanted=wanted), recent) == pytest.approx(3.0 + 0.900, abs=0.002)


def test_stragglers_among_the_recent_calls_do_not_make_slow_the_usual() -> None:
    recent = Latencies()
    for call in range(1000):
        recent.add(0.200 if call % 40 == 0 else 0.004)  # one of two servers stopped for 5 % of the time
    assert AfterQuantile().coded_at(BEGUN._replace(wanted=2), recent) == pytest.approx(3.005)


def test_the_factor_is_how_many_times_the_quantile_is_waited() -> None:
    recent = usually(0.010)
    assert AfterQuantile(factor=2.5).coded_at(BEGUN, recent) == pytest.approx(3.025)
    assert AfterQuantile(factor=0.5).coded_at(BEGUN, recent) == pytest.approx(3.005)


def test_while_too_few_latencies_are_known_a_fixed_time_counts() -> None:
    recent = Latencies()
    for _ in range(19):
        recent.add(1.0)
    assert AfterQuantile(start_s=0.07).coded_at(BEGUN, recent) == 3.07
    recent.add(1.0)
    assert AfterQuantile(start_s=0.07, factor=2.0).coded_at(BEGUN, recent) == 5.0


def test_help_comes_at_the_latest_half_way_to_the_deadline() -> None:
    assert AfterQuantile(start_s=0.05).coded_at(BEGUN._replace(deadline=3.02), UNKNOWN) == pytest.approx(3.01)


@pytest.mark.parametrize(
    "options",
    [
        {"q": 0},
        {"q": 1.0},
        {"q": math.nan},
        {"factor": 0},
        {"factor": math.inf},
        {"factor": math.nan},
        {"window": 0},
        {"window": 4097},
    ],
)
def test_quantile_factor_and_window_have_a_range(options: dict[str, float]) -> None:
    with pytest.raises(UserError, match=r"AfterQuantile\.(q|factor|window) is"):
        AfterQuantile(**options)  # type: ignore[arg-type]  # wrong on purpose


@pytest.mark.parametrize("seconds", [-0.1, math.inf, math.nan])
def test_durations_are_finite_and_not_negative(seconds: float) -> None:
    with pytest.raises(UserError, match=r"AfterDelay\.seconds"):
        AfterDelay(seconds)
    with pytest.raises(UserError, match=r"AfterGrace\.at_least_s"):
        AfterGrace(seconds)
    with pytest.raises(UserError, match=r"AfterGrace\.share"):
        AfterGrace(0.1, seconds)
