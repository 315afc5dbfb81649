"""The build: the order of its stages."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from coin_export.code.linear import LinearCode
from coin_export.code.manifest import Group, Member, Quality
from coin_export.code.warning import noise_warning
from coin_export.datasets.calibration import Array, CalibrationInputs
from coin_export.encode.architecture import coded_module
from coin_export.encode.encoding import EncodeCost, Encoding, plain_notes
from coin_export.encode.registry import encode_rows, fitting
from coin_export.errors import ModelError
from coin_export.evaluate.report import group_json
from coin_export.export.verify import OnnxCheck, file_digest
from coin_export.model.signature import Original, Signature
from coin_export.pipeline.coding import code_of
from coin_export.pipeline.evaluation import measure_files
from coin_export.pipeline.exporting import compare_all, export_all
from coin_export.pipeline.loading import Labelled, combinable, load, plain_attention, sign_models
from coin_export.recipe import BuildOptions, Recipe
from coin_export.repository.config import triton_tensors
from coin_export.repository.layout import check_target, write_repository

_LOGGER = logging.getLogger(__name__)

Progress = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class BuildReport:
    """What a build did.

    Attributes:
        repository: the folder written.
        group: the group as its members describe it, measured quality included.
        onnx_checks: ONNX Runtime against torch, by model.
        costs: what each coded model cost to encode, by name.
        notes: what the encoder had to say, by coded model.
        seconds: wall-clock time of each stage.
    """

    repository: Path
    group: Group
    onnx_checks: Mapping[str, OnnxCheck]
    costs: Mapping[str, EncodeCost]
    notes: Mapping[str, Mapping[str, object]]
    seconds: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain data."""
        return {
            "repository": str(self.repository),
            "group": group_json(self.group),
            "onnx": {model: asdict(check) for model, check in self.onnx_checks.items()},
            "encoding": {
                model: {**asdict(cost), "notes": plain_notes(self.notes[model])} for model, cost in self.costs.items()
            },
            "seconds": dict(self.seconds),
        }

    @property
    def onnx_max_abs_error(self) -> float:
        """The largest difference between ONNX Runtime and torch over all models and outputs."""
        return max(check.max_abs_error for check in self.onnx_checks.values())


@dataclass
class _Stages:
    """Says which stage runs and notes how long each took."""

    progress: Progress
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str, message: str) -> Iterator[None]:
        self.progress(message)
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def build(recipe: Recipe, progress: Progress = lambda message: None) -> BuildReport:
    """Build the group that ``recipe`` describes.

    Raises:
        CoinExportError: with the stage's own error; the target folder is then as it was before.
    """
    progress("loading models and calibration inputs")
    loaded = load(recipe)
    return build_group(
        recipe.name,
        loaded.models,
        loaded.calibration,
        recipe.target,
        options=recipe,
        evaluation=loaded.evaluation,
        progress=progress,
    )


def build_group(
    name: str,
    models: Mapping[str, torch.nn.Module],
    calibration: CalibrationInputs | Mapping[str, Array],
    target: Path | str,
    *,
    options: BuildOptions | None = None,
    evaluation: Mapping[str, Labelled] | None = None,
    progress: Progress = lambda message: None,
) -> BuildReport:
    """Build a group of models that are already in memory.

    Args:
        name: the group's name.
        models: the originals by name, in the order of the code; they are left as they are, and count as in eval mode.
        calibration: unlabeled inputs by name, in the order of the models' forward arguments.
        target: folder of the model repository.
        options: code, encoder, export and repository options.
        evaluation: labelled data by original.
        progress: told what is being done.

    Raises:
        CoinExportError: with the stage's own error; the target folder is then as it was before.
    """
    options = options or BuildOptions()
    if not isinstance(calibration, CalibrationInputs):
        calibration = CalibrationInputs({key: np.asarray(value) for key, value in calibration.items()})
    with plain_attention():
        return _build(name, models, calibration, Path(target), options, evaluation or {}, _Stages(progress))


