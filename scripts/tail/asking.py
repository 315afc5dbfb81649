"""One face for both kinds of client: the answers of all originals, and how many of them were decoded."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, Protocol

from coin_export.client import CodedClient, Policy, RequestOptions, Source, TransportOptions
from coin_export.client.transport import Reply
from coin_export.client.transport_grpc import GrpcTransport
from coin_export.datasets.calibration import Array
from scripts.bench.bare import BareGather
from scripts.bench.group import INPUT, OUTPUT


class Asked(NamedTuple):
    """One request's answers.

    Attributes:
        outputs: of every original, in their order.
        decoded: the number of those that did not come from the original itself.
    """

    outputs: list[Array]
    decoded: int


class Asker(Protocol):
    """Asks all originals about one image; `calls` counts by model what was sent."""

    calls: Counter[str]

    async def ask(self, image: Array) -> Asked:
        """Return the answers; raises when there are none."""
        ...


class _Bare:
    def __init__(self, gather: BareGather) -> None:
        self.calls: Counter[str] = Counter()
        self._gather = gather

    async def ask(self, image: Array) -> Asked:
        self.calls.update(self._gather.models)
        return Asked(await self._gather.infer(image), 0)


class _Coded:
    def __init__(self, client: CodedClient, calls: Counter[str]) -> None:
        self.calls = calls
        self._client = client

    async def ask(self, image: Array) -> Asked:
        answers = (await self._client.infer({INPUT: image})).values()
        return Asked(
            [answer.outputs[OUTPUT] for answer in answers], sum(answer.source is Source.DECODED for answer in answers)
        )


class _Counting(GrpcTransport):
    def __init__(self, address: str, options: TransportOptions, calls: Counter[str]) -> None:
        super().__init__(address, options)
        self._calls = calls

    async def infer(
        self, model: str, encoded: Any, outputs: Sequence[str], options: RequestOptions, version: str = ""
    ) -> Reply:
        self._calls[model] += 1
        return await super().infer(model, encoded, outputs, options, version)


@asynccontextmanager
async def asker(addresses: Mapping[str, str], policy: Policy | None) -> AsyncIterator[Asker]:
    """Connect to servers, ``host:port`` by model; without a policy they are the originals' and all are awaited."""
    if policy is None:
        gather = BareGather(addresses, INPUT, OUTPUT)
        try:
            yield _Bare(gather)
        finally:
            await gather.close()
        return
    calls: Counter[str] = Counter()

    def transport(address: str, options: TransportOptions) -> GrpcTransport:
        return _Counting(address, options, calls)

    async with CodedClient(list(addresses.values()), policy=policy, make_transport=transport) as client:
        yield _Coded(client, calls)
