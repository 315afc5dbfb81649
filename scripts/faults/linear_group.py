"""A coded group of linear models whose every answer is exact in float32, so that a wrong number is a wrong number.

Weights and inputs are small whole numbers and the coefficients are halves and quarters: no sum is ever rounded, in
whatever order and batch a server computes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from coin_export.client import Answers, Source
from coin_export.code.linear import LinearCode
from coin_export.code.manifest import Group, Member, Tensor
from coin_export.export.onnx_file import file_digest
from coin_export.repository.layout import write_repository
from coin_export.repository.options import RepositoryOptions

Array = npt.NDArray[np.float32]

INPUT, OUTPUT = "x", "y"
ONE_CODED = LinearCode(((0.5, 0.5),))
TWO_CODED = LinearCode(((0.5, 0.5), (0.25, 0.75)))

_WIDTH, _CLASSES = 4, 3
_LARGEST = 8
_ORIGINALS = "ab"


@dataclass(frozen=True, eq=False)
class LinearGroup:
    """A group and the model repository that it was written into.

    Attributes:
        repository: the repository's folder.
        group: what its configurations say.
        weights: of every member as it ought to be, shape (inputs, outputs).
    """

    repository: Path
    group: Group
    weights: Mapping[str, Array]

    @property
    def members(self) -> tuple[str, ...]:
        """The names of the originals, then of the coded models."""
        return tuple(member.name for member in self.group.members)

    def truth(self, member: str, inputs: Array) -> Array:
        """Return a member's own answer."""
        return inputs @ self.weights[member]

    def check(self, inputs: Array, answers: Answers) -> None:
        """Check a request's answers: a direct one to the bit, a decoded one closely.

        Raises:
            AssertionError: if one is wrong.
        """
        for name, answer in answers.items():
            found, truth = answer.outputs[OUTPUT], self.truth(name, inputs)
            if answer.source is Source.DIRECT:
                np.testing.assert_array_equal(found, truth)
            else:
                np.testing.assert_allclose(found, truth, rtol=1e-4, atol=1e-3)


def random_inputs(random: np.random.Generator, batch: int = 2) -> Array:
    """Draw whole numbers, shape (batch, inputs)."""
    return random.integers(1, _LARGEST, size=(batch, _WIDTH)).astype(np.float32)


def write_linear_group(
    folder: Path,
    code: LinearCode = ONE_CODED,
    *,
    build: int = 0,
    spoiled: Mapping[str, float] | None = None,
    options: RepositoryOptions | None = None,
) -> LinearGroup:
    """Write the originals ``a`` and ``b`` and their coded models ``coded_0``, ... as a model repository.

    Args:
        folder: gets the ONNX files and the repository.
        code: over two originals.
        build: another one gives other weights, under the same names.
        spoiled: a value, such as NaN, that takes the place of one weight of a member.
        options: how the models are served.
    """
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(build)
    originals = random.integers(-_LARGEST, _LARGEST, size=(code.k, _WIDTH, _CLASSES)).astype(np.float64)
    names = [*_ORIGINALS, *(f"coded_{index}" for index in range(code.m))]
    weights = {
        name: np.tensordot(row, originals, axes=1).astype(np.float32)
        for name, row in zip(names, code.generator, strict=True)
    }
    files = {name: _write_onnx(folder / f"{name}.onnx", weights[name], (spoiled or {}).get(name)) for name in names}
    members = tuple(
        Member(name, "original" if index < code.k else "coded", tuple(code.generator[index]), file_digest(files[name]))
        for index, name in enumerate(names)
    )
    tensors = (Tensor(INPUT, "FP32", (_WIDTH,)),), (Tensor(OUTPUT, "FP32", (_CLASSES,)),)
    group = Group("linear", "exact", "logits", *tensors, members, ())
    write_repository(folder / "repository", group, files, options or RepositoryOptions())
    return LinearGroup(folder / "repository", group, weights)


def _write_onnx(path: Path, weight: Array, spoiled: float | None) -> Path:
    if spoiled is not None:
        weight = weight.copy()
        weight[0, 0] = spoiled
    graph = helper.make_graph(
        [helper.make_node("MatMul", [INPUT, "weight"], [OUTPUT])],
        "linear",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["batch", _WIDTH])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", _CLASSES])],
        [numpy_helper.from_array(weight, "weight")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path
