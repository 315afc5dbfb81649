"""What one server process needs around it: a folder of backends, an environment, a command line."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from coin_export.serve.ports import Address
from coin_export.serve.tritonserver import TritonInstallation

STAND_IN_BACKENDS = Path(__file__).parent / "backends"


def assemble(folder: Path, installation: TritonInstallation) -> Path:
    """Lay out the backends in ``folder`` and return the folder that tritonserver takes as its backend directory.

    The backend's library is copied because tritonserver refuses a link that leaves the backend's folder.
    """
    if installation.stub is None:
        return installation.backends
    backends = folder / "backends"
    python, stand_in = backends / "python", backends / "onnxruntime"
    _copy_files(installation.backends / "python", python)
    shutil.copyfile(installation.stub, python / installation.stub.name)
    (python / installation.stub.name).chmod(0o755)
    _copy_files(STAND_IN_BACKENDS / "onnxruntime", stand_in)
    if installation.python_library is not None:
        (folder / "lib").mkdir()
        (folder / "lib" / installation.python_library.name).symlink_to(installation.python_library)
    return backends


def _copy_files(source: Path, target: Path) -> None:
    target.mkdir(parents=True)
    for file in source.iterdir():
        if file.is_file():
            shutil.copyfile(file, target / file.name)


def environment(folder: Path, installation: TritonInstallation) -> dict[str, str]:
    """Make the server's environment from this process's own.

    The stub runs the ``python3`` that it finds on PATH, so this interpreter's folder comes first. Thread pools of
    numerical libraries are kept to one thread each unless the variables are set already: there is one Python
    process per model instance, and what runs the model has its own setting in the model's configuration.
    """
    result = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
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
    *,
    backends: Path,
    repository: Path,
    models: Sequence[str] | None,
    address: Address,
    server_id: str,
    exit_timeout_s: int,
) -> list[str]:
    """Write tritonserver's command line. The server's id is also the prefix of its shared-memory files."""
    arguments = [
        str(installation.binary),
        f"--id={server_id}",
        f"--model-repository={repository}",
        f"--backend-directory={backends}",
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
