"""The border to the wire: what the client needs of one server. Nothing here knows tritonclient.

`transport_grpc` and `transport_http` are the only modules that do; they map its errors to `TransportError`.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, NamedTuple

from coin_export.client.answer import Array, Outputs
from coin_export.errors import RequestError, TransportError, UserError

Parameter = str | bool | int | float
# Microseconds; or, for "deadline", what is left of the request's time when a call is sent.
Timeout = int | Literal["deadline"] | None

# Triton's clients keep these for themselves; see tritonclient.utils.TRITON_RESERVED_REQUEST_PARAMS.
_RESERVED = re.compile(r"sequence_(id|start|end)|priority|timeout|headers|binary_data_output|triton_.*")

# Of the protocol's integers; what a message has no room for would fail at every server.
_INT64_MAX = 2**63 - 1
_UINT64_MAX = 2**64 - 1
_HALF_OF_A_PAIR = re.compile(r"[\ud800-\udfff]")  # of surrogates: a text with one cannot be encoded


@dataclass(frozen=True)
class TransportOptions:
    """How servers are reached; the same for all of them.

    Attributes:
        ssl: use TLS.
        root_certificates: path of a PEM file; the system's when None.
        private_key: path of a PEM file, for mutual TLS.
        certificate_chain: path of a PEM file, for mutual TLS.
        headers: sent with every call, for example ``{"authorization": "Bearer ..."}``; lower-case names.
        compression: of requests.
        response_compression: of answers, over HTTP; over gRPC a server decides by itself.
        query_params: of the URL of every inference request, over HTTP.
        channel_args: gRPC channel arguments, added to this package's own or in place of them.

    Raises:
        UserError: if a header or a compression is not what servers take.
    """

    ssl: bool = False
    root_certificates: str | None = None
    private_key: str | None = None
    certificate_chain: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    compression: Literal["gzip", "deflate"] | None = None
    response_compression: Literal["gzip", "deflate"] | None = None
    query_params: Mapping[str, str | int] = field(default_factory=dict)
    channel_args: Mapping[str, int | str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        problem = problem_with_headers(self.headers)
        if problem:
            raise UserError(problem)
        for name in ("compression", "response_compression"):
            value = getattr(self, name)
            if value not in (None, "gzip", "deflate"):
                raise UserError(f"{name} {value!r} is unknown; use 'gzip', 'deflate' or None")


@dataclass(frozen=True)
class RequestOptions:
    """What travels with one request to every member that is asked; see Triton's inference protocol.

    Attributes:
        request_id: comes back with the answer, and stands in the server's logs.
        priority: 0 for the model's default; 1 is the highest.
        timeout: microseconds after which the server need not run the request any more, if the model's queue
            policy allows requests to override it; ``"deadline"`` for what is left until the request's deadline when
            a call is sent. Never a gRPC deadline, nor a timeout of tritonclient's: these cancel the call.
        headers: sent in addition to the transport's own, or in place of them; lower-case names.
        parameters: further parameters of the request.
        parameters_of: by model, parameters of the call to it, in addition to these or in place of them.

    Raises:
        RequestError: if one of them is not what Triton takes.
    """

    request_id: str = ""
    priority: int = 0
    timeout: Timeout = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    parameters_of: Mapping[str, Mapping[str, Parameter]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        problem = self._problem()
        if problem:
            raise RequestError(problem)

    def of_call(self, model: str, remaining_s: float) -> RequestOptions:
        """Return the options of one call: those of its model, and the timeout as a number.

        Args:
            model: that is asked.
            remaining_s: seconds until the request's deadline.
        """
        if self.timeout != "deadline" and model not in self.parameters_of:
            return self
        timeout = _microseconds(remaining_s) if self.timeout == "deadline" else self.timeout
        parameters = {**self.parameters, **self.parameters_of.get(model, {})}
        return replace(self, timeout=timeout, parameters=parameters, parameters_of={})

    def _problem(self) -> str:
        if not isinstance(self.request_id, str) or _HALF_OF_A_PAIR.search(self.request_id):
            return f"request_id is {self.request_id!r}; give a text that can be encoded"
        if not _is_count(self.priority, _UINT64_MAX):
            return f"priority is {self.priority!r}; give an integer from 0 to {_UINT64_MAX}"
        if self.timeout not in (None, "deadline") and not _is_count(self.timeout, _INT64_MAX):
            return f"timeout is {self.timeout!r}; give whole microseconds from 0 to {_INT64_MAX}, 'deadline' or None"
        groups = (self.parameters, *self.parameters_of.values())
        items = (item for parameters in groups for item in parameters.items())
        problems = (_problem_with_parameter(name, value) for name, value in items)
        return next(filter(None, problems), "") or problem_with_headers(self.headers)


class Reply(NamedTuple):
    """A model's answer: its outputs, and the version of the model that made them."""

    outputs: Outputs
    model_version: str


