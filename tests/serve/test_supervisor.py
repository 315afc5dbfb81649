"""The supervisor with a stand-in for tritonserver: a Python script with a child, as a server with its stub."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from coin_export.serve import supervisor
from coin_export.serve.supervisor import ID_PREFIX, Launch

OBEDIENT = """
import signal, subprocess, sys, time
sleeper = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(99)"
child = subprocess.Popen([sys.executable, "-c", sleeper])
print("child", child.pid, flush=True)
time.sleep(99)
"""
STUBBORN = "import signal; signal.signal(15, signal.SIG_IGN)" + OBEDIENT
FAILING = "import sys; print('bad luck', flush=True); sys.exit(3)"


@dataclass
class Supervised:
    process: subprocess.Popen[bytes]
    launch: Launch
    server: int

    def child(self) -> psutil.Process:
        """The server's child, whose pid it logs."""
        while len(words := Path(self.launch.log).read_text().split()) < 2:
            time.sleep(0.01)
        return psutil.Process(int(words[1]))

    def assert_clean(self) -> None:
        assert not psutil.pid_exists(self.server)
        assert not Path(self.launch.runtime).exists()
        assert not list(Path("/dev/shm").glob(f"{self.launch.shared_memory_prefix}*"))


@pytest.fixture
def supervise(tmp_path: Path) -> Iterator[Callable[..., Supervised]]:
    started = []

    def start(script: str, *, grace_s: float = 20.0, parent: int | None = None) -> Supervised:
        source = tmp_path / "source"
        source.write_text("#!/bin/sh\n")
        prefix = f"{ID_PREFIX}{secrets.token_hex(4)}"
        Path("/dev/shm", f"{prefix}-region").touch()
        launch = Launch(
            command=[sys.executable, "-c", script],
            environment=dict(os.environ),
            log=str(tmp_path / "log"),
            runtime=str(tmp_path / "runtime"),
            copies={"backends/stub": str(source)},
            links={"lib/link": str(source)},
            shared_memory_prefix=prefix,
            parent=os.getpid() if parent is None else parent,
            grace_s=grace_s,
        )
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", supervisor.__file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        started.append(process)
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(launch.to_json().encode())
        process.stdin.flush()
        assert process.stdout.readline() == b"prepared\n"
        process.stdin.write(b"start\n")
        process.stdin.flush()
        word, pid = process.stdout.readline().split()
        assert word == b"pid"
        return Supervised(process, launch, int(pid))

    yield start
    for process in started:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.close()
        process.wait(30)
        process.stdout.close()


def close_lifeline(supervised: Supervised) -> None:
    assert supervised.process.stdin is not None
    supervised.process.stdin.close()


def write_to_lifeline(supervised: Supervised) -> None:
    assert supervised.process.stdin is not None
    supervised.process.stdin.write(b"\n")
    supervised.process.stdin.flush()


def send_sigterm(supervised: Supervised) -> None:
    supervised.process.terminate()


@pytest.mark.parametrize("end", [close_lifeline, write_to_lifeline, send_sigterm])
def test_an_end_that_is_asked_for_leaves_nothing(
    supervise: Callable[..., Supervised], end: Callable[[Supervised], None]
) -> None:
    supervised = supervise(OBEDIENT)
    child = supervised.child()
    end(supervised)
    assert supervised.process.wait(30) == 0
    supervised.assert_clean()
    assert not child.is_running()


def test_the_servers_folder_is_laid_out_before_it_starts(supervise: Callable[..., Supervised]) -> None:
    supervised = supervise(OBEDIENT)
    runtime = Path(supervised.launch.runtime)
    assert os.access(runtime / "backends" / "stub", os.X_OK)
    assert (runtime / "lib" / "link").read_text() == "#!/bin/sh\n"
    assert Path(f"/proc/{supervised.server}/cwd").resolve() == runtime


def test_another_parent_than_the_one_announced_ends_the_server(supervise: Callable[..., Supervised]) -> None:
    supervised = supervise(OBEDIENT, parent=1)
    assert supervised.process.wait(30) == 0
    supervised.assert_clean()


def test_a_server_that_does_not_obey_is_killed_after_the_grace(supervise: Callable[..., Supervised]) -> None:
    supervised = supervise(STUBBORN, grace_s=0.2)
    child = supervised.child()
    close_lifeline(supervised)
    assert supervised.process.wait(30) == 0
    supervised.assert_clean()
    assert not child.is_running()


def test_a_suspended_server_can_be_ended(supervise: Callable[..., Supervised]) -> None:
    supervised = supervise(OBEDIENT)
    supervised.child()
    os.killpg(supervised.server, signal.SIGSTOP)
    close_lifeline(supervised)
    assert supervised.process.wait(30) == 0
    supervised.assert_clean()


