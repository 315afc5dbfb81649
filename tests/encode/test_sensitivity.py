"""Whom to protect more: weights by hand, and when all stay alike."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import nn

from coin_export.datasets.calibration import CalibrationInputs
from coin_export.encode.heads import pad_heads
from coin_export.encode.sensitivity import sensitivities
from coin_export.model.signature import Original
from tests.encode import cases

POINTS = CalibrationInputs({"x": np.eye(4, dtype=np.float32)})


def originals_of(*modules: nn.Module) -> list[Original]:
    return cases.originals_of(*modules, calibration=POINTS)


def answering(logits: Sequence[Sequence[float]]) -> nn.Module:
    """A model that answers point i of `POINTS` by row i."""
    layer = nn.Linear(4, len(logits[0]), bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(logits).T)
    return layer


def impurity(*answers: Sequence[float]) -> float:
    """E[q^2 (1 - q)] / E[q^2]"""
    odds = np.exp(np.asarray(answers))
    purity = np.square(odds / odds.sum(1, keepdims=True)).sum(1)
    return float((purity**2 * (1 - purity)).sum() / (purity**2).sum())


def two_classes(purity: float, least: float = 5.0) -> list[float]:
    """Logits, the lower of them ``least``, whose softmax has this purity."""
    probability = (1 + math.sqrt(2 * purity - 1)) / 2
    return [math.log(probability / (1 - probability)) + least, least]


# Of high energy though unsure; and the other way round.
UNSURE, LESS_SURE, SURE, SURER = [6.0, 5.5, -11.0], [6.0, 4.5, -10.0], [8.0, 5.5, -12.0], [9.0, 5.5, -12.0]
ELSEWHERE, ELSEWHERE_SURE = [0.5, 0.2, 0.1], [3.5, 0.0, 0.0]


@pytest.mark.parametrize(("parities", "power"), [(1, 2 / 3), (2, 1.0), (3, 1.0)])
def test_weights_follow_what_answers_to_own_inputs_lack_in_purity(parities: int, power: float) -> None:
    first = answering([UNSURE, LESS_SURE, ELSEWHERE_SURE, ELSEWHERE_SURE])
    second = answering([ELSEWHERE, ELSEWHERE, SURE, SURER])
    sensitivity = math.sqrt(impurity(UNSURE, LESS_SURE) / impurity(SURE, SURER))
    assert 1.25 < sensitivity**power < 4
    weights = sensitivities(originals_of(first, second), POINTS, parities)
    assert list(weights) == pytest.approx([sensitivity**power, 1.0], rel=0.05), "nearly all of each input goes to one"


def test_inputs_on_which_all_stand_out_alike_count_for_each() -> None:
    originals = originals_of(*(answering([two_classes(q)] * 4) for q in (0.7, 0.95)))
    wanted = math.sqrt(0.3 / 0.05)
    assert list(sensitivities(originals, POINTS, 2)) == pytest.approx([wanted, 1.0], abs=0.0051)


def test_members_of_an_ensemble_that_shares_its_task_stay_alike() -> None:
    rows = np.array([SURER, SURE, LESS_SURE, UNSURE])
    originals = originals_of(*(answering((rows * scale).tolist()) for scale in (1.0, 1.05, 0.97)))
    assert sensitivities(originals, POINTS) == sensitivities(originals, POINTS, 2) == (1.0, 1.0, 1.0)


def test_a_small_difference_leaves_all_alike() -> None:
    originals = originals_of(*(answering([two_classes(q)] * 4) for q in (0.7, 0.75)))
    assert sensitivities(originals, POINTS) == sensitivities(originals, POINTS, 2) == (1.0, 1.0)


@pytest.mark.parametrize("parities", [1, 2])
def test_nobody_is_protected_beyond_measure(parities: int) -> None:
    originals = originals_of(answering([two_classes(0.6)] * 4), answering([[100.0, 5.0]] * 4))
    assert sensitivities(originals, POINTS, parities) == (4.0, 1.0)


def test_classes_that_a_padded_head_lacks_do_not_make_it_unsure() -> None:
    narrow = [two_classes(0.9, least=0.1)] * 4
    wide, zeros = ([[*two_classes(0.9, least=0.1), other, other]] * 4 for other in (-20.0, 1e-3))
    padded = pad_heads(originals_of(answering(narrow), answering(wide)), POINTS)
    assert sensitivities(padded, POINTS) == (1.0, 1.0)
    assert sensitivities(originals_of(answering(zeros), answering(wide)), POINTS)[0] > 1.25


def test_a_single_one_that_is_very_sure_does_not_distort_the_code() -> None:
    unsure = (answering([two_classes(0.6)] * 4) for _ in range(4))
    assert sensitivities(originals_of(answering([[100.0, 5.0]] * 4), *unsure), POINTS) == (1.0, 2.0, 2.0, 2.0, 2.0)


def test_several_classes_beside_one_say_nothing() -> None:
    originals = pad_heads(originals_of(answering([[3.0]] * 4), answering([[1.0, 2.0, 3.0]] * 4)), POINTS)
    assert sensitivities(originals, POINTS) == (1.0, 1.0)


def test_outputs_of_one_class_say_nothing() -> None:
    assert sensitivities(originals_of(answering([[5.0]] * 4), answering([[1.0]] * 4)), POINTS) == (1.0, 1.0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_leaves_all_alike(value: float) -> None:
    broken = nn.Linear(4, 2)
    with torch.no_grad():
        broken.bias.copy_(torch.tensor([value, 1.0]))
    assert sensitivities(originals_of(answering([two_classes(0.6)] * 4), broken), POINTS) == (1.0, 1.0)


def test_every_task_is_asked_when_only_some_points_are() -> None:
    points = CalibrationInputs({"x": np.repeat(np.eye(4, dtype=np.float32), 2_000, axis=0)})
    originals = originals_of(
        answering([UNSURE, LESS_SURE, ELSEWHERE, ELSEWHERE]), answering([ELSEWHERE, ELSEWHERE, SURE, SURER])
    )
    assert sensitivities(originals, points) == sensitivities(originals, POINTS) != (1.0, 1.0)
