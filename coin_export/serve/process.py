"""One tritonserver process behind its supervisor: launching it, signalling it, and being rid of it."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from coin_export.errors import ServeError, ServerStartError
from coin_export.serve import runtime, supervisor
from coin_export.serve.ports import Address
from coin_export.serve.tritonserver import TritonInstallation

_EXIT_TIMEOUT_S = 5  # for requests in flight, by tritonserver's own counting
_GRACE_S = 10.0  # for the server's whole exit, before its supervisor kills it
_SUPERVISOR_WAIT_S = 30.0  # for the supervisor's whole exit
_MAX_LOG_BYTES = 1 << 20


@dataclass(frozen=True)
class ServerPlan:
    """What a server is to run; ``models`` and ``log_path`` as in `EmbeddedServer`."""

    installation: TritonInstallation
    repository: Path
    models: tuple[str, ...] | None
    address: Address
    log_path: Path | None


class _Log:
    """This server's part of a log, readable until it is closed, even when the file has been removed."""

    def __init__(self, path: Path, start: int) -> None:
        self.path = path
        self._start = start
        self._file = path.open("rb")
        self._last = ""

    def read(self) -> str:
        """Return the end of it."""
        if not self._file.closed:
            size = self._file.seek(0, os.SEEK_END)
            self._file.seek(max(self._start, size - _MAX_LOG_BYTES))
            self._last = self._file.read().decode(errors="replace")
        return self._last

    def close(self) -> None:
        self.read()
        self._file.close()


class ServerProcess:
    """A tritonserver that has been launched, ready or not; made by `launch`.

    Attributes:
        pid: the pid of tritonserver, which is also the id of its process group.
        server_id: the name under which it answers.
    """

    def __init__(self, supervising: subprocess.Popen[bytes], pid: int, server_id: str, log: _Log, folder: Path) -> None:
        self.pid = pid
        self.server_id = server_id
        self._supervising = supervising
        self._log = log
        self._folder = folder

    @property
    def log_path(self) -> Path:
        """The server's log."""
        return self._log.path

    @property
    def status(self) -> int | None:
        """None while the server runs, then its exit status as `supervisor` defines it."""
        return self._supervising.poll()

    def log_text(self) -> str:
        """Return what this server has logged, at most its last megabyte."""
        return self._log.read()

    def signal_group(self, number: signal.Signals) -> None:
        """Send a signal to the server and its model processes.

        Raises:
            ServeError: if the server has ended.
        """
        self._check_running()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def kill(self) -> None:
        """Kill the server alone, and wait until its supervisor has cleaned up behind it.

        Raises:
            ServeError: if the server has ended.
        """
        self._check_running()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self._wait()

    def ask_to_stop(self) -> None:
        """Have the supervisor end the server, without waiting."""
        lifeline = self._supervising.stdin
        # Anything on the lifeline means stop. Closing it alone would not do if a forked child held it open, too.
        with contextlib.suppress(OSError, ValueError):
            if lifeline is not None:
                lifeline.write(b"\n")
                lifeline.close()

    def finish(self) -> None:
        """End the server and wait until nothing is left of it; may be repeated."""
        self.ask_to_stop()
        self._wait()
        if self._supervising.stdout is not None:
            self._supervising.stdout.close()
        self._log.close()
        # The supervisor has done this, unless it was killed itself.
        shutil.rmtree(self._folder, ignore_errors=True)

    def _check_running(self) -> None:
        if self.status is not None:
            raise ServeError(f"the server (pid {self.pid}) is no longer running")

    def _wait(self) -> None:
        try:
            self._supervising.wait(_SUPERVISOR_WAIT_S)
        except subprocess.TimeoutExpired:
            self._supervising.kill()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self._supervising.wait()


def launch(plan: ServerPlan) -> ServerProcess:
    """Start a supervisor and have it start a server.

    Raises:
        ServerStartError: if that cannot be done.
    """
    server_id = f"{supervisor.ID_PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
    layout = runtime.plan_layout(server_id, plan.installation, plan.repository)
    log_path = plan.log_path or layout.folder / "server.log"
    log_start = log_path.stat().st_size if log_path.exists() else 0
    # By path, isolated and without site-packages: nothing in this process's environment can break it.
    supervising = subprocess.Popen(
        [sys.executable, "-I", "-S", supervisor.__file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    _ask(supervising, _instructions(plan, layout, server_id, log_path).to_json(), expected="prepared")
    # Opened before the server starts: if it fails, the log goes with its folder.
    log = _Log(log_path, log_start)
    try:
        pid = _ask(supervising, "start\n", expected="pid")
    except ServerStartError:
        log.close()
        raise
    return ServerProcess(supervising, int(pid), server_id, log, layout.folder)


def _instructions(plan: ServerPlan, layout: runtime.Layout, server_id: str, log_path: Path) -> supervisor.Launch:
    return supervisor.Launch(
        command=runtime.command(
            plan.installation,
            layout,
            models=plan.models,
            address=plan.address,
            server_id=server_id,
            exit_timeout_s=_EXIT_TIMEOUT_S,
        ),
        environment=runtime.environment(layout.folder, plan.installation),
        log=str(log_path),
        runtime=str(layout.folder),
        copies=layout.copies,
        links=layout.links,
        shared_memory_prefix=server_id,
        parent=os.getpid(),
        grace_s=_GRACE_S,
    )


def _ask(supervising: subprocess.Popen[bytes], line: str, *, expected: str) -> str:
    """Send the supervisor a line and return what follows the expected word in its answer."""
    if supervising.stdin is None or supervising.stdout is None:
        raise ServerStartError("the server's supervisor was started without pipes")
    with contextlib.suppress(BrokenPipeError):
        supervising.stdin.write(line.encode())
        supervising.stdin.flush()
    word, _, rest = supervising.stdout.readline().decode(errors="replace").strip().partition(" ")
    if word != expected:
        supervising.communicate()
        raise ServerStartError(f"tritonserver cannot be launched: {rest or 'its supervisor ended'}")
    return rest
