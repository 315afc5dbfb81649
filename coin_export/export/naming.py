"""Giving an ONNX graph's inputs and outputs the user's names, whatever the values inside are called.

The exporter calls values inside after their operators, such as ``cat`` and ``mean``, and so may a user an input or an
output; but a name stands for one value in a graph and all its subgraphs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import count

import onnx

from coin_export.export.portable import subgraphs


def provisional_names(kind: str, count: int) -> list[str]:
    """Return names that no value inside has."""
    return [f"{kind}.{index}" for index in range(count)]


def name_interface(model: onnx.ModelProto, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Rename a model's inputs and outputs, in place, and what inside is called like one of them."""
    found = [item.name for item in (*model.graph.input, *model.graph.output)]
    names = dict(zip(found, [*inputs, *outputs], strict=True))
    graphs = [model.graph, *subgraphs(model.graph.node)]
    inner = {name for graph in graphs for name in _defined(graph)} - names.keys()
    taken = inner | set(names.values())
    for name in sorted(inner & set(names.values())):
        names[name] = next(other for other in map(f"{name}.{{}}".format, count()) if other not in taken)
    for graph in graphs:
        _rename(graph, names)


def _defined(graph: onnx.GraphProto) -> Iterator[str]:
    """Yield the names that a graph gives to values."""
    yield from (item.name for item in graph.input)
    yield from (item.name for item in graph.initializer)
    for node in graph.node:
        yield from node.output


def _rename(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    for item in (*graph.input, *graph.output, *graph.value_info):
        item.name = names.get(item.name, item.name)
    for weight in graph.initializer:
        weight.name = names.get(weight.name, weight.name)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
