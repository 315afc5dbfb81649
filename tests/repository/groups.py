"""A small group with hand-made ONNX files, for the tests of the repository."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from coin_export.code.manifest import Group, Member, Quality, Tensor
from coin_export.export.onnx_file import file_digest
from coin_export.repository.layout import write_repository
from coin_export.repository.options import RepositoryOptions


def write_onnx(path: Path, seed: int, *, ir_version: int = 10, rows: int | str = "batch", scale: float = 1.0) -> Path:
    """Write a linear model from ``x`` of four numbers to ``logits`` of three."""
    weight = np.random.default_rng(seed).normal(size=(4, 3)).astype(np.float32) * np.float32(scale)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "weight"], ["logits"])],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [rows, 3])],
        [numpy_helper.from_array(weight, "weight")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=ir_version), path)
    return path


def make_group(folder: Path, name: str = "digits", models: tuple[str, ...] = ("a", "b", "c"), seed: int = 0) -> Group:
    """Write ONNX files ``folder/<model>.onnx`` and describe them as a group; the last model is the coded one."""
    files = [write_onnx(folder / f"{model}.onnx", seed + index) for index, model in enumerate(models)]
    k = len(models) - 1
    rows = [*np.eye(k).tolist(), [1 / k] * k]
    return Group(
        name=name,
        encoder="coin",
        code_space="logits",
        inputs=(Tensor("x", "FP32", (4,)),),
        outputs=(Tensor("logits", "FP32", (3,)),),
        members=tuple(
            Member(model, "original" if index < k else "coded", tuple(rows[index]), file_digest(files[index]))
            for index, model in enumerate(models)
        ),
        quality=(Quality((models[0],), models[0], 2.0, 0.1, 97.5),),
    )


def files_of(folder: Path, group: Group) -> dict[str, Path]:
    return {member.name: folder / f"{member.name}.onnx" for member in group.members}


def build(target: Path, folder: Path, group: Group | None = None, options: RepositoryOptions | None = None) -> Group:
    """Write a group into ``target`` from ONNX files in ``folder``."""
    folder.mkdir(exist_ok=True)
    group = group or make_group(folder)
    write_repository(target, group, files_of(folder, group), options or RepositoryOptions())
    return group


def contents(folder: Path) -> dict[str, bytes | str | None]:
    """Return everything under a folder: bytes of files, targets of links, None for folders."""
    return {
        str(path.relative_to(folder)): (
            str(path.readlink()) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        )
        for path in folder.rglob("*")
    }


def siblings(target: Path) -> list[str]:
    return sorted(path.name for path in target.parent.iterdir())


def next_build(tmp_path: Path) -> tuple[Group, dict[str, Path]]:
    """A later build of the same group: other weights, and another coded model."""
    folder = tmp_path / "later"
    folder.mkdir(exist_ok=True)
    group = make_group(folder, models=("a", "b", "d"), seed=10)
    return group, files_of(folder, group)
