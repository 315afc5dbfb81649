from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from coin_export.client.budget import Budget
from coin_export.client.gather import Cause, Finish, Gather, GiveUp, Send, Wake
from coin_export.client.memory import Memory
from coin_export.client.policy import (
    AfterDelay,
    AfterGrace,
    AsSoonAsDecodable,
    AtDeadline,
    AtOnce,
    OnlyWhenDown,
    Policy,
)
from coin_export.code.design import default_code
from coin_export.code.linear import LinearCode
from tests.client.virtual import Fate, Run, run, vandermonde

PAIR = LinearCode(((0.5, 0.5),))  # originals 0 and 1, coded model 2
TWO_CODED = LinearCode.from_rows([[2, 1], [1, 2]])  # coded models 2 and 3
SOON = Policy(AtOnce(), AsSoonAsDecodable())
EVERYBODY = Policy(AtOnce())
NEVER = Fate(math.inf)


def finish_of(found: Run | None) -> Finish:
    assert found is not None and isinstance(found.outcome, Finish)
    return found.outcome


def ended(found: Run | None) -> float:
    assert found is not None
    return found.ended_at


def test_both_originals_in_time_are_returned_directly_although_the_coded_answer_came_first() -> None:
    found = run(PAIR, (0, 1), EVERYBODY, [Fate(0.010), Fate(0.015), Fate(0.001)])
    assert finish_of(found) == Finish((0, 1), None, ())
    assert ended(found) == 0.015


def test_a_straggler_is_decoded_after_the_grace() -> None:
    policy = Policy(AtOnce(), AfterGrace(at_least_s=0.002, share=0.5))
    found = run(PAIR, (0, 1), policy, [Fate(0.010), NEVER, Fate(0.020)])
    outcome = finish_of(found)
    assert outcome.direct == (0,) and outcome.erased == (1,)
    assert outcome.decoding is not None and outcome.decoding.wanted == (1,)
    assert ended(found) == pytest.approx(0.030)


def test_the_grace_has_a_least_length() -> None:
    found = run(PAIR, (0, 1), Policy(AtOnce(), AfterGrace(0.002, 1.0)), [Fate(0.0001), NEVER, Fate(0.0001)])
    assert ended(found) == pytest.approx(0.0021)


def test_without_grace_a_straggler_is_decoded_at_once() -> None:
    assert ended(run(PAIR, (0, 1), SOON, [Fate(0.010), Fate(0.021), Fate(0.020)])) == 0.020


def test_an_original_that_fails_outright_is_decoded_without_waiting_for_the_grace() -> None:
    fates = [Fate(0.010), Fate(0.001, fails=True), Fate(0.020)]
    assert ended(run(PAIR, (0, 1), Policy(AtOnce(), AfterGrace(10.0, 1.0)), fates)) == 0.020
    fates = [Fate(0.010), Fate(0.025, fails=True), Fate(0.020)]
    assert ended(run(PAIR, (0, 1), Policy(AtOnce(), AfterGrace(10.0, 1.0)), fates)) == 0.025


def test_the_grace_goes_on_for_another_original_that_may_still_answer() -> None:
    code = vandermonde(3, 2)
    fates = [Fate(0.001, fails=True), Fate(0.030), Fate(0.002), Fate(0.002), Fate(0.002)]
    found = run(code, (0, 1, 2), Policy(AtOnce(), AfterGrace(1.0)), fates)
    outcome = finish_of(found)
    assert outcome.direct == (1, 2) and ended(found) == 0.030


def test_the_deadline_cuts_the_grace_short() -> None:
    found = run(PAIR, (0, 1), Policy(AtOnce(), AfterGrace(5.0)), [Fate(0.01), NEVER, Fate(0.01)], deadline=0.05)
    assert finish_of(found).direct == (0,) and ended(found) == 0.05


def test_at_deadline_waits_for_the_direct_answer_until_the_deadline() -> None:
    policy = Policy(AtOnce(), AtDeadline())
    assert ended(run(PAIR, (0, 1), policy, [Fate(0.01), NEVER, Fate(0.01)], deadline=0.5)) == 0.5
    late = run(PAIR, (0, 1), policy, [Fate(0.01), Fate(0.4), Fate(0.01)], deadline=0.5)
    assert finish_of(late).direct == (0, 1)


