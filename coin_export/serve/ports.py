"""Ports for one server. A free port can be lost to another process before the server binds it; see `embedded`."""

from __future__ import annotations

import contextlib
import socket
from dataclasses import dataclass

from coin_export.errors import PortInUseError


@dataclass(frozen=True)
class Ports:
    """The three ports of a server; None, in a request, stands for any free port."""

    http: int | None = None
    grpc: int | None = None
    metrics: int | None = None


@dataclass(frozen=True)
class Address:
    """Where a server listens."""

    host: str
    http: int
    grpc: int
    metrics: int


def choose_ports(host: str, requested: Ports) -> Address:
    """Check the requested ports and find free ones for the others.

    Raises:
        PortInUseError: if a requested port is taken, or ``host`` is no address of this machine.
    """
    with contextlib.ExitStack() as held:
        # All three are held until all are known, so that they differ.
        chosen = [
            _bound_port(held, host, port, kind)
            for kind, port in (("HTTP", requested.http), ("gRPC", requested.grpc), ("metrics", requested.metrics))
        ]
    return Address(host, *chosen)


def _bound_port(held: contextlib.ExitStack, host: str, port: int | None, kind: str) -> int:
    probe = held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
    if port is not None:
        # As the server does: a port whose last connections still linger is not taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        probe.bind((host, port or 0))
        probe.listen()
    except (OSError, OverflowError) as error:
        wanted = "a free port" if port is None else f"port {port}"
        raise PortInUseError(
            f"{wanted} of {host} cannot be used for {kind}: {error}; choose another port, or leave it out to have a "
            "free one chosen"
        ) from error
    number: int = probe.getsockname()[1]
    return number
