from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from coin_export.serve.backends.onnxruntime.onnx_header import read_versions


@pytest.mark.parametrize(("ir_version", "opset"), [(10, 20), (13, 25), (3, 7)])
def test_reads_what_onnx_wrote(
    tmp_path: Path, make_linear: Callable[..., onnx.ModelProto], ir_version: int, opset: int
) -> None:
    model = make_linear(ir_version=ir_version, opset=opset)
    model.doc_string = "long " * 5000
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 99))
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    assert read_versions(tmp_path / "model.onnx") == (ir_version, opset)


@given(content=st.binary(max_size=200))
def test_any_bytes_give_numbers_or_a_value_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.onnx"
    path.write_bytes(content)
    try:
        ir_version, opset = read_versions(path)
    except ValueError:
        return
    assert ir_version >= 0 and opset >= 0