def test_too_few_answers_by_the_deadline_give_up_at_the_deadline() -> None:
    found = run(PAIR, (0, 1), EVERYBODY, [Fate(0.01), NEVER, NEVER], deadline=0.05)
    assert found is not None and found.outcome == GiveUp(Cause.DEADLINE) and found.ended_at == 0.05


def test_too_many_failures_give_up_at_once_and_not_at_the_deadline() -> None:
    fates = [NEVER, Fate(0.010, fails=True), Fate(0.020, fails=True)]
    found = run(PAIR, (0, 1), EVERYBODY, fates, deadline=5.0)
    assert found is not None and found.outcome == GiveUp(Cause.TOO_FEW) and found.ended_at == 0.020


def test_a_failed_coded_model_does_not_end_a_request_that_originals_can_answer() -> None:
    found = run(PAIR, (0, 1), EVERYBODY, [Fate(0.01), Fate(0.02), Fate(0.001, fails=True)])
    assert finish_of(found).direct == (0, 1)


def test_held_back_members_are_not_asked_when_the_originals_are_in_time() -> None:
    found = run(PAIR, (0, 1), Policy(AfterDelay(0.006)), [Fate(0.002), Fate(0.003), Fate(0.001)])
    assert found is not None and set(found.sent_at) == {0, 1}


def test_held_back_members_are_asked_after_the_delay() -> None:
    found = run(PAIR, (0, 1), Policy(AfterDelay(0.006)), [Fate(0.002), NEVER, Fate(0.001)])
    assert found is not None and found.sent_at[2] == 0.006
    assert finish_of(found).erased == (1,)


def test_held_back_members_are_asked_at_once_when_an_original_fails() -> None:
    found = run(PAIR, (0, 1), Policy(AfterDelay(0.006)), [Fate(0.002), Fate(0.001, fails=True), Fate(0.001)])
    assert found is not None and found.sent_at[2] == 0.001 and found.ended_at == 0.002


def test_originals_that_are_not_wanted_are_held_back_with_the_coded_models() -> None:
    found = run(PAIR, (1,), Policy(AfterDelay(0.006), AsSoonAsDecodable()), [Fate(0.002), NEVER, Fate(0.003)])
    assert found is not None and found.sent_at == {1: 0.0, 0: 0.006, 2: 0.006}
    outcome = finish_of(found)
    assert outcome.direct == () and outcome.decoding is not None and outcome.decoding.wanted == (1,)


TWO_PARITIES = vandermonde(3, 2)
HELD_BACK = Policy(AfterDelay(0.010), AsSoonAsDecodable())


def test_one_missing_original_is_helped_by_one_parity_although_there_are_two() -> None:
    found = run(TWO_PARITIES, (0, 1, 2), HELD_BACK, [Fate(0.002), NEVER, Fate(0.002), Fate(0.001), Fate(0.001)])
    assert found is not None and sum(row >= 3 for row in found.sent_at) == 1
    assert finish_of(found).direct == (0, 2) and found.ended_at == pytest.approx(0.011)


def test_two_missing_originals_are_helped_by_two_parities() -> None:
    found = run(TWO_PARITIES, (0, 1, 2), HELD_BACK, [NEVER, NEVER, Fate(0.002), Fate(0.001), Fate(0.001)])
    assert found is not None and found.sent_at[3] == found.sent_at[4] == 0.010


def test_a_helper_that_fails_is_followed_by_the_next() -> None:
    helped = [Fate(0.001, fails=True)] * 2
    for last in (3, 4):
        helped[last - 3] = Fate(0.001)
        found = run(TWO_PARITIES, (0, 1, 2), HELD_BACK, [Fate(0.002), NEVER, Fate(0.002), *helped])
        assert found is not None and isinstance(found.outcome, Finish)
        helped[last - 3] = Fate(0.001, fails=True)
    found = run(TWO_PARITIES, (0, 1, 2), HELD_BACK, [Fate(0.002), NEVER, Fate(0.002), *helped])
    assert found is None, "with both parities failed, the late original may still answer"


def test_a_helper_that_is_late_is_helped_in_turn() -> None:
    found = run(TWO_PARITIES, (0, 1, 2), HELD_BACK, [Fate(0.002), NEVER, Fate(0.002), NEVER, Fate(0.001)])
    other = run(TWO_PARITIES, (0, 1, 2), HELD_BACK, [Fate(0.002), NEVER, Fate(0.002), Fate(0.001), NEVER])
    late = max(found, other, key=ended)
    assert late is not None and late.ended_at == pytest.approx(0.021)
    assert sorted(at for row, at in late.sent_at.items() if row >= 3) == pytest.approx([0.010, 0.020])


