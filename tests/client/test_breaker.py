"""The breaker on a clock of the test's own: each letter is a call, ten milliseconds after the one before.

``E`` failed, ``L`` was given up late, ``.`` was answered, a blank is time that passes.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coin_export.client.breaker import Abandoned, Breaker, Lag

STEP_S = 0.01


def opened_at(story: str, breaker: Breaker) -> list[int]:
    """Return at which letters the breaker opened, or would open again."""
    found = []
    for index, letter in enumerate(story):
        now = 1000.0 + index * STEP_S
        if letter == ".":
            breaker.answered()
        elif letter != " " and (breaker.failed(now) if letter == "E" else breaker.late(now)):
            found.append(index)
    return found


@pytest.mark.parametrize(
    ("story", "opened"),
    [
        ("EE.EE.EE", []),
        ("EEE", [2]),
        ("EEEE", [2, 3]),  # on probation, one miss is enough
        ("EEE.EE", [2]),  # an answer ends the probation
        ("LLLLL", []),  # a stall of 40 ms
        ("LLLLL.LLLLL.LLLLL.", []),  # and another one, and another one
        ("LLLLLLLLLLL", [10]),  # 100 ms: no stall any more
        ("L         L", []),  # two are not three
        ("L         LL", [11]),
        ("L         LLL", [11, 12]),
        ("LLE", []),  # late ones do not become errors by the company of one
        ("LLEEE", [4]),
        ("EEL", []),
        ("EEL       L", [10]),
    ],
)  # fmt: skip
def test_errors_open_it_by_number_and_lateness_only_when_it_goes_on(story: str, opened: list[int]) -> None:
    assert opened_at(story, Breaker(misses_in_a_row=3, silence_s=0.1)) == opened


@given(st.text("EL. ", max_size=60), st.integers(1, 5))
def test_it_never_opens_on_fewer_misses_or_across_an_answer(story: str, misses: int) -> None:
    for index in opened_at(story, Breaker(misses, silence_s=0.1)):
        row = story[: index + 1].rpartition(".")[2]
        missed = row.replace(" ", "")
        assert len(missed) >= misses
        assert missed.count("E") >= misses or (len(row.lstrip(" ")) - 1) * STEP_S >= 0.1 - 1e-6


@pytest.mark.parametrize(
    ("story", "slow", "lagging"),
    [
        ("LL" + 8 * " " + "L", [10], True),
        ("LLLLLLLLL", [], True),  # 80 ms
        ("LLLLLLLLLLLL", [10, 11], True),
        ("LLL.LLL.LLL.LLL.", [10, 12, 13, 14], True),  # whose processor is rationed
        ("L.L.L.L.L.L.L.L.L.", [], False),
        ("LLL...LLLLLLLL", [], True),  # a stop, and another one
        ("LLLLLLLLL......", [], False),  # no more than six count
    ],
)  # fmt: skip
def test_a_server_is_slow_when_it_was_late_for_long(story: str, slow: list[int], lagging: bool) -> None:
    lag, found = Lag(excess=3, slow_s=0.1, pause_s=1.0), []
    for index, letter in enumerate(story):
        now = 1000.0 + index * STEP_S
        if letter == ".":
            lag.prompt(now)
        elif letter == "L" and lag.late(now, now):
            found.append(index)
    assert found == slow and lag.lagging is lagging


def test_pauses_grow_until_it_is_as_prompt_as_before() -> None:
    lag = Lag(excess=3, slow_s=0.1, pause_s=1.0)

    def pauses(count: int) -> list[float]:
        found = []
        for _ in range(count):
            lag.pause(1000.0)
            found.append(lag.paused_until - 1000.0)
        return found

    assert pauses(7) == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0] and pauses(2000)[-1] == 30.0
    lag.prompt(1030.05)
    assert pauses(1) == [30.0], "too early to tell"
    lag.prompt(1030.2)
    assert pauses(1) == [1.0]


def test_after_a_pause_two_late_calls_and_a_moment_show_that_it_is_slow_still() -> None:
    lag = Lag(excess=5, slow_s=1.0, pause_s=1.0)
    found = [lag.late(now, now) for now in (1000.0, 1000.4, 1000.8, 1001.2, 1001.6)]
    assert found == [False, False, False, False, True]
    lag.pause(1002.0)
    assert not any(lag.late(1003.1, 1002.9) for _ in range(10)), "sent before"
    assert [lag.late(now, now) for now in (1003.2, 1003.21, 1003.35)] == [False, False, True], "it may be cold at first"


def test_another_server_begins_anew() -> None:
    lag = Lag(excess=5, slow_s=0.1, pause_s=1.0)
    lag.late(1000.0, 1000.0)
    lag.pause(1001.0)
    lag.forget()
    assert not lag.lagging and lag.paused_until < 1001.0 and not lag.late(1010.0, 1010.0)


def test_abandoned_calls_are_too_many_from_the_bound_on_until_half_of_them_have_ended() -> None:
    abandoned = Abandoned(bound=4)
    assert [abandoned.add(call) for call in range(6)] == [False, False, False, True, False, False]
    assert abandoned.too_many and len(abandoned) == 6
    assert [abandoned.discard(call) for call in range(3)] == [False, False, False] and abandoned.too_many
    assert not abandoned.discard("never abandoned")
    assert abandoned.discard(3) and not abandoned.too_many and len(abandoned) == 2
    assert not abandoned.add("one more") and not abandoned.too_many


@given(st.integers(1, 8), st.lists(st.tuples(st.booleans(), st.integers(0, 12))))
def test_what_is_told_of_abandoned_calls_alternates_and_agrees_with_what_holds(
    bound: int, story: list[tuple[bool, int]]
) -> None:
    abandoned = Abandoned(bound)
    for adds, call in story:
        before = abandoned.too_many
        changes = abandoned.add(call) if adds else abandoned.discard(call)
        assert abandoned.too_many == (before ^ changes)
        assert len(abandoned) < bound or abandoned.too_many
        assert 2 * len(abandoned) > bound or not abandoned.too_many
