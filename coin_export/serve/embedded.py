"""A real tritonserver as a context manager. It ends with this process, however this process ends."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from coin_export.errors import PortInUseError, RepositoryError, ServeError, ServerStartError
from coin_export.serve.health import is_ready
from coin_export.serve.log import essential_errors, taken_port
from coin_export.serve.ports import Address, Ports, choose_ports
from coin_export.serve.process import ServerPlan, ServerProcess, launch
from coin_export.serve.tritonserver import TritonInstallation, find_tritonserver

_START_ATTEMPTS = 5  # a free port can be lost to another process between its choice and its use
_POLL_S = 0.02


class EmbeddedServer:
    """A tritonserver that serves a model repository from this machine.

    It is started once, by `start` or by entering the context, and cannot be started again after it has stopped.

    Args:
        repository: the model repository.
        models: the models to serve; all that the repository holds if None.
        host: the address to listen on.
        grpc_port: a port, or None for any free one; so are the other two.
        http_port: see ``grpc_port``.
        metrics_port: see ``grpc_port``.
        log_path: a file that the server's log is appended to and kept in; None for a file that goes with the server.
        ready_timeout_s: how long the server may take to load its models.
    """

    def __init__(
        self,
        repository: Path,
        *,
        models: Sequence[str] | None = None,
        host: str = "127.0.0.1",
        grpc_port: int | None = None,
        http_port: int | None = None,
        metrics_port: int | None = None,
        log_path: Path | None = None,
        ready_timeout_s: float = 60.0,
    ) -> None:
        self._repository = repository.absolute()
        self._models = None if models is None else tuple(models)
        self._host = host
        self._ports = Ports(http=http_port, grpc=grpc_port, metrics=metrics_port)
        self._log_path = log_path.absolute() if log_path else None
        self._ready_timeout_s = ready_timeout_s
        self._address: Address | None = None
        self._process: ServerProcess | None = None
        self._stop_asked = threading.Event()
        self._launching = threading.Lock()

    def __enter__(self) -> EmbeddedServer:
        """Start the server."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop the server."""
        self.stop()

    def start(self) -> None:
        """Start the server and wait until it and its models are ready.

        Raises:
            TritonNotFoundError: if there is no tritonserver on this machine.
            RepositoryError: if the repository is not a folder, or lacks one of ``models``.
            PortInUseError: if a requested port is taken.
            ServerStartError: if the server ended or did not become ready; the message holds its errors.
            ServeError: if it was started before.
        """
        if self._process is not None or self._stop_asked.is_set():
            raise ServeError("this server was started or stopped before; make a new EmbeddedServer")
        self._check_repository()
        installation = find_tritonserver()
        try:
            for _ in range(_START_ATTEMPTS):
                if self._start_once(installation):
                    return
            raise ServerStartError(f"{_START_ATTEMPTS} times in a row, another process took the free ports chosen")
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the server, also while it starts, and wait until nothing is left of it; may be repeated."""
        self.ask_to_stop()
        if self._process is not None:
            self._process.finish()

    def ask_to_stop(self) -> None:
        """Have the server end, without waiting for it."""
        self._stop_asked.set()
        with self._launching:
            process = self._process
        if process is not None:
            process.ask_to_stop()

    @property
    def pid(self) -> int:
        """The pid of tritonserver itself."""
        return self._launched()[0].pid

    @property
    def grpc_address(self) -> str:
        """The gRPC endpoint, ``host:port``."""
        return f"{self._host}:{self._launched()[1].grpc}"

    @property
    def http_address(self) -> str:
        """The HTTP endpoint, ``host:port``."""
        return f"{self._host}:{self._launched()[1].http}"

    @property
    def metrics_address(self) -> str:
        """The Prometheus endpoint, ``host:port``; its path is ``/metrics``."""
        return f"{self._host}:{self._launched()[1].metrics}"

    @property
    def log_path(self) -> Path:
        """The server's log."""
        return self._launched()[0].log_path

    def is_alive(self) -> bool:
        """Tell whether the server's process is there, be it suspended."""
        return self._process is not None and self._process.status is None

    def suspend(self) -> None:
        """Stop the server and its model processes with SIGSTOP: a straggler.

        Raises:
            ServeError: if the server is not running.
        """
        self._launched()[0].signal_group(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a suspended server go on.

        Raises:
            ServeError: if the server is not running.
        """
        self._launched()[0].signal_group(signal.SIGCONT)

    def kill(self) -> None:
        """Kill tritonserver with SIGKILL: a crash. Returns when what it left behind has been cleaned up.

        Raises:
            ServeError: if the server is not running.
        """
        self._launched()[0].kill()

    def successor(self) -> EmbeddedServer:
        """Return a server, yet to be started, that takes the place of this one once it has ended: same ports, same log.

        Raises:
            ServeError: if this one has not been started.
        """
        address = self._launched()[1]
        return EmbeddedServer(
            self._repository,
            models=self._models,
            host=self._host,
            grpc_port=address.grpc,
            http_port=address.http,
            metrics_port=address.metrics,
            log_path=self._log_path,
            ready_timeout_s=self._ready_timeout_s,
        )

    def _launched(self) -> tuple[ServerProcess, Address]:
        if self._process is None or self._address is None:
            raise ServeError("the server has not been started; call start(), or use it as a context manager")
        return self._process, self._address

    def _check_repository(self) -> None:
        if not self._repository.is_dir():
            raise RepositoryError(f"the model repository {self._repository} is not a folder; build it first")
        missing = [model for model in self._models or () if not (self._repository / model).is_dir()]
        if missing:
            present = sorted(path.name for path in self._repository.iterdir() if path.is_dir())
            raise RepositoryError(f"the model repository {self._repository} has no model {missing}; it has {present}")

    def _start_once(self, installation: TritonInstallation) -> bool:
        """Launch and wait; return False if a free port was lost to another process, so that others may be tried."""
        with self._launching:
            if self._stop_asked.is_set():
                raise ServerStartError("the server was stopped before it started")
            address = choose_ports(self._host, self._ports)
            process = launch(ServerPlan(installation, self._repository, self._models, address, self._log_path))
            self._process, self._address = process, address
        deadline = time.monotonic() + self._ready_timeout_s
        while not is_ready(address, process.server_id, self._models or ()):
            if process.status is not None:
                self._check_lost_port(process)
                return False
            if time.monotonic() > deadline:
                raise self._start_error(process, f"was not ready after {self._ready_timeout_s:g} s")
            time.sleep(_POLL_S)
        return True

    def _check_lost_port(self, process: ServerProcess) -> None:
        """Return if the server ended because a port that was free got taken, raise otherwise."""
        process.finish()
        if self._stop_asked.is_set():
            raise ServerStartError("the server was stopped while it started")
        port = taken_port(process.log_text())
        if port is None:
            raise self._start_error(process, f"ended with status {process.status}")
        if port in (self._ports.http, self._ports.grpc, self._ports.metrics):
            raise PortInUseError(f"port {port} of {self._host} is in use; choose another")

    def _start_error(self, process: ServerProcess, what: str) -> ServerStartError:
        errors = "\n".join(f"  {line}" for line in essential_errors(process.log_text()))
        where = f"its log is {self._log_path}" if self._log_path else "give a log_path to keep its log"
        return ServerStartError(f"tritonserver for {self._repository} {what}; {where}. It says:\n{errors}")


def start_all(servers: Sequence[EmbeddedServer]) -> None:
    """Start several servers side by side; if one fails, stop all of them and raise its error."""
    if not servers:
        return
    with ThreadPoolExecutor(len(servers), thread_name_prefix="start-server") as threads:
        starts = [threads.submit(server.start) for server in servers]
        try:
            for start in starts:
                start.result()
        except BaseException:
            stop_all(servers)
            raise


def stop_all(servers: Sequence[EmbeddedServer]) -> None:
    """Stop several servers side by side."""
    for server in servers:
        server.ask_to_stop()
    for server in servers:
        server.stop()
