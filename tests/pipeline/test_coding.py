"""Whom a code protects: as the recipe says, else those whose answers are most easily spoilt."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from coin_export.encode.auto import AutoOptions
from coin_export.encode.coin import CoinOptions
from coin_export.encode.refine import RefineOptions
from coin_export.encode.registry import EncoderOptions
from coin_export.encode.regmean import RegMeanOptions
from coin_export.encode.regress import RegressOptions
from coin_export.pipeline.build import build_group
from coin_export.pipeline.coding import code_of
from coin_export.recipe import BuildOptions, CodeRecipe
from tests.encode.cases import normal_points, originals_of

POINTS = normal_points()


def classifier(scale: float) -> nn.Module:
    """The larger the scale, the surer of its answers."""
    torch.manual_seed(0)
    layer = nn.Linear(3, 4)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(scale)
    return layer


def test_an_unsure_original_is_protected_more() -> None:
    originals = originals_of(classifier(20.0), classifier(4.0))
    ((sure, unsure),) = code_of(CodeRecipe(), RefineOptions(), originals, POINTS).parities
    assert unsure > 1.25 * sure and sure + unsure == pytest.approx(1)
    twice = code_of(CodeRecipe(parities=2), RefineOptions(), originals, POINTS)
    assert twice.survives_any(2)
    assert twice.decoding([0, 2], [1]).noise_gain[0] < twice.decoding([1, 2], [0]).noise_gain[0]


@pytest.mark.parametrize(
    ("recipe", "row"),
    [
        (CodeRecipe(protect={}), (0.5, 0.5)),
        (CodeRecipe(protect={"model_0": 3}), (0.75, 0.25)),
        (CodeRecipe(coefficients=((3, 2),)), (3, 2)),
        (CodeRecipe(space="values"), (0.5, 0.5)),
        (CodeRecipe(space="probabilities"), (0.5, 0.5)),
    ],
    ids=lambda value: str(value),
)
def test_what_the_recipe_says_stands(recipe: CodeRecipe, row: tuple[float, ...]) -> None:
    originals = originals_of(classifier(20.0), classifier(4.0))
    given = np.asarray(code_of(recipe, RefineOptions(), originals, POINTS).parities[0])
    np.testing.assert_allclose(given / given.sum(), np.asarray(row) / sum(row))


def test_originals_that_are_alike_have_equal_coefficients() -> None:
    originals = originals_of(classifier(4.0), classifier(4.1))
    assert code_of(CodeRecipe(), RefineOptions(), originals, POINTS).parities == ((0.5, 0.5),)


@pytest.mark.parametrize(
    ("encoder", "alike"),
    [
        (CoinOptions(), True),
        (RegMeanOptions(), True),
        (RegressOptions(), True),
        (AutoOptions(), True),
        (RefineOptions(), False),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_only_what_fits_decoded_answers_gets_unequal_coefficients(encoder: EncoderOptions, alike: bool) -> None:
    originals = originals_of(classifier(20.0), classifier(4.0))
    assert (code_of(CodeRecipe(), encoder, originals, POINTS).parities == ((0.5, 0.5),)) == alike


def test_a_build_makes_that_code(tmp_path: Path) -> None:
    models = {original.name: original.module for original in originals_of(classifier(20.0), classifier(4.0))}
    options = BuildOptions(encoder=RefineOptions(budget=64))
    group = build_group("pair", models, POINTS, tmp_path / "models", options=options).group
    wanted = code_of(CodeRecipe(), RefineOptions(), originals_of(*models.values()), POINTS)
    assert group.members[-1].row == wanted.parities[0] and wanted.parities[0] != (0.5, 0.5)
