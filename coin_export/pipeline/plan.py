"""What a build would do, found without encoding or writing anything."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from coin_export.code.warning import noise_warning
from coin_export.encode.registry import fitting
from coin_export.pipeline.build import coded_names
from coin_export.pipeline.coding import code_of
from coin_export.pipeline.exporting import compare_all, export_all
from coin_export.pipeline.loading import combinable, load, plain_attention, sign_models
from coin_export.recipe import Recipe
from coin_export.repository.config import triton_tensors
from coin_export.repository.layout import check_target


@dataclass(frozen=True)
class BuildPlan:
    """What a build would do, found without encoding or writing anything.

    Attributes:
        group: the group's name.
        originals: their names, in the order of the code.
        coded: names of the coded models to be made, with their coefficients.
        inputs: name, dtype and shape of each input.
        outputs: likewise.
        points: calibration points for the encoder, and held out.
        parameters: number of parameters of each model.
        encoder: its options.
        worst_noise_gain: over all losses of any m models.
        warning: what `noise_warning` says of the code.
        target: the repository folder.
    """

    group: str
    originals: tuple[str, ...]
    coded: Mapping[str, tuple[float, ...]]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    points: tuple[int, int]
    parameters: int
    encoder: Mapping[str, object]
    worst_noise_gain: float
    warning: str | None
    target: str

    def text(self) -> str:
        """Lay the plan out for the terminal."""
        coded = "\n".join(
            f"  {name} = " + " + ".join(f"{beta:.3f} {model}" for beta, model in zip(row, self.originals, strict=True))
            for name, row in self.coded.items()
        )
        warning = f"warning: {self.warning}\n" if self.warning else ""
        return (
            f"group {self.group}: {len(self.originals)} originals of {self.parameters:,} parameters each: "
            f"{', '.join(self.originals)}\n"
            f"coded models, from {self.points[0]} calibration points ({self.points[1]} more are held out):\n{coded}\n"
            f"worst noise gain after the loss of any {len(self.coded)} of the models: {self.worst_noise_gain:.2f}\n"
            f"{warning}"
            f"encoder: {', '.join(f'{key} = {value}' for key, value in self.encoder.items())}\n"
            f"inputs: {', '.join(self.inputs)}; outputs: {', '.join(self.outputs)}\n"
            f"would write {self.target}; nothing was written"
        )


def plan(recipe: Recipe) -> BuildPlan:
    """Load and check everything that a recipe names, and say what `build` would do; writes nothing to stay.

    The originals are exported to a temporary folder, to see whether they can be.

    Raises:
        CoinExportError: as `build` would before it starts to encode.
    """
    loaded = load(recipe)
    with plain_attention():
        signed = sign_models(loaded.models, loaded.calibration, recipe.outputs)
        originals = combinable(signed, loaded.calibration)
        names = coded_names(recipe.name, recipe.code.m, loaded.models)
        check_target(recipe.target, recipe.name, [*loaded.models, *names])
        code = code_of(recipe.code, recipe.encoder, originals, loaded.calibration)
        fit, held_out = loaded.calibration.split(recipe.held_out, recipe.seed)
        with tempfile.TemporaryDirectory(prefix="coin_export_plan_") as folder:
            files = export_all(signed, held_out, recipe.export, Path(folder))
            compare_all(signed, files, held_out, recipe.export)
    inputs, outputs = triton_tensors(originals[0].signature)
    return BuildPlan(
        group=recipe.name,
        originals=tuple(loaded.models),
        coded=dict(zip(names, code.parities, strict=True)),
        inputs=tuple(f"{tensor.name} {tensor.dtype} {list(tensor.shape)}" for tensor in inputs),
        outputs=tuple(f"{tensor.name} {tensor.dtype} {list(tensor.shape)}" for tensor in outputs),
        points=(len(fit), len(held_out)),
        parameters=sum(parameter.numel() for parameter in originals[0].module.parameters()),
        encoder=fitting(recipe.encoder, recipe.code.space).model_dump(mode="json"),
        worst_noise_gain=code.worst_noise_gain(),
        warning=noise_warning(code, [*loaded.models, *names]),
        target=str(recipe.target),
    )
