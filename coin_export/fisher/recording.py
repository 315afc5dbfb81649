"""Records, during one forward pass, the inputs and outputs of the layers that have a fast rule."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils.hooks import RemovableHandle

from coin_export.fisher.layers.attention import self_attention, self_attention_applies
from coin_export.fisher.layers.registry import IN_PROJECTION, RULES, Rule, Squares


@dataclass(eq=False)
class Use:
    """One call of a layer.

    Attributes:
        names: name in the model of each of the layer's own parameters, by its name in the layer.
        edge: where the gradient of the layer's output arrives in the autograd graph.
        totals: squares over all backward passes so far, by name in the layer.
        arrivals: how often a gradient arrived.
    """

    module: nn.Module
    rule: Rule
    names: Mapping[str, str]
    inputs: torch.Tensor
    edge: GradientEdge
    totals: Squares = field(default_factory=dict)
    arrivals: int = 0
    _version: int = field(init=False)
    _hook: RemovableHandle = field(init=False)

    def __post_init__(self) -> None:
        self._version = self.inputs._version

    def attach(self, output: torch.Tensor) -> None:
        """Let gradients of ``output`` arrive here, until `detach`."""
        self._hook = output.register_hook(self.arrive)  # type: ignore[no-untyped-call]  # as torch has it

    def detach(self) -> None:
        """Break the cycle of references between the autograd graph and this object."""
        self._hook.remove()

    def arrive(self, gradient: torch.Tensor) -> None:
        """Take the gradient of the layer's output in one backward pass."""
        with torch.no_grad():
            squares = self.rule.squares(self.module, self.inputs.detach(), gradient.detach())
        self.arrivals += 1
        for local in self.names:
            self.totals[local] = self.totals[local] + squares[local] if local in self.totals else squares[local]

    def is_intact(self) -> bool:
        """Whether the inputs still hold what the layer saw."""
        return self.inputs._version == self._version


class Recorder:
    """Collects `Use` objects while `watching`."""

    def __init__(self, leaves: Mapping[str, torch.Tensor], points: int) -> None:
        self._names = {id(leaf): name for name, leaf in leaves.items()}
        self._points = points
        self.uses: list[Use] = []

    @contextmanager
    def watching(self, root: nn.Module) -> Iterator[None]:
        """Record every call of a known layer below ``root``, and leave no trace on it."""
        handles = []
        replaced = []
        try:
            for module in root.modules():
                if not _is_plain(module):
                    continue
                if type(module) in RULES:
                    handles.append(module.register_forward_hook(self._called, with_kwargs=True))
                elif type(module) is nn.MultiheadAttention:
                    replaced.append(module)
                    module.forward = partial(self._attend, module)  # type: ignore[method-assign]  # for one pass
            yield
        finally:
            for handle in handles:
                handle.remove()
            for module in replaced:
                del module.forward

    def record(self, module: nn.Module, rule: Rule, inputs: torch.Tensor, output: torch.Tensor) -> None:
        """Note one call of a layer, unless its rule does not hold for it."""
        own = module.named_parameters(recurse=False)
        names = {local: self._names[id(tensor)] for local, tensor in own if id(tensor) in self._names}
        held = inputs.ndim > 0 and len(inputs) == self._points == len(output)
        if names and held and output.requires_grad and rule.applies(module, inputs):
            use = Use(module, rule, names, inputs, get_gradient_edge(output))
            use.attach(output)
            self.uses.append(use)

    def _called(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        given = [*args, *kwargs.values()]
        if len(given) == 1 and isinstance(given[0], torch.Tensor) and isinstance(output, torch.Tensor):
            self.record(module, RULES[type(module)], given[0], output)

    def _attend(self, module: nn.MultiheadAttention, *args: Any, **kwargs: Any) -> Any:
        if not self_attention_applies(module, *args, **kwargs):
            return nn.MultiheadAttention.forward(module, *args, **kwargs)
        record: Callable[[torch.Tensor, torch.Tensor], None] = partial(self.record, module, IN_PROJECTION)
        return self_attention(module, record, *args, **kwargs)


def _is_plain(module: nn.Module) -> bool:
    """Whether calling the module is calling the forward of its class, and nothing else."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return "forward" not in vars(module) and not any(hooks)
