"""Runs the simulation on servers, times and work that a test gives, in place of those a scenario draws."""

from __future__ import annotations

import math
from collections.abc import Sequence

from coin_export.client.memory import Memory
from coin_export.code.linear import LinearCode
from coin_export.evaluate.simulation.clock import Clock
from coin_export.evaluate.simulation.frontend import Demand, FrontEnd
from coin_export.evaluate.simulation.results import Tally
from coin_export.evaluate.simulation.scheme import Scheme
from coin_export.evaluate.simulation.server import Server
from coin_export.evaluate.simulation.slowness import Pace, Periods


def simulate_group(
    scheme: Scheme,
    code: LinearCode,
    arrivals: Sequence[float],
    works: Sequence[Sequence[float]],
    *,
    slow: Sequence[Periods] = (),
    deadline_s: float = math.inf,
) -> Tally:
    """Run one group whose members have a server each; ``works`` are seconds by request and row."""
    clock = Clock()
    tally = Tally(len(arrivals), code.k)
    demand = Demand(arrivals, [0] * len(arrivals), [tuple(range(code.k))], deadline_s)
    front = FrontEnd(clock, scheme, code, demand, map(list, works), [Memory(scheme.policy)], tally)
    paces = [Pace(periods, 0.0) for periods in slow or [()] * code.n]
    front.start([[Server(clock, pace, 1, front.done) for pace in paces]])
    clock.run()
    return tally
