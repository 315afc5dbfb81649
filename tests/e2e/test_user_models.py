"""The README's promise to a user with models of their own: build, verify, inspect, serve, infer, evaluate."""

import contextlib
import json
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml

from coin_export.pipeline import build, build_group, load, plan
from coin_export.recipe import load_recipe
from coin_export.serve.supervisor import ID_PREFIX
from tests.e2e.conftest import COMMAND, UserProject, files, make_project


@contextlib.contextmanager
def serving(project: UserProject, *options: str) -> Iterator[tuple[subprocess.Popen[str], list[dict[str, Any]]]]:
    """Run `coin-export serve` and stop it by SIGTERM if it still runs; nothing of it may outlive it."""
    command = [*COMMAND, "serve", str(project.target), "--json", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=project.folder)
    try:
        assert process.stdout is not None
        servers = json.loads(process.stdout.readline())
        children = psutil.Process(process.pid).children(recursive=True)
        yield process, servers
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        _, alive = psutil.wait_procs(children, timeout=10)
        assert alive == []
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


@pytest.mark.e2e
def test_the_whole_way_with_the_users_own_models(tmp_path: Path) -> None:
    project = make_project(tmp_path, originals=3)
    project.rewrite(code={"parities": 2})
    planned = project.run("build", "recipe.yaml", "--dry-run").stdout
    assert "tasks_coded_1" in planned and "nothing was written" in planned
    assert not project.target.exists()

    report = json.loads(project.run("build", "recipe.yaml", "--json").stdout)
    assert [member["name"] for member in report["group"]["members"]][3:] == ["tasks_coded_0", "tasks_coded_1"]
    assert all(check["max_abs_error"] < 1e-4 for check in report["onnx"].values())

    findings = json.loads(project.run("verify", "repository", "--json").stdout)
    assert findings and all(finding["ok"] for finding in findings)

    [shown] = json.loads(project.run("inspect", "repository", "--json").stdout)
    assert shown["survives_any_erasures"] == 2
    patterns = {tuple(record["erased"]) for record in shown["quality"]}
    assert len(patterns) == 12 and all(record["degraded_accuracy"] is not None for record in shown["quality"])

    data = [f"--data={name}={name}_test.npz" for name in project.names]
    measured = json.loads(project.run("evaluate", "repository", *data, "--json").stdout)
    for now, then in zip(measured["quality"], shown["quality"], strict=True):
        assert now["degraded_accuracy"] == then["degraded_accuracy"]

    images = np.load(tmp_path / "task_0_test.npz")["image"][:5]
    np.save(tmp_path / "images.npy", images)
    with serving(project, "--per-model") as (process, servers):
        addresses = [server["grpc"] for server in servers]
        assert [server["models"] for server in servers] == [[m["name"]] for m in shown["members"]]
        [live] = json.loads(project.run("inspect", *addresses, "--json").stdout)
        assert live == shown
        ask = ["infer", *addresses, "--input", "image=images.npy", "--output", "out.npz", "--deadline", "5", "--json"]
        answers = json.loads(project.run(*ask).stdout)
        assert {answer["source"] for answer in answers} == {"direct"}
        direct = dict(np.load(tmp_path / "out.npz"))
        lost = next(child for child in psutil.Process(process.pid).children(recursive=True) if is_server_of(child, 0))
        lost.kill()
        answers = {answer["model"]: answer for answer in json.loads(project.run(*ask).stdout)}
        assert answers["task_0"]["source"] == "decoded" and answers["task_0"]["noise_gain"] > 0
        assert answers["task_1"]["source"] == answers["task_2"]["source"] == "direct"
        decoded = dict(np.load(tmp_path / "out.npz"))
        np.testing.assert_array_equal(decoded["task_1/scores"], direct["task_1/scores"])
        assert decoded["task_0/scores"].shape == direct["task_0/scores"].shape == (5, 3)
        error = np.linalg.norm(decoded["task_0/scores"] - direct["task_0/scores"])
        assert error < np.linalg.norm(direct["task_0/scores"])
        # The others go on serving.
        assert process.poll() is None


