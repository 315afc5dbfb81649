"""What a client remembers: latencies, and what is left of the budget. On a virtual clock, over many requests."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coin_export.client import AfterDelay, AfterGrace, AfterQuantile, AsSoonAsDecodable, AtOnce, Budget, Policy, latency
from coin_export.client.budget import TokenBucket
from coin_export.client.gather import Finish, Gather, Send
from coin_export.client.latency import CAPACITY, Latencies
from coin_export.client.memory import Memory
from coin_export.code.design import default_code
from coin_export.code.linear import LinearCode
from coin_export.errors import UserError
from tests.client.virtual import Fate, Run, run

PAIR = LinearCode(((0.5, 0.5),))
LATE = Fate(math.inf)


def serve(policy: Policy, memory: Memory, script: list[list[Fate]], deadline: float = 10.0) -> list[Run]:
    """Run one request after the other."""
    runs = []
    for number, fates in enumerate(script):
        started = 100.0 * number
        found = run(PAIR, (0, 1), policy, fates, started=started, deadline=started + deadline, memory=memory)
        assert found is not None
        runs.append(found)
    return runs


@given(st.lists(st.floats(1e-4, 10.0), min_size=20, max_size=300), st.floats(0.01, 0.99), st.integers(1, 400))
def test_a_quantile_is_that_of_the_latest_values(values: list[float], q: float, window: int) -> None:
    recent = Latencies()
    for value in values:
        recent.add(value)
    size = min(window, len(values))
    expected = sorted(values[-size:])[max(math.ceil(q * size) - 1, 0)]
    assert recent.quantile(q, window) == expected


def test_old_latencies_are_forgotten() -> None:
    recent = Latencies()
    for value in (1.0, 2.0):
        for _ in range(CAPACITY):
            recent.add(value)
    assert recent.quantile(0.01) == 2.0
    for _ in range(32):
        recent.add(3.0)
    assert recent.quantile(0.5) == 2.0 and recent.quantile(0.01, 32) == 3.0


def test_a_quantile_is_found_anew_as_latencies_change() -> None:
    recent = Latencies()
    for _ in range(64):
        recent.add(1.0)
    assert recent.quantile(0.5, 32) == 1.0
    for _ in range(32):
        recent.add(2.0)
    assert recent.quantile(0.5, 32) == 2.0


def test_quantiles_of_several_kinds_are_each_found_once_in_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    found, ranked = [], latency._ranked

    def counted(values: np.ndarray[Any, np.dtype[np.float64]], q: float) -> float:
        found.append(q)
        return ranked(values, q)

    monkeypatch.setattr(latency, "_ranked", counted)
    recent = Latencies()
    for value in range(20, 660):
        recent.quantile(0.5)
        recent.add(float(value))
        recent.quantile(0.9, 100)
    assert len(found) <= 2 * (640 / 32 + 1)


@pytest.mark.parametrize(
    ("seconds", "usual"),
    [
        ((0.010, 0.010), 0.010),
        ((0.010, 0.015), 0.015),  # another machine, perhaps
        ((0.010, 0.500), 0.020),
        ((0.500, 0.010), 0.020),
        ((0.010, 0.012, 0.500), 0.024),
        ((0.010, 0.500, 0.500), 0.500),  # most are slow: that is usual
        ((0.500,), 0.500),  # with whom should it be compared
    ],
)
def test_slowness_of_a_few_does_not_become_usual(seconds: tuple[float, ...], usual: float) -> None:
    recent = Latencies()
    for _ in range(CAPACITY):
        for row, time in enumerate(seconds):
            recent.add(time, row)
    assert recent.usual(0.95) == pytest.approx(usual)
    assert recent.quantile(0.95) == max(seconds)


def test_a_member_that_is_hardly_known_is_not_compared() -> None:
    recent = Latencies()
    for _ in range(CAPACITY):
        recent.add(0.5, 0)
    for _ in range(19):
        recent.add(0.01, 1)
    assert recent.typical(0.95) is None and recent.usual(0.95) == 0.5


def test_calls_with_nothing_to_compare_may_be_about_anything() -> None:
    recent = Latencies()
    for number in range(CAPACITY):
        recent.add(0.001, number % 2)
        if number % 10 == 0:
            recent.add(0.1)
    assert recent.typical(0.95) is None and recent.typical(0.9) == 0.001


@given(
    st.floats(0, 1),
    st.floats(0, 20),
    st.lists(st.tuples(st.integers(1, 8), st.integers(1, 4)), min_size=1, max_size=200),
)
def test_what_is_spent_never_exceeds_share_and_burst(
    share: float, burst: float, requests: list[tuple[int, int]]
) -> None:
    bucket = TokenBucket(Budget(share, burst))
    asked = spent = 0
    for wanted, helpers in requests:
        bucket.earn(wanted)
        asked += wanted
        spent += helpers * bucket.spend(helpers)
        assert spent <= share * asked + burst + 1e-6


@pytest.mark.parametrize("options", [{"share": -0.1}, {"burst": -1}, {"share": math.nan}, {"burst": math.inf}])
def test_a_budget_is_finite_and_not_negative(options: dict[str, float]) -> None:
    with pytest.raises(UserError, match=r"Budget\.(share|burst) is"):
        Budget(**options)


def test_with_a_factor_of_one_about_one_call_in_twenty_is_helped() -> None:
    policy = Policy(AfterQuantile(0.95, factor=1.0), AsSoonAsDecodable(), Budget(1.0, 100))
    times = np.random.default_rng(0).lognormal(-6, 0.5, size=(3000, 3))
    runs = serve(policy, Memory(policy), [[Fate(time) for time in row] for row in times])
    helped = np.mean([2 in found.sent_at for found in runs[500:]])
    assert 0.03 < helped / 2 < 0.07  # each request makes two calls


@pytest.mark.parametrize("straggling", [0.0, 0.02, 0.05])
def test_the_default_helps_stragglers_and_hardly_anybody_else(straggling: float) -> None:
    """While a share of the time one of the three servers is slow by 100 ms, on lognormal times around 2.5 ms."""
    policy = Policy()
    random = np.random.default_rng(1)
    times = random.lognormal(-6, 0.5, size=(6000, 3))
    slow = random.random(6000) < straggling
    times[slow, random.integers(0, 3, size=6000)[slow]] += 0.100
    runs = serve(policy, Memory(policy), [[Fate(time) for time in row] for row in times])[500:]
    extra = np.mean([2 in found.sent_at for found in runs]) / 2
    assert extra < 0.02 + straggling / 3  # 1.8 % of the calls of this law take a quarter longer than its p95
    latencies = np.array([found.ended_at - 100.0 * number for number, found in enumerate(runs, start=500)])
    unhelped = times[500:, :2].max(axis=1)
    if straggling:
        assert np.quantile(latencies, 0.999) < 0.35 * np.quantile(unhelped, 0.999)


def test_the_budget_holds_when_everything_is_slow() -> None:
    policy = Policy(AfterDelay(0.010), AfterGrace(), Budget(share=0.10, burst=5))
    memory = Memory(policy)
    runs = serve(policy, memory, [[Fate(1.0)] * 3] * 1000)
    assert all(isinstance(found.outcome, Finish) for found in runs)
    helped = sum(2 in found.sent_at for found in runs)
    assert 0.09 * 2000 <= helped <= 0.10 * 2000 + 5


@settings(deadline=None)
@given(
    st.sampled_from([PAIR, default_code(3, 2), LinearCode.from_rows([[1, 0, 0], [0, 1, 0], [1, 1, 1]])]),
    st.floats(0, 0.5),
    st.floats(0, 4),
    st.integers(0, 2**32 - 1),
)
def test_helpers_that_were_sent_for_slowness_never_exceed_the_budget(
    code: LinearCode, share: float, burst: float, seed: int
) -> None:
    """A member that failed may be replaced by one helper beyond the budget."""
    random = np.random.default_rng(seed)
    policy = Policy(AfterDelay(0.010), AfterGrace(), Budget(share, burst))
    memory = Memory(policy)
    asked = helping = failed = 0
    for number in range(40):
        fates = [Fate(random.exponential(0.02), random.random() < 0.1) for _ in range(code.n)]
        found = run(code, range(code.k), policy, fates, started=1e3 * number, deadline=1e3 * number + 9, memory=memory)
        assert found is not None
        asked += code.k
        helping += sum(row >= code.k for row in found.sent_at)
        failed += len(found.failed_at)
        assert helping - failed <= share * asked + burst + 1e-6


def test_a_failed_member_is_made_good_although_the_budget_is_spent() -> None:
    policy = Policy(AfterDelay(0.010), AfterGrace(), Budget(0.0, 0.0))
    memory = Memory(policy)
    runs = serve(policy, memory, [[Fate(0.001), Fate(0.002, fails=True), Fate(0.001)]] * 10)
    assert all(isinstance(found.outcome, Finish) and 2 in found.sent_at for found in runs)


def test_what_replacing_one_member_takes_beyond_one_call_is_owed() -> None:
    policy = Policy(AfterDelay(0.010), AfterGrace(), Budget(share=0.1, burst=5))
    memory, code = Memory(policy), default_code(8, 1)
    fates = [Fate(0.002, fails=True), *[Fate(0.001)] * 8]
    for number in range(3):
        found = run(code, (0,), policy, fates, started=1e3 * number, memory=memory)
        assert found is not None and isinstance(found.outcome, Finish) and len(found.sent_at) == 9
    assert memory.bucket.left == -5.0  # 7 a request, and no more on credit than a full bucket
    slow = run(code, (0,), policy, [Fate(0.100), *[Fate(0.001)] * 8], started=9e3, memory=memory)
    assert slow is not None and set(slow.sent_at) == {0}
    down = run(code, (0,), policy, [Fate(0.002, down=True), *[Fate(0.001)] * 8], started=10e3, memory=memory)
    assert down is not None and isinstance(down.outcome, Finish) and 0 not in down.sent_at


def test_a_server_that_is_slow_for_good_is_helped_within_the_budget_for_good() -> None:
    policy = Policy()
    runs = serve(policy, Memory(policy), [[Fate(0.010), Fate(0.100), Fate(0.010)]] * 6000)
    helped = np.mean([2 in found.sent_at for found in runs[-1000:]]) / 2
    assert 0.09 < helped <= policy.budget.share


@pytest.mark.parametrize(("k", "most"), [(2, 0.10), (8, 0.03), (32, 0.03)])
def test_whoever_asks_everybody_at_once_decodes_few_answers_of_a_healthy_group(k: int, most: float) -> None:
    """On times of a broad law; with few servers, the last one often takes twice as long as the others."""
    policy, code, random = Policy(AtOnce()), default_code(k, 1), np.random.default_rng(0)
    memory, decoded = Memory(policy), 0
    for number, times in enumerate(random.lognormal(-6, 0.5, size=(600, k + 1)).tolist()):
        found = run(code, range(k), policy, [Fate(time) for time in times], started=1e3 * number, memory=memory)
        assert found is not None and isinstance(found.outcome, Finish)
        decoded += number >= 100 and len(found.outcome.erased) > 0 and k - len(found.outcome.direct)
    assert decoded / (500 * k) < most


def test_who_asks_everybody_at_once_is_not_bounded() -> None:
    policy = Policy(AtOnce(), AfterGrace(), Budget(0.0, 0.0))
    runs = serve(policy, Memory(policy), [[Fate(0.001)] * 3] * 10)
    assert all(2 in found.sent_at for found in runs)


def test_a_request_that_was_refused_help_asks_again_later() -> None:
    policy = Policy(AfterDelay(1.0), AsSoonAsDecodable(), Budget(share=0.5, burst=1))
    memory = Memory(policy)
    first = Gather(PAIR, (0, 1), policy, memory, 0.0)
    second = Gather(PAIR, (0, 1), policy, memory, 0.0)
    assert [action.__class__.__name__ for action in first.start()] == ["Send", "Wake"]
    second.start()
    assert first.woken(1.0)[0] == Send((2,))
    (wake,) = second.woken(1.0)
    assert wake == (2.0,)
    Gather(PAIR, (0, 1), policy, memory, 1.5).start()  # earns what the second one needs
    assert second.woken(2.0)[0] == Send((2,))


def test_late_and_cancelled_calls_teach_and_helpers_do_not() -> None:
    policy = Policy(AtOnce(), AsSoonAsDecodable())
    memory = Memory(policy)
    for number in range(20):
        gather = Gather(PAIR, (0, 1), policy, memory, 0.0)
        gather.start()
        gather.arrived(0, 0.001)
        gather.arrived(2, 0.002)
        assert gather.ended
        if number % 2:
            gather.arrived(1, 0.3)
        else:
            gather.overtaken(1, 0.2)
    assert memory.latencies.quantile(0.5) == 0.001
    assert memory.latencies.quantile(0.6) == 0.2
    assert memory.latencies.quantile(0.99) == 0.3
