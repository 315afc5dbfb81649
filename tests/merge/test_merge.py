"""Merging checkpoints on disk: what encoders do in memory, in slices; whole, or nothing at all."""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from coin_export.cli import app
from coin_export.encode.average import AverageOptions
from coin_export.encode.coin import START, CoinOptions
from coin_export.encode.registry import encode
from coin_export.errors import (
    ArchitectureError,
    BuildError,
    CodeError,
    CoinExportError,
    ModelError,
    NonFiniteError,
    UserError,
)
from coin_export.fisher.diagonal import DiagonalFisher, diagonal_fisher
from coin_export.fisher.files import write_statistics
from coin_export.fisher.options import FisherOptions
from coin_export.merge import merge, writer
from coin_export.merge.checkpoint import Checkpoint
from coin_export.merge.rules import Average, Coin
from coin_export.model.state import first_names
from tests.reference.networks import CASES

BETAS = [0.2, 0.3, 0.5]
State = dict[str, torch.Tensor]


def states(dtype: torch.dtype = torch.float32) -> list[State]:
    return [
        {
            "weight": torch.randn(7, 5, generator=torch.Generator().manual_seed(seed)).to(dtype),
            "shared": torch.linspace(-1, 1, 9).to(dtype),
            "scalar": torch.tensor(float(seed)).to(dtype),
            "count": torch.tensor([seed, 3]),
            "empty": torch.zeros(0, 2, dtype=dtype),
        }
        for seed in range(3)
    ]


def saved(folder: Path, contents: list[State]) -> list[Path]:
    paths = [folder / f"{index}.safetensors" for index in range(len(contents))]
    for path, state in zip(paths, contents, strict=True):
        save_file(state, path, metadata={"format": "pt"})
    return paths


def sharded(folder: Path, state: State) -> Path:
    """Write two shards and an index, as Hugging Face does."""
    folder.mkdir()
    names = sorted(state)
    parts = {"model-00001-of-00002.safetensors": names[:2], "model-00002-of-00002.safetensors": names[2:]}
    for file, held in parts.items():
        save_file({name: state[name] for name in held}, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, held in parts.items() for name in held}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def averaged(contents: list[State], name: str) -> torch.Tensor:
    return torch.stack([beta * state[name].double() for beta, state in zip(BETAS, contents, strict=True)]).sum(0)


