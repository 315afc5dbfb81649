"""The fast path where it can be trusted, the general path for everything else.

Points of the first batch take both paths. From then on the fast one serves the parameters on which they agreed, as long
as it still claims them for the batch at hand.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence

import torch

from coin_export.fisher.fast import FastPath, FastResult
from coin_export.fisher.general import GeneralPath, Squares, parameters_and_constants
from coin_export.fisher.options import FisherOptions
from coin_export.model.signature import FORWARD_ERRORS, Original

# Two points show a mixing of points that one cannot; a few vectors show what many do.
_POINTS, _PASSES = 2, 4
# A ReLU that rounding turns on or off is seen by points near its threshold only; a mixing of points by all.
_TRIES = 3
# With less than this share of all parameter elements the fast path saves nothing: the general one is needed anyway.
_WORTHWHILE = 0.25

_log = logging.getLogger(__name__)


class VerifiedPath:
    """Computes sums of squared gradients; called like `GeneralPath`, on successive batches of one model."""

    def __init__(self, original: Original, options: FisherOptions) -> None:
        self._original = original
        self._options = options
        self._fast = FastPath(original, options)
        self._general: dict[frozenset[str], GeneralPath] = {}
        parameters, _ = parameters_and_constants(original.module)
        self._elements = {name: tensor.numel() for name, tensor in parameters.items()}
        self._dtypes = {name: tensor.dtype for name, tensor in parameters.items()}
        self._trusted: frozenset[str] | None = None

    def __call__(self, inputs: Sequence[torch.Tensor], directions: torch.Tensor) -> tuple[Squares, list[bool]]:
        """Handle one batch, see `GeneralPath`; sums come in float64 or in the dtype of the parameter."""
        if self._trusted is None:
            self._trusted = self._verify(inputs, directions[:, :_PASSES])
        result = self._try_fast(inputs, directions) if self._trusted else None
        if result is None:
            return self._general_path(self._elements.keys())(inputs, directions)
        squares = {name: square for name, square in result.squares.items() if name in self._trusted}
        missing = self._elements.keys() - squares.keys()
        if missing:
            squares |= self._general_path(missing)(inputs, directions)[0]
        return {name: squares[name] for name in self._elements}, result.finite

    def _verify(self, inputs: Sequence[torch.Tensor], directions: torch.Tensor) -> frozenset[str]:
        """Return the parameters that both paths agree on for some points; none, if they never agree on all."""
        doubtful: Sequence[str] = ()
        pairs = max(1, len(directions) // _POINTS)
        for first in range(0, _POINTS * min(_TRIES, pairs), _POINTS):
            points = slice(first, first + _POINTS)
            some, vectors = [tensor[points] for tensor in inputs], directions[points]
            result = self._try_fast(some, vectors)
            if result is None or not self._is_worthwhile(result.squares):
                return frozenset()
            wanted, finite = self._general_path(result.squares.keys())(some, vectors)
            doubtful = self._differing(result.squares, wanted)
            if finite == result.finite and not doubtful:
                return frozenset(result.squares)
            if not all(finite):
                return frozenset()
        _log.warning(
            "model %r takes the slow path: on a batch, its outputs or the gradients of %s are not those of single "
            "points; does it mix the points of a batch?",
            self._original.name,
            ", ".join(doubtful[:5]) or "no parameter",
        )
        return frozenset()

    def _is_worthwhile(self, claimed: Collection[str]) -> bool:
        return sum(self._elements[name] for name in claimed) >= _WORTHWHILE * sum(self._elements.values())

    def _differing(self, found: Squares, wanted: Squares) -> list[str]:
        total = sum(float(square.sum()) for square in wanted.values())
        typical = total / sum(self._elements[name] for name in found)
        return sorted(name for name in found if not self._agree(name, found, wanted, typical))

    def _try_fast(self, inputs: Sequence[torch.Tensor], directions: torch.Tensor) -> FastResult | None:
        try:
            return self._fast(inputs, directions)
        except FORWARD_ERRORS as error:
            _log.warning("model %r takes the slow path, it cannot be run on batches: %s", self._original.name, error)
            self._trusted = frozenset()
            return None

    def _general_path(self, wanted: Collection[str]) -> GeneralPath:
        names = frozenset(wanted)
        if names not in self._general:
            self._general[names] = GeneralPath(self._original, self._options, names)
        return self._general[names]

    def _agree(self, name: str, found: Squares, wanted: Squares, typical: float) -> bool:
        """Whether the summed difference is small against the sum: single ReLUs may flip between batch sizes.

        Gradients that are zero but for rounding, as those of the bias of attention's keys, differ by all they are; so
        a difference may also be what is nothing beside ``typical``, the mean square of all parameters' gradients.
        """
        epsilon = torch.finfo(self._dtypes[name]).eps
        tolerance = 3.0 * epsilon**0.5 * wanted[name].sum() + epsilon * typical * self._elements[name]
        return bool((found[name] - wanted[name]).abs().sum() <= tolerance)
