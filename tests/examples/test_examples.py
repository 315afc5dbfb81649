"""Every example runs as its header says, against real servers of a small group."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from torch import nn

from coin_export import build_group
from coin_export.datasets.calibration import CalibrationInputs
from coin_export.pipeline import Labelled
from coin_export.recipe import BuildOptions
from coin_export.serve.embedded import EmbeddedServer, start_all, stop_all
from examples.fastapi_service import create_app

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
NAMES = ("first", "second")
POINTS = 60


@dataclass(frozen=True)
class Served:
    """A group, its repository and one running server for each member."""

    repository: Path
    networks: dict[str, nn.Module]
    inputs: np.ndarray[Any, np.dtype[np.float32]]
    servers: Sequence[EmbeddedServer]

    @property
    def addresses(self) -> list[str]:
        return [server.grpc_address for server in self.servers]

    def truth(self, name: str) -> np.ndarray[Any, Any]:
        """What an original answers."""
        with torch.no_grad():
            outputs: np.ndarray[Any, Any] = self.networks[name](torch.from_numpy(self.inputs)).numpy()
        return outputs


def networks() -> dict[str, nn.Module]:
    """Networks of one start whose heads differ slightly."""
    found: dict[str, nn.Module] = {}
    for index, name in enumerate(NAMES):
        torch.manual_seed(0)
        head = nn.Linear(16, 3)
        network = nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.ReLU(), head)
        torch.manual_seed(index)
        with torch.no_grad():
            head.weight.add_(0.3 * torch.randn(3, 16))
        found[name] = network.eval()
    return found


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    repository = tmp_path_factory.mktemp("examples") / "repository"
    random = np.random.default_rng(0)
    inputs = random.normal(size=(POINTS, 3, 4)).astype(np.float32)
    models = networks()
    with torch.no_grad():
        labels = {name: model(torch.from_numpy(inputs)).argmax(1).numpy() for name, model in models.items()}
    build_group(
        "tasks",
        models,
        {"image": random.normal(size=(80, 3, 4)).astype(np.float32)},
        repository,
        options=BuildOptions.model_validate({"encoder": {"name": "average"}, "outputs": ("scores",)}),
        evaluation={name: Labelled(CalibrationInputs({"image": inputs}), labels[name]) for name in models},
    )
    servers = [EmbeddedServer(repository, models=[name]) for name in (*NAMES, "tasks_coded_0")]
    start_all(servers)
    try:
        yield Served(repository, models, inputs, servers)
    finally:
        stop_all(servers)


def run_example(name: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )


def test_the_service_answers_and_counts(served: Served) -> None:
    with TestClient(create_app(served.addresses)) as http:
        described = http.get("/models").json()
        assert described["models"] == list(NAMES) and described["inputs"]["image"]["shape"] == [3, 4]
        request = {"inputs": {"image": served.inputs[:2].tolist()}, "deadline_ms": 60_000}
        answers = http.post("/predict", json=request).json()
        assert set(answers) == set(NAMES)
        direct = [name for name, answer in answers.items() if answer["source"] == "direct"]
        for name in direct:  # on a loaded machine some of them may be decoded
            np.testing.assert_allclose(answers[name]["outputs"]["scores"], served.truth(name)[:2], rtol=1e-4, atol=1e-5)
        only = http.post("/predict", json={**request, "wanted": ["second"]})
        assert set(only.json()) == {"second"}
        assert 'coin_client_requests_total{group="tasks",outcome="' in http.get("/metrics").text


def test_the_service_says_why_it_cannot_answer(served: Served) -> None:
    with TestClient(create_app(served.addresses)) as http:
        image = served.inputs[:1].tolist()
        late = http.post("/predict", json={"inputs": {"image": image}, "deadline_ms": 1e-3})
        assert late.status_code == 503 and late.headers["retry-after"] == "1"
        assert "the deadline passed" in late.json()["detail"] and set(NAMES) <= set(late.json()["failures"])
        for inputs, reason in (
            ({"picture": image}, "has inputs"),
            ({"image": [[1.0]]}, "give float32 of shape"),
            ({"image": [[1.0], [2.0, 3.0]]}, "not lists of numbers"),
            ({"image": "a cat"}, "not lists of numbers"),
        ):
            refused = http.post("/predict", json={"inputs": inputs, "deadline_ms": 60_000})
            assert refused.status_code == 422 and reason in refused.json()["detail"]
        assert http.post("/predict", json={"inputs": {"image": image}, "deadline_ms": -1}).status_code == 422
        assert 'outcome="failed"} 1.0' in http.get("/metrics").text


def test_the_service_runs_as_its_header_says_and_ends_when_told(served: Served) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(ROOT / "examples" / "fastapi_service.py"), *served.addresses, "--port", str(port)]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True)
    try:
        ends = time.monotonic() + 120
        while True:
            try:
                described = httpx2.get(f"http://127.0.0.1:{port}/models", trust_env=False, timeout=60).json()
                break
            except httpx2.TransportError:
                assert process.poll() is None and time.monotonic() < ends
                time.sleep(0.1)
        assert described["group"] == "tasks"
        process.terminate()
        _, log = process.communicate(timeout=60)
        assert "Application shutdown complete" in log
    finally:
        process.kill()
        process.communicate()


def test_the_batch_job_answers_every_point_although_a_server_is_stopped(served: Served, tmp_path: Path) -> None:
    np.savez(tmp_path / "inputs.npz", image=served.inputs)
    served.servers[1].suspend()  # it accepts connections and answers nothing, so discovery takes it for down
    try:
        done = run_example(
            "batch_job.py", tmp_path / "inputs.npz", tmp_path / "answers.npz", *served.addresses,
            "--batch", 7, "--concurrency", 3, "--deadline", 60,
        )  # fmt: skip
    finally:
        served.servers[1].resume()
    assert done.returncode == 0, done.stderr
    assert f"group tasks: {POINTS} points" in done.stdout
    assert re.search(rf"first: {POINTS} direct, 0 decoded, 0 missing; expected accuracy 100.0 %", done.stdout)
    assert re.search(rf"second: 0 direct, {POINTS} decoded, 0 missing; expected accuracy [\d.]+ %", done.stdout)
    with np.load(tmp_path / "answers.npz") as answers:
        assert set(answers) == {f"{name}/{array}" for name in NAMES for array in ("scores", "source")}
        np.testing.assert_allclose(answers["first/scores"], served.truth("first"), rtol=1e-4, atol=1e-5)
        assert np.isfinite(answers["second/scores"]).all() and (answers["second/source"] == 1).all()


def test_the_batch_job_goes_on_without_the_answers_that_it_cannot_get(served: Served, tmp_path: Path) -> None:
    np.savez(tmp_path / "inputs.npz", image=served.inputs)
    done = run_example(
        "batch_job.py", tmp_path / "inputs.npz", tmp_path / "answers.npz", *served.addresses, "--deadline", 1e-6
    )
    assert done.returncode == 1 and "the deadline passed" in done.stderr
    assert f"first: 0 direct, 0 decoded, {POINTS} missing" in done.stdout
    with np.load(tmp_path / "answers.npz") as answers:
        assert (answers["first/source"] == 2).all()


def test_the_batch_job_says_in_a_line_that_no_server_answers(tmp_path: Path) -> None:
    np.savez(tmp_path / "inputs.npz", image=np.zeros((1, 4), np.float32))
    done = run_example("batch_job.py", tmp_path / "inputs.npz", tmp_path / "answers.npz", "127.0.0.1:9")
    assert done.returncode == 1 and done.stderr.startswith("error: ") and "127.0.0.1:9" in done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "answers.npz").exists()


def test_the_cells_measure_and_plot(served: Served, tmp_path: Path) -> None:
    environment = {"COIN_REPOSITORY": str(served.repository), "COIN_OUTPUT": str(tmp_path), "COIN_REQUESTS": "150"}
    done = run_example("explore_tail.py", MPLBACKEND="agg", **environment)
    assert done.returncode == 0, done.stderr
    assert "without coding: p50" in done.stdout and "with coding: p50" in done.stdout
    assert {path.name for path in tmp_path.glob("*.png")} == {"explore_tail_times.png", "explore_tail_shares.png"}
