"""Simulate clusters of servers with the client's own policies: where coding wins, and where it does not.

    python scripts/simulate_cluster.py sweep [--quick]
    python scripts/simulate_cluster.py million
    python scripts/simulate_cluster.py report
    python scripts/simulate_cluster.py against docs/results/tail_latency.json

`sweep` runs all studies and writes ``simulation.json``; what was run before, with the same code, is not run again.
`million` times runs of one million requests and adds them to the file. `report` draws the figures and fills the
tables of the page. `against` replays the arrivals and stops of a measured tail and prints both side by side.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress

import coin_export
from coin_export.evaluate.simulation.figures import draw
from coin_export.evaluate.simulation.scenario import Scenario, simulate
from coin_export.evaluate.simulation.scheme import CODED_AFTER_P95
from coin_export.evaluate.simulation.service import Measured
from coin_export.evaluate.simulation.slowness import Slowness
from coin_export.evaluate.simulation.studies import MEAN_S, SLOW_SHARE, Cell, Study, studies
from coin_export.evaluate.simulation.tables import insert, markdown, table
from scripts.bench.machine import describe
from scripts.tail.replay import REPLAYED, replay

RESULTS = Path("docs/results")
PAGE = Path("docs/simulation.md")
QUICK = 0.05

Results = Annotated[Path, typer.Option(help="Folder of the results.")]

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__, rich_markup_mode=None)


@app.command()
def sweep(
    results: Results = RESULTS,
    scale: Annotated[float, typer.Option(help="Of the number of requests.")] = 1.0,
    quick: Annotated[bool, typer.Option(help="Few requests: shows that it runs, not what it finds.")] = False,
    only: Annotated[list[str] | None, typer.Option(help="Studies to run; all others keep their records.")] = None,
    cache: Annotated[Path, typer.Option(help="Folder of single runs.")] = Path("artifacts/simulation"),
) -> None:
    """Run the studies and write ``simulation.json``."""
    chosen = [study for study in _studies(results, QUICK if quick else scale) if not only or study.name in only]
    content = _read(results)
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("runs", total=sum(len(study.cells) for study in chosen))
        for study in chosen:
            records: list[dict[str, Any]] = []
            content["studies"][study.name] = {"title": study.title, "axis": study.axis, "records": records}
            for cell in study.cells:
                progress.update(task, description=f"{study.name}: {cell.scenario.scheme.name}")
                records.append(_record(cell) | _cached(cell.scenario, cache))
                progress.advance(task)
                _write(results, content | {"scale": QUICK if quick else scale, "meta": describe()})


@app.command()
def million(
    results: Results = RESULTS,
    k: Annotated[list[int] | None, typer.Option(help="Originals of a group.")] = None,
    requests: int = 1_000_000,
    servers: int = 10_000,
) -> None:
    """Time runs of one million requests on one core, the default policy on 10,000 servers."""
    law = Measured.read(results / "service_times.json").stretched(MEAN_S)
    for originals in k or [2, 8]:
        scenario = Scenario(
            CODED_AFTER_P95,
            law,
            0.4,
            k=originals,
            servers=servers,
            slowness=Slowness(SLOW_SHARE),
            requests=requests,
        )
        start = time.perf_counter()
        record = {"policy": scenario.scheme.name, "k": originals, "servers": servers} | _run(scenario)
        record["wall_seconds"] = round(time.perf_counter() - start, 2)
        Console().print_json(data=record)
        content = _read(results)
        others = [other for other in content.get("million", []) if other["k"] != originals]
        content["million"] = sorted([*others, record], key=lambda one: int(one["k"]))
        _write(results, content)


@app.command()
def report(results: Results = RESULTS, page: Annotated[Path, typer.Option(help="The page.")] = PAGE) -> None:
    """Draw the figures and fill the tables of the page."""
    content = _read(results)
    tables = {}
    for name, study in content["studies"].items():
        draw(study["title"], study["axis"], study["records"], results / f"simulation_{name}")
        tables[name] = table(study["axis"], study["records"])
    page.write_text(insert(page.read_text(encoding="utf-8"), tables), encoding="utf-8")


@app.command()
def against(
    measured: Annotated[Path, typer.Argument(help="What scripts/bench_tail.py wrote.")],
    results: Results = RESULTS,
    page: Annotated[Path | None, typer.Option(help="A page with a place for the table.")] = None,
) -> None:
    """Simulate a measured tail: the same arrivals and stops, service times of idle servers."""
    records = json.loads(measured.read_text(encoding="utf-8"))
    law = Measured.read(results / "service_times.json")
    keys = ("p50_ms", "p99_ms", "p999_ms")
    lines = []
    for scenario, policy in dict.fromkeys((record["scenario"], record["policy"]) for record in records):
        if scenario in REPLAYED:
            here = [one for one in records if (one["scenario"], one["policy"]) == (scenario, policy)]
            simulated = [
                replay(one["policy"], scenario, one["requests"], one["rate"], one["seed"], law) for one in here
            ]
            pairs = [f"{_median(here, key):.1f} / {_median(simulated, key):.1f}" for key in keys]
            lines.append([scenario, f"`{policy}`", *pairs])
    heads = ["scenario", "policy", *(f"{name}: measured / simulated" for name in ("p50", "p99", "p99.9"))]
    text = markdown(heads, lines)
    typer.echo(text)
    if page is not None:
        page.write_text(insert(page.read_text(encoding="utf-8"), {"against": text}), encoding="utf-8")


def _median(records: Iterable[Mapping[str, Any]], key: str) -> float:
    return float(statistics.median(record[key] for record in records))


def _studies(results: Path, scale: float) -> tuple[Study, ...]:
    return studies(Measured.read(results / "service_times.json").stretched(MEAN_S), scale)


def _record(cell: Cell) -> dict[str, Any]:
    scenario = cell.scenario
    return {
        "x": cell.x,
        "panel": cell.panel,
        "policy": scenario.scheme.name,
        "k": scenario.k,
        "members": scenario.scheme.members(scenario.k, scenario.m),
        "load": scenario.load,
        "servers": scenario.servers,
        "seed": scenario.seed,
    }


def _run(scenario: Scenario) -> dict[str, Any]:
    start = time.process_time()
    result = asdict(simulate(scenario))
    return {key: round(value, 5) for key, value in result.items()} | {"seconds": round(time.process_time() - start, 2)}


def _cached(scenario: Scenario, cache: Path) -> dict[str, Any]:
    """Run a scenario, unless this code has done so before."""
    path = cache / f"{hashlib.sha256(f'{_code_digest()} {scenario!r}'.encode()).hexdigest()[:20]}.json"
    if path.exists():
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found
    record = _run(scenario)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record), encoding="utf-8")
    return record


def _code_digest() -> str:
    root = Path(coin_export.__file__).parent
    files = sorted(path for room in ("client", "code", "evaluate/simulation") for path in (root / room).glob("*.py"))
    runs = [path for path in files if path.stem not in ("studies", "tables", "figures")]
    return hashlib.sha256(b"".join(path.read_bytes() for path in runs)).hexdigest()


def _read(results: Path) -> dict[str, Any]:
    path = results / "simulation.json"
    if not path.exists():
        return {"meta": {}, "studies": {}}
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _write(results: Path, content: Mapping[str, Any]) -> None:
    results.mkdir(parents=True, exist_ok=True)
    (results / "simulation.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    app()
