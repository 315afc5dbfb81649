from __future__ import annotations

import asyncio
import logging
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from coin_export.client import (
    AfterDelay,
    AfterGrace,
    AfterQuantile,
    AsSoonAsDecodable,
    AtDeadline,
    CodedClient,
    Limits,
    OnlyWhenDown,
    Policy,
    Source,
    TransportOptions,
)
from coin_export.client.transport import Reply as TransportReply
from coin_export.client.transport_grpc import GrpcTransport
from coin_export.code.linear import LinearCode
from coin_export.errors import ClientError, RequestError, UndecodableError
from tests.client.fake_triton import (
    CLASSES,
    PIXELS,
    FakeTriton,
    Reply,
    aborting,
    ask_until,
    make_group,
    one_each,
    replying,
    response_of,
    started,
    weights_of,
)

GROUP = make_group()
BATCH = np.arange(2 * PIXELS, dtype=np.float32).reshape(2, PIXELS)
QUICK = Limits(close_s=0.05, lookup_interval_s=0.01)
PATIENT = Policy(decode=AfterGrace(at_least_s=30.0))


def truth(member: str) -> npt.NDArray[np.float32]:
    return BATCH @ weights_of(GROUP, member)


async def test_healthy_servers_answer_directly() -> None:
    async with started(*one_each(GROUP)) as addresses, CodedClient(addresses, policy=PATIENT) as client:
        answers = await client.infer({"input": BATCH})
        assert list(answers) == ["a", "b"] and len(answers) == 2
        for name, answer in answers.items():
            assert answer.model == name and answer.source is Source.DIRECT
            assert answer.noise_gain == 0 and answer.quality is None and answer.latency_s > 0
            np.testing.assert_array_equal(answer.as_numpy("logits"), truth(name))
        assert "a: direct" in repr(answers)


async def test_coded_models_are_not_asked_while_all_is_well() -> None:
    servers = one_each(GROUP)
    async with (
        started(*servers) as addresses,
        CodedClient(addresses, policy=Policy(AfterQuantile(start_s=60))) as client,
    ):
        for _ in range(5):
            await client.infer({"input": BATCH})
        assert [server.asked for server in servers] == [5, 5, 0]


async def test_a_straggler_is_decoded_with_the_quality_measured_at_build() -> None:
    servers = one_each(GROUP)
    servers[1].hold.clear()
    async with started(*servers) as addresses, CodedClient(addresses) as client:
        answers = await client.infer({"input": BATCH})
        assert answers["a"].source is Source.DIRECT
        decoded = answers["b"]
        assert decoded.source is Source.DECODED and decoded.noise_gain == pytest.approx(2.0)
        assert decoded.quality == GROUP.quality[1]
        assert decoded.outputs["logits"].dtype == np.float32
        np.testing.assert_allclose(decoded.outputs["logits"], truth("b"), rtol=1e-4)
        servers[1].hold.set()


@pytest.mark.parametrize(
    "reply",
    [
        replying(response_of(np.zeros((1, CLASSES), np.float32))),
        replying(response_of(np.zeros((2, CLASSES + 1), np.float32))),
        replying(response_of(np.zeros((2, CLASSES)), "FP64")),
        replying(response_of(np.full((2, CLASSES), np.nan, np.float32))),
        replying(response_of(np.full((2, CLASSES), np.inf, np.float32))),
        replying(response_of(np.zeros((2, CLASSES), np.float32), name="other")),
        replying(response_of(np.zeros(5, np.int8), "NONSENSE")),
        aborting("INTERNAL", "out of memory"),
        aborting("UNAVAILABLE", "the queue is full"),
    ],
)
async def test_an_unusable_answer_counts_as_an_erasure_and_is_decoded_without_grace(reply: Reply) -> None:
    servers = one_each(GROUP)
    servers[0].reply = reply
    async with started(*servers) as addresses, CodedClient(addresses, policy=PATIENT) as client:
        answers = await client.infer({"input": BATCH})
        assert answers["a"].source is Source.DECODED and answers["b"].source is Source.DIRECT
        np.testing.assert_allclose(answers["a"].outputs["logits"], truth("a"), rtol=1e-4)


