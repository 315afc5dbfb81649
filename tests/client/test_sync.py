"""The synchronous face, against a loopback server that runs on another thread's event loop."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest

from coin_export.client import AfterGrace, Limits, OnlyWhenDown, Policy, Source, SyncCodedClient
from coin_export.errors import ClientError, DiscoveryError, RequestError, UndecodableError
from tests.client.fake_triton import PIXELS, FakeTriton, aborting, make_group, one_each, started, weights_of

GROUP = make_group()
BATCH = np.ones((1, PIXELS), np.float32)
PATIENT = Policy(OnlyWhenDown(), AfterGrace(at_least_s=30.0))
QUICK = Limits(close_s=0.05)


def over_grpc() -> list[FakeTriton]:
    return one_each(GROUP)


@contextmanager
def serving(make: Callable[[], Sequence[FakeTriton]] = over_grpc) -> Iterator[tuple[Sequence[FakeTriton], list[str]]]:
    """Serve from another process's point of view: the servers' loop is not the client's."""
    ready, stop = threading.Event(), threading.Event()
    found: list[tuple[Sequence[FakeTriton], list[str]]] = []

    async def serve() -> None:
        servers = make()
        async with started(*servers) as addresses:
            found.append((servers, addresses))
            ready.set()
            await asyncio.to_thread(stop.wait)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        assert ready.wait(30)
        yield found[0]
    finally:
        stop.set()
        thread.join()


def test_answers_and_errors_are_those_of_the_asyncio_client() -> None:
    with serving() as (servers, addresses), SyncCodedClient(addresses, policy=PATIENT) as client:
        assert client.group == GROUP and client.servers["a"] == (addresses[0],)
        assert set(client.server_versions) == set(addresses)
        answers = client.infer({"input": BATCH}, deadline=30.0, request_id="r7")
        assert answers["a"].source is Source.DIRECT and servers[0].request.id == "r7"
        np.testing.assert_array_equal(answers["a"].as_numpy("logits"), BATCH @ weights_of(GROUP, "a"))
        servers[0].reply = aborting("INTERNAL", "out of memory")
        assert client.infer({"input": BATCH})["a"].source is Source.DECODED
        assert list(client.infer({"input": BATCH}, wanted=["b"])) == ["b"]
        mean = client.infer_mean({"input": BATCH}, weights={"a": 1.0, "b": 1.0})
        assert mean.source is Source.DECODED and mean.model == GROUP.name
        with pytest.raises(RequestError, match="has inputs"):
            client.infer({})
        servers[1].reply = aborting("INTERNAL", "out of memory")
        with pytest.raises(UndecodableError, match="out of memory"):
            client.infer({"input": BATCH})


def test_many_threads_get_their_own_answers() -> None:
    with serving() as (_, addresses), SyncCodedClient(addresses, policy=PATIENT) as client:

        def ask(value: int) -> bool:
            batch = np.full((1, PIXELS), value, np.float32)
            answers = client.infer({"input": batch})
            return all(np.allclose(answers[name].as_numpy("logits"), batch @ weights_of(GROUP, name)) for name in "ab")

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(ask, range(100)))


def test_a_client_that_is_not_connected_says_so_and_can_be_connected_again() -> None:
    with serving() as (_, addresses):
        client = SyncCodedClient(addresses, policy=PATIENT, limits=QUICK)
        for _ in range(2):
            with pytest.raises(ClientError, match="not connected"):
                client.infer({"input": BATCH})
            client.connect()
            client.connect()
            assert client.infer({"input": BATCH})["a"].source is Source.DIRECT
            client.close()
            client.close()


def test_a_thread_that_asks_while_another_one_closes_is_told_that_it_is_not_connected() -> None:
    with serving() as (_, addresses):
        client = SyncCodedClient(addresses, policy=PATIENT, limits=QUICK)
        client.connect()
        before = client._portal
        client.close()
        client._portal = before  # what a thread holds that was preempted before the other one closed
        for ask in (client.infer, client.infer_mean):
            with pytest.raises(ClientError, match="not connected"):
                ask({"input": BATCH})


def test_nothing_is_left_when_connecting_fails() -> None:
    threads = set(threading.enumerate())
    with pytest.raises(DiscoveryError, match="none of the 1 servers"):
        SyncCodedClient(["127.0.0.1:1"], limits=QUICK).connect()
    assert set(threading.enumerate()) <= threads


def test_closing_ends_the_requests_of_other_threads_and_its_own_thread() -> None:
    threads = set(threading.enumerate())
    with serving() as (servers, addresses):
        client = SyncCodedClient(addresses, policy=PATIENT, limits=QUICK)
        client.connect()
        servers[0].hold.clear()
        servers[1].hold.clear()
        with ThreadPoolExecutor(1) as pool:
            request = pool.submit(client.infer, {"input": BATCH})
            while not servers[0].asked:
                assert not request.done()
                time.sleep(0.002)
            client.close()
            with pytest.raises(UndecodableError):
                request.result(timeout=30)
    assert set(threading.enumerate()) <= threads
