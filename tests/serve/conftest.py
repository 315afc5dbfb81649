"""Tiny ONNX models by hand, model repositories of them, and a look at what servers leave behind."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest
from onnx import TensorProto, helper, numpy_helper

from coin_export.serve.embedded import EmbeddedServer

WEIGHTS = np.arange(12, dtype=np.float32).reshape(4, 3) / 10
CONFIG = """\
name: "{name}"
backend: "onnxruntime"
max_batch_size: 8
input {{ name: "x" data_type: TYPE_FP32 dims: 4 }}
output {{ name: "y" data_type: TYPE_FP32 dims: 3 }}
instance_group {{ count: 1 kind: KIND_CPU }}
parameters {{ key: "intra_op_thread_count" value {{ string_value: "1" }} }}
"""


def linear(
    batch: str | int = "N", ir_version: int = 10, opset: int = 20, element: int = TensorProto.FLOAT
) -> onnx.ModelProto:
    """y = x W, with x of shape (batch, 4)."""
    dtype = helper.tensor_dtype_to_np_dtype(element)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "linear",
        [helper.make_tensor_value_info("x", element, [batch, 4])],
        [helper.make_tensor_value_info("y", element, [batch, 3])],
        [numpy_helper.from_array(WEIGHTS.astype(dtype), "w")],
    )
    return helper.make_model(graph, ir_version=ir_version, opset_imports=[helper.make_opsetid("", opset)])


@dataclass(frozen=True)
class Repository:
    """A model repository under construction."""

    path: Path

    def add(
        self,
        name: str,
        *,
        replace: tuple[str, str] = ("", ""),
        append: str = "",
        model: onnx.ModelProto | bytes | None = None,
        file: str = "model.onnx",
    ) -> None:
        """Add the linear model, or another, with its configuration changed by one replacement or addition."""
        version = self.path / name / "1"
        version.mkdir(parents=True)
        content = model if isinstance(model, bytes) else (model or linear()).SerializeToString()
        (version / file).write_bytes(content)
        config = CONFIG.format(name=name)
        assert replace[0] in config
        config = config.replace(*replace) if replace[0] else config
        (self.path / name / "config.pbtxt").write_text(config + append)


@pytest.fixture(scope="session")
def make_linear() -> Callable[..., onnx.ModelProto]:
    return linear


@pytest.fixture(scope="session")
def weights() -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return WEIGHTS


@pytest.fixture(scope="session")
def make_repository() -> Callable[[Path], Repository]:
    return Repository


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with one good model, ``good``, in a folder with a space in its name."""
    repository = Repository(tmp_path / "my models")
    repository.add("good")
    return repository.path


@dataclass(frozen=True)
class Remains:
    """What a server consists of, noted while it runs, to be looked for when it should be gone."""

    processes: tuple[psutil.Process, ...]
    server_id: str

    @classmethod
    def of(cls, pid: int) -> Remains:
        server = psutil.Process(pid)
        supervisor = server.parent()
        assert supervisor is not None
        (server_id,) = [word.removeprefix("--id=") for word in server.cmdline() if word.startswith("--id=")]
        return cls((supervisor, server, *server.children(recursive=True)), server_id)

    @property
    def stubs(self) -> tuple[psutil.Process, ...]:
        return self.processes[2:]

    def shared_memory(self) -> list[Path]:
        return list(Path("/dev/shm").glob(f"{self.server_id}*"))

    def wait_gone(self, timeout_s: float = 30.0) -> None:
        """Fail if a process or a shared-memory file is still there after a bounded wait."""
        deadline = time.monotonic() + timeout_s
        while (left := self.left()) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not left

    def left(self) -> list[object]:
        return [process for process in self.processes if is_there(process)] + list(self.shared_memory())


def is_there(process: psutil.Process) -> bool:
    """Tell whether a process runs; one that has ended but was not yet asked for its status does not."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


@pytest.fixture(scope="session")
def remains_of() -> Callable[[int], Remains]:
    return Remains.of


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of this test's own for temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", None)
    return folder


@pytest.fixture
def environments_left() -> Iterator[Callable[[], list[Path]]]:
    """The folders that Triton's Python backend makes in /tmp, those of before the test left out."""
    before = set(Path("/tmp").glob("python_env_*"))
    yield lambda: sorted(set(Path("/tmp").glob("python_env_*")) - before)


@pytest.fixture
def server(repository: Path, temporary: Path) -> Iterator[EmbeddedServer]:
    """A running server of the good model."""
    with EmbeddedServer(repository) as running:
        yield running
        if running.is_alive():
            running.kill()  # a graceful stop takes three seconds and is tested elsewhere


def eventually(condition: Callable[[], bool]) -> bool:
    """Tell whether a condition comes true within a generous time."""
    deadline = time.monotonic() + 30
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.001)
    return True


def wait_for_a_folder(place: Path) -> None:
    """Wait until a folder is made; files come and go while Python looks for a place for temporary ones."""
    assert eventually(lambda: any(path.is_dir() for path in place.iterdir()))
