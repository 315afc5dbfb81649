"""A stand-in for NVIDIA's C++ ONNX Runtime backend, run by Triton's Python backend.

tritonserver loads this file for every model whose configuration says ``backend: "onnxruntime"`` where the C++ backend
is not installed, so one model repository serves on both. It runs in a process of its own per model instance.
"""

import json
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils

sys.path.insert(0, str(Path(__file__).parent))
from checks import (
    ConfigurationError,
    Graph,
    GraphTensor,
    check_interface,
    check_versions,
    read_settings,
)
from onnx_header import read_versions

_GRAPH_LEVELS = {
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "disabled": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
}


class TritonPythonModel:
    """One instance of one model."""

    def initialize(self, args):
        """Load the model and check its configuration against it, as the C++ backend does.

        Raises:
            TritonModelException: with the reason, which the server reports as the model's load error.
        """
        config = json.loads(args["model_config"])
        try:
            self._session = _open_session(config, args)
            graph = _read_graph(self._session)
            check_interface(config, graph)
        except ConfigurationError as error:
            # `from None`: the server's message then holds the reason alone.
            raise pb_utils.TritonModelException(f"unable to load model '{args['model_name']}': {error}") from None
        self._batches = int(config["max_batch_size"]) > 0
        self._strings = {t.name for t in graph.outputs if t.element_type == "tensor(string)"}
        self._scalar_inputs = {t.name for t in (*graph.inputs, *graph.initializers) if not t.dims}
        self._scalar_outputs = {
            item["name"]: [int(dim) for dim in item["dims"]]
            for item in config["output"]
            if any(t.name == item["name"] and not t.dims for t in graph.outputs)
        }

    def execute(self, requests):
        """Answer requests, several in one run where their shapes allow it; an error fails its own request only."""
        feeds = [self._feed(request) for request in requests]
        wanted = [list(request.requested_output_names()) for request in requests]
        if self._batches and len(requests) > 1 and _can_join(feeds):
            with suppress(Exception):  # answered one by one below, so that each gets its own error
                return self._answer_joined(feeds, wanted)
        return [self._answer(feed, names) for feed, names in zip(feeds, wanted, strict=True)]

    def _feed(self, request):
        feed = {}
        for tensor in request.inputs():
            array = tensor.as_numpy()
            if array.dtype.kind in "OS":
                array = np.array(
                    [item.decode(errors="surrogateescape") for item in array.ravel()], dtype=object
                ).reshape(array.shape)
            feed[tensor.name()] = array.reshape(()) if tensor.name() in self._scalar_inputs else array
        return feed

    def _answer(self, feed, names):
        try:
            return self._response(names, self._session.run(names, feed))
        except Exception as error:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(f"onnx runtime error: {error}"))

    def _answer_joined(self, feeds, wanted):
        names = sorted(set().union(*wanted))
        joined = {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}
        sizes = [len(next(iter(feed.values()))) for feed in feeds]
        ends = np.cumsum(sizes)
        outputs = dict(zip(names, self._session.run(names, joined), strict=True))
        if any(len(array) != ends[-1] for array in outputs.values()):
            raise ValueError("an output's first dimension is not the batch")
        return [
            self._response(mine, [outputs[name][end - size : end] for name in mine])
            for mine, size, end in zip(wanted, sizes, ends, strict=True)
        ]

    def _response(self, names, arrays):
        return pb_utils.InferenceResponse(
            [self._tensor(name, array) for name, array in zip(names, arrays, strict=True)]
        )

    def _tensor(self, name, array):
        if name in self._scalar_outputs:
            array = array.reshape(self._scalar_outputs[name])
        if name in self._strings:
            array = np.array([str(item).encode() for item in array.ravel()], dtype=object).reshape(array.shape)
        return pb_utils.Tensor(name, np.ascontiguousarray(array))


def _can_join(feeds):
    """Tell whether all requests have the same inputs, equal but for the first dimension."""
    kinds = [{name: (array.dtype, array.shape[1:]) for name, array in feed.items()} for feed in feeds]
    return all(kind == kinds[0] for kind in kinds)


def _open_session(config, args):
    path = Path(args["model_repository"], args["model_version"], config["default_model_filename"] or "model.onnx")
    if path.is_dir():
        path = path / "model.onnx"
    if not path.is_file():
        raise ConfigurationError(f"unable to find {str(path)!r}; put the model there or set default_model_filename")
    options = _session_options(read_settings(config))
    providers = _providers(args)
    try:
        check_versions(*read_versions(path))
        session = onnxruntime.InferenceSession(str(path), options, providers=providers)
    except ConfigurationError:
        raise
    except Exception as error:
        raise ConfigurationError(f"{str(path)!r} is not a model that ONNX Runtime can load: {error}") from error
    if session.get_providers()[0] != _provider_name(providers[0]):
        raise ConfigurationError("the instance has kind KIND_GPU, but the installed onnxruntime cannot use the GPU")
    return session


def _session_options(settings):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = settings.intra_op_threads
    options.inter_op_num_threads = settings.inter_op_threads
    options.enable_cpu_mem_arena = settings.memory_arena
    options.enable_mem_pattern = settings.memory_pattern
    options.graph_optimization_level = _GRAPH_LEVELS[settings.graph_level]
    if settings.parallel:
        options.execution_mode = onnxruntime.ExecutionMode.ORT_PARALLEL
    return options


def _providers(args):
    if args["model_instance_kind"] == "GPU":
        return [("CUDAExecutionProvider", {"device_id": args["model_instance_device_id"]}), "CPUExecutionProvider"]
    return ["CPUExecutionProvider"]


def _provider_name(provider):
    return provider if isinstance(provider, str) else provider[0]


def _read_graph(session):
    return Graph(
        _tensors(session.get_inputs()),
        _tensors(session.get_outputs()),
        _tensors(session.get_overridable_initializers()),
    )


def _tensors(nodes):
    return tuple(
        GraphTensor(node.name, node.type, tuple(dim if isinstance(dim, int) else -1 for dim in node.shape))
        for node in nodes
    )