def test_the_replica_of_an_original_that_answered_is_never_asked() -> None:
    replicas = LinearCode.from_rows([[1, 0], [0, 1]])
    found = run(replicas, (0, 1), HELD_BACK, [Fate(0.002), NEVER, Fate(0.001), Fate(0.003)])
    assert found is not None and set(found.sent_at) == {0, 1, 3}
    outcome = finish_of(found)
    assert outcome.decoding is not None and outcome.decoding.sources == (3,)
    failing = run(replicas, (0, 1), HELD_BACK, [Fate(0.002), Fate(0.001, fails=True), Fate(0.001), Fate(0.003)])
    assert failing is not None and set(failing.sent_at) == {0, 1, 3} and failing.ended_at == 0.004


def test_a_member_that_counts_as_down_is_not_asked_while_others_suffice() -> None:
    found = run(PAIR, (0, 1), HELD_BACK, [Fate(0.002), Fate(0.001, down=True), Fate(0.004)])
    assert found is not None and found.sent_at == {0: 0.0, 2: 0.0} and found.ended_at == 0.004


def test_whoever_asks_everybody_at_once_leaves_out_a_member_that_counts_as_down_too() -> None:
    down = Fate(0.001, down=True)
    found = run(PAIR, (0, 1), Policy(AtOnce(), AfterGrace(10.0)), [Fate(0.002), down, Fate(0.004)], deadline=5.0)
    assert found is not None and found.sent_at == {0: 0.0, 2: 0.0} and found.ended_at == 0.004
    found = run(PAIR, (0, 1), Policy(AtOnce()), [NEVER, down, Fate(0.004)], deadline=0.5)
    assert found is not None and found.sent_at[1] == 0.25 and finish_of(found).direct == (1,)


def test_an_original_that_counts_as_down_is_decoded_without_grace() -> None:
    policy = Policy(AfterDelay(0.010), AfterGrace(10.0))
    assert ended(run(PAIR, (0, 1), policy, [Fate(0.002), Fate(0.001, down=True), Fate(0.004)])) == 0.004


def test_members_that_count_as_down_are_asked_at_once_when_the_others_cannot_suffice() -> None:
    down = Fate(0.003, down=True)
    found = run(PAIR, (0, 1), HELD_BACK, [down, Fate(0.001, down=True), Fate(0.004)])
    assert found is not None and found.sent_at == {0: 0.0, 1: 0.0, 2: 0.0}
    assert finish_of(found).direct == (0, 1) and found.ended_at == 0.003
    failing = run(PAIR, (0, 1), HELD_BACK, [Fate(0.001, fails=True), down, Fate(0.004)])
    assert failing is not None and failing.sent_at[1] == 0.001 and failing.ended_at == 0.004


def test_members_that_count_as_down_are_asked_when_the_others_are_late() -> None:
    found = run(PAIR, (0, 1), HELD_BACK, [NEVER, Fate(0.003, down=True), Fate(0.004)], deadline=0.5)
    assert found is not None and found.sent_at == {0: 0.0, 2: 0.0, 1: 0.010}
    assert finish_of(found).direct == (1,) and found.ended_at == pytest.approx(0.013)


def test_the_last_resort_comes_before_the_deadline_however_patient_the_policy() -> None:
    policy = Policy(AfterDelay(9.0))
    found = run(PAIR, (0, 1), policy, [Fate(0.001), Fate(0.003, down=True), NEVER], deadline=0.5)
    assert found is not None and found.sent_at == {0: 0.0, 2: 0.0, 1: 0.25}
    assert finish_of(found).direct == (0, 1)


def test_a_last_resort_that_fails_ends_the_request() -> None:
    fates = [Fate(0.002), Fate(0.001, fails=True, down=True), Fate(0.001, fails=True, down=True)]
    found = run(PAIR, (0, 1), HELD_BACK, fates, deadline=5.0)
    assert found is not None and found.outcome == GiveUp(Cause.TOO_FEW) and found.ended_at == 0.001


def test_the_last_resort_is_not_bounded_by_the_budget_but_waits_for_half_the_deadline() -> None:
    policy = Policy(AfterDelay(0.010), AsSoonAsDecodable(), Budget(0.0, 0.0))
    found = run(PAIR, (0, 1), policy, [NEVER, Fate(0.003, down=True), Fate(0.004)], deadline=0.5)
    assert ended(found) == pytest.approx(0.253)


