import shutil
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from coin_export.code.manifest import Group
from coin_export.errors import ManifestError, RepositoryError
from coin_export.repository.layout import read_repository, write_repository
from coin_export.repository.options import RepositoryOptions
from tests.repository.groups import build, contents, files_of, make_group, next_build, siblings

OPTIONS = RepositoryOptions()


def test_what_is_written_can_be_read(target: Path, tmp_path: Path) -> None:
    group = build(target, tmp_path / "files")
    repository = read_repository(target)
    assert repository.groups == (group,)
    assert repository.foreign == ()
    assert list(repository.members) == ["a", "b", "c"]
    assert repository.members["b"].config.name == "b"
    for name in "abc":
        assert repository.onnx_path(name) == target / name / "1" / "model.onnx"
        assert repository.onnx_path(name).read_bytes() == (tmp_path / "files" / f"{name}.onnx").read_bytes()
    with pytest.raises(RepositoryError, match=r"no group here has a model 'z'"):
        repository.onnx_path("z")


def test_writing_twice_gives_the_same_bytes(target: Path, tmp_path: Path) -> None:
    group = build(target, tmp_path / "files")
    before = contents(target)
    build(target, tmp_path / "files", group)
    assert contents(target) == before
    assert siblings(target) == ["models"]


def test_a_new_build_replaces_its_own_models_and_nothing_else(built: Group, target: Path, tmp_path: Path) -> None:
    before = contents(target)
    group, files = next_build(tmp_path)
    write_repository(target, group, files, OPTIONS)
    after = contents(target)
    own = {path for path in before if path.split("/")[0] in "abc"}
    assert {path for path in after if path.split("/")[0] in "abcd"} == {
        (p.replace("c", "d", 1) if p[0] == "c" else p).replace("/1", "/2") for p in own
    }
    assert {path: after[path] for path in before if path not in own} == {
        path: before[path] for path in before if path not in own
    }
    repository = read_repository(target)
    assert repository.groups == (group,)
    assert repository.foreign == ("foreign", "link")
    assert siblings(target) == ["models"]


def test_a_build_that_differs_from_the_one_in_its_place_gets_the_next_version(target: Path, tmp_path: Path) -> None:
    def versions() -> set[str]:
        return {path.parent.name for path in target.glob("*/*/model.onnx")}

    for seed, version in ((0, "1"), (0, "1"), (7, "2"), (7, "2"), (0, "3")):
        group = make_group(tmp_path, seed=seed)
        write_repository(target, group, files_of(tmp_path, group), OPTIONS)
        assert versions() == {version}
        assert read_repository(target).onnx_path("a") == target / "a" / version / "model.onnx"


def test_two_groups_live_side_by_side(built: Group, target: Path, tmp_path: Path) -> None:
    other = make_group(tmp_path, name="letters", models=("p", "q", "r", "s"))
    write_repository(target, other, files_of(tmp_path, other), OPTIONS)
    repository = read_repository(target)
    assert {group.name: group for group in repository.groups} == {"digits": built, "letters": other}
    assert sorted(repository.members) == ["a", "b", "c", "p", "q", "r", "s"]


def test_a_link_to_a_folder_is_followed(target: Path, tmp_path: Path) -> None:
    target.mkdir(parents=True)
    (tmp_path / "link").symlink_to(target)
    build(tmp_path / "link", tmp_path / "files")
    assert (tmp_path / "link").is_symlink()
    assert read_repository(target).groups


def test_the_folder_keeps_its_mode(built: Group, target: Path, tmp_path: Path) -> None:
    target.chmod(0o750)
    group, files = next_build(tmp_path)
    write_repository(target, group, files, OPTIONS)
    assert stat.S_IMODE(target.stat().st_mode) == 0o750


@pytest.mark.parametrize("kind", ["no configuration", "no group", "another group", "a file", "renamed member"])
def test_a_foreign_model_of_the_same_name_is_not_touched(built: Group, target: Path, tmp_path: Path, kind: str) -> None:
    if kind == "no configuration":
        (target / "d").mkdir()
    elif kind == "no group":
        (target / "d").mkdir()
        (target / "d" / "config.pbtxt").write_text('name: "d"')
    elif kind == "another group":
        other = make_group(tmp_path, name="letters", models=("d", "e", "f"))
        write_repository(target, other, files_of(tmp_path, other), OPTIONS)
    elif kind == "a file":
        (target / "d").touch()
    else:
        shutil.copytree(target / "a", target / "d")
    before = contents(target)
    group, files = next_build(tmp_path)
    with pytest.raises(RepositoryError, match=r"models/d: is there already and not of group 'digits'; nothing was"):
        write_repository(target, group, files, OPTIONS)
    assert contents(target) == before
    assert siblings(target) == ["models"]


