"""How passes run while coded models are fitted: as fast as this machine and these models allow.

Fitting asks for thousands of passes and bears some rounding. So kernels of images have channels last, and products of
matrices work in bfloat16, by autocast, where the processor has units for them. Not every ``forward`` takes either:
``x.view(n, -1)`` after a convolution wants channels first, an assignment under a mask one dtype throughout. So each way
is tried on a few points before, and taken only if all runs and the outputs stay what they are. What decides between
coded models runs as the originals do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch

from coin_export.errors import CoinExportError
from coin_export.model.copying import copied
from coin_export.model.signature import FORWARD_ERRORS, call

Precision: TypeAlias = Literal["auto", "float32", "bfloat16"]

# Relative to the outputs' root mean square. One rounding to bfloat16 is up to 0.004; in float32 only the order of sums
# changes.
_TOLERANCES = {True: 0.05, False: 1e-3}


@dataclass(frozen=True)
class Execution:
    """How to run modules.

    Attributes:
        channels_last: kernels of `torch.nn.Conv2d` have channels last, so oneDNN spends less time on laying out anew.
        bfloat16: autocast to it.
    """

    channels_last: bool = False
    bfloat16: bool = False

    def lay_out(self, module: torch.nn.Module) -> None:
        """Lay out the module's kernels, in place."""
        if self.channels_last:
            for layer in _image_convolutions(module):
                layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # its stubs lack it

    def copy(self, module: torch.nn.Module) -> torch.nn.Module:
        """Return a copy that is laid out and shares all other tensors; the module itself where nothing changes."""
        layers = _image_convolutions(module) if self.channels_last else []
        if not layers:
            return module
        moved = {id(tensor) for layer in layers for tensor in _tensors(layer)}
        laid_out = copied(module, [tensor for tensor in _tensors(module) if id(tensor) not in moved])
        self.lay_out(laid_out)
        return laid_out

    def call(
        self, module: torch.nn.Module, inputs: Mapping[str, torch.Tensor], output_names: Sequence[str]
    ) -> dict[str, torch.Tensor]:
        """Call a module that is laid out, and return its outputs by name, at least float32; raises what it raises.

        What bears bfloat16 on some points may not on others: `torch.nn.TransformerEncoder` takes another path where its
        mask hides nothing, or only the last ones. Such a batch runs in float32.
        """
        try:
            return self.call_strictly(module, inputs, output_names)
        except FORWARD_ERRORS:
            if not self.bfloat16:
                raise
        return call(module, inputs, output_names)

    def call_strictly(
        self, module: torch.nn.Module, inputs: Mapping[str, torch.Tensor], output_names: Sequence[str]
    ) -> dict[str, torch.Tensor]:
        """Do the same, and raise what it raises in bfloat16, too."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16):
            outputs = call(module, inputs, output_names)
        if not self.bfloat16:
            return outputs
        return {name: output.float() if output.dtype == torch.bfloat16 else output for name, output in outputs.items()}


EXACT = Execution()
"""As the originals run."""


def fastest(
    modules: Sequence[torch.nn.Module],
    inputs: Mapping[str, torch.Tensor],
    output_names: Sequence[str],
    precision: Precision,
) -> Execution:
    """Return the fastest way to run these modules, and copies of the first one backward, that changes no output much.

    Args:
        modules: the originals, in eval mode.
        inputs: a few points.
        output_names: of the modules.
        precision: ``auto`` is bfloat16 where the processor has units for its products (AMX), else float32.
    """
    images = any(_image_convolutions(module) for module in modules)
    bfloat16 = precision == "bfloat16" or (precision == "auto" and _multiplies_bfloat16())
    ways = [Execution(channels_last, half) for half in (True, False) for channels_last in (True, False)]
    worth_trying = (
        way for way in ways if way != EXACT and (bfloat16 or not way.bfloat16) and (images or not way.channels_last)
    )
    return next((way for way in worth_trying if _suits(way, modules, inputs, output_names)), EXACT)


def _suits(
    execution: Execution,
    modules: Sequence[torch.nn.Module],
    inputs: Mapping[str, torch.Tensor],
    output_names: Sequence[str],
) -> bool:
    """Say whether all modules give nearly the same outputs in this way, and the first one gradients."""
    try:
        with torch.no_grad():
            for module in modules:
                expected = call(module, inputs, output_names)
                found = execution.call_strictly(execution.copy(module), inputs, output_names)
                if not all(
                    _near(found[name], expected[name], _TOLERANCES[execution.bfloat16]) for name in output_names
                ):
                    return False
        fitted = copied(modules[0])
        execution.lay_out(fitted)
        for parameter in fitted.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
        outputs = execution.call_strictly(fitted, inputs, output_names).values()
        torch.autograd.backward(torch.stack([output.square().mean() for output in outputs]).sum())
    except (*FORWARD_ERRORS, CoinExportError):
        return False
    return True


def _near(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> bool:
    return bool((found - expected).norm() <= tolerance * expected.norm())


def _image_convolutions(module: torch.nn.Module) -> list[torch.nn.Conv2d]:
    return [layer for layer in module.modules() if isinstance(layer, torch.nn.Conv2d)]


def _tensors(module: torch.nn.Module) -> list[torch.Tensor]:
    return [*module.parameters(), *module.buffers()]


def _multiplies_bfloat16() -> bool:
    """Say whether the processor has units for products of bfloat16; without, autocast takes longer than float32."""
    if not hasattr(torch.cpu, "get_capabilities"):  # before torch 2.12
        return False
    return bool(torch.cpu.get_capabilities().get("amx_bf16", False))
