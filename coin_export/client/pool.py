"""All servers of a client: looked up at the start and again when in doubt, and which build of the group to use."""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

from coin_export.client.answer import Array
from coin_export.client.build import Build, Enough
from coin_export.client.discovery import Report, builds_of, left_out, may_replace, resolve
from coin_export.client.ending import cancelled, ended
from coin_export.client.observer import Observers
from coin_export.client.routing import Routing
from coin_export.client.server import Limits, Server, Task
from coin_export.client.transport import Transport

logger = logging.getLogger("coin_export.client")

# For closing connections, and for cancelled calls to end: a matter of microseconds, unless something is wrong.
_END_S = 1.0
NO_VERSIONS: Mapping[str, str] = MappingProxyType({})


class ServerPool:
    """The servers at some addresses. Must be made inside a running event loop.

    Args:
        addresses: ``host:port`` of each server.
        transport: makes a transport for an address.
        limits: bounds on waiting.
        routing: chooses among the servers of a member.
        observers: are told which servers are in use.
        versions: by model, the version to ask for; the server's default of the others.

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
        versions: Mapping[str, str] = NO_VERSIONS,
    ) -> None:
        self._limits = limits
        self._versions = versions
        self._observers = observers or Observers()
        self._loop = asyncio.get_running_loop()
        self._closed = False
        self._builds: dict[str, Build] = {}  # by generation, those that servers hold, the newest last
        self._build: Build | None = None
        self._servers = {
            address: Server(transport(address), limits, self._doubt, self._room_changed, self._lags)
            for address in addresses
        }
        self._make_build = partial(
            Build, servers=self._servers, versions=versions, routing=routing, rng=random.Random()
        )
        # Servers whose state is in doubt: down, or unavailable a moment ago. Looked up until they are in order.
        self._suspects = set(self._servers.values())
        self._rediscover_at = math.inf
        self._told_up: dict[Server, bool] = {}  # what the observers were told last

    @property
    def build(self) -> Build:
        """The build for requests that begin now."""
        assert self._build is not None, "discover() comes first"
        return self._build

    @property
    def versions(self) -> dict[str, str]:
        """Server versions by address, of the servers that were looked up."""
        return {server.address: server.report.version for server in self._servers.values() if server.report}

    async def discover(self, group: str | None) -> None:
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
        reports = self._reports
        down = {server.address: server.down for server in self._servers.values() if not server.report}
        name = resolve(reports, down, group, self._versions)
        found = builds_of(reports, name).values()
        self._builds = {group.generation: self._make_build(group) for group in found}
        self._build = next(iter(self._builds.values()))
        for server in self._servers.values():
            if server.report:
                self._admit(server, server.report)
        self._settle()
        for server in self._servers.values():
            if server.down:
                self._log_down(server)
            self._tell(server)
        for member, addresses in self.build.servers.items():
            if not addresses:
                logger.warning(
                    "model %s is served by none of the servers reached",
                    member,
                    extra={"event": "model_unserved", "model": member},
                )

    def encode(self, inputs: Mapping[str, Array], datatypes: Mapping[str, str]) -> Any:
        """Make a request's inputs ready for the wire, once for all servers."""
        return next(iter(self._servers.values())).transport.encode(inputs, datatypes)

    def look_up_due(self) -> None:
        """Look up, in the background, the servers that are due; costs nothing while all are in order."""
        now = self._loop.time()
        if now >= self._rediscover_at:
            self._rediscover_at = now + self._limits.rediscovery_interval_s
            self._suspects.update(self._servers.values())
        for server in self._suspects:
            if not server.looking_up and now >= server.next_lookup:
                self._look_up(server)

    async def another_chance(
        self, failed: Build, attempts: int, since: float, until: float, arrived: Collection[int], enough: Enough
    ) -> Build | None:
        """Return a build for a request that ``failed`` could not answer: another one, or it again if things changed.

        Looks up, as a last resort, the servers that may have been replaced, and waits until enough of them are in
        order, but not longer than until the time given, or than connecting would: a roll-out costs such a request
        time, not its answer, and a server that does not answer costs it neither.

        Args:
            failed: the build of its last attempt.
            attempts: how often it was attempted. After more than one, the same build is returned only if enough of its
                servers are in order: what fails again and again must not go on.
            since: the loop's time at which the first attempt was given up.
            until: the loop's time at which it must have ended.
            arrived: the rows that answered it.
            enough: tells which rows determine what it asks for.
        """
        doubtful = {server for server in self._servers.values() if server.in_doubt and not self._closed}
        look_ups = {server.look_up_under_way or self._look_up(server) for server in doubtful}
        ends = min(until, since + self._limits.discovery_s)
        waiting = look_ups
        while waiting and not self._is_promising(failed, doubtful, arrived, enough):
            timeout = max(ends - self._loop.time(), 0.0)
            done, waiting = await asyncio.wait(waiting, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                break
        if self._closed or self._loop.time() >= until or not self._is_up(enough):
            return None
        again = attempts == 1 or self._is_promising(failed, doubtful, arrived, enough)
        return self.build if self.build is not failed or (look_ups and again) else None

    def _is_promising(
        self, failed: Build, doubtful: Collection[Server], arrived: Collection[int], enough: Enough
    ) -> bool:
        """Tell whether a request may begin again without waiting for more of the servers that were in doubt."""
        # What failed on a server that was not in doubt would fail again.
        fit = self.build is not failed or failed.suffices(arrived, doubtful, enough)
        return fit and self._is_up(enough)

    def _is_up(self, enough: Enough) -> bool:
        """Tell whether enough of the build is up."""
        return self.build.suffices((), self._servers.values(), enough)

    async def close(self) -> None:
        """Wait a bounded time for the calls under way, then close the connections.

        Closing a connection cancels what is under way on it, which is what the safety rule forbids. So calls are
        first given time to end; one that has not ended by then would be cancelled by the end of this process
        too, and nothing but waiting longer would be safer.
        """
        self._closed = True
        try:
            until = self._loop.time() + self._limits.close_s
            while (calls := self._calls()) and (left := until - self._loop.time()) > 0:
                await ended(calls, left)  # what ends may lead to other calls
        finally:
            transports = [server.transport for server in self._servers.values()]
            closing = [self._loop.create_task(transport.close()) for transport in transports]
            await ended(closing, _END_S)
            await cancelled([*closing, *self._calls()], _END_S)

    def _calls(self) -> list[Task]:
        return [task for server in self._servers.values() for task in server.calls]

    def _doubt(self, server: Server, reason: str) -> None:
        if self._closed:
            return
        if reason:
            self._set_down(server, reason)
        elif server.in_doubt and (not server.down or server.lag.paused(self._loop.time())):
            # It answered when it was looked up last: do so again at once.
            server.lag.forget()
            server.next_lookup = self._loop.time()
        known = server in self._suspects
        self._suspects.add(server)
        if not known or server.in_doubt:
            self.look_up_due()
        self._settle()

    def _lags(self, server: Server) -> None:
        """Do without a slow server for some time, if the others suffice and are not slow themselves."""
        build, now = self._build, self._loop.time()
        if self._closed or build is None or not build.holds(server):
            return
        others = [other for other in self._servers.values() if other is not server]
        if build.suffices((), [other for other in others if not other.lag.lagging]):
            server.lag.pause(now)
            server.next_lookup = server.lag.paused_until
            self._doubt(server, f"most calls have taken twice the usual time or longer for {self._limits.slow_s:g} s")
            return
        for other in others:  # this one may be in the place of one that is no slower
            if other.lag.paused(now):
                other.lag.paused_until = other.next_lookup = now
        self.look_up_due()

    def _look_up(self, server: Server) -> Task:
        server.next_lookup = self._loop.time() + self._limits.lookup_interval_s
        return server.look_up(self._versions, partial(self._looked_up, server))

    def _looked_up(self, server: Server, report: Report, error: BaseException | None) -> None:
        if isinstance(error, asyncio.CancelledError):
            return
        if error is not None:
            self._set_down(server, str(error))
            self._settle()
            return
        server.looked_up(report)
        if self._build is None:  # still connecting
            return
        was_down = server.down
        self._admit(server, report)
        self._settle()
        if was_down and not server.down:
            logger.info(
                "server %s is in use again", server.address, extra={"event": "server_up", "server": server.address}
            )
        self._tell(server)

    @property
    def _reports(self) -> dict[str, Report]:
        return {server.address: server.report for server in self._servers.values() if server.report}

    def _admit(self, server: Server, report: Report) -> None:
        """Use a server that was looked up, if it holds a build that this client's requests may be answered by."""
        group = self.build.group
        served = report.of(group.name)
        strange = [item.group for item in served if not may_replace(group, item.group)]
        if not served:
            self._set_down(server, f"it serves no member of group {group.name!r}{left_out([report])}")
        elif strange:
            reason = f"it holds a build of group {group.name!r} with other models, inputs or outputs"
            self._set_down(server, f"{reason}; connect anew to use it")
        else:
            if server.lag.paused(self._loop.time()):
                server.next_lookup = server.lag.paused_until
            else:
                server.down = ""
                if report.ready and not server.in_doubt:  # else it is still loading models, and is looked up again
                    self._suspects.discard(server)
            for item in served:
                if item.generation not in self._builds:
                    self._builds[item.generation] = self._make_build(item.group)
        for build in self._builds.values():
            build.refresh(self._reports)

    def _settle(self) -> None:
        """Choose the build for the requests that begin from now on."""
        current = self._build
        if current is None:
            return
        self._builds = {key: build for key, build in self._builds.items() if build.held or build is current}
        alone = len(self._builds) == 1
        changing = not alone and sum(build.up for build in self._builds.values()) > 1
        interval_s = self._limits.lookup_interval_s if changing else self._limits.rediscovery_interval_s
        self._rediscover_at = min(self._rediscover_at, self._loop.time() + interval_s)
        if alone:
            return
        # While servers change over, the build that more of them hold carries the load; of equals, the newer one.
        best = max(enumerate(self._builds.values()), key=lambda item: (item[1].strength, item[0]))[1]
        if best is not current and best.strength[0]:
            self._build = best
            self._tell_build_changed(best.group.name, current.generation, best.generation)

    def _set_down(self, server: Server, reason: str) -> None:
        was_up, server.down = not server.down, reason
        if was_up and not self._closed:
            self._log_down(server)
            self._tell(server)

    def _room_changed(self, server: Server) -> None:
        self._settle()
        self._tell(server)

    def _tell_build_changed(self, group: str, old: str, new: str) -> None:
        fields = {"event": "build_changed", "group": group, "old": old, "new": new}
        logger.warning("group %s: requests go to build %s now, no longer to %s", group, new, old, extra=fields)
        self._observers.tell(lambda observer: observer.build_changed(group, old, new))

    def _tell(self, server: Server) -> None:
        """Tell the observers whether a server counts as down, unless they know."""
        address, reason = server.address, server.why_down
        up = not reason
        if self._told_up.get(server) is up:
            return
        self._told_up[server] = up
        if up:
            self._observers.tell(lambda observer: observer.server_up(address))
        else:
            self._observers.tell(lambda observer: observer.server_down(address, reason))

    def _log_down(self, server: Server) -> None:
        fields = {"event": "server_down", "server": server.address, "reason": server.down}
        logger.warning("server %s counts as down: %s", server.address, server.down, extra=fields)