def test_a_target_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RepositoryError, match="is a file"):
        build(tmp_path / "file", tmp_path / "files")
    with pytest.raises(RepositoryError, match="cannot be written"):
        build(tmp_path / "file" / "below", tmp_path / "files")


def test_a_mount_point_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="is a mount point"):
        build(Path("/"), tmp_path / "files")


@pytest.mark.parametrize("name", ["a/b", "..", ".hidden", "-x", "", "a b", "ä", "a" * 201])
def test_names_that_triton_cannot_serve_are_refused(name: str, target: Path, tmp_path: Path) -> None:
    group = make_group(tmp_path)
    members = (replace(group.members[0], name=name), *group.members[1:])
    files = dict(zip([name, "b", "c"], files_of(tmp_path, group).values(), strict=True))
    with pytest.raises(RepositoryError, match="cannot name a Triton model"):
        write_repository(target, replace(group, members=members), files, OPTIONS)
    assert not target.parent.exists()


def test_the_files_must_be_those_of_the_group(target: Path, tmp_path: Path) -> None:
    group = make_group(tmp_path)
    with pytest.raises(RepositoryError, match=r"has the models \['a', 'b', 'c'\], and ONNX files of \['a'\]"):
        write_repository(target, group, {"a": tmp_path / "a.onnx"}, OPTIONS)
    with pytest.raises(RepositoryError, match="No such file"):
        write_repository(target, group, {name: tmp_path / "absent.onnx" for name in "abc"}, OPTIONS)
    assert siblings(target) == []


def test_places_without_a_group_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match=r"nowhere: not a folder that can be read: No such file"):
        read_repository(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(RepositoryError, match="Not a directory"):
        read_repository(tmp_path / "file")
    (tmp_path / "foreign").mkdir()
    with pytest.raises(RepositoryError, match=r"holds no group, only the models \['foreign'\]"):
        read_repository(tmp_path)


def test_a_group_that_is_not_whole_is_refused(built: Group, target: Path) -> None:
    (target / "b" / "1" / "model.onnx").unlink()
    with pytest.raises(RepositoryError, match=r"b/1/model.onnx: the model's ONNX file is missing"):
        read_repository(target)
    shutil.rmtree(target / "b")
    with pytest.raises(RepositoryError, match=r"group 'digits' lacks its models \['b'\]"):
        read_repository(target)


def test_members_of_different_builds_are_refused(built: Group, target: Path, tmp_path: Path) -> None:
    group = make_group(tmp_path, seed=10)
    other = tmp_path / "other"
    write_repository(other, group, files_of(tmp_path, group), OPTIONS)
    shutil.rmtree(target / "b")
    shutil.copytree(other / "b", target / "b")
    with pytest.raises(RepositoryError, match=r"models/b: comes from another build of group 'digits'"):
        read_repository(target)


def test_a_renamed_member_and_a_broken_description_are_refused(built: Group, target: Path) -> None:
    (target / "b").rename(target / "z")
    with pytest.raises(RepositoryError, match=r"models/z: says that it is model 'b'"):
        read_repository(target)
    config = target / "z" / "config.pbtxt"
    config.write_text(config.read_text().replace("schema_version", "schema"))
    with pytest.raises(ManifestError, match=r"z/config.pbtxt"):
        read_repository(target)


def test_a_member_whose_configuration_is_not_strictly_valid_is_refused(built: Group, target: Path) -> None:
    config = target / "b" / "config.pbtxt"
    config.write_text("unknown: 1\n" + config.read_text())
    with pytest.raises(RepositoryError, match=r"b/config.pbtxt:1: .*unknown"):
        read_repository(target)


def test_reading_needs_the_base_installation_only(built: Group, target: Path) -> None:
    script = f"""
import sys
for name in ("torch", "onnx", "onnxscript", "onnxruntime", "pydantic", "yaml", "safetensors"):
    sys.modules[name] = None
from pathlib import Path
from coin_export.errors import MissingDependencyError
from coin_export.repository.layout import read_repository
print(read_repository(Path({str(target)!r})).groups[0].name)
from coin_export.repository.check import verify_repository
try:
    verify_repository(Path({str(target)!r}))
except MissingDependencyError as error:
    print(error)
"""
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert shown.stdout.splitlines() == [
        "digits",
        "this needs onnx, which is not installed: pip install 'coin-export[build]'",
    ]
