"""The checks of ``coin-export verify``: everything that can be told of a repository without a server."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tritonclient.utils import triton_to_np_dtype

from coin_export.code.manifest import Group, Tensor
from coin_export.errors import CoinExportError, ManifestError, MissingDependencyError, RepositoryError
from coin_export.export.dtypes import BY_ONNX
from coin_export.export.onnx_file import (
    GraphTensor,
    check_versions,
    file_digest,
    load_model,
    load_session,
    read_interface,
)
from coin_export.repository.config import (
    BACKEND,
    CONFIG_FILE,
    THREADS_KEY,
    read_config,
    read_manifest,
    whole_shapes,
)
from coin_export.repository.layout import model_folders, onnx_path, versions

PLATFORMS = ("", "onnxruntime_onnx")
_TRIED_BATCHES = (1, 3)


@dataclass(frozen=True)
class Finding:
    """What one check found about one model.

    Attributes:
        model: the model's folder name.
        check: ``config``, ``manifest``, ``group``, ``digest``, ``versions``, ``interface`` or ``run``.
        ok: whether the check passed.
        message: what was found, or what is wrong and what to do.
    """

    model: str
    check: str
    ok: bool
    message: str


@dataclass(frozen=True, eq=False)
class _Member:
    """A model that says it belongs to a group."""

    folder: Path
    config: Any
    group: Group
    name: str  # as the group calls it

    @property
    def onnx_path(self) -> Path:
        return onnx_path(self.folder)

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        (described,) = (item for item in self.group.members if item.name == self.name)
        return self.group.outputs_of(described)


def verify_repository(path: Path) -> tuple[Finding, ...]:
    """Check every model of a repository; a check that fails does not stop the others.

    Raises:
        RepositoryError: if there is no such folder, or no model in it.
        MissingDependencyError: if onnx or ONNX Runtime is not installed.
    """
    findings: list[Finding] = []
    members: dict[str, _Member] = {}
    for folder in model_folders(path):
        found = _examine(folder)
        if isinstance(found, _Member):
            members[folder.name] = found
        else:
            findings.append(found)
    if not members and not findings:
        raise RepositoryError(f"{path}: holds no model; build one with `coin-export build`")
    if not members:
        findings.append(Finding("-", "group", False, f"{path} holds no member of a group; build one"))
    for member in members.values():
        findings += _verify_member(member, members)
    return tuple(sorted(findings, key=lambda finding: finding.model))


def _examine(folder: Path) -> _Member | Finding:
    """Read a model's configuration and the group that it carries, or say why not."""
    path = folder / CONFIG_FILE
    try:
        config = read_config(path)
        manifest = read_manifest(config, str(path))
    except CoinExportError as error:
        return Finding(folder.name, "manifest" if isinstance(error, ManifestError) else "config", False, str(error))
    if manifest is None:
        return Finding(folder.name, "config", True, "valid; it belongs to no group, so nothing else is checked")
    group, name = manifest
    return _Member(folder, config, group, name)


def _verify_member(member: _Member, members: Mapping[str, _Member]) -> list[Finding]:
    checks: dict[str, Callable[[], str]] = {
        "config": lambda: _check_config(member.config, member.folder.name),
        "manifest": lambda: _check_manifest(member),
        "group": lambda: _check_group(member, members),
        "digest": lambda: _check_digest(member),
        "versions": lambda: _check_versions(member),
        "interface": lambda: _check_interface(member),
        "run": lambda: _check_run(member),
    }
    return [_run(member.folder.name, name, check) for name, check in checks.items()]


def _run(model: str, check: str, function: Callable[[], str]) -> Finding:
    try:
        return Finding(model, check, True, function())
    except MissingDependencyError:
        raise
    except (CoinExportError, OSError) as error:
        return Finding(model, check, False, str(error))


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise RepositoryError(message)


def _check_config(config: Any, folder: str) -> str:
    _require(config.name == folder, f"the name is {config.name!r}, and the folder's is {folder!r}; they must agree")
    _require(config.backend == BACKEND, f"the backend is {config.backend!r}; it must be {BACKEND!r}")
    _require(config.platform in PLATFORMS, f"the platform is {config.platform!r}; leave it out")
    threads = config.parameters[THREADS_KEY].string_value if THREADS_KEY in config.parameters else "0"
    _require(threads.isdecimal(), f"parameter {THREADS_KEY!r} is {threads!r}; it must be an integer")
    return "valid, with no unknown field"


