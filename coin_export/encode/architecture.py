"""Can the originals be combined tensor by tensor? And a module with coded weights in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import torch

from coin_export.errors import ArchitectureError, ModelError
from coin_export.model.copying import copied
from coin_export.model.signature import Original, TensorSpec
from coin_export.model.state import check_finite, first_names

_ABSENT = "-"


def check_same_architecture(originals: Sequence[Original]) -> None:
    """Check that the originals' tensors, inputs and outputs agree and that their weights are finite.

    Raises:
        ModelError: if there are fewer than two models, two have the same name, weights are complex or no tensors, or
            buffers that are not saved differ.
        ArchitectureError: lists every difference of every model from the first one.
        NonFiniteError: if weights hold NaN or infinity.
    """
    if len(originals) < 2:
        raise ModelError(f"a code needs at least two originals, not {len(originals)}")
    repeated = [name for name, count in Counter(original.name for original in originals).items() if count > 1]
    if repeated:
        raise ModelError(f"several originals are named {', '.join(map(repr, repeated))}; give each its own name")
    first, *others = originals
    tables = [_table(first, other) for other in others]
    differences = [table for table in tables if table]
    if differences:
        raise ArchitectureError(
            f"the originals cannot be combined; they differ from {first.name!r}:\n" + "\n".join(differences)
        )
    for original in originals:
        strange = [name for name, item in original.module.state_dict().items() if not isinstance(item, torch.Tensor)]
        if strange:
            raise ModelError(f"model {original.name!r}: {', '.join(strange)} in its state dict is no tensor to combine")
        complex_names = [name for name, tensor in original.module.state_dict().items() if tensor.is_complex()]
        if complex_names:
            raise ModelError(f"model {original.name!r}: complex weights are not supported: {', '.join(complex_names)}")
        check_finite(original.module, f"model {original.name!r}")
        unsaved = _differing_unsaved(first, original)
        if unsaved:
            raise ModelError(
                f"models {first.name!r} and {original.name!r} differ in {', '.join(unsaved)}, buffers that are not "
                "saved, so no coded weights can hold them; register them with persistent=True"
            )


def _differing_unsaved(first: Original, other: Original) -> list[str]:
    """Name the buffers outside the state dict that are not equal."""
    saved, others = first.module.state_dict(), dict(other.module.named_buffers())
    buffers = {name: tensor for name, tensor in first.module.named_buffers() if name not in saved}
    return [name for name, tensor in buffers.items() if not torch.equal(tensor, others[name])]


def coded_module(original: torch.nn.Module, state_dict: Mapping[str, torch.Tensor]) -> torch.nn.Module:
    """Copy ``original`` and load coded weights into the copy; tied weights stay tied.

    Raises:
        ModelError: if the weights do not fit the module exactly, or it cannot be copied.
    """
    module = copied(original)
    try:
        module.load_state_dict(state_dict)
    except RuntimeError as error:
        raise ModelError(f"the coded weights do not fit the originals' architecture: {error}") from error
    return module.eval()


def _table(first: Original, other: Original) -> str:
    """Lay out what differs, one line each; empty when nothing does."""
    expected, found = _described(first), _described(other)
    rows = [
        (what, expected.get(what, _ABSENT), found.get(what, _ABSENT))
        for what in expected | found
        if expected.get(what) != found.get(what)
    ]
    if not rows:
        return ""
    rows = [("", first.name, other.name), *rows]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    return "\n".join(f"  {what:<{widths[0]}}  {left:<{widths[1]}}  {right}".rstrip() for what, left, right in rows)


def _described(original: Original) -> dict[str, str]:
    """Say of each tensor, input and output what must agree."""
    module, signature = original.module, original.signature
    tied = first_names(module)
    named: list[tuple[str, torch.Tensor]] = [
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ]
    described = {
        name: f"{tuple(tensor.shape)} {_dtype(tensor.dtype)}" + (f" = {tied[name]}" if tied[name] != name else "")
        for name, tensor in named
    }
    for kind, specs in [("input", signature.inputs), ("output", signature.outputs)]:
        described |= {f"{kind} {index}": _spec(spec) for index, spec in enumerate(specs)}
    return described


def _spec(spec: TensorSpec) -> str:
    return f"{spec.name} {spec.shape} {_dtype(spec.dtype)}"


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
