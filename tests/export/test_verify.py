from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from coin_export.datasets.calibration import CalibrationInputs
from coin_export.errors import ExportError, ExportMismatchError, NonFiniteError, RepositoryError
from coin_export.export.onnx import export_onnx
from coin_export.export.options import ExportOptions
from coin_export.export.verify import check_versions, compare, file_digest, load_session
from coin_export.model.signature import Signature, infer_signature
from tests.export.networks import Applied, normal

torch.set_num_threads(1)
DEFAULTS = ExportOptions()


def linear() -> tuple[nn.Linear, CalibrationInputs, Signature]:
    torch.manual_seed(0)
    module, calibration = nn.Linear(4, 3).eval(), CalibrationInputs({"x": normal(5, 4)})
    return module, calibration, infer_signature(module, calibration, ["logits"])


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    module, calibration, signature = linear()
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    export_onnx(module, signature, calibration, path, DEFAULTS)
    return path


def written(path: Path, expression: list[onnx.NodeProto], *, ir_version: int = 10, opset: int = 20) -> Path:
    """Write a graph by hand: one input ``x`` of four numbers a point, one output ``logits`` of three."""
    graph = helper.make_graph(
        expression,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.array([0, 0], dtype=np.int64), "axes")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
    onnx.save(model, path)
    return path


def test_an_exact_copy_has_no_error_to_speak_of(exported: Path) -> None:
    module, calibration, signature = linear()
    check = compare(exported, module, signature, calibration, DEFAULTS)
    assert check.batch_sizes == (1, 2, 7, 32)
    assert check.max_abs_error < 1e-6
    assert check.argmax_agreement == 100.0
    assert [output.name for output in check.outputs] == ["logits"]


def test_the_errors_are_those_of_the_weights(exported: Path) -> None:
    module, calibration, signature = linear()
    with torch.no_grad():
        module.bias.add_(torch.tensor([0.0, 0.5, 0.0]))
        outputs = module(torch.from_numpy(calibration.arrays["x"]))
    loose = ExportOptions(absolute_tolerance=1.0, batch_sizes=(5,))
    check = compare(exported, module, signature, calibration, loose)
    assert check.max_abs_error == pytest.approx(0.5, abs=1e-5)
    assert check.max_relative_error == pytest.approx(0.5 / outputs.abs().max().item(), rel=1e-4)
    before = outputs - torch.tensor([0.0, 0.5, 0.0])
    assert check.argmax_agreement == pytest.approx(100 * (before.argmax(1) == outputs.argmax(1)).float().mean().item())


def test_a_mismatch_names_output_amount_and_batch_size(exported: Path) -> None:
    module, calibration, signature = linear()
    with torch.no_grad():
        module.bias.add_(0.25)
    with pytest.raises(ExportMismatchError, match=r"output 'logits' at batch size 1: .* differ by 0\.25,"):
        compare(exported, module, signature, calibration, DEFAULTS)


def test_a_mismatch_at_a_single_batch_size_is_found(tmp_path: Path) -> None:
    module, calibration = Applied(lambda x: x * 2.0), CalibrationInputs({"x": normal(40, 4)})
    path = tmp_path / "model.onnx"
    export_onnx(module, infer_signature(module, calibration), calibration, path, DEFAULTS)
    wrong = Applied(lambda x: x * 2.0 + (x.shape[0] == 7))
    with pytest.raises(ExportMismatchError, match=r"output 'output' at batch size 7: .* differ by 1,"):
        compare(path, wrong, infer_signature(wrong, calibration), calibration, DEFAULTS)


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([helper.make_node("Identity", ["x"], ["logits"])], r"gives float32 of shape \(2, 4\), torch .* \(2, 3\)"),
        ([helper.make_node("Squeeze", ["x", "axes"], ["logits"])], "ONNX Runtime fails where torch does not"),
    ],
)
def test_other_shapes_and_failures_are_mismatches(nodes: list[onnx.NodeProto], message: str, tmp_path: Path) -> None:
    module, calibration, signature = linear()
    path = written(tmp_path / "model.onnx", nodes)
    with pytest.raises(ExportMismatchError, match=message):
        compare(path, module, signature, calibration, ExportOptions(batch_sizes=(2,)))


def test_non_finite_outputs_name_output_and_side(exported: Path) -> None:
    module, calibration, signature = linear()
    with torch.no_grad():
        module.weight[0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match=r"output 'logits' at batch size 1 contains NaN or infinity in torch"):
        compare(exported, module, signature, calibration, DEFAULTS)


def test_overflow_in_onnx_runtime_alone_is_found(tmp_path: Path) -> None:
    calibration = CalibrationInputs({"x": normal(5, 4)})
    nodes = [helper.make_node("Log", ["x"], ["logits"])]
    path = written(tmp_path / "model.onnx", nodes)
    same = Applied(lambda x: x)
    signature = infer_signature(same, calibration, ["logits"])
    with pytest.raises(NonFiniteError, match="in ONNX Runtime"):
        compare(path, same, signature, calibration, DEFAULTS)


def test_half_precision_is_given_its_due(tmp_path: Path) -> None:
    torch.manual_seed(0)
    calibration = CalibrationInputs({"x": normal(50, 64).astype(np.float16)})
    module = nn.Linear(64, 3).half()
    signature = infer_signature(module, calibration)
    export_onnx(module, signature, calibration, tmp_path / "model.onnx", DEFAULTS)
    check = compare(tmp_path / "model.onnx", module, signature, calibration, DEFAULTS)
    assert check.max_relative_error < 0.01


@pytest.mark.parametrize(("ir_version", "opset"), [(11, 20), (10, 22)])
def test_files_newer_than_triton_reads_are_refused(ir_version: int, opset: int, tmp_path: Path) -> None:
    nodes = [helper.make_node("Identity", ["x"], ["logits"])]
    path = written(tmp_path / "model.onnx", nodes, ir_version=ir_version, opset=opset)
    with pytest.raises(ExportError, match=f"IR version {ir_version} and opset {opset}; Triton 24.10 takes at most"):
        check_versions(path)
    check_versions(written(path, nodes))


def test_files_that_are_no_onnx_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"no onnx at all")
    with pytest.raises(RepositoryError, match="not an ONNX file"):
        check_versions(path)
    with pytest.raises(ExportError, match="ONNX Runtime cannot load it"):
        load_session(path)
    with pytest.raises(RepositoryError, match="cannot be read: No such file"):
        check_versions(tmp_path / "absent.onnx")


def test_the_session_uses_one_cpu_thread(exported: Path) -> None:
    session = load_session(exported)
    assert session.get_providers() == ["CPUExecutionProvider"]
    assert session.get_session_options().intra_op_num_threads == 1


def test_the_digest_is_the_file_s_sha256(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    assert file_digest(path) == "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
