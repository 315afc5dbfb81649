from __future__ import annotations

import socket

import pytest

from coin_export.errors import PortInUseError
from coin_export.serve.ports import Ports, choose_ports


def test_free_ports_differ_and_can_be_bound() -> None:
    address = choose_ports("127.0.0.1", Ports())
    assert len({address.http, address.grpc, address.metrics}) == 3
    for port in (address.http, address.grpc, address.metrics):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", port))


def test_requested_ports_are_kept() -> None:
    free = choose_ports("127.0.0.1", Ports())
    assert choose_ports("127.0.0.1", Ports(free.http, free.grpc, free.metrics)) == free


@pytest.mark.parametrize("field", ["http", "grpc", "metrics"])
def test_a_taken_port_is_named(field: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortInUseError, match=f"port {port} of 127.0.0.1 .* choose another"):
            choose_ports("127.0.0.1", Ports(**{field: port}))


def test_one_port_cannot_serve_two_protocols() -> None:
    port = choose_ports("127.0.0.1", Ports()).http
    with pytest.raises(PortInUseError, match=str(port)):
        choose_ports("127.0.0.1", Ports(http=port, grpc=port))


@pytest.mark.parametrize(("host", "port"), [("192.0.2.1", None), ("127.0.0.1", 70_000)])
def test_impossible_addresses(host: str, port: int | None) -> None:
    with pytest.raises(PortInUseError, match=host):
        choose_ports(host, Ports(http=port))
