"""The studies: which scenarios are compared, and along what. Values only; nothing is run here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from coin_export.client.budget import Budget
from coin_export.client.policy import AfterDelay, Policy
from coin_export.evaluate.simulation.placement import Placement
from coin_export.evaluate.simulation.scenario import Scenario
from coin_export.evaluate.simulation.scheme import (
    CODED_AFTER_P95,
    CODED_AT_ONCE,
    NONE,
    REPLICAS_EQUAL_HEDGED,
    REPLICAS_FULL_AT_ONCE,
    REPLICAS_FULL_BALANCED,
    REPLICAS_FULL_HEDGED,
    REPLICAS_FULL_TIED,
    STANDARD,
    Redundancy,
    Scheme,
    coded_models,
)
from coin_export.evaluate.simulation.service import Bimodal, Law, LogNormal, Pareto, ShiftedExponential
from coin_export.evaluate.simulation.slowness import Scope, Slowness

MEAN_S = 0.010  # of service times, in all studies
SLOW_SHARE = 0.01  # of its time that a server stands still
FIXED_DELAY_S = 0.030  # of the budget study's hedges

_REQUESTS = {2: 60_000, 4: 40_000, 8: 24_000, 16: 12_000, 32: 8_000}  # about as many calls for every k
_UNBOUNDED = 1e6


@dataclass(frozen=True)
class Cell:
    """One run of a study.

    Attributes:
        x: where it stands on the study's axis.
        panel: which of the study's panels it belongs to; empty if there is only one.
        scenario: what is run.
    """

    x: float | str
    panel: str
    scenario: Scenario


@dataclass(frozen=True)
class Study:
    """Scenarios that are shown together.

    Attributes:
        name: a word, also for files.
        title: a sentence.
        axis: what ``x`` is.
        cells: its runs.
    """

    name: str
    title: str
    axis: str
    cells: tuple[Cell, ...]


def studies(measured: Law, scale: float = 1.0) -> tuple[Study, ...]:
    """Return all studies.

    Args:
        measured: service times, of a mean of `MEAN_S`.
        scale: of the number of requests.
    """

    def base(scheme: Scheme, load: float, k: int = 2) -> Scenario:
        requests = round(scale * _REQUESTS[k])
        slowness = Slowness(SLOW_SHARE)
        return Scenario(scheme, measured, load, k=k, m=coded_models(k), slowness=slowness, requests=requests)

    return (
        Study("load", "The tail against load", "load", tuple(_load(base))),
        Study("fan_out", "The tail against the number of originals, load 0.4", "k", tuple(_fan_out(base))),
        Study("slow_share", "The tail against how much servers stand still, load 0.4", "share", tuple(_share(base))),
        Study("service", "The tail by service times alone, k = 8, load 0.4", "service times", tuple(_service(base))),
        Study("correlation", "Servers that are slow together, k = 2, load 0.4", "members", tuple(_correlation(base))),
        Study("servers", "The size of the cluster, k = 2, load 0.4", "servers", tuple(_servers(base))),
        Study("overload", "Extra load that makes it worse, k = 2", "load", tuple(_overload(base))),
        Study("budget", "Hedges after a fixed 30 ms, by their budget, k = 2", "budget", tuple(_budget(base))),
        Study("wanted", "Requests that want some of 8 originals, load 0.4", "wanted", tuple(_wanted(base))),
    )


Base = Callable[..., Scenario]


def _load(base: Base) -> Iterable[Cell]:
    for k in (2, 8, 32):
        for load in (0.2, 0.4, 0.6, 0.8, 0.9):
            for scheme in STANDARD:
                yield Cell(load, f"k = {k}", base(scheme, load, k))


def _fan_out(base: Base) -> Iterable[Cell]:
    return (Cell(k, "", base(scheme, 0.4, k)) for k in _REQUESTS for scheme in STANDARD)


def _share(base: Base) -> Iterable[Cell]:
    for k in (2, 8):
        for share in (0.001, 0.003, SLOW_SHARE, 0.03):
            for scheme in (NONE, REPLICAS_FULL_HEDGED, CODED_AT_ONCE, CODED_AFTER_P95):
                yield Cell(share, f"k = {k}", replace(base(scheme, 0.4, k), slowness=Slowness(share)))


def _service(base: Base) -> Iterable[Cell]:
    for scheme in STANDARD:
        scenario = replace(base(scheme, 0.4, 8), slowness=Slowness())
        yield Cell("measured", "", scenario)
        yield Cell("shifted exponential", "", replace(scenario, law=ShiftedExponential(MEAN_S)))
        yield Cell("lognormal", "", replace(scenario, law=LogNormal(MEAN_S)))
        yield Cell("bimodal", "", replace(scenario, law=Bimodal(MEAN_S)))
        yield Cell("Pareto", "", replace(scenario, law=Pareto(MEAN_S)))


def _correlation(base: Base) -> Iterable[Cell]:
    schemes = (NONE, REPLICAS_FULL_HEDGED, CODED_AT_ONCE, CODED_AFTER_P95)
    cases: Sequence[tuple[str, Scope, int]] = (
        ("each server by itself", Scope.SERVER, 20),
        ("racks, 20 of 4 servers", Scope.DOMAIN, 20),
        ("zones, 4 of 20 servers", Scope.DOMAIN, 4),
    )
    for panel, scope, domains in cases:
        for placement in Placement:
            for scheme in schemes:
                scenario = base(scheme, 0.4)
                slowness = replace(scenario.slowness, scope=scope)
                yield Cell(
                    placement.value, panel, replace(scenario, slowness=slowness, domains=domains, placement=placement)
                )


def _servers(base: Base) -> Iterable[Cell]:
    for servers in (200, 1_000, 10_000):
        for scheme in (NONE, REPLICAS_FULL_HEDGED, CODED_AT_ONCE, CODED_AFTER_P95):
            scenario = base(scheme, 0.4)
            requests = max(scenario.requests, round(scenario.requests * servers / 2_000))
            yield Cell(servers, "", replace(scenario, servers=servers, clients=20, requests=requests))


def _overload(base: Base) -> Iterable[Cell]:
    schemes = (NONE, REPLICAS_FULL_BALANCED, REPLICAS_FULL_AT_ONCE, CODED_AT_ONCE, CODED_AFTER_P95)
    for load in (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9):
        for scheme in schemes:
            yield Cell(load, "", base(scheme, load))


def _budget(base: Base) -> Iterable[Cell]:
    for load in (0.6, 0.8):
        for share in (0.0, 0.02, 0.05, 0.1, 0.2, 0.5, _UNBOUNDED):
            for name, redundancy in (("coded", Redundancy.CODED), ("replicas_full", Redundancy.ALL_COPIES)):
                budget = Budget(share, burst=32.0 if share else 0.0) if share < _UNBOUNDED else Budget(share, share)
                policy = Policy(AfterDelay(FIXED_DELAY_S), budget=budget)
                scheme = Scheme(f"{name}_after_30_ms", redundancy, policy)
                x = "no bound" if share == _UNBOUNDED else f"{share:.0%}"
                # Few clients, so that the share counts and not the bursts that each is granted at first.
                yield Cell(x, f"load {load}", replace(base(scheme, load), clients=8))


def _wanted(base: Base) -> Iterable[Cell]:
    schemes = (NONE, REPLICAS_EQUAL_HEDGED, REPLICAS_FULL_HEDGED, REPLICAS_FULL_TIED, CODED_AFTER_P95)
    for wanted in (1, 2, 4, 8):
        for scheme in schemes:
            yield Cell(wanted, "", replace(base(scheme, 0.4, 8), wanted=wanted))
