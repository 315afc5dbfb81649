"""What NVIDIA's C++ ONNX Runtime backend refuses when it loads a model, refused here too.

The rules follow ``ValidateInputs``, ``ValidateOutputs`` and ``CompareDimsSupported`` of Triton's onnxruntime_backend.
Rules that tritonserver itself enforces (unknown fields, label files, instance kinds, preferred batch sizes, the
platform, the model's name) are not repeated. This file runs inside the server's Python process and imports nothing
of the package; it knows neither Triton's Python API nor ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MAX_IR_VERSION = 10  # ONNX Runtime in Triton 24.10, the oldest release this package supports
MAX_OPSET = 21

_DATA_TYPES = {
    "TYPE_BOOL": "tensor(bool)",
    "TYPE_UINT8": "tensor(uint8)",
    "TYPE_UINT16": "tensor(uint16)",
    "TYPE_UINT32": "tensor(uint32)",
    "TYPE_UINT64": "tensor(uint64)",
    "TYPE_INT8": "tensor(int8)",
    "TYPE_INT16": "tensor(int16)",
    "TYPE_INT32": "tensor(int32)",
    "TYPE_INT64": "tensor(int64)",
    "TYPE_FP16": "tensor(float16)",
    "TYPE_FP32": "tensor(float)",
    "TYPE_FP64": "tensor(double)",
    "TYPE_STRING": "tensor(string)",
}
_BOOLEANS = {"1": True, "true": True, "0": False, "false": False}
_GRAPH_LEVELS = {-1: "basic", 0: "all", 1: "extended", 2: "disabled"}
_NOT_IN_STAND_IN = ("sequence_batching", "batch_input", "batch_output", "model_operations")


class ConfigurationError(ValueError):
    """A model's configuration or ONNX file is not one that NVIDIA's ONNX Runtime backend loads."""


@dataclass(frozen=True)
class GraphTensor:
    """An input or output of the ONNX graph.

    Attributes:
        name: its name.
        element_type: as ONNX Runtime writes it, for example ``tensor(float)``.
        dims: with -1 for each dynamic dimension.
    """

    name: str
    element_type: str
    dims: tuple[int, ...]


@dataclass(frozen=True)
class Graph:
    """The interface of an ONNX graph; initializers are those that a request may override."""

    inputs: tuple[GraphTensor, ...]
    outputs: tuple[GraphTensor, ...]
    initializers: tuple[GraphTensor, ...] = ()


@dataclass(frozen=True)
class SessionSettings:
    """What the configuration asks of ONNX Runtime; a thread count of 0 leaves it to ONNX Runtime."""

    intra_op_threads: int
    inter_op_threads: int
    parallel: bool
    memory_arena: bool
    memory_pattern: bool
    graph_level: str


def check_versions(ir_version: int, opset: int) -> None:
    """Refuse ONNX files newer than the oldest supported Triton reads.

    Raises:
        ConfigurationError: if the IR version or the default domain's opset is too new.
    """
    if ir_version > MAX_IR_VERSION or opset > MAX_OPSET:
        raise ConfigurationError(
            f"the ONNX file has IR version {ir_version} and opset {opset}; Triton 24.10 reads at most IR version "
            f"{MAX_IR_VERSION} and opset {MAX_OPSET}: export the model with lower versions"
        )


def read_settings(config: Mapping[str, Any]) -> SessionSettings:
    """Read the session's settings from the model configuration.

    Raises:
        ConfigurationError: if a parameter has a value that the backend does not accept, or the configuration asks
            for something that only NVIDIA's backend can do.
    """
    _check_stand_in_can(config)
    mode = _integer(config, "execution_mode")
    if mode not in (0, 1):
        raise ConfigurationError(f"parameter 'execution_mode' is {mode}; it must be 0 (sequential) or 1 (parallel)")
    level = config.get("optimization", {}).get("graph", {}).get("level", 0)
    return SessionSettings(
        intra_op_threads=max(0, _integer(config, "intra_op_thread_count")),
        inter_op_threads=max(0, _integer(config, "inter_op_thread_count")),
        parallel=mode == 1,
        memory_arena=_boolean(config, "enable_mem_arena"),
        memory_pattern=_boolean(config, "enable_mem_pattern"),
        graph_level=_GRAPH_LEVELS.get(int(level), "all"),
    )


def check_interface(config: Mapping[str, Any], graph: Graph) -> None:
    """Compare the configuration's inputs and outputs with the graph's.

    Raises:
        ConfigurationError: if a name, the number of inputs, a data type or dims differ, or there is no output.
    """
    for tensor in (*graph.inputs, *graph.outputs):
        if not tensor.element_type.startswith("tensor("):
            raise ConfigurationError(
                f"the ONNX graph's {tensor.name!r} is a {tensor.element_type}; Triton serves tensors only"
            )
    _check_input_count(config, graph)
    if not config["output"]:
        raise ConfigurationError(f"the configuration has no output; name some of {_names(graph.outputs)}")
    max_batch_size = int(config["max_batch_size"])
    for item in config["input"]:
        _check_flags(item, max_batch_size)
        _check_tensor("input", item, (*graph.inputs, *graph.initializers), max_batch_size)
    for item in config["output"]:
        _check_tensor("output", item, graph.outputs, max_batch_size)


def _check_stand_in_can(config: Mapping[str, Any]) -> None:
    wanted = [field for field in _NOT_IN_STAND_IN if config.get(field)]
    if config.get("optimization", {}).get("execution_accelerators"):
        wanted.append("optimization.execution_accelerators")
    if wanted:
        raise ConfigurationError(
            f"the configuration uses {', '.join(wanted)}, which the embedded server cannot run; "
            "serve this model with NVIDIA's container"
        )


def _check_input_count(config: Mapping[str, Any], graph: Graph) -> None:
    required = [item["name"] for item in config["input"] if not item.get("optional")]
    if len(required) != len(graph.inputs):
        raise ConfigurationError(
            f"the configuration has {len(required)} inputs {required}, the ONNX graph has {len(graph.inputs)} "
            f"{_names(graph.inputs)}; name each input of the graph once"
        )


def _check_flags(item: Mapping[str, Any], max_batch_size: int) -> None:
    if item.get("allow_ragged_batch"):
        raise ConfigurationError(
            f"input {item['name']!r} allows ragged batches, which the embedded server cannot run; "
            "serve this model with NVIDIA's container"
        )
    if item.get("optional") and max_batch_size > 0:
        raise ConfigurationError(
            f"optional input {item['name']!r} is not supported for models that support batching; "
            "make it required, or set max_batch_size to 0"
        )


def _check_tensor(kind: str, item: Mapping[str, Any], tensors: Sequence[GraphTensor], max_batch_size: int) -> None:
    name, data_type = item["name"], item["data_type"]
    tensor = next((tensor for tensor in tensors if tensor.name == name), None)
    if tensor is None:
        raise ConfigurationError(
            f"{kind} {name!r} is not in the ONNX graph, whose {kind}s are {_names(tensors)}; use those names"
        )
    if data_type not in _DATA_TYPES:
        raise ConfigurationError(
            f"{kind} {name!r} has data type {data_type}, which Triton's ONNX Runtime backend does not support; "
            f"use one of {sorted(_DATA_TYPES)}"
        )
    if tensor.element_type != _DATA_TYPES[data_type]:
        raise ConfigurationError(
            f"{kind} {name!r} has data type {data_type} in the configuration and is a {tensor.element_type} "
            "in the ONNX graph; they must agree"
        )
    dims = item["reshape"].get("shape", []) if item.get("reshape") else item["dims"]
    _check_dims(f"{kind} {name!r}", [int(dim) for dim in dims], tensor.dims, max_batch_size, exact=kind == "output")


def _check_dims(where: str, dims: list[int], graph_dims: tuple[int, ...], max_batch_size: int, *, exact: bool) -> None:
    """Compare dims; a dynamic dimension of the graph takes any size as an input, and must be -1 as an output."""
    if max_batch_size > 0 and graph_dims[:1] != (-1,):
        raise ConfigurationError(
            f"{where}: max_batch_size is {max_batch_size}, so the ONNX graph's first dimension must be dynamic, but "
            f"its shape is {list(graph_dims)}; export with a dynamic batch dimension, or set max_batch_size to 0"
        )
    if not graph_dims:
        if any(dim != 1 for dim in dims):
            raise ConfigurationError(f"{where} is a scalar in the ONNX graph; its dims must be [1], not {dims}")
        return
    full = [-1, *dims] if max_batch_size > 0 else dims
    fits = len(full) == len(graph_dims) and all(
        dim == graph_dim or (graph_dim == -1 and not exact) for dim, graph_dim in zip(full, graph_dims, strict=True)
    )
    if not fits:
        batch = " (a batch dimension comes first because max_batch_size > 0)" if max_batch_size > 0 else ""
        raise ConfigurationError(
            f"{where} has dims {dims} in the configuration, which makes shape {full}{batch}, but the ONNX graph has "
            f"shape {list(graph_dims)}; they must agree, with -1 where the graph is dynamic and nowhere else"
        )


def _parameter(config: Mapping[str, Any], key: str, default: str) -> str:
    return str(config.get("parameters", {}).get(key, {}).get("string_value", default))


def _integer(config: Mapping[str, Any], key: str) -> int:
    text = _parameter(config, key, "0")
    try:
        return int(text)
    except ValueError:
        raise ConfigurationError(f"parameter {key!r} is {text!r}; it must be an integer") from None


def _boolean(config: Mapping[str, Any], key: str) -> bool:
    text = _parameter(config, key, "true")
    if text.lower() not in _BOOLEANS:
        raise ConfigurationError(f"parameter {key!r} is {text!r}; it must be true or false")
    return _BOOLEANS[text.lower()]


def _names(tensors: Sequence[GraphTensor]) -> list[str]:
    return [tensor.name for tensor in tensors]
