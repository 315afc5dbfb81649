"""All servers of a client: looked up at the start and again when one was down, chosen for a member, closed."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from coin_export.client.answer import Array
from coin_export.client.discovery import Topology, resolve, serving
from coin_export.client.observer import Observers
from coin_export.client.routing import Routing
from coin_export.client.server import Limits, Server, Task
from coin_export.client.transport import Transport
from coin_export.code.manifest import Group

logger = logging.getLogger("coin_export.client")


class ServerPool:
    """The servers at some addresses. Must be made inside a running event loop.

    Args:
        addresses: ``host:port`` of each server.
        transport: makes a transport for an address.
        limits: bounds on waiting.
        routing: chooses among the servers of a member.
        observers: are told which servers are in use.

    Raises:
        TransportError: if a transport cannot be made.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        transport: Callable[[str], Transport],
        limits: Limits,
        routing: Routing,
        observers: Observers | None = None,
    ) -> None:
        self._limits = limits
        self._routing = routing
        self._rng = random.Random()
        self._observers = observers or Observers()
        self._loop = asyncio.get_running_loop()
        self._group: Group | None = None
        self._closed = False
        self._routes: list[tuple[Server, ...]] = []
        self._servers = {address: Server(transport(address), limits, self._doubt) for address in addresses}
        # Servers whose state is in doubt: down, or unavailable a moment ago. Looked up until they are in order.
        self._suspects = set(self._servers.values())

    @property
    def versions(self) -> dict[str, str]:
        """Server versions by address, of the servers that were looked up."""
        return {server.address: server.report.version for server in self._servers.values() if server.report}

    async def discover(self, group: str | None) -> Topology:
        """Ask all servers at the same time what they serve.

        A server that accepts the connection and never answers is not cancelled (the safety rule holds before
        its version is known); it counts as down, and its answer is welcome whenever it comes.

        Raises:
            DiscoveryError: see `resolve`.
        """
        tasks = [self._look_up(server) for server in self._servers.values()]
        await asyncio.wait(tasks, timeout=self._limits.discovery_s)
        for server in self._servers.values():
            if server.looking_up:
                server.down = f"it did not answer within {self._limits.discovery_s:g} s"
        reports = {server.address: server.report for server in self._servers.values() if server.report}
        down = {server.address: server.down for server in self._servers.values() if not server.report}
        topology = resolve(reports, down, group)
        self._group = topology.group
        for server in self._servers.values():
            if server.report:
                self._admit(server)
            if server.down:
                self._tell_down(server)
            else:
                self._tell_up(server)
        for member, addresses in topology.servers.items():
            if not addresses:
                logger.warning(
                    "model %s is served by none of the servers reached",
                    member,
                    extra={"event": "model_unserved", "model": member},
                )
        return topology

    def route(self, row: int, though_down: bool = False) -> Server | None:
        """Choose a server for a member.

        Args:
            row: the member.
            though_down: take one that counts as down, if all do; the bound on abandoned calls holds even then.

        Returns:
            None when there is no such server.
        """
        servers = [server for server in self._routes[row] if server.usable]
        if not servers and though_down:
            servers = [server for server in self._routes[row] if server.has_room]
        if len(servers) < 2:
            return servers[0] if servers else None
        return servers[self._routing.choose([server.outstanding for server in servers], self._rng)]

    def why_no_route(self, row: int) -> str:
        """Say why `route` found none."""
        return "; ".join(f"server {server.address}: {server.why_not_usable}" for server in self._routes[row]) or (
            "no server that serves it could be reached: "
            + "; ".join(f"{server.address}: {server.down}" for server in self._servers.values() if server.down)
        )

    def encode(self, inputs: Mapping[str, Array], datatypes: Mapping[str, str]) -> Any:
        """Make a request's inputs ready for the wire, once for all servers."""
        return next(iter(self._servers.values())).transport.encode(inputs, datatypes)

    def look_up_suspects(self) -> None:
        """Look up, in the background, the servers that are due; costs nothing while all are in order."""
        if self._suspects:
            now = self._loop.time()
            for server in self._suspects:
                if not server.looking_up and now >= server.next_lookup:
                    self._look_up(server)

    async def close(self) -> None:
        """Wait a bounded time for the calls under way, then close the connections.

        Closing a connection cancels what is under way on it, which is what the safety rule forbids. So calls are
        first given time to end; one that has not ended by then would be cancelled by the end of this process
        too, and nothing but waiting longer would be safer.
        """
        self._closed = True
        try:
            await self._wait_for_calls(self._limits.close_s)
        finally:
            for server in self._servers.values():
                await server.transport.close()
            for task in self._calls():
                task.cancel()
            await self._wait_for_calls(None)

    def _calls(self) -> list[Task]:
        return [task for server in self._servers.values() for task in server.calls]

    async def _wait_for_calls(self, timeout: float | None) -> None:
        calls = self._calls()
        if calls:
            await asyncio.wait(calls, timeout=timeout)

    def _doubt(self, server: Server, reason: str) -> None:
        if reason:
            self._set_down(server, reason)
        if server not in self._suspects and not self._closed:
            self._suspects.add(server)
            self.look_up_suspects()

    def _look_up(self, server: Server) -> Task:
        server.next_lookup = self._loop.time() + self._limits.lookup_interval_s
        return server.look_up(partial(self._looked_up, server))

    def _looked_up(self, server: Server, task: Task) -> None:
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:
            self._set_down(server, str(error))
            return
        server.report = task.result()
        if self._group is None:  # still connecting
            return
        was_down = server.down
        self._admit(server)
        if was_down and not server.down:
            logger.info(
                "server %s is in use again", server.address, extra={"event": "server_up", "server": server.address}
            )
            self._tell_up(server)

    def _admit(self, server: Server) -> None:
        """Use a server that was looked up, if it serves the group that this client decodes."""
        group, report = self._group, server.report
        assert group is not None and report is not None
        served = report.of(group.name)
        if not served:
            self._set_down(server, f"it serves no member of group {group.name!r}")
        elif any(item.group.generation != group.generation for item in served):
            self._set_down(server, f"it serves another build of group {group.name!r}; connect anew to use it")
        else:
            server.down = ""
            if report.ready:  # else it is still loading models, and is looked up again
                self._suspects.discard(server)
        self._build_routes(group)

    def _build_routes(self, group: Group) -> None:
        reports = {server.address: server.report for server in self._servers.values() if server.report}
        servers: Mapping[str, tuple[str, ...]] = serving(reports, group)
        self._routes = [tuple(self._servers[address] for address in servers[member.name]) for member in group.members]

    def _set_down(self, server: Server, reason: str) -> None:
        was_up, server.down = not server.down, reason
        if was_up and not self._closed:
            self._tell_down(server)

    def _tell_up(self, server: Server) -> None:
        self._observers.tell(lambda observer: observer.server_up(server.address))

    def _tell_down(self, server: Server) -> None:
        address, reason = server.address, server.down
        fields = {"event": "server_down", "server": address, "reason": reason}
        logger.warning("server %s counts as down: %s", address, reason, extra=fields)
        self._observers.tell(lambda observer: observer.server_down(address, reason))