@pytest.mark.parametrize("content", [b"\x01\x02\x03", bytes(4 * 2 * CLASSES + 4)], ids=["too few", "too many"])
@pytest.mark.parametrize("datatype", ["FP32", "BYTES"])
async def test_a_tensor_whose_bytes_do_not_fit_its_shape_counts_as_an_erasure(content: bytes, datatype: str) -> None:
    servers = one_each(GROUP)
    garbage = response_of(np.zeros((2, CLASSES), np.float32), datatype)
    garbage.raw_output_contents[0] = content
    servers[0].reply = replying(garbage)
    async with started(*servers) as addresses, CodedClient(addresses, policy=PATIENT) as client:
        assert (await client.infer({"input": BATCH}))["a"].source is Source.DECODED


async def test_servers_that_disagree_about_a_free_size_are_not_decoded_together() -> None:
    group = replace(GROUP, outputs=(replace(GROUP.outputs[0], shape=(-1,)),))
    servers = one_each(group)
    servers[0].delay_s = 0.02
    servers[0].reply = replying(response_of(np.zeros((2, CLASSES + 2), np.float32)))
    async with started(*servers) as addresses, CodedClient(addresses, policy=PATIENT) as client:
        answers = await client.infer({"input": BATCH})
        assert answers["a"].source is Source.DECODED
        assert answers["a"].outputs["logits"].shape == (2, CLASSES)


async def test_the_deadline_error_hands_over_what_arrived_and_says_why_the_rest_is_missing() -> None:
    servers = one_each(GROUP)
    servers[1].hold.clear()
    servers[2].reply = aborting("INTERNAL", "out of memory")
    async with started(*servers) as addresses, CodedClient(addresses, limits=QUICK) as client:
        with pytest.raises(UndecodableError, match="the deadline passed") as caught:
            await client.infer({"input": BATCH}, deadline=2.0)
        error = caught.value
        assert set(error.arrived) == {"a"} and set(error.failures) == {"b", "coded_0"}
        np.testing.assert_array_equal(error.arrived["a"].outputs["logits"], truth("a"))
        assert addresses[1] in error.failures["b"] and "no answer after" in error.failures["b"]
        assert "INTERNAL: out of memory" in error.failures["coded_0"] and addresses[2] in error.failures["coded_0"]
        assert error.elapsed_s >= 2.0
        assert addresses[1] in str(error) and "out of memory" in str(error)


async def test_too_many_failures_raise_at_once_although_the_deadline_is_far() -> None:
    servers = one_each(GROUP)
    servers[0].hold.clear()
    for server in servers[1:]:
        server.reply = aborting("INTERNAL", "out of memory")
    async with started(*servers) as addresses, CodedClient(addresses, limits=QUICK) as client:
        with pytest.raises(UndecodableError, match="too many members failed") as caught:
            await client.infer({"input": BATCH}, deadline=3600)
        assert caught.value.arrived == {} and caught.value.elapsed_s < 3600


async def test_a_wanted_original_alone_is_asked_alone_while_the_rest_is_held_back() -> None:
    servers = one_each(GROUP)
    async with started(*servers) as addresses, CodedClient(addresses, policy=Policy(AfterDelay(3600))) as client:
        answers = await client.infer({"input": BATCH}, wanted=["b"])
        assert list(answers) == ["b"] and answers["b"].source is Source.DIRECT
        assert [server.asked for server in servers] == [0, 1, 0]


async def test_two_lost_originals_are_decoded_from_two_coded_models() -> None:
    group = make_group(LinearCode.from_rows([[1, 1, 1], [1, 2, 3]]))
    servers = one_each(group)
    for lost in (0, 2):
        servers[lost].hold.clear()
    async with started(*servers) as addresses, CodedClient(addresses, limits=QUICK) as client:
        answers = await client.infer({"input": BATCH})
        assert [answer.source.value for answer in answers.values()] == ["decoded", "direct", "decoded"]
        for name, answer in answers.items():
            np.testing.assert_allclose(answer.outputs["logits"], BATCH @ weights_of(group, name), rtol=1e-3, atol=1e-3)
            assert (answer.quality is None) or answer.source is Source.DIRECT


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, r"has inputs \[\]; give exactly 'input': float32 of shape \(batch, 4\)"),
        ({"image": BATCH}, r"has inputs \['image'\]"),
        ({"input": BATCH, "more": BATCH}, r"has inputs \['input', 'more'\]"),
        ({"input": BATCH.astype(np.float64)}, r"is float64 of shape \(2, 4\); give float32"),
        ({"input": BATCH.astype(">f4")}, r"is >f4 of shape"),
        ({"input": BATCH[:, :3]}, r"of shape \(2, 3\); give float32 of shape \(batch, 4\)"),
        ({"input": BATCH[0]}, r"of shape \(4,\)"),
        ({"input": np.float32(1)}, "is a float32; give a numpy array"),
        ({"input": BATCH.tolist()}, "is a list; give a numpy array"),
        ({"input": BATCH[:0]}, "batch is empty"),
        ({"input": np.zeros((9, PIXELS), np.float32)}, "batch of 9 is above the servers' max_batch_size of 8"),
    ],
)
async def test_a_wrong_request_is_refused_before_anything_is_sent(inputs: Any, message: str) -> None:
    servers = one_each(GROUP)
    async with started(*servers) as addresses, CodedClient(addresses) as client:
        with pytest.raises(RequestError, match=message):
            await client.infer(inputs)
        assert [server.asked for server in servers] == [0, 0, 0]


