"""The README's first promise: the demonstration answers every request and leaves nothing behind."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from coin_export.serve.supervisor import ID_PREFIX
from tests.e2e.conftest import COMMAND

DEMO = [*COMMAND, "demo"]
LITTLE_TRAINING = [
    sys.executable,
    "-c",
    "from coin_export.demo import group; group.EPOCHS = 1; from coin_export.cli import main; main()",
    "demo",
]


@contextlib.contextmanager
def running(command: list[str], folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Run the demonstration in a process group of its own; fail if it leaves anything behind."""
    temporary = folder / "temporary"
    temporary.mkdir()
    process = subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, "TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()
    assert leftovers(process.pid, temporary) == set()


def leftovers(pid: int, temporary: Path) -> set[str]:
    """What a run may leave behind: processes of servers and stubs, shared memory, temporary files."""
    mark = f"{ID_PREFIX}{pid}-"
    processes = {
        f"process {process.pid}"
        for process in psutil.process_iter(["cmdline"])
        if any(mark in word for word in process.info["cmdline"] or ())
    }
    shared = {str(path) for path in Path("/dev/shm").glob(f"*{mark}*")}
    return processes | shared | {str(path) for path in temporary.glob("coin[_-]export*")}


@pytest.mark.e2e
def test_the_demonstration_answers_every_request(tmp_path: Path) -> None:
    with running(DEMO, tmp_path) as process:
        printed, _ = process.communicate(timeout=900)
        assert process.returncode == 0, printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["artifacts", "model_repository", "temporary"]

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
@pytest.mark.parametrize(
    ("moment", "command"), [(training, DEMO), (serving, LITTLE_TRAINING)], ids=["training", "serving"]
)
def test_an_interrupted_demonstration_leaves_nothing_behind(
    tmp_path: Path, command: list[str], moment: Callable[[psutil.Process], bool]
) -> None:
    with running(command, tmp_path) as process:
        end = time.monotonic() + 600
        while not moment(psutil.Process(process.pid)):
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.2)
        os.killpg(process.pid, signal.SIGINT)  # what Ctrl-C in a terminal does: the whole foreground group
        process.communicate(timeout=60)
        assert process.returncode == 130
