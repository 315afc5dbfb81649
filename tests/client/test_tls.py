"""TLS and mutual TLS with real certificates, over both wires; what is not trusted is not talked to."""

from __future__ import annotations

import ssl
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]  # grpcio ships no type information
import numpy as np
import pytest

from coin_export.client import AfterGrace, CodedClient, HttpTransport, Limits, OnlyWhenDown, Policy, Source
from coin_export.client.transport import TransportOptions
from coin_export.client.transport_grpc import GrpcTransport
from coin_export.errors import DiscoveryError
from tests.client.fake_http import HttpTriton
from tests.client.fake_triton import PIXELS, FakeTriton, make_group, one_each_of, started

GROUP = make_group()
BATCH = np.ones((1, PIXELS), np.float32)
PATIENT = Policy(OnlyWhenDown(), AfterGrace(at_least_s=30.0))
WIRES = [(FakeTriton, GrpcTransport), (HttpTriton, HttpTransport)]


def openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an authority, and a server and a client certified by it; and an authority that nobody knows."""
    folder = tmp_path_factory.mktemp("certificates")
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    for name in ("ca", "stranger"):
        files = ("-keyout", folder / f"{name}.key", "-out", folder / f"{name}.pem")
        openssl("req", "-x509", *curve, *files, "-days", "2", "-subj", f"/CN={name}")
    extension = folder / "extension"
    extension.write_text("subjectAltName=IP:127.0.0.1\n")
    for name in ("server", "client"):
        request = folder / f"{name}.csr"
        openssl("req", *curve, "-keyout", folder / f"{name}.key", "-out", request, "-subj", f"/CN={name}")
        signed = ("-CA", folder / "ca.pem", "-CAkey", folder / "ca.key", "-CAcreateserial", "-extfile", extension)
        openssl("x509", "-req", "-in", request, *signed, "-out", folder / f"{name}.pem", "-days", "2")
    return folder


def secured(kind: type[FakeTriton], folder: Path, *, mutual: bool) -> list[FakeTriton]:
    servers = one_each_of(kind, GROUP)
    for server in servers:
        server.credentials = _context(folder, mutual) if kind is HttpTriton else _credentials(folder, mutual)
    return servers


def _credentials(folder: Path, mutual: bool) -> Any:
    pair = ((folder / "server.key").read_bytes(), (folder / "server.pem").read_bytes())
    return grpc.ssl_server_credentials(
        [pair], (folder / "ca.pem").read_bytes() if mutual else None, require_client_auth=mutual
    )


def _context(folder: Path, mutual: bool) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    if mutual:
        context.load_verify_locations(folder / "ca.pem")
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def trusting(folder: Path, authority: str = "ca", *, identified: bool = False) -> TransportOptions:
    options = TransportOptions(
        ssl=True, root_certificates=str(folder / f"{authority}.pem"), headers={"authorization": "Bearer secret"}
    )
    if not identified:
        return options
    return replace(options, private_key=str(folder / "client.key"), certificate_chain=str(folder / "client.pem"))


def connecting(addresses: list[str], transport: Any, options: TransportOptions) -> CodedClient:
    limits = Limits(discovery_s=60.0, close_s=0.05)
    return CodedClient(addresses, policy=PATIENT, make_transport=transport, transport=options, limits=limits)


@pytest.mark.parametrize("mutual", [False, True], ids=["TLS", "mutual TLS"])
@pytest.mark.parametrize(("kind", "transport"), WIRES)
async def test_an_answer_comes_encrypted_with_the_token_sent(
    kind: type[FakeTriton], transport: Any, mutual: bool, certificates: Path
) -> None:
    servers = secured(kind, certificates, mutual=mutual)
    options = trusting(certificates, identified=mutual)
    async with started(*servers) as addresses, connecting(addresses, transport, options) as client:
        assert (await client.infer({"input": BATCH}))["a"].source is Source.DIRECT
        assert servers[0].headers["authorization"] == "Bearer secret"


@pytest.mark.parametrize(("kind", "transport"), WIRES)
async def test_a_server_of_an_unknown_authority_is_not_talked_to(
    kind: type[FakeTriton], transport: Any, certificates: Path
) -> None:
    servers = secured(kind, certificates, mutual=False)
    async with started(*servers) as addresses:
        with pytest.raises(DiscoveryError, match=r"(?i)certificate"):
            await connecting(addresses, transport, trusting(certificates, "stranger")).connect()
        with pytest.raises(DiscoveryError, match="none of the 3 servers"):
            await connecting(addresses, transport, TransportOptions()).connect()


@pytest.mark.parametrize(("kind", "transport"), WIRES)
async def test_a_client_without_a_certificate_is_turned_away_by_a_server_that_wants_one(
    kind: type[FakeTriton], transport: Any, certificates: Path
) -> None:
    servers = secured(kind, certificates, mutual=True)
    async with started(*servers) as addresses:
        with pytest.raises(DiscoveryError, match="none of the 3 servers"):
            await connecting(addresses, transport, trusting(certificates)).connect()
    assert sum(server.metadata_calls for server in servers) == 0
