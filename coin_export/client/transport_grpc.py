"""One server over gRPC. Knows tritonclient's gRPC client, and maps its and gRPC's errors.

Cancelling a gRPC call kills Triton servers before 2.59: cancelled tasks, client timeouts and closed channels all
cancel the call at the server, which has a race there (triton-inference-server/server#7368, #8034). So no call
here carries a client timeout, and callers ask `Transport.may_cancel` before they cancel one.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

import grpc  # type: ignore[import-untyped]  # grpcio ships no type information
import tritonclient.grpc.aio as triton
from tritonclient.utils import InferenceServerException

from coin_export.client.answer import Array
from coin_export.client.transport import (
    ModelConfig,
    RefusedError,
    Reply,
    RequestOptions,
    Transport,
    TransportOptions,
    ready_versions,
)
from coin_export.errors import TransportError

T = TypeVar("T")

CANCEL_SINCE = (2, 59)  # Triton 25.06
# What reading an answer raises that is not what Triton sends; gRPC itself hands over None in place of such a one.
_UNREADABLE = (ValueError, TypeError, AttributeError)
_MAX_MESSAGE_BYTES = 2**31 - 1
_CHANNEL_ARGS: dict[str, int | str] = {
    "grpc.max_send_message_length": _MAX_MESSAGE_BYTES,
    "grpc.max_receive_message_length": _MAX_MESSAGE_BYTES,
    # A restarted server is found again within a second; gRPC's own backoff grows to two minutes.
    "grpc.initial_reconnect_backoff_ms": 100,
    "grpc.max_reconnect_backoff_ms": 1000,
    # In spite of its name, how long one attempt to connect may take; gRPC's own is 20 seconds.
    "grpc.min_reconnect_backoff_ms": 2000,
    # Makes the kernel give up a connection on which nothing sent was acknowledged for so long (TCP_USER_TIMEOUT), as
    # when the machine vanished; TCP's own patience is a quarter of an hour. Pings, which this is meant for, stay out
    # (once in 24 days): a process that is stopped does not answer them and its calls would be cancelled, while its
    # kernel goes on acknowledging.
    "grpc.keepalive_time_ms": 2**31 - 2,
    "grpc.keepalive_timeout_ms": 30_000,
    # Connections and their backoff are this client's own, not shared with others of the process.
    "grpc.use_local_subchannel_pool": 1,
}


class GrpcTransport(Transport):
    """gRPC by tritonclient.

    Must be made and used inside a running event loop.

    Raises:
        TransportError: if a certificate or key cannot be read.
    """

    protocol = "grpc"

    def __init__(self, address: str, options: TransportOptions) -> None:
        self.address = address
        self._headers = dict(options.headers)
        self._compression = options.compression
        self._version: str | None = None
        self._requested: dict[tuple[str, ...], list[Any]] = {}
        try:
            self._client = triton.InferenceServerClient(
                address,
                ssl=options.ssl,
                root_certificates=options.root_certificates,
                private_key=options.private_key,
                certificate_chain=options.certificate_chain,
                channel_args=list({**_CHANNEL_ARGS, **options.channel_args}.items()),
            )
        except (OSError, ValueError) as error:
            raise TransportError(f"server {address}: the channel cannot be made: {error}", address=address) from error

    @property
    def version(self) -> str | None:
        """See `Transport`."""
        return self._version

    @property
    def may_cancel(self) -> bool:
        """See `Transport`; False as long as the version is unknown."""
        numbers = re.match(r"(\d+)\.(\d+)", self._version or "")
        return numbers is not None and (int(numbers[1]), int(numbers[2])) >= CANCEL_SINCE

    @property
    def connected(self) -> bool:
        """See `Transport`; gRPC leaves this state when the connection is lost, and enters it by itself never.

        It makes a new connection only for a call, and none is sent before the server was looked up again.
        """
        # tritonclient does not hand out its channel in any other way.
        return self._client._channel.get_state() is grpc.ChannelConnectivity.READY

    async def server_metadata(self) -> str:
        """See `Transport`."""
        metadata = await self._call("metadata", self._client.get_server_metadata)
        self._version = str(metadata.version)
        return self._version

    async def ready(self) -> bool:
        """See `Transport`."""
        return bool(await self._call("readiness", self._client.is_server_ready))

    async def model_index(self) -> dict[str, tuple[str, ...]]:
        """See `Transport`."""
        index = await self._call("model index", self._client.get_model_repository_index)
        return ready_versions((model.name, model.version, model.state) for model in index.models)

    async def model_config(self, model: str, version: str = "") -> ModelConfig:
        """See `Transport`."""
        what = f"configuration of model {model!r}"
        response = await self._call(what, self._client.get_model_config, model, version)
        config = response.config
        parameters = {key: value.string_value for key, value in config.parameters.items()}
        return ModelConfig(config.name, config.max_batch_size, parameters)

    def encode(self, inputs: Mapping[str, Array], datatypes: Mapping[str, str]) -> Any:
        """See `Transport`."""
        encoded = []
        for name, array in inputs.items():
            tensor = triton.InferInput(name, array.shape, datatypes[name])
            encoded.append(tensor.set_data_from_numpy(array))
        return encoded

    async def infer(
        self, model: str, encoded: Any, outputs: Sequence[str], options: RequestOptions, version: str = ""
    ) -> Reply:
        """See `Transport`."""
        names = tuple(outputs)
        if names not in self._requested:
            self._requested[names] = [triton.InferRequestedOutput(name) for name in names]
        result = await self._call(
            f"model {model!r}",
            self._client.infer,
            model,
            encoded,
            model_version=version,
            outputs=self._requested[names],
            request_id=options.request_id,
            priority=options.priority,
            timeout=options.timeout,
            headers={**self._headers, **options.headers},
            compression_algorithm=self._compression,
            parameters=options.parameters,
        )
        try:
            arrays = {name: result.as_numpy(name) for name in names}
        except (*_UNREADABLE, struct.error) as error:
            raise self._error(f"model {model!r}", f"its answer cannot be read: {error}") from error
        answered_by = str(result.get_response().model_version)
        return Reply({name: array for name, array in arrays.items() if array is not None}, answered_by)

    async def close(self) -> None:
        """See `Transport`."""
        await self._client.close()

    async def _call(self, what: str, method: Callable[..., Awaitable[T]], *args: Any, **options: Any) -> T:
        try:
            answer = await method(*args, **{"headers": self._headers, **options})
        except InferenceServerException as error:
            status = str(error.status() or "no status").removeprefix("StatusCode.")
            if status == "UNAVAILABLE":
                self._version = None
            kind = RefusedError if status == "INVALID_ARGUMENT" else TransportError
            raise self._error(what, f"{status}: {error.message()}", kind) from error
        except (grpc.RpcError, grpc.aio.BaseError, *_UNREADABLE) as error:
            raise self._error(what, f"{type(error).__name__}: {error}") from error
        if answer is None:
            raise self._error(what, "its answer is not of Triton's protocol")
        return answer

    def _error(self, what: str, cause: str, kind: type[TransportError] = TransportError) -> TransportError:
        return kind(f"server {self.address}, {what}: {cause}", address=self.address)
