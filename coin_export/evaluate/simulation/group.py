"""One group whose members have a server each, with arrivals, work and slow periods that the caller gives."""

from __future__ import annotations

import math
from collections.abc import Sequence

from coin_export.client.memory import Memory
from coin_export.client.server import Limits
from coin_export.code.linear import LinearCode
from coin_export.evaluate.simulation.clock import Clock
from coin_export.evaluate.simulation.frontend import DEFAULT_LIMITS, Demand, FrontEnd
from coin_export.evaluate.simulation.results import Tally
from coin_export.evaluate.simulation.scheme import Scheme
from coin_export.evaluate.simulation.server import Server
from coin_export.evaluate.simulation.slowness import Pace, Periods


def simulate_group(
    scheme: Scheme,
    code: LinearCode,
    arrivals_s: Sequence[float],
    works_s: Sequence[Sequence[float]],
    stops: Sequence[Periods] = (),
    deadline_s: float = math.inf,
    limits: Limits = DEFAULT_LIMITS,
) -> Tally:
    """Run requests that want all originals until all is answered.

    Args:
        scheme: how requests are answered.
        code: the group's.
        arrivals_s: when each request begins, in order.
        works_s: seconds of work of a call, by request and row.
        stops: when the server of each row stands still; none does if empty.
        deadline_s: how long a request may take.
        limits: of the client.
    """
    clock = Clock()
    tally = Tally(len(arrivals_s), code.k)
    demand = Demand(arrivals_s, [0] * len(arrivals_s), [tuple(range(code.k))], deadline_s)
    front = FrontEnd(clock, scheme, code, demand, map(list, works_s), [Memory(scheme.policy)], tally, limits)
    paces = [Pace(periods, 0.0) for periods in stops or [()] * code.n]
    front.start([[Server(clock, pace, 1, front.done) for pace in paces]])
    clock.run()
    return tally
