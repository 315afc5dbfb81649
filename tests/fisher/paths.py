"""Helpers for comparing the fast path with the general one."""

import torch
from torch import nn

from coin_export.fisher.fast import FastPath
from coin_export.fisher.general import GeneralPath, Squares
from coin_export.fisher.likelihood import directions
from coin_export.fisher.options import FisherOptions
from coin_export.model.signature import Original, Signature, TensorSpec

POINTS = 5
PROBE = FisherOptions(samples=2)


def describe(module: nn.Module, *inputs: torch.Tensor) -> Original:
    """Give the module, in evaluation mode and with random buffers and weights, a signature."""
    module.eval()
    with torch.no_grad():
        for name, tensor in [*module.named_buffers(), *module.named_parameters()]:
            if tensor.is_floating_point():
                tensor.copy_(
                    0.5 + torch.rand_like(tensor) if name.endswith("running_var") else torch.randn_like(tensor)
                )
        output = module(*inputs)
    specs = tuple(TensorSpec(f"x{index}", tensor.dtype, tensor.shape[1:]) for index, tensor in enumerate(inputs))
    return Original("net", module, Signature(specs, (TensorSpec("output", output.dtype, output.shape[1:]),)))


def both(
    original: Original, inputs: tuple[torch.Tensor, ...], options: FisherOptions = PROBE
) -> tuple[Squares, Squares]:
    """Return what the fast path claims and all that the general path finds."""
    width = sum(torch.Size(spec.shape).numel() for spec in original.signature.outputs)
    vectors = directions(options, range(len(inputs[0])), width)
    return FastPath(original, options)(inputs, vectors).squares, GeneralPath(original, options)(inputs, vectors)[0]


def assert_equal(found: Squares, wanted: Squares, tolerance: float = 1e-10) -> None:
    for name, square in found.items():
        square, scale = square.double(), wanted[name].abs().max().clamp(min=1e-30).double()
        torch.testing.assert_close(square / scale, wanted[name].double() / scale, rtol=0, atol=tolerance, msg=name)
