"""The client for code without asyncio: the same core, run by one thread of its own. No logic lives here."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Any, TypeVar

from coin_export.client.answer import Answer, Answers, Array
from coin_export.client.arguments import Weights
from coin_export.client.client import DEFAULT_LIMITS, DEFAULT_POLICY, DEFAULT_TRANSPORT, NOTHING, CodedClient
from coin_export.client.ending import cancelled, ended
from coin_export.client.observer import Observer
from coin_export.client.policy import Policy
from coin_export.client.server import Limits
from coin_export.client.transport import Parameter, Timeout, Transport, TransportOptions
from coin_export.client.transport_grpc import GrpcTransport
from coin_export.code.manifest import Group
from coin_export.errors import ClientError

T = TypeVar("T")

_END_S = 1.0  # for requests of other threads, whose calls have ended already
_NOT_CONNECTED = "the client is not connected: use it inside `with`, or call its connect()"


class _Portal:
    """A thread that runs an event loop, and a way to run coroutines on it from other threads."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        # A daemon, so that a client that was never closed does not keep its process from ending.
        self._thread = threading.Thread(target=self._loop.run_forever, name="coin_export.client", daemon=True)
        self._thread.start()
        self._lock = threading.Lock()  # nothing is submitted behind the last work, where nobody would run it
        self._stopped = False

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end; what interrupts the waiting thread cancels it.

        Raises:
            ClientError: if another thread has stopped this one.
        """
        return self._result(self._submit(work))

    def stop(self) -> None:
        """Let what is under way end, for a bounded time, then end the thread."""
        self._result(self._submit(_others_ended(), last=True))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _submit(self, work: Coroutine[Any, Any, T], *, last: bool = False) -> Future[T]:
        with self._lock:
            if self._stopped:
                work.close()
                raise ClientError(_NOT_CONNECTED)
            self._stopped = last
            return asyncio.run_coroutine_threadsafe(work, self._loop)

    def _result(self, future: Future[T]) -> T:
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise


async def _others_ended() -> None:
    await ended(_others(), _END_S)
    await cancelled(_others(), _END_S)


def _others() -> set[asyncio.Task[Any]]:
    return {task for task in asyncio.all_tasks() if task is not asyncio.current_task()}


class SyncCodedClient:
    """`CodedClient` for code without asyncio: the same arguments, answers and errors.

    Use it as ``with SyncCodedClient([...]) as client``, or call `connect` and `close`. Any number of threads may
    call `infer` at the same time.
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
        self._client = CodedClient(
            addresses,
            group=group,
            policy=policy,
            limits=limits,
            transport=transport,
            make_transport=make_transport,
            observers=observers,
            model_versions=model_versions,
        )
        self._portal: _Portal | None = None
        self._lock = threading.Lock()  # of connecting and closing only

    def __enter__(self) -> SyncCodedClient:
        self.connect()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def group(self) -> Group:
        """See `CodedClient`."""
        return self._client.group

    @property
    def servers(self) -> Mapping[str, tuple[str, ...]]:
        """See `CodedClient`."""
        return self._client.servers

    @property
    def server_versions(self) -> Mapping[str, str]:
        """See `CodedClient`."""
        return self._client.server_versions

    def connect(self) -> None:
        """See `CodedClient.connect`."""
        with self._lock:
            if self._portal is not None:
                return
            portal = _Portal()
            try:
                portal.run(self._client.connect())
            except BaseException:
                portal.stop()
                raise
            self._portal = portal

    def close(self) -> None:
        """See `CodedClient.close`; requests of other threads that are under way end with an error."""
        with self._lock:
            portal, self._portal = self._portal, None
            if portal is not None:
                try:
                    portal.run(self._client.close())
                finally:
                    portal.stop()

    def infer(
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
        """See `CodedClient.infer`."""
        portal = self._connected
        return portal.run(
            self._client.infer(
                inputs,
                deadline=deadline,
                wanted=wanted,
                coded=coded,
                request_id=request_id,
                priority=priority,
                timeout=timeout,
                headers=headers,
                parameters=parameters,
                parameters_of=parameters_of,
            )
        )

    def infer_mean(
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
        """See `CodedClient.infer_mean`."""
        portal = self._connected
        return portal.run(
            self._client.infer_mean(
                inputs,
                weights=weights,
                deadline=deadline,
                request_id=request_id,
                priority=priority,
                timeout=timeout,
                headers=headers,
                parameters=parameters,
                parameters_of=parameters_of,
            )
        )

    @property
    def _connected(self) -> _Portal:
        portal = self._portal
        if portal is None:
            raise ClientError(_NOT_CONNECTED)
        return portal
