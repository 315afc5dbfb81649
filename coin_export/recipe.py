"""The build recipe: what a user asks for, typed and checked before anything is done.

A recipe is a YAML file or a `Recipe` made in Python. Unknown keys are refused. Paths are relative to the recipe file.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from coin_export.code.design import default_code, worst_gain
from coin_export.code.linear import LinearCode, check_all_protected
from coin_export.code.manifest import CodeSpace
from coin_export.encode.registry import DEFAULT_ENCODER, EncoderOptions
from coin_export.errors import CodeError, RecipeError
from coin_export.export.options import ExportOptions
from coin_export.repository.options import RepositoryOptions

_USABLE_GAIN = 1e4  # of a decoding whose error is ten thousand times that of the coded model nothing is left
IMPORT_PATH = r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$"
NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$"


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelRecipe(_Section):
    """One of the originals."""

    name: str = Field(pattern=NAME, description="The model's name in the repository.")
    factory: str = Field(pattern=IMPORT_PATH, description="Import path of a callable that makes the module.")
    arguments: dict[str, Any] = Field(default={}, description="Keyword arguments of the factory.")
    checkpoint: Path = Field(description="The trained weights: .safetensors, or a state dict saved by torch.")


class CalibrationRecipe(_Section):
    """Where the calibration inputs come from."""

    source: str = Field(description="A .npz, .npy or .safetensors file, or the import path of an iterable of batches.")
    inputs: tuple[str, ...] | None = Field(
        default=None, min_length=1, description="Input names in the order of the models' forward arguments."
    )
    points: int | None = Field(default=None, ge=2, description="Use only the first so many points.")


class CodeRecipe(_Section):
    """The code: a number of parities, or the rows themselves."""

    parities: int | None = Field(default=None, ge=1, description="Number of coded models, with default coefficients.")
    coefficients: tuple[tuple[float, ...], ...] | None = Field(
        default=None, min_length=1, description="One row of k positive coefficients per coded model."
    )
    protect: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] | None = Field(
        default=None,
        description="A weight for each original to be protected otherwise than the rest, whose weight is 1: twice the "
        "weight means about half the noise gain when that model is lost, at the expense of the others; {} protects all "
        "alike. When not given, weights follow from how much each original's answers to the calibration inputs suffer "
        "from errors of its logits; alike if that differs by less than a quarter, for outputs that are no logits, and "
        "for encoders other than refine.",
    )
    space: CodeSpace = Field(
        default="logits", description="What the outputs are; they are combined and decoded as the models give them."
    )

    @model_validator(mode="after")
    def _one_of_both(self) -> CodeRecipe:
        if self.parities is not None and self.coefficients is not None:
            raise ValueError("give either 'parities' or 'coefficients', not both")
        if self.protect and self.coefficients is not None:
            raise ValueError("'protect' chooses coefficients; leave it out where 'coefficients' are given")
        return self

    @property
    def m(self) -> int:
        """The number of coded models."""
        return len(self.coefficients) if self.coefficients is not None else self.parities or 1

    @property
    def leaves_protection_open(self) -> bool:
        """Whether nothing is said of whom to protect, and outputs are such that one can tell who needs it."""
        return self.coefficients is None and self.protect is None and self.space == "logits"

    def code(self, originals: Collection[str], sensitivities: Sequence[float] | None = None) -> LinearCode:
        """Make the code for the originals of these names.

        Args:
            originals: their names, in the order of the code.
            sensitivities: what to protect each of them by where nothing else is said; alike if not given.

        Raises:
            CodeError: if the coefficients are no usable code for so many originals, or another model is to be
                protected.
        """
        k = len(originals)
        given = self.protect or {}
        strangers = [name for name in given if name not in originals]
        if strangers:
            raise CodeError(f"protect: {', '.join(map(repr, strangers))} is none of the models {list(originals)}")
        if self.coefficients is None:
            weights = sensitivities if self.leaves_protection_open else [given.get(name, 1.0) for name in originals]
            return default_code(k, self.m, weights)
        for index, row in enumerate(self.coefficients):
            if len(row) != k:
                raise CodeError(f"row {index} of the coefficients has {len(row)} entries; there are {k} originals")
            check_all_protected(row, f"row {index} of the coefficients")
        code = LinearCode.from_rows(self.coefficients)
        if worst_gain(np.asarray(code.parities)) > _USABLE_GAIN:
            raise CodeError(
                f"the coefficients do not survive every loss of {code.m} of the {code.n} models: rows, or parts of "
                "them, are multiples of each other; change them, or give 'parities' for default coefficients"
            )
        return code


class EvaluationRecipe(_Section):
    """Labelled data of one original, to measure the accuracy of decoded answers."""

    source: Path = Field(description="A .npz or .safetensors file with the inputs and the labels.")
    labels: str = Field(default="labels", description="The array in it that holds the integer class of each point.")


class BuildOptions(_Section):
    """Everything about a build that has a default."""

    code: CodeRecipe = CodeRecipe()
    encoder: EncoderOptions = DEFAULT_ENCODER
    outputs: tuple[str, ...] | None = Field(
        default=None, description="Output names in the order of the models' forward."
    )
    export: ExportOptions = ExportOptions()
    repository: RepositoryOptions = RepositoryOptions()
    held_out: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.1, description="Share of the calibration inputs kept from the encoder, to measure decoded answers on."
    )
    cache: Path | None = Field(default=None, description="Folder in which statistics are kept between builds.")
    seed: int = Field(default=0, ge=0, description="Seed of the choice of held-out calibration inputs.")


class Recipe(BuildOptions):
    """A whole build."""

    name: str = Field(pattern=NAME, description="The group's name.")
    models: tuple[ModelRecipe, ...] = Field(min_length=2, description="The originals, in the order of the code.")
    calibration: CalibrationRecipe
    target: Path = Field(default=Path("model_repository"), description="Folder of the model repository.")
    evaluation: dict[str, EvaluationRecipe] = Field(default={}, description="Labelled data, by original.")

    @model_validator(mode="after")
    def _names_agree(self) -> Recipe:
        names = [model.name for model in self.models]
        if len(set(names)) != len(names):
            raise ValueError(f"models: the names {names} are not all different")
        for name in self.evaluation:
            if name not in names:
                raise ValueError(f"evaluation: {name!r} is none of the models {names}")
        return self

    @model_validator(mode="after")
    def _code_fits(self) -> Recipe:
        if self.code.leaves_protection_open:
            return self
        try:
            self.code.code([model.name for model in self.models])
        except CodeError as error:
            raise ValueError(f"code: {error}") from error
        return self

    def relative_to(self, folder: Path) -> Recipe:
        """Return the recipe with its relative paths taken from ``folder``."""
        source = self.calibration.source
        placed = source if is_import_path(source) else str(folder / source)
        return self.model_copy(
            update={
                "models": tuple(m.model_copy(update={"checkpoint": folder / m.checkpoint}) for m in self.models),
                "calibration": self.calibration.model_copy(update={"source": placed}),
                "evaluation": {
                    name: item.model_copy(update={"source": folder / item.source})
                    for name, item in self.evaluation.items()
                },
                "target": folder / self.target,
                "cache": None if self.cache is None else folder / self.cache,
            }
        )

    def missing_files(self) -> list[tuple[str, Path]]:
        """Return the key and path of every file that the recipe names and that is not there."""
        files = [(f"models.{index}.checkpoint", model.checkpoint) for index, model in enumerate(self.models)]
        if not is_import_path(self.calibration.source):
            files.append(("calibration.source", Path(self.calibration.source)))
        files += [(f"evaluation.{name}.source", item.source) for name, item in self.evaluation.items()]
        return [(key, path) for key, path in files if not path.is_file()]


def is_import_path(source: str) -> bool:
    """Tell whether ``source`` is an import path such as ``package.module:name`` rather than a file."""
    return re.fullmatch(IMPORT_PATH, source) is not None and not Path(source).exists()


def load_recipe(path: Path) -> Recipe:
    """Read a YAML recipe.

    Raises:
        RecipeError: one message that names every offending key, or the file that is missing or no YAML.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of keys to values; it holds {type(content).__name__}")
    recipe = parse_recipe(content, str(path)).relative_to(path.parent)
    missing = recipe.missing_files()
    if missing:
        raise RecipeError(f"{path}: " + "; ".join(f"{key}: no such file: {file}" for key, file in missing))
    return recipe


def parse_recipe(content: dict[str, Any], where: str) -> Recipe:
    """Check a recipe given as plain data.

    Raises:
        RecipeError: one message that names every offending key.
    """
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        items = error.errors()
        inner = {item["loc"][:1] for item in items if len(item["loc"]) > 1}
        # A list whose every entry is faulty also counts as too short.
        items = [item for item in items if item["type"] != "too_short" or item["loc"] not in inner]
        faults = [_fault(item["loc"], item["msg"], item["type"]) for item in items]
        raise RecipeError(f"{where}: " + "; ".join(faults)) from error


def _fault(location: tuple[int | str, ...], message: str, kind: str) -> str:
    key = ".".join(str(part) for part in location)
    if kind == "extra_forbidden":
        message = "unknown key; see the README for the keys of a recipe"
    elif kind == "string_pattern_mismatch" and location[-1] == "factory":
        message = "write it as package.module:name"
    elif kind == "string_pattern_mismatch":
        message = "use letters, digits, '_', '-' and '.', and do not begin with '-' or '.'"
    elif kind.startswith("path_"):
        message = "must be a path"
    message = message.removeprefix("Value error, ")
    return f"{key}: {message}" if key else message
