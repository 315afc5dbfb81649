import signal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.tail.schedule import LONGEST_S, SCENARIOS, SHORTEST_S, Fault, arrivals, stopped_s

SECONDS = 100.0
seeds = st.integers(0, 2**16)
straggling = st.sampled_from([("straggle_2", 0.02), ("straggle_5", 0.05)])


def stops(faults: list[Fault]) -> list[tuple[Fault, Fault]]:
    return list(zip(faults[::2], faults[1::2], strict=True))


@given(seeds)
def test_arrivals_are_a_poisson_process_of_the_rate(seed: int) -> None:
    gaps = np.diff(arrivals(20_000, 250.0, seed), prepend=0.0)
    assert gaps.min() >= 0
    assert gaps.mean() == pytest.approx(1 / 250, rel=0.05)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.1)


@given(seeds, st.sampled_from(list(SCENARIOS)))
def test_a_seed_gives_the_same_schedule_again(seed: int, scenario: str) -> None:
    assert SCENARIOS[scenario](SECONDS, 2, seed) == SCENARIOS[scenario](SECONDS, 2, seed)
    assert (arrivals(100, 250.0, seed) == arrivals(100, 250.0, seed)).all()


@given(seeds, straggling)
def test_somebody_is_stopped_for_exactly_the_share_of_the_time(seed: int, scenario: tuple[str, float]) -> None:
    name, share = scenario
    assert stopped_s(SCENARIOS[name](SECONDS, 2, seed)) == pytest.approx(share * SECONDS)


@given(seeds, straggling, st.integers(2, 5))
def test_one_server_is_stopped_at_a_time_and_goes_on(seed: int, scenario: tuple[str, float], originals: int) -> None:
    end = 0.0
    for stop, go_on in stops(SCENARIOS[scenario[0]](SECONDS, originals, seed)):
        assert (stop.number, go_on.number) == (signal.SIGSTOP, signal.SIGCONT)
        assert stop.victim == go_on.victim < originals
        assert stop.at_s > end
        assert SHORTEST_S - 1e-9 <= go_on.at_s - stop.at_s <= LONGEST_S + 1e-9
        end = go_on.at_s
    assert end < SECONDS


@given(seeds)
def test_a_slow_server_is_stopped_four_fifths_of_the_middle_half(seed: int) -> None:
    faults = SCENARIOS["slow_server"](SECONDS, 2, seed)
    assert stopped_s(faults) == pytest.approx(0.8 * SECONDS / 2, rel=0.01)
    assert {fault.victim for fault in faults} == {seed % 2}
    assert faults[0].at_s >= SECONDS / 4
    assert faults[-1].at_s <= 0.75 * SECONDS + 0.05


def test_the_kill_comes_in_the_middle_and_repeats_take_turns_in_its_victim() -> None:
    killed = [SCENARIOS["killed_server"](SECONDS, 2, seed) for seed in range(3)]
    assert killed == [[Fault(SECONDS / 2, victim, signal.SIGKILL)] for victim in (0, 1, 0)]


def test_nothing_happens_to_healthy_servers() -> None:
    assert SCENARIOS["healthy"](SECONDS, 2, 0) == []
