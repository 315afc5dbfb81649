"""What observers are told: every request and every call ends exactly once, however it ends."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coin_export.client import (
    AfterDelay,
    AfterGrace,
    AtOnce,
    Budget,
    CallInfo,
    CallOutcome,
    CodedClient,
    Limits,
    Observer,
    Policy,
    RequestOutcome,
    Source,
    SyncCodedClient,
)
from coin_export.errors import RequestError, UndecodableError
from tests.client.recorder import ADDRESSES, INPUTS, NEVER, REPLICA, Recorder, Wire, watched
from tests.client.scripted import Reaction, run_virtually


def test_a_healthy_request_is_direct_and_what_was_not_needed_is_wasted() -> None:
    recorder = watched(Reaction(0.003), Reaction(0.002), Reaction(0.001))
    ((request, end),) = recorder.ended
    assert recorder.begun == [request]
    assert (request.group, request.wanted, request.batch, request.request_id) == ("digits", ("a", "b"), 2, "r1")
    assert end.outcome is RequestOutcome.DIRECT and end.elapsed_s == pytest.approx(0.003)
    assert end.sources == {"a": Source.DIRECT, "b": Source.DIRECT} and end.decode_s == 0 and end.error == ""
    assert recorder.outcomes() == {"a": CallOutcome.USED, "b": CallOutcome.USED, "coded_0": CallOutcome.WASTED}
    assert {call.model: end.latency_s for call, end in recorder.calls_ended} == pytest.approx(
        {"a": 0.003, "b": 0.002, "coded_0": 0.001}
    )
    assert {call.model: (call.coded, call.wanted, call.server) for call in recorder.calls} == {
        "a": (False, True, "a:8001"),
        "b": (False, True, "b:8001"),
        "coded_0": (True, False, "coded-0:8001"),
    }


def test_a_decoded_request_uses_what_it_was_decoded_from_and_abandons_the_straggler() -> None:
    recorder = watched(Reaction(1.0), Reaction(0.002), Reaction(0.001))
    ((_, end),) = recorder.ended
    assert end.outcome is RequestOutcome.DECODED and end.decode_s > 0
    assert end.sources == {"a": Source.DECODED, "b": Source.DIRECT}
    assert recorder.outcomes() == {"a": CallOutcome.ABANDONED, "b": CallOutcome.USED, "coded_0": CallOutcome.USED}
    ((call, latency_s, error),) = recorder.late
    assert (call.model, error) == ("a", "") and latency_s == pytest.approx(1.0)


def test_where_cancelling_is_safe_the_straggler_is_cancelled_and_never_late() -> None:
    recorder = watched(Reaction(1.0), Reaction(0.002), Reaction(0.001), may_cancel=True)
    assert recorder.outcomes()["a"] is CallOutcome.CANCELLED and recorder.late == []


def test_an_abandoned_call_that_is_cut_off_by_closing_ends_late() -> None:
    recorder = watched(NEVER, Reaction(0.002), Reaction(0.001))
    ((call, latency_s, error),) = recorder.late
    assert (call.model, error) == ("a", "the client was closed") and latency_s >= Limits().close_s


def test_a_failed_request_says_why_and_wastes_what_had_arrived() -> None:
    recorder = watched(Reaction(0.001), Reaction(0.002, fails=True), Reaction(0.003, nan=True))
    ((_, end),) = recorder.ended
    assert end.outcome is RequestOutcome.FAILED and end.sources == {} and "out of memory" in end.error
    assert recorder.outcomes() == {"a": CallOutcome.WASTED, "b": CallOutcome.FAILED, "coded_0": CallOutcome.FAILED}
    errors = {call.model: end.error for call, end in recorder.calls_ended}
    assert errors["a"] == "" and "out of memory" in errors["b"] and "NaN" in errors["coded_0"]


def test_the_budget_is_told_with_every_request() -> None:
    slow = Reaction(0.1), Reaction(0.002), Reaction(0.001)
    ((_, end),) = watched(*slow, policy=Policy(AfterDelay(0.01), budget=Budget(0.5, 8.0))).ended
    assert (end.refusals, end.budget_left) == (0, 7.0)
    ((_, end),) = watched(*slow, policy=Policy(AfterDelay(0.01), budget=Budget(0.0, 0.0))).ended
    assert end.refusals > 0 and end.budget_left == 0 and end.outcome is RequestOutcome.DIRECT


def test_servers_are_told_when_connecting_and_when_their_breaker_moves() -> None:
    recorder = Recorder()

    async def work() -> None:
        wire = Wire([[Reaction(fails=True)] * 2 + [Reaction()], [Reaction()], [Reaction()]])
        limits = Limits(misses_in_a_row=2, lookup_interval_s=1.0)
        async with CodedClient(ADDRESSES, limits=limits, make_transport=wire, observers=[recorder]) as client:
            assert recorder.servers == [(address, "") for address in ADDRESSES]
            for _ in range(3):
                await client.infer(INPUTS)
                await asyncio.sleep(2.0)

    run_virtually(work())
    (down, reason), up = recorder.servers[3:]
    assert down == ADDRESSES[0] and "2 calls in a row were missed" in reason and up == (ADDRESSES[0], "")


def test_a_refused_request_is_no_request() -> None:
    recorder = Recorder()

    async def work() -> None:
        async with CodedClient(ADDRESSES, make_transport=Wire([[Reaction()]] * 3), observers=[recorder]) as client:
            with pytest.raises(RequestError):
                await client.infer({})

    run_virtually(work())
    assert not recorder.begun and not recorder.ended


class Broken(Recorder):
    """Raises when it is told of a call."""

    def call_begun(self, call: CallInfo) -> Mapping[str, str]:
        raise ZeroDivisionError("a bug in an observer")


class Careless(Recorder):
    """Wants to send a header that cannot be sent."""

    def call_begun(self, call: CallInfo) -> Mapping[str, str]:
        return {"Upper Case": "x"}


@pytest.mark.parametrize("bad", [Broken(), Careless()])
def test_an_observer_that_raises_is_logged_once_and_left_out(bad: Recorder, caplog: pytest.LogCaptureFixture) -> None:
    good = Recorder()

    async def work() -> None:
        wire = Wire([[Reaction()]] * 3)
        async with CodedClient(ADDRESSES, make_transport=wire, observers=[bad, good]) as client:
            for _ in range(3):
                await client.infer(INPUTS)

    with caplog.at_level(logging.ERROR, logger="coin_export.client"):
        run_virtually(work())
    assert [record.getMessage() for record in caplog.records] == [
        f"observer {type(bad).__name__} raised an error; it is told nothing more"
    ]
    assert len(bad.begun) == 1 and len(good.ended) == 3 and len(good.calls_ended) == len(good.calls)


def test_headers_of_observers_travel_with_the_call_and_give_way_to_the_callers() -> None:
    class Headers(Observer):
        def call_begun(self, call: CallInfo) -> Mapping[str, str]:
            return {"x-model": call.model, "x-both": "observer"}

    wire = Wire([[Reaction()]] * 3)

    async def work() -> None:
        async with CodedClient(ADDRESSES, make_transport=wire, observers=[Headers()]) as client:
            await client.infer(INPUTS, headers={"x-both": "caller"})

    run_virtually(work())
    (sent,) = wire.transports[1].sent
    assert dict(sent.headers) == {"x-model": "b", "x-both": "caller"}


def test_the_synchronous_client_tells_the_same() -> None:
    recorder = Recorder()
    wire = Wire([[Reaction()]] * 3)
    with SyncCodedClient(ADDRESSES, make_transport=wire, observers=[recorder], policy=Policy(AtOnce())) as client:
        client.infer(INPUTS)
    assert len(recorder.ended) == 1 and len(recorder.calls_ended) == len(recorder.calls) == 3


times = st.one_of(st.sampled_from([0.0, 0.001, 0.002, 0.05, math.inf]), st.floats(0.0, 0.1))
reactions = st.builds(Reaction, times, st.booleans(), st.booleans())
policies = st.builds(
    Policy,
    st.one_of(st.builds(AtOnce), st.builds(AfterDelay, st.sampled_from([0.0, 0.001, 0.01]))),
    st.builds(AfterGrace, st.sampled_from([0.0, 0.002, 0.05])),
    st.builds(Budget, st.floats(0, 1), st.floats(0, 4)),
)


@settings(deadline=None)
@given(
    script=st.tuples(*[st.lists(reactions, min_size=1, max_size=6)] * 3),
    policy=policies,
    may_cancel=st.booleans(),
    deadlines=st.lists(st.sampled_from([0.001, 0.01, 0.05]), min_size=1, max_size=8),
    impatience=st.sampled_from([0.0, 0.001, 0.005, 1.0]),
    addresses=st.sampled_from([ADDRESSES, [*ADDRESSES, REPLICA]]),
)
def test_everything_that_begins_ends_once(
    script: tuple[list[Reaction], ...],
    policy: Policy,
    may_cancel: bool,
    deadlines: list[float],
    impatience: float,
    addresses: list[str],
) -> None:
    recorder = Recorder()
    wire = Wire(script, may_cancel=may_cancel)
    limits = Limits(misses_in_a_row=3, lookup_interval_s=0.01, close_s=0.02)
    results: Counter[RequestOutcome] = Counter()

    async def ask(client: CodedClient, deadline: float) -> None:
        task = asyncio.ensure_future(client.infer(INPUTS, deadline=deadline))
        await asyncio.wait([task], timeout=impatience)
        task.cancel()
        try:
            found = await task
        except UndecodableError:
            results[RequestOutcome.FAILED] += 1
        except asyncio.CancelledError:
            results[RequestOutcome.CANCELLED] += 1
        else:
            decoded = any(answer.source is Source.DECODED for answer in found.values())
            results[RequestOutcome.DECODED if decoded else RequestOutcome.DIRECT] += 1

    async def work() -> None:
        client = CodedClient(addresses, policy=policy, limits=limits, make_transport=wire, observers=[recorder])
        async with client:
            await asyncio.gather(*(ask(client, deadline) for deadline in deadlines))

    run_virtually(work())
    ended = Counter(id(call) for call, _ in recorder.calls_ended)
    assert ended == Counter(id(call) for call in recorder.calls), "every call ends once"
    assert len(recorder.calls) == sum(len(transport.sent) for transport in wire.transports)
    assert Counter(id(call) for call, _, _ in recorder.late) == Counter(
        id(call) for call, end in recorder.calls_ended if end.outcome is CallOutcome.ABANDONED
    ), "every abandoned call ends late, once"
    assert not may_cancel or not recorder.late
    assert Counter(id(request) for request, _ in recorder.ended) == Counter(map(id, recorder.begun))
    assert Counter(end.outcome for _, end in recorder.ended) == results


@pytest.mark.parametrize(("first", "source"), [(Reaction(), Source.DIRECT), (Reaction(fails=True), Source.DECODED)])
def test_a_mean_is_one_answer_that_has_the_groups_name(first: Reaction, source: Source) -> None:
    recorder = Recorder()

    async def work() -> None:
        wire = Wire([[first], [Reaction()], [Reaction()]])
        async with CodedClient(ADDRESSES, make_transport=wire, observers=[recorder]) as client:
            await client.infer_mean(INPUTS)

    run_virtually(work())
    ((request, end),) = recorder.ended
    assert request.wanted == ("digits",) and end.sources == {"digits": source}
    assert end.outcome is (RequestOutcome.DIRECT if source is Source.DIRECT else RequestOutcome.DECODED)
    assert {call.model: call.wanted for call in recorder.calls if not call.coded} == {"a": True, "b": True}


def test_a_server_that_is_asked_though_it_counts_as_down_is_told_as_such() -> None:
    recorder = Recorder()

    async def work() -> None:
        wire = Wire([[Reaction(fails=True)], [Reaction()] * 2 + [Reaction(fails=True)], [Reaction()]])
        limits = Limits(misses_in_a_row=2, lookup_interval_s=3600.0)
        async with CodedClient(ADDRESSES, limits=limits, make_transport=wire, observers=[recorder]) as client:
            for _ in range(2):
                await client.infer(INPUTS)
            with pytest.raises(UndecodableError):
                await client.infer(INPUTS)

    run_virtually(work())
    assert [call.though_down for call in recorder.calls if call.model == "a"] == [False, False, True]
    assert not any(call.though_down for call in recorder.calls if call.model != "a")