@dataclass(frozen=True)
class ModelConfig:
    """What a client needs of a model's configuration."""

    name: str
    max_batch_size: int
    parameters: Mapping[str, str]


class RefusedError(TransportError):
    """The server, or what guards it, refuses a request: it is wrong, too large or not permitted.

    This says nothing against the server.
    """


class Transport(ABC):
    """Calls to one server; every call raises `TransportError` and nothing else, cancellation apart.

    Attributes:
        address: of the server, ``host:port``.
        protocol: for those who watch; empty where there is none that has a name.
    """

    address: str
    protocol: ClassVar[Literal["grpc", "http", ""]] = ""

    @property
    @abstractmethod
    def version(self) -> str | None:
        """The server's version; None until asked for, and again after the server was unavailable.

        Another server may have taken the place of one that was unavailable.
        """

    @property
    @abstractmethod
    def may_cancel(self) -> bool:
        """Whether cancelling a call is safe, on this wire and at this server's version."""

    @property
    def connected(self) -> bool:
        """Whether the connection over which the version was asked for still stands, as far as this side can tell.

        When it does not, the next answer may come from another server, which may serve other models.
        """
        return True

    @abstractmethod
    async def server_metadata(self) -> str:
        """Ask for the server's version, such as ``2.51.0``."""

    @abstractmethod
    async def ready(self) -> bool:
        """Ask whether the server is ready."""

    @abstractmethod
    async def model_index(self) -> dict[str, tuple[str, ...]]:
        """Ask for the models that are ready: by name, their versions that are."""

    @abstractmethod
    async def model_config(self, model: str, version: str = "") -> ModelConfig:
        """Ask for a model's configuration; for that of the server's default version if none is named."""

    @abstractmethod
    def encode(self, inputs: Mapping[str, Array], datatypes: Mapping[str, str]) -> Any:
        """Make a request's inputs ready for the wire, once for all transports of this class."""

    @abstractmethod
    async def infer(
        self, model: str, encoded: Any, outputs: Sequence[str], options: RequestOptions, version: str = ""
    ) -> Reply:
        """Ask a model; the reply holds those of ``outputs`` that the answer does.

        Args:
            model: its name.
            encoded: the inputs, as `encode` made them.
            outputs: the names of those to ask for.
            options: travel with the request.
            version: of the model; empty for the server's default.

        Raises:
            RefusedError: if the server found fault with the request.
        """

    @abstractmethod
    async def close(self) -> None:
        """Close the connection; calls still under way are cancelled."""


def ready_versions(index: Iterable[tuple[str, str, str]]) -> dict[str, tuple[str, ...]]:
    """Return the ready versions by model name, from the (name, version, state) of a server's model index."""
    found: dict[str, tuple[str, ...]] = {}
    for name, version, state in index:
        if state == "READY":
            found[name] = (*found.get(name, ()), version)
    return found


def _is_count(value: object, limit: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= limit


def _microseconds(remaining_s: float) -> int:
    return min(max(int(1e6 * remaining_s), 1), _INT64_MAX)  # zero would mean no timeout


def _problem_with_parameter(name: object, value: object) -> str:
    if not isinstance(name, str) or _RESERVED.fullmatch(name):
        return f"parameter {name!r} is reserved by Triton; use another name, or the argument of this name"
    if not isinstance(value, str | bool | int | float):
        return f"parameter {name!r} is a {type(value).__name__}; give a text, bool, int or float"
    if isinstance(value, int) and not -_INT64_MAX - 1 <= value <= _INT64_MAX:
        return f"parameter {name!r} does not fit into a signed integer of 64 bits; give it as a text"
    if _HALF_OF_A_PAIR.search(f"{name}{value}"):
        return f"parameter {name!r} cannot be encoded; give texts without half of a surrogate pair"
    return ""


def problem_with_headers(headers: Mapping[str, str]) -> str:
    """Say what is wrong with headers; empty if nothing is."""
    for name, value in headers.items():
        if not isinstance(name, str) or not re.fullmatch(r"[0-9a-z_.-]+", name):
            return f"header {name!r}: gRPC takes lower-case names of [0-9a-z_.-]"
        if name.endswith("-bin"):
            return (
                f"header {name!r}: gRPC takes bytes for names that end in '-bin', and HTTP does not; use another name"
            )
        if not isinstance(value, str) or not re.fullmatch(r"[ -~]*", value):
            return f"header {name!r}: gRPC takes printable ASCII text as value"
    return ""