async def test_inputs_of_different_batches_are_refused() -> None:
    group = replace(GROUP, inputs=(*GROUP.inputs, replace(GROUP.inputs[0], name="second")))
    async with started(*one_each(group)) as addresses, CodedClient(addresses) as client:
        with pytest.raises(RequestError, match="'second' has a batch of 1, another input one of 2"):
            await client.infer({"input": BATCH, "second": BATCH[:1]})


@pytest.mark.parametrize("deadline", [0, -1.0, float("nan")])
async def test_a_deadline_that_is_no_positive_number_is_refused(deadline: float) -> None:
    async with started(*one_each(GROUP)) as addresses, CodedClient(addresses) as client:
        with pytest.raises(RequestError, match="give a positive number of seconds"):
            await client.infer({"input": BATCH}, deadline=deadline)


@pytest.mark.parametrize("wanted", [[], "a", ["a", "coded_0"], ["z"]])
async def test_only_originals_can_be_wanted(wanted: Any) -> None:
    async with started(*one_each(GROUP)) as addresses, CodedClient(addresses) as client:
        with pytest.raises(RequestError, match=r"give a list of one or more of \['a', 'b'\]"):
            await client.infer({"input": BATCH}, wanted=wanted)


async def test_a_client_that_is_not_connected_says_so() -> None:
    client = CodedClient(["127.0.0.1:1"])
    with pytest.raises(ClientError, match="not connected"):
        await client.infer({"input": BATCH})
    await client.close()


async def test_non_contiguous_and_read_only_inputs_are_sent_as_they_read() -> None:
    async with started(*one_each(GROUP)) as addresses, CodedClient(addresses, policy=PATIENT) as client:
        view = np.asfortranarray(BATCH)
        view.flags.writeable = False
        answers = await client.infer({"input": view})
        np.testing.assert_array_equal(answers["a"].outputs["logits"], truth("a"))


async def test_many_requests_at_once_get_their_own_answers() -> None:
    async with started(*one_each(GROUP)) as addresses, CodedClient(addresses) as client:
        batches = [np.full((1, PIXELS), value, np.float32) for value in range(60)]
        results = await asyncio.gather(*(client.infer({"input": batch}) for batch in batches))
        for batch, answers in zip(batches, results, strict=True):
            for name, answer in answers.items():
                np.testing.assert_allclose(answer.outputs["logits"], batch @ weights_of(GROUP, name), rtol=1e-4)


async def test_a_server_that_died_and_came_back_is_used_again(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="coin_export.client")
    servers = one_each(GROUP)
    async with started(*servers) as addresses, CodedClient(addresses, limits=QUICK, policy=PATIENT) as client:
        await servers[0].stop()
        await ask_until(client, lambda answers: answers["a"].source is Source.DECODED)
        await servers[0].start()
        await ask_until(client, lambda answers: answers["a"].source is Source.DIRECT)
    assert f"server {addresses[0]} counts as down" in caplog.text
    assert f"server {addresses[0]} is in use again" in caplog.text
    assert all(getattr(record, "server", None) == addresses[0] for record in caplog.records)


async def test_a_server_that_comes_back_with_another_build_is_not_decoded_with_the_others() -> None:
    servers = one_each(GROUP)
    async with started(*servers) as addresses, CodedClient(addresses, limits=QUICK, policy=PATIENT) as client:
        await servers[0].stop()
        await client.infer({"input": BATCH})
        servers[0].group = make_group(salt="new")
        looked_up = servers[0].metadata_calls
        await servers[0].start()
        await ask_until(client, lambda _: servers[0].metadata_calls >= looked_up + 3)
        servers[1].reply = aborting("INTERNAL", "out of memory")
        with pytest.raises(UndecodableError, match="no server holds this build of it any more"):
            await client.infer({"input": BATCH})