def _build(
    name: str,
    models: Mapping[str, torch.nn.Module],
    calibration: CalibrationInputs,
    target: Path,
    options: BuildOptions,
    evaluation: Mapping[str, Labelled],
    stages: _Stages,
) -> BuildReport:
    originals = sign_models(models, calibration, options.outputs)
    padded = combinable(originals, calibration)
    whole = padded[0].signature
    members = [*models, *coded_names(name, options.code.m, models)]
    check_target(target, name, members)
    fit, held_out = calibration.split(options.held_out, options.seed)
    with stages.stage("code", "choosing the code"):
        code = code_of(options.code, options.encoder, padded, calibration)
    if warning := noise_warning(code, members):
        _LOGGER.warning(warning)
    with tempfile.TemporaryDirectory(prefix="coin_export_build_") as folder:
        # Originals first: what cannot be exported is told before encoding, which takes far longer.
        files, checks = _export(originals, held_out, options, Path(folder), stages)
        with stages.stage("encode", f"encoding {code.m} of {code.n} models with {options.encoder.name}"):
            encodings = _encode_all(name, padded, code, fit, options)
        coded = [
            Original(model, coded_module(padded[0].module, item.state_dict), whole) for model, item in encodings.items()
        ]
        coded_files, coded_checks = _export(coded, held_out, options, Path(folder), stages)
        files, checks, exported = files | coded_files, checks | coded_checks, [*originals, *coded]
        with stages.stage("evaluate", "measuring decoded answers for every erasure pattern"):
            accuracies, quality = measure_files(list(files.values()), code, list(files), held_out, evaluation)
        group = _describe(name, options, whole, exported, code, files, accuracies, quality)
        with stages.stage("write", f"writing {target}"):
            write_repository(target, group, files, options.repository)
    costs = {model: encoding.cost for model, encoding in encodings.items()}
    notes = {model: encoding.notes for model, encoding in encodings.items()}
    return BuildReport(target, group, checks, costs, notes, stages.seconds)


def coded_names(group: str, count: int, originals: Iterable[str]) -> tuple[str, ...]:
    """Name the coded models.

    Raises:
        ModelError: if an original already has such a name.
    """
    names = tuple(f"{group}_coded_{index}" for index in range(count))
    for name in originals:
        if name in names:
            raise ModelError(f"original {name!r} has the name of a coded model of group {group!r}; rename either")
    return names


def _encode_all(
    group: str, originals: Sequence[Original], code: LinearCode, calibration: CalibrationInputs, options: BuildOptions
) -> dict[str, Encoding]:
    names = coded_names(group, code.m, [original.name for original in originals])
    encoder = fitting(options.encoder, options.code.space)
    encodings = encode_rows(originals, code.parities, calibration, encoder, options.cache)
    return dict(zip(names, encodings, strict=True))


def _export(
    models: Sequence[Original],
    held_out: CalibrationInputs,
    options: BuildOptions,
    folder: Path,
    stages: _Stages,
) -> tuple[dict[str, Path], dict[str, OnnxCheck]]:
    with stages.stage("export", f"exporting {', '.join(model.name for model in models)} to ONNX"):
        files = export_all(models, held_out, options.export, folder)
    with stages.stage("verify", "comparing ONNX Runtime with torch"):
        return files, compare_all(models, files, held_out, options.export)


def _describe(
    name: str,
    options: BuildOptions,
    whole: Signature,
    models: Sequence[Original],
    code: LinearCode,
    files: Mapping[str, Path],
    accuracies: Mapping[str, float],
    quality: tuple[Quality, ...],
) -> Group:
    inputs, outputs = triton_tensors(whole)
    members = tuple(
        Member(
            name=model.name,
            role="original" if index < code.k else "coded",
            row=tuple(code.generator[index].tolist()),
            digest=file_digest(files[model.name]),
            accuracy=accuracies.get(model.name),
            output_shapes=() if model.signature == whole else tuple(spec.shape for spec in model.signature.outputs),
        )
        for index, model in enumerate(models)
    )
    return Group(name, options.encoder.name, options.code.space, inputs, outputs, members, quality)
