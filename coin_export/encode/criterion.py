"""How far decoded outputs are from the originals' own, over every erasure pattern of the code.

With e_r = f_r - sum_j beta_rj f_j, the error of coded model r, original i is decoded as f_i + sum_r w_r e_r, where w
are the decoder's weights on the coded models that a pattern of lost models leaves: what it takes from originals
cancels. So the error of every decoded answer follows from the coded models' errors and a table of weights, one row for
each pattern and each original lost in it. For m = 1 it holds 1/beta_i.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from itertools import combinations, islice
from typing import Literal, TypeAlias

import torch
from torch.nn import functional

from coin_export.code.linear import LinearCode

CriterionName: TypeAlias = Literal["divergence", "error"]
Answers: TypeAlias = Sequence[torch.Tensor]
"""For each output, what several models gave: shape (models, points, ...)."""

_NEVER = -1e4  # as a logit: a probability of zero, with no infinity to multiply it by
_MAX_PATTERNS = 200  # of a large code, a sample of each size
_TRIES = 20  # for each pattern that is drawn, as some cannot be made good


class Criterion:
    """Measures the outputs of all m coded models together."""

    def __init__(self, code: LinearCode, name: CriterionName) -> None:
        self.name, self.code = name, code
        self._parities = torch.tensor(code.parities)
        self._wanted, self._weights = _decodings(code)
        self._scale = float(self._weights.square().sum(1).mean())

    def __call__(self, coded: Answers, originals: Answers) -> torch.Tensor:
        """Return the mean over decoded answers, a differentiable scalar.

        ``divergence`` is between the softmax over the classes of a decoded output and that of the original's own: the
        mean of the Kullback-Leibler divergences in both directions, in nats (half of Jeffreys', 1946). One asks that
        the decoded answer miss no class that the original holds possible, the other that it name none that the
        original excludes. Outputs of which a softmax says nothing count by their error: those of a single class, and
        those without one dimension of classes, the last (see `is_distribution`).
        Classes to which an original answers exactly zero throughout are those that its padded head lacks, and do not
        count for it. ``error`` is the mean squared error of the decoded outputs over its amplification by the decoder,
        so that for m = 1 it is that of the coded model.

        Args:
            coded: outputs of the m coded models.
            originals: outputs of the k originals on the same points.
        """
        pairs = list(zip(coded, originals, strict=True))
        if self.name == "divergence":
            return torch.stack([self._divergence(*pair) for pair in pairs]).sum()
        elements = sum(output[0].numel() for output in coded)
        return torch.stack([self._squares(*pair) for pair in pairs]).sum() / elements

    def in_nats(self, originals: Answers) -> bool:
        """Say whether the criterion of these outputs is a divergence throughout, so that its size has a meaning."""
        return self.name == "divergence" and all(
            is_distribution(output) and bool(((~absent_classes(output)).sum(-1) != 1).all()) for output in originals
        )

    def _divergence(self, coded: torch.Tensor, originals: torch.Tensor) -> torch.Tensor:
        if not is_distribution(originals):
            return self._squares(coded, originals) / coded[0].numel()
        own = originals[self._wanted]
        decoded = own + self._decoded_errors(coded, originals)
        absent = absent_classes(originals)[self._wanted]
        logs = [functional.log_softmax(logits.masked_fill(absent, _NEVER), -1) for logits in (decoded, own)]
        both_ways = (logs[0] - logs[1]) * (logs[0].exp() - logs[1].exp())
        divergence = both_ways.flatten(1).sum(1) / 2
        alone = (~absent).sum(-1).flatten(1)[:, 0] == 1
        if alone.any():
            squares = (decoded - own).masked_fill(absent, 0).square().flatten(1).sum(1) / self._scale
            divergence = torch.where(alone, squares, divergence)
        return divergence.sum() / own[..., 0].numel()

    def _squares(self, coded: torch.Tensor, originals: torch.Tensor) -> torch.Tensor:
        squares: torch.Tensor = self._decoded_errors(coded, originals).square().sum()
        return squares / (len(self._weights) * self._scale)

    def _decoded_errors(self, coded: torch.Tensor, originals: torch.Tensor) -> torch.Tensor:
        """Return sum_r w_r e_r for each row of the table, shape (rows, points, ...)."""
        wanted = torch.tensordot(self._parities.to(originals.dtype), originals, dims=1)
        decoded: torch.Tensor = torch.tensordot(self._weights.to(coded.dtype), coded - wanted, dims=1)
        return decoded


def absent_classes(originals: torch.Tensor) -> torch.Tensor:
    """Say which classes an original lacks: those to which it answers exactly zero throughout, as a padded head does.

    Args:
        originals: their answers, shape (models, points, ..., classes).

    Returns:
        Shape (models, 1, ..., classes).
    """
    return (originals == 0).all(dim=tuple(range(1, originals.ndim - 1)), keepdim=True)


def is_distribution(outputs: torch.Tensor) -> bool:
    """Say whether outputs are logits over classes, the last dimension.

    Shapes (models, points, classes) and (models, points, positions, classes) are taken for that. Where there are more
    dimensions, as in maps of (channels, height, width), the last one may be anything.
    """
    return outputs.ndim in (3, 4) and outputs.shape[-1] > 1


def _decodings(code: LinearCode) -> tuple[torch.Tensor, torch.Tensor]:
    """Return, for each pattern and original lost in it, the original's index and the weights on the m coded models."""
    wanted: list[int] = []
    weights: list[list[float]] = []
    for pattern in _patterns(code):
        lost = [index for index in pattern if index < code.k]
        decoding = code.decoding(code.left_by(pattern), lost)
        columns = {source: column for column, source in enumerate(decoding.sources)}
        for index, row in zip(lost, decoding.weights.tolist(), strict=True):
            wanted.append(index)
            weights.append([row[columns[r]] if r in columns else 0.0 for r in range(code.k, code.n)])
    return torch.tensor(wanted), torch.tensor(weights)


def _patterns(code: LinearCode) -> list[tuple[int, ...]]:
    """Return every erasure pattern; of a large code, about as many of each size, drawn once and for all."""
    numbers = {size: math.comb(code.n, size) - math.comb(code.m, size) for size in range(1, code.m + 1)}
    if sum(numbers.values()) <= _MAX_PATTERNS:
        return list(code.erasure_patterns())
    generator = random.Random(0)
    chosen: dict[tuple[int, ...], None] = {}
    for size, number in numbers.items():
        quota = (_MAX_PATTERNS - len(chosen)) // (code.m - size + 1)
        if number <= quota:
            candidates: Iterable[tuple[int, ...]] = combinations(range(code.n), size)
        else:
            draws = range(_TRIES * quota)
            candidates = (tuple(sorted(generator.sample(range(code.n), size))) for _ in draws)
        fitting = (lost for lost in candidates if lost[0] < code.k and code.decodable(code.left_by(lost)))
        chosen.update(dict.fromkeys(islice(fitting, quota)))
    return list(chosen)


def finite(value: float) -> float:
    """Return the value of a criterion, infinity in place of NaN, so that the least of several can be told."""
    return value if math.isfinite(value) else math.inf
