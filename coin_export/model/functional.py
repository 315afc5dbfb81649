"""Calling a module with other tensors in place of its own; and whether autograd sees that they matter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch.func import functional_call

from coin_export.errors import ModelError
from coin_export.model.signature import name_outputs


class Slots:
    """Where a module keeps its tensors: each place once, however many names lead to it.

    `torch.func.functional_call` ties weights by name. A module that stands in two places has two names for one slot,
    which it would fill twice and then restore to what it had filled in itself.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        self._module = module
        first = {id(tensor): name for name, tensor in [*module.named_parameters(), *module.named_buffers()]}
        self._first = {
            f"{prefix}.{local}".lstrip("."): first[id(tensor)]
            for prefix, part in module.named_modules()
            for local, tensor in [*part._parameters.items(), *part._buffers.items()]
            if tensor is not None
        }

    def call(self, tensors: Mapping[str, torch.Tensor], inputs: Sequence[torch.Tensor]) -> object:
        """Call the module.

        Args:
            tensors: by the first name of each; what is absent stays the module's own.
            inputs: positional arguments.
        """
        filled = {slot: tensors[name] for slot, name in self._first.items() if name in tensors}
        returned: object = functional_call(self._module, filled, tuple(inputs), tie_weights=False)
        return returned


def check_differentiable(module: torch.nn.Module, inputs: Mapping[str, torch.Tensor]) -> None:
    """Check that autograd sees outputs depend on weights, frozen ones included.

    Raises:
        ModelError: if they depend on none.
    """
    frozen = [parameter for parameter in module.parameters() if not parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(parameter.is_floating_point())
    try:
        outputs = name_outputs(module(*inputs.values()), None).values()
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
    if not any(output.requires_grad for output in outputs):
        raise ModelError(
            "no output depends on any weight, as autograd sees it; does forward use torch.no_grad or detach()?"
        )