def test_a_killed_server_is_told_by_the_status_and_its_child_is_killed(supervise: Callable[..., Supervised]) -> None:
    supervised = supervise(OBEDIENT)
    child = supervised.child()
    os.kill(supervised.server, signal.SIGKILL)
    assert supervised.process.wait(30) == 128 + signal.SIGKILL
    supervised.assert_clean()
    assert not child.is_running()


def test_a_server_that_fails_passes_its_status_on(supervise: Callable[..., Supervised]) -> None:
    supervised = supervise(FAILING)
    assert supervised.process.wait(30) == 3
    assert Path(supervised.launch.log).read_text() == "bad luck\n"
    supervised.assert_clean()


def test_sigint_and_sighup_are_ignored(supervise: Callable[..., Supervised]) -> None:
    supervised = supervise(OBEDIENT)
    supervised.child()
    supervised.process.send_signal(signal.SIGINT)
    supervised.process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        supervised.process.wait(0.3)
    assert psutil.pid_exists(supervised.server)


def test_when_the_supervisor_is_killed_the_server_ends(supervise: Callable[..., Supervised]) -> None:
    supervised = supervise(OBEDIENT)
    child, server = supervised.child(), psutil.Process(supervised.server)
    supervised.process.kill()
    server.wait(30)
    child.kill()
    for file in Path("/dev/shm").glob(f"{supervised.launch.shared_memory_prefix}*"):
        file.unlink()


def test_a_program_that_is_gone_before_the_start_leaves_nothing(tmp_path: Path) -> None:
    launch = Launch(
        [], {}, str(tmp_path / "log"), str(tmp_path / "runtime"), {}, {}, f"{ID_PREFIX}none", os.getpid(), 0
    )
    command = [sys.executable, "-I", "-S", supervisor.__file__]
    ended = subprocess.run(command, input=launch.to_json(), capture_output=True, text=True, check=True, timeout=30)
    assert ended.stdout == "prepared\n"
    assert not (tmp_path / "runtime").exists()


def test_a_folder_that_is_there_already_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    launch = Launch([], {}, str(tmp_path / "log"), str(tmp_path), {}, {}, f"{ID_PREFIX}none", os.getpid(), 0)
    command = [sys.executable, "-I", "-S", supervisor.__file__]
    ended = subprocess.run(command, input=launch.to_json(), capture_output=True, text=True, check=False, timeout=30)
    assert ended.returncode == 1 and ended.stdout.startswith("error ") and "File exists" in ended.stdout
    assert (tmp_path / "mine").exists()


def test_no_instructions_no_server() -> None:
    command = [sys.executable, "-I", "-S", supervisor.__file__]
    assert subprocess.run(command, stdin=subprocess.DEVNULL, check=False, timeout=30).returncode == 0


def test_it_is_light() -> None:
    script = "import sys, coin_export.serve.supervisor; print(len(sys.modules), *sorted(sys.modules))"
    names = subprocess.check_output([sys.executable, "-I", "-c", script], text=True).split()
    assert not {"numpy", "torch", "tritonclient", "onnxruntime", "coin_export.errors"} & set(names)


def test_only_new_empty_environment_folders_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launch = Launch([], {}, "", str(tmp_path / "runtime"), {}, {}, f"{ID_PREFIX}none", os.getpid(), 0.0)
    monkeypatch.setattr(supervisor, "_ENVIRONMENTS", tmp_path)
    old, used, fresh = (tmp_path / f"python_env_{name}" for name in ("aaaaaa", "bbbbbb", "cccccc"))
    for folder in (old, used, fresh):
        folder.mkdir()
    (used / "bin").touch()
    os.utime(old, (0, 0))
    supervisor._remove_files(launch, launched_at=time.time() - 10)
    assert old.exists() and used.exists() and not fresh.exists()


def test_environment_folders_stay_while_another_tritonserver_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = Launch([], {}, "", str(tmp_path / "runtime"), {}, {}, f"{ID_PREFIX}none", os.getpid(), 0.0)
    monkeypatch.setattr(supervisor, "_ENVIRONMENTS", tmp_path)
    fresh = tmp_path / "python_env_cccccc"
    fresh.mkdir()
    foreign = subprocess.Popen(["tritonserver", "99"], executable="/bin/sleep")
    try:
        while b"99" not in Path(f"/proc/{foreign.pid}/cmdline").read_bytes():
            time.sleep(0.01)
        supervisor._remove_files(launch, launched_at=time.time() - 10)
        assert fresh.exists()
    finally:
        foreign.kill()
        foreign.wait()
