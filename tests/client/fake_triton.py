"""A loopback gRPC server that speaks Triton's protocol and misbehaves as scripted. The wire is real."""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, TypeVar

import grpc  # type: ignore[import-untyped]  # grpcio ships no type information
import numpy as np
import numpy.typing as npt
from tritonclient.grpc import service_pb2, service_pb2_grpc

from coin_export.client import Answers, CodedClient
from coin_export.code.linear import LinearCode
from coin_export.code.manifest import PARAMETER_KEY, Group, Member, Quality, Tensor

Reply = Callable[[npt.NDArray[np.float32], Any], Awaitable[Any]]
Fake = TypeVar("Fake", bound="FakeTriton")

CODE = LinearCode(((0.5, 0.5),))
CLASSES = 3
PIXELS = 4
_PATIENCE = 5000  # far more than is ever needed; a test that would hang fails


def make_group(code: LinearCode = CODE, name: str = "digits", salt: str = "") -> Group:
    """Make a group whose members are linear maps, so that decoding is exact."""
    names = [*"abcdefgh"[: code.k], *(f"coded_{index}" for index in range(code.m))]
    members = tuple(
        Member(member, "original" if row < code.k else "coded", tuple(code.generator[row]), f"sha256:{salt}{member}")
        for row, member in enumerate(names)
    )
    quality = tuple(Quality((member,), member, 2.0, 0.1, 97.0) for member in names[: code.k])
    tensors = (Tensor("input", "FP32", (PIXELS,)),), (Tensor("logits", "FP32", (CLASSES,)),)
    return Group(name, "coin", "logits", *tensors, members, quality)


def weights_of(group: Group, member: str) -> npt.NDArray[np.float32]:
    """The linear map of a member, shape (PIXELS, CLASSES); another one in every build."""
    rng = np.random.default_rng(zlib.crc32(group.generation.encode()))
    originals = rng.normal(size=(group.code.k, PIXELS, CLASSES))
    row = next(m.row for m in group.members if m.name == member)
    return np.tensordot(np.asarray(row), originals, axes=1).astype(np.float32)


