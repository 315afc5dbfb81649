from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from coin_export.errors import UserError
from coin_export.evaluate.simulation.service import (
    Bimodal,
    Fixed,
    Law,
    LogNormal,
    Measured,
    Pareto,
    ShiftedExponential,
    rows,
)

MEASURED = Measured((0.0, 0.5, 0.9, 1.0), (1.0, 2.0, 3.0, 13.0))


@pytest.mark.parametrize(
    "law", [Fixed(2.0), ShiftedExponential(2.0), Pareto(2.0), LogNormal(2.0), Bimodal(2.0), MEASURED.stretched(2.0)]
)
def test_the_mean_is_what_it_says(law: Law) -> None:
    assert law.mean_s == pytest.approx(2.0)
    drawn = law.sample(np.random.default_rng(0), (500, 1000))
    assert (drawn > 0).all() and drawn.mean() == pytest.approx(2.0, rel=0.02)


def test_measured_times_have_the_measured_quantiles() -> None:
    drawn = MEASURED.sample(np.random.default_rng(0), (1000, 100))
    assert np.quantile(drawn, [0.25, 0.5, 0.9, 0.95]) == pytest.approx([1.5, 2.0, 3.0, 8.0], rel=0.02)
    assert drawn.min() >= 1.0 and drawn.max() <= 13.0


def test_measured_times_are_read_from_their_file(tmp_path: Path) -> None:
    path = tmp_path / "times.json"
    path.write_text(json.dumps({"together": {"levels": MEASURED.levels, "times_s": MEASURED.times_s}}))
    assert Measured.read(path, "together") == MEASURED
    with pytest.raises(UserError, match="alone"):
        Measured.read(path, "alone")


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"alone": {"levels": [0, 1], "times_s": [1]}}',
        '{"alone": {"levels": [0, 0.5], "times_s": [1, 2]}}',
        '{"alone": {"levels": [0, 1], "times_s": [2, 1]}}',
    ],
)
def test_a_file_without_service_times_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "times.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"times\.json holds no service times"):
        Measured.read(path)


def test_the_same_generator_gives_the_same_rows() -> None:
    def some(width: int) -> list[list[float]]:
        return list(islice(rows(Pareto(1.0), np.random.default_rng(3), width), 3000))

    assert some(2) == some(2)
    assert all(len(row) == 2 for row in some(2))
