"""A transport without a wire: answers come at once, or when the script lets them. Leaves the client's own cost."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from coin_export.client import CodedClient, Source, TransportOptions
from coin_export.client.transport import ModelConfig, Reply, RequestOptions, Transport
from coin_export.code.linear import LinearCode
from coin_export.code.manifest import PARAMETER_KEY, Group, Member, Tensor

_CLASSES = 10
INPUTS = {"input": np.zeros((1, 4), np.float32)}
INPUT, OUTPUT = "input", "logits"


def scripted_group(k: int) -> Group:
    """Describe a group of ``k`` originals and one coded model."""
    code = LinearCode.from_rows([[1.0] * k])
    members = tuple(
        Member(f"model_{row}", "original" if row < k else "coded", tuple(code.generator[row].tolist()), f"sha256:{row}")
        for row in range(code.n)
    )
    tensors = (Tensor(INPUT, "FP32", (4,)),), (Tensor(OUTPUT, "FP32", (_CLASSES,)),)
    return Group("scripted", "average", "logits", *tensors, members, ())


class ScriptedTransport(Transport):
    """A server of one member.

    Args:
        address: of the server.
        group: the whole group.
        member: the model that it serves.

    Attributes:
        held: answers wait for this future; None to answer at once.
    """

    version = "2.51.0"
    may_cancel = False

    def __init__(self, address: str, group: Group, member: str) -> None:
        self.address = address
        self.held: asyncio.Future[None] | None = None
        self._member = member
        self._config = ModelConfig(member, 0, {PARAMETER_KEY: group.to_json(member)})
        self._reply = Reply({OUTPUT: np.ones((1, _CLASSES), np.float32)}, "1")

    async def server_metadata(self) -> str:
        """See `Transport`."""
        return self.version

    async def ready(self) -> bool:
        """See `Transport`."""
        return True

    async def model_index(self) -> dict[str, tuple[str, ...]]:
        """See `Transport`."""
        return {self._member: ("1",)}

    async def model_config(self, model: str, version: str = "") -> ModelConfig:
        """See `Transport`."""
        return self._config

    def encode(self, inputs: Mapping[str, npt.NDArray[Any]], datatypes: Mapping[str, str]) -> Any:
        """See `Transport`."""
        return inputs

    async def infer(
        self, model: str, encoded: Any, outputs: Sequence[str], options: RequestOptions, version: str = ""
    ) -> Reply:
        """See `Transport`."""
        if self.held is not None:
            await self.held
        return self._reply

    async def close(self) -> None:
        """See `Transport`."""


class ScriptedServers:
    """A server for each of ``k`` originals and their coded model.

    Attributes:
        addresses: of the servers.
    """

    def __init__(self, k: int) -> None:
        group = scripted_group(k)
        self.addresses = [f"server:{row}" for row in range(len(group.members))]
        self._transports = {
            address: ScriptedTransport(address, group, member.name)
            for address, member in zip(self.addresses, group.members, strict=True)
        }
        self._first = self._transports[self.addresses[0]]

    def transport(self, address: str, options: TransportOptions) -> ScriptedTransport:
        """Return the transport of a server, for a client to use."""
        return self._transports[address]

    async def ask(self, client: CodedClient, *, late: bool) -> None:
        """Make one request; if ``late``, the first original answers only once its answer has been decoded."""
        held = self._first.held = asyncio.get_running_loop().create_future() if late else None
        answers = await client.infer(INPUTS)
        if held is not None:
            held.set_result(None)
            await asyncio.sleep(0)  # the late answer's cost is part of the request's
            assert answers["model_0"].source is Source.DECODED
