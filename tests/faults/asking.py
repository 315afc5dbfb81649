"""Requests to a real group, of which every answer is checked: a direct one to the bit, a decoded one closely."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import pytest

from coin_export.client import Answers, CodedClient, HttpTransport, Limits, Source
from coin_export.client.transport_grpc import GrpcTransport
from coin_export.errors import UndecodableError
from scripts.faults.cluster import Cluster
from scripts.faults.linear_group import INPUT, LinearGroup, random_inputs

DEADLINE_S = 30.0
LIMITS = Limits(discovery_s=10.0, lookup_interval_s=0.1)

_ATTEMPTS = 2000
_PAUSE_S = 0.02


class Asker:
    """A client of a linear group; every answer that it returns has been checked.

    Use it as ``async with``.

    Args:
        linear: what the answers should be.
        addresses: of the servers.
        wire: ``grpc`` or ``http``.
        limits: the client's.
        options: the client's others.
    """

    def __init__(
        self, linear: LinearGroup, addresses: Iterable[str], wire: str = "grpc", limits: Limits = LIMITS, **options: Any
    ) -> None:
        self.linear = linear
        self.client = CodedClient(
            list(addresses),
            limits=limits,
            make_transport=HttpTransport if wire == "http" else GrpcTransport,
            **options,
        )
        self._random = np.random.default_rng(0)

    async def __aenter__(self) -> Asker:
        await self.client.connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.close()

    async def ask(self, deadline: float = DEADLINE_S) -> Answers:
        inputs = random_inputs(self._random)
        answers = await self.client.infer({INPUT: inputs}, deadline=deadline)
        self.linear.check(inputs, answers)
        return answers

    async def ask_until(self, condition: Callable[[Answers], bool], resumed: Cluster | None = None) -> Answers:
        """Ask until the answers are as expected; all others must be right, too.

        Args:
            condition: on the answers.
            resumed: the servers, where a stopped one goes on: it may be shaken off by that, and is then started again.
        """
        for _ in range(_ATTEMPTS):
            answers = await self.ask()
            if condition(answers):
                return answers
            if resumed is not None:
                await asyncio.to_thread(resumed.revive)
            await asyncio.sleep(_PAUSE_S)
        raise AssertionError(f"asked in vain; the last answers: {answers}")

    async def recover_until(self, condition: Callable[[Answers], bool]) -> Answers:
        """Ask until the answers are as expected; requests may fail meanwhile, and answers may not be wrong."""
        for _ in range(_ATTEMPTS):
            with contextlib.suppress(UndecodableError):
                answers = await self.ask()
                if condition(answers):
                    return answers
            await asyncio.sleep(_PAUSE_S)
        raise AssertionError("asked in vain")

    async def fail_naming(self, failing: Mapping[str, str], deadline: float = DEADLINE_S) -> None:
        """Ask, and check that the error names these members with their servers' addresses."""
        with pytest.raises(UndecodableError) as caught:
            await self.ask(deadline)
        assert set(failing) <= set(caught.value.failures)
        for member, address in failing.items():
            assert address in caught.value.failures[member], caught.value.failures
            assert f"{member}: " in str(caught.value) and address in str(caught.value)


def all_direct(answers: Answers) -> bool:
    return all(answer.source is Source.DIRECT for answer in answers.values())


def decoded(*members: str) -> Callable[[Answers], bool]:
    """Tell whether just these answers were decoded."""
    return lambda answers: {name for name, answer in answers.items() if answer.source is Source.DECODED} == set(members)


def addresses_of(cluster: Cluster, wire: str) -> Mapping[str, str]:
    return cluster.http_addresses if wire == "http" else cluster.grpc_addresses
