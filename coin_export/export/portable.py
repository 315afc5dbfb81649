"""Making ONNX bytes depend on the model alone, not on the machine that exported it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import onnx

BATCH = "batch"


def make_portable(model: onnx.ModelProto) -> None:
    """Drop from ``model`` what describes its making, in place.

    The exporter notes stack traces with local paths, Python class names and its own version beside every node. The
    symbol of the batch dimension gets the name ``batch``.
    """
    model.producer_version = ""
    model.doc_string = ""
    del model.metadata_props[:]
    del model.graph.value_info[:]
    for graph in (model.graph, *subgraphs(model.graph.node)):
        _clear(graph, *graph.input, *graph.output, *graph.value_info, *graph.initializer)
        _clear(*graph.node)
    for function in model.functions:
        _clear(function, *function.value_info, *function.node)
        for graph in subgraphs(function.node):
            _clear(graph, *graph.input, *graph.output, *graph.value_info, *graph.initializer, *graph.node)
    _name_batch(model.graph)


def _clear(
    *items: onnx.GraphProto | onnx.NodeProto | onnx.ValueInfoProto | onnx.TensorProto | onnx.FunctionProto,
) -> None:
    for item in items:
        item.doc_string = ""
        del item.metadata_props[:]


def subgraphs(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.GraphProto]:
    """Yield all graphs inside nodes, such as the branches of an ``If``."""
    for node in nodes:
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs) if attribute.HasField("g") else attribute.graphs:
                yield graph
                yield from subgraphs(graph.node)


def _name_batch(graph: onnx.GraphProto) -> None:
    shapes = [item.type.tensor_type.shape for item in (*graph.input, *graph.output)]
    inputs = [item.type.tensor_type.shape for item in graph.input]
    for symbol in {shape.dim[0].dim_param for shape in inputs if shape.dim and shape.dim[0].dim_param}:
        for dim in (dim for shape in shapes for dim in shape.dim if dim.dim_param):
            dim.dim_param = re.sub(rf"\b{re.escape(symbol)}\b", BATCH, dim.dim_param)
