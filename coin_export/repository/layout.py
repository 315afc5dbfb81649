"""Model repositories on disk: ``<repository>/<model>/config.pbtxt`` and ``<repository>/<model>/VERSION/model.onnx``.

A build that takes the place of another one gets the next version number, as a client of a server that reloads its
models tells builds apart by it.

Reading needs the base installation only. Writing replaces the repository as a whole, or leaves it as it was.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coin_export.code.manifest import PARAMETER_KEY, Group
from coin_export.errors import CoinExportError, RepositoryError
from coin_export.repository.atomic import replacing
from coin_export.repository.config import (
    CONFIG_FILE,
    config_text,
    parse_config,
    read_config,
    read_manifest,
    read_text,
)

if TYPE_CHECKING:
    from coin_export.repository.options import RepositoryOptions

FIRST_VERSION = "1"
ONNX_FILE = "model.onnx"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")


@dataclass(frozen=True, eq=False)
class MemberFiles:
    """One member of a group on disk.

    Attributes:
        name: the model's name, that of its folder.
        config: its ``tritonclient.grpc.model_config_pb2.ModelConfig``.
        onnx_path: its ONNX file.
    """

    name: str
    config: Any
    onnx_path: Path


@dataclass(frozen=True, eq=False)
class Repository:
    """A model repository that holds at least one whole group.

    Attributes:
        path: its folder.
        groups: the groups, by name.
        members: the members of all groups, by model name.
        foreign: names of the models that belong to no group.
    """

    path: Path
    groups: tuple[Group, ...]
    members: Mapping[str, MemberFiles]
    foreign: tuple[str, ...]

    def group(self, name: str | None) -> Group:
        """Return the group called ``name``, or the only one.

        Raises:
            RepositoryError: if there is no such group, or several and none was named.
        """
        chosen = [group for group in self.groups if name in (None, group.name)]
        if len(chosen) != 1:
            raise RepositoryError(
                f"{self.path}: holds the groups {[group.name for group in self.groups]}; "
                + (f"none is called {name!r}" if name else "name one of them")
            )
        return chosen[0]

    def onnx_path(self, model: str) -> Path:
        """Return the ONNX file of a member.

        Raises:
            RepositoryError: if no group has such a member.
        """
        if model not in self.members:
            raise RepositoryError(f"{self.path}: no group here has a model {model!r}; there are {list(self.members)}")
        return self.members[model].onnx_path


def write_repository(target: Path, group: Group, onnx_files: Mapping[str, Path], options: RepositoryOptions) -> None:
    """Write a group into a model repository, in place of an earlier build of the same group.

    Its version is 1, or the next number where it replaces a build that differs. Everything else that the folder holds
    is carried over unchanged. A reader sees the repository as it was or as it will be, nothing between; on any failure
    it stays as it was.

    Args:
        target: the repository's folder; made if it does not exist.
        group: what every member's configuration says.
        onnx_files: one ONNX file per member, by name; they are copied.
        options: how the models are to be served.

    Raises:
        RepositoryError: if a name is unusable or taken by another model, the folder cannot be written, or another
            build is writing it.
    """
    target = target.resolve()
    _check_request(target, group, onnx_files)
    configs = {name: config_text(group, name, options) for name in onnx_files}
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as stage:
            earlier = _earlier(target, group.name)
            version = _version(earlier, group)
            for path in _others(target, earlier, group.name, list(onnx_files)):
                _carry_over(path, stage / path.name)
            for name, text in configs.items():
                (stage / name / version).mkdir(parents=True)
                (stage / name / CONFIG_FILE).write_text(text, encoding="utf-8")
                shutil.copyfile(onnx_files[name], stage / name / version / ONNX_FILE)
    except OSError as error:
        raise RepositoryError(
            f"{target}: the model repository cannot be written: {error}; it is as it was before. Check the free "
            "space and the permissions of its parent folder, or choose another folder"
        ) from error


def read_repository(path: Path) -> Repository:
    """Read the groups of a model repository.

    Raises:
        RepositoryError: if there is no such folder, it holds no group, or a group is not whole: a member is
            missing, lacks its ONNX file, or comes from another build.
        ManifestError: if a member's description of its group is malformed.
    """
    groups: dict[str, Group] = {}
    members: dict[str, MemberFiles] = {}
    foreign = []
    for folder in model_folders(path):
        found = _read_member(folder)
        if found is None:
            foreign.append(folder.name)
            continue
        group, members[folder.name] = found
        if groups.setdefault(group.name, group) != group:
            raise RepositoryError(
                f"{folder}: comes from another build of group {group.name!r} than the group's other models; "
                "build the group again"
            )
    if not groups:
        raise RepositoryError(f"{path}: holds no group, only the models {foreign}; build one with `coin-export build`")
    for group in groups.values():
        _check_whole(path, group, members)
    return Repository(path, tuple(groups.values()), members, tuple(foreign))


def model_folders(path: Path) -> list[Path]:
    """Return the folders that Triton would take for models, by name.

    Raises:
        RepositoryError: if there is no such folder.
    """
    try:
        return sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise RepositoryError(f"{path}: not a folder that can be read: {error.strerror}; name a repository") from error


def versions(folder: Path) -> list[str]:
    """Return the versions of the model in ``folder``, the newest last."""
    return sorted((entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name.isdecimal()), key=int)


def onnx_path(folder: Path) -> Path:
    """Return where the ONNX file of the model in ``folder`` is, of the newest version, which Triton serves."""
    return folder / [FIRST_VERSION, *versions(folder)][-1] / ONNX_FILE


def _read_member(folder: Path) -> tuple[Group, MemberFiles] | None:
    path = folder / CONFIG_FILE
    if not path.is_file():
        return None
    text = read_text(path)
    if f'"{PARAMETER_KEY}"' not in text:
        return None  # somebody else's model, which may use fields that are newer than our protobuf
    config = parse_config(text, str(path))
    manifest = read_manifest(config, str(path))
    if manifest is None:
        return None
    group, member = manifest
    if member != folder.name:
        raise RepositoryError(f"{folder}: says that it is model {member!r}; rename the folder back, or build it again")
    return group, MemberFiles(member, config, onnx_path(folder))


def _check_whole(path: Path, group: Group, members: Mapping[str, MemberFiles]) -> None:
    missing = [member.name for member in group.members if member.name not in members]
    if missing:
        raise RepositoryError(f"{path}: group {group.name!r} lacks its models {missing}; build the group again")
    for member in group.members:
        file = members[member.name].onnx_path
        if not file.is_file():
            raise RepositoryError(f"{file}: the model's ONNX file is missing; build group {group.name!r} again")


def _check_request(target: Path, group: Group, onnx_files: Mapping[str, Path]) -> None:
    names = [member.name for member in group.members]
    if set(names) != set(onnx_files):
        raise RepositoryError(f"group {group.name!r} has the models {names}, and ONNX files of {list(onnx_files)}")
    check_target(target, group.name, names)


def check_target(target: Path, group: str, names: Collection[str]) -> None:
    """Check, before anything is made, that a group's models could be written into ``target``.

    Args:
        target: the repository's folder; it may exist or not.
        group: the group's name.
        names: the names of its models.

    Raises:
        RepositoryError: if a name is unusable or taken by another model, or the folder cannot be written.
    """
    target = target.resolve()
    for name in names:
        if not _NAME.fullmatch(name):
            raise RepositoryError(
                f"{name!r} cannot name a Triton model: use up to 200 letters, digits, '_', '-' and '.', and do not "
                "begin with '-' or '.'"
            )
    if target.exists() and not target.is_dir():
        raise RepositoryError(f"{target}: is a file; a model repository is a folder: choose another place")
    if target.is_dir() and not os.access(target, os.W_OK):
        raise RepositoryError(f"{target}: is read-only; change its permissions or choose another folder")
    if target.is_mount():
        raise RepositoryError(f"{target}: is a mount point, which cannot be replaced; choose a folder inside it")
    place = next(parent for parent in target.parents if parent.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise RepositoryError(
            f"{target}: the model repository cannot be written: {place} is not a folder that may be written to; "
            "change its permissions or choose another folder"
        )
    _others(target, _earlier(target, group), group, names)


def _contents(target: Path) -> list[Path]:
    return sorted(target.iterdir()) if target.exists() else []


def _earlier(target: Path, group: str) -> dict[Path, Group]:
    """Return the folders in ``target`` that are members of ``group``, with the build that each describes."""
    return {path: build for path in _contents(target) if (build := _build_of(path, group)) is not None}


def _others(target: Path, earlier: Collection[Path], group: str, names: Collection[str]) -> Iterable[Path]:
    """Return what ``target`` holds beside the ``earlier`` models of ``group``.

    Raises:
        RepositoryError: if one of them has the name of a member.
    """
    others = []
    for path in _contents(target):
        if path in earlier:
            continue
        if path.name in names:
            raise RepositoryError(
                f"{path}: is there already and not of group {group!r}; nothing was written. Give the model "
                "another name, choose another folder, or remove this one"
            )
        others.append(path)
    return others


def _version(earlier: Mapping[Path, Group], group: Group) -> str:
    """Return the version of a build: that of the build in its place if it is the same, else the next one."""
    newest = max((int(version) for path in earlier for version in versions(path)), default=0)
    same = {found.generation for found in earlier.values()} == {group.generation}
    return str(newest) if same and newest else str(newest + 1)


def _build_of(path: Path, group: str) -> Group | None:
    """Return the group as a folder describes it that says that it is its member; None if it is not, or cannot tell."""
    if not (path / CONFIG_FILE).is_file():
        return None
    try:
        manifest = read_manifest(read_config(path / CONFIG_FILE), str(path))
    except CoinExportError:
        return None
    return manifest[0] if manifest and (manifest[0].name, manifest[1]) == (group, path.name) else None


def _carry_over(source: Path, destination: Path) -> None:
    if source.is_dir() and not source.is_symlink():
        shutil.copytree(source, destination, symlinks=True, copy_function=_link)
    else:
        _link(source, destination)


def _link(source: str | Path, destination: str | Path) -> None:
    try:
        os.link(source, destination, follow_symlinks=False)
    except OSError:  # a file system without hard links, or a kernel that protects the files of others
        shutil.copy2(source, destination, follow_symlinks=False)
