import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn.utils.parametrizations import orthogonal

from coin_export.datasets.calibration import Array, CalibrationInputs
from coin_export.errors import ExportError
from coin_export.export.onnx import export_onnx
from coin_export.export.onnx_file import check_versions, load_model, load_session, read_interface
from coin_export.export.options import ExportOptions
from coin_export.export.verify import compare, file_digest
from coin_export.model.signature import Signature, TensorSpec
from tests.export.networks import (
    Applied,
    Attention,
    Convolutional,
    Half,
    Recurrent,
    Tuple,
    TwoOutputs,
    case,
    convolutional,
    normal,
)

torch.set_num_threads(1)
ROOT = Path(__file__).parents[2]
DEFAULTS = ExportOptions()
IDS = np.random.default_rng(0).integers(0, 20, size=(6, 5))
MASK = np.tri(6, 5, dtype=np.bool_)


@pytest.mark.parametrize(
    ("module", "arrays"),
    [
        pytest.param(Convolutional(), {"image": normal(9, 1, 8, 8)}, id="batch-norm-dropout"),
        pytest.param(Attention(), {"ids": IDS, "mask": MASK}, id="attention-embedding-two-inputs"),
        pytest.param(Attention().requires_grad_(False), {"ids": IDS, "mask": MASK}, id="attention-frozen"),
        pytest.param(TwoOutputs(), {"x": normal(5, 4)}, id="dict-of-outputs"),
        pytest.param(Tuple(), {"x": normal(5, 4)}, id="tuple-of-outputs"),
        pytest.param(Half(), {"x": normal(5, 4).astype(np.float16)}, id="float16"),
        pytest.param(nn.Linear(4, 3).double(), {"x": normal(5, 4).astype(np.float64)}, id="float64"),
        pytest.param(Recurrent(), {"x": normal(5, 6, 4)}, id="lstm"),
        pytest.param(orthogonal(nn.Linear(4, 4)), {"x": normal(5, 4)}, id="weight-computed-by-what-onnx-lacks"),
        pytest.param(nn.Sequential(nn.Flatten(), nn.GELU(), nn.Softmax(1)), {"x": normal(5, 2, 2)}, id="gelu"),
        pytest.param(Applied(lambda x, unused: x * 2), {"x": normal(5, 4), "unused": IDS[:5]}, id="unused-input"),
        pytest.param(Applied(lambda count: count.float()), {"count": IDS.astype(np.int32)}, id="int32"),
    ],
)
def test_kinds_of_models_answer_alike_in_onnx_runtime(
    module: nn.Module, arrays: dict[str, Array], tmp_path: Path
) -> None:
    module, calibration, signature = case(module, **arrays)
    path = tmp_path / "model.onnx"
    export_onnx(module, signature, calibration, path, DEFAULTS)
    check = compare(path, module, signature, calibration, DEFAULTS)
    assert [output.name for output in check.outputs] == [spec.name for spec in signature.outputs]
    assert list(tmp_path.iterdir()) == [path]
    check_versions(path)


def test_names_dtypes_and_shapes_are_those_of_the_signature(tmp_path: Path) -> None:
    module, calibration, signature = case(Attention(), ids=IDS, mask=MASK)
    export_onnx(module, signature, calibration, tmp_path / "model.onnx", DEFAULTS)
    model = load_model(tmp_path / "model.onnx")
    interface = read_interface(model)
    assert [(t.name, t.dtype, t.dims) for t in interface.inputs] == [
        ("ids", "INT64", ("batch", 5)),
        ("mask", "BOOL", ("batch", 5)),
    ]
    assert [(t.name, t.dtype, t.dims) for t in interface.outputs] == [("output", "FLOAT", ("batch", 3))]
    assert (model.ir_version, model.opset_import[0].version) == (10, 20)


@pytest.mark.parametrize(("opset", "ir_version"), [(18, 8), (21, 10)])
def test_other_versions_that_triton_takes_are_written(opset: int, ir_version: int, tmp_path: Path) -> None:
    module, calibration, signature = convolutional()
    options = ExportOptions(opset=opset, ir_version=ir_version)
    export_onnx(module, signature, calibration, tmp_path / "model.onnx", options)
    model = load_model(tmp_path / "model.onnx")
    assert (model.ir_version, model.opset_import[0].version) == (ir_version, opset)
    compare(tmp_path / "model.onnx", module, signature, calibration, options)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"opset": 22}, "opset 22: choose 18 to 21"),
        ({"opset": 17}, "opset 17"),
        ({"ir_version": 11}, "ir_version 11: with opset 20 choose 9 to 10"),
        ({"opset": 21, "ir_version": 9}, "ir_version 9: with opset 21"),
        ({"batch_sizes": ()}, "batch_sizes"),
        ({"batch_sizes": (0,)}, "batch_sizes"),
        ({"dynamo": False}, "dynamo"),
    ],
)
def test_options_that_triton_would_refuse_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ExportOptions.model_validate(fields)


