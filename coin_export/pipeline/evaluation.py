"""Measuring exported models: originals, and decoded answers for every erasure pattern."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from coin_export.code.linear import LinearCode
from coin_export.code.manifest import Group, Quality
from coin_export.datasets.calibration import CalibrationInputs
from coin_export.errors import RequestError
from coin_export.evaluate.accuracy import LabelledOutputs, Outputs, accuracy, measure
from coin_export.evaluate.outputs import run_onnx
from coin_export.pipeline.loading import Labelled, read_labelled
from coin_export.repository.layout import read_repository


def measure_files(
    files: Sequence[Path],
    code: LinearCode,
    names: Sequence[str],
    held_out: CalibrationInputs,
    evaluation: Mapping[str, Labelled],
) -> tuple[dict[str, float], tuple[Quality, ...]]:
    """Run the members' ONNX files and measure originals and decoded answers.

    Args:
        files: ONNX files of the n members, in the order of the code.
        code: the group's code.
        names: names of the n members.
        held_out: unlabeled inputs that no encoder has seen.
        evaluation: labelled data by original.

    Returns:
        Accuracy in % of the originals that have evaluation data, and the quality of every erasure pattern.
    """
    labelled = {
        name: LabelledOutputs([run_onnx(file, item.inputs) for file in files], item.labels)
        for name, item in evaluation.items()
    }
    accuracies = {
        name: accuracy(outputs.members[list(names).index(name)], outputs.labels) for name, outputs in labelled.items()
    }
    answers: list[Outputs] = [run_onnx(file, held_out) for file in files]
    return accuracies, measure(code, names, answers, labelled)


def evaluate_repository(repository: Path, data: Mapping[str, Path], labels: str, group: str | None = None) -> Group:
    """Measure a repository's group anew on labelled data.

    Args:
        repository: the folder that `build` wrote.
        data: an array file with inputs and labels, by original.
        labels: the array that holds the labels.
        group: the group, where the repository holds several.

    Returns:
        The group with accuracies and qualities as measured now: of originals without data here, none. The
        label-free figures are taken over all the given inputs together.

    Raises:
        RepositoryError: if the group is not there, or not the only one and not named.
        RequestError: if data names no original of the group.
    """
    contents = read_repository(repository)
    found = contents.group(group)
    names = [member.name for member in found.originals]
    for name in data:
        if name not in names:
            raise RequestError(f"--data {name}: the originals of group {found.name!r} are {names}")
    inputs = [tensor.name for tensor in found.inputs]
    evaluation = {name: read_labelled(path, labels, inputs) for name, path in data.items()}
    everything = CalibrationInputs(
        {key: np.concatenate([item.inputs.arrays[key] for item in evaluation.values()]) for key in inputs}
    )
    members = [member.name for member in found.members]
    files = [contents.onnx_path(name) for name in members]
    accuracies, quality = measure_files(files, found.code, members, everything, evaluation)
    measured = tuple(replace(member, accuracy=accuracies.get(member.name)) for member in found.members)
    return replace(found, members=measured, quality=quality)
