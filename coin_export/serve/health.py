"""Is a server up? Asked over HTTP, without a client library and without proxies."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Sequence
from urllib.parse import quote

from coin_export.serve.ports import Address

_TIMEOUT_S = 5.0


def is_ready(address: Address, server_id: str, models: Sequence[str]) -> bool:
    """Tell whether the server with this id, and no other on its port, serves all of its models on all its ports."""
    try:
        _, metadata = _get(address, "/v2")
        if json.loads(metadata).get("name") != server_id:
            return False
        paths = ["/v2/health/ready", *(f"/v2/models/{quote(model, safe='')}/ready" for model in models)]
        return all(_get(address, path)[0] == 200 for path in paths) and _accepts(address)
    except (OSError, http.client.HTTPException, ValueError):
        return False


def _get(address: Address, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(address.host, address.http, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def _accepts(address: Address) -> bool:
    for port in (address.grpc, address.metrics):
        socket.create_connection((address.host, port), timeout=_TIMEOUT_S).close()
    return True
