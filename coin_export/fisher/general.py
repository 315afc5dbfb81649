"""Squared gradients of any module, one point at a time or vectorised over points by `torch.func`.

This is the path that every architecture can take. It never sums gradients of several points before it squares them.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence

import torch
from torch.func import vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from coin_export.errors import CoinExportError
from coin_export.fisher.likelihood import cotangents
from coin_export.fisher.options import FisherOptions
from coin_export.model.functional import Slots
from coin_export.model.signature import FORWARD_ERRORS, Original, name_outputs

Squares = dict[str, torch.Tensor]
_PointResult = tuple[Squares, tuple[torch.Tensor, ...]]

# Gradients of single points, in elements: of large models fewer points than a batch are handled at once.
_MAX_ELEMENTS = 2**26

_log = logging.getLogger(__name__)


class GeneralPath:
    """Computes sums of squared gradients for one model, for all floating-point parameters, frozen ones included.

    Half-precision weights and inputs are widened to float32, so that small gradients do not vanish when squared.
    """

    def __init__(self, original: Original, options: FisherOptions, wanted: Collection[str] | None = None) -> None:
        """Prepare for the parameters ``wanted``, or for all."""
        self._name = original.name
        self._slots = Slots(original.module)
        self._outputs = tuple(spec.name for spec in original.signature.outputs)
        self._options = options
        parameters, self._constants = parameters_and_constants(original.module)
        self._parameters = {name: parameters[name] for name in parameters if wanted is None or name in wanted}
        self._constants |= {name: parameters[name] for name in parameters.keys() - self._parameters.keys()}
        elements = sum(tensor.numel() for tensor in self._parameters.values())
        self._size = max(1, _MAX_ELEMENTS // max(1, elements))
        self._vectorised = True

    def __call__(self, inputs: Sequence[torch.Tensor], directions: torch.Tensor) -> tuple[Squares, list[bool]]:
        """Handle one batch.

        Args:
            inputs: the model's inputs, each of shape (points, ...).
            directions: see `likelihood.directions`, shape (points, passes, width).

        Returns:
            For each parameter, sum over points and r of (J^T v_r)^2, in float64; and for each output, whether it
            was finite everywhere.
        """
        arguments = (directions, *(widened(tensor) for tensor in inputs))
        chunks = zip(*(torch.split(argument, self._size) for argument in arguments), strict=True)
        return _added(self._chunk(chunk) for chunk in chunks)

    def _chunk(self, arguments: Sequence[torch.Tensor]) -> tuple[Squares, list[bool]]:
        # The fused attention kernels cannot be vectorised over points; the plain one can.
        with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="There is a performance drop")
            if self._vectorised:
                try:
                    return _summed(vmap(self._point)(*arguments))
                except CoinExportError:
                    raise
                # Some operations, and control flow that depends on data or shapes, cannot be.
                except FORWARD_ERRORS as error:
                    self._vectorised = False
                    _log.warning("model %r is handled point by point, which is slow: %s", self._name, error)
            return _one_by_one(self._point, arguments)

    def _point(self, directions: torch.Tensor, *inputs: torch.Tensor) -> _PointResult:
        def outputs_of(parameters: Squares) -> tuple[torch.Tensor, ...]:
            arguments = tuple(tensor.unsqueeze(0) for tensor in inputs)
            returned = self._slots.call({**parameters, **self._constants}, arguments)
            return tuple(name_outputs(returned, self._outputs).values())

        outputs, pull_back = vjp(outputs_of, self._parameters)[:2]
        squares = {name: tensor.new_zeros(()).expand_as(tensor) for name, tensor in self._parameters.items()}
        for direction in directions:
            (gradients,) = pull_back(cotangents(self._options, outputs, direction))
            for name in squares:  # one by one: for all points of a chunk at once, they are what takes memory
                gradient = gradients.pop(name)
                squares[name] = torch.addcmul(squares[name], gradient, gradient)
        return squares, tuple(torch.isfinite(output).all() for output in outputs)


def parameters_and_constants(module: torch.nn.Module) -> tuple[Squares, dict[str, torch.Tensor]]:
    """Split a module's tensors, widened and detached, into floating-point parameters and all others."""
    named = [*module.named_parameters(), *module.named_buffers()]
    tensors = {name: widened(tensor.detach()) for name, tensor in named}
    wanted = {name for name, tensor in module.named_parameters() if tensor.is_floating_point()}
    constants = {name: tensor for name, tensor in tensors.items() if name not in wanted}
    return {name: tensor for name, tensor in tensors.items() if name in wanted}, constants


def widened(tensor: torch.Tensor) -> torch.Tensor:
    """Return half-precision tensors as float32, others as they are."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _summed(result: _PointResult) -> tuple[Squares, list[bool]]:
    squares, finite = result
    totals = {name: tensor.sum(0, dtype=torch.float64) for name, tensor in squares.items()}
    return totals, [bool(flags.all()) for flags in finite]


def _one_by_one(point: Callable[..., _PointResult], arguments: Sequence[torch.Tensor]) -> tuple[Squares, list[bool]]:
    return _added(_summed(_alone(point(*items))) for items in zip(*arguments, strict=True))


def _added(results: Iterator[tuple[Squares, list[bool]]]) -> tuple[Squares, list[bool]]:
    totals, finite = next(results)
    for squares, flags in results:
        totals = {name: total + squares[name] for name, total in totals.items()}
        finite = [before and now for before, now in zip(finite, flags, strict=True)]
    return totals, finite


def _alone(result: _PointResult) -> _PointResult:
    """Give the result of one point the batch dimension that `_summed` expects."""
    squares, finite = result
    return {name: tensor.unsqueeze(0) for name, tensor in squares.items()}, finite
