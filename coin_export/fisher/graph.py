"""What an autograd graph says about parameters: an account of every use, whatever code made it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.autograd.graph import Node


@dataclass(frozen=True)
class Graph:
    """The part of an autograd graph that the outputs depend on.

    Attributes:
        nodes: its nodes, each after all those that it leads to.
        uses: how often each leaf tensor is used, by ``id`` of the tensor.
    """

    nodes: dict[Node, None]
    uses: Counter[int]

    def lowest(self, nodes: set[Node]) -> set[Node]:
        """Return those ``nodes`` from which none of the others can be reached."""
        above: set[Node] = set()
        lowest = set()
        for node in self.nodes:
            below = any(child in nodes or child in above for child, _ in node.next_functions)
            if below:
                above.add(node)
            elif node in nodes:
                lowest.add(node)
        return lowest


def walk(outputs: Sequence[torch.Tensor]) -> Graph:
    """Visit everything that ``outputs`` depend on."""
    nodes: dict[Node, None] = {}
    uses: Counter[int] = Counter()
    stack = [(output.grad_fn, False) for output in outputs if output.grad_fn is not None]
    seen: set[Node] = set()
    while stack:
        node, expanded = stack.pop()
        if expanded:
            nodes[node] = None
            continue
        if node in seen:
            continue
        seen.add(node)
        stack.append((node, True))
        for child, _ in node.next_functions:
            leaf = getattr(child, "variable", None)  # only the nodes that accumulate a leaf's gradient have one
            if isinstance(leaf, torch.Tensor):
                uses[id(leaf)] += 1
            if child is not None:
                stack.append((child, False))
    return Graph(nodes, uses)