@pytest.fixture(params=[3, 2**17], ids=["small slices", "whole tensors"])
def slices(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coin_export.merge.merging._SLICE_ELEMENTS", request.param)


@pytest.mark.usefixtures("slices")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_the_average_keeps_dtypes_and_what_is_shared(dtype: torch.dtype, tmp_path: Path) -> None:
    contents = states(dtype)
    report = merge(saved(tmp_path, contents), [2, 3, 5], tmp_path / "out.safetensors")
    found = load_file(tmp_path / "out.safetensors")
    assert found.keys() == contents[0].keys()
    assert torch.equal(found["shared"], contents[0]["shared"]) and torch.equal(found["count"], contents[0]["count"])
    for name in ("weight", "scalar", "empty"):
        assert found[name].dtype == dtype
        wanted = averaged(contents, name)
        torch.testing.assert_close(found[name], wanted.to(dtype), rtol=2 * torch.finfo(dtype).eps, atol=1e-7)
    assert (report.combined, report.averaged, report.copied) == (4, (), ("count",))
    with Checkpoint(tmp_path / "out.safetensors") as written:
        assert written.metadata == [{"format": "pt"}]


@pytest.mark.usefixtures("slices")
def test_sharded_checkpoints_keep_their_shards(tmp_path: Path) -> None:
    contents = states()
    folders = [sharded(tmp_path / f"model_{index}", state) for index, state in enumerate(contents)]
    given = [folders[0] / "model.safetensors.index.json", folders[1], saved(tmp_path, contents)[2]]
    merge(given, BETAS, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(p.name for p in folders[0].iterdir())
    with Checkpoint(tmp_path / "out") as written:
        assert written.is_sharded and written.tensors.keys() == contents[0].keys()
    found = {
        name: tensor for file in (tmp_path / "out").glob("*.safetensors") for name, tensor in load_file(file).items()
    }
    torch.testing.assert_close(found["weight"], averaged(contents, "weight").float())
    # A file in the place of shards holds the same.
    merge([given[2], given[0], given[1]], [0.5, 0.2, 0.3], tmp_path / "one.safetensors")
    torch.testing.assert_close(load_file(tmp_path / "one.safetensors")["weight"], found["weight"])


@pytest.mark.usefixtures("slices")
@pytest.mark.parametrize("normalization", ["none", "per_model", "per_tensor"])
@pytest.mark.parametrize("damping", [0.0, 0.3])
@pytest.mark.parametrize("case", ["batch_norm", "embedding", "cnn"])
def test_coin_is_the_encoder_of_that_name(case: str, damping: float, normalization: Any, tmp_path: Path) -> None:
    originals = [CASES[case].original(name, seed) for seed, name in enumerate("abc")]
    options, calibration = CoinOptions(damping=damping, normalization=normalization), CASES[case].calibration()
    paths = saved(tmp_path, [dict(original.module.state_dict()) for original in originals])
    fishers = [tmp_path / f"{original.name}.fisher.safetensors" for original in originals]
    for original, path in zip(originals, fishers, strict=True):
        write_statistics(diagonal_fisher(original, calibration, options.fisher), path)
    report = merge(paths, BETAS, tmp_path / "out.safetensors", options, fishers)
    wanted = encode(originals, BETAS, calibration, options).state_dict
    found = load_file(tmp_path / "out.safetensors")
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5, msg=name)
    assert set(report.averaged) == {name for name, buffer in originals[0].module.named_buffers() if buffer.ndim}


def test_the_average_of_the_encoder_is_the_average_of_the_merge(tmp_path: Path) -> None:
    originals = [CASES["transformer"].original(name, seed) for seed, name in enumerate("abc")]
    paths = saved(tmp_path, [dict(original.module.state_dict()) for original in originals])
    merge(paths, BETAS, tmp_path / "out.safetensors")
    wanted = encode(originals, BETAS, CASES["transformer"].calibration(), AverageOptions()).state_dict
    torch.testing.assert_close(load_file(tmp_path / "out.safetensors"), wanted)


def test_tied_weights_are_merged_alike_under_all_names(tmp_path: Path) -> None:
    """Many checkpoints store both; the statistics have the first name only."""
    originals = [CASES["tied"].original(name, seed) for seed, name in enumerate("abc")]
    options, calibration = START, CASES["tied"].calibration()
    paths = saved(tmp_path, [{n: t.clone() for n, t in one.module.state_dict().items()} for one in originals])
    fishers = [tmp_path / f"{original.name}.fisher.safetensors" for original in originals]
    for original, path in zip(originals, fishers, strict=True):
        first = first_names(original.module)
        tied = {name: one for name, one in first.items() if name != one}
        assert tied
        write_statistics(diagonal_fisher(original, calibration, options.fisher), path, tied)
    report = merge(paths, BETAS, tmp_path / "out.safetensors", options, fishers)
    wanted = encode(originals, BETAS, calibration, options).state_dict
    found = load_file(tmp_path / "out.safetensors")
    assert not report.averaged
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5, msg=name)
    assert all(torch.equal(found[name], found[one]) for name, one in tied.items())


def test_masks_of_minus_infinity_stay_and_no_other_infinity_does(tmp_path: Path) -> None:
    mask = torch.tensor([0.0, -math.inf, 1.0])
    paths = saved(tmp_path, [{"mask": mask + shift} for shift in (0.0, 1.0, 2.0)])
    merge(paths, [1.0, 1.0, 1.0], tmp_path / "out.safetensors")
    torch.testing.assert_close(load_file(tmp_path / "out.safetensors")["mask"], mask + 1.0)
    for wrong in (math.inf, math.nan):
        paths = saved(tmp_path, [{"mask": mask}, {"mask": mask.clone().fill_(wrong)}, {"mask": mask}])
        with pytest.raises(NonFiniteError, match="'mask': NaN or infinity"):
            merge(paths, [1.0, 1.0, 1.0], tmp_path / "wrong.safetensors")
    paths = saved(tmp_path, [{"mask": mask}, {"mask": torch.zeros(3)}, {"mask": mask}])
    with pytest.raises(NonFiniteError, match="'mask': NaN or infinity"):
        merge(paths, [1.0, 1.0, 1.0], tmp_path / "wrong.safetensors")


