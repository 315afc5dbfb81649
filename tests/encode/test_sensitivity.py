"""Whom to protect more: weights by hand, and when all stay alike."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from coin_export.datasets.calibration import CalibrationInputs
from coin_export.encode.heads import pad_heads
from coin_export.encode.sensitivity import sensitivities
from tests.encode.cases import originals_of

POINTS = CalibrationInputs({"x": np.eye(3, dtype=np.float32)})


def answering(logits: list[list[float]]) -> nn.Module:
    """A model that answers point i of `POINTS` by row i."""
    layer = nn.Linear(3, len(logits[0]), bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(logits).T)
    return layer


def spread(*purities: float) -> float:
    """E[q^2 (1 - q)] / E[q^2]"""
    return sum(q * q * (1 - q) for q in purities) / sum(q * q for q in purities)


def two_classes(purity: float, least: float = 5.0) -> list[float]:
    """Logits, the lower of them ``least``, whose softmax has this purity."""
    probability = (1 + math.sqrt(2 * purity - 1)) / 2
    return [math.log(probability / (1 - probability)) + least, least]


def test_weights_follow_the_purity_of_the_answers() -> None:
    surer, less_sure = (0.99, 0.95, 0.6), (0.7, 0.8, 0.55)
    originals = originals_of(*(answering([two_classes(q) for q in purities]) for purities in (less_sure, surer)))
    wanted = math.sqrt(spread(*less_sure) / spread(*surer))
    assert 1.25 < wanted < 4
    assert list(sensitivities(originals, POINTS)) == pytest.approx([wanted, 1.0], abs=0.0051)


def test_where_several_can_be_lost_weights_are_the_squares() -> None:
    originals = originals_of(*(answering([two_classes(q)] * 3) for q in (0.7, 0.85)))
    once, twice = (sensitivities(originals, POINTS, parities) for parities in (1, 2))
    assert 1.25 < once[0] < 2
    assert list(twice) == pytest.approx([once[0] ** 2, 1.0], abs=0.02)


@pytest.mark.parametrize("parities", [1, 2])
def test_a_small_difference_leaves_all_alike(parities: int) -> None:
    originals = originals_of(*(answering([two_classes(q)] * 3) for q in (0.7, 0.65)))
    assert sensitivities(originals, POINTS, parities) == (1.0, 1.0)


@pytest.mark.parametrize("parities", [1, 2])
def test_nobody_is_protected_beyond_measure(parities: int) -> None:
    originals = originals_of(answering([two_classes(0.6)] * 3), answering([[100.0, 5.0]] * 3))
    assert sensitivities(originals, POINTS, parities) == (4.0, 1.0)


def test_classes_that_a_padded_head_lacks_do_not_make_it_unsure() -> None:
    narrow = [two_classes(0.9, least=0.1)] * 3
    wide, zeros = ([[*two_classes(0.9, least=0.1), other, other]] * 3 for other in (-20.0, 1e-3))
    padded = pad_heads(originals_of(answering(narrow), answering(wide)), POINTS)
    assert sensitivities(padded, POINTS) == (1.0, 1.0)
    assert sensitivities(originals_of(answering(zeros), answering(wide)), POINTS)[0] > 1.25


def test_a_single_one_that_is_very_sure_does_not_distort_the_code() -> None:
    unsure = (answering([two_classes(0.6)] * 3) for _ in range(4))
    assert sensitivities(originals_of(answering([[100.0, 5.0]] * 3), *unsure), POINTS) == (1.0, 2.0, 2.0, 2.0, 2.0)


def test_several_classes_beside_one_say_nothing() -> None:
    originals = pad_heads(originals_of(answering([[3.0]] * 3), answering([[1.0, 2.0, 3.0]] * 3)), POINTS)
    assert sensitivities(originals, POINTS) == (1.0, 1.0)


def test_outputs_of_one_class_say_nothing() -> None:
    assert sensitivities(originals_of(answering([[5.0]] * 3), answering([[1.0]] * 3)), POINTS) == (1.0, 1.0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_leaves_all_alike(value: float) -> None:
    broken = nn.Linear(3, 2)
    with torch.no_grad():
        broken.bias.copy_(torch.tensor([value, 1.0]))
    assert sensitivities(originals_of(answering([two_classes(0.6)] * 3), broken), POINTS) == (1.0, 1.0)


def test_every_task_is_asked_when_only_some_points_are() -> None:
    points = CalibrationInputs({"x": np.repeat(np.eye(3, dtype=np.float32), 2_000, axis=0)})
    first, second = [two_classes(q) for q in (0.55, 0.6, 0.7)], [two_classes(0.99)] * 3
    originals = originals_of(answering(first), answering(second))
    assert sensitivities(originals, points) == sensitivities(originals, POINTS)
