"""From servers' model configurations to one whole, consistent group. Nothing here waits but `ask`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from coin_export.client.transport import Transport
from coin_export.code.manifest import PARAMETER_KEY, Group, from_json
from coin_export.errors import DiscoveryError


@dataclass(frozen=True)
class Served:
    """A member of a group that a server serves."""

    group: Group
    member: str
    max_batch_size: int


@dataclass(frozen=True)
class Report:
    """What one server says about itself.

    Attributes:
        version: of the server.
        ready: whether it calls itself ready.
        models: all models that are ready on it.
        served: those of them that belong to a group.
    """

    version: str
    ready: bool
    models: tuple[str, ...]
    served: tuple[Served, ...]

    def of(self, group: str) -> tuple[Served, ...]:
        """Return the served members of the group of this name."""
        return tuple(served for served in self.served if served.group.name == group)


@dataclass(frozen=True)
class Topology:
    """A group and where it is served.

    Attributes:
        group: the group.
        max_batch_size: the largest batch that every server found accepts; 0 when there is no bound.
        servers: addresses by member, in the order in which they were given.
    """

    group: Group
    max_batch_size: int
    servers: Mapping[str, tuple[str, ...]]


async def ask(transport: Transport) -> Report:
    """Ask a server what it serves.

    Raises:
        TransportError: if a call fails.
        ManifestError: if a model's description of its group cannot be read.
        DiscoveryError: if a model is served under another name than it was built for.
    """
    version = await transport.server_metadata()
    ready = await transport.ready()
    models = await transport.model_index()
    served = []
    for model in models:
        config = await transport.model_config(model)
        text = config.parameters.get(PARAMETER_KEY)
        if text is None:
            continue
        group, member = from_json(text, f"server {transport.address}, model {model!r}")
        if member != model:
            raise DiscoveryError(
                f"server {transport.address}: model {model!r} was built as {member!r} of group {group.name!r}; "
                "serve models under the names they were built with"
            )
        served.append(Served(group, member, config.max_batch_size))
    return Report(version, ready, tuple(models), tuple(served))


def resolve(reports: Mapping[str, Report], down: Mapping[str, str], wanted: str | None) -> Topology:
    """Find the group that the servers serve together.

    A member that only unreachable servers can hold is tolerated as long as the others determine every original.

    Args:
        reports: by address, from the servers that answered.
        down: by address, why the others did not.
        wanted: the group's name; None when there is only one.

    Raises:
        DiscoveryError: if no server answered, no group or several are served, servers hold different builds of
            it, a member is served by none, or too few are reachable.
    """
    if not reports:
        raise DiscoveryError(
            f"none of the {len(down)} servers could be asked what it serves: {_listed(down)}; "
            "check that they run and that these are their gRPC addresses (port 8001 by default)"
        )
    name = _choose_group(reports, down, wanted)
    group = _one_generation(reports, name)
    servers = serving(reports, group)
    _check_whole(group, servers, reports, down)
    limits = [served.max_batch_size for report in reports.values() for served in report.of(name)]
    return Topology(group, min((limit for limit in limits if limit > 0), default=0), servers)


def serving(reports: Mapping[str, Report], group: Group) -> dict[str, tuple[str, ...]]:
    """Return by member the addresses of the servers that serve this very build of it."""
    return {
        member.name: tuple(
            address
            for address, report in reports.items()
            if any(s.member == member.name and s.group.generation == group.generation for s in report.of(group.name))
        )
        for member in group.members
    }


def _choose_group(reports: Mapping[str, Report], down: Mapping[str, str], wanted: str | None) -> str:
    names = sorted({served.group.name for report in reports.values() for served in report.served})
    if wanted in names:
        return str(wanted)
    unreachable = f" Not reached: {_listed(down)}." if down else ""
    if not names:
        models = {address: _named(report.models) for address, report in reports.items()}
        raise DiscoveryError(
            f"no server serves a model of a coded group; they serve {_listed(models)}.{unreachable} "
            "Build a repository with `coin-export build RECIPE.yaml` and serve it"
        )
    if wanted is not None:
        raise DiscoveryError(f"no server serves group {wanted!r}; the groups served are {names}.{unreachable}")
    if len(names) > 1:
        groups = {
            address: _named(sorted({served.group.name for served in report.served}))
            for address, report in reports.items()
        }
        raise DiscoveryError(f"the servers serve several groups ({_listed(groups)}); name one of {names} as `group`")
    return names[0]


def _one_generation(reports: Mapping[str, Report], name: str) -> Group:
    found: dict[str, Group] = {}
    holders: dict[str, list[str]] = {}
    for address, report in reports.items():
        for served in report.of(name):
            found.setdefault(served.group.generation, served.group)
            holders.setdefault(served.group.generation, []).append(f"{served.member} on {address}")
    if len(found) > 1:
        builds = {generation.removeprefix("sha256:")[:12]: ", ".join(held) for generation, held in holders.items()}
        raise DiscoveryError(
            f"the servers hold different builds of group {name!r}, which must not be decoded together: "
            f"{_listed(builds)}; serve all members from one build"
        )
    return next(iter(found.values()))


def _check_whole(
    group: Group, servers: Mapping[str, tuple[str, ...]], reports: Mapping[str, Report], down: Mapping[str, str]
) -> None:
    missing = [member for member, addresses in servers.items() if not addresses]
    # A server that is still loading its models may yet serve what is missing.
    loading = {address: "it is not ready yet" for address, report in reports.items() if not report.ready}
    absent = {**down, **loading}
    if missing and not absent:
        models = {address: _named(report.models) for address, report in reports.items()}
        raise DiscoveryError(
            f"group {group.name!r}: {_named(missing)} served by none of the servers, which serve {_listed(models)}; "
            "add the address of a server that does"
        )
    reachable = [row for row, member in enumerate(group.members) if member.name not in missing]
    if not group.code.decodable(reachable):
        raise DiscoveryError(
            f"group {group.name!r}: only {len(reachable)} of its {len(group.members)} members can be reached, "
            f"{group.code.k} are needed; missing: {_named(missing)}. Not reached: {_listed(absent)}"
        )


def _named(names: Iterable[str]) -> str:
    return ", ".join(names) or "nothing"


def _listed(items: Mapping[str, str]) -> str:
    return "; ".join(f"{key}: {value}" for key, value in items.items())
