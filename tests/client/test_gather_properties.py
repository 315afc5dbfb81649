"""Whatever the code, the policy and the fates of the calls: what holds of every request."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from coin_export.client.budget import Budget
from coin_export.client.gather import Cause, Finish
from coin_export.client.latency import Latencies
from coin_export.client.policy import (
    AfterDelay,
    AfterGrace,
    AfterQuantile,
    AsSoonAsDecodable,
    AtDeadline,
    AtOnce,
    Decodable,
    OnlyWhenDown,
    Policy,
)
from coin_export.code.decode import decode
from coin_export.code.linear import LinearCode
from tests.client.virtual import Fate, Run, run, vandermonde

PAIR = LinearCode(((0.5, 0.5),))
REPLICAS = LinearCode.from_rows([[1, 0, 0], [0, 1, 0], [0, 0, 1]])
SPARSE = LinearCode.from_rows([[1, 1, 0, 0], [0, 0, 1, 1], [0, 1, 0, 0], [1, 1, 1, 1]])
codes = st.sampled_from(
    [PAIR, vandermonde(2, 2), vandermonde(3, 1), vandermonde(3, 2), vandermonde(5, 3), REPLICAS, SPARSE]
)
times = st.sampled_from([0.0, 0.001, 0.002, 0.003, 0.005, 0.008, 0.013, 0.021, math.inf]) | st.floats(0, 1)
fates = st.builds(Fate, times, st.booleans(), st.booleans())
coded_timings = st.sampled_from([AtOnce(), OnlyWhenDown(), AfterQuantile()]) | st.builds(
    AfterDelay, st.sampled_from([0.0, 0.002, 0.05])
)
decode_timings = st.sampled_from([AsSoonAsDecodable(), AtDeadline(), AfterGrace(), AfterGrace(0.0, 0.0)])
budgets = st.sampled_from([Budget(), Budget(0.0, 0.0)])
policies = st.builds(Policy, coded_timings, decode_timings, budgets)


@st.composite
def requests(draw: st.DrawFn) -> tuple[LinearCode, tuple[int, ...], Policy, list[Fate], float]:
    code = draw(codes)
    wanted = draw(st.just(list(range(code.k))) | st.lists(st.integers(0, code.k - 1), min_size=1, unique=True))
    scripted = draw(st.lists(fates, min_size=code.n, max_size=code.n))
    deadline = draw(st.sampled_from([0.004, 0.1, 2.0, math.inf]))
    return code, tuple(sorted(wanted)), draw(policies), scripted, deadline


@settings(deadline=None)
@given(requests())
def test_every_request_ends_once_and_for_a_reason(
    request: tuple[LinearCode, tuple[int, ...], Policy, list[Fate], float],
) -> None:
    code, wanted, policy, scripted, deadline = request
    found = run(code, wanted, policy, scripted, deadline=deadline)
    if found is None:
        # Only a request without a deadline may wait for ever, and only for a member that might still help.
        assert deadline == math.inf and any(fate.after == math.inf for fate in scripted)
        return
    assert found.late_actions == []
    assert found.ended_at <= deadline
    assert set(found.arrived_at) <= set(found.sent_at)
    check_helpers(code, wanted, found)
    if isinstance(found.outcome, Finish):
        check_finish(code, wanted, found, found.outcome)
        check_time(code, wanted, policy, found, found.outcome, deadline)
    elif found.outcome.cause is Cause.DEADLINE:
        check_last_resort(code, wanted, policy, found)
        assert found.ended_at == deadline and not code.decodable(found.arrived_at, wanted)
    else:
        assert not code.decodable([row for row in range(code.n) if row not in found.failed_at], wanted)


def check_last_resort(code: LinearCode, wanted: tuple[int, ...], policy: Policy, found: Run) -> None:
    """No request is lost while a member that counts as down was not asked although it might have helped."""
    withheld = set(found.withheld_at) - set(found.sent_at)
    if policy.coded != OnlyWhenDown():
        assert not code.decodable(withheld.union(found.arrived_at), wanted)


def check_helpers(code: LinearCode, wanted: tuple[int, ...], found: Run) -> None:
    """With all originals wanted, never more helpers are asked at a time than originals are missing then."""
    for at in set(found.sent_at.values()) - {0.0}:
        helping = [row for row, sent in found.sent_at.items() if sent == at and row not in found.withheld_at]
        missing = [row for row in wanted if found.arrived_at.get(row, math.inf) >= at]
        assert len(wanted) < code.k or len(helping) <= len(missing)


def check_finish(code: LinearCode, wanted: tuple[int, ...], found: Run, outcome: Finish) -> None:
    """Direct where it arrived, decoded where not, and equal to the full system's solution."""
    arrived = found.arrived_at
    assert outcome.direct == tuple(row for row in wanted if row in arrived)
    truth = np.random.default_rng(0).normal(size=(code.k, 7))
    outputs = code.generator @ truth
    if outcome.decoding is None:
        assert outcome.direct == wanted
        return
    assert set(outcome.decoding.sources) <= set(arrived)
    assert set(outcome.direct) | set(outcome.decoding.wanted) == set(wanted)
    assert set(outcome.erased) == set(range(code.n)) - set(arrived)
    if len(wanted) == code.k:
        assert len(arrived) >= code.k
    decoded = decode(outcome.decoding, [outputs[row] for row in outcome.decoding.sources])
    rows = sorted(arrived)
    reference = np.linalg.lstsq(code.generator[rows], outputs[rows], rcond=None)[0]
    for row, values in zip(outcome.decoding.originals, decoded, strict=True):
        np.testing.assert_allclose(values, reference[row], atol=1e-6)
        np.testing.assert_allclose(values, truth[row], atol=1e-6)


def check_time(
    code: LinearCode, wanted: tuple[int, ...], policy: Policy, found: Run, outcome: Finish, deadline: float
) -> None:
    """A direct finish is not delayed; a decoded one comes when the policy says, unless nothing is left to wait for."""
    if outcome.decoding is None:
        assert found.ended_at == max(found.arrived_at[row] for row in wanted)
        return
    order = sorted(found.arrived_at, key=lambda row: found.arrived_at[row])
    decodable = next(
        found.arrived_at[order[count - 1]]
        for count in range(1, len(order) + 1)
        if code.decodable([row for row in order if found.arrived_at[row] <= found.arrived_at[order[count - 1]]], wanted)
    )
    helped = max(found.sent_at.values())
    due = min(policy.decode.decode_at(Decodable(0.0, helped, decodable), Latencies()), deadline)
    not_asked = {row: at for row, at in found.withheld_at.items() if row not in found.sent_at}
    settled = max((found.arrived_at | found.failed_at | not_asked).get(row, math.inf) for row in wanted)
    assert found.ended_at == min(due, max(decodable, settled))