def test_the_same_module_gives_the_same_bytes_in_every_process_and_no_local_path(tmp_path: Path) -> None:
    module, calibration, signature = convolutional()
    export_onnx(module, signature, calibration, tmp_path / "first.onnx", DEFAULTS)
    export_onnx(module, signature, calibration, tmp_path / "again.onnx", DEFAULTS)
    script = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from coin_export.export.onnx import export_onnx
from coin_export.export.options import ExportOptions
from tests.export.networks import convolutional
module, calibration, signature = convolutional()
export_onnx(module, signature, calibration, Path("elsewhere.onnx"), ExportOptions())
"""
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, check=True)
    digests = {file_digest(tmp_path / f"{name}.onnx") for name in ("first", "again", "elsewhere")}
    assert len(digests) == 1
    content = (tmp_path / "first.onnx").read_bytes()
    for trace in (
        str(Path(__file__).parent),
        str(Path.home()),
        str(tmp_path),
        ".py",
        "Convolutional",
        torch.__version__,
    ):
        assert trace.encode() not in content, trace


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        (("cat", "relu"), ("mean", "linear")),
        (("linear", "model.layer.weight"), ("val_0", "relu")),
        (("input.1", "input.0"), ("output.1", "output.0")),
    ],
)
def test_names_may_be_those_of_operators_and_weights(
    inputs: tuple[str, str], outputs: tuple[str, str], tmp_path: Path
) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 3)

        def forward(self, left: torch.Tensor, right: torch.Tensor) -> dict[str, torch.Tensor]:
            hidden = torch.relu(self.layer(torch.cat([left, right], 1)))
            branched = torch.cond(
                right.sum() > 0, lambda x: torch.relu(x) + 1, lambda x: x.mean(1, keepdim=True) - x, (hidden,)
            )
            return dict(zip(outputs, (hidden.mean(1, keepdim=True), branched), strict=True))

    module, calibration, signature = case(Named(), **{name: normal(5, 4) for name in inputs})
    export_onnx(module, signature, calibration, tmp_path / "model.onnx", DEFAULTS)
    interface = read_interface(load_model(tmp_path / "model.onnx"))
    assert tuple(item.name for item in interface.inputs) == inputs
    assert tuple(item.name for item in interface.outputs) == outputs
    compare(tmp_path / "model.onnx", module, signature, calibration, DEFAULTS)


def test_nothing_of_the_making_is_left_in_subgraphs_either(tmp_path: Path) -> None:
    function = Applied(lambda x: torch.cond(x.sum() > 0, lambda x: x + 1, lambda x: x - 1, (x,)))
    module, calibration, signature = case(function, x=normal(5, 4))
    export_onnx(module, signature, calibration, tmp_path / "model.onnx", DEFAULTS)
    (branch,) = [node for node in load_model(tmp_path / "model.onnx").graph.node if node.op_type == "If"]
    nodes = [node for attribute in branch.attribute for node in attribute.g.node]
    assert nodes
    assert not any(node.metadata_props or node.doc_string for node in nodes)
    assert b"test_onnx.py" not in (tmp_path / "model.onnx").read_bytes()


def test_the_exporter_says_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    module, calibration, signature = convolutional()
    export_onnx(module, signature, calibration, tmp_path / "model.onnx", DEFAULTS)
    assert capfd.readouterr() == ("", "")


def test_a_module_in_training_mode_is_exported_as_for_inference_and_left_in_it(tmp_path: Path) -> None:
    module, calibration, signature = convolutional()
    module.train()
    module.get_submodule("body.1").eval()
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    export_onnx(module, signature, calibration, tmp_path / "model.onnx", DEFAULTS)
    assert module.training
    assert module.get_submodule("body.3").training
    assert not module.get_submodule("body.1").training
    assert all(torch.equal(before[name], buffer) for name, buffer in module.named_buffers())
    compare(tmp_path / "model.onnx", module, signature, calibration, DEFAULTS)


def test_one_calibration_point_is_enough(tmp_path: Path) -> None:
    module, calibration, signature = convolutional()
    export_onnx(module, signature, calibration.take(slice(0, 1)), tmp_path / "model.onnx", DEFAULTS)
    (output,) = load_session(tmp_path / "model.onnx").run(None, {"image": normal(7, 1, 8, 8)})
    assert output.shape == (7, 3)


def branching(x: torch.Tensor) -> torch.Tensor:
    return x * 2 if x.shape[0] > 4 else x


def looping(x: torch.Tensor) -> torch.Tensor:
    return torch.cat([x[index : index + 1] for index in range(x.shape[0])])


def refusal(function: Callable[..., object], path: Path, output: TensorSpec | None = None) -> str:
    """Return why a function of an input ``x`` of four numbers a point is not exported."""
    signature = Signature((TensorSpec("x", torch.float32, (4,)),), (output or TensorSpec("y", torch.float32, (4,)),))
    with pytest.raises(ExportError) as caught:
        export_onnx(Applied(function), signature, CalibrationInputs({"x": normal(9, 4)}), path, DEFAULTS)
    assert not path.exists()
    return str(caught.value)


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(branching, id="branch"),
        pytest.param(looping, id="loop"),
        pytest.param(lambda x: x.view(int(x.shape[0]), -1), id="int"),
        pytest.param(lambda x: x.view(2, -1), id="view"),
        pytest.param(lambda x: x + torch.ones(3, 4), id="constant"),
    ],
)
def test_models_that_depend_on_the_batch_size_are_refused(function: Callable[..., object], tmp_path: Path) -> None:
    message = refusal(function, tmp_path / "model.onnx")
    assert "depends on the batch size, which must be free" in message
    assert "specialized it to be a constant" in message or "generated guard" in message
    assert "TORCH_LOGS" not in message


@pytest.mark.parametrize(
    ("function", "found"),
    [
        pytest.param(lambda x: x.mean(0, keepdim=True), "[1, 4]", id="mean"),
        pytest.param(lambda x: torch.cat([x, x]), "['2*batch', 4]", id="doubled"),
        pytest.param(lambda x: x[x.sum(1) > 0], "['u0', 4]", id="selected"),
    ],
)
def test_outputs_whose_first_dimension_is_not_the_batch_are_named(
    function: Callable[..., object], found: str, tmp_path: Path
) -> None:
    message = refusal(function, tmp_path / "model.onnx")
    assert f"output 'y' has shape {found}" in message
    assert "its first dimension must be the batch" in message


def test_an_output_that_is_not_as_the_signature_says_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    assert "output 'y' is DOUBLE of shape ['batch', 4] in the exported model; its signature says FLOAT" in refusal(
        lambda x: x.double(), path
    )
    assert "signature says FLOAT of shape ['batch', 7]" in refusal(
        lambda x: x * 2, path, TensorSpec("y", torch.float32, (7,))
    )


def test_what_cannot_be_captured_or_written_says_why_in_one_line(tmp_path: Path) -> None:
    captured = refusal(lambda x: x if x.sum() > 0 else -x, tmp_path / "model.onnx")
    assert "cannot capture the model: GuardOnDataDependentSymNode: Could not guard" in captured
    written = refusal(lambda x: torch.special.bessel_j0(x), tmp_path / "model.onnx")
    assert "cannot be written as ONNX: DispatchError: No ONNX function found" in written
    assert "bessel_j0" in written
    assert "\n" not in captured + written


def test_bfloat16_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    message = refusal(lambda x: x.bfloat16(), tmp_path / "model.onnx", TensorSpec("y", torch.bfloat16, (4,)))
    assert "output 'y' is torch.bfloat16" in message
    assert "float32 or float16" in message


def test_weights_that_do_not_fit_into_one_file_are_refused(tmp_path: Path) -> None:
    huge = nn.Linear(30_000, 20_000, device="meta")
    _, calibration, signature = convolutional()
    with pytest.raises(ExportError, match=r"the weights take 2.4 GB; a single ONNX file holds less than 2 GB"):
        export_onnx(huge, signature, calibration, tmp_path / "model.onnx", DEFAULTS)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    module, calibration, signature = convolutional()
    with pytest.raises(ExportError, match=r"nowhere/model.onnx: cannot be written: No such file"):
        export_onnx(module, signature, calibration, tmp_path / "nowhere" / "model.onnx", DEFAULTS)
