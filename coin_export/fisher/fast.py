"""Squared gradients of common layers from one forward and one backward pass over whole batches.

A layer's input and the gradient of its output hold what the gradients of each point are made of. A parameter is
handled here only if that is provably all there is to it: the autograd graph of the very batch shows one single use of
it, and this use is a recorded call of a layer that has a rule. Everything else is left to the caller.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.func import vmap

from coin_export.fisher.general import Squares, parameters_and_constants, widened
from coin_export.fisher.graph import Graph, walk
from coin_export.fisher.likelihood import cotangents
from coin_export.fisher.options import FisherOptions
from coin_export.fisher.recording import Recorder, Use
from coin_export.model.functional import Slots
from coin_export.model.signature import Original, name_outputs


@dataclass(frozen=True)
class FastResult:
    """What one batch gave.

    Attributes:
        squares: as from `GeneralPath`, for the parameters that are handled, but in the dtype of each; zero where the
            outputs do not depend on a parameter.
        finite: for each output, whether it was finite everywhere.
    """

    squares: Squares
    finite: list[bool]


class FastPath:
    """Computes sums of squared gradients for the parameters of common layers."""

    def __init__(self, original: Original, options: FisherOptions) -> None:
        self._module = original.module
        self._slots = Slots(original.module)
        self._outputs = tuple(spec.name for spec in original.signature.outputs)
        self._options = options
        self._parameters, self._constants = parameters_and_constants(original.module)

    def __call__(self, inputs: Sequence[torch.Tensor], directions: torch.Tensor) -> FastResult:
        """Handle one batch; arguments as for `GeneralPath`.

        Raises:
            RuntimeError: if the model fails on batches, as others do that a forward pass raises.
        """
        leaves = {name: tensor.requires_grad_() for name, tensor in self._parameters.items()}
        recorder = Recorder(leaves, len(directions))
        try:
            outputs = self._forward(recorder, leaves, inputs)
            graph = walk(outputs)
            uses = [use for use in recorder.uses if use.edge.node in graph.nodes]
            self._backward(outputs, graph, uses, directions)
            finite = [bool(torch.isfinite(output).all()) for output in outputs]
            return FastResult(self._collect(graph, uses, directions.shape[1]), finite)
        finally:
            for use in recorder.uses:
                use.detach()

    def _forward(self, recorder: Recorder, leaves: Squares, inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        arguments = tuple(widened(tensor) for tensor in inputs)
        with torch.enable_grad(), recorder.watching(self._module):
            returned = self._slots.call({**leaves, **self._constants}, arguments)
        return tuple(name_outputs(returned, self._outputs).values())

    def _backward(
        self, outputs: Sequence[torch.Tensor], graph: Graph, uses: Sequence[Use], directions: torch.Tensor
    ) -> None:
        """Send each vector back as far as the lowest layers; each `Use` takes its gradient on the way."""
        lowest = graph.lowest({use.edge.node for use in uses})
        edges = [use.edge for use in uses if use.edge.node in lowest]
        dependent = [index for index, output in enumerate(outputs) if output.requires_grad]
        if not edges:
            return
        detached = [output.detach() for output in outputs]
        for number in range(directions.shape[1]):
            vectors = vmap(lambda row, *rows: cotangents(self._options, rows, row))(directions[:, number], *detached)
            torch.autograd.grad(
                [outputs[index] for index in dependent],
                edges,
                [vectors[index] for index in dependent],
                retain_graph=number + 1 < directions.shape[1],
                allow_unused=True,
            )

    def _collect(self, graph: Graph, uses: Sequence[Use], passes: int) -> Squares:
        recorded = Counter(name for use in uses for name in use.names.values())
        once = {name for name, leaf in self._parameters.items() if graph.uses[id(leaf)] == recorded[name] == 1}
        squares = {
            name: torch.zeros_like(leaf, requires_grad=False)
            for name, leaf in self._parameters.items()
            if graph.uses[id(leaf)] == 0
        }
        for use in uses:
            if use.arrivals == passes and use.is_intact():
                squares |= {name: use.totals[local] for local, name in use.names.items() if name in once}
        return squares