def test_the_budget_holds_when_everything_is_so_slow_that_all_count_as_down() -> None:
    requests, policy = 1000, Policy(AfterDelay(0.010))
    memory = Memory(policy)
    calls = 0
    for _ in range(requests):
        found = run(PAIR, (0, 1), policy, [Fate(0.2, down=True)] * 3, deadline=1.0, memory=memory)
        assert found is not None and isinstance(found.outcome, Finish)
        calls += len(found.sent_at)
    helping = calls - 2 * requests
    assert 0 < helping <= policy.budget.share * 2 * requests + policy.budget.burst


def test_without_help_against_slowness_all_that_count_as_down_are_asked_whatever_the_budget() -> None:
    policy = Policy(OnlyWhenDown(), AsSoonAsDecodable(), Budget(0.0, 0.0))
    fates = [Fate(math.inf, down=True), Fate(0.001), Fate(math.inf, down=True), Fate(0.004, down=True)]
    found = run(TWO_CODED, (0, 1), policy, fates)
    assert found is not None and set(found.sent_at) == {0, 1, 2, 3}
    assert found.ended_at == 0.004


def test_in_the_end_a_member_that_counts_as_down_is_asked_where_another_would_cost_a_token() -> None:
    policy = Policy(AfterDelay(0.010), AsSoonAsDecodable(), Budget(0.0, 0.0))
    fates = [Fate(0.003, down=True), NEVER, Fate(0.003), Fate(0.003)]
    found = run(TWO_CODED, (0, 1), policy, fates, deadline=0.5)
    assert found is not None and found.sent_at == {1: 0.0, 2: 0.0, 0: 0.25}
    assert ended(found) == pytest.approx(0.253)


def test_a_member_that_was_asked_although_it_counts_as_down_is_not_replaced_for_that() -> None:
    policy = Policy(AfterDelay(0.010), budget=Budget(0.0, 0.0))
    gather = Gather(PAIR, (0, 1), policy, Memory(policy), 0.0, 1.0)
    gather.start()
    actions = [action for row in (0, 1, 2) for action in gather.withheld(row, 0.0)]
    asked = {row for send in actions if isinstance(send, Send) and send.though_down for row in send.rows}
    assert len(asked) == 2
    assert not any(isinstance(action, Send) for row in asked for action in gather.doubted(row, 0.010))


def test_the_grace_counts_from_when_help_was_asked_for() -> None:
    policy = Policy(AfterDelay(0.030), AfterGrace(share=1.0))
    assert ended(run(PAIR, (0, 1), policy, [Fate(0.010), NEVER, Fate(0.005)])) == pytest.approx(0.040)


def test_help_that_was_asked_for_because_an_answer_is_late_is_taken_as_it_comes() -> None:
    policy = Policy()
    memory = Memory(policy)
    for _ in range(20):
        memory.latencies.add(0.040)
    found = run(PAIR, (0, 1), policy, [Fate(0.010), NEVER, Fate(0.005)], memory=memory)
    assert ended(found) == pytest.approx(0.055)  # help is asked for after 1.25 times 40 ms


def test_without_help_against_slowness_only_a_failure_is_made_good() -> None:
    policy = Policy(OnlyWhenDown())
    slow = run(PAIR, (0, 1), policy, [Fate(0.01), Fate(2.0), Fate(0.01)])
    assert slow is not None and set(slow.sent_at) == {0, 1} and slow.ended_at == 2.0
    failing = run(PAIR, (0, 1), policy, [Fate(0.01), Fate(0.02, fails=True), Fate(0.01)])
    assert failing is not None and failing.sent_at[2] == 0.02 and finish_of(failing).erased == (1,)


def test_a_member_whose_server_goes_down_meanwhile_is_replaced_although_the_budget_is_spent() -> None:
    policy = Policy(AfterDelay(0.010), budget=Budget(0.0, 0.0))
    gather = Gather(PAIR, (0, 1), policy, Memory(policy), 0.0, 1.0)
    gather.start()
    gather.arrived(1, 0.005)
    assert not any(isinstance(action, Send) for action in gather.woken(0.010)) and gather.refusals == 1
    assert Send((2,)) in gather.doubted(0, 0.020)
    assert gather.doubted(0, 0.021) == [], "it is replaced once"
    assert [type(action) for action in gather.arrived(2, 0.030)] == [Finish], "and no grace is given to it"


