"""Real tritonservers, one per member of a group, each at ports of its own that it comes back to."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from coin_export.errors import ServerStartError
from coin_export.serve.embedded import EmbeddedServer, start_all, stop_all
from scripts.faults.linear_group import LinearGroup

# Below the ports that systems hand out for connections: a port whose server is down is not taken by anybody else.
_PORTS = range(20_000, 30_000)
_LOCK_FAULT = "boost::interprocess::lock_exception"
_START_ATTEMPTS = 5
_LAST_WORDS = 3000  # characters


class Cluster:
    """Starts one server per member on entering, and ends them all on leaving.

    Args:
        linear: the group to serve.
        ready_timeout_s: how long a server may take to start.

    Attributes:
        linear: the group served at first.
        servers: the servers by the name of the member that each serves at first; stopped ones stay until restarted.
    """

    def __init__(self, linear: LinearGroup, ready_timeout_s: float = 120.0) -> None:
        self.linear = linear
        self._ready_timeout_s = ready_timeout_s
        ports = _free_ports()
        self._ports = {name: (next(ports), next(ports)) for name in linear.members}
        self._killed: set[str] = set()
        self._serves = {name: (linear.repository, name) for name in linear.members}
        self.servers = {name: self._make(name) for name in linear.members}

    def __enter__(self) -> Cluster:
        self._start(list(self.linear.members))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for server in self.servers.values():
            if server.is_alive():
                server.kill()  # a graceful stop takes three seconds
        stop_all(list(self.servers.values()))

    @property
    def grpc_addresses(self) -> Mapping[str, str]:
        """The gRPC address of every server, by name."""
        return {name: f"127.0.0.1:{grpc}" for name, (grpc, _) in self._ports.items()}

    @property
    def http_addresses(self) -> Mapping[str, str]:
        """The HTTP address of every server, by name."""
        return {name: f"127.0.0.1:{http}" for name, (_, http) in self._ports.items()}

    def kill(self, name: str) -> None:
        """Kill a server with SIGKILL, stopped or not."""
        self._killed.add(name)
        self.servers[name].kill()

    def suspend(self, name: str) -> None:
        """Stop a server with SIGSTOP."""
        self.servers[name].suspend()

    def resume(self, name: str) -> None:
        """Let a stopped server go on."""
        self.servers[name].resume()

    def restart(self, name: str, *, repository: Path | None = None, model: str | None = None) -> None:
        """Start a server anew at its ports, be it up or not; returns when it is ready.

        Args:
            name: the server's.
            repository: another one to serve from.
            model: another one to serve.
        """
        self._renew(name, repository, model)
        self._start([name])

    def repair(self) -> None:
        """Have every server run and serve what it served at first.

        Raises:
            AssertionError: if a server had ended by itself for a reason of its own, with the end of its log; all run
                again then, too.
        """
        crashed = {
            name: self.last_words(name)
            for name in self.linear.members
            if self.has_crashed(name) and not self.was_shaken_off(name)
        }
        first = {name: (self.linear.repository, name) for name in self.linear.members}
        broken = [name for name in first if self._serves[name] != first[name] or not self.servers[name].is_alive()]
        for name in self.linear.members:
            if name in broken:
                self._renew(name)
            else:
                self.resume(name)
        self._start(broken)
        assert not crashed, f"servers ended by themselves: {crashed}"

    def has_crashed(self, name: str) -> bool:
        """Whether a server ended although nobody killed it."""
        return not self.servers[name].is_alive() and name not in self._killed

    def was_shaken_off(self, name: str) -> bool:
        """Whether a server ended by a known fault of Triton 24.10's Python backend.

        It shares timed locks with its model's process, and may end by an exception of these when both are stopped and
        go on, or when the machine is busy while it starts.
        """
        return _LOCK_FAULT in self.last_words(name)

    def revive(self) -> None:
        """Start those servers again that were shaken off."""
        for name in self.linear.members:
            if self.has_crashed(name) and self.was_shaken_off(name):
                self.restart(name)

    def last_words(self, name: str) -> str:
        """Return the end of a server's log."""
        return self._log(name).read_text(encoding="utf-8", errors="replace")[-_LAST_WORDS:]

    def _renew(self, name: str, repository: Path | None = None, model: str | None = None) -> None:
        if self.servers[name].is_alive():
            self.kill(name)
        self.servers[name].stop()
        self._killed.discard(name)
        self._serves[name] = (repository or self.linear.repository, model or name)
        self.servers[name] = self._make(name)

    def _start(self, names: Sequence[str]) -> None:
        for _ in range(_START_ATTEMPTS):
            try:
                return start_all([self.servers[name] for name in names])
            except ServerStartError as error:
                if _LOCK_FAULT not in str(error):  # see `was_shaken_off`
                    raise
            self.servers |= {name: self._make(name) for name in names}
        raise AssertionError(f"{_START_ATTEMPTS} times in a row, a server of {names} crashed while it started")

    def _make(self, name: str) -> EmbeddedServer:
        repository, model = self._serves[name]
        grpc, http = self._ports[name]
        return EmbeddedServer(
            repository,
            models=[model],
            grpc_port=grpc,
            http_port=http,
            log_path=self._log(name),
            ready_timeout_s=self._ready_timeout_s,
        )

    def _log(self, name: str) -> Path:
        return self.linear.repository.parent / f"{name}.log"


def _free_ports() -> Iterator[int]:
    for port in random.sample(_PORTS, len(_PORTS)):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            yield port