class FakeTriton(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]  # untyped base
    """Serves some members of a group.

    Attributes:
        delay_s: before each answer.
        hold: answers wait for it while it is cleared.
        reply: makes the response instead of the model.
        asked: number of inference requests that came in.
        answered: number of inference requests that ran to their end.
        cancelled: number of inference requests that the client cancelled.
        headers: of the last inference request.
        request: the last inference request.
        had_deadline: whether any request carried a gRPC deadline.
        metadata_hold: calls for metadata wait for it while it is cleared.
        max_batch_size: in every model's configuration.
        configs: descriptions of groups in place of the models' own, by model.
        unloaded: models that are in the index and have no configuration any more.
        model_versions: that are ready, by model; "1" alone of the others.
        asked_versions: of the inference requests that came in.
    """

    def __init__(self, group: Group, members: Sequence[str], version: str = "2.51.0") -> None:
        self.group = group
        self.members = list(members)
        self.version = version
        self.max_batch_size = 8
        self.is_ready = True
        self.delay_s = 0.0
        self.hold = asyncio.Event()
        self.hold.set()
        self.metadata_hold = asyncio.Event()
        self.metadata_hold.set()
        self.reply: Reply | None = None
        self.configs: dict[str, str] = {}
        self.unloaded: set[str] = set()
        self.model_versions: dict[str, tuple[str, ...]] = {}
        self.asked_versions: list[str] = []
        self.asked = self.answered = self.cancelled = self.metadata_calls = 0
        self.headers: dict[str, str] = {}
        self.request: Any = None
        self.had_deadline = False
        self.port = 0
        self.credentials: Any = None  # for TLS: gRPC's server credentials, or an SSL context
        self._server: Any = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Listen; at the same port as before when started again."""
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, self._server)
        where = f"127.0.0.1:{self.port}"
        if self.credentials is None:
            self.port = self._server.add_insecure_port(where)
        else:
            self.port = self._server.add_secure_port(where, self.credentials)
        await self._server.start()

    async def stop(self) -> None:
        """Drop all connections."""
        await self._server.stop(None)

    async def ServerMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802 - the protocol's name
        self.metadata_calls += 1
        self.had_deadline |= context.time_remaining() is not None
        await self.metadata_hold.wait()
        return service_pb2.ServerMetadataResponse(name="triton", version=self.version)

    async def ServerReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        return service_pb2.ServerReadyResponse(ready=self.is_ready)

    async def RepositoryIndex(self, request: Any, context: Any) -> Any:  # noqa: N802
        index = service_pb2.RepositoryIndexResponse()
        for member in self.members:
            for version in self.model_versions.get(member, ("1",)):
                index.models.add(name=member, version=version, state="READY")
        index.models.add(name="broken", version="1", state="UNAVAILABLE", reason="does not load")
        return index

    async def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
        if request.name in self.unloaded:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"unknown model: '{request.name}' has no available versions")
        response = service_pb2.ModelConfigResponse()
        response.config.name = request.name
        response.config.max_batch_size = self.max_batch_size
        if request.name in self.configs:
            response.config.parameters[PARAMETER_KEY].string_value = self.configs[request.name]
        elif request.name in [member.name for member in self.group.members]:
            response.config.parameters[PARAMETER_KEY].string_value = self.group.to_json(request.name)
        return response

    async def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.asked += 1
        self.asked_versions.append(request.model_version)
        self.request = request
        self.headers = dict(context.invocation_metadata())
        self.had_deadline |= context.time_remaining() is not None
        try:
            await asyncio.sleep(self.delay_s)
            await self.hold.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        batch = np.frombuffer(request.raw_input_contents[0], np.float32).reshape(request.inputs[0].shape)
        self.answered += 1
        if self.reply is not None:
            return await self.reply(batch, context)
        response = response_of(batch @ weights_of(self.group, request.model_name))
        newest = max(self.model_versions.get(request.model_name, ("1",)), key=int)
        response.model_version = request.model_version or newest
        return response


def response_of(logits: npt.NDArray[Any], datatype: str = "FP32", name: str = "logits") -> Any:
    """Make a response with one output."""
    response = service_pb2.ModelInferResponse(model_name="m", model_version="1")
    response.outputs.add(name=name, datatype=datatype, shape=logits.shape)
    response.raw_output_contents.append(logits.tobytes())
    return response


def replying(response: Any) -> Reply:
    """Answer always the same."""

    async def reply(batch: npt.NDArray[np.float32], context: Any) -> Any:
        return response

    return reply


def aborting(status: str, details: str) -> Reply:
    """Fail always the same."""

    async def reply(batch: npt.NDArray[np.float32], context: Any) -> Any:
        await context.abort(getattr(grpc.StatusCode, status), details)

    return reply


@asynccontextmanager
async def started(*servers: FakeTriton) -> AsyncIterator[list[str]]:
    """Start servers and return their addresses; stop those that are still up at the end."""
    for server in servers:
        await server.start()
    try:
        yield [server.address for server in servers]
    finally:
        for server in servers:
            server.hold.set()
            server.metadata_hold.set()
            await server.stop()


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait until something that another task or a server does has happened."""
    for _ in range(_PATIENCE):
        if condition():
            return
        await asyncio.sleep(0.002)
    raise AssertionError("waited in vain")


async def ask_until(client: CodedClient, condition: Callable[[Answers], bool]) -> None:
    """Ask until the answers, or anything else, are as expected."""
    inputs = {"input": np.ones((1, PIXELS), np.float32)}
    for _ in range(_PATIENCE):
        if condition(await client.infer(inputs, deadline=60.0)):
            return
        await asyncio.sleep(0.01)
    raise AssertionError("asked in vain")


def one_each(group: Group, versions: Mapping[str, str] | None = None, version: str = "2.51.0") -> list[FakeTriton]:
    """One server per member."""
    return one_each_of(FakeTriton, group, versions, version)


def one_each_of(
    kind: type[Fake], group: Group, versions: Mapping[str, str] | None = None, version: str = "2.51.0"
) -> list[Fake]:
    """One server of this kind per member."""
    return [kind(group, [member.name], (versions or {}).get(member.name, version)) for member in group.members]


def edited(group: Group, member: str, **changes: Any) -> str:
    """A member's description with some keys of the group changed."""
    content = json.loads(group.to_json(member))
    content["group"].update(changes)
    return json.dumps(content)


def renamed(group: Group, name: str) -> Group:
    """The same members as another group."""
    return replace(group, name=name)
