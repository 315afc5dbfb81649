"""One server over gRPC. Knows gRPC and the messages of Triton's protocol, and maps gRPC's errors.

A request's bytes are put together from parts that are each serialized once: its inputs for all servers, the names of a
model and its outputs for all requests. Protocol buffers merge what is concatenated.

Cancelling a gRPC call kills Triton servers before 2.59: cancelled tasks, client timeouts and closed channels all
cancel the call at the server, which has a race there (triton-inference-server/server#7368, #8034). So no call
here carries a client timeout, and callers ask `Transport.may_cancel` before they cancel one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]  # grpcio ships no type information
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import serialize_byte_tensor

from coin_export.client.answer import Array, Outputs
from coin_export.client.signature import DTYPES
from coin_export.client.transport import (
    ModelConfig,
    Parameter,
    RefusedError,
    Reply,
    RequestOptions,
    Transport,
    TransportOptions,
    ready_versions,
)
from coin_export.errors import TransportError, UserError

CANCEL_SINCE = (2, 59)  # Triton 25.06
_MODEL_INFER = "/inference.GRPCInferenceService/ModelInfer"
_COMPRESSIONS = {None: None, "gzip": grpc.Compression.Gzip, "deflate": grpc.Compression.Deflate}
_REFUSALS = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,  # it is too large, or its sender has had his share
)
# What gRPC raises; a value that does not fit its field, too.
_FAILURES = (grpc.RpcError, grpc.aio.BaseError, ValueError, TypeError)
# What reading an answer raises that is not what Triton sends; gRPC itself hands over None in place of such a one.
_UNREADABLE = (ValueError, TypeError, LookupError)
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
    """gRPC.

    Must be made and used inside a running event loop.

    Raises:
        TransportError: if a certificate or key cannot be read.
        UserError: if there is what only HTTP has among the options.
    """

    protocol = "grpc"

    def __init__(self, address: str, options: TransportOptions) -> None:
        for name in ("response_compression", "query_params"):
            if getattr(options, name):
                raise UserError(f"{name} {getattr(options, name)!r} is HTTP's; leave it out over gRPC")
        self.address = address
        self._headers = dict(options.headers)
        self._metadata = tuple(self._headers.items())
        self._compression = _COMPRESSIONS[options.compression]
        self._version: str | None = None
        try:
            self._channel = _channel(address, options)
        except (OSError, ValueError) as error:
            raise TransportError(f"server {address}: the channel cannot be made: {error}", address=address) from error
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        # The stub's own takes a message; this one takes its bytes.
        self._model_infer = self._channel.unary_unary(
            _MODEL_INFER, response_deserializer=service_pb2.ModelInferResponse.FromString
        )

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
        return self._channel.get_state() is grpc.ChannelConnectivity.READY

    async def server_metadata(self) -> str:
        """See `Transport`."""
        metadata = await self._ask("metadata", self._stub.ServerMetadata, service_pb2.ServerMetadataRequest())
        self._version = str(metadata.version)
        return self._version

    async def ready(self) -> bool:
        """See `Transport`."""
        answer = await self._ask("readiness", self._stub.ServerReady, service_pb2.ServerReadyRequest())
        return bool(answer.ready)

    async def model_index(self) -> dict[str, tuple[str, ...]]:
        """See `Transport`."""
        index = await self._ask("model index", self._stub.RepositoryIndex, service_pb2.RepositoryIndexRequest())
        return ready_versions((model.name, model.version, model.state) for model in index.models)

    async def model_config(self, model: str, version: str = "") -> ModelConfig:
        """See `Transport`."""
        request = service_pb2.ModelConfigRequest(name=model, version=version)
        response = await self._ask(f"configuration of model {model!r}", self._stub.ModelConfig, request)
        config = response.config
        parameters = {key: value.string_value for key, value in config.parameters.items()}
        return ModelConfig(config.name, config.max_batch_size, parameters)

    def encode(self, inputs: Mapping[str, Array], datatypes: Mapping[str, str]) -> bytes:
        """See `Transport`."""
        request = service_pb2.ModelInferRequest()
        for name, array in inputs.items():
            datatype = datatypes[name]
            request.inputs.add(name=name, datatype=datatype, shape=array.shape)
            request.raw_input_contents.append(_texts(array) if datatype == "BYTES" else array.tobytes())
        return bytes(request.SerializeToString())

    async def infer(
        self, model: str, encoded: bytes, outputs: Sequence[str], options: RequestOptions, version: str = ""
    ) -> Reply:
        """See `Transport`."""
        metadata = tuple({**self._headers, **options.headers}.items()) if options.headers else self._metadata
        try:
            request = b"".join((_question(model, version, tuple(outputs)), _serialized(options), encoded))
            response = await self._model_infer(request, metadata=metadata, compression=self._compression)
        except _FAILURES as error:
            raise self._failure(f"model {model!r}", error) from error
        if response is None:
            raise self._strange(f"model {model!r}")
        try:
            return Reply(_arrays(response, outputs), response.model_version)
        except _UNREADABLE as error:
            raise self._error(f"model {model!r}", f"its answer cannot be read: {error!r}") from error

    async def close(self) -> None:
        """See `Transport`."""
        await self._channel.close()

    async def _ask(self, what: str, method: Any, request: Any) -> Any:
        try:
            answer = await method(request, metadata=self._metadata)
        except _FAILURES as error:
            raise self._failure(what, error) from error
        if answer is None:
            raise self._strange(what)
        return answer

    def _failure(self, what: str, error: Exception) -> TransportError:
        if not isinstance(error, grpc.aio.AioRpcError):
            return self._error(what, f"{type(error).__name__}: {error}")
        status = error.code()
        if status is grpc.StatusCode.UNAVAILABLE:
            self._version = None
        kind = RefusedError if status in _REFUSALS else TransportError
        return self._error(what, f"{status.name}: {error.details()}", kind)

    def _strange(self, what: str) -> TransportError:
        return self._error(what, "its answer is not of Triton's protocol")

    def _error(self, what: str, cause: str, kind: type[TransportError] = TransportError) -> TransportError:
        return kind(f"server {self.address}, {what}: {cause}", address=self.address)


def _channel(address: str, options: TransportOptions) -> Any:
    arguments = list({**_CHANNEL_ARGS, **options.channel_args}.items())
    if not options.ssl:
        return grpc.aio.insecure_channel(address, arguments)
    files = (options.root_certificates, options.private_key, options.certificate_chain)
    credentials = grpc.ssl_channel_credentials(*(Path(file).read_bytes() if file else None for file in files))
    return grpc.aio.secure_channel(address, credentials, arguments)


@lru_cache(maxsize=1024)
def _question(model: str, version: str, outputs: tuple[str, ...]) -> bytes:
    """Serialize what is the same for all requests to a model."""
    request = service_pb2.ModelInferRequest(model_name=model, model_version=version)
    for name in outputs:
        request.outputs.add(name=name)
    return bytes(request.SerializeToString())


def _serialized(options: RequestOptions) -> bytes:
    """Serialize what travels with a request, headers apart."""
    if not (options.request_id or options.priority or options.timeout is not None or options.parameters):
        return b""
    request = service_pb2.ModelInferRequest(id=options.request_id)
    if options.priority:
        request.parameters["priority"].uint64_param = options.priority
    if options.timeout is not None:
        request.parameters["timeout"].int64_param = options.timeout
    for name, value in options.parameters.items():
        setattr(request.parameters[name], _field(value), value)
    return bytes(request.SerializeToString())


def _field(value: Parameter) -> str:
    if isinstance(value, str):
        return "string_param"
    if isinstance(value, bool):
        return "bool_param"
    return "int64_param" if isinstance(value, int) else "double_param"


def _texts(array: Array) -> bytes:
    return bytes(serialize_byte_tensor(array).item()) if array.size else b""


def _arrays(response: Any, names: Sequence[str]) -> Outputs:
    """Return the outputs named, as read-only views of the message."""
    found: Outputs = {}
    contents = response.raw_output_contents
    for place, tensor in enumerate(response.outputs):
        if tensor.name in names:
            content, dtype = contents[place], DTYPES[tensor.datatype]
            if dtype.hasobject:  # numpy would take the bytes for pointers
                raise ValueError(f"the output {tensor.name!r} is {tensor.datatype}")
            array = found[tensor.name] = np.ndarray(tuple(tensor.shape), dtype, content)
            if array.nbytes != len(content):
                raise ValueError(f"{len(content)} bytes for the output {tensor.name!r} of shape {array.shape}")
    return found
