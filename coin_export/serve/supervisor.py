"""A small process between a program and its tritonserver: whatever ends the program ends the server.

It is run as a file and imports the standard library only, so that it starts in milliseconds and from any environment.
The program writes a `Launch` as one line of JSON to its stdin; it lays out the server's folder and answers
``prepared``; after another line it starts the server and answers ``pid N``. Where that fails it answers ``error ...``.
It makes the folder itself, so that a program killed at any moment leaves none.

It ends the server when its stdin brings anything more or ends (the program asked, or is gone, even by SIGKILL), when
its parent changes, or on SIGTERM. It ends what the server leaves behind when the server ends by itself: the Python
backend's stubs outlive a killed server, and so do their shared-memory files. It exits with the server's exit status
(128 + signal number for a signal), or with 0 when the end was asked for.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from io import RawIOBase
from pathlib import Path

ID_PREFIX = "coin-export-"  # of the names of servers, of their shared-memory files and of their folders

_SHARED_MEMORY = Path("/dev/shm")
_ENVIRONMENTS = Path("/tmp")  # fixed in Triton's Python backend
_POLL_S = 0.5
_KILLED_WAIT_S = 5.0
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True)
class Launch:
    """What to run and what to clean up.

    Attributes:
        command: the server's command line.
        environment: the server's whole environment.
        log: the file that the server's output is appended to.
        runtime: the folder to make for the server, and to remove at the end.
        copies: executable copies to make in that folder, by their place in it.
        links: symbolic links to make in that folder, by their place in it.
        shared_memory_prefix: files in ``/dev/shm`` with this prefix are removed at the end.
        parent: the pid of the program.
        grace_s: how long the server may take to end by itself.
    """

    command: list[str]
    environment: dict[str, str]
    log: str
    runtime: str
    copies: dict[str, str]
    links: dict[str, str]
    shared_memory_prefix: str
    parent: int
    grace_s: float

    def to_json(self) -> str:
        """Write one line."""
        return json.dumps(asdict(self)) + "\n"


def supervise(launch: Launch, lifeline: RawIOBase, wakeup: int) -> int:
    """Run the server until it ends or is no longer wanted, then clean up.

    Args:
        launch: what to run.
        lifeline: a pipe from the program; one line on it starts the server, anything after that ends it.
        wakeup: a descriptor that becomes readable when a signal arrives.

    Returns:
        The exit status described above, or 1 if the server cannot be started.
    """
    launched_at = time.time()
    try:
        Path(launch.runtime).mkdir(mode=0o700)
        try:
            _prepare(launch)
            _tell("prepared")
            return _run(launch, lifeline, wakeup) if lifeline.readline() else 0
        finally:
            _remove_files(launch, launched_at)
    except OSError as error:
        _tell(f"error {error}")
        return 1


def _prepare(launch: Launch) -> None:
    for make, files in ((_copy, launch.copies), (os.symlink, launch.links)):
        for place, source in files.items():
            target = Path(launch.runtime, place)
            target.parent.mkdir(parents=True, exist_ok=True)
            make(source, target)
    Path(launch.log).parent.mkdir(parents=True, exist_ok=True)
    Path(launch.log).touch()


def _copy(source: str, target: Path) -> None:
    shutil.copyfile(source, target)
    target.chmod(0o755)


def _tell(line: str) -> None:
    with contextlib.suppress(OSError):  # nobody may be there to read it
        os.write(1, line.encode() + b"\n")


def _run(launch: Launch, lifeline: RawIOBase, wakeup: int) -> int:
    server = _start(launch)
    try:
        _tell(f"pid {server.pid}")
        asked = _wait(server.pid, launch.parent, lifeline.fileno(), wakeup)
        if asked:
            _terminate(server.pid, launch.grace_s)
    finally:
        _kill_group(server)
    return 0 if asked else _exit_status(server.returncode)


def _exit_status(returncode: int) -> int:
    return returncode if returncode >= 0 else 128 - returncode


def _start(launch: Launch) -> subprocess.Popen[bytes]:
    with Path(launch.log).open("ab") as log:
        return subprocess.Popen(
            launch.command,
            env=launch.environment,
            cwd=launch.runtime,  # Python looks for modules there first, so it must be a folder of ours
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # This process has one thread, so code may run between fork and exec.
            preexec_fn=_die_with_supervisor,
        )


def _die_with_supervisor() -> None:
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _wait(pid: int, parent: int, lifeline: int, wakeup: int) -> bool:
    """Wait; return whether the end was asked for (True) or came by itself (False)."""
    while not _has_ended(pid):
        readable, _, _ = select.select([lifeline, wakeup], [], [], _POLL_S)
        # A child forked by the program may keep the lifeline open, so the program's death is looked for as well.
        if lifeline in readable or os.getppid() != parent:
            return True
        if wakeup in readable and signal.SIGTERM in os.read(wakeup, 4096):
            return True
    return False


def _has_ended(pid: int) -> bool:
    # Not reaped yet: as long as it is a zombie, its pid and its group's id cannot be given to another process.
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _terminate(pid: int, grace_s: float) -> None:
    _signal_group(pid, signal.SIGCONT)
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while not _has_ended(pid) and time.monotonic() < deadline:
        time.sleep(0.02)


def _kill_group(server: subprocess.Popen[bytes]) -> None:
    """Kill what is left of the server's group and wait until it is gone."""
    _signal_group(server.pid, signal.SIGKILL)
    server.wait()
    deadline = time.monotonic() + _KILLED_WAIT_S
    with contextlib.suppress(ChildProcessError):
        # Orphaned stubs have become children of this process, a subreaper.
        while time.monotonic() < deadline:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                time.sleep(0.01)


def _signal_group(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)


def _remove_files(launch: Launch, launched_at: float) -> None:
    if _SHARED_MEMORY.is_dir():
        for file in list(_SHARED_MEMORY.iterdir()):
            if file.name.startswith(launch.shared_memory_prefix):
                file.unlink(missing_ok=True)
    shutil.rmtree(launch.runtime, ignore_errors=True)
    if not any(_is_foreign_server(process) for process in Path("/proc").glob("[0-9]*")):
        _remove_environments(launched_at)


def _remove_environments(since: float) -> None:
    """Remove the folder that the Python backend makes for unpacked environments, and leaves behind when killed.

    Its name tells nothing of its server. Another embedded server does not miss an empty one; servers that might,
    those that are not embedded ones, have been ruled out.
    """
    for folder in _ENVIRONMENTS.glob("python_env_??????"):
        with contextlib.suppress(OSError):
            status = folder.stat()
            # A folder's time has the grain of the kernel's clock tick and may lie a little before ours.
            if status.st_uid == os.getuid() and status.st_mtime >= since - 0.1:
                folder.rmdir()


def _is_foreign_server(process: Path) -> bool:
    try:
        command = (process / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return Path(os.fsdecode(command[0])).name == "tritonserver" and not any(
        argument.startswith(b"--id=" + ID_PREFIX.encode()) for argument in command
    )


def _listen() -> int:
    """Turn signals into bytes on a descriptor; SIGINT and SIGHUP are heard and ignored."""
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGCHLD, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    return read_end


def main() -> int:
    """Read a `Launch` from stdin and supervise it."""
    wakeup = _listen()
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    # Unbuffered: what follows a line must stay in the pipe, where select sees it.
    with open(0, "rb", buffering=0, closefd=False) as lifeline:
        line = lifeline.readline()
        return supervise(Launch(**json.loads(line)), lifeline, wakeup) if line else 0


if __name__ == "__main__":
    sys.exit(main())
