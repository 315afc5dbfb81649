from __future__ import annotations

import http.client
import os
import signal
import socket
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from coin_export.errors import (
    PortInUseError,
    RepositoryError,
    ServeError,
    ServerStartError,
    TritonNotFoundError,
)
from coin_export.serve import embedded
from coin_export.serve.embedded import EmbeddedServer, start_all, stop_all
from coin_export.serve.health import is_ready
from coin_export.serve.ports import Address, Ports, choose_ports
from tests.serve.conftest import eventually, wait_for_a_folder

pytestmark = pytest.mark.e2e


def get(address: str, path: str, timeout: float = 10.0) -> bytes:
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
        f"http://{address}{path}", None, timeout
    ) as r:
        content: bytes = r.read()
        return content


def test_a_stopped_server_leaves_nothing(
    repository: Path, temporary: Path, remains_of: Callable[[int], Any], environments_left: Callable[[], list[Path]]
) -> None:
    with EmbeddedServer(repository) as server:
        remains = remains_of(server.pid)
        assert server.is_alive()
        assert remains.stubs and remains.shared_memory() and list(temporary.iterdir())
        assert b"nv_inference" in get(server.metrics_address, "/metrics")
        assert len({server.grpc_address, server.http_address, server.metrics_address}) == 3
        assert "Started GRPCInferenceService" in server.log_path.read_text()
        sockets = psutil.Process(server.pid).net_connections()
        listening = {item.laddr.ip.removeprefix("::ffff:") for item in sockets if item.status == "LISTEN"}
        assert listening == {"127.0.0.1"}
    assert not server.is_alive()
    assert not remains.left() and not list(temporary.iterdir()) and not environments_left()
    server.stop()
    with pytest.raises(ServeError, match="make a new EmbeddedServer"):
        server.start()
    with pytest.raises(ServeError, match="no longer running"):
        server.suspend()


def test_a_killed_server_leaves_nothing(
    server: EmbeddedServer,
    temporary: Path,
    remains_of: Callable[[int], Any],
    environments_left: Callable[[], list[Path]],
) -> None:
    remains = remains_of(server.pid)
    assert remains.stubs
    server.kill()
    assert not server.is_alive()
    assert not remains.left() and not list(temporary.iterdir()) and not environments_left()
    with pytest.raises(ServeError, match="no longer running"):
        server.kill()


def test_a_server_killed_by_somebody_else_leaves_nothing(
    server: EmbeddedServer, temporary: Path, remains_of: Callable[[int], Any]
) -> None:
    remains = remains_of(server.pid)
    os.kill(server.pid, signal.SIGKILL)
    remains.wait_gone()
    assert not server.is_alive() and not list(temporary.iterdir())


def test_a_successor_takes_the_place_of_a_server_that_has_ended(repository: Path) -> None:
    with EmbeddedServer(repository) as server:
        server.kill()
        with server.successor() as successor:
            assert successor.is_alive() and not server.is_alive()
            for address in ("grpc_address", "http_address", "metrics_address"):
                assert getattr(successor, address) == getattr(server, address)
            assert b"nv_inference" in get(successor.metrics_address, "/metrics")


def test_a_suspended_server_hangs_and_goes_on(server: EmbeddedServer, remains_of: Callable[[int], Any]) -> None:
    remains = remains_of(server.pid)
    server.suspend()
    assert server.is_alive()
    processes = [psutil.Process(server.pid), *remains.stubs]
    assert eventually(lambda: all(process.status() == psutil.STATUS_STOPPED for process in processes))
    with pytest.raises(TimeoutError):
        get(server.http_address, "/v2/health/ready", timeout=0.2)
    server.resume()
    assert get(server.http_address, "/v2/models/good/ready") == b""


def test_a_suspended_server_can_be_stopped(repository: Path, temporary: Path, remains_of: Callable[[int], Any]) -> None:
    server = EmbeddedServer(repository)
    server.start()
    remains = remains_of(server.pid)
    server.suspend()
    server.stop()
    assert not remains.left() and not list(temporary.iterdir())


def test_servers_side_by_side_do_not_meet(repository: Path, remains_of: Callable[[int], Any]) -> None:
    servers = [EmbeddedServer(repository) for _ in range(3)]
    start_all(servers)
    try:
        remains = [remains_of(server.pid) for server in servers]
        assert len({item.server_id for item in remains}) == 3
        assert all(item.shared_memory() for item in remains)
        servers[0].kill()
        for server in servers[1:]:
            assert server.is_alive()
            assert get(server.http_address, "/v2/models/good/ready") == b""
    finally:
        stop_all(servers)
    assert not any(item.left() for item in remains)


def test_if_one_server_fails_none_is_left(repository: Path, temporary: Path) -> None:
    with taken_port() as port:
        servers = [EmbeddedServer(repository), EmbeddedServer(repository, grpc_port=port)]
        with pytest.raises(PortInUseError, match=str(port)):
            start_all(servers)
    assert not any(server.is_alive() for server in servers) and not list(temporary.iterdir())