def test_statistics_next_to_nothing_and_of_nothing_count_as_in_the_encoder(tmp_path: Path) -> None:
    values = [{"w": torch.randn(4), "empty": torch.zeros(0)} for _ in "ab"]
    fishers = []
    for index, scale in enumerate((1e-41, 3e-41)):
        diagonal = {"w": scale * torch.tensor([1.0, 2.0, 3.0, 4.0]), "empty": torch.zeros(0)}
        fishers.append(tmp_path / f"{index}.fisher.safetensors")
        write_statistics(DiagonalFisher(diagonal, 1, 0, 0), fishers[-1])
    merge(saved(tmp_path, values), [0.5, 0.5], tmp_path / "out.safetensors", CoinOptions(damping=0.0), fishers)
    # Per tensor, both have the same statistics.
    wanted = (values[0]["w"] + values[1]["w"]) / 2
    torch.testing.assert_close(load_file(tmp_path / "out.safetensors")["w"], wanted, rtol=1e-3, atol=1e-3)


def test_no_thread_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="0 threads"):
        merge(saved(tmp_path, states()), BETAS, tmp_path / "out.safetensors", threads=0)


def test_rules_leave_equal_numbers_as_they_are() -> None:
    equal, fishers = torch.randn(50), [torch.rand(50) for _ in range(3)]
    third = (0.1, 0.7, 0.2)
    for rule in (Average(third), Coin(third, third, 0.1), Coin(third, third, 0.0)):
        found = rule([equal.clone() for _ in range(3)], fishers)
        assert torch.equal(found, equal)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4])


def other_shape(path: Path) -> None:
    save_file({**states()[0], "weight": torch.zeros(7, 6)}, path)


def not_finite(path: Path) -> None:
    save_file({**states()[0], "weight": torch.full((7, 5), float("nan"))}, path)


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (truncated, ModelError, "cut short or is damaged"),
        (lambda path: path.write_bytes(b"garbage, and more of it"), ModelError, "header is longer"),
        (lambda path: path.unlink(), ModelError, "No such file"),
        (other_shape, ArchitectureError, r"'weight' is F32 \[7, 6\] and F32 \[7, 5\]"),
        (not_finite, NonFiniteError, "'weight': NaN or infinity"),
    ],
)
def test_a_failed_merge_leaves_nothing(
    damage: Callable[[Path], object], error: type[CoinExportError], message: str, tmp_path: Path
) -> None:
    paths = saved(tmp_path, states())
    damage(paths[1])
    (tmp_path / "out.safetensors").write_bytes(b"before")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(error, match=message):
        merge(paths, BETAS, tmp_path / "out.safetensors")
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "out.safetensors").read_bytes() == b"before"


