"""The stand-in backend inside a real tritonserver."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tritonclient.grpc
import tritonclient.http
from onnx import TensorProto, helper
from tritonclient.utils import InferenceServerException

from coin_export.serve.embedded import EmbeddedServer

pytestmark = pytest.mark.e2e

GOOD = ("good", "dynamic", "unbatched", "static", "renamed_file", "words", "total", "pair")


def words_model() -> onnx.ModelProto:
    """Strings in, the same strings out."""
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "words",
        [helper.make_tensor_value_info("x", TensorProto.STRING, ["N", 2])],
        [helper.make_tensor_value_info("y", TensorProto.STRING, ["N", 2])],
    )
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])


def total_model() -> onnx.ModelProto:
    """A scalar: the sum of everything."""
    graph = helper.make_graph(
        [helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0)],
        "total",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [])],
    )
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])


def pair_model() -> onnx.ModelProto:
    """Two inputs that must have as many columns as each other, which dynamic dims cannot say; two outputs."""
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", None]) for name in ("a", "b")]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", None]) for name in ("sum", "difference")]
    nodes = [helper.make_node("Add", ["a", "b"], ["sum"]), helper.make_node("Sub", ["a", "b"], ["difference"])]
    graph = helper.make_graph(nodes, "pair", inputs, outputs)
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])


PAIR_CONFIG = """\
name: "pair"
backend: "onnxruntime"
max_batch_size: 8
input { name: "a" data_type: TYPE_FP32 dims: -1 }
input { name: "b" data_type: TYPE_FP32 dims: -1 }
output { name: "sum" data_type: TYPE_FP32 dims: -1 }
output { name: "difference" data_type: TYPE_FP32 dims: -1 }
dynamic_batching { max_queue_delay_microseconds: 100000 }
"""


@pytest.fixture(scope="module")
def models(
    tmp_path_factory: pytest.TempPathFactory,
    make_repository: Callable[[Path], Any],
    make_linear: Callable[..., onnx.ModelProto],
) -> Path:
    repository = make_repository(tmp_path_factory.mktemp("models"))
    batching = "dynamic_batching { preferred_batch_size: 8 max_queue_delay_microseconds: 100000 }\n"
    no_batching = ("max_batch_size: 8", "max_batch_size: 0")
    repository.add("good")
    repository.add("dynamic", append=batching)
    for name, rows, model in (("unbatched", -1, None), ("static", 2, make_linear(batch=2))):
        repository.add(name, replace=no_batching, model=model)
        config = repository.path / name / "config.pbtxt"
        config.write_text(
            config.read_text().replace("dims: 4", f"dims: [{rows}, 4]").replace("dims: 3", f"dims: [{rows}, 3]")
        )
    repository.add("renamed_file", append='default_model_filename: "net.onnx"\n', file="net.onnx")
    repository.add("words", model=words_model())
    config = repository.path / "words" / "config.pbtxt"
    config.write_text(
        config.read_text().replace("FP32 dims: 4", "STRING dims: 2").replace("FP32 dims: 3", "STRING dims: 2")
    )
    repository.add("total", replace=no_batching, model=total_model())
    config = repository.path / "total" / "config.pbtxt"
    config.write_text(config.read_text().replace("dims: 4", "dims: [-1, 4]").replace("dims: 3", "dims: 1"))
    repository.add("pair", model=pair_model())
    (repository.path / "pair" / "config.pbtxt").write_text(PAIR_CONFIG)
    add_broken(repository, make_linear)
    path: Path = repository.path
    return path


def add_broken(repository: Any, make_linear: Callable[..., onnx.ModelProto]) -> None:
    one_thread = 'string_value: "1"'
    repository.add("wrong_input", replace=('"x"', '"z"'))
    repository.add("wrong_output", replace=('"y"', '"z"'))
    repository.add("wrong_type", replace=("TYPE_FP32 dims: 4", "TYPE_FP16 dims: 4"))
    repository.add("bf16", replace=("TYPE_FP32", "TYPE_BF16"))
    repository.add("wrong_dims", replace=("dims: 4", "dims: 5"))
    repository.add("wildcard_dims", replace=("dims: 3", "dims: -1"))
    repository.add("static_batch", model=make_linear(batch=2))
    repository.add("missing_input", replace=('input { name: "x" data_type: TYPE_FP32 dims: 4 }', ""))
    repository.add("extra_input", append='input { name: "z" data_type: TYPE_FP32 dims: 4 }\n')
    repository.add("thread_count", replace=(one_thread, 'string_value: "two"'))
    repository.add("new_ir", model=make_linear(ir_version=11))
    repository.add("new_opset", model=make_linear(opset=22))
    repository.add("corrupt", model=b"not an ONNX file" * 20)
    repository.add("no_file", file="other.onnx")
    repository.add("gpu", replace=("KIND_CPU", "KIND_GPU"))
    repository.add("labels", replace=("dims: 3", 'dims: 3 label_filename: "labels.txt"'))
    repository.add("folder", replace=('name: "folder"', 'name: "file"'))
    repository.add("platform", append='platform: "tensorrt_plan"\n')
    repository.add("preferred", append="dynamic_batching { preferred_batch_size: 16 }\n")
    repository.add("unknown_field", append="colour: 3\n")


@pytest.fixture(scope="module")
def running(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    log_path = tmp_path_factory.mktemp("logs") / "server.log"
    with EmbeddedServer(models, models=GOOD, log_path=log_path) as server:
        yield server
        server.kill()


@pytest.fixture
def http(running: EmbeddedServer) -> Iterator[Any]:
    with tritonclient.http.InferenceServerClient(running.http_address, concurrency=8) as client:
        yield client


@pytest.fixture
def grpc(running: EmbeddedServer) -> Iterator[Any]:
    with tritonclient.grpc.InferenceServerClient(running.grpc_address) as client:
        yield client


def ask(client: Any, protocol: Any, model: str, outputs: list[str] | None = None, **arrays: Any) -> Any:
    inputs = []
    for name, array in arrays.items():
        kind = "BYTES" if array.dtype == object else "FP32"
        inputs.append(protocol.InferInput(name, list(array.shape), kind))
        inputs[-1].set_data_from_numpy(array)
    requested = None if outputs is None else [protocol.InferRequestedOutput(name) for name in outputs]
    return client.infer(model, inputs, outputs=requested)


def batch(rows: int, columns: int = 4) -> Any:
    return np.random.default_rng(rows).normal(size=(rows, columns)).astype(np.float32)


@pytest.mark.parametrize("rows", [1, 2, 7, 8])
def test_batches_over_both_protocols(http: Any, grpc: Any, weights: Any, rows: int) -> None:
    x = batch(rows)
    for client, protocol in ((http, tritonclient.http), (grpc, tritonclient.grpc)):
        answer = ask(client, protocol, "good", x=x).as_numpy("y")
        assert answer.dtype == np.float32
        np.testing.assert_allclose(answer, x @ weights, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("model", ["unbatched", "static", "renamed_file"])
def test_other_ways_to_configure_the_model(grpc: Any, weights: Any, model: str) -> None:
    x = batch(2)
    answer = ask(grpc, tritonclient.grpc, model, x=x).as_numpy("y")
    np.testing.assert_allclose(answer, x @ weights, rtol=1e-5, atol=1e-6)


def test_strings_pass_unchanged(grpc: Any) -> None:
    x = np.array([["a", "grün"], ["", "b c"]], dtype=object)
    answer = ask(grpc, tritonclient.grpc, "words", x=x).as_numpy("y")
    assert [[item.decode() for item in row] for row in answer] == x.tolist()


def test_a_scalar_output_has_the_configured_dims(grpc: Any) -> None:
    answer = ask(grpc, tritonclient.grpc, "total", x=batch(3)).as_numpy("y")
    assert answer.shape == (1,)
    np.testing.assert_allclose(answer[0], batch(3).sum(), rtol=1e-5)


def test_only_requested_outputs_are_returned(grpc: Any) -> None:
    a, b = batch(2), batch(3)[:2]
    answer = ask(grpc, tritonclient.grpc, "pair", ["difference"], a=a, b=b)
    assert [output.name for output in answer.get_response().outputs] == ["difference"]
    np.testing.assert_array_equal(answer.as_numpy("difference"), a - b)


def test_dynamic_batches_give_each_request_its_own_rows(grpc: Any, weights: Any) -> None:
    xs = [batch(rows) for rows in (1, 2, 3, 1, 1, 2, 4, 2)]
    before = executions(grpc, "dynamic")
    with ThreadPoolExecutor(len(xs)) as threads:
        answers = list(threads.map(lambda x: ask(grpc, tritonclient.grpc, "dynamic", x=x).as_numpy("y"), xs))
    for x, answer in zip(xs, answers, strict=True):
        np.testing.assert_allclose(answer, x @ weights, rtol=1e-5, atol=1e-6)
    assert executions(grpc, "dynamic") - before < len(xs)


def executions(client: Any, model: str) -> int:
    (statistics,) = client.get_inference_statistics(model).model_stats
    return int(statistics.execution_count)


def test_an_error_fails_its_own_request_only(grpc: Any) -> None:
    def try_to_ask(columns: int) -> Any:
        try:
            return ask(grpc, tritonclient.grpc, "pair", a=batch(2, 3), b=batch(2, columns)).as_numpy("sum")
        except InferenceServerException as error:
            return error

    widths = (3, 2, 3, 5, 3)
    with ThreadPoolExecutor(len(widths)) as threads:
        answers = list(threads.map(try_to_ask, widths))
    for columns, answer in zip(widths, answers, strict=True):
        if columns == 3:
            np.testing.assert_array_equal(answer, batch(2, 3) * 2)
        else:
            assert "onnx runtime error" in str(answer)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wrong_input", "input 'z' is not in the ONNX graph"),
        ("wrong_output", "output 'z' is not in the ONNX graph"),
        ("wrong_type", "TYPE_FP16"),
        ("bf16", "TYPE_BF16"),
        ("wrong_dims", "[-1, 5]"),
        ("wildcard_dims", "-1 where the graph is dynamic and nowhere else"),
        ("static_batch", "first dimension must be dynamic"),
        ("missing_input", "0 inputs"),
        ("extra_input", "2 inputs"),
        ("thread_count", "'intra_op_thread_count' is 'two'"),
        ("new_ir", "IR version 11"),
        ("new_opset", "opset 22"),
        ("corrupt", "not a model that ONNX Runtime can load"),
        ("no_file", "model.onnx'; put the model there"),
        ("gpu", "KIND_GPU"),
        ("labels", "labels.txt"),
        ("folder", "directory name must equal model name"),
        ("platform", "tensorrt_plan"),
        ("preferred", "preferred size must be <= max batch size"),
        ("unknown_field", 'no field named "colour"'),
    ],
)
def test_refuses_what_the_real_backend_refuses(running: EmbeddedServer, http: Any, name: str, message: str) -> None:
    log_before = len(running.log_path.read_text())
    with pytest.raises(InferenceServerException, match=f"'{name}'"):
        http.load_model(name)
    assert message in running.log_path.read_text()[log_before:]
    assert running.is_alive()
