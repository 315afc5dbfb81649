"""What one server process needs around it: a folder of backends, an environment, a command line."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from coin_export.serve.ports import Address
from coin_export.serve.tritonserver import TritonInstallation

STAND_IN = Path(__file__).parent / "backends" / "onnxruntime"

# The Python backend starts its stub through a shell and does not quote the paths.
_SAFE_PATH = re.compile(r"[\w./+@%:,=-]+", re.ASCII)
_PLAIN_TEMPORARY_FOLDER = Path("/tmp")


@dataclass(frozen=True)
class Layout:
    """What goes into a server's own folder, and what the server is then told.

    Attributes:
        folder: the folder, which does not exist yet.
        copies: executable files to copy there, by their place in it.
        links: symbolic links to make there, by their place in it.
        backends: the server's backend directory.
        repository: the path by which the server sees the model repository.
    """

    folder: Path
    copies: dict[str, str]
    links: dict[str, str]
    backends: Path
    repository: Path


def plan_layout(name: str, installation: TritonInstallation, repository: Path) -> Layout:
    """Plan a temporary folder called ``name``.

    The backend's library is copied because tritonserver refuses a link that leaves the backend's folder.
    """
    temporary = Path(tempfile.gettempdir())
    folder = (temporary if _is_safe(temporary) else _PLAIN_TEMPORARY_FOLDER) / name
    copies, links = {}, {}
    if not _is_safe(repository):
        links["models"] = str(repository)
    if installation.stub is not None:
        backend = [file for file in (installation.backends / "python").iterdir() if file.is_file()]
        copies = {f"backends/python/{file.name}": str(file) for file in (*backend, installation.stub)}
        copies |= {f"backends/onnxruntime/{file.name}": str(file) for file in STAND_IN.glob("*.py")}
    if installation.python_library is not None:
        links[f"lib/{installation.python_library.name}"] = str(installation.python_library)
    return Layout(
        folder,
        copies,
        links,
        backends=folder / "backends" if copies else installation.backends,
        repository=folder / "models" if "models" in links else repository,
    )


def _is_safe(path: Path) -> bool:
    return _SAFE_PATH.fullmatch(str(path)) is not None


def environment(folder: Path, installation: TritonInstallation) -> dict[str, str]:
    """Make the server's environment from this process's own.

    The stub runs the ``python3`` that it finds on PATH, so this interpreter's folder comes first. Thread pools of
    numerical libraries are kept to one thread each unless the variables are set already: there is one Python
    process per model instance, and what runs the model has its own setting in the model's configuration. ONNX Runtime
    reports to its makers from release 1.29 on, unless told not to.
    """
    defaults = {"OMP_NUM_THREADS": "1", "ORT_DISABLE_TELEMETRY": "1"}
    result = {**defaults, **os.environ, "PYTHONDONTWRITEBYTECODE": "1", "TMPDIR": str(folder)}
    result["PATH"] = _search_path(Path(sys.executable).parent, result.get("PATH"))
    if installation.uses_stand_in:
        result["LD_LIBRARY_PATH"] = _search_path(
            folder / "lib", installation.library_path, result.get("LD_LIBRARY_PATH")
        )
    if sys.prefix != sys.base_prefix:
        result["PYTHONNOUSERSITE"] = "1"
    return result


def _search_path(*entries: Path | str | None) -> str:
    return os.pathsep.join(str(entry) for entry in entries if entry)


def command(
    installation: TritonInstallation,
    layout: Layout,
    *,
    models: Sequence[str] | None,
    address: Address,
    server_id: str,
    exit_timeout_s: int,
) -> list[str]:
    """Write tritonserver's command line. The server's id is also the prefix of its shared-memory files."""
    arguments = [
        str(installation.binary),
        f"--id={server_id}",
        f"--model-repository={layout.repository}",
        f"--backend-directory={layout.backends}",
        f"--backend-config=python,shm-region-prefix-name={server_id}",
        # The repository is served as it is written, as it must be everywhere else.
        "--disable-auto-complete-config",
        "--strict-readiness=true",
        f"--exit-timeout-secs={exit_timeout_s}",
        f"--http-address={address.host}",
        f"--http-port={address.http}",
        f"--grpc-address={address.host}",
        f"--grpc-port={address.grpc}",
        f"--metrics-address={address.host}",
        f"--metrics-port={address.metrics}",
        "--allow-metrics=true",
    ]
    if models is not None:
        arguments += ["--model-control-mode=explicit", *(f"--load-model={model}" for model in models)]
    return arguments
