import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from scripts import reproduce_paper, try_encoder
from scripts.reproduce import running
from scripts.reproduce.cells import Cell, plan
from scripts.reproduce.figures import _COLOURS
from scripts.reproduce.measuring import measure
from scripts.reproduce.methods import ALIKE, DEFAULT, METHODS, seeded, with_options
from scripts.reproduce.originals import Recipe
from scripts.reproduce.settings import FULL, QUICK, Scale, Setting
from scripts.reproduce.tasks import Data
from scripts.reproduce.training import Training

TINY = Training(points=40, epochs=1, learning_rate=1e-3, batch_size=8)
SMALL = Recipe("small_cnn", (("mnist", TINY), ("fashion-mnist", TINY)))
SCALE = Scale(
    settings=(
        Setting("small_cnn mnist+fashion", SMALL, ("mnist", "fashion-mnist"), points=(8,), methods=("average", "coin")),
    ),
    seeds=2,
    test_points=10,
    sweep=(4, 8),
    swept=("average",),
    epochs=(1,),
    grid=(),
    budgets=(),
)


@pytest.mark.parametrize("scale", [FULL, QUICK])
def test_a_plan_names_each_cell_once(scale: Scale, tmp_path: Path) -> None:
    cells = plan(scale)
    assert len({(cell.setting.name, cell.path(tmp_path)) for cell in cells}) == len(cells)


def test_every_setting_has_its_first_seed_before_any_has_its_second() -> None:
    seeds = [cell.seed for cell in plan(FULL) if cell.study == "comparison"]
    assert seeds == sorted(seeds)


def test_the_default_is_what_build_does_and_no_other() -> None:
    cells = plan(FULL)
    assert {cell.method for cell in cells if cell.default} == {DEFAULT}
    changed = with_options(METHODS[DEFAULT], {"seed": 7})
    mine = next(cell for cell in cells if cell.default)
    assert not replace(mine, options=changed).default and not replace(mine, method=ALIKE).default


def test_every_encoder_has_a_colour() -> None:
    assert _COLOURS.keys() == METHODS.keys()


def test_seeds_reach_every_draw_of_an_encoder() -> None:
    options = seeded(METHODS["coin_categorical"], 5).model_dump()
    assert options["fisher"]["seed"] == 5
    assert seeded(METHODS["distill"], 5).model_dump()["seed"] == 5


def test_two_coded_models_are_measured_for_all_pairs_of_erasures(data_folder: Path, tmp_path: Path) -> None:
    setting = replace(SCALE.settings[0], parities=2)
    records = measure(Cell("comparison", setting, "average", METHODS["average"], 6, 0, 10), Data(data_folder, tmp_path))
    pairs = [record["erased"] for record in records if len(record["erased"]) == 2]
    assert len(records) == 2 + 5 and len(pairs) == 5  # of six pairs, one loses no original
    assert ["mnist", "coded_1"] in pairs and ["coded_0", "coded_1"] not in pairs
    lost = next(record for record in records if record["erased"] == ["mnist", "fashion-mnist"])
    assert set(lost["by_model"]) == {"mnist", "fashion-mnist"}
    assert (lost["k"], lost["m"], lost["points"], lost["seed"], lost["default"]) == (2, 2, 6, 0, False)
    assert 0.9 < lost["error_correlation"] <= 1  # two means of the same two weights, nearly alike


def test_an_original_that_arrived_is_never_counted_as_decoded(data_folder: Path, tmp_path: Path) -> None:
    records = measure(plan(SCALE)[0], Data(data_folder, tmp_path))
    assert [(record["erased"], list(record["by_model"])) for record in records] == [
        (["mnist"], ["mnist"]),
        (["fashion-mnist"], ["fashion-mnist"]),
    ]
    assert all(record["encode_seconds"] >= 0 and record["forward_passes"] == 0 for record in records)


def test_an_interrupted_run_goes_on(
    data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(reproduce_paper, "QUICK", SCALE)
    monkeypatch.setattr(running, "_pool", ThreadPoolExecutor)
    folders = ["--data-dir", str(data_folder), "--cache", str(tmp_path / "cache"), "--output", str(tmp_path / "out")]
    reproduce_paper.main(["--quick", "--encoders", "coin", *folders])
    partly = json.loads((tmp_path / "out" / "reproduce.json").read_text("utf-8"))
    assert {record["encoder"] for record in partly} == {"coin"}
    assert "2 of 8 cells measured" in capsys.readouterr().out
    reproduce_paper.main(["--quick", "--stages", "train", "measure", "report", *folders])
    assert "8 of 8 cells measured" in capsys.readouterr().out
    records = json.loads((tmp_path / "out" / "reproduce.json").read_text("utf-8"))
    assert [record for record in records if record["encoder"] == "coin"] == partly
    elsewhere = ["--cache", str(tmp_path), *folders[4:]]
    reproduce_paper.main(["--quick", "--stages", "report", *folders[:2], *elsewhere])
    assert json.loads((tmp_path / "out" / "reproduce.json").read_text("utf-8")) == records
    monkeypatch.setattr(reproduce_paper, "QUICK", replace(SCALE, sweep=(4, 7), epochs=(2,)))
    reproduce_paper.main(["--quick", "--stages", "report", *folders[:2], *elsewhere])
    assert "6 of 10 cells measured" in capsys.readouterr().out, "what has other options now was not measured"
    for name in ("points", "epochs", "settings"):
        for suffix in ("png", "svg"):
            assert (tmp_path / "out" / f"reproduce_{name}.{suffix}").stat().st_size < 300_000


def test_other_options_can_be_tried_without_a_record(
    data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(try_encoder, "SETTINGS", {setting.name: setting for setting in SCALE.settings})
    folders = ["--data-dir", str(data_folder), "--cache", str(tmp_path)]
    try_encoder.main(["small_cnn mnist+fashion", "8", "regress", '{"ridge": 0.1}', "--test-points", "10", *folders])
    reached = json.loads(capsys.readouterr().out)
    assert reached["by_model"].keys() == {"mnist", "fashion-mnist"}
    assert reached["normalized_decoding_accuracy"] == pytest.approx(
        (reached["by_model"]["mnist"]["mnist"] + reached["by_model"]["fashion-mnist"]["fashion-mnist"]) / 2
    )
    assert not list(tmp_path.rglob("cells/*"))


def test_a_cell_that_fails_leaves_the_others_done(
    data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "_pool", ThreadPoolExecutor)
    good = plan(SCALE)[0]
    bad = replace(
        good, points=1, method="distill", options=METHODS["refine"], setting=replace(good.setting, parities=0)
    )
    data = Data(data_folder, tmp_path)
    with pytest.raises(RuntimeError, match="mnist\\+fashion: distill, 1 points, seed 0: CodeError"):
        running.run_cells([bad, good], data, 1, lambda _: None)
    assert [len(records) for records in running.done([bad, good], data)] == [2]
