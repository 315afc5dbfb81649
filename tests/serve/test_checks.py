from __future__ import annotations

import copy
from typing import Any

import pytest

from coin_export.serve.backends.onnxruntime.checks import (
    ConfigurationError,
    Graph,
    GraphTensor,
    check_interface,
    check_versions,
    read_settings,
)

FLOAT = "tensor(float)"
GRAPH = Graph((GraphTensor("x", FLOAT, (-1, 4)),), (GraphTensor("y", FLOAT, (-1, 3)),))
CONFIG: dict[str, Any] = {
    "max_batch_size": 8,
    "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [4]}],
    "output": [{"name": "y", "data_type": "TYPE_FP32", "dims": [3]}],
}


def changed(**changes: Any) -> dict[str, Any]:
    """The configuration with fields of its input (``x_...``), its output (``y_...``) or of itself changed."""
    config = copy.deepcopy(CONFIG)
    for key, value in changes.items():
        if key.startswith("x_"):
            config["input"][0][key[2:]] = value
        elif key.startswith("y_"):
            config["output"][0][key[2:]] = value
        else:
            config[key] = value
    return config


def graph(x: tuple[int, ...] = (-1, 4), y: tuple[int, ...] = (-1, 3), element: str = FLOAT) -> Graph:
    return Graph((GraphTensor("x", element, x),), (GraphTensor("y", element, y),))


ACCEPTED = [
    pytest.param(CONFIG, GRAPH, id="plain"),
    pytest.param(changed(max_batch_size=0, x_dims=[-1, 4], y_dims=[-1, 3]), GRAPH, id="no batching, dynamic"),
    pytest.param(changed(max_batch_size=0, x_dims=[2, 4], y_dims=[2, 3]), graph((2, 4), (2, 3)), id="static"),
    pytest.param(changed(max_batch_size=0, x_dims=[2, 4], y_dims=[-1, 3]), GRAPH, id="input narrower than the graph"),
    pytest.param(changed(x_dims=["4"]), GRAPH, id="dims as Triton's JSON writes them"),
    pytest.param(changed(x_dims=[2, 2], x_reshape={"shape": [4]}), GRAPH, id="reshape"),
    pytest.param(changed(max_batch_size=0, x_dims=[1], y_dims=[1]), graph((), ()), id="scalars"),
    pytest.param(
        changed(max_batch_size=0, x_dims=[-1, 4], y_dims=[-1, 3], x_optional=True),
        Graph((), GRAPH.outputs, GRAPH.inputs),
        id="an initializer as optional input",
    ),
    pytest.param(CONFIG, Graph(GRAPH.inputs, (*GRAPH.outputs, GraphTensor("z", FLOAT, (1,)))), id="unused output"),
]
REFUSED = [
    pytest.param(changed(x_name="X"), GRAPH, r"input 'X' is not in the ONNX graph, whose inputs are \['x'\]", id="in"),
    pytest.param(changed(y_name="Y"), GRAPH, r"output 'Y' is not in the ONNX graph, whose outputs are \['y'\]", id="o"),
    pytest.param(changed(x_data_type="TYPE_FP16"), GRAPH, r"'x' has data type TYPE_FP16 .* tensor\(float\)", id="type"),
    pytest.param(changed(y_data_type="TYPE_INT32"), GRAPH, "output 'y' has data type TYPE_INT32", id="output type"),
    pytest.param(changed(x_data_type="TYPE_BF16"), graph(element="tensor(bfloat16)"), "TYPE_BF16, which", id="bf16"),
    pytest.param(changed(x_dims=[5]), GRAPH, r"'x' has dims \[5\] .* shape \[-1, 4\]", id="dims"),
    pytest.param(changed(x_dims=[-1]), GRAPH, r"'x' has dims \[-1\]", id="-1 where the graph is static"),
    pytest.param(changed(x_dims=[-1, 4]), GRAPH, "a batch dimension comes first", id="batch dimension written"),
    pytest.param(changed(y_dims=[3], max_batch_size=0, x_dims=[-1, 4]), GRAPH, r"'y' has dims \[3\]", id="rank"),
    pytest.param(changed(y_dims=[3]), graph(y=(-1, -1)), r"'y' has dims \[3\]", id="output dynamic in the graph"),
    pytest.param(changed(x_dims=[2, 2], x_reshape={"shape": [2, 2]}), GRAPH, r"dims \[2, 2\]", id="reshape"),
    pytest.param(CONFIG, graph((2, 4)), "'x': max_batch_size is 8, so .* first dimension must be dynamic", id="static"),
    pytest.param(CONFIG, graph(y=(1, 3)), "'y': max_batch_size is 8", id="static output"),
    pytest.param(CONFIG, graph(()), "'x': max_batch_size is 8", id="batched scalar"),
    pytest.param(changed(max_batch_size=0, x_dims=[2]), graph(()), "'x' is a scalar", id="scalar of two"),
    pytest.param(changed(input=[]), GRAPH, r"0 inputs \[\], the ONNX graph has 1 \['x'\]", id="missing input"),
    pytest.param(changed(input=[*CONFIG["input"], {**CONFIG["input"][0], "name": "z"}]), GRAPH, "2 inputs", id="extra"),
    pytest.param(changed(output=[]), GRAPH, r"no output; name some of \['y'\]", id="no output"),
    pytest.param(changed(x_optional=True), Graph((), GRAPH.outputs, GRAPH.inputs), "optional input 'x'", id="optional"),
    pytest.param(changed(x_allow_ragged_batch=True), GRAPH, "ragged batches", id="ragged"),
    pytest.param(CONFIG, graph(element="seq(tensor(float))"), r"'x' is a seq\(tensor\(float\)\)", id="sequence"),
]


