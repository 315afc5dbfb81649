from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from coin_export.errors import UserError
from coin_export.evaluate.simulation.figures import draw
from coin_export.evaluate.simulation.scheme import STANDARD
from coin_export.evaluate.simulation.service import ShiftedExponential
from coin_export.evaluate.simulation.studies import studies
from coin_export.evaluate.simulation.tables import insert, table
from scripts.simulate_cluster import app

PAGE = "# Title\n<!-- table: wanted -->\nold\n<!-- end -->\nrest\n<!-- table: load -->\n<!-- end -->\n"


def record(policy: str, x: float | str, panel: str = "", growth: float = 1.0) -> dict[str, Any]:
    times = {"p50_ms": 10.4, "p99_ms": 20.0, "p999_ms": 30.6}
    return {"policy": policy, "x": x, "panel": panel, "growth": growth, "offered_load": 0.5, **times}


def test_a_table_has_a_line_for_each_place_and_a_column_for_each_policy() -> None:
    records = [record("none", 0.2), record("coded_at_once", 0.2), record("none", 0.9, growth=3.0)]
    assert table("load", records).splitlines() == [
        "| load | `none` | `coded_at_once` |",
        "| --- | --- | --- |",
        "| 0.2 | 10 / 20 / 31 | 10 / 20 / 31 |",
        "| 0.9 | queues grow |  |",
    ]
    assert "| k = 2 | apart | 10 / 20 / 31 |" in table("members", [record("none", "apart", "k = 2")])


def test_tables_are_put_into_their_places_of_the_page_again_and_again() -> None:
    once = insert(PAGE, {"wanted": "| new |"})
    assert once == PAGE.replace("old\n", "\n| new |\n\n")
    assert insert(once, {"wanted": "| new |"}) == once
    with pytest.raises(UserError, match="no place for the table 'budget'"):
        insert(PAGE, {"budget": ""})


@pytest.mark.parametrize("x", [(0.1, 0.9), (10, 10_000), ("apart", "together")])
def test_figures_are_written_as_pixels_and_as_the_same_vectors_each_time(tmp_path: Path, x: tuple[Any, Any]) -> None:
    records = [record(scheme.name, place, panel) for scheme in STANDARD for panel in "ab" for place in x]
    for name in ("first", "second"):
        draw("A title", "x", records, tmp_path / name)
    assert (tmp_path / "first.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "first.svg").read_bytes() == (tmp_path / "second.svg").read_bytes()


def test_every_study_compares_policies_on_the_same_requests() -> None:
    found = studies(ShiftedExponential(0.01))
    assert len({study.name for study in found}) == len(found)
    for study in found:
        places = {(cell.panel, cell.x) for cell in study.cells}
        policies = {cell.scenario.scheme.name for cell in study.cells}
        assert len(study.cells) == len(places) * len(policies) and len(policies) > 1
        for place in places:
            here = [cell.scenario for cell in study.cells if (cell.panel, cell.x) == place]
            assert len({(s.servers, s.load, s.k, s.requests, s.seed, s.slowness, s.wanted) for s in here}) == 1


def test_the_command_runs_studies_once_and_reports_them(tmp_path: Path) -> None:
    times = {"alone": {"levels": [0, 0.9, 1], "times_s": [0.001, 0.002, 0.01]}}
    (tmp_path / "service_times.json").write_text(json.dumps(times))
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    where = ["--results", str(tmp_path)]
    arguments = ["sweep", *where, "--scale", "0.005", "--only", "wanted", "--cache", str(tmp_path / "cache")]
    contents = []
    for _ in range(2):
        assert CliRunner().invoke(app, arguments).exit_code == 0
        contents.append(json.loads((tmp_path / "simulation.json").read_text())["studies"])
    assert contents[0] == contents[1]  # with their times: nothing was run again
    assert len(contents[0]["wanted"]["records"]) == 20
    assert CliRunner().invoke(app, ["report", *where, "--page", str(page)]).exit_code == 0
    assert "| 8 |" in page.read_text() and (tmp_path / "simulation_wanted.png").exists()
    arguments = ["million", *where, "--requests", "200", "--servers", "40", "--k", "2"]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    (timed,) = json.loads((tmp_path / "simulation.json").read_text())["million"]
    assert timed["k"] == 2 and timed["requests"] == 180 and timed["wall_seconds"] > 0


def test_a_measured_tail_is_simulated_beside_it(tmp_path: Path) -> None:
    (tmp_path / "service_times.json").write_text('{"alone": {"levels": [0, 1], "times_s": [0.001, 0.003]}}')
    cell = {"requests": 400, "rate": 200.0, "seed": 0, "p50_ms": 2.5, "p99_ms": 5.0, "p999_ms": 9.0}
    cells = [{"policy": policy, "scenario": "straggle_5", **cell} for policy in ("none", "coded_at_once")]
    cells.append({"policy": "none", "scenario": "killed_server", **cell})
    (tmp_path / "tail.json").write_text(json.dumps(cells))
    found = CliRunner().invoke(app, ["against", str(tmp_path / "tail.json"), "--results", str(tmp_path)])
    assert found.exit_code == 0
    *_, none, coded = found.stdout.splitlines()
    assert none.startswith("| straggle_5 | `none` | 2.5 / ") and coded.startswith("| straggle_5 | `coded_at_once` |")
    assert "killed_server" not in found.stdout
