"""Model repositories of the comparison: the coded group, and groups whose extra servers are plain replicas."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from coin_export.code.manifest import Group
from coin_export.repository.layout import onnx_path, write_repository
from coin_export.repository.options import RepositoryOptions
from scripts.bench.group import coded_group
from scripts.tail.policies import Extra


def served(models: Path, extra: Extra) -> tuple[Path, list[str], list[str]]:
    """Return a repository, the names of the originals in it, and those of the extra models that are to be served.

    Args:
        models: the folder in which repositories are, or are made.
        extra: what serves besides the originals.
    """
    repository, group = models / "coded", coded_group(models / "coded")
    if extra in ("one_replica", "all_replicas"):
        chosen = len(group.coded) if extra == "one_replica" else len(group.originals)
        group = replicated(group, chosen)
        _write(models / extra, group, repository)
        repository = models / extra
    extras = [] if extra == "none" else [member.name for member in group.coded]
    return repository, [member.name for member in group.originals], extras


def replicated(group: Group, replicas: int) -> Group:
    """Describe the originals of ``group`` with a replica of each of the first ``replicas`` in the coded models' place.

    A replica is a coded model whose row of the code is that of its original: the same client uses both.
    """
    copies = tuple(
        replace(original, name=f"{original.name}_replica", role="coded") for original in group.originals[:replicas]
    )
    return replace(group, name=f"{group.name}_{replicas}_replicas", members=(*group.originals, *copies), quality=())


def _write(target: Path, group: Group, source: Path) -> None:
    files = {member.name: onnx_path(source / member.name.removesuffix("_replica")) for member in group.members}
    write_repository(target, group, files, RepositoryOptions())
