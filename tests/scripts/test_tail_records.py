from pathlib import Path

import numpy as np
import pytest

from scripts.tail.cells import Cell, Outcome, summary
from scripts.tail.load import Trace
from scripts.tail.records import SHARES, Record, Records, curve
from scripts.tail.tables import results, verdicts
from scripts.tail.verdict import rows, targets

CELL = Cell("coded_at_once", "straggle_2", 0, 1000, 250.0)


def trace() -> Trace:
    """A thousand requests of 1 ms to 1 s; the first one failed, every tenth one has a decoded answer of two."""
    made = Trace.of(1000)
    made.latency_s[:] = np.arange(1, 1001) / 1000
    made.latency_s[0] = np.nan
    made.late_s[:] = 0.001
    made.decoded[9::10] = 1
    made.correct[:] = np.arange(1000) < 901
    return made


def record(policy: str, repeat: int = 0, p999_ms: float = 300.0, **changes: float) -> Record:
    made = summary(Cell(policy, "straggle_2", repeat, 1000, 250.0), Outcome(trace(), 2, 0))
    return {**made, "p50_ms": 3.0, "p999_ms": p999_ms, "failed": 0, "decoded_share": 0.01, **changes}


def test_a_record_has_exact_quantiles_of_what_was_answered() -> None:
    made = summary(CELL, Outcome(trace(), 2, 30))
    assert made["failed"] == 1
    assert (made["p50_ms"], made["p90_ms"], made["p99_ms"]) == (501.0, 901.0, 991.0)
    assert made["max_ms"] == 1000.0
    assert made["extra_request_share"] == pytest.approx(30 / 2000)
    assert made["decoded_share"] == pytest.approx(100 / (2 * 999))
    assert made["accuracy"] == pytest.approx(100 * 900 / 999)
    assert made["client_late_p999_ms"] == pytest.approx(1.0)


def test_a_curve_says_what_a_share_of_all_requests_reaches() -> None:
    points = dict(zip(SHARES.round(6).tolist(), curve(trace().latency_s), strict=True))
    assert points[1.0] == 2.0
    assert points[0.01] == 992.0  # the slowest ten, the failed one among them
    assert points[0.001] is None


def test_cells_are_kept_as_they_come_and_found_again(tmp_path: Path) -> None:
    records = Records(tmp_path / "results")
    assert not records.have("none", "straggle_2", 0)
    records.add(record("none"), curve(trace().latency_s))
    records.add(record("none", 1), curve(trace().latency_s))
    again = Records(tmp_path / "results")
    assert again.have("none", "straggle_2", 1)
    assert not again.have("none", "straggle_2", 2)
    assert again.records == records.records
    assert again.curves == records.curves
    assert {path.name for path in (tmp_path / "results").iterdir()} == {"tail_latency.json", "tail_curves.json"}


def test_the_gap_is_cut_relative_to_no_redundancy_in_the_same_repeat() -> None:
    found = rows(
        [record("none", 0, 303.0), record("none", 1, 603.0), *(record("coded_at_once", i, 13.0) for i in (0, 1))]
    )
    assert found[1].values["gap_cut"] == pytest.approx((45.0, 30.0, 60.0))
    assert found[0].values["p999_ms"] == (453.0, 303.0, 603.0)


def test_targets_are_judged_by_what_was_measured() -> None:
    measured = [
        record("none"),
        record("replicas_equal", p999_ms=200.0),
        record("replicas_full_hedged", p999_ms=13.0),
        record("coded_at_once", p999_ms=12.0, p50_ms=3.2),
        record("coded_after_p95", p999_ms=16.0, extra_request_share=0.03, accuracy=80.0, failed=2),
    ]
    judged = {target.text: target.met for target in targets(rows(measured))}
    assert judged == {
        "straggle_2: coded_at_once cuts the gap at least 30x": True,
        "straggle_2: coded_at_once has a p50 within 10 % of none's": True,
        "straggle_2: coded_at_once decodes less than 5 %": True,
        "straggle_2: coded_at_once is ahead of replicas_equal at p99.9": True,
        "straggle_2: coded_after_p95 cuts the gap at least 25x": False,
        "straggle_2: coded_after_p95 sends at most 2 % more requests": False,
        "straggle_2: coded_at_once matches replicas_full_hedged at p99.9, with one server less": True,
        "straggle_2: coded_after_p95 matches replicas_full_hedged at p99.9, with one server less": False,
        "straggle_2: coded_at_once is within 0.3 % of none's accuracy": True,
        "straggle_2: coded_at_once fails no request": True,
        "straggle_2: coded_after_p95 is within 0.3 % of none's accuracy": False,
        "straggle_2: coded_after_p95 fails no request": False,
    }


def test_nothing_is_judged_that_was_not_measured() -> None:
    assert list(targets(rows([record("none")]))) == []
    judged = targets(rows([record("none"), record("coded_at_once"), record("coded_after_p95")]))
    assert not any("replicas" in target.text for target in judged)


def test_a_table_has_one_row_a_policy_in_order() -> None:
    found = rows([record("coded_at_once", p999_ms=13.0), record("none", p999_ms=303.0)])
    table = results(found)
    assert table.startswith("**straggle_2** (1 repeat)\n")
    assert table.index("`none`") < table.index("`coded_at_once`")
    assert "30.0 (30.0 to 30.0)" in table
    assert verdicts(targets(found)).count("\n") == 3
