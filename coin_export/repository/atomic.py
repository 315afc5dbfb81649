"""Replacing a folder as a whole: readers see the old one or the new one, and a failure leaves the old one."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from coin_export.errors import RepositoryError

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2  # linux/fs.h
_NO_EXCHANGE = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP}


@contextlib.contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Give a new, empty folder that takes the place of ``target`` when the block ends without an exception.

    The new folder is a hidden sibling until then, on the same file system. Otherwise it is removed.

    Args:
        target: the folder; it may exist or not. Its name must not be a symbolic link.

    Raises:
        RepositoryError: if another process is replacing the same folder.
        OSError: if the file system refuses.
    """
    stage = target.with_name(f".{target.name}.new")
    with _locked(target):
        _recover(stage, target)
        try:
            stage.mkdir()
            if target.exists():
                stage.chmod(stat.S_IMODE(target.stat().st_mode))
            yield stage
            _swap(stage, target)
        finally:
            shutil.rmtree(stage, ignore_errors=True)  # after an exchange, this is the old folder


@contextlib.contextmanager
def _locked(target: Path) -> Iterator[None]:
    import fcntl  # absent on Windows, where repositories are read and not written

    path = target.with_name(f".{target.name}.lock")
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(path.stat(), os.fstat(descriptor)):
                break  # otherwise its last holder has removed the file that we locked
        except BlockingIOError as error:
            os.close(descriptor)
            raise RepositoryError(f"{target}: another build is writing it; wait for that one to end") from error
        os.close(descriptor)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _recover(stage: Path, target: Path) -> None:
    """Clear away what a process that was killed half-way left."""
    _settle(_backup(target), target)
    if stage.exists():
        shutil.rmtree(stage)


def _swap(stage: Path, target: Path) -> None:
    if not target.exists():
        stage.rename(target)
    elif not exchange(stage, target):
        try:
            target.rename(_backup(target))
            stage.rename(target)
        finally:
            _settle(_backup(target), target)


def _backup(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")


def _settle(backup: Path, target: Path) -> None:
    """Drop the old folder if the new one is in place, put it back otherwise."""
    if backup.exists():
        if target.exists():
            shutil.rmtree(backup, ignore_errors=True)
        else:
            backup.rename(target)


def exchange(first: Path, second: Path) -> bool:
    """Exchange two folders in one step; False where the system cannot.

    Raises:
        OSError: if it can and refuses.
    """
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    if renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _NO_EXCHANGE:
        return False
    raise OSError(number, os.strerror(number), str(second))
