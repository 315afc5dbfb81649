"""One run: everything that determines it, and the run itself."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from coin_export.client.memory import Memory
from coin_export.errors import UserError
from coin_export.evaluate.simulation.clock import Clock
from coin_export.evaluate.simulation.frontend import Demand, FrontEnd
from coin_export.evaluate.simulation.placement import Placement, domain_of, place
from coin_export.evaluate.simulation.results import Result, Tally
from coin_export.evaluate.simulation.scheme import Scheme
from coin_export.evaluate.simulation.server import Server
from coin_export.evaluate.simulation.service import Law, rows
from coin_export.evaluate.simulation.slowness import Pace, Slowness

NOT_SLOW = Slowness()


@dataclass(frozen=True)
class Scenario:
    """Everything that determines a run; the same scenario gives the same result.

    There are as many groups as servers, and every server holds one member of as many groups as a group has
    members. So all schemes use the same servers to the full and meet the same requests; what differs between them
    is how many models a server holds and which calls are made.

    Attributes:
        scheme: how requests are answered.
        law: of service times; the same calls take equally long under every scheme.
        load: the work of the wanted originals alone, over what all servers can do when none is slow.
        k: originals of a group.
        m: coded models of a group, or copies where a scheme has as many.
        servers: in all.
        workers: calls that a server executes at the same time.
        slowness: when servers are slow.
        domains: the number of failure domains, of equal size.
        placement: where a group's members are.
        requests: how many are made, one after the other at the times of a Poisson process.
        wanted: how many originals a request wants; None for all.
        clients: how many there are, each with a memory of its own for some of the groups; None for one per group.
        deadline_s: how long a request may take.
        seed: of all randomness.

    Raises:
        UserError: if a number is out of its range.
    """

    scheme: Scheme
    law: Law
    load: float
    k: int = 2
    m: int = 1
    servers: int = 80
    workers: int = 1
    slowness: Slowness = NOT_SLOW
    domains: int = 20
    placement: Placement = Placement.ANYWHERE
    requests: int = 100_000
    wanted: int | None = None
    clients: int | None = None
    deadline_s: float = math.inf
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.load < math.inf:
            raise UserError(f"the load is {self.load}; give a positive number, such as 0.5")
        if not 1 <= self.fan_out <= self.k:
            raise UserError(f"{self.wanted} originals are wanted of {self.k}; give a number from 1 to {self.k}")
        for name in ("servers", "workers", "requests"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; give at least 1")

    @property
    def fan_out(self) -> int:
        """The number of originals that a request wants."""
        return self.k if self.wanted is None else self.wanted

    @property
    def rate(self) -> float:
        """Requests a second."""
        return self.load * self.servers * self.workers / (self.fan_out * self.law.mean_s)


def simulate(scenario: Scenario) -> Result:
    """Run a scenario to its end and sum it up."""
    tally, duration_s = run(scenario)
    return tally.result(scenario.servers * scenario.workers * duration_s)


def run(scenario: Scenario) -> tuple[Tally, float]:
    """Run a scenario until all is answered; return what happened, and for how long requests arrived, in seconds."""
    # One stream of random numbers for each purpose, so that schemes differ in nothing but themselves.
    arrivals, calls, helps, slow, places = (
        np.random.default_rng(s) for s in np.random.SeedSequence(scenario.seed).spawn(5)
    )
    scheme, k, fan_out = scenario.scheme, scenario.k, scenario.fan_out
    code = scheme.code(k, scenario.m)
    members = scheme.members(k, scenario.m)
    times = np.cumsum(arrivals.standard_exponential(scenario.requests)) / scenario.rate
    demand = Demand(
        arrivals_s=times.tolist(),
        groups=arrivals.integers(scenario.servers, size=scenario.requests).tolist(),
        wanted=[
            tuple(sorted((first + step) % k for step in range(fan_out))) for first in range(1 if fan_out == k else k)
        ],
        deadline_s=scenario.deadline_s,
    )
    clock = Clock()
    tally = Tally(scenario.requests, fan_out)
    memories = [Memory(scheme.policy) for _ in range(scenario.clients or scenario.servers)]
    works = _works(rows(scenario.law, calls, k), rows(scenario.law, helps, members - k) if members > k else None)
    front = FrontEnd(clock, scheme, code, demand, works, memories, tally)
    domains = domain_of(scenario.servers, scenario.domains)
    periods = scenario.slowness.draw(slow, domains, float(times[-1]))
    servers = [Server(clock, Pace(period, scenario.slowness.speed), scenario.workers, front.done) for period in periods]
    placed = place(scenario.placement, members, scenario.servers, scenario.domains, places)
    front.start([[servers[index] for index in row] for row in placed.tolist()])
    clock.run()
    return tally, float(times[-1])


def _works(originals: Iterator[list[float]], helpers: Iterator[list[float]] | None) -> Iterator[list[float]]:
    return originals if helpers is None else (a + b for a, b in zip(originals, helpers, strict=True))
