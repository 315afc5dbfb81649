"""What a group says about itself inside every member's ``config.pbtxt``.

The whole group travels with each of its models, so that a client that reaches any one of them knows all of
them: names, roles, rows of the generator matrix, digests, and the quality of a decoded answer as measured when
the group was built. Stored as JSON under the parameter key ``coin_export`` of the model's configuration.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Literal

from coin_export.code.linear import LinearCode
from coin_export.errors import CodeError, ManifestError

PARAMETER_KEY = "coin_export"
SCHEMA_VERSION = 2  # 1 knew no outputs of a member's own

Role = Literal["original", "coded"]
CodeSpace = Literal["logits", "probabilities", "values"]


@dataclass(frozen=True)
class Tensor:
    """One input or output as a client sees it.

    Attributes:
        name: as in the model's configuration.
        dtype: a Triton datatype, such as ``FP32`` or ``INT64``.
        shape: without the batch dimension; -1 where it is free.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Member:
    """One model of a group.

    Attributes:
        name: the Triton model name.
        role: ``original`` or ``coded``.
        row: its row of the generator matrix, k numbers.
        digest: ``sha256:...`` of its ``model.onnx``.
        accuracy: accuracy in % on the evaluation data given at build; None when none was given.
        output_shapes: shapes of its own outputs, in the group's order, where it has fewer classes than others; empty
            when its outputs are the group's.
    """

    name: str
    role: Role
    row: tuple[float, ...]
    digest: str
    accuracy: float | None = None
    output_shapes: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class Quality:
    """How good the decoded answers of one original are when the ``erased`` members are lost and nothing else.

    Attributes:
        erased: names of the lost members, originals and coded models.
        decoded: the original among them that this record speaks of.
        noise_gain: see `LinearCode.decoding`.
        relative_error: root mean square of (decoded - direct) over root mean square of (direct), on held-out
            calibration inputs.
        agreement: share, in %, of held-out calibration inputs, or of all their positions, on which decoded and direct
            have the same arg-max over the last dimension of the first output; None where that names no class, as of a
            single number, or of a map of more dimensions.
        degraded_accuracy: accuracy in % of decoded answers on the evaluation data; None when none was given.
    """

    erased: tuple[str, ...]
    decoded: str
    noise_gain: float
    relative_error: float
    agreement: float | None
    degraded_accuracy: float | None = None


@dataclass(frozen=True)
class Group:
    """A whole group: what its members are, how they are coded, how good decoding is.

    Attributes:
        name: the group's name, one per set of originals.
        encoder: the encoder that made the coded weights.
        code_space: the space in which outputs are combined.
        inputs: the inputs, the same for every member.
        outputs: the coded outputs, those of every member without `Member.output_shapes`.
        members: the originals in the order of the code, then the coded models in the order of its rows.
        quality: one record per erasure pattern and lost original.
    """

    name: str
    encoder: str
    code_space: CodeSpace
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    members: tuple[Member, ...]
    quality: tuple[Quality, ...] = ()

    @cached_property
    def originals(self) -> tuple[Member, ...]:
        """The originals, in the order of the code."""
        return tuple(member for member in self.members if member.role == "original")

    @cached_property
    def coded(self) -> tuple[Member, ...]:
        """The coded models, in the order of the code's rows."""
        return tuple(member for member in self.members if member.role == "coded")

    @cached_property
    def code(self) -> LinearCode:
        """The group's linear code."""
        return LinearCode(tuple(member.row for member in self.coded))

    def outputs_of(self, member: Member) -> tuple[Tensor, ...]:
        """Return the outputs of one member, each at most as large as the group's."""
        if not member.output_shapes:
            return self.outputs
        pairs = zip(self.outputs, member.output_shapes, strict=True)
        return tuple(replace(tensor, shape=shape) for tensor, shape in pairs)

    @property
    def generation(self) -> str:
        """A digest over all members' digests and rows: two builds that may be decoded together share it."""
        content = json.dumps([[m.name, m.role, m.row, m.digest] for m in self.members])
        return "sha256:" + hashlib.sha256(content.encode()).hexdigest()

    def expected_quality(self, erased: Sequence[str], decoded: str) -> Quality | None:
        """Return what was measured at build for ``decoded`` when exactly ``erased`` members are lost."""
        for record in self.quality:
            if record.decoded == decoded and set(record.erased) == set(erased):
                return record
        return None

    def to_json(self, member: str) -> str:
        """Write the text that the configuration of the model ``member`` carries."""
        content = {"schema_version": SCHEMA_VERSION, "member": member, "group": asdict(self)}
        return json.dumps(content, separators=(",", ":"), sort_keys=True, allow_nan=False)