class CountingTransport(GrpcTransport):
    """Counts the requests that are sent to each server, dead ones too."""

    def __init__(self, asked: Counter[str], address: str, options: TransportOptions) -> None:
        super().__init__(address, options)
        self._asked = asked

    async def infer(self, *args: Any, **kwargs: Any) -> TransportReply:
        self._asked[self.address] += 1
        return await super().infer(*args, **kwargs)


async def test_a_dead_server_costs_look_ups_and_is_looked_up_ahead_of_time_only_as_a_last_resort(
    caplog: pytest.LogCaptureFixture,
) -> None:
    servers, asked = one_each(GROUP), Counter[str]()
    policy = Policy(OnlyWhenDown(), AfterGrace(at_least_s=30.0))
    transport = partial(CountingTransport, asked)
    limits = Limits(close_s=0.05, lookup_interval_s=3600)
    async with (
        started(*servers) as addresses,
        CodedClient(addresses, limits=limits, policy=policy, make_transport=transport) as client,
    ):
        await servers[0].stop()
        await ask_until(client, lambda _: "counts as down" in caplog.text)
        before, looked_up = asked[addresses[0]], servers[0].metadata_calls
        for _ in range(5):
            assert (await client.infer({"input": BATCH}))["a"].source is Source.DECODED
        assert asked[addresses[0]] == before
        servers[1].reply = aborting("INTERNAL", "out of memory")
        with pytest.raises(UndecodableError, match="too many members failed") as caught:
            await client.infer({"input": BATCH})
        assert asked[addresses[0]] == before and "UNAVAILABLE" in caught.value.failures["a"]
        await servers[0].start()
        assert servers[0].metadata_calls == looked_up
        answers = None
        while answers is None:  # gRPC connects again after a while only
            with suppress(UndecodableError):
                answers = await client.infer({"input": BATCH})
        assert answers["a"].source is Source.DIRECT and answers["b"].source is Source.DECODED


async def test_no_request_is_lost_because_a_server_counts_as_down_wrongly(caplog: pytest.LogCaptureFixture) -> None:
    servers = one_each(GROUP)
    limits = Limits(misses_in_a_row=1, close_s=0.05, lookup_interval_s=3600)
    async with started(*servers) as addresses, CodedClient(addresses, limits=limits, policy=PATIENT) as client:
        servers[0].reply = aborting("INTERNAL", "out of memory")
        await client.infer({"input": BATCH})
        await ask_until(client, lambda _: "counts as down" in caplog.text)
        servers[0].reply = None
        servers[1].reply = aborting("INTERNAL", "out of memory")
        answers = await client.infer({"input": BATCH})
        assert answers["a"].source is Source.DIRECT and answers["b"].source is Source.DECODED


async def test_a_full_queue_does_not_put_a_server_out_of_use() -> None:
    servers = one_each(GROUP)
    async with started(*servers) as addresses, CodedClient(addresses, policy=PATIENT) as client:
        servers[0].reply = aborting("UNAVAILABLE", "Exceeds maximum queue size")
        assert (await client.infer({"input": BATCH}))["a"].source is Source.DECODED
        servers[0].reply = None
        assert (await client.infer({"input": BATCH}))["a"].source is Source.DIRECT


async def test_several_servers_of_one_member_stand_in_for_each_other() -> None:
    servers = [*one_each(GROUP), FakeTriton(GROUP, ["a"])]
    async with started(*servers) as addresses, CodedClient(addresses, limits=QUICK, policy=PATIENT) as client:
        assert client.servers["a"] == (addresses[0], addresses[3])
        await client.infer({"input": BATCH})
        assert servers[0].asked == 1 and servers[3].asked == 0
        await servers[0].stop()
        await ask_until(client, lambda _: servers[3].asked > 0)
        assert (await client.infer({"input": BATCH}))["a"].source is Source.DIRECT


async def test_decoding_at_the_deadline_and_as_soon_as_possible() -> None:
    servers = one_each(GROUP)
    servers[0].hold.clear()
    async with started(*servers) as addresses:
        for policy in (Policy(decode=AtDeadline()), Policy(decode=AsSoonAsDecodable())):
            async with CodedClient(addresses, limits=QUICK, policy=policy) as client:
                answers = await client.infer({"input": BATCH}, deadline=1.0)
                assert answers["a"].source is Source.DECODED
                assert (answers["a"].latency_s >= 1.0) == isinstance(policy.decode, AtDeadline)
