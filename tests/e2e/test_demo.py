"""The README's first promise: the demonstration answers every request and leaves nothing behind."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from coin_export.serve.supervisor import ID_PREFIX

COMMAND = [sys.executable, "-c", "from coin_export.cli import main; main()", "demo"]


def leftovers() -> set[str]:
    """What a run may leave behind: processes of servers and stubs, shared memory, temporary files."""
    names = {"tritonserver", "triton_python_backend_stub"}
    processes = {f"process {process.pid}" for process in psutil.process_iter(["name"]) if process.info["name"] in names}
    shared = {str(path) for path in Path("/dev/shm").glob(f"*{ID_PREFIX}*")}
    temporary = {str(path) for path in Path(tempfile.gettempdir()).glob("coin_export*")}
    return processes | shared | temporary


@pytest.mark.e2e
def test_the_demonstration_answers_every_request(tmp_path: Path) -> None:
    before = leftovers()
    result = subprocess.run(COMMAND, cwd=tmp_path, capture_output=True, text=True, timeout=900, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert leftovers() <= before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["artifacts", "model_repository"]

    numbers = json.loads((tmp_path / "artifacts" / "demo.json").read_text())
    assert numbers["models"]["mnist"]["original_accuracy"] >= 95
    assert numbers["models"]["fashion_mnist"]["original_accuracy"] >= 80
    for model in numbers["models"].values():
        ratio = 100 * model["decoded_accuracy"] / model["original_accuracy"]
        assert model["normalized_decoding_accuracy"] == pytest.approx(ratio)
        assert ratio > 50  # far above chance; how good it is, the table says
    assert numbers["onnx_max_abs_error"] < 1e-3
    healthy, straggler, killed = numbers["phases"]
    assert [phase["name"] for phase in numbers["phases"]] == ["healthy", "straggler", "killed"]
    for phase in numbers["phases"]:
        assert phase["failed"] == 0 and phase["requests"] == 2000
        assert phase["direct"] + phase["decoded"] == 2 * phase["requests"]
        assert 0 < phase["p50_ms"] <= phase["p99_ms"]
    assert healthy["direct"] > healthy["decoded"]
    assert straggler["models"]["mnist"]["decoded"] == killed["models"]["fashion_mnist"]["decoded"] == 2000
    assert {"data", "train", "build", "serve", "healthy", "straggler", "killed", "total"} <= set(numbers["seconds"])
    assert numbers["versions"]["tritonserver"] and numbers["versions"]["torch"]


def training(process: psutil.Process) -> bool:
    """Tell whether the demonstration has begun to train: its threads are at work."""
    return process.num_threads() > 3 and process.cpu_times().user > 4


def serving(process: psutil.Process) -> bool:
    """Tell whether the demonstration has started a server."""
    return any(child.name() == "tritonserver" for child in process.children(recursive=True))


@pytest.mark.e2e
@pytest.mark.parametrize("moment", [training, serving])
def test_an_interrupted_demonstration_leaves_nothing_behind(
    tmp_path: Path, moment: Callable[[psutil.Process], bool]
) -> None:
    before = leftovers()
    process = subprocess.Popen(
        COMMAND, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        end = time.monotonic() + 600
        while not moment(psutil.Process(process.pid)):
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.2)
        os.killpg(process.pid, signal.SIGINT)  # what Ctrl-C in a terminal does: the whole foreground group
        assert process.wait(60) == 130
    finally:
        process.kill()
        process.wait()
    assert leftovers() <= before
