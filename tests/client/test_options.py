"""What travels with a request, as the servers see it, over both wires."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from coin_export.client import (
    AfterGrace,
    AtOnce,
    CodedClient,
    HttpTransport,
    OnlyWhenDown,
    Policy,
    RequestOptions,
    Source,
    SyncCodedClient,
)
from coin_export.client.transport_grpc import GrpcTransport
from coin_export.errors import RequestError
from tests.client.fake_http import HttpTriton
from tests.client.fake_triton import PIXELS, FakeTriton, aborting, make_group, one_each, one_each_of, started
from tests.client.test_sync import serving

GROUP = make_group()
BATCH = np.ones((1, PIXELS), np.float32)
EVERYBODY = Policy(AtOnce(), AfterGrace(at_least_s=30.0))
WIRES = [(FakeTriton, GrpcTransport), (HttpTriton, HttpTransport)]


def parameters_of(server: FakeTriton) -> dict[str, Any]:
    """The parameters of a server's last inference request, but for those of tritonclient's own."""
    parameters = server.request.parameters.items()
    found = {name: getattr(value, value.WhichOneof("parameter_choice")) for name, value in parameters}
    return {name: value for name, value in found.items() if name != "binary_data_output"}


@pytest.mark.parametrize(("kind", "transport"), WIRES)
async def test_each_model_gets_the_common_parameters_and_its_own(kind: type[FakeTriton], transport: Any) -> None:
    servers = one_each_of(kind, GROUP)
    own: dict[str, dict[str, Any]] = {"a": {"threshold": 0.5, "mode": "fast"}, "coded_0": {"seed": 7}}
    options: dict[str, Any] = {"policy": EVERYBODY, "make_transport": transport}
    async with started(*servers) as addresses, CodedClient(addresses, **options) as client:
        await client.infer({"input": BATCH}, parameters={"mode": "exact", "flag": True}, parameters_of=own)
    assert parameters_of(servers[0]) == {"mode": "fast", "flag": True, "threshold": 0.5}
    assert parameters_of(servers[1]) == {"mode": "exact", "flag": True}
    assert parameters_of(servers[2]) == {"mode": "exact", "flag": True, "seed": 7}


@pytest.mark.parametrize(("kind", "transport"), WIRES)
async def test_the_timeout_is_what_is_left_of_the_deadline_when_a_call_is_sent(
    kind: type[FakeTriton], transport: Any
) -> None:
    servers = one_each_of(kind, GROUP)
    servers[0].reply, servers[0].delay_s = aborting("INTERNAL", "out of memory"), 0.2
    options: dict[str, Any] = {"policy": Policy(OnlyWhenDown()), "make_transport": transport}
    async with started(*servers) as addresses, CodedClient(addresses, **options) as client:
        await client.infer({"input": BATCH}, deadline=60.0, timeout="deadline")
    first, helper = parameters_of(servers[0])["timeout"], parameters_of(servers[2])["timeout"]
    assert helper <= first - 200_000 and first <= 60_000_000
    assert helper > 0 and not any(server.had_deadline for server in servers)


def test_a_call_has_at_least_a_microsecond_left_and_other_options_stay_as_they_are() -> None:
    plain = RequestOptions("r7", 1, 5000, {"x-tenant": "t"}, {"flag": True})
    assert plain.of_call("a", 1.0) is plain
    until = RequestOptions("r7", 1, "deadline", {"x-tenant": "t"}, {"flag": True})
    assert until.of_call("a", 0.25) == RequestOptions("r7", 1, 250_000, {"x-tenant": "t"}, {"flag": True})
    assert until.of_call("a", -1.0).timeout == 1, "zero would mean none"
    assert until.of_call("a", 1e300).timeout == 2**63 - 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"parameters_of": {"z": {"flag": True}}},
            r"parameters_of names \['z'\]; the models are \['a', 'b',",
        ),
        ({"parameters_of": {"a": {"priority": 1}}}, "parameter 'priority' is reserved"),
        ({"parameters_of": {"a": {"list": [1]}}}, "parameter 'list' is a list"),
        ({"timeout": "deadline"}, "there is no deadline"),
        ({"timeout": "deadline", "deadline": math.inf}, "there is no deadline; give a finite one"),
        ({"timeout": "soon", "deadline": 1.0}, "timeout is 'soon'"),
        ({"timeout": -1}, "timeout is -1"),
        ({"request_id": "\ud800"}, "request_id is .*; give a text that can be encoded"),
        ({"parameters": {"text": "\ud800"}}, "parameter 'text' cannot be encoded"),
        ({"headers": {"x-tenant": "one\ntwo"}}, "header 'x-tenant': gRPC takes printable ASCII"),
        ({"headers": {"trace-bin": "AAE="}}, "header 'trace-bin': gRPC takes bytes for names that end in '-bin'"),
    ],
)
async def test_what_does_not_fit_is_refused_before_anything_is_sent(options: dict[str, Any], message: str) -> None:
    servers = one_each(GROUP)
    async with started(*servers) as addresses, CodedClient(addresses, policy=EVERYBODY) as client:
        for ask in (client.infer, client.infer_mean):
            with pytest.raises(RequestError, match=message):
                await ask({"input": BATCH}, **options)
    assert sum(server.asked for server in servers) == 0


@pytest.mark.parametrize(("kind", "transport"), WIRES)
async def test_integers_are_refused_that_have_no_room_on_the_wire_and_all_others_arrive(
    kind: type[FakeTriton], transport: Any
) -> None:
    too_large: list[dict[str, Any]] = [
        {"parameters": {"trace": 2**63}},
        {"parameters": {"trace": -(2**63) - 1}},
        {"parameters_of": {"a": {"trace": 2**63}}},
        {"timeout": 2**63},
        {"priority": 2**64},
    ]
    servers = one_each_of(kind, GROUP)
    options: dict[str, Any] = {"policy": EVERYBODY, "make_transport": transport}
    async with started(*servers) as addresses, CodedClient(addresses, **options) as client:
        for wrong in too_large:
            with pytest.raises(RequestError):
                await client.infer({"input": BATCH}, **wrong)
        ends = {"low": -(2**63), "high": 2**63 - 1}
        answers = await client.infer({"input": BATCH}, parameters=ends, timeout=2**63 - 1, priority=2**64 - 1)
    assert {answer.source for answer in answers.values()} == {Source.DIRECT}, "no server came to count as down"
    assert parameters_of(servers[0]) == {**ends, "timeout": 2**63 - 1, "priority": 2**64 - 1}
    assert [server.asked for server in servers] == [1, 1, 1]


@pytest.mark.parametrize(("kind", "transport"), WIRES)
def test_the_synchronous_face_sends_the_same(kind: type[FakeTriton], transport: Any) -> None:
    with (
        serving(lambda: one_each_of(kind, GROUP)) as (servers, addresses),
        SyncCodedClient(addresses, policy=EVERYBODY, make_transport=transport) as client,
    ):
        options: dict[str, Any] = {"request_id": "r7", "priority": 2, "headers": {"x-tenant": "t"}}
        client.infer({"input": BATCH}, deadline=60.0, timeout="deadline", parameters_of={"a": {"seed": 7}}, **options)
        found = parameters_of(servers[0])
        assert found["seed"] == 7 and found["priority"] == 2 and 0 < found["timeout"] <= 60_000_000
        assert servers[0].request.id == "r7" and servers[0].headers["x-tenant"] == "t"
        assert "seed" not in parameters_of(servers[1])
        # To a single original, without any coding, through the same client.
        assert list(client.infer({"input": BATCH}, wanted=["b"], coded=False)) == ["b"]
        assert [server.asked for server in servers[:2]] == [1, 2]
        assert servers[2].asked <= 1, "by the first request, whose answer did not wait for it"
