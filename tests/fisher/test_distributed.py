"""Two processes started by torchrun give what one gives."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from coin_export.fisher.diagonal import diagonal_fisher
from coin_export.fisher.distributed import distributed_diagonal_fisher, part_of
from coin_export.fisher.files import MEANS_KEY, POINTS_KEY, write_statistics
from coin_export.fisher.options import FisherOptions
from tests.e2e.conftest import UserProject, make_project
from tests.reference.networks import CASES

TORCHRUN = [str(Path(sys.executable).parent / "torchrun"), "--standalone", "--nproc-per-node", "2"]


@given(st.integers(0, 100), st.integers(1, 9))
def test_the_parts_are_all_points_once(points: int, processes: int) -> None:
    parts = [part_of(points, rank, processes) for rank in range(processes)]
    assert [point for part in parts for point in part] == list(range(points))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_process_alone_is_the_plain_case() -> None:
    original, calibration = CASES["cnn"].original(), CASES["cnn"].calibration()
    alone = distributed_diagonal_fisher(original, calibration, FisherOptions())
    plain = diagonal_fisher(original, calibration, FisherOptions())
    assert alone.points == plain.points == len(calibration)
    assert all(torch.equal(alone.diagonal[name], tensor) for name, tensor in plain.diagonal.items())


def test_statistics_files_hold_the_means(tmp_path: Path) -> None:
    fisher = diagonal_fisher(CASES["tied"].original(), CASES["tied"].calibration(), FisherOptions())
    write_statistics(fisher, tmp_path / "deep" / "a.safetensors")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a.safetensors"]
    with safe_open(tmp_path / "deep" / "a.safetensors", framework="pt") as file:
        metadata = file.metadata()
    means = json.loads(metadata[MEANS_KEY])
    assert metadata[POINTS_KEY] == "5" and means.keys() == fisher.diagonal.keys()
    assert all(means[name] == pytest.approx(float(tensor.mean())) for name, tensor in fisher.diagonal.items())


def fisher(project: UserProject, output: str, *launcher: str) -> dict[str, dict[str, torch.Tensor]]:
    script = ["-c", "from coin_export.cli import main; main()", "fisher", "recipe.yaml", "-o", output, "--json"]
    command = [*launcher, sys.executable, *script]
    result = subprocess.run(command, capture_output=True, text=True, cwd=project.folder, timeout=500, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    rows = json.loads(result.stdout)  # of the first process alone
    assert {row["points"] for row in rows} == {7}
    return {row["model"]: load_file(project.folder / row["file"]) for row in rows}


THREADS_AFTER_THE_GROUP = """
from pathlib import Path
import torch
from coin_export.fisher.distributed import process_group

def threads():
    return {(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()}

with process_group():
    torch.distributed.all_reduce(torch.ones(3))
    import torch.distributed.nn
    assert any("gloo" in name for name in threads()), threads()
assert not any("gloo" in name for name in threads()), threads()
"""


def test_no_thread_of_the_group_outlives_it(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(THREADS_AFTER_THE_GROUP)
    result = subprocess.run(
        [*TORCHRUN, "script.py"], capture_output=True, text=True, cwd=tmp_path, timeout=500, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_two_processes_give_the_statistics_of_one(tmp_path: Path) -> None:
    project = make_project(tmp_path)
    points = np.load(tmp_path / "calibration.npz")["image"][:7]  # cannot be halved
    np.savez(tmp_path / "calibration.npz", image=points)
    one = fisher(project, "one")
    two = fisher(project, "two", *TORCHRUN, "--no-python")
    assert one.keys() == two.keys() == set(project.names)
    for name, diagonal in one.items():
        assert diagonal.keys() == two[name].keys()
        for key, tensor in diagonal.items():
            torch.testing.assert_close(two[name][key], tensor, rtol=1e-5, atol=0)