def is_server_of(process: psutil.Process, index: int) -> bool:
    """Tell whether a process is the tritonserver that loads the original of this index."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.name() == "tritonserver" and f"--load-model=task_{index}" in process.cmdline()
    return False


@pytest.mark.e2e
def test_one_server_for_all_models_stops_cleanly_on_sigterm(built: UserProject) -> None:
    with serving(built) as (process, servers):
        assert len(servers) == 1 and len(servers[0]["models"]) == 3
        shared = f"*{ID_PREFIX}{process.pid}-*"
        assert list(Path("/dev/shm").glob(shared))
        assert "task_0" in built.run("inspect", servers[0]["grpc"]).stdout
    assert not list(Path("/dev/shm").glob(shared))


def test_the_same_recipe_gives_the_same_bytes(built: UserProject) -> None:
    first = built.files()
    built.run("build", "recipe.yaml")
    assert built.files() == first


def test_python_builds_what_the_recipe_builds(built: UserProject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(built.folder))
    recipe = load_recipe(built.recipe)
    loaded = load(recipe)
    report = build_group(
        "tasks",
        loaded.models,
        dict(loaded.calibration.arrays),
        built.folder / "other",
        options=recipe,
        evaluation=loaded.evaluation,
    )
    assert files(built.folder / "other") == built.files()
    assert report.onnx_max_abs_error < 1e-4


def test_statistics_are_kept_for_the_next_build_until_something_changes(project: UserProject) -> None:
    def passes() -> int:
        report = json.loads(project.run("build", "recipe.yaml", "--json").stdout)
        return int(report["encoding"]["tasks_coded_0"]["backward_passes"])

    project.rewrite(cache="statistics")
    assert passes() > 0
    first = project.files()
    assert passes() == 0 and project.files() == first
    images = np.load(project.folder / "calibration.npz")["image"]
    np.savez(project.folder / "calibration.npz", image=images[::-1])
    assert passes() > 0


def test_a_build_says_what_the_encoder_chose_and_why(project: UserProject) -> None:
    project.rewrite(encoder={"name": "auto", "candidates": ["average", "regress"]})
    told = " ".join(project.run("build", "recipe.yaml").stdout.split())
    assert re.search(
        r"tasks_coded_0: chosen: (average|regress); "
        r"why: least divergence of the decoded outputs on \d+ held-out points; "
        r"held out errors: average [\d.e-]+, regress [\d.e-]+ ONNX",
        told,
    )


def test_a_code_that_decodes_badly_is_warned_of_before_it_is_built(
    project: UserProject, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.syspath_prepend(str(project.folder))
    project.rewrite(code={"coefficients": [[1, 499]]}, encoder={"name": "average"})
    recipe = load_recipe(project.recipe)
    warning = "with 'task_0' lost, decoding 'task_0' multiplies the coding error by 500"
    assert f"warning: {warning}" in plan(recipe).text()
    told: list[str] = []
    build(recipe, progress=lambda message: told.append(caplog.text if message.startswith("encoding") else ""))
    assert any(warning in text for text in told)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"calibration": {"source": "task_0_test.npz", "inputs": ["labels"]}},
            "cannot be run on the calibration inputs",
        ),
        ({"calibration": {"source": "my_networks:nothing"}}, "nothing"),
        ({"outputs": ["a", "b"]}, "forward returned 1 outputs"),
        ({"name": "task", "models": None}, "models: "),
        ({"evaluation": {"task_0": {"source": "calibration.npz"}}}, "no array named 'labels'"),
        ({"export": {"opset": 23}}, "export"),
    ],
)
def test_a_failed_build_leaves_the_old_repository_as_it_was(
    built: UserProject, changes: dict[str, Any], message: str
) -> None:
    before = built.files()
    built.rewrite(**changes)
    result = built.run("build", "recipe.yaml", expect=2)
    assert message in result.stderr and len(result.stderr.strip().splitlines()) <= 2
    assert built.files() == before
    assert not [path for path in built.folder.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("dry_run", [("--dry-run",), ()])
def test_a_target_that_cannot_be_written_is_found_before_anything_is_encoded(
    project: UserProject, dry_run: tuple[str, ...]
) -> None:
    project.target.touch()
    result = project.run("build", "recipe.yaml", *dry_run, expect=2)
    assert "repository: is a file" in result.stderr and "encoding" not in result.stderr


def test_a_broken_model_is_named_by_its_key(project: UserProject) -> None:
    (project.folder / "task_1.safetensors").write_bytes(b"broken")
    result = project.run("build", "recipe.yaml", expect=2)
    assert "models.1 (task_1): " in result.stderr and "task_1.safetensors" in result.stderr


def test_inspect_refuses_a_group_that_is_not_there(built: UserProject) -> None:
    result = built.run("inspect", "repository", "--group", "other", expect=2)
    assert "holds the groups ['tasks']; none is called 'other'" in result.stderr


def test_a_log_folder_that_cannot_be_made_is_one_message(built: UserProject) -> None:
    result = built.run("serve", "repository", "--log-dir", "recipe.yaml", expect=1)
    assert result.stderr.startswith("error: ") and "recipe.yaml" in result.stderr


def test_verify_finds_a_changed_weight_file(built: UserProject) -> None:
    path = built.target / "task_1" / "1" / "model.onnx"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    findings = json.loads(built.run("verify", "repository", "--json", expect=1).stdout)
    assert any(not finding["ok"] and finding["model"] == "task_1" for finding in findings)


def test_a_recipe_may_be_kept_anywhere(project: UserProject) -> None:
    content = yaml.safe_load(project.recipe.read_text())
    content["calibration"]["source"] = str(project.folder / "calibration.npz")
    (project.folder / "elsewhere").mkdir()
    moved = project.folder / "elsewhere" / "recipe.yaml"
    for model in content["models"]:
        model["checkpoint"] = f"../{model['checkpoint']}"
    for item in content["evaluation"].values():
        item["source"] = f"../{item['source']}"
    moved.write_text(yaml.safe_dump(content))
    project.run("build", str(moved))
    assert (moved.parent / "repository" / "task_0" / "config.pbtxt").is_file()
