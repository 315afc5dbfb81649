"""Originals whose heads differ in the number of classes: padded to the largest, for coding only.

An original lives on in the widest one's module, its narrower tensors followed by rows of zeros. Its outputs are then
its own, followed by zeros: in code space, an original that lacks a class counts as zero there. The decoder needs no
other agreement: it adds nothing where an original has no class, and cuts what it decodes to the wanted original's
own classes. The originals themselves are exported as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from coin_export.datasets.calibration import CalibrationInputs
from coin_export.errors import ArchitectureError
from coin_export.model.copying import copied
from coin_export.model.signature import Original, Signature, call, infer_signature, to_tensors

_POINTS = 2


def pad_heads(originals: Sequence[Original], calibration: CalibrationInputs) -> list[Original]:
    """Return the originals with heads of one size; as they are where nothing, or more than the heads, differs.

    Heads differ when some tensors have other numbers of rows (their first dimension), and outputs another size along
    one dimension, as with a classifier of 6 and one of 2 classes. One original must be the widest in all of them.

    Args:
        originals: of any architectures; they are left as they are.
        calibration: a few points show that padding adds zeros to the outputs and changes nothing else.

    Raises:
        ArchitectureError: if padding changes what an original answers; the tensors are no head then.
    """
    widest = _widest(originals)
    if widest is None:
        return list(originals)
    return [original if original is widest else _padded(original, widest, calibration) for original in originals]


def _widest(originals: Sequence[Original]) -> Original | None:
    """Return the original that all others can be padded to, if only heads differ, and they do."""
    for candidate in originals:
        others = [original for original in originals if _shapes(original) != _shapes(candidate)]
        if others and all(_fits(other, candidate) for other in others):
            return candidate
    return None


def _shapes(original: Original) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in original.module.state_dict().items()}


def _fits(narrow: Original, wide: Original) -> bool:
    """Whether the tensors differ in their numbers of rows alone, and the outputs in one dimension each."""
    shapes, wider = _shapes(narrow), _shapes(wide)
    signature, wider_signature = narrow.signature, wide.signature
    if shapes.keys() != wider.keys() or signature.inputs != wider_signature.inputs:
        return False
    names, wider_names = ([(spec.name, spec.dtype) for spec in s.outputs] for s in (signature, wider_signature))
    outputs = zip(signature.outputs, wider_signature.outputs, strict=False)
    return (
        all(shape == wider[name] or _fewer_rows(shape, wider[name]) for name, shape in shapes.items())
        and names == wider_names
        and all(_narrower_once(left.shape, right.shape) for left, right in outputs)
    )


def _fewer_rows(shape: torch.Size, wider: torch.Size) -> bool:
    return len(shape) == len(wider) > 0 and shape[1:] == wider[1:] and shape[0] < wider[0]


def _narrower_once(shape: Sequence[int], wider: Sequence[int]) -> bool:
    differing = [pair for pair in zip(shape, wider, strict=False) if pair[0] != pair[1]]
    return len(shape) == len(wider) and len(differing) <= 1 and all(left < right for left, right in differing)


def _padded(original: Original, widest: Original, calibration: CalibrationInputs) -> Original:
    """Load an original's weights, followed by rows of zeros, into a copy of the widest module."""
    if _shapes(original) == _shapes(widest):
        return original
    module = copied(widest.module)
    state = original.module.state_dict()
    with torch.no_grad():
        module.load_state_dict(
            {
                name: _rows_added(state[name], like, _is_direction(name, state))
                for name, like in module.state_dict().items()
            }
        )
    for parameter, own in zip(module.parameters(), original.module.parameters(), strict=True):
        parameter.requires_grad_(own.requires_grad)
    padded = Original(original.name, module.eval(), infer_signature(module, calibration, _names(widest.signature)))
    _check_zeros_were_added(original, padded, calibration)
    return padded


def _names(signature: Signature) -> list[str]:
    return [spec.name for spec in signature.outputs]


def _rows_added(tensor: torch.Tensor, like: torch.Tensor, is_direction: bool) -> torch.Tensor:
    if tensor.shape == like.shape:
        return tensor
    more = like[len(tensor) :]
    return torch.cat([tensor, more if is_direction else tensor.new_zeros(more.shape)])


def _is_direction(name: str, state: Mapping[str, torch.Tensor]) -> bool:
    """Say whether a tensor is what `torch.nn.utils` divides by its norm: rows of zeros have none.

    The magnitudes beside it get the zeros.
    """
    return any(
        name.endswith(direction) and name.removesuffix(direction) + magnitude in state
        for direction, magnitude in ((".original1", ".original0"), ("weight_v", "weight_g"))
    )


def _check_zeros_were_added(original: Original, padded: Original, calibration: CalibrationInputs) -> None:
    inputs = to_tensors(calibration.take(slice(0, _POINTS)).arrays)
    own, wide = _outputs(original, inputs), _outputs(padded, inputs)
    for name, expected in own.items():
        found = wide[name]
        inside = tuple(slice(size) for size in expected.shape)
        beyond = found.clone()
        beyond[inside] = 0.0
        if not torch.allclose(found[inside], expected, rtol=1e-3, atol=1e-4) or bool(beyond.any()):
            raise ArchitectureError(
                f"output {name!r} of model {original.name!r} is not followed by zeros when its head is padded from "
                f"{list(expected.shape[1:])} to {list(found.shape[1:])}: what has more rows in other originals must be "
                "the last layer, so end the models at their logits; or give their heads the same size"
            )


def _outputs(original: Original, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        return call(original.module, inputs, _names(original.signature))
