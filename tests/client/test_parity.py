"""A direct answer reads as tritonclient's own result does, over both wires and through both faces."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http

from coin_export.client import AfterGrace, CodedClient, HttpTransport, OnlyWhenDown, Policy, Source, SyncCodedClient
from coin_export.client.transport_grpc import GrpcTransport
from coin_export.code.manifest import Group
from tests.client.fake_http import HttpTriton
from tests.client.fake_triton import PIXELS, FakeTriton, make_group, one_each_of, renamed, started
from tests.client.test_sync import serving

GROUP = make_group()
BATCH = np.arange(2 * PIXELS, dtype=np.float32).reshape(2, PIXELS)
PATIENT = Policy(OnlyWhenDown(), AfterGrace(at_least_s=30.0))
WIRES = [
    (FakeTriton, GrpcTransport, tritonclient.grpc),
    (HttpTriton, HttpTransport, tritonclient.http),
]

# What code does with a result; each as it is written for tritonclient's client of this wire.
READINGS: dict[type[FakeTriton], list[Callable[[Any], Any]]] = {
    FakeTriton: [
        lambda result: result.as_numpy("nothing"),
        lambda result: result.get_output("nothing"),
        lambda result: result.get_output("nothing", as_json=True),
        lambda result: (result.get_output("logits").datatype, list(result.get_output("logits").shape)),
        lambda result: result.get_response().model_version,
        lambda result: result.get_response().id,
        lambda result: dict(result.get_response().parameters),
        lambda result: [(o.name, o.datatype, tuple(o.shape)) for o in result.get_response().outputs],
        lambda result: [output["name"] for output in result.get_response(as_json=True)["outputs"]],
        lambda result: [list(map(int, output["shape"])) for output in result.get_response(as_json=True)["outputs"]],
    ],
    HttpTriton: [
        lambda result: result.as_numpy("nothing"),
        lambda result: result.get_output("nothing"),
        lambda result: dict(result.get_output("logits")),
        lambda result: result.get_output("logits")["parameters"]["binary_data_size"],
        lambda result: result.get_response()["model_version"],
        lambda result: result.get_response()["outputs"][0]["shape"],
        lambda result: [output["name"] for output in result.get_response()["outputs"]],
        lambda result: result.get_response().get("error"),
    ],
}


@pytest.mark.parametrize(("kind", "transport", "triton"), WIRES)
def test_numbers_and_response_are_those_of_tritonclient(kind: type[FakeTriton], transport: Any, triton: Any) -> None:
    with serving(lambda: one_each_of(kind, GROUP)) as (_, addresses):
        with SyncCodedClient(addresses, policy=PATIENT, make_transport=transport) as client:
            answer = client.infer({"input": BATCH})["a"]
        with triton.InferenceServerClient(addresses[0]) as plain:
            tensor = triton.InferInput("input", list(BATCH.shape), "FP32")
            tensor.set_data_from_numpy(BATCH)
            result = plain.infer("a", [tensor])
    assert answer.source is Source.DIRECT
    np.testing.assert_array_equal(answer.as_numpy("logits"), result.as_numpy("logits"))
    assert answer.as_numpy("logits").dtype == result.as_numpy("logits").dtype
    for read in READINGS[kind]:
        assert read(answer) == read(result)


def _renamed_members(group: Group) -> Group:
    return replace(group, members=tuple(replace(member, name=f"letters_{member.name}") for member in group.members))


@pytest.mark.parametrize(("kind", "transport", "triton"), WIRES)
async def test_one_server_with_two_groups_and_replicas_of_their_models(
    kind: type[FakeTriton], transport: Any, triton: Any
) -> None:
    other = _renamed_members(renamed(make_group(salt="other"), "letters"))
    servers = [kind(GROUP, [member.name for member in GROUP.members]) for _ in range(2)]
    for server in servers:  # models of the other group beside ours, under names of their own
        for member in other.members:
            server.members.append(member.name)
            server.configs[member.name] = other.to_json(member.name)
    async with started(*servers) as addresses:
        async with CodedClient(addresses, group="digits", make_transport=transport, policy=PATIENT) as client:
            assert client.servers == {name: tuple(addresses) for name in ("a", "b", "coded_0")}
            assert (await client.infer({"input": BATCH}))["a"].source is Source.DIRECT
        async with CodedClient(addresses, group="letters", make_transport=transport, policy=PATIENT) as client:
            assert list(client.servers) == ["letters_a", "letters_b", "letters_coded_0"]
