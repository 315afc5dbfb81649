from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from coin_export.client import AfterGrace, CodedClient, HttpTransport, OnlyWhenDown, Policy, Source
from coin_export.client.transport_grpc import GrpcTransport
from coin_export.errors import DiscoveryError, UserError
from tests.client.fake_http import HttpTriton
from tests.client.fake_triton import PIXELS, FakeTriton, ask_until, make_group, one_each_of, started

GROUP = make_group()
BATCH = np.ones((1, PIXELS), np.float32)
PATIENT = Policy(OnlyWhenDown(), AfterGrace(at_least_s=30.0))
WIRES = [(FakeTriton, GrpcTransport), (HttpTriton, HttpTransport)]


def servers_of(kind: type[FakeTriton]) -> list[FakeTriton]:
    servers = one_each_of(kind, GROUP)
    servers[0].model_versions = {"a": ("9", "10", "2")}
    return servers


@pytest.mark.parametrize(("kind", "transport"), WIRES)
async def test_a_version_that_is_named_is_asked_for_and_the_default_of_the_others(
    kind: type[FakeTriton], transport: Any
) -> None:
    servers = servers_of(kind)
    options: dict[str, Any] = {"policy": PATIENT, "make_transport": transport, "model_versions": {"a": "2"}}
    async with started(*servers) as addresses, CodedClient(addresses, **options) as client:
        answers = await client.infer({"input": BATCH})
        assert [answer.model_version for answer in answers.values()] == ["2", "1"]
        assert servers[0].asked_versions == ["2"] and servers[1].asked_versions == [""]


@pytest.mark.parametrize(("kind", "transport"), WIRES)
async def test_the_default_is_the_newest_version_and_another_one_s_answer_is_an_erasure(
    kind: type[FakeTriton], transport: Any
) -> None:
    servers = servers_of(kind)
    options: dict[str, Any] = {"policy": PATIENT, "make_transport": transport}
    async with started(*servers) as addresses, CodedClient(addresses, **options) as client:
        assert (await client.infer({"input": BATCH}))["a"].model_version == "10"
        servers[0].model_versions = {"a": ("10", "11")}
        assert (await client.infer({"input": BATCH}))["a"].source is Source.DECODED
        await ask_until(client, lambda answers: answers["a"].model_version == "11")
        assert servers[0].metadata_calls == 2, "looked up once more, at once"


async def test_a_replica_without_the_version_is_not_asked() -> None:
    servers = [*servers_of(FakeTriton), FakeTriton(GROUP, ["a"])]
    async with started(*servers) as addresses, CodedClient(addresses, model_versions={"a": "2"}) as client:
        assert client.servers["a"] == (addresses[0],)


async def test_a_version_that_no_server_has_is_an_error_that_lists_those_there_are() -> None:
    async with started(*servers_of(FakeTriton)) as addresses:
        with pytest.raises(DiscoveryError, match=r"version '3' of model 'a' is served by none .*: 9, 10, 2"):
            await CodedClient(addresses, model_versions={"a": "3"}).connect()
        with pytest.raises(DiscoveryError, match=r"model_versions is .*the models of group 'digits' are \['a', 'b'"):
            await CodedClient(addresses, model_versions={"z": "3"}).connect()


@pytest.mark.parametrize("version", [2, "two", ""])
def test_a_version_is_a_number_in_the_form_of_a_text(version: Any) -> None:
    with pytest.raises(UserError, match=r"model_versions\['a'\] is .*as text"):
        CodedClient(["127.0.0.1:1"], model_versions={"a": version})
