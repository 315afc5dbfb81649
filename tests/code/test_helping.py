"""Whom to ask for help, against a search through all sets."""

from __future__ import annotations

from itertools import chain, combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coin_export.code.design import default_code
from coin_export.code.helping import helpers
from coin_export.code.linear import LinearCode
from tests.code.test_linear import codes

FEW = codes().filter(lambda code: code.n <= 6)


@st.composite
def situations(draw: st.DrawFn) -> tuple[LinearCode, tuple[int, ...], frozenset[int], frozenset[int], frozenset[int]]:
    """A code, what is wanted, and every member expected, late, askable or failed."""
    code = draw(FEW)
    wanted = draw(st.lists(st.integers(0, code.k - 1), min_size=1, unique=True).map(sorted))
    states = draw(
        st.lists(st.sampled_from(["expected", "late", "askable", "failed"]), min_size=code.n, max_size=code.n)
    )

    def those(state: str) -> frozenset[int]:
        return frozenset(row for row, its_state in enumerate(states) if its_state == state)

    return code, tuple(wanted), those("expected"), those("late"), those("askable")


def subsets(rows: frozenset[int]) -> list[tuple[int, ...]]:
    return list(chain.from_iterable(combinations(sorted(rows), size) for size in range(len(rows) + 1)))


@settings(deadline=None)
@given(situations())
def test_the_choice_is_the_smallest_set_that_suffices_and_of_those_the_one_of_least_noise_gain(
    situation: tuple[LinearCode, tuple[int, ...], frozenset[int], frozenset[int], frozenset[int]],
) -> None:
    code, wanted, expected, late, askable = situation
    chosen = helpers(code, wanted, expected, late, askable)
    assert set(chosen) <= askable
    sufficient = [rows for rows in subsets(askable) if code.decodable(expected.union(rows), wanted)]
    if not sufficient:
        check_with_some_late(code, wanted, expected, late, askable, chosen)
        return
    assert code.decodable(expected.union(chosen), wanted)
    assert len(chosen) == min(map(len, sufficient))
    gains = [
        max(code.decoding(expected.union(rows), wanted).noise_gain) for rows in sufficient if len(rows) == len(chosen)
    ]
    assert max(code.decoding(expected.union(chosen), wanted).noise_gain) == min(gains)
    if len(wanted) == code.k:
        assert len(chosen) <= len(set(wanted) - expected)


def check_with_some_late(
    code: LinearCode,
    wanted: tuple[int, ...],
    expected: frozenset[int],
    late: frozenset[int],
    askable: frozenset[int],
    chosen: tuple[int, ...],
) -> None:
    """Some of the late have to come too; the chosen help if they are needed, or spare at least one of the late."""
    if not chosen:
        return
    assert code.decodable(expected | late | set(chosen), wanted)
    if not code.decodable(expected | late, wanted):
        return
    spared = [row for row in late if code.decodable((expected | late | set(chosen)) - {row}, wanted)]
    assert spared, "help is asked for although every late member has to come anyway"


def test_one_missing_original_is_made_good_by_one_parity() -> None:
    code = default_code(3, 2)
    for missing in range(3):
        expected = frozenset(range(3)) - {missing}
        (chosen,) = helpers(code, (0, 1, 2), expected, frozenset({missing}), frozenset({3, 4}))
        weight = {row: code.parities[row - 3][missing] for row in (3, 4)}
        assert weight[chosen] == pytest.approx(max(weight.values())), (
            "the parity that weighs it most amplifies its error least"
        )


def test_the_replica_of_an_original_that_answered_is_never_asked() -> None:
    code = LinearCode.from_rows([[1, 0, 0], [0, 1, 0], [1, 1, 1]])
    assert helpers(code, (0, 1, 2), frozenset({0, 2}), frozenset({1}), frozenset({3, 4, 5})) == (4,)
    assert helpers(code, (0, 1, 2), frozenset({0, 1}), frozenset({2}), frozenset({3, 4, 5})) == (5,)
    assert helpers(code, (0, 1, 2), frozenset({0}), frozenset({1, 2}), frozenset({3, 4})) == (4,)


def test_when_more_are_late_than_can_be_spared_all_useful_help_is_asked_for() -> None:
    code = default_code(4, 2)
    everybody = frozenset(range(4))
    assert helpers(code, (0, 1, 2, 3), frozenset(), everybody, frozenset({4, 5})) == (4, 5)
    assert helpers(code, (0, 1, 2, 3), frozenset({0, 1}), frozenset({2, 3}), frozenset({5})) == (5,)


def test_nobody_is_asked_when_nobody_helps() -> None:
    code = default_code(3, 1)
    assert helpers(code, (0,), frozenset({0}), frozenset(), frozenset({1, 2, 3})) == ()
    assert helpers(code, (0,), frozenset(), frozenset({0}), frozenset({1, 2})) == ()
    assert helpers(code, (0, 1, 2), frozenset({0}), frozenset(), frozenset({3})) == ()


def test_originals_that_are_not_wanted_help_too() -> None:
    assert helpers(default_code(3, 1), (0,), frozenset(), frozenset({0}), frozenset({1, 2, 3})) == (1, 2, 3)


def test_large_groups_are_chosen_for_without_trying_every_set() -> None:
    code = default_code(32, 2)
    rest = frozenset(range(1, 34))
    assert helpers(code, (0,), frozenset(), frozenset({0}), rest) == (*range(1, 33),)
    everybody = frozenset(range(32))
    assert helpers(code, tuple(range(32)), frozenset(), everybody, frozenset({32, 33})) == (32, 33)