def _check_manifest(member: _Member) -> str:
    _require(member.name == member.folder.name, f"says that it is model {member.name!r}; rename the folder back")
    return f"{member.name!r} of group {member.group.name!r}"


def _check_group(member: _Member, members: Mapping[str, _Member]) -> str:
    names = [item.name for item in member.group.members]
    missing = [name for name in names if name not in members]
    _require(not missing, f"the group's models {missing} are missing or unreadable; build the group again")
    others = [name for name in names if members[name].group != member.group]
    _require(not others, f"{others} come from another build of the group; build it again")
    return f"all of {names} are here and of one build"


def _check_digest(member: _Member) -> str:
    found = versions(member.folder)
    _require(len(found) == 1, f"the version folders are {found}; there must be one of them, with the group's build")
    _require(member.onnx_path.is_file(), f"{member.onnx_path} is missing; build the group again")
    (expected,) = (item.digest for item in member.group.members if item.name == member.name)
    digest = file_digest(member.onnx_path)
    _require(digest == expected, f"the ONNX file has digest {digest}, the group says {expected}; build it again")
    return digest


def _check_versions(member: _Member) -> str:
    check_versions(member.onnx_path)
    return "Triton 24.10 and later can read it"


def _check_interface(member: _Member) -> str:
    """Compare the ONNX graph, the configuration and the group: names, dtypes, shapes, a free batch."""
    interface = read_interface(load_model(member.onnx_path))
    configured = whole_shapes(member.config)
    group = (member.group.inputs, member.outputs)
    for kind, graph, config, described in zip(
        ("inputs", "outputs"), (interface.inputs, interface.outputs), configured, group, strict=True
    ):
        in_graph = {_as_triton(tensor) for tensor in graph}
        in_group = {Tensor(tensor.name, tensor.dtype, (-1, *tensor.shape)) for tensor in described}
        _require(in_graph == set(config), f"{kind}: {_list(config)} configured, {_list(in_graph)} in the ONNX graph")
        _require(in_graph == in_group, f"{kind}: {_list(in_group)} by the group, {_list(in_graph)} in the ONNX graph")
    return f"{_list(configured[0])} -> {_list(configured[1])}"


def _as_triton(tensor: GraphTensor) -> Tensor:
    dtype = BY_ONNX[tensor.dtype].triton if tensor.dtype in BY_ONNX else tensor.dtype
    return Tensor(tensor.name, dtype, tuple(-1 if isinstance(dim, str) else dim for dim in tensor.dims))


def _list(tensors: Any) -> str:
    return ", ".join(sorted(f"{tensor.name} {tensor.dtype} {list(tensor.shape)}" for tensor in tensors))


def _check_run(member: _Member) -> str:
    _require(member.onnx_path.is_file(), f"{member.onnx_path} is missing; build the group again")
    session = load_session(member.onnx_path)
    outputs = member.outputs
    for points in _TRIED_BATCHES:
        inputs = {tensor.name: _example(tensor, points) for tensor in member.group.inputs}
        try:
            answers = session.run([tensor.name for tensor in outputs], inputs)
        except Exception as error:  # ONNX Runtime's exceptions have no common base but this
            raise RepositoryError(f"a batch of {points} fails in ONNX Runtime: {error}") from error
        for tensor, answer in zip(outputs, answers, strict=True):
            where = f"output {tensor.name!r} for a batch of {points}"
            shape = (points, *tensor.shape)
            _require(answer.shape == shape, f"{where} has shape {answer.shape}; the group says {shape}")
            _require(bool(np.isfinite(answer).all()), f"{where} contains NaN or infinity")
    return f"answers batches of {' and '.join(map(str, _TRIED_BATCHES))} with finite outputs"


def _example(tensor: Tensor, points: int) -> Any:
    """Make an input in [0, 1], which suits images, embeddings' indices, masks and logarithms alike."""
    values = np.random.default_rng(0).uniform(0.1, 1.0, size=(points, *tensor.shape))
    return values.astype(triton_to_np_dtype(tensor.dtype))
