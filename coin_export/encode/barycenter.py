"""Elementwise weighted means of models: the barycenter for a diagonal metric.

    theta_c = sum_i beta_i W_i theta_i / sum_i beta_i W_i

minimises sum_i beta_i (theta - theta_i)^T diag(W_i) (theta - theta_i). One tensor of all models at a time, in float64:
the mean of equal numbers is then that number, and Fisher values near the bottom of float32's range do no harm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from coin_export.encode.encoding import StateDict
from coin_export.encode.spectral import renew_singular_vectors
from coin_export.model.signature import Original
from coin_export.model.state import all_equal, first_names

Precisions = Callable[[str], list[torch.Tensor]]
"""From a parameter's first name to W_i of each model: non-negative, of the parameter's shape."""


def barycenter(
    originals: Sequence[Original], coefficients: Sequence[float], precisions: Precisions | None = None
) -> StateDict:
    """Combine the originals.

    - Floating-point parameters: the weighted mean above, with W_i = 1 when ``precisions`` is None.
    - Floating-point buffers, such as BatchNorm's running statistics: the plain mean, sum_i beta_i b_i; but for the
      vectors of spectral norms, see `renew_singular_vectors`.
    - Other tensors, such as BatchNorm's batch counter: those of the first original; see `taken_from_first`.
    - Tensors that are equal in all originals: unchanged, without rounding.
    - Tied weights: computed once, and one tensor under all their names.

    Where all W_i of an element are zero, nothing is known of it and the plain mean is taken.

    Args:
        originals: k models of one architecture.
        coefficients: beta, k positive numbers that sum to one.
        precisions: W, see `Precisions`.

    Returns:
        A state dict with the originals' names, shapes and dtypes.
    """
    module = originals[0].module
    first = first_names(module)
    parameters = {name for name, _ in module.named_parameters()}
    states = [original.module.state_dict() for original in originals]
    combined: StateDict = {}
    for name in states[0]:
        source = first.get(name, name)
        if source != name and source in combined:
            combined[name] = combined[source]
            continue
        tensors = [state[name] for state in states]
        # What all originals share, such as a frozen backbone, stays as it is to the last bit.
        if not tensors[0].is_floating_point() or all_equal(tensors):
            combined[name] = tensors[0].clone()
        else:
            weights = precisions(source) if precisions is not None and source in parameters else None
            combined[name] = _mean(tensors, coefficients, weights)
    renew_singular_vectors(originals, combined)
    return combined


def taken_from_first(originals: Sequence[Original]) -> list[str]:
    """Name the tensors that cannot be averaged, differ between the originals, and matter to a model in eval mode."""
    states = [original.module.state_dict() for original in originals]
    return [
        name
        for name, tensor in states[0].items()
        if not tensor.is_floating_point()
        and not name.endswith("num_batches_tracked")
        and not all_equal(state[name] for state in states)
    ]


def _mean(
    tensors: Sequence[torch.Tensor], coefficients: Sequence[float], weights: Sequence[torch.Tensor] | None
) -> torch.Tensor:
    plain = torch.zeros_like(tensors[0], dtype=torch.float64)
    for beta, tensor in zip(coefficients, tensors, strict=True):
        plain.add_(tensor, alpha=beta)
    if weights is None:
        return plain.to(tensors[0].dtype)
    numerator, denominator = torch.zeros_like(plain), torch.zeros_like(plain)
    for beta, weight, tensor in zip(coefficients, weights, tensors, strict=True):
        share = beta * weight.double()
        numerator.addcmul_(share, tensor.double())
        denominator.add_(share)
    return torch.where(denominator > 0, numerator / denominator, plain).to(tensors[0].dtype)
