"""One server over HTTP. Knows tritonclient's HTTP client, and maps its and aiohttp's errors.

Ending a call closes its connection, which every Triton server survives; so calls may always be cancelled.
"""

from __future__ import annotations

import asyncio
import ssl
import zlib
from collections.abc import Awaitable, Coroutine, Mapping, Sequence
from itertools import chain
from typing import Any, TypeVar

import aiohttp
import numpy as np
import tritonclient.http.aio as triton
from tritonclient.utils import InferenceServerException

from coin_export.client.answer import Array
from coin_export.client.ending import within
from coin_export.client.transport import (
    ModelConfig,
    RefusedError,
    Reply,
    RequestOptions,
    Transport,
    TransportOptions,
    ready_versions,
)
from coin_export.errors import TransportError, UserError

T = TypeVar("T")

# Idle connections for questions stay; aiohttp closes others after 15 seconds. (It takes no infinity.)
_KEEP_ALIVE_S = 1e9
# Questions about the server itself; a connection that hangs is given up, and the next look-up makes a new one.
_QUESTION_S = 10.0
# What reading an answer raises that is not what Triton sends: tritonclient takes its form for granted.
_UNREADABLE = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, OSError, EOFError, zlib.error)
_REFUSALS = ("400", "401", "403", "413", "429", "431")
_FLOATING = ("FP16", "FP32", "FP64")


class HttpTransport(Transport):
    """HTTP by tritonclient and aiohttp; give it to a client as ``make_transport``, with HTTP addresses.

    Must be made and used inside a running event loop.

    Raises:
        TransportError: if a certificate or key cannot be read.
        UserError: if there are gRPC channel arguments among the options.
    """

    protocol = "http"

    def __init__(self, address: str, options: TransportOptions) -> None:
        if options.channel_args:
            raise UserError(f"channel_args {list(options.channel_args)} are gRPC's; leave them out over HTTP")
        self.address = address
        # aiohttp would offer every compression that it knows, and Triton would take one.
        plain = {"accept-encoding": "identity"} if options.response_compression is None else {}
        self._headers = {**plain, **options.headers}
        self._compression = options.compression
        self._response_compression = options.response_compression
        self._query_params = dict(options.query_params) or None
        self._version: str | None = None
        self._connected = False
        self._keeps_alive = False
        self._requested: dict[tuple[str, ...], list[Any]] = {}
        context = _ssl_context(address, options) if options.ssl else None
        self._client = _client(address, context)
        # A call that is cancelled closes its connection, and aiohttp closes those that are idle. One that this side
        # leaves open tells a server that was restarted from one that merely has nothing to do.
        self._questions = _client(address, context)
        self._questions._conn._keepalive_timeout = _KEEP_ALIVE_S

    @property
    def version(self) -> str | None:
        """See `Transport`."""
        return self._version

    @property
    def may_cancel(self) -> bool:
        """See `Transport`."""
        return True

    @property
    def connected(self) -> bool:
        """See `Transport`; True too while any connection of those since then is left.

        aiohttp makes new connections without a word: to the same server for more calls at a time, but after all of
        them were lost to whoever is there by now. A server or proxy that closes each connection after its answer
        tells nothing in this way; then only the version of its models does (see `build`).
        """
        return self._connected and (not self._keeps_alive or _stands(self._questions) or _stands(self._client))

    async def server_metadata(self) -> str:
        """See `Transport`."""
        metadata = await self._ask("metadata", self._questions.get_server_metadata(headers=self._headers))
        self._version = str(_field("metadata", metadata, "version", self.address))
        self._connected = True
        self._keeps_alive = _stands(self._questions)
        return self._version

    async def ready(self) -> bool:
        """See `Transport`."""
        return bool(await self._ask("readiness", self._questions.is_server_ready(headers=self._headers)))

    async def model_index(self) -> dict[str, tuple[str, ...]]:
        """See `Transport`."""
        index = await self._ask("model index", self._questions.get_model_repository_index(headers=self._headers))
        if not isinstance(index, list):
            raise self._error("model index", "its answer is no list")
        models = [model for model in index if isinstance(model, dict)]
        return ready_versions((str(m.get("name")), str(m.get("version", "")), str(m.get("state"))) for m in models)

    async def model_config(self, model: str, version: str = "") -> ModelConfig:
        """See `Transport`."""
        what = f"configuration of model {model!r}"
        config = await self._ask(what, self._questions.get_model_config(model, version, headers=self._headers))
        name = str(_field(what, config, "name", self.address))
        try:
            parameters = {key: str(value["string_value"]) for key, value in config.get("parameters", {}).items()}
            return ModelConfig(name, int(config.get("max_batch_size", 0)), parameters)
        except _UNREADABLE as error:
            raise self._error(what, f"its answer cannot be read: {error!r}") from error

    def encode(self, inputs: Mapping[str, Array], datatypes: Mapping[str, str]) -> Any:
        """See `Transport`."""
        encoded = []
        for name, array in inputs.items():
            tensor = triton.InferInput(name, list(array.shape), datatypes[name])
            encoded.append(tensor.set_data_from_numpy(array))
        return encoded

    async def infer(
        self, model: str, encoded: Any, outputs: Sequence[str], options: RequestOptions, version: str = ""
    ) -> Reply:
        """See `Transport`."""
        names = tuple(outputs)
        if names not in self._requested:
            self._requested[names] = [triton.InferRequestedOutput(name) for name in names]
        work = self._client.infer(
            model,
            encoded,
            model_version=version,
            outputs=self._requested[names],
            request_id=options.request_id,
            priority=options.priority,
            timeout=options.timeout,
            headers={**self._headers, **options.headers},  # a new dict: tritonclient adds to it
            request_compression_algorithm=self._compression,
            response_compression_algorithm=self._response_compression,
            query_params=self._query_params,
            parameters=options.parameters,
        )
        result = await self._call(f"model {model!r}", work)
        try:
            arrays = {name: _array(result, name) for name in names}
            answered_by = str(result.get_response().get("model_version", ""))
        except _UNREADABLE as error:
            raise self._error(f"model {model!r}", f"its answer cannot be read: {error!r}") from error
        return Reply({name: array for name, array in arrays.items() if array is not None}, answered_by)

    async def close(self) -> None:
        """See `Transport`."""
        await asyncio.gather(self._client.close(), self._questions.close())

    async def _ask(self, what: str, work: Coroutine[Any, Any, T]) -> T:
        return await self._call(what, within(_QUESTION_S, work))

    async def _call(self, what: str, work: Awaitable[T]) -> T:
        try:
            return await work
        except InferenceServerException as error:
            if error.status() == "503":
                self._version = None
            kind = RefusedError if error.status() in _REFUSALS else TransportError
            raise self._error(what, f"HTTP {error.status()}: {error.message()}", kind) from error
        except (aiohttp.ClientError, asyncio.TimeoutError) as error:
            self._version = None
            self._connected = False
            raise self._error(what, f"{type(error).__name__}: {error}") from error
        except (*_UNREADABLE, RuntimeError) as error:
            raise self._error(what, f"{type(error).__name__}: {error}") from error

    def _error(self, what: str, cause: str, kind: type[TransportError] = TransportError) -> TransportError:
        return kind(f"server {self.address}, {what}: {cause}", address=self.address)


