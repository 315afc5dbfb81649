from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

from coin_export.errors import TritonNotFoundError
from coin_export.serve import tritonserver
from coin_export.serve.tritonserver import ENVIRONMENT_VARIABLE, find_tritonserver


@pytest.fixture(autouse=True)
def nothing_but_the_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)
    monkeypatch.setattr(tritonserver, "CONTAINER_BINARY", tmp_path / "opt" / "bin" / "tritonserver")


@pytest.fixture
def versions(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str | None]], None]:
    """Pretend that distributions have other versions, or, with None, are not installed."""

    def pretend(changes: dict[str, str | None]) -> None:
        real = metadata.version

        def version(name: str) -> str:
            found = changes.get(name, "") if name in changes else real(name)
            if found is None:
                raise metadata.PackageNotFoundError(name)
            return found

        monkeypatch.setattr(metadata, "version", version)

    return pretend


def make_binary(root: Path, *backend_files: str) -> Path:
    binary = root / "bin" / "tritonserver"
    for path in (binary, *(root / "backends" / file for file in backend_files)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o755)
    return binary


def test_the_wheel_is_found_without_importing_it() -> None:
    found = find_tritonserver()
    assert found.uses_stand_in
    assert found.stub is not None and found.library_path is not None and found.python_library is not None
    assert found.binary.is_file() and found.stub.is_file() and found.library_path.is_dir()
    script = "import sys; from coin_export.serve import embedded, tritonserver; tritonserver.find_tritonserver(); "
    script += "print([name for name in sys.modules if name in ('pytriton', 'numpy', 'onnxruntime', 'tritonclient')])"
    assert subprocess.check_output([sys.executable, "-c", script], text=True).strip() == "[]"


def test_the_container_comes_before_the_wheel_and_needs_no_stand_in() -> None:
    root = tritonserver.CONTAINER_BINARY.parent.parent
    make_binary(root, "onnxruntime/libtriton_onnxruntime.so")
    found = find_tritonserver()
    assert found.binary == tritonserver.CONTAINER_BINARY
    assert found.backends == root / "backends"
    assert not found.uses_stand_in and found.stub is None


def test_the_environment_variable_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_binary(tritonserver.CONTAINER_BINARY.parent.parent, "onnxruntime/libtriton_onnxruntime.so")
    mine = make_binary(tmp_path / "mine", "python/libtriton_python.so", "python/triton_python_backend_stub")
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(mine))
    found = find_tritonserver()
    assert found.binary == mine.resolve()
    assert found.uses_stand_in and found.library_path is None


def test_an_environment_variable_that_names_nothing_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "/no/such/tritonserver")
    with pytest.raises(TritonNotFoundError, match=f"{ENVIRONMENT_VARIABLE} names '/no/such/tritonserver'"):
        find_tritonserver()


def test_a_server_without_backends_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(make_binary(tmp_path / "bare")))
    with pytest.raises(TritonNotFoundError, match="neither an onnxruntime nor a python backend"):
        find_tritonserver()


def test_a_server_without_a_stub_for_this_python_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(make_binary(tmp_path / "mine", "python/libtriton_python.so")))
    with pytest.raises(TritonNotFoundError, match="no Python backend stub for Python"):
        find_tritonserver()


def test_nothing_found_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def distribution(name: str) -> metadata.Distribution:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", distribution)
    with pytest.raises(TritonNotFoundError) as caught:
        find_tritonserver()
    for advice in ("pip install 'coin-export[serve]'", "Linux x86_64", "docker run", ENVIRONMENT_VARIABLE):
        assert advice in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"numpy": "2.1.0"}, "needs numpy < 2, and this environment has numpy 2.1.0"),
        ({"numpy": None}, "needs numpy in this environment"),
        ({"onnxruntime": None, "onnxruntime-gpu": None}, "onnxruntime package, which is not installed"),
    ],
)
def test_the_stand_in_needs_its_packages(
    versions: Callable[[dict[str, str | None]], None], changes: dict[str, str | None], message: str
) -> None:
    versions(changes)
    with pytest.raises(TritonNotFoundError, match=message):
        find_tritonserver()


def test_a_python_without_its_shared_library_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tritonserver, "_library_folders", lambda: iter([Path("/no/such/folder")]))
    with pytest.raises(TritonNotFoundError, match="apt-get install libpython"):
        find_tritonserver()
