"""Finding a tritonserver on this machine. Knows nothing of models or of running processes."""

from __future__ import annotations

import os
import platform
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from coin_export.errors import TritonNotFoundError

ENVIRONMENT_VARIABLE = "COIN_EXPORT_TRITONSERVER"
CONTAINER_BINARY = Path("/opt/tritonserver/bin/tritonserver")
WHEEL = "nvidia-pytriton"
_PYTHON_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
_STUB_NAME = "triton_python_backend_stub"
_INSTEAD = (
    "Install the server that comes as a wheel, `pip install 'coin-export[serve]'` (Linux x86_64 with glibc >= 2.35, "
    f"Python 3.10 to 3.12); or set {ENVIRONMENT_VARIABLE} to a tritonserver binary; or serve the repository with "
    "NVIDIA's container: docker run --rm -p 8000:8000 -p 8001:8001 -p 8002:8002 -v /path/to/model_repository:/models "
    "nvcr.io/nvidia/tritonserver:24.10-py3 tritonserver --model-repository=/models"
)


@dataclass(frozen=True)
class TritonInstallation:
    """A tritonserver and what has to be put around it.

    Attributes:
        binary: the executable.
        backends: the folder of the installation's own backends.
        library_path: a folder that the server process, and no other, needs on its ``LD_LIBRARY_PATH``.
        stub: the executable that runs Python models, built for this interpreter; None if it is not needed.
        python_library: the ``libpython`` that the stub loads; None if it is not needed.
        uses_stand_in: whether models with ``backend: "onnxruntime"`` are run by this package's Python stand-in
            because the installation lacks NVIDIA's C++ backend.
    """

    binary: Path
    backends: Path
    library_path: Path | None = None
    stub: Path | None = None
    python_library: Path | None = None
    uses_stand_in: bool = False


def find_tritonserver() -> TritonInstallation:
    """Find a tritonserver: the environment variable, NVIDIA's container, the installed wheel, in this order.

    Raises:
        TritonNotFoundError: if there is none, or what was found cannot be used; the message says what to do.
    """
    named = os.environ.get(ENVIRONMENT_VARIABLE)
    if named:
        binary = Path(named)
        if not (binary.is_file() and os.access(binary, os.X_OK)):
            raise TritonNotFoundError(f"{ENVIRONMENT_VARIABLE} names {named!r}, which is not an executable file")
        return _describe(binary.resolve())
    if os.access(CONTAINER_BINARY, os.X_OK):
        return _describe(CONTAINER_BINARY)
    return _describe(_wheel_binary())


def _wheel_binary() -> Path:
    """Locate the wheel's binary by its metadata; importing the wheel would load a second client stack."""
    try:
        wheel = metadata.distribution(WHEEL)
    except metadata.PackageNotFoundError:
        here = f"{platform.system()} {platform.machine()}, Python {_PYTHON_VERSION}"
        raise TritonNotFoundError(f"no tritonserver was found (this is {here}). {_INSTEAD}") from None
    binary = Path(str(wheel.locate_file("pytriton/tritonserver/bin/tritonserver"))).resolve()
    if not os.access(binary, os.X_OK):
        raise TritonNotFoundError(f"the installed {WHEEL} {wheel.version} has no executable {binary}. {_INSTEAD}")
    return binary


def _describe(binary: Path) -> TritonInstallation:
    root = binary.parent.parent
    backends = root / "backends"
    if (backends / "onnxruntime" / "libtriton_onnxruntime.so").exists():
        return TritonInstallation(binary, backends)
    if not (backends / "python" / "libtriton_python.so").exists():
        raise TritonNotFoundError(f"{binary} has neither an onnxruntime nor a python backend in {backends}. {_INSTEAD}")
    _check_stand_in_packages()
    libraries = root.parent.parent / "nvidia_pytriton.libs"
    return TritonInstallation(
        binary,
        backends,
        library_path=libraries if libraries.is_dir() else None,
        stub=_find_stub(root),
        python_library=_find_python_library(),
        uses_stand_in=True,
    )


def _check_stand_in_packages() -> None:
    try:
        numpy_version = metadata.version("numpy")
    except metadata.PackageNotFoundError:
        raise TritonNotFoundError(f"the embedded server needs numpy in this environment. {_INSTEAD}") from None
    if int(numpy_version.split(".", 1)[0]) >= 2:
        raise TritonNotFoundError(
            f"the embedded server needs numpy < 2, and this environment has numpy {numpy_version}: with numpy 2 its "
            "Python backend answers every request with empty outputs. Run `pip install 'numpy<2'`, or serve from "
            "another environment made with `pip install 'coin-export[serve]'`"
        )
    if not any(_is_installed(name) for name in ("onnxruntime-gpu", "onnxruntime")):
        raise TritonNotFoundError(
            "the embedded server runs ONNX models with the onnxruntime package, which is not installed here; "
            "run `pip install 'coin-export[serve]'`"
        )


def _is_installed(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


def _find_stub(root: Path) -> Path:
    candidates = (
        root / "python_backend_stubs" / _PYTHON_VERSION / _STUB_NAME,
        root / "backends" / "python" / _STUB_NAME,
    )
    for stub in candidates:
        if stub.exists():
            return stub
    raise TritonNotFoundError(
        f"the tritonserver in {root} has no Python backend stub for Python {_PYTHON_VERSION}; use Python 3.10 to 3.12"
    )


def _find_python_library() -> Path:
    """Find the shared libpython that the stub is linked to; a distribution's python3 may lack it."""
    name = f"libpython{_PYTHON_VERSION}.so.1.0"
    for folder in _library_folders():
        if (folder / name).exists():
            return folder / name
    raise TritonNotFoundError(
        f"the embedded server's Python backend needs {name}, which is not on this machine; install it "
        f"(Debian, Ubuntu: `apt-get install libpython{_PYTHON_VERSION}`), or use a Python built with --enable-shared"
    )


def _library_folders() -> Iterator[Path]:
    # The interpreter's own folders come first: another build's libpython may not fit its standard library.
    yield Path(sys.base_prefix) / "lib"
    for variable in ("LIBDIR", "LIBPL"):
        folder = sysconfig.get_config_var(variable)
        if folder:
            yield Path(folder)
    yield from map(Path, filter(None, os.environ.get("LD_LIBRARY_PATH", "").split(":")))
    multiarch = sysconfig.get_config_var("MULTIARCH") or "x86_64-linux-gnu"
    for prefix in ("/usr/local", "/usr", "/"):
        yield from (Path(prefix) / "lib" / multiarch, Path(prefix) / "lib64", Path(prefix) / "lib")