def _client(address: str, context: ssl.SSLContext | None) -> triton.InferenceServerClient:
    return triton.InferenceServerClient(
        address,
        conn_limit=0,  # no limit: requests that wait for a connection would look like a slow server
        conn_timeout=None,  # deadlines are the client's business
        ssl=context is not None,
        ssl_context=context,
    )


def _stands(client: triton.InferenceServerClient) -> bool:
    """Whether a client has a connection, in use or idle; neither tritonclient nor aiohttp tells in any other way."""
    idle = (entry[0] for entries in client._conn._conns.values() for entry in entries)
    # One that is still being made has no transport; it may be to another server.
    return any(c.transport is not None and not c.transport.is_closing() for c in chain(idle, client._conn._acquired))


def _array(result: triton.InferResult, name: str) -> Array | None:
    tensor = result.get_output(name)
    if tensor is None:
        return None
    # Numbers written out in JSON are converted by numpy, which warns of integers that do not fit their type.
    if "data" in tensor and tensor["datatype"] not in _FLOATING:
        raise TypeError(f"output {name!r} is {tensor['datatype']}, not one of {_FLOATING}")
    with np.errstate(over="ignore", invalid="ignore"):  # what is too large is infinite, and found out as that
        array: Array = result.as_numpy(name)
    return array


def _field(what: str, answer: object, key: str, address: str) -> object:
    if not isinstance(answer, dict) or key not in answer:
        raise TransportError(f"server {address}, {what}: its answer has no {key!r}", address=address)
    return answer[key]


def _ssl_context(address: str, options: TransportOptions) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=options.root_certificates)
        if options.certificate_chain or options.private_key:
            context.load_cert_chain(options.certificate_chain or "", options.private_key)
    except OSError as error:
        files = (options.root_certificates, options.certificate_chain, options.private_key)
        raise TransportError(
            f"server {address}: certificates or keys {[file for file in files if file]} cannot be read: {error}",
            address=address,
        ) from error
    return context
