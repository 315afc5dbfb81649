"""The weighted mean of the ensemble: on the virtual clock, over a scripted wire, and over gRPC."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import repeat
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from coin_export.client import (
    AfterDelay,
    AfterGrace,
    Answer,
    AsSoonAsDecodable,
    AtOnce,
    CodedClient,
    Policy,
    Source,
    TransportOptions,
)
from coin_export.client.gather import Cause, Finish, GiveUp
from coin_export.code.linear import LinearCode
from coin_export.code.manifest import Group
from coin_export.errors import RequestError, UndecodableError
from tests.client.fake_triton import PIXELS, aborting, make_group, one_each, started, weights_of
from tests.client.scripted import Reaction, ScriptedTransport, run_virtually
from tests.client.virtual import Fate, Run, run

PAIR = LinearCode(((0.5, 0.5),))
MEAN = (0.5, 0.5)
SOON = Policy(AtOnce(), AsSoonAsDecodable())
HELD_BACK = Policy(AfterDelay(0.010), AsSoonAsDecodable())
NEVER = Fate(math.inf)
GROUP = make_group()
BATCH = np.arange(2 * PIXELS, dtype=np.float32).reshape(2, PIXELS)


def gathered(policy: Policy, fates: Sequence[Fate], weights: tuple[float, ...] = MEAN, code: LinearCode = PAIR) -> Run:
    found = run(code, [row for row in range(code.k) if weights[row]], policy, fates, deadline=5.0, combination=weights)
    assert found is not None
    return found


def combined(found: Run) -> tuple[tuple[int, ...], list[float], float]:
    """The rows that the mean is made from, their weights, and the noise gain."""
    assert isinstance(found.outcome, Finish) and found.outcome.decoding is not None
    decoding = found.outcome.decoding
    return decoding.sources, decoding.weights[0].tolist(), decoding.noise_gain[0]


def test_the_mean_of_all_originals_is_direct() -> None:
    found = gathered(HELD_BACK, [Fate(0.002), Fate(0.003), Fate(0.001)])
    assert combined(found) == ((0, 1), [0.5, 0.5], 0.0) and found.ended_at == 0.003
    assert set(found.sent_at) == {0, 1}


def test_the_coded_model_whose_row_are_the_weights_is_the_mean_by_itself() -> None:
    found = gathered(SOON, [NEVER, NEVER, Fate(0.004)])
    sources, weights, noise_gain = combined(found)
    assert sources == (2,) and weights == pytest.approx([1.0]) and noise_gain == pytest.approx(1.0)
    assert found.ended_at == 0.004


def test_the_grace_waits_for_the_originals_all_the_same() -> None:
    found = gathered(Policy(AtOnce(), AfterGrace(0.010)), [Fate(0.002), Fate(0.006), Fate(0.001)])
    assert combined(found)[0] == (0, 1) and found.ended_at == 0.006


def test_with_other_weights_the_mean_is_decoded() -> None:
    found = gathered(HELD_BACK, [Fate(0.002), NEVER, Fate(0.003)], weights=(0.25, 0.75))
    sources, weights, noise_gain = combined(found)
    assert sources == (0, 2) and weights == pytest.approx([-0.5, 1.5]) and noise_gain == pytest.approx(1.5)
    assert found.ended_at == pytest.approx(0.013)


def test_an_original_of_weight_zero_is_not_asked() -> None:
    found = gathered(HELD_BACK, [Fate(0.002), NEVER, NEVER], weights=(1.0, 0.0))
    assert combined(found) == ((0,), [1.0], 0.0) and set(found.sent_at) == {0}


def test_one_coded_model_stands_in_for_all_late_originals() -> None:
    code = LinearCode.from_rows([[1, 1, 1], [1, 2, 3]])
    fates = [NEVER, NEVER, NEVER, Fate(0.001), Fate(0.001)]
    found = gathered(HELD_BACK, fates, weights=(1 / 3, 1 / 3, 1 / 3), code=code)
    assert combined(found)[0] == (3,) and set(found.sent_at) == {0, 1, 2, 3}


def test_a_mean_that_cannot_be_determined_is_given_up() -> None:
    failing = Fate(0.001, fails=True)
    found = gathered(HELD_BACK, [Fate(0.002), failing, failing])
    assert found.outcome == GiveUp(Cause.TOO_FEW)
    found = gathered(HELD_BACK, [Fate(0.002), NEVER, NEVER])
    assert found.outcome == GiveUp(Cause.DEADLINE) and found.ended_at == 5.0


def truth(weights: Mapping[str, float], group: Group = GROUP) -> npt.NDArray[np.float32]:
    return BATCH @ sum(weight * weights_of(group, name) for name, weight in weights.items())


def ask_scripted(reactions: Mapping[str, Reaction], policy: Policy, group: Group = GROUP, **options: Any) -> Answer:
    """Ask a group whose members react as given, on a virtual clock."""
    addresses = {f"{member.name}:1": member.name for member in group.members}

    def transport(address: str, _: TransportOptions) -> ScriptedTransport:
        member = addresses[address]
        return ScriptedTransport(address, group, [member], repeat(reactions.get(member, Reaction())))

    async def ask() -> Answer:
        async with CodedClient(list(addresses), policy=policy, make_transport=transport) as client:
            return await client.infer_mean({"input": BATCH}, **options)

    return run_virtually(ask())


def test_the_answer_says_where_it_comes_from() -> None:
    answer = ask_scripted({}, Policy(), request_id="r1")
    assert answer.source is Source.DIRECT and answer.noise_gain == 0.0
    assert (answer.model, answer.request_id, answer.quality) == (GROUP.name, "r1", None)
    np.testing.assert_allclose(answer.as_numpy("logits"), truth({"a": 0.5, "b": 0.5}), rtol=1e-5)
    assert answer.as_numpy("logits").dtype == np.float32


def test_a_straggler_is_made_good_and_the_weights_are_divided_by_their_sum() -> None:
    silent = {"b": Reaction(math.inf)}
    answer = ask_scripted(silent, Policy(), weights={"a": 1, "b": 3})
    assert answer.source is Source.DECODED and answer.noise_gain == pytest.approx(1.5)
    np.testing.assert_allclose(answer.as_numpy("logits"), truth({"a": 0.25, "b": 0.75}), rtol=1e-4)
    answer = ask_scripted({"a": Reaction(math.inf), **silent}, Policy(), deadline=1.0)
    assert answer.source is Source.DECODED and answer.noise_gain == pytest.approx(1.0)
    np.testing.assert_allclose(answer.as_numpy("logits"), truth({"a": 0.5, "b": 0.5}), rtol=1e-5)


def test_the_coded_models_own_weights_need_no_other_answer_whatever_they_are() -> None:
    uneven = make_group(LinearCode.from_rows([[1, 3]]))
    silent = {"a": Reaction(math.inf), "b": Reaction(math.inf)}
    answer = ask_scripted(silent, Policy(), uneven, weights="coded", deadline=1.0)
    assert answer.source is Source.DECODED and answer.noise_gain == pytest.approx(1.0)
    np.testing.assert_allclose(answer.as_numpy("logits"), truth({"a": 0.25, "b": 0.75}, uneven), rtol=1e-5)
    with pytest.raises(UndecodableError):
        ask_scripted(silent, Policy(), uneven, deadline=1.0)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("equal", r"weights is 'equal'; give a number for each of \['a', 'b'\], or 'coded'"),
        ({"c": 1.0}, r"weights name \['c'\]; the originals are \['a', 'b'\]"),
        ({"a": -1.0, "b": 2.0}, "none negative"),
        ({"a": math.nan}, "finite"),
        ({"a": 0.0}, "not all zero"),
        ({}, "not all zero"),
    ],
)
def test_unusable_weights_are_refused(weights: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        ask_scripted({}, Policy(), weights=weights)


async def test_over_grpc_it_survives_failures_and_says_what_is_missing_when_it_does_not() -> None:
    servers = one_each(GROUP)
    async with started(*servers) as addresses, CodedClient(addresses, policy=Policy(AfterDelay(60))) as client:
        answer = await client.infer_mean({"input": BATCH})
        assert answer.source is Source.DIRECT and [server.asked for server in servers] == [1, 1, 0]
        servers[0].reply = aborting("INTERNAL", "out of memory")
        answer = await client.infer_mean({"input": BATCH})
        assert answer.source is Source.DECODED
        np.testing.assert_allclose(answer.as_numpy("logits"), truth({"a": 0.5, "b": 0.5}), rtol=1e-4)
        servers[2].reply = aborting("INTERNAL", "out of memory")
        with pytest.raises(UndecodableError, match="too many members failed") as caught:
            await client.infer_mean({"input": BATCH})
        assert set(caught.value.failures) == {"a", "coded_0"}
