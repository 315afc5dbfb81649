"""Servers whose program ends, in any way and at any moment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.serve.conftest import wait_for_a_folder

pytestmark = pytest.mark.e2e

PROGRAM = """
import sys, time
from pathlib import Path
from coin_export.serve.embedded import EmbeddedServer

server = EmbeddedServer(Path(sys.argv[1]))
print("starting", flush=True)
with server:
    print(server.pid, flush=True)
    time.sleep(99)
"""


@contextmanager
def starting_program(repository: Path) -> Iterator[tuple[subprocess.Popen[str], Iterator[str]]]:
    """Run a program that has begun to start a server, in a process group of its own; gives its further output too."""
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(repository)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    ) as program:
        assert program.stdout is not None and program.stdout.readline() == "starting\n"
        yield program, iter(program.stdout)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_server_ends_with_its_program(
    repository: Path, temporary: Path, remains_of: Callable[[int], Any], end: signal.Signals
) -> None:
    with starting_program(repository) as (program, lines):
        remains = remains_of(int(next(lines)))
        # To the whole group, as a terminal's Ctrl-C does.
        os.killpg(program.pid, end)
        program.wait(30)
    remains.wait_gone()
    assert not list(temporary.iterdir())


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_program_that_ends_while_its_server_starts_leaves_nothing(
    repository: Path, temporary: Path, end: signal.Signals
) -> None:
    with starting_program(repository) as (program, _):
        wait_for_a_folder(temporary)
        os.killpg(program.pid, end)
        program.wait(30)
    deadline = time.monotonic() + 30
    while (left := left_by(program.pid, temporary)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left


def left_by(program: int, temporary: Path) -> list[object]:
    """What the servers of a program that is gone have left, found by their ids, which hold the program's pid."""
    name = f"coin-export-{program}-"
    servers = [
        process
        for process in psutil.process_iter(["cmdline"])
        if any(word.startswith(f"--id={name}") for word in process.info["cmdline"] or ())
    ]
    return [*servers, *Path("/dev/shm").glob(f"{name}*"), *temporary.iterdir()]
