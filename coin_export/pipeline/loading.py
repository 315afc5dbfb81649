"""Loading what a recipe names: models, calibration inputs, evaluation data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from coin_export.datasets.calibration import Array, CalibrationInputs
from coin_export.datasets.sources import collect_batches, read_arrays, select_inputs
from coin_export.encode.architecture import check_same_architecture
from coin_export.encode.heads import pad_heads
from coin_export.errors import CalibrationError, ModelError, NonFiniteError
from coin_export.model.copying import copied, sharing_copy
from coin_export.model.loading import import_object, load_module
from coin_export.model.signature import Original, infer_signature
from coin_export.recipe import ModelRecipe, Recipe, is_import_path


@contextmanager
def plain_attention() -> Iterator[None]:
    """Switch torch's fused path for attention in eval mode off.

    With a padding mask it gives other values at the padded positions than the module's own code, which is what is
    exported and what training has seen.
    """
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@dataclass(frozen=True, eq=False)
class Labelled:
    """Labelled inputs of one original; they measure decoded answers, no encoder sees them."""

    inputs: CalibrationInputs
    labels: Array


@dataclass(frozen=True, eq=False)
class Loaded:
    """What a recipe names, in memory."""

    models: Mapping[str, torch.nn.Module]
    calibration: CalibrationInputs
    evaluation: Mapping[str, Labelled]


def load(recipe: Recipe) -> Loaded:
    """Load the models, calibration inputs and evaluation data of a recipe; writes nothing.

    Raises:
        ModelError: for a factory or checkpoint.
        CalibrationError: for calibration inputs or evaluation data.
    """
    models = {model.name: _load_model(f"models.{index}", model) for index, model in enumerate(recipe.models)}
    section = recipe.calibration
    if is_import_path(section.source):
        calibration = collect_batches(import_object(section.source), section.inputs, section.source)
    else:
        calibration = select_inputs(read_arrays(Path(section.source)), section.inputs, section.source)
    if section.points is not None:
        calibration = calibration.take(slice(0, section.points))
    evaluation = {
        name: read_labelled(item.source, item.labels, tuple(calibration.arrays))
        for name, item in recipe.evaluation.items()
    }
    return Loaded(models, calibration, evaluation)


def read_labelled(path: Path, labels: str, inputs: Sequence[str]) -> Labelled:
    """Read evaluation data from one array file.

    Raises:
        CalibrationError: if the labels or an input are missing, or their numbers of points differ.
    """
    arrays = read_arrays(path)
    if labels not in arrays:
        raise CalibrationError(f"{path}: no array named {labels!r} with the labels; it holds {sorted(arrays)}")
    values = arrays.pop(labels)
    chosen = select_inputs(arrays, inputs, str(path))
    if values.shape != (len(chosen),) or values.dtype.kind not in "iu":
        raise CalibrationError(
            f"{path}: {labels!r} is {values.dtype} of shape {values.shape}; "
            f"it must hold one integer class for each of the {len(chosen)} points"
        )
    return Labelled(chosen, values.astype(np.int64))


def _load_model(key: str, model: ModelRecipe) -> torch.nn.Module:
    try:
        return load_module(model.factory, model.arguments, model.checkpoint)
    except (ModelError, NonFiniteError) as error:
        raise type(error)(f"{key} ({model.name}): {error}") from error


def sign_models(
    models: Mapping[str, torch.nn.Module], calibration: CalibrationInputs, outputs: Sequence[str] | None
) -> list[Original]:
    """Find the models' signatures on the calibration inputs; work is done on copies that share the models' weights.

    Models with bfloat16 weights are widened to float32, since Triton's ONNX Runtime backend takes no bfloat16; so are
    they exported. All other weights, float16 too, keep their dtype.

    Raises:
        ModelError: if a forward pass fails, or a model is a `torch.jit.ScriptModule`.
    """
    for name, module in models.items():
        if isinstance(module, torch.jit.ScriptModule):
            raise ModelError(
                f"model {name!r} is a ScriptModule, which torch can neither differentiate point by point nor export; "
                "give the module that it was made from"
            )
    taken = {name: _without_bfloat16(sharing_copy(module).eval()) for name, module in models.items()}
    return [Original(name, module, infer_signature(module, calibration, outputs)) for name, module in taken.items()]


def _without_bfloat16(module: torch.nn.Module) -> torch.nn.Module:
    if any(tensor.dtype == torch.bfloat16 for tensor in module.state_dict().values()):
        return copied(module).float()
    return module


def combinable(originals: Sequence[Original], calibration: CalibrationInputs) -> list[Original]:
    """Return the originals with heads of one size, as the encoders want them.

    Raises:
        ArchitectureError: if the models differ in tensors or outputs, and not in their heads alone.
    """
    padded = pad_heads(originals, calibration)
    check_same_architecture(padded)
    return padded
