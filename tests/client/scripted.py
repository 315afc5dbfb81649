"""A whole client on a virtual clock: real asyncio and the real client, a scripted wire, and no time that passes."""

from __future__ import annotations

import asyncio
import math
import selectors
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from coin_export.client.answer import Array
from coin_export.client.transport import ModelConfig, Reply, RequestOptions, Transport
from coin_export.code.manifest import PARAMETER_KEY, Group
from coin_export.errors import TransportError
from tests.client.fake_triton import weights_of

T = TypeVar("T")


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer when there is nothing to do."""

    def __init__(self) -> None:
        self._now = 0.0
        super().__init__(_JumpingSelector(self._jump))

    def time(self) -> float:
        return self._now

    def _jump(self, seconds: float | None) -> None:
        assert seconds is not None, "everything waits, and no timer is set: it would wait for ever"
        self._now += seconds


class _JumpingSelector(selectors.SelectSelector):
    def __init__(self, jump: Callable[[float | None], None]) -> None:
        super().__init__()
        self._jump = jump

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            self._jump(timeout)
        return ready


def run_virtually(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end on a virtual clock."""
    loop = VirtualLoop()
    try:
        return loop.run_until_complete(work)
    finally:
        loop.close()


@dataclass(frozen=True)
class Reaction:
    """What becomes of one call: an answer, a NaN or an error after some time; never, if the time is infinite."""

    after: float = 0.001
    fails: bool = False
    nan: bool = False


class ScriptedTransport(Transport):
    """A server of one member, or of several, whose calls end as scripted.

    Attributes:
        sent: the options of every call.
        calls: how many calls began.
    """

    def __init__(
        self,
        address: str,
        group: Group,
        members: Sequence[str],
        reactions: Iterator[Reaction],
        *,
        may_cancel: bool = False,
    ) -> None:
        self.address = address
        self.sent: list[RequestOptions] = []
        self._group = group
        self._members = members
        self._reactions = reactions
        self._may_cancel = may_cancel

    @property
    def version(self) -> str | None:
        return "2.51.0"

    @property
    def may_cancel(self) -> bool:
        return self._may_cancel

    async def server_metadata(self) -> str:
        return "2.51.0"

    async def ready(self) -> bool:
        return True

    async def model_index(self) -> dict[str, tuple[str, ...]]:
        return dict.fromkeys(self._members, ("1",))

    async def model_config(self, model: str, version: str = "") -> ModelConfig:
        return ModelConfig(model, 8, {PARAMETER_KEY: self._group.to_json(model)})

    def encode(self, inputs: Mapping[str, Array], datatypes: Mapping[str, str]) -> Any:
        return inputs

    async def infer(
        self, model: str, encoded: Any, outputs: Sequence[str], options: RequestOptions, version: str = ""
    ) -> Reply:
        self.sent.append(options)
        reaction = next(self._reactions)
        if reaction.after == math.inf:
            await asyncio.get_running_loop().create_future()
        await asyncio.sleep(reaction.after)
        if reaction.fails:
            raise TransportError("out of memory", address=self.address)
        logits = encoded["input"] @ weights_of(self._group, model)
        return Reply({"logits": np.full_like(logits, np.nan) if reaction.nan else logits}, "1")

    async def close(self) -> None:
        pass
