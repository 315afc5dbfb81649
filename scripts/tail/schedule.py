"""When requests arrive and when servers are disturbed: values drawn from seeds, the same for every policy."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

SHORTEST_S, LONGEST_S = 0.020, 0.300  # of a stop
_APART_S = 0.3  # between two stops, so that the first one's backlog is gone when the second begins
_ROUND_S, _STOPPED_S = 0.050, 0.040  # a slow server is stopped for so much of every round

Floats = npt.NDArray[np.float64]


class Fault(NamedTuple):
    """A signal to a server's processes.

    Attributes:
        at_s: when, in seconds from the start.
        victim: which of the originals' servers; extra servers are spared, so that every policy meets the same faults.
        number: SIGSTOP, SIGCONT or SIGKILL.
    """

    at_s: float
    victim: int
    number: signal.Signals


def arrivals(requests: int, rate: float, seed: int) -> Floats:
    """Return the intended send times of a Poisson process in seconds, shape (requests,)."""
    generator = np.random.default_rng([seed, 0])
    return np.cumsum(generator.exponential(1 / rate, size=requests))


def stragglers(share: float) -> Callable[[float, int, int], list[Fault]]:
    """Make a scenario in which, for ``share`` of the time, one server or another is stopped."""

    def faults(seconds: float, originals: int, seed: int) -> list[Fault]:
        generator = np.random.default_rng([seed, 1])
        lengths = _lengths(share * seconds, generator)
        free = seconds - lengths.sum() - _APART_S * (len(lengths) + 1)
        gaps = _APART_S + free * np.diff(np.sort(generator.uniform(size=len(lengths))), prepend=0.0)
        starts = np.cumsum(gaps) + np.cumsum(lengths) - lengths
        victims = generator.integers(originals, size=len(lengths))
        return [
            fault
            for start, length, victim in zip(starts.tolist(), lengths.tolist(), victims.tolist(), strict=True)
            for fault in _stop(start, length, victim)
        ]

    return faults


def slow_server(seconds: float, originals: int, seed: int) -> list[Fault]:
    """One server gets a fifth of its time, as one whose processor is rationed, for the middle half of the run."""
    victim = seed % originals
    rounds = np.arange(0.25 * seconds, 0.75 * seconds, _ROUND_S)
    return [fault for start in rounds.tolist() for fault in _stop(start, _STOPPED_S, victim)]


def killed_server(seconds: float, originals: int, seed: int) -> list[Fault]:
    """One server is killed in the middle of the run and does not come back."""
    return [Fault(0.5 * seconds, seed % originals, signal.SIGKILL)]


def healthy(seconds: float, originals: int, seed: int) -> list[Fault]:
    """Nothing happens."""
    return []


SCENARIOS: dict[str, Callable[[float, int, int], list[Fault]]] = {
    "straggle_2": stragglers(0.02),
    "straggle_5": stragglers(0.05),
    "killed_server": killed_server,
    "slow_server": slow_server,
    "healthy": healthy,
}


def stopped_s(faults: list[Fault]) -> float:
    """Return for how many seconds servers are stopped, all together."""
    return sum(
        fault.at_s if fault.number == signal.SIGCONT else -fault.at_s
        for fault in faults
        if fault.number != signal.SIGKILL
    )


def _stop(start: float, length: float, victim: int) -> list[Fault]:
    return [Fault(start, victim, signal.SIGSTOP), Fault(start + length, victim, signal.SIGCONT)]


def _lengths(total: float, generator: np.random.Generator) -> Floats:
    """Draw lengths between the shortest and the longest that sum to ``total`` seconds."""
    count = max(1, round(total / ((SHORTEST_S + LONGEST_S) / 2)))
    drawn = generator.uniform(SHORTEST_S, LONGEST_S, size=count)
    wanted = min(max(total, count * SHORTEST_S), count * LONGEST_S)
    # Pull towards the end of the range on the side of the wanted sum: all stay within it.
    low, high, total_drawn = count * SHORTEST_S, count * LONGEST_S, float(drawn.sum())
    if total_drawn > wanted:
        drawn = SHORTEST_S + (drawn - SHORTEST_S) * ((wanted - low) / (total_drawn - low))
    else:
        drawn = LONGEST_S - (LONGEST_S - drawn) * ((high - wanted) / (high - total_drawn))
    return np.asarray(drawn)