@pytest.mark.parametrize(("config", "onnx_graph"), ACCEPTED)
def test_accepts_what_the_real_backend_loads(config: dict[str, Any], onnx_graph: Graph) -> None:
    check_interface(config, onnx_graph)


@pytest.mark.parametrize(("config", "onnx_graph", "message"), REFUSED)
def test_refuses_what_the_real_backend_refuses(config: dict[str, Any], onnx_graph: Graph, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        check_interface(config, onnx_graph)


def parameters(**values: str) -> dict[str, Any]:
    return {"parameters": {key: {"string_value": value} for key, value in values.items()}}


def test_reads_the_sessions_settings() -> None:
    config = parameters(intra_op_thread_count="3", execution_mode="1", enable_mem_arena="False")
    settings = read_settings({**config, "optimization": {"graph": {"level": -1}}})
    assert (settings.intra_op_threads, settings.inter_op_threads, settings.parallel) == (3, 0, True)
    assert (settings.memory_arena, settings.memory_pattern, settings.graph_level) == (False, True, "basic")
    assert read_settings(CONFIG).graph_level == "all"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (parameters(intra_op_thread_count="two"), "'intra_op_thread_count' is 'two'; it must be an integer"),
        (parameters(intra_op_thread_count="1.5"), "must be an integer"),
        (parameters(execution_mode="2"), "'execution_mode' is 2"),
        (parameters(enable_mem_pattern="maybe"), "'enable_mem_pattern' is 'maybe'"),
        ({"sequence_batching": {"oldest": {}}}, "sequence_batching, which the embedded server cannot run"),
        ({"optimization": {"execution_accelerators": {"gpu_execution_accelerator": []}}}, "execution_accelerators"),
    ],
)
def test_refuses_settings(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        read_settings(config)


def test_refuses_onnx_newer_than_the_oldest_triton_reads() -> None:
    check_versions(10, 21)
    for versions in ((11, 20), (10, 22)):
        with pytest.raises(ConfigurationError, match=f"IR version {versions[0]} and opset {versions[1]}"):
            check_versions(*versions)
