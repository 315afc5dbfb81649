"""The client for asyncio: ask all models of a group, return the first answers that suffice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType, TracebackType
from typing import Any, NamedTuple

from coin_export.client.answer import Answer, Answers, Array
from coin_export.client.arguments import (
    Weights,
    check_addresses,
    check_deadline,
    check_options,
    check_versions,
    combination,
    request_options,
    wanted_rows,
)
from coin_export.client.asking import Asking, Goal
from coin_export.client.fanout import Request
from coin_export.client.memory import Memory
from coin_export.client.observer import Observer, Observers
from coin_export.client.outcome import answers, mean
from coin_export.client.policy import Policy
from coin_export.client.pool import ServerPool
from coin_export.client.server import Limits
from coin_export.client.transport import Parameter, RequestOptions, Timeout, Transport, TransportOptions
from coin_export.client.transport_grpc import GrpcTransport
from coin_export.code.manifest import Group
from coin_export.errors import ClientError

DEFAULT_POLICY = Policy()
DEFAULT_LIMITS = Limits()
DEFAULT_TRANSPORT = TransportOptions()
NOTHING: Mapping[str, Any] = MappingProxyType({})


class _Connection(NamedTuple):
    """What a connected client has."""

    pool: ServerPool
    memory: Memory


class CodedClient:
    """Asks a coded group that Triton servers serve, and returns an answer for every original.

    Use it as ``async with CodedClient([...]) as client``, or call `connect` and `close`. One client serves any
    number of requests at the same time, within one event loop.

    Args:
        addresses: ``host:port`` of the servers' endpoints, in order of preference; gRPC's, unless
            ``make_transport`` says otherwise.
        group: the group's name; needed when the servers serve several.
        policy: when helping requests go out, how many may, and when missing answers are decoded.
        limits: bounds on waiting and on abandoned calls.
        transport: TLS, headers, compression and channel arguments.
        make_transport: makes the transport for an address: `GrpcTransport`, or `HttpTransport`.
        observers: are told of requests, calls and servers; see `Observer`.
        model_versions: by model name, the version to ask for; the newest that a server holds of the others.

    Raises:
        DiscoveryError: if an address is not ``host:port``, or none is given.
        UserError: if a model version is no number in the form of a text.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        *,
        group: str | None = None,
        policy: Policy = DEFAULT_POLICY,
        limits: Limits = DEFAULT_LIMITS,
        transport: TransportOptions = DEFAULT_TRANSPORT,
        make_transport: Callable[[str, TransportOptions], Transport] = GrpcTransport,
        observers: Sequence[Observer] = (),
        model_versions: Mapping[str, str] = NOTHING,
    ) -> None:
        self._addresses = check_addresses(addresses)
        self._group_name = group
        self._policy = policy
        self._limits = limits
        self._make_transport = lambda address: make_transport(address, transport)
        self._observers = Observers(observers)
        self._model_versions = check_versions(model_versions)
        self._connection: _Connection | None = None
        self._connecting = asyncio.Lock()  # or two would connect at once, or one while another closes

    async def __aenter__(self) -> CodedClient:
        await self.connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def group(self) -> Group:
        """The group, as it was built: its members, code and measured quality; changes when a build is rolled out."""
        return self._connected.pool.build.group

    @property
    def servers(self) -> Mapping[str, tuple[str, ...]]:
        """Addresses by member, of the servers that hold this build of it, as far as is known."""
        return self._connected.pool.build.servers

    @property
    def server_versions(self) -> Mapping[str, str]:
        """Server versions by address, of the servers that could be asked."""
        return self._connected.pool.versions

    async def connect(self) -> None:
        """Find out what the servers serve; does nothing when connected.

        Raises:
            DiscoveryError: if they do not serve one whole, consistent group.
            TransportError: if certificates or keys cannot be read.
        """
        async with self._connecting:
            if self._connection is not None:
                return
            pool = ServerPool(
                self._addresses,
                self._make_transport,
                self._limits,
                self._policy.route,
                self._observers,
                self._model_versions,
            )
            try:
                await pool.discover(self._group_name)
                self._connection = _Connection(pool, Memory(self._policy))
            except BaseException:
                await pool.close()
                raise

    async def close(self) -> None:
        """Wait a short time for calls under way (see `Limits`), then close the connections."""
        async with self._connecting:
            connection, self._connection = self._connection, None
            if connection is not None:
                await connection.pool.close()

    async def infer(
        self,
        inputs: Mapping[str, Array],
        *,
        deadline: float | None = None,
        wanted: Collection[str] | None = None,
        coded: bool = True,
        request_id: str = "",
        priority: int = 0,
        timeout: Timeout = None,
        headers: Mapping[str, str] = NOTHING,
        parameters: Mapping[str, Parameter] = NOTHING,
        parameters_of: Mapping[str, Mapping[str, Parameter]] = NOTHING,
    ) -> Answers:
        """Ask the group.

        Cancelling the caller ends its wait at once.

        Args:
            inputs: one array per input of the group, each of shape (batch, ...).
            deadline: seconds after which the request ends, decoded or failed; None to wait for as long as enough
                servers may still answer.
            wanted: names of the originals to answer for; all when not given.
            coded: False to ask the wanted originals alone, and have each answer from itself or not at all.
            request_id: see `RequestOptions`, as for the following.
            priority: of the request in the servers' queues.
            timeout: microseconds, for the servers' queues; independent of the deadline, unless it is ``"deadline"``.
            headers: of this request, in addition to the client's.
            parameters: further parameters of the request.
            parameters_of: by model, further parameters of the call to it.

        Returns:
            One answer per wanted original: its own if it came in time, else decoded from the others.

        Raises:
            RequestError: if the inputs, a name or an option do not fit; nothing has been sent then.
            UndecodableError: if too few members answered in time, or too many failed for any to suffice.
            ClientError: if the client is not connected.
        """
        rows = wanted_rows(self.group, wanted)
        options = request_options(request_id, priority, timeout, headers, parameters, parameters_of)
        return await self._ask(inputs, Goal(rows, None, answers, coded), deadline, options)

    async def infer_mean(
        self,
        inputs: Mapping[str, Array],
        *,
        weights: Weights = None,
        deadline: float | None = None,
        request_id: str = "",
        priority: int = 0,
        timeout: Timeout = None,
        headers: Mapping[str, str] = NOTHING,
        parameters: Mapping[str, Parameter] = NOTHING,
        parameters_of: Mapping[str, Mapping[str, Parameter]] = NOTHING,
    ) -> Answer:
        """Ask the group for the weighted mean of the originals' outputs.

        The mean is taken in the space that was coded: of logits, probabilities or values, as the group's
        ``code_space`` says. Outputs of originals with fewer classes count as zero where they end. When answers are
        missing, the mean follows from the coded models; where its weights are a coded model's own coefficients, that
        model's answer is the mean, and no other is needed.

        Args:
            inputs: as for `infer`, like the arguments that are not named here.
            weights: by original; divided by their sum. An original that is not named has weight zero. All are equal
                when not given. ``"coded"`` for the first coded model's own coefficients, for which its answer suffices.
            deadline: seconds after which the request ends.
            request_id: of the request.
            priority: of the request.
            timeout: of the request.
            headers: of the request.
            parameters: of the request.
            parameters_of: of the calls, by model.

        Returns:
            The mean, named like the group: direct if it was taken of the originals' own answers.

        Raises:
            RequestError: as `infer`; also if the weights are no usable ones.
            UndecodableError: if what arrived in time does not determine the mean.
            ClientError: if the client is not connected.
        """
        group = self.group
        coefficients = combination(group, weights)
        rows = tuple(row for row, coefficient in enumerate(coefficients) if coefficient)
        options = request_options(request_id, priority, timeout, headers, parameters, parameters_of)
        found = await self._ask(inputs, Goal(rows, coefficients, mean), deadline, options)
        return found[group.name]

    async def _ask(
        self, inputs: Mapping[str, Array], goal: Goal, deadline: float | None, options: RequestOptions
    ) -> Answers:
        started = asyncio.get_running_loop().time()
        pool, memory = self._connected
        build = pool.build
        batch = build.signature.check_request(inputs)
        ends = started + check_deadline(deadline)
        check_options(build.group, options, deadline)
        pool.look_up_due()
        request = Request(pool.encode(inputs, build.signature.input_datatypes), batch, options, started, ends)
        asking = Asking(pool, self._policy, memory, goal, request)
        if not self._observers:
            return await asking.answers(build)
        return await asking.watched_answers(build, self._observers)

    @property
    def _connected(self) -> _Connection:
        if self._connection is None:
            raise ClientError("the client is not connected: use it inside `async with`, or await its connect()")
        return self._connection
