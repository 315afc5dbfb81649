import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from coin_export.errors import RepositoryError
from coin_export.export.onnx_file import file_digest
from coin_export.repository.check import verify_repository
from coin_export.repository.layout import write_repository
from coin_export.repository.options import RepositoryOptions
from tests.repository.groups import build, files_of, make_group, write_onnx

CHECKS = ["config", "manifest", "group", "digest", "versions", "interface", "run"]


def failures(path: Path) -> dict[tuple[str, str], str]:
    return {(item.model, item.check): item.message for item in verify_repository(path) if not item.ok}


@pytest.fixture
def target(tmp_path: Path) -> Path:
    build(tmp_path / "models", tmp_path / "files")
    return tmp_path / "models"


@pytest.mark.parametrize("max_batch_size", [0, 1, 64])
def test_a_good_repository_passes_every_check(tmp_path: Path, max_batch_size: int) -> None:
    target = tmp_path / "models"
    build(target, tmp_path / "files", options=RepositoryOptions(max_batch_size=max_batch_size))
    findings = verify_repository(target)
    assert [(item.model, item.check) for item in findings] == [(model, check) for model in "abc" for check in CHECKS]
    assert all(item.ok for item in findings), findings
    assert findings[5].message == "x FP32 [-1, 4] -> logits FP32 [-1, 3]"


def edit(text: str, replacement: str) -> Callable[[Path], None]:
    def apply(target: Path) -> None:
        config = target / "b" / "config.pbtxt"
        assert text in config.read_text()
        config.write_text(config.read_text().replace(text, replacement))

    return apply


@pytest.mark.parametrize(
    ("change", "failed", "message"),
    [
        (edit('name: "b"', 'name: "z"'), {"config"}, "the name is 'z'"),
        (edit('backend: "onnxruntime"', 'backend: "python"'), {"config"}, "the backend is 'python'"),
        (edit('name: "b"', 'name: "b" platform: "onnx"'), {"config"}, "the platform is 'onnx'"),
        (edit('string_value: "1"', 'string_value: "one"'), {"config"}, "'one'; it must be an integer"),
        (edit("dims: 4", "dims: 5"), {"interface"}, "x FP32 [-1, 5] configured, x FP32 [-1, 4] in the ONNX graph"),
        (edit('"logits"\n', '"scores"\n'), {"interface"}, "scores FP32 [-1, 3] configured"),
        (edit("TYPE_FP32\n  dims: 3", "TYPE_FP16\n  dims: 3"), {"interface"}, "logits FP16 [-1, 3] configured"),
        (lambda target: (target / "b/1/model.onnx").unlink(), {"digest", "versions", "interface", "run"}, "missing"),
        (lambda target: shutil.copytree(target / "b/1", target / "b/2"), {"digest"}, "['1', '2']"),
        (
            lambda target: (target / "b/1/model.onnx").write_bytes(b"junk"),
            {"digest", "versions", "interface", "run"},
            "the group says",
        ),
        (lambda target: write_onnx(target / "b/1/model.onnx", 7), {"digest"}, "has digest sha256:"),
        (lambda target: (target / "b/2").mkdir(), {"digest", "versions", "interface", "run"}, "folders are ['1', '2']"),
        (
            lambda target: write_onnx(target / "b/1/model.onnx", 7, ir_version=11),
            {"digest", "versions"},
            "IR version 11",
        ),
        (lambda target: write_onnx(target / "b/1/model.onnx", 7, rows=1), {"digest", "interface", "run"}, "[1, 4]"),
        (
            lambda target: write_onnx(target / "b/1/model.onnx", 7, scale=float("inf")),
            {"digest", "run"},
            "output 'logits' for a batch of 1 contains NaN or infinity",
        ),
    ],
)
def test_each_fault_fails_its_own_checks_and_the_others_go_on(
    change: Callable[[Path], object], failed: set[str], message: str, target: Path
) -> None:
    change(target)
    found = failures(target)
    assert set(found) == {("b", check) for check in failed}
    assert any(message in text for text in found.values()), found
    assert len(verify_repository(target)) == 3 * len(CHECKS)


@pytest.mark.parametrize(
    ("change", "check", "message"),
    [
        (edit("instance_group", "instance_groups"), "config", "config.pbtxt:"),
        (edit("schema_version", "schema"), "manifest", "config.pbtxt"),
        (lambda target: (target / "b/config.pbtxt").unlink(), "config", "cannot be read"),
    ],
)
def test_a_member_that_cannot_be_read_is_missed_by_the_others(
    change: Callable[[Path], object], check: str, message: str, target: Path
) -> None:
    change(target)
    found = failures(target)
    assert set(found) == {("b", check), ("a", "group"), ("c", "group")}
    assert message in found["b", check]
    assert "['b'] are missing or unreadable" in found["a", "group"]


def test_a_renamed_folder_is_told_from_its_model(target: Path) -> None:
    (target / "b").rename(target / "z")
    found = failures(target)
    assert set(found) == {("a", "group"), ("c", "group"), ("z", "group"), ("z", "config"), ("z", "manifest")}
    assert "says that it is model 'b'" in found["z", "manifest"]


def test_members_of_another_build_are_named(target: Path, tmp_path: Path) -> None:
    other = make_group(tmp_path, seed=10)
    write_repository(tmp_path / "other", other, files_of(tmp_path, other), RepositoryOptions())
    shutil.rmtree(target / "b")
    shutil.copytree(tmp_path / "other" / "b", target / "b")
    found = failures(target)
    assert set(found) == {("a", "group"), ("b", "group"), ("c", "group")}
    assert "['b'] come from another build" in found["a", "group"]


def test_a_description_that_is_not_the_graph_s_is_found(tmp_path: Path) -> None:
    group = make_group(tmp_path)
    (logits,) = group.outputs
    write_repository(
        tmp_path / "models",
        replace(group, outputs=(replace(logits, shape=(5,)),)),
        files_of(tmp_path, group),
        RepositoryOptions(),
    )
    found = failures(tmp_path / "models")
    assert set(found) == {(model, check) for model in "abc" for check in ("interface", "run")}
    assert "has shape (1, 3); the group says (1, 5)" in found["a", "run"]


def test_foreign_models_are_only_read(target: Path) -> None:
    (target / "foreign").mkdir()
    (target / "foreign" / "config.pbtxt").write_text('backend: "python"')
    (finding,) = (item for item in verify_repository(target) if item.model == "foreign")
    assert finding.ok
    assert "belongs to no group" in finding.message


def test_places_without_models_are_refused_or_found_wanting(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="not a folder that can be read"):
        verify_repository(tmp_path / "nowhere")
    with pytest.raises(RepositoryError, match="holds no model"):
        verify_repository(tmp_path)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "config.pbtxt").write_text('backend: "python"')
    assert "holds no member of a group" in failures(tmp_path)["-", "group"]


def test_hand_made_files_are_what_the_digests_say(tmp_path: Path) -> None:
    group = make_group(tmp_path)
    assert group.members[0].digest == file_digest(tmp_path / "a.onnx")
    onnx.checker.check_model(onnx.load(tmp_path / "a.onnx"))
