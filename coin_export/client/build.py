"""One build of a group as a client uses it: what it answers, and which servers hold it.

While a new build is rolled out, servers hold different ones, and answers of two builds must not meet in one decode.
So a request holds the build that it begins with. It asks only servers that hold this build, and takes an answer only
from a server that still does. What says which build a server holds is its last look-up. It is looked up again when
its connection was lost, when another version of a model answers, and from time to time; what is replaced behind the
same connection under the same version number shows only then, so a build should have a version number of its own.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping

from coin_export.client.discovery import Reports, left_out, serving
from coin_export.client.routing import Routing
from coin_export.client.server import Server
from coin_export.client.signature import Signature
from coin_export.code.linear import LinearCode
from coin_export.code.manifest import Group

Enough = Callable[[LinearCode, Collection[int]], bool]
"""Whether the answers of these members determine what is asked for."""


class Build:
    """A build and the servers that hold it.

    Args:
        group: the build.
        servers: all that the client knows, by address.
        versions: by model, the version to ask for; the server's default of the others.
        routing: chooses among the servers of one member.
        rng: for the routing.

    Attributes:
        group: the build.
        generation: its digest.
        code: its code.
        signature: what it is asked and what it answers.
        versions: by row, the model version to ask for.
    """

    def __init__(
        self,
        group: Group,
        servers: Mapping[str, Server],
        versions: Mapping[str, str],
        routing: Routing,
        rng: random.Random,
    ) -> None:
        self.group = group
        self._servers = servers
        self.generation = group.generation
        self.signature = Signature(group, 0)
        self.versions = tuple(versions.get(member.name, "") for member in group.members)
        self.code = group.code
        self._routing = routing
        self._rng = rng
        # By row: the servers, and the model version that each answers with (empty if it does not say).
        self._routes: list[dict[Server, str]] = [{} for _ in group.members]

    @property
    def servers(self) -> dict[str, tuple[str, ...]]:
        """Addresses by member."""
        return {
            member.name: tuple(server.address for server in routes)
            for member, routes in zip(self.group.members, self._routes, strict=True)
        }

    @property
    def held(self) -> bool:
        """Whether any server held it when it was looked up last."""
        return any(self._routes)

    @property
    def up(self) -> bool:
        """Whether any server that holds it is usable."""
        return any(server.usable for routes in self._routes for server in routes)

    @property
    def strength(self) -> tuple[int, int]:
        """How well it can be used: the members that are up, and the servers for them; (0, 0) if they do not suffice."""
        up = [sum(server.usable for server in routes) for routes in self._routes]
        rows = [row for row, count in enumerate(up) if count]
        return (len(rows), sum(up)) if self.code.decodable(rows) else (0, 0)

    def suffices(
        self, rows: Collection[int], servers: Collection[Server], enough: Enough = LinearCode.decodable
    ) -> bool:
        """Tell whether these members, and those that usable ones of these servers hold, are enough."""
        held = {row for row, routes in enumerate(self._routes) if any(s.usable for s in routes if s in servers)}
        return enough(self.code, {*rows, *held})

    def holds(self, server: Server) -> bool:
        """Tell whether a server holds a member of it."""
        return any(server in routes for routes in self._routes)

    def refresh(self, reports: Reports) -> None:
        """Take in what the servers say that they hold."""
        held = serving(reports, self.group)
        self._routes = [
            {self._servers[address]: served.version for address, served in held[member.name].items()}
            for member in self.group.members
        ]
        limits = [served.max_batch_size for found in held.values() for served in found.values()]
        limit = min((limit for limit in limits if limit > 0), default=0)
        if limit != self.signature.max_batch_size:
            self.signature = Signature(self.group, limit)

    def route(self, row: int, though_down: bool = False, besides: Collection[Server] = ()) -> Server | None:
        """Choose a server for a member.

        Args:
            row: the member.
            though_down: take one that counts as down, if all do; the bound on abandoned calls holds even then, and
                so does the rule that its build must be known.
            besides: servers that are not to be chosen.

        Returns:
            None when there is no such server.
        """
        routes = self._routes[row]
        servers = [server for server in routes if server.usable and server not in besides]
        if len(servers) < len(routes):
            for server in routes:
                if server.in_doubt and server not in besides:
                    server.recheck()
        if not servers and though_down:
            servers = [s for s in routes if s.has_room and not s.in_doubt and s not in besides]
        if len(servers) < 2:
            return servers[0] if servers else None
        return servers[self._routing.choose([server.outstanding for server in servers], self._rng)]

    def why_no_route(self, row: int) -> str:
        """Say why `route` found none."""
        if self._routes[row]:
            return "; ".join(f"server {server.address}: {server.why_not_usable}" for server in self._routes[row])
        down = "; ".join(f"{server.address}: {server.down}" for server in self._servers.values() if server.down)
        if down:
            return f"no server that serves it could be reached: {down}"
        reports = [server.report for server in self._servers.values() if server.report]
        return f"no server holds this build of it any more{left_out(reports)}"

    def problem_with(self, row: int, server: Server, version: str) -> str:
        """Say why an answer may not be this build's; empty when it is.

        Args:
            row: the member that was asked.
            server: that answered.
            version: of the model, as the answer says; empty if it does not.
        """
        expected = self._routes[row].get(server)
        if expected is None:
            return "it holds another build by now"
        if version and expected and version != expected:
            server.doubt()
            return f"version {version} answered, where version {expected} was found; the server is looked up again"
        return ""
