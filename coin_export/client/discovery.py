"""From servers' model configurations to one whole, consistent group. Nothing here waits but `ask`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from coin_export.client.transport import ModelConfig, Transport
from coin_export.code.manifest import PARAMETER_KEY, Group, from_json
from coin_export.errors import DiscoveryError, ManifestError, TransportError

_MOST_READINGS = 3


@dataclass(frozen=True)
class Served:
    """A member of a group that a server serves.

    Attributes:
        group: the build that it belongs to.
        member: its name.
        max_batch_size: 0 for a model that does no batching of its own.
        version: the model version that answers; empty if the server does not say.
    """

    group: Group
    member: str
    max_batch_size: int
    version: str

    @cached_property
    def generation(self) -> str:
        """See `Group.generation`."""
        return self.group.generation


@dataclass(frozen=True)
class Report:
    """What one server says about itself.

    Attributes:
        version: of the server.
        ready: whether it calls itself ready, and told the configuration of every model that it called ready.
        models: all models that are ready on it.
        served: those of them that belong to a group.
        other_versions: by model, the versions that are ready in place of the one that is asked for.
        problems: with models that were left out: each says which server, which model and why.
    """

    version: str
    ready: bool
    models: tuple[str, ...]
    served: tuple[Served, ...]
    other_versions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    def of(self, group: str) -> tuple[Served, ...]:
        """Return the served members of the group of this name."""
        return tuple(served for served in self.served if served.group.name == group)


Reports = Mapping[str, Report]


async def ask(transport: Transport, versions: Mapping[str, str]) -> Report:
    """Ask a server what it serves.

    A model that cannot be used is left out, as it may be none of the group that is wanted: one whose description
    cannot be read, that has another name than it was built with, or that was unloaded in the meantime.

    What is read while a model, or the whole server, is replaced may be the version number of the one and the
    description of the other. So it is read again if the versions that answer are others at the end.

    Args:
        transport: reaches it.
        versions: by model, the version to ask for, where the server's default is not wanted.

    Raises:
        TransportError: if a call fails that is not about a single model, the connection is lost, or models are replaced
            as often as they are read.
    """
    server_version = await transport.server_metadata()
    ready = await transport.ready()
    models = await transport.model_index()
    for _ in range(_MOST_READINGS):
        report = await _read(transport, server_version, ready, models, versions)
        stands = transport.connected
        models = await transport.model_index()
        if stands and all(_answering(models, item.member, versions) == item.version for item in report.served):
            return report
    cause = f"models were replaced while they were looked up, {_MOST_READINGS} times in a row: {', '.join(models)}"
    raise TransportError(f"server {transport.address}: {cause}", address=transport.address)


def _answering(index: Mapping[str, tuple[str, ...]], model: str, versions: Mapping[str, str]) -> str | None:
    """Return the version of a model that answers; None if the one that is asked for, or the model, is not there."""
    found, wanted = index.get(model, ()), versions.get(model)
    if wanted:
        return wanted if wanted in found else None
    # What Triton takes when none is named: the greatest number.
    return max(found, key=lambda version: int(version) if version.isdecimal() else -1, default=None)


async def _read(
    transport: Transport,
    server_version: str,
    ready: bool,
    models: Mapping[str, tuple[str, ...]],
    versions: Mapping[str, str],
) -> Report:
    """Read the descriptions of the models in the index."""
    served: list[Served] = []
    problems: list[str] = []
    other_versions = {}
    for model, found in models.items():
        version = _answering(models, model, versions)
        if version is None:
            other_versions[model] = found
            continue
        try:
            config = await transport.model_config(model, versions.get(model, ""))
            served += _served(transport.address, model, config, version)
        except TransportError as error:
            if transport.version is None or not transport.connected:
                raise  # it is the server that is gone
            ready = False
            problems.append(str(error))
        except (ManifestError, DiscoveryError) as error:
            problems.append(str(error))
    return Report(server_version, ready, tuple(models), tuple(served), other_versions, tuple(problems))


def _served(address: str, model: str, config: ModelConfig, version: str) -> list[Served]:
    """Return the member of a group that a model is, if it is one."""
    text = config.parameters.get(PARAMETER_KEY)
    if text is None:
        return []
    group, member = from_json(text, f"server {address}, model {model!r}")
    if member != model:
        raise DiscoveryError(
            f"server {address}: model {model!r} was built as {member!r} of group {group.name!r}; "
            "serve models under the names they were built with"
        )
    return [Served(group, member, config.max_batch_size, version)]


def resolve(reports: Reports, down: Mapping[str, str], wanted: str | None, versions: Mapping[str, str]) -> str:
    """Find the group that the servers serve together, and whether a client can begin with it.

    A member that only unreachable servers can hold is tolerated as long as the others determine every original.
    Servers may hold different builds of the group, as they do while a new one is rolled out, if the builds can take
    each other's place and one of them is whole enough.

    Args:
        reports: by address, from the servers that answered.
        down: by address, why the others did not.
        wanted: the group's name; None when there is only one.
        versions: of models, as for `ask`.

    Returns:
        The group's name.

    Raises:
        DiscoveryError: if no server answered, no group or several are served, servers hold builds of which none
            can do alone or that are too different, a member or its version is served by none, or too few are
            reachable; it names the models that were left out.
    """
    if not reports:
        raise DiscoveryError(
            f"none of the {len(down)} servers could be asked what it serves: {_listed(down)}; "
            "check that they run and that these are their gRPC addresses (port 8001 by default)"
        )
    if not down:
        _check_versions(reports, versions)
    name = _choose_group(reports, down, wanted)
    builds = builds_of(reports, name)
    first = next(iter(builds.values()))
    members = [member.name for member in first.members]
    if not set(versions) <= set(members):
        raise DiscoveryError(f"model_versions is {dict(versions)}; the models of group {name!r} are {members}")
    if len(builds) == 1:
        _check_whole(first, serving(reports, first), reports, down)
    else:
        _check_roll_out(builds, reports)
    return name


def builds_of(reports: Reports, name: str) -> dict[str, Group]:
    """Return the builds of a group that are served, by generation, in the order in which they are found."""
    return {served.generation: served.group for report in reports.values() for served in report.of(name)}


def serving(reports: Reports, group: Group) -> dict[str, dict[str, Served]]:
    """Return by member of this very build, and then by address, how it is served."""
    generation = group.generation
    found: dict[str, dict[str, Served]] = {member.name: {} for member in group.members}
    for address, report in reports.items():
        for served in report.of(group.name):
            if served.generation == generation:
                found[served.member][address] = served
    return found


def left_out(reports: Iterable[Report]) -> str:
    """Say, after what else is said, which models were left out and why; empty if none was."""
    problems = [problem for report in reports for problem in report.problems]
    return f". Models left out: {'; '.join(problems)}" if problems else ""


def may_replace(group: Group, other: Group) -> bool:
    """Tell whether callers of one build can be answered by the other: same members, inputs and outputs."""
    return _interface(group) == _interface(other)


def _interface(group: Group) -> tuple[object, ...]:
    members = tuple((member.name, member.role, group.outputs_of(member)) for member in group.members)
    return group.inputs, group.outputs, group.code_space, members


def _choose_group(reports: Reports, down: Mapping[str, str], wanted: str | None) -> str:
    names = sorted({served.group.name for report in reports.values() for served in report.served})
    if wanted in names:
        return str(wanted)
    unreachable = f" Not reached: {_listed(down)}." if down else ""
    unusable = left_out(reports.values())
    if not names:
        models = {address: _named(report.models) for address, report in reports.items()}
        raise DiscoveryError(
            f"no server serves a model of a coded group; they serve {_listed(models)}{unusable}.{unreachable} "
            "Build a repository with `coin-export build RECIPE.yaml` and serve it"
        )
    if wanted is not None:
        raise DiscoveryError(
            f"no server serves group {wanted!r}; the groups served are {names}{unusable}.{unreachable}"
        )
    if len(names) > 1:
        groups = {
            address: _named(sorted({served.group.name for served in report.served}))
            for address, report in reports.items()
        }
        raise DiscoveryError(f"the servers serve several groups ({_listed(groups)}); name one of {names} as `group`")
    return names[0]


def _check_versions(reports: Reports, versions: Mapping[str, str]) -> None:
    for model, version in versions.items():
        others = {
            address: _named(report.other_versions[model])
            for address, report in reports.items()
            if model in report.other_versions
        }
        served = any(model == item.member for report in reports.values() for item in report.served)
        if others and not served:
            raise DiscoveryError(
                f"version {version!r} of model {model!r} is served by none of the servers; the versions served are "
                f"{_listed(others)}; name one of them in model_versions, or leave the model out for the newest"
            )


def _check_roll_out(builds: Mapping[str, Group], reports: Reports) -> None:
    first, *others = builds.values()
    holders = {
        generation.removeprefix("sha256:")[:12]: _named(
            f"{member} on {_named(addresses)}" for member, addresses in serving(reports, group).items() if addresses
        )
        for generation, group in builds.items()
    }
    if not all(may_replace(first, other) for other in others):
        raise DiscoveryError(
            f"the servers hold builds of group {first.name!r} with different models, inputs or outputs: "
            f"{_listed(holders)}; serve all members from one build, or give a build with others a group name of its own"
        )
    if not any(decodable(reports, group) for group in builds.values()):
        raise DiscoveryError(
            f"the servers hold different builds of group {first.name!r}, which must not be decoded together, and none "
            f"of them is served by enough members: {_listed(holders)}; serve all members from one build"
            f"{left_out(reports.values())}"
        )


def decodable(reports: Reports, group: Group) -> bool:
    """Tell whether the servers that hold this build determine every original."""
    servers = serving(reports, group)
    return group.code.decodable([row for row, member in enumerate(group.members) if servers[member.name]])


def _check_whole(
    group: Group, servers: Mapping[str, Mapping[str, Served]], reports: Reports, down: Mapping[str, str]
) -> None:
    missing = [member for member, addresses in servers.items() if not addresses]
    # A server that is still loading its models may yet serve what is missing.
    loading = {address: "it is not ready yet" for address, report in reports.items() if not report.ready}
    absent = {**down, **loading}
    if missing and not absent:
        models = {address: _named(report.models) for address, report in reports.items()}
        raise DiscoveryError(
            f"group {group.name!r}: {_named(missing)} served by none of the servers, which serve {_listed(models)}; "
            f"add the address of a server that does{left_out(reports.values())}"
        )
    reachable = [row for row, member in enumerate(group.members) if member.name not in missing]
    if not group.code.decodable(reachable):
        raise DiscoveryError(
            f"group {group.name!r}: only {len(reachable)} of its {len(group.members)} members can be reached, "
            f"{group.code.k} are needed; missing: {_named(missing)}. Not reached: {_listed(absent)}"
            f"{left_out(reports.values())}"
        )


def _named(names: Iterable[str]) -> str:
    return ", ".join(names) or "nothing"


def _listed(items: Mapping[str, str]) -> str:
    return "; ".join(f"{key}: {value}" for key, value in items.items())
