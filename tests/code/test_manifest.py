import json
from dataclasses import replace

import pytest

from coin_export.code.manifest import Group, Member, Quality, Tensor, from_json
from coin_export.errors import ManifestError

GROUP = Group(
    name="digits",
    encoder="coin",
    code_space="logits",
    inputs=(Tensor("input", "FP32", (1, 28, 28)),),
    outputs=(Tensor("logits", "FP32", (10,)),),
    members=(
        Member("a", "original", (1.0, 0.0), "sha256:aa", 99.0),
        Member("b", "original", (0.0, 1.0), "sha256:bb", None),
        Member("a_b_coded_0", "coded", (0.5, 0.5), "sha256:cc"),
    ),
    quality=(Quality(("a",), "a", 2.0, 0.1, 97.5, 88.0), Quality(("b",), "b", 2.0, 0.2, 91.0)),
)


def edited(**changes: object) -> str:
    content = json.loads(GROUP.to_json("a"))
    content["group"].update(changes)
    return json.dumps(content)


def test_a_group_survives_the_way_through_json() -> None:
    assert from_json(GROUP.to_json("b"), "here") == (GROUP, "b")


def test_a_member_may_have_fewer_classes_than_the_group() -> None:
    first, second, coded = GROUP.members
    group = replace(GROUP, members=(first, replace(second, output_shapes=((2,),)), coded))
    assert from_json(group.to_json("a"), "here") == (group, "a")
    assert [group.outputs_of(member)[0].shape for member in group.members] == [(10,), (2,), (10,)]


def test_a_member_cannot_have_more_classes_than_the_group() -> None:
    first, *others = GROUP.members
    for shapes in (((11,),), ((2, 2),), ((2,), (2,))):
        group = replace(GROUP, members=(replace(first, output_shapes=shapes), *others))
        with pytest.raises(ManifestError, match="none may be larger than the group's"):
            from_json(group.to_json("a"), "here")


def test_the_code_and_the_measured_quality_can_be_read_from_the_group() -> None:
    assert GROUP.code.parities == ((0.5, 0.5),)
    assert [member.name for member in GROUP.originals] == ["a", "b"]
    assert [member.name for member in GROUP.coded] == ["a_b_coded_0"]
    assert GROUP.expected_quality(["b"], "b") == GROUP.quality[1]
    assert GROUP.expected_quality(["a", "b"], "b") is None


def test_a_replica_is_a_coded_member_with_a_unit_row() -> None:
    replica = Member("a_again", "coded", (1.0, 0.0), "sha256:aa")
    group = replace(GROUP, members=(*GROUP.members[:2], replica), quality=())
    assert from_json(group.to_json("a"), "here") == (group, "a")
    assert group.code.parities == ((1.0, 0.0),)


def test_the_generation_changes_with_any_digest_and_row_but_not_with_the_quality() -> None:
    first, *others = GROUP.members
    changed = replace(GROUP, members=(replace(first, digest="sha256:dd"), *others))
    assert changed.generation != GROUP.generation
    assert replace(GROUP, quality=()).generation == GROUP.generation


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "JSONDecodeError"),
        ("{}", "KeyError: 'schema_version'"),
        ("[]", "not a group's description"),
        (GROUP.to_json("a").replace('"schema_version":2', '"schema_version":7'), "schema version 7"),
        (GROUP.to_json("a").replace('"schema_version":2', '"schema_version":1'), "version 1, this package reads 2"),
        (GROUP.to_json("nobody"), "'nobody' must be one of them"),
        (edited(members=[]), "must be one of them"),
        (edited(members=[*json.loads(GROUP.to_json("a"))["group"]["members"]][::-1]), "originals first"),
        (edited(members=json.loads(GROUP.to_json("a"))["group"]["members"][:2]), "no usable code"),
        (edited(inputs=[{"name": "x"}]), "KeyError: 'dtype'"),
    ],
)
def test_malformed_descriptions_are_refused_with_their_place(text: str, message: str) -> None:
    with pytest.raises(ManifestError, match=message) as caught:
        from_json(text, "server 127.0.0.1:8001, model 'a'")
    assert "server 127.0.0.1:8001, model 'a'" in str(caught.value)


def test_rows_that_are_not_systematic_are_refused() -> None:
    members = json.loads(GROUP.to_json("a"))["group"]["members"]
    members[0]["row"] = [0.5, 0.5]
    with pytest.raises(ManifestError, match="systematic"):
        from_json(edited(members=members), "here")
