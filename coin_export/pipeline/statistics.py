"""Fisher statistics of a recipe's models as files, by as many processes as ``torchrun`` starts."""

from __future__ import annotations

from pathlib import Path

from coin_export.encode.coin import CoinOptions
from coin_export.errors import BuildError
from coin_export.fisher.distributed import distributed_diagonal_fisher, process_group
from coin_export.fisher.files import write_statistics
from coin_export.fisher.options import FisherOptions
from coin_export.model.state import first_names
from coin_export.pipeline.loading import load, plain_attention, sign_models
from coin_export.recipe import Recipe


def statistics_path(folder: Path, model: str) -> Path:
    """Return where the statistics of one model are."""
    return folder / f"{model}.fisher.safetensors"


def write_recipe_statistics(recipe: Recipe, folder: Path) -> dict[str, int]:
    """Write the statistics of every model of a recipe, on all its calibration inputs; see `statistics_path`.

    The first process alone writes. The options are those of the recipe's encoder if it is ``coin``, the defaults
    otherwise.

    Returns:
        The number of points, by model; empty in all processes but the first.

    Raises:
        BuildError: if a file cannot be written.
        CoinExportError: as `load`, `sign_models` and `diagonal_fisher`.
    """
    options = recipe.encoder.fisher if isinstance(recipe.encoder, CoinOptions) else FisherOptions()
    loaded = load(recipe)
    written: dict[str, int] = {}
    with plain_attention(), process_group() as rank:
        for original in sign_models(loaded.models, loaded.calibration, recipe.outputs):
            fisher = distributed_diagonal_fisher(original, loaded.calibration, options)
            if rank > 0:
                continue
            path = statistics_path(folder, original.name)
            tied = {name: one for name, one in first_names(original.module).items() if name != one}
            weights = dict(original.module.named_parameters())
            try:
                write_statistics(fisher, path, tied, weights, loaded.calibration.digest())
            except OSError as error:
                raise BuildError(f"{path}: cannot be written: {error}; choose another folder") from error
            written[original.name] = fisher.points
    return written
