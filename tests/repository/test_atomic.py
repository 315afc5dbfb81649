import errno
import os
import resource
import shutil
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from coin_export.code.manifest import Group
from coin_export.errors import RepositoryError
from coin_export.repository import atomic
from coin_export.repository.layout import read_repository, write_repository
from coin_export.repository.options import RepositoryOptions
from tests.repository.groups import build, contents, next_build, siblings

OPTIONS = RepositoryOptions()


def test_without_an_atomic_exchange_two_renames_do(
    built: Group, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atomic, "exchange", lambda first, second: False)
    group, files = next_build(tmp_path)
    write_repository(target, group, files, OPTIONS)
    assert read_repository(target).groups == (group,)
    assert siblings(target) == ["models"]


@pytest.mark.skipif(sys.platform != "linux", reason="renameat2 is Linux's")
def test_linux_exchanges_in_one_step(tmp_path: Path) -> None:
    (tmp_path / "first" / "inside").mkdir(parents=True)
    (tmp_path / "second").mkdir()
    assert atomic.exchange(tmp_path / "first", tmp_path / "second")
    assert (tmp_path / "second" / "inside").is_dir()
    with pytest.raises(FileNotFoundError):
        atomic.exchange(tmp_path / "first", tmp_path / "absent")


class Failure:
    """Makes one step of a write fail, once it has been taken a number of times."""

    def __init__(self, error: BaseException, after: int = 0) -> None:
        self.error, self.after = error, after

    def __call__(self, *arguments: object, **options: object) -> object:
        self.after -= 1
        if self.after < 0:
            raise self.error
        return shutil.copy2(*arguments, **options)  # type: ignore[call-overload] # the arguments of copyfile


@pytest.mark.parametrize("after", [0, 2])
@pytest.mark.parametrize(
    ("error", "seen", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), RepositoryError, "No space left on device.*as it was"),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
    ],
)
def test_a_write_that_breaks_off_leaves_everything_as_it_was(
    built: Group,
    target: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    seen: type[BaseException],
    message: str | None,
    after: int,
) -> None:
    before = contents(target)
    monkeypatch.setattr(shutil, "copyfile", Failure(error, after))
    group, files = next_build(tmp_path)
    with pytest.raises(seen, match=message):
        write_repository(target, group, files, OPTIONS)
    assert contents(target) == before
    assert siblings(target) == ["models"]


@pytest.mark.parametrize("exchanges", [True, False])
@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()])
def test_a_swap_that_breaks_off_leaves_everything_as_it_was(
    built: Group,
    target: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    exchanges: bool,
) -> None:
    before = contents(target)
    rename = Path.rename

    def failing(path: Path, destination: Path) -> Path:
        if path.name.endswith(".new"):
            raise error
        return rename(path, destination)

    def exchange(first: Path, second: Path) -> bool:
        if exchanges:
            raise error
        return False

    monkeypatch.setattr(Path, "rename", failing)
    monkeypatch.setattr(atomic, "exchange", exchange)
    group, files = next_build(tmp_path)
    with pytest.raises((RepositoryError, KeyboardInterrupt)):
        write_repository(target, group, files, OPTIONS)
    assert contents(target) == before
    assert siblings(target) == ["models"]


def test_a_real_limit_on_file_size_leaves_everything_as_it_was(built: Group, target: Path, tmp_path: Path) -> None:
    before = contents(target)
    group, files = next_build(tmp_path)
    files["d"].write_bytes(bytes(200_000))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(RepositoryError, match="File too large"):
            write_repository(target, group, files, OPTIONS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert contents(target) == before
    assert siblings(target) == ["models"]


def test_what_a_killed_build_left_is_cleared_away(built: Group, target: Path, tmp_path: Path) -> None:
    (target.parent / ".models.new" / "a").mkdir(parents=True)
    (target.parent / ".models.lock").touch()
    group, files = next_build(tmp_path)
    write_repository(target, group, files, OPTIONS)
    assert read_repository(target).groups == (group,)
    assert siblings(target) == ["models"]


def test_a_build_killed_between_two_renames_is_undone(built: Group, target: Path, tmp_path: Path) -> None:
    target.rename(target.parent / ".models.old")
    group, files = next_build(tmp_path)
    write_repository(target, group, files, OPTIONS)
    assert (target / "README.md").read_text() == "read me"
    assert siblings(target) == ["models"]


def test_only_one_build_writes_at_a_time(target: Path, tmp_path: Path) -> None:
    target.parent.mkdir(parents=True)
    with atomic.replacing(target) as stage:
        with pytest.raises(RepositoryError, match="another build is writing it"):
            build(target, tmp_path / "files")
        (stage / "marker").touch()
    assert list(contents(target)) == ["marker"]
    build(target, tmp_path / "files")
    assert siblings(target) == ["models"]


@pytest.fixture
def unprivileged(tmp_path: Path) -> Iterator[None]:
    """Run as a user whom permissions bind."""
    if os.geteuid() != 0:
        yield
        return
    opened = [parent for parent in (tmp_path, *tmp_path.parents) if not stat.S_IMODE(parent.stat().st_mode) & 0o001]
    modes = [stat.S_IMODE(parent.stat().st_mode) for parent in opened]
    for parent, mode in zip(opened, modes, strict=True):
        parent.chmod(mode | 0o055)
    os.chown(tmp_path, 65534, 65534)
    os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)
        for parent, mode in zip(opened, modes, strict=True):
            parent.chmod(mode)


@pytest.mark.usefixtures("unprivileged")
def test_read_only_folders_are_refused_and_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "place" / "models"
    group = build(target, tmp_path / "files")
    before = contents(target)
    target.chmod(0o555)
    with pytest.raises(RepositoryError, match=r"models: is read-only"):
        build(target, tmp_path / "files", group)
    target.chmod(0o755)
    target.parent.chmod(0o555)
    with pytest.raises(RepositoryError, match=r"cannot be written: .*place is not a folder that may be written to"):
        build(target, tmp_path / "files", group)
    target.parent.chmod(0o755)
    assert contents(target) == before
    assert siblings(target) == ["models"]
