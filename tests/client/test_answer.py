from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from coin_export.client import AfterGrace, Answer, CodedClient, OutputTensor, Policy, Response, Source, TransportOptions
from coin_export.client.answer import Outputs
from coin_export.errors import RequestError
from tests.client.fake_triton import CLASSES, PIXELS, aborting, make_group, one_each, started, weights_of

GROUP = make_group()
BATCH = np.ones((2, PIXELS), np.float32)
PATIENT = Policy(decode=AfterGrace(at_least_s=30.0))


async def test_direct_and_decoded_answers_read_like_tritonclients() -> None:
    servers = one_each(GROUP)
    servers[1].reply = aborting("INTERNAL", "out of memory")
    async with started(*servers) as addresses, CodedClient(addresses, policy=PATIENT) as client:
        answers = await client.infer({"input": BATCH}, request_id="r7")
        logits = OutputTensor("logits", "FP32", (2, CLASSES), {"binary_data_size": 4 * 2 * CLASSES})
        assert answers["b"].source is Source.DECODED
        assert answers["a"].get_response() == Response("a", "1", "r7", (logits,))
        assert answers["b"].get_response() == Response("b", "", "r7", (logits,))
        for answer in answers.values():
            assert answer.get_output("logits") == logits and answer.get_output("logits", as_json=True) == dict(logits)
            assert answer.get_output("nothing") is None and answer.get_output("nothing", as_json=True) is None
            assert answer.as_numpy("nothing") is None


async def test_a_decoded_answer_has_its_own_models_number_of_classes() -> None:
    a, b, coded = GROUP.members
    servers = one_each(replace(GROUP, members=(a, replace(b, output_shapes=((CLASSES - 1,),)), coded)))
    servers[1].reply = aborting("INTERNAL", "out of memory")
    async with started(*servers) as addresses, CodedClient(addresses, policy=PATIENT) as client:
        answers = await client.infer({"input": BATCH})
    whole = BATCH @ weights_of(GROUP, "b")
    np.testing.assert_allclose(answers["b"].outputs["logits"], whole[:, : CLASSES - 1], rtol=1e-4, atol=1e-5)
    assert answers["a"].outputs["logits"].shape == (2, CLASSES)


def test_a_response_reads_as_over_http_too() -> None:
    outputs: Outputs = {"scores": np.zeros((1, 3), np.float16), "boxes": np.zeros((1, 2, 4), np.float64)}
    answer = Answer("a", outputs, Source.DIRECT, 0.0, None, 0.1, "4", "r7")
    expected = {
        "model_name": "a",
        "model_version": "4",
        "id": "r7",
        "outputs": [
            {"name": "scores", "datatype": "FP16", "shape": [1, 3], "parameters": {"binary_data_size": 6}},
            {"name": "boxes", "datatype": "FP64", "shape": [1, 2, 4], "parameters": {"binary_data_size": 64}},
        ],
        "parameters": {},
    }
    response = answer.get_response()
    assert answer.get_response(as_json=True) == dict(response) == expected
    assert response["outputs"][1]["shape"] == [1, 2, 4] and response.outputs[1]["datatype"] == "FP64"
    assert response.get("id") == "r7" and "model" not in response


async def test_options_of_a_request_reach_every_member_that_is_asked() -> None:
    servers = one_each(GROUP)
    options = TransportOptions(headers={"authorization": "Bearer a", "x-tenant": "general"})
    async with (
        started(*servers) as addresses,
        CodedClient(addresses, policy=PATIENT, transport=options) as client,
    ):
        await client.infer(
            {"input": BATCH},
            request_id="r7",
            priority=2,
            timeout=50_000,
            headers={"x-tenant": "special"},
            parameters={"text": "x", "flag": True, "count": 3, "ratio": 0.5},
        )
        for server in servers[:2]:
            parameters = server.request.parameters
            assert server.request.id == "r7"
            assert parameters["priority"].uint64_param == 2 and parameters["timeout"].int64_param == 50_000
            assert parameters["text"].string_param == "x" and parameters["flag"].bool_param is True
            assert parameters["count"].int64_param == 3 and parameters["ratio"].double_param == 0.5
            assert server.headers["authorization"] == "Bearer a" and server.headers["x-tenant"] == "special"
        await client.infer({"input": BATCH})
        assert servers[0].request.id == "" and not servers[0].request.parameters
        assert servers[0].headers["x-tenant"] == "general"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"request_id": 7}, "request_id is 7; give a text"),
        ({"priority": -1}, "priority is -1"),
        ({"priority": True}, "priority is True"),
        ({"timeout": 0.05}, "timeout is 0.05; give whole microseconds"),
        ({"timeout": -1}, "timeout is -1"),
        ({"headers": {"X-Tenant": "a"}}, "header 'X-Tenant'"),
        ({"parameters": {"priority": 1}}, "parameter 'priority' is reserved"),
        ({"parameters": {"triton_x": 1}}, "parameter 'triton_x' is reserved"),
        ({"parameters": {"list": [1]}}, "parameter 'list' is a list"),
    ],
)
async def test_wrong_options_are_refused_before_anything_is_sent(options: dict[str, Any], message: str) -> None:
    servers = one_each(GROUP)
    async with started(*servers) as addresses, CodedClient(addresses) as client:
        with pytest.raises(RequestError, match=message):
            await client.infer({"input": BATCH}, **options)
        assert [server.asked for server in servers] == [0, 0, 0]