def test_while_nobody_answers_the_budget_holds_whatever_counts_as_down() -> None:
    policy = Policy(AfterDelay(0.010), budget=Budget(0.0, 0.0))
    gather = Gather(PAIR, (0, 1), policy, Memory(policy), 0.0, 1.0)
    gather.start()
    actions = gather.woken(0.010) + gather.doubted(0, 0.020) + gather.doubted(1, 0.020)
    assert not any(isinstance(action, Send) for action in actions), "everything may be slow"
    assert Send((2,)) in gather.arrived(1, 0.030), "then it is the others that count as down, and help is free"
    alone = Gather(PAIR, (0,), policy, Memory(policy), 0.0, 1.0)
    alone.start()
    assert Send((1, 2)) in alone.doubted(0, 0.020), "where one answer is all that is waited for, there is nobody else"


@pytest.mark.parametrize(
    ("policy", "asked"), [(SOON, (1, 2, 4)), (Policy(OnlyWhenDown(), AsSoonAsDecodable()), (1, 2))]
)
def test_what_an_earlier_attempt_has_brought_is_not_asked_for_again(policy: Policy, asked: tuple[int, ...]) -> None:
    gather = Gather(default_code(3, 2), (0, 1, 2), policy, Memory(policy), 0.0, 1.0, arrived=(0, 3))
    assert gather.start()[0] == Send(asked)
    (outcome,) = gather.arrived(1, 0.010)
    assert isinstance(outcome, Finish) and outcome.direct == (0, 1) and outcome.erased == (2, 4)
    assert outcome.decoding is not None and 3 in outcome.decoding.sources


def test_a_wake_up_that_comes_too_early_is_asked_for_again() -> None:
    gather = Gather(PAIR, (0, 1), EVERYBODY, Memory(EVERYBODY), 0.0, 1.0)
    assert gather.start() == [Send((0, 1, 2)), Wake(1.0)]
    assert gather.woken(0.999) == [Wake(1.0)]
    assert gather.woken(1.0) == [GiveUp(Cause.DEADLINE)]


def test_nothing_is_repeated_while_nothing_changes() -> None:
    gather = Gather(vandermonde(4, 2), range(4), EVERYBODY, Memory(EVERYBODY), 0.0, 1.0)
    gather.start()
    assert gather.arrived(0, 0.1) == [] and gather.arrived(4, 0.2) == [] and gather.failed(1, 0.3) == []


def test_what_is_lacked_is_what_an_answer_could_have_changed() -> None:
    policy = Policy(AtOnce(), AsSoonAsDecodable())
    direct, decoded, failed = (Gather(PAIR, (0, 1), policy, Memory(policy), 0.0, 1.0) for _ in range(3))
    for gather in (direct, decoded, failed):
        gather.start()
        gather.arrived(0, 0.001)
    direct.arrived(1, 0.002)
    decoded.arrived(2, 0.002)
    failed.woken(1.0)
    assert direct.ended and direct.lacked == set()
    assert decoded.ended and decoded.lacked == {1}
    assert failed.ended and failed.lacked == {1, 2}


def test_slowness_is_judged_by_the_other_answers_to_the_same_request() -> None:
    policy, code = Policy(), default_code(3, 1)
    memory = Memory(policy)
    for _ in range(100):
        for row in range(3):
            memory.latencies.add(0.010, row)

    def judged(*calls: tuple[int, float, bool], wanted: Sequence[int] = (0, 1, 2)) -> list[bool | None]:
        gather = Gather(code, wanted, policy, memory, 0.0)
        return [gather.comparison.judge(*call) for call in calls]

    assert judged((0, 0.005, True), (1, 0.019, True), (2, 0.021, True)) == [True, True, False]
    assert judged((0, 0.005, True), (2, 0.021, False), (2, 0.100, True)) == [True, False, None], "once"
    assert judged((2, 0.019, False), (2, 0.100, True)) == [None, None], "the others may be slow as well"
    assert judged((0, 0.005, True), (3, 0.100, True), (1, 0.005, True)) == [True, None, True], (
        "one of three is not half"
    )
    assert judged((0, 0.005, True), (1, 0.005, True), (3, 0.100, True)) == [True, True, False], "helpers, too"
    assert judged((0, 0.005, True), (1, 0.100, True), wanted=(0, 1)) == [None, None], "one would take two to replace"