@contextmanager
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_a_port_lost_to_another_process_is_replaced(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with taken_port() as port:
        choices = []

        def choose_badly_first(host: str, requested: Ports) -> Address:
            choice = choose_ports(host, requested)
            choices.append(choice)
            return Address(host, choice.http, port, choice.metrics) if len(choices) == 1 else choice

        monkeypatch.setattr(embedded, "choose_ports", choose_badly_first)
        with EmbeddedServer(repository, models=[]) as server:
            assert server.grpc_address == f"127.0.0.1:{choices[1].grpc}"
            server.kill()


def test_a_broken_repository_says_which_model_and_why(
    tmp_path: Path, temporary: Path, make_repository: Callable[[Path], Any]
) -> None:
    repository = make_repository(tmp_path / "models")
    repository.add("good")
    repository.add("broken", replace=("dims: 4", "dims: 5"))
    with pytest.raises(ServerStartError) as caught, EmbeddedServer(repository.path, log_path=tmp_path / "a b" / "log"):
        pass
    message = str(caught.value)
    assert "'broken'" in message and "[-1, 5]" in message and str(tmp_path / "a b" / "log") in message
    assert "'good'" not in message and len(message.splitlines()) < 5
    assert "failed to load" in (tmp_path / "a b" / "log").read_text()
    assert not list(temporary.iterdir())


def test_paths_that_mean_something_to_a_shell(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make_repository: Callable[[Path], Any],
    remains_of: Callable[[int], Any],
) -> None:
    repository = make_repository(tmp_path / "models; exit 1 & 'of mine'")
    repository.add("good")
    temporary = tmp_path / "temporary files"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    with EmbeddedServer(repository.path) as server:
        folder = server.log_path.parent
        remains = remains_of(server.pid)
        server.kill()
    assert folder.parent == Path("/tmp") and not folder.exists() and not remains.left()


def test_only_chosen_models_are_served(tmp_path: Path, make_repository: Callable[[Path], Any]) -> None:
    repository = make_repository(tmp_path / "models")
    repository.add("good")
    repository.add("broken", replace=("dims: 4", "dims: 5"))
    with EmbeddedServer(repository.path, models=["good"]) as server:
        assert get(server.http_address, "/v2/models/good/ready") == b""
        server.kill()


def test_repositories_that_cannot_be_served(repository: Path) -> None:
    with pytest.raises(RepositoryError, match="is not a folder"):
        EmbeddedServer(repository / "nowhere").start()
    with pytest.raises(RepositoryError, match=r"has no model \['bad'\]; it has \['good'\]"):
        EmbeddedServer(repository, models=["good", "bad"]).start()


def test_a_server_that_is_not_ready_in_time_is_stopped(repository: Path, temporary: Path) -> None:
    server = EmbeddedServer(repository, ready_timeout_s=0.0)
    with pytest.raises(ServerStartError, match="was not ready after 0 s"):
        server.start()
    assert not server.is_alive() and not list(temporary.iterdir())


def test_a_server_stopped_while_it_starts_says_so(repository: Path, temporary: Path) -> None:
    server = EmbeddedServer(repository)
    errors: list[BaseException] = []

    def start() -> None:
        try:
            server.start()
        except ServerStartError as error:
            errors.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    wait_for_a_folder(temporary)
    server.stop()
    thread.join(30)
    assert not thread.is_alive() and len(errors) == 1 and "was stopped" in str(errors[0])
    assert not server.is_alive() and not list(temporary.iterdir())


def test_no_tritonserver(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COIN_EXPORT_TRITONSERVER", "/no/such/file")
    with pytest.raises(TritonNotFoundError, match="/no/such/file"):
        EmbeddedServer(repository).start()


def test_a_binary_that_is_no_tritonserver(tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binary = tmp_path / "bin" / "tritonserver"
    library = tmp_path / "backends" / "onnxruntime" / "libtriton_onnxruntime.so"
    for file in (binary, library):
        file.parent.mkdir(parents=True)
        file.touch(mode=0o755)
    monkeypatch.setenv("COIN_EXPORT_TRITONSERVER", str(binary))
    with pytest.raises(ServerStartError, match="Exec format error"):
        EmbeddedServer(repository).start()
    binary.write_text("#!/bin/sh\necho no thanks\nexit 7\n")
    with pytest.raises(ServerStartError, match=r"ended with status 7(.|\n)*no thanks"):
        EmbeddedServer(repository).start()


def test_before_the_start_there_is_no_address(repository: Path) -> None:
    server = EmbeddedServer(repository)
    assert not server.is_alive()
    with pytest.raises(ServeError, match="has not been started"):
        _ = server.grpc_address
    server.stop()


def test_an_answer_from_another_server_is_not_ours(server: EmbeddedServer) -> None:
    host, port = server.http_address.split(":")
    connection = http.client.HTTPConnection(host, int(port))
    connection.request("GET", "/v2/health/ready")
    assert connection.getresponse().status == 200
    connection.close()
    address = Address(host, int(port), int(port), int(port))
    assert not is_ready(address, "somebody else", ())