@pytest.mark.parametrize("form", ["file", "folder"])
def test_a_full_disk_leaves_nothing(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = states()
    paths = saved(tmp_path, contents)
    if form == "folder":
        paths[0] = sharded(tmp_path / "shards", contents[0])
    before = sorted(tmp_path.rglob("*"))

    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(writer.Output, "write", full)
    with pytest.raises(BuildError, match="No space left"):
        merge(paths, BETAS, tmp_path / "out")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_that_exists_is_not_overwritten(tmp_path: Path) -> None:
    folders = [sharded(tmp_path / f"model_{index}", state) for index, state in enumerate(states())]
    with pytest.raises(BuildError, match="written to a new folder"):
        merge(folders, BETAS, folders[0])


def test_an_index_that_is_not_true_is_refused(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "model", states()[0])
    index = folder / "model.safetensors.index.json"
    index.write_text(index.read_text().replace('"scalar"', '"scale"'))
    with pytest.raises(ModelError, match="disagree about scalar, scale"):
        Checkpoint(folder)
    index.write_text('{"weight_map": {"a": "../../secret.safetensors"}}')
    with pytest.raises(ModelError, match="in other folders"):
        Checkpoint(folder)


@pytest.mark.parametrize(
    ("count", "coefficients", "fishers", "message"),
    [
        (1, [1.0], 0, "1 coefficients for 1 checkpoints"),
        (3, [1.0, 2.0], 0, "2 coefficients for 3"),
        (3, [1.0, 2.0, 0.0], 0, "positive"),
        (3, [1.0, 2.0, 3.0], 1, "1 files of statistics, and 'coin' needs 3"),
    ],
)
def test_senseless_requests_are_refused(
    count: int, coefficients: list[float], fishers: int, message: str, tmp_path: Path
) -> None:
    paths = saved(tmp_path, states())
    with pytest.raises(CodeError, match=message):
        merge(paths[:count], coefficients, tmp_path / "out.safetensors", fishers=paths[:fishers])


def test_statistics_of_other_models_are_refused(tmp_path: Path) -> None:
    paths = saved(tmp_path, states())
    with pytest.raises(ArchitectureError, match="holds no means"):
        merge(paths, BETAS, tmp_path / "out.safetensors", fishers=paths)
    case = CASES["mlp"]
    write_statistics(
        diagonal_fisher(case.original(), case.calibration(), CoinOptions().fisher), tmp_path / "f.safetensors"
    )
    with pytest.raises(ArchitectureError, match=r"fit no tensor of"):
        merge(paths, BETAS, tmp_path / "out.safetensors", fishers=[tmp_path / "f.safetensors"] * 3)


def test_statistics_of_other_weights_or_inputs_are_refused(tmp_path: Path) -> None:
    case = CASES["tied"]
    originals, points = [case.original(name, seed) for seed, name in enumerate("ab")], case.calibration()
    states = [{n: t.clone() for n, t in one.module.state_dict().items()} for one in originals]
    paths = saved(tmp_path, states)
    fishers = [tmp_path / f"{one.name}.fisher.safetensors" for one in originals]
    for original, path, inputs in zip(originals, fishers, ("one", "other"), strict=True):
        weights = dict(original.module.named_parameters())
        write_statistics(diagonal_fisher(original, points, FisherOptions()), path, None, weights, inputs)
    with pytest.raises(ArchitectureError, match=r"of other weights .* in the order of the checkpoints"):
        merge(paths, BETAS[:2], tmp_path / "out.safetensors", fishers=fishers[::-1])
    with pytest.raises(ArchitectureError, match="of other calibration inputs"):
        merge(paths, BETAS[:2], tmp_path / "out.safetensors", fishers=fishers)
    name, weight = next(iter(originals[1].module.named_parameters()))
    write_statistics(diagonal_fisher(originals[1], points, FisherOptions()), fishers[1], None, {name: weight}, "one")
    merge(paths, BETAS[:2], tmp_path / "out.safetensors", fishers=fishers)
    save_file(states[1] | {name: states[1][name] + 1e-3}, paths[1])
    with pytest.raises(ArchitectureError, match=f"1 of 1 tensors differ, '{name}'"):
        merge(paths, BETAS[:2], tmp_path / "other.safetensors", fishers=fishers)
    assert not (tmp_path / "other.safetensors").exists()


def test_the_command(tmp_path: Path) -> None:
    paths = saved(tmp_path, states())
    runner = CliRunner()
    asked = ["merge", str(tmp_path / "out.safetensors"), *map(str, paths), "--coefficients", "2,3,5", "--json"]
    result = runner.invoke(app, asked)
    assert result.exit_code == 0, result.output
    torch.testing.assert_close(load_file(tmp_path / "out.safetensors")["weight"], averaged(states(), "weight").float())
    assert isinstance(runner.invoke(app, [*asked[:-2], "a,b"]).exception, UserError)
