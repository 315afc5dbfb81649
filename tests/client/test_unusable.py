"""Servers that fail, or answer what cannot be used, while others can: found out, and replaced by their replicas."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine, Iterable, Sequence
from itertools import chain, repeat
from typing import Any

import numpy as np
import pytest

from coin_export.client import AfterDelay, Answers, CodedClient, Limits, Policy, Source
from coin_export.client.transport import RefusedError, Reply, RequestOptions
from coin_export.errors import UndecodableError
from tests.client.fake_triton import PIXELS, make_group
from tests.client.scripted import Reaction, ScriptedTransport, run_virtually

GROUP = make_group()
BATCH = np.ones((1, PIXELS), np.float32)
GOOD = Reaction()
NAN = Reaction(nan=True)
BROKEN = Reaction(fails=True)
SILENT = Reaction(math.inf)
LIMITS = Limits(misses_in_a_row=3, lookup_interval_s=1.0, close_s=0.05)


def server_of(member: str, number: int, reactions: Iterable[Reaction]) -> ScriptedTransport:
    return ScriptedTransport(f"{member}:{number}", GROUP, [member], iter(reactions))


def client_of(*servers: ScriptedTransport, **options: Any) -> CodedClient:
    known = {server.address: server for server in servers}
    return CodedClient(list(known), limits=LIMITS, make_transport=lambda address, _: known[address], **options)


def run(client: CodedClient, work: Coroutine[Any, Any, None]) -> None:
    async def connected() -> None:
        async with client:
            await work

    run_virtually(connected())


def sources(answers: Answers) -> dict[str, Source]:
    return {name: answer.source for name, answer in answers.items()}


DIRECT = {"a": Source.DIRECT, "b": Source.DIRECT}
A_DECODED = {"a": Source.DECODED, "b": Source.DIRECT}


def test_a_server_that_answers_only_nan_counts_as_down_and_is_tried_from_time_to_time() -> None:
    a, b, coded = server_of("a", 1, repeat(NAN)), server_of("b", 1, repeat(GOOD)), server_of("coded_0", 1, repeat(GOOD))
    client = client_of(a, b, coded)

    async def ask() -> None:
        for _ in range(10):
            assert sources(await client.infer({"input": BATCH})) == A_DECODED
        assert len(a.sent) == 3, "asked until it counts as down"
        for trial in (4, 5):
            await asyncio.sleep(2 * LIMITS.lookup_interval_s)
            for _ in range(5):
                assert sources(await client.infer({"input": BATCH})) == A_DECODED
            assert len(a.sent) == trial, "well by its own account, it is given one more request"

    run(client, ask())


def test_a_server_that_recovers_is_used_again() -> None:
    a = server_of("a", 1, chain(repeat(NAN, 3), repeat(GOOD)))
    client = client_of(a, server_of("b", 1, repeat(GOOD)), server_of("coded_0", 1, repeat(GOOD)))

    async def ask() -> None:
        for _ in range(5):
            assert sources(await client.infer({"input": BATCH})) == A_DECODED
        await asyncio.sleep(2 * LIMITS.lookup_interval_s)
        await client.infer({"input": BATCH})  # makes the look-up
        for _ in range(5):
            assert sources(await client.infer({"input": BATCH})) == DIRECT

    run(client, ask())


def test_inputs_that_nobody_can_make_anything_of_put_no_server_out_of_use() -> None:
    servers = [server_of(name, 1, chain(repeat(NAN, 10), repeat(GOOD))) for name in ("a", "b", "coded_0")]
    client = client_of(*servers, policy=Policy(AfterDelay(0.0)))  # everybody is asked

    async def ask() -> None:
        for _ in range(10):
            with pytest.raises(UndecodableError, match="contains NaN or infinity"):
                await client.infer({"input": BATCH})
            await asyncio.sleep(0.01)
        assert sources(await client.infer({"input": BATCH})) == DIRECT
        assert [len(server.sent) for server in servers] == [11, 11, 11]

    run(client, ask())


@pytest.mark.parametrize("reaction", [NAN, BROKEN])
def test_a_replica_answers_in_place_of_one_that_cannot(reaction: Reaction) -> None:
    bad, good = server_of("a", 1, repeat(reaction)), server_of("a", 2, repeat(GOOD))
    b, coded = server_of("b", 1, repeat(GOOD)), server_of("coded_0", 1, repeat(GOOD))
    client = client_of(bad, good, b, coded)

    async def ask() -> None:
        for _ in range(10):
            assert sources(await client.infer({"input": BATCH})) == DIRECT
        assert len(bad.sent) == 3, "it attracts no calls by ending them fast"
        assert len(good.sent) == 10 and not coded.sent

    run(client, ask())


def test_what_no_replica_could_answer_is_decoded_and_the_error_names_them_all() -> None:
    replicas = [server_of("a", 1, repeat(BROKEN)), server_of("a", 2, repeat(NAN))]
    b = server_of("b", 1, chain([GOOD], repeat(BROKEN)))
    client = client_of(*replicas, b, server_of("coded_0", 1, repeat(GOOD)))

    async def ask() -> None:
        assert sources(await client.infer({"input": BATCH})) == A_DECODED
        with pytest.raises(UndecodableError) as caught:
            await client.infer({"input": BATCH})
        reason = caught.value.failures["a"]
        assert "out of memory" in reason and "server a:2" in reason and "contains NaN" in reason

    run(client, ask())


def test_a_request_asks_two_servers_for_one_member_and_no_more() -> None:
    replicas = [server_of("a", number, repeat(BROKEN)) for number in (1, 2, 3, 4)]
    client = client_of(*replicas, server_of("b", 1, repeat(GOOD)), server_of("coded_0", 1, repeat(GOOD)))

    async def ask() -> None:
        assert sources(await client.infer({"input": BATCH})) == A_DECODED
        assert sum(len(server.sent) for server in replicas) == 2, "it may be the request that breaks them"

    run(client, ask())


def test_a_replica_that_counts_as_down_is_the_last_resort_when_the_other_one_fails() -> None:
    wrongly_down = server_of("a", 1, chain(repeat(BROKEN, 3), repeat(GOOD)))
    other = server_of("a", 2, chain(repeat(GOOD, 3), repeat(BROKEN)))
    b, coded = server_of("b", 1, repeat(GOOD)), server_of("coded_0", 1, repeat(BROKEN))
    client = client_of(wrongly_down, other, b, coded)

    async def ask() -> None:
        for _ in range(4):
            assert sources(await client.infer({"input": BATCH})) == DIRECT
        assert [len(server.sent) for server in (wrongly_down, other, b, coded)] == [4, 4, 4, 1]

    run(client, ask())


class Refusing(ScriptedTransport):
    """Refuses every request."""

    async def infer(
        self, model: str, encoded: Any, outputs: Sequence[str], options: RequestOptions, version: str = ""
    ) -> Reply:
        self.sent.append(options)
        raise RefusedError("not permitted", address=self.address)


def test_what_a_server_refuses_is_asked_of_a_replica_and_does_not_count_against_it() -> None:
    refusing, other = Refusing("a:1", GROUP, ["a"], iter(())), server_of("a", 2, repeat(GOOD))
    client = client_of(refusing, other, server_of("b", 1, repeat(GOOD)), server_of("coded_0", 1, repeat(GOOD)))

    async def ask() -> None:
        for number in range(1, 6):
            assert sources(await client.infer({"input": BATCH})) == DIRECT
            assert (len(refusing.sent), len(other.sent)) == (number, number)

    run(client, ask())


class Reloaded(ScriptedTransport):
    """Answers as another version than the one that it serves by its own account."""

    async def infer(
        self, model: str, encoded: Any, outputs: Sequence[str], options: RequestOptions, version: str = ""
    ) -> Reply:
        return (await super().infer(model, encoded, outputs, options, version))._replace(model_version="2")


def test_answers_of_another_build_do_not_count_against_the_server() -> None:
    reloaded = Reloaded("a:1", GROUP, ["a"], repeat(GOOD))
    client = client_of(reloaded, server_of("b", 1, repeat(GOOD)), server_of("coded_0", 1, repeat(GOOD)))

    async def ask() -> None:
        for _ in range(3):
            found = await asyncio.gather(*(client.infer({"input": BATCH}) for _ in range(10)))
            assert all(sources(answers) == A_DECODED for answers in found)
            await asyncio.sleep(0.1)
        assert client._connected.pool._servers["a:1"].down == ""

    run(client, ask())


def test_a_call_that_closing_cancels_is_not_made_again_at_a_replica() -> None:
    silent, other = server_of("a", 1, repeat(SILENT)), server_of("a", 2, repeat(GOOD))
    client = client_of(silent, other, server_of("b", 1, repeat(SILENT)), server_of("coded_0", 1, repeat(SILENT)))

    async def ask() -> None:
        request = asyncio.ensure_future(client.infer({"input": BATCH}))
        await asyncio.sleep(0.01)
        await client.close()
        await asyncio.wait([request])
        assert isinstance(request.exception(), UndecodableError) and not other.sent

    run(client, ask())
