"""The code of a group: as the recipe says, and where it leaves that open, by what the originals answer."""

from __future__ import annotations

from collections.abc import Sequence

from coin_export.code.linear import LinearCode
from coin_export.datasets.calibration import CalibrationInputs
from coin_export.encode.registry import EncoderOptions, fits_decoded_answers
from coin_export.encode.sensitivity import sensitivities
from coin_export.model.signature import Original
from coin_export.recipe import CodeRecipe


def code_of(
    recipe: CodeRecipe, encoder: EncoderOptions, originals: Sequence[Original], calibration: CalibrationInputs
) -> LinearCode:
    """Make the code for these originals.

    Args:
        recipe: what was asked for.
        encoder: what it is for; those that do not fit decoded answers protect all alike.
        originals: of one architecture, heads padded.
        calibration: asked where the recipe leaves open whom to protect.

    Raises:
        CodeError: as `CodeRecipe.code`.
    """
    names = [original.name for original in originals]
    by_sensitivity = recipe.leaves_protection_open and fits_decoded_answers(encoder)
    return recipe.code(names, sensitivities(originals, calibration, recipe.m) if by_sensitivity else None)
