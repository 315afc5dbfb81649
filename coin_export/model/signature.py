"""The inputs and outputs of a torch model by name, whatever its ``forward`` takes and returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from coin_export.datasets.calibration import Array, CalibrationInputs
from coin_export.errors import ModelError

FORWARD_ERRORS = (RuntimeError, TypeError, ValueError, IndexError)
"""What a model's ``forward`` raises on inputs that it cannot take; `CoinExportError` is to be let through before."""


def dtype_hint(error: BaseException) -> str:
    """Return what to add to a message where a model names its dtype, which it cannot in a widened copy."""
    return "; a half-precision model must take its dtype from its weights" if "dtype" in str(error) else ""


@dataclass(frozen=True)
class TensorSpec:
    """Name, torch dtype and shape (without the batch dimension) of one input or output."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Signature:
    """What a model is asked and what it answers, in the order of its ``forward``."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True, eq=False)
class Original:
    """One of the user's trained models: a name, the module in eval mode, its signature."""

    name: str
    module: torch.nn.Module
    signature: Signature


def to_tensors(arrays: Mapping[str, Array]) -> dict[str, torch.Tensor]:
    """Turn a batch of calibration inputs into tensors, sharing memory where the array is writable and torch can."""
    return {name: torch.from_numpy(_native(array)) for name, array in arrays.items()}


def _native(array: Array) -> Array:
    """Return the array as torch takes it: writable, without negative strides, in the machine's byte order."""
    shared = array.flags.writeable and array.dtype.isnative and all(stride >= 0 for stride in array.strides)
    return array if shared else np.array(array, dtype=array.dtype.newbyteorder("="), order="C")


def call(
    module: torch.nn.Module, inputs: Mapping[str, torch.Tensor], output_names: Sequence[str]
) -> dict[str, torch.Tensor]:
    """Call ``module`` with positional inputs and name what it returns.

    Raises:
        ModelError: if it returns something else than a tensor, or a tuple, list or dict of tensors, or if the
            number of tensors is not that of ``output_names``.
    """
    return name_outputs(module(*inputs.values()), output_names)


def name_outputs(returned: object, output_names: Sequence[str] | None) -> dict[str, torch.Tensor]:
    """Name the tensors that a ``forward`` returned; see `call`. Default names are ``output``, ``output_0``..."""
    if isinstance(returned, torch.Tensor):
        returned = (returned,)
    if isinstance(returned, Mapping):
        names, tensors = [str(key) for key in returned], list(returned.values())
    elif isinstance(returned, (tuple, list)):
        tensors = list(returned)
        names = ["output"] if len(tensors) == 1 else [f"output_{index}" for index in range(len(tensors))]
    else:
        raise ModelError(
            f"forward returned a {type(returned).__name__}; return a tensor, or a tuple or dict of tensors"
        )
    if not tensors or not all(isinstance(tensor, torch.Tensor) for tensor in tensors):
        kinds = [type(tensor).__name__ for tensor in tensors]
        raise ModelError(f"forward returned {kinds}; every output must be a tensor, and there must be one")
    if output_names is not None and len(output_names) != len(tensors):
        raise ModelError(f"forward returned {len(tensors)} outputs, and the names given are {list(output_names)}")
    return dict(zip(output_names or names, tensors, strict=True))


def infer_signature(
    module: torch.nn.Module, calibration: CalibrationInputs, output_names: Sequence[str] | None = None
) -> Signature:
    """Run one small batch through ``module``, twice, and read its signature.

    Raises:
        ModelError: if the forward pass fails on these inputs or writes into one, an output lacks the batch dimension or
            is not floating point, or the second answer is another.
    """
    inputs = {name: tensor.clone() for name, tensor in to_tensors(calibration.take(slice(0, 2)).arrays).items()}
    shapes = {name: tuple(tensor.shape[1:]) for name, tensor in inputs.items()}
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            returned = module(*inputs.values())
            before = {name: tensor.clone() for name, tensor in module.named_buffers()}
            again = module(*inputs.values())
    except FORWARD_ERRORS as error:
        raise ModelError(
            f"the model cannot be run on the calibration inputs {shapes}: {error}; "
            "check their names, order, shapes and dtypes"
        ) from error
    written = [name for name, tensor in inputs.items() if tensor._version > 0]
    if written:
        raise ModelError(
            f"forward writes into its input {', '.join(map(repr, written))}, which others are asked too; "
            "let it copy the input first, or use operations that are not in place"
        )
    changed = [name for name, tensor in module.named_buffers() if not _same(tensor, before.get(name))]
    if changed:
        raise ModelError(
            f"forward changes {', '.join(changed)} of a model in eval mode, so no two answers are alike; "
            "let it change buffers only where self.training is true"
        )
    outputs = name_outputs(returned, output_names)
    if both := inputs.keys() & outputs.keys():
        raise ModelError(f"{', '.join(sorted(both))} names an input and an output; give outputs names of their own")
    for name, tensor in name_outputs(again, output_names).items():
        if not _same(tensor, outputs.get(name)):
            raise ModelError(
                f"output {name!r} is another when the same points are asked again; an answer must depend on the inputs "
                "alone, so leave out what is random, such as dropout in eval mode"
            )
    points = next(iter(inputs.values())).shape[0]
    for name, tensor in outputs.items():
        if tensor.ndim < 2 or tensor.shape[0] != points or not tensor.is_floating_point():
            raise ModelError(
                f"output {name!r} is {tensor.dtype} of shape {tuple(tensor.shape)} for {points} points; "
                "an output must be floating point, of shape (points, ...); make (points,) to (points, 1)"
            )
    return Signature(_specs(inputs), _specs(outputs))


def _same(found: torch.Tensor, before: torch.Tensor | None) -> bool:
    """Say whether a tensor is what it was, but for rounding."""
    if before is None or found.shape != before.shape:
        return False
    return torch.allclose(found, before, rtol=1e-3, atol=1e-5, equal_nan=True)


def _specs(tensors: Mapping[str, torch.Tensor]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name, tensor.dtype, tuple(tensor.shape[1:])) for name, tensor in tensors.items())