def from_json(text: str, where: str) -> tuple[Group, str]:
    """Read a group and the name of the member that carried it.

    Args:
        text: what `Group.to_json` wrote.
        where: the place the text came from, for error messages.

    Raises:
        ManifestError: if the text is not JSON, of another schema version, or incomplete or inconsistent.
    """
    try:
        content = json.loads(text)
        version = content["schema_version"]
        if version != SCHEMA_VERSION:
            raise ManifestError(
                f"{where}: the group's description has schema version {version}, this package reads "
                f"{SCHEMA_VERSION}; use the release of coin_export that built the repository, or build it again"
            )
        group = _group(content["group"])
        member = str(content["member"])
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, ManifestError):
            raise
        raise ManifestError(
            f"{where}: the parameter {PARAMETER_KEY!r} is not a group's description "
            f"({type(error).__name__}: {error}); build the repository again"
        ) from error
    _check(group, member, where)
    return group, member


def _group(content: Mapping[str, Any]) -> Group:
    return Group(
        name=str(content["name"]),
        encoder=str(content["encoder"]),
        code_space=content["code_space"],
        inputs=tuple(_tensor(item) for item in content["inputs"]),
        outputs=tuple(_tensor(item) for item in content["outputs"]),
        members=tuple(map(_member, content["members"])),
        quality=tuple(Quality(**{**item, "erased": tuple(item["erased"])}) for item in content["quality"]),
    )


def _member(item: Mapping[str, Any]) -> Member:
    shapes = tuple(tuple(map(int, shape)) for shape in item["output_shapes"])
    return Member(**{**item, "row": tuple(map(float, item["row"])), "output_shapes": shapes})


def _tensor(item: Mapping[str, Any]) -> Tensor:
    return Tensor(str(item["name"]), str(item["dtype"]), tuple(map(int, item["shape"])))


def _check(group: Group, member: str, where: str) -> None:
    names = [item.name for item in group.members]
    if len(set(names)) != len(names) or member not in names:
        raise ManifestError(f"{where}: group {group.name!r} has members {names}, and {member!r} must be one of them")
    roles = [item.role for item in group.members]
    if roles != ["original"] * len(group.originals) + ["coded"] * len(group.coded):
        raise ManifestError(f"{where}: group {group.name!r} must list its originals first, then its coded models")
    for item in group.members:
        if not _shapes_fit(item, group):
            raise ManifestError(
                f"{where}: member {item.name!r} has outputs of shapes {list(item.output_shapes)}; none may be larger "
                f"than the group's {[tensor.shape for tensor in group.outputs]}"
            )
    try:
        generator = group.code.generator
    except CodeError as error:
        raise ManifestError(f"{where}: group {group.name!r} has no usable code: {error}") from error
    if generator.tolist() != [list(item.row) for item in group.members]:
        raise ManifestError(f"{where}: the rows of group {group.name!r} are not those of a systematic code")


def _shapes_fit(member: Member, group: Group) -> bool:
    """Whether a member's own outputs, if it has any, fit into the group's."""
    shapes = [tensor.shape for tensor in group.outputs]
    return not member.output_shapes or (
        list(map(len, member.output_shapes)) == list(map(len, shapes))
        and all(
            size <= limit or limit == -1
            for own, whole in zip(member.output_shapes, shapes, strict=True)
            for size, limit in zip(own, whole, strict=True)
        )
    )
