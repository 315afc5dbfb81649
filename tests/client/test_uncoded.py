"""Requests without coding, and what the error says of servers that do not answer."""

from __future__ import annotations

from itertools import chain, repeat

import pytest

from coin_export.client import AfterDelay, Policy, Source
from coin_export.errors import UndecodableError
from tests.client.test_unusable import BATCH, BROKEN, DIRECT, GOOD, SILENT, client_of, run, server_of, sources


def test_a_single_original_without_coding() -> None:
    a = server_of("a", 1, chain([GOOD, GOOD], repeat(SILENT)))
    b, coded = server_of("b", 1, repeat(GOOD)), server_of("coded_0", 1, repeat(GOOD))
    client = client_of(a, b, coded, policy=Policy(AfterDelay(0.0)))  # everybody is asked, where there is coding

    async def ask() -> None:
        assert sources(await client.infer({"input": BATCH}, wanted=["a"], coded=False)) == {"a": Source.DIRECT}
        assert sources(await client.infer({"input": BATCH}, coded=False)) == DIRECT
        assert [len(server.sent) for server in (a, b, coded)] == [2, 1, 0]
        with pytest.raises(UndecodableError, match=r"arrived: nothing; missing: a: server a:1: no answer after 50 ms"):
            await client.infer({"input": BATCH}, wanted=["a"], coded=False, deadline=0.050)
        assert [len(server.sent) for server in (a, b, coded)] == [3, 1, 0]
        assert sources(await client.infer({"input": BATCH}, wanted=["a"])) == {"a": Source.DECODED}

    run(client, ask())


def test_without_coding_a_failure_ends_the_request_and_a_server_that_is_down_is_asked_all_the_same() -> None:
    a = server_of("a", 1, chain(repeat(BROKEN, 4), repeat(GOOD)))
    client = client_of(a, server_of("b", 1, repeat(GOOD)), server_of("coded_0", 1, repeat(GOOD)))

    async def ask() -> None:
        for _ in range(4):
            with pytest.raises(UndecodableError, match="out of memory"):
                await client.infer({"input": BATCH}, wanted=["a"], coded=False)
        assert sources(await client.infer({"input": BATCH}, wanted=["a"], coded=False)) == {"a": Source.DIRECT}

    run(client, ask())


def test_the_error_says_of_each_server_how_long_it_was_waited_for() -> None:
    a, coded = server_of("a", 1, repeat(SILENT)), server_of("coded_0", 1, repeat(SILENT))
    client = client_of(a, server_of("b", 1, repeat(GOOD)), coded, policy=Policy(AfterDelay(0.020)))

    async def ask() -> None:
        with pytest.raises(UndecodableError) as caught:
            await client.infer({"input": BATCH}, deadline=0.050)
        assert caught.value.failures == {
            "a": "server a:1: no answer after 50 ms",
            "coded_0": "server coded_0:1: no answer after 30 ms",
        }

    run(client, ask())
