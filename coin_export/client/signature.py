"""What a group is asked and what it answers: checks on requests before they leave and on answers that come in."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from coin_export.client.answer import Array
from coin_export.code.manifest import Group, Tensor
from coin_export.errors import DiscoveryError, RequestError

# Triton's names for datatypes; numpy has none for BF16.
DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "BYTES": np.dtype(np.object_),
    **{f"INT{8 * size}": np.dtype(f"i{size}") for size in (1, 2, 4, 8)},
    **{f"UINT{8 * size}": np.dtype(f"u{size}") for size in (1, 2, 4, 8)},
    **{f"FP{8 * size}": np.dtype(f"f{size}") for size in (2, 4, 8)},
}
_FEW = 64  # numbers, for which Python is faster than numpy
_FLOATING = tuple(name for name, dtype in DTYPES.items() if dtype.kind == "f")


@dataclass(frozen=True)
class _Spec:
    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @cached_property
    def has_free_sizes(self) -> bool:
        """Whether the shape leaves a size besides the batch free."""
        return -1 in self.shape

    def fits(self, array: Array, batch: int) -> bool:
        """Tell whether the array's shape is (batch, *shape), where -1 stands for any size."""
        if not self.has_free_sizes:
            return array.shape == (batch, *self.shape)
        return len(array.shape) == 1 + len(self.shape) and all(
            size == expected or expected == -1 for size, expected in zip(array.shape, (batch, *self.shape), strict=True)
        )

    def free_sizes_agree(self, array: Array, other: Array) -> bool:
        """Tell whether two arrays have the same sizes where the shape leaves them free."""
        pairs = zip(self.shape, array.shape[1:], other.shape[1:], strict=True)
        return all(size == found for expected, size, found in pairs if expected == -1)

    def __str__(self) -> str:
        sizes = ", ".join(["batch", *("any" if size == -1 else str(size) for size in self.shape)])
        return f"{self.dtype} of shape ({sizes})"


class Signature:
    """The names, inputs and outputs of a group's members.

    Args:
        group: says names, datatypes and shapes.
        max_batch_size: the largest batch that all servers accept; 0 when there is no such bound.

    Attributes:
        members: the models' names by row.
        input_datatypes: Triton datatypes by input name.
        output_names: the outputs to ask for.
        max_batch_size: see above.

    Raises:
        DiscoveryError: if a tensor has a datatype that numpy cannot hold, or an output one that cannot be decoded.
    """

    def __init__(self, group: Group, max_batch_size: int) -> None:
        self._inputs = _specs(group.inputs, group.name, "input", DTYPES)
        self._outputs = tuple(
            _specs(group.outputs_of(member), group.name, "output", _FLOATING) for member in group.members
        )
        self.max_batch_size = max_batch_size
        self.members = tuple(member.name for member in group.members)
        self.input_datatypes = {tensor.name: tensor.dtype for tensor in group.inputs}
        self.output_names = tuple(tensor.name for tensor in group.outputs)

    def check_request(self, inputs: Mapping[str, Array]) -> int:
        """Check a request and return its batch size.

        Raises:
            RequestError: if a name, dtype, shape or the batch size is not what the group takes.
        """
        if inputs.keys() != self.input_datatypes.keys():
            wanted = "; ".join(f"{spec.name!r}: {spec}" for spec in self._inputs)
            raise RequestError(f"the request has inputs {sorted(inputs)}; give exactly {wanted}")
        first = inputs[self._inputs[0].name]
        batch = first.shape[0] if isinstance(first, np.ndarray) and first.ndim else 0
        for spec in self._inputs:
            _check_input(spec, inputs[spec.name], batch)
        if batch < 1:
            raise RequestError("the request's batch is empty; its first dimension must be at least 1")
        if 0 < self.max_batch_size < batch:
            raise RequestError(
                f"the request's batch of {batch} is above the servers' max_batch_size of {self.max_batch_size}; "
                "send smaller batches"
            )
        return batch

    def problem_with(
        self, row: int, outputs: Mapping[str, Array], batch: int, accepted: Mapping[str, Array] | None
    ) -> str:
        """Say what makes an answer unusable; empty when it is usable.

        Args:
            row: the member.
            outputs: its answer.
            batch: the request's batch size.
            accepted: another member's answer to the same request; settles the sizes that the group leaves free.
        """
        for spec in self._outputs[row]:
            array = outputs.get(spec.name)
            if array is None:
                return f"its answer lacks the output {spec.name!r}"
            if array.dtype != spec.dtype or not spec.fits(array, batch):
                return f"its output {spec.name!r} is {array.dtype} of shape {array.shape}, not {spec} at batch {batch}"
            if spec.has_free_sizes and accepted is not None and not spec.free_sizes_agree(array, accepted[spec.name]):
                return f"its output {spec.name!r} has shape {array.shape}, others' {accepted[spec.name].shape}"
            if not _all_finite(array):
                return f"its output {spec.name!r} contains NaN or infinity"
        return ""


def _all_finite(array: Array) -> bool:
    # A sum, of many numbers one of squares except in half precision, is known in half the time; but it may overflow.
    if array.size <= _FEW:
        quick = sum(array.ravel().tolist())
    else:
        quick = np.vdot(array, array) if array.dtype.itemsize > 2 else math.inf
    return math.isfinite(quick) or bool(np.isfinite(array).all())


def _specs(tensors: Sequence[Tensor], group: str, what: str, allowed: Collection[str]) -> tuple[_Spec, ...]:
    for tensor in tensors:
        if tensor.dtype not in allowed:
            raise DiscoveryError(
                f"group {group!r}: {what} {tensor.name!r} has datatype {tensor.dtype}; build the group with one of "
                f"{list(allowed)}"
            )
    return tuple(_Spec(tensor.name, DTYPES[tensor.dtype], tensor.shape) for tensor in tensors)


def _check_input(spec: _Spec, array: object, batch: int) -> None:
    if not isinstance(array, np.ndarray):
        raise RequestError(f"input {spec.name!r} is a {type(array).__name__}; give a numpy array, {spec}")
    # Texts may come as fixed-size bytes too; tritonclient serializes both.
    dtype_fits = array.dtype == spec.dtype or (spec.dtype == np.object_ and array.dtype.kind == "S")
    if not dtype_fits or not spec.fits(array, array.shape[0] if array.ndim else 0):
        raise RequestError(f"input {spec.name!r} is {array.dtype} of shape {array.shape}; give {spec}")
    if array.shape[0] != batch:
        raise RequestError(f"input {spec.name!r} has a batch of {array.shape[0]}, another input one of {batch}")
