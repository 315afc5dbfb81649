"""Running a cell: encode, decode every erasure pattern on test parts, count what is right."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from coin_export.code.decode import Array, decode
from coin_export.code.design import default_code
from coin_export.code.linear import LinearCode
from coin_export.datasets.calibration import CalibrationInputs
from coin_export.encode.architecture import coded_module
from coin_export.encode.encoding import Encoding, plain_notes
from coin_export.encode.registry import encode_rows
from coin_export.encode.sensitivity import sensitivities
from coin_export.evaluate.accuracy import accuracy, decoded_outputs
from coin_export.model.signature import Original, call, to_tensors
from coin_export.pipeline.loading import combinable, sign_models
from scripts.reproduce.cells import Cell
from scripts.reproduce.memory import PeakMemory
from scripts.reproduce.methods import METHODS, seeded
from scripts.reproduce.originals import Originals
from scripts.reproduce.provenance import encoders_digest
from scripts.reproduce.settings import Setting
from scripts.reproduce.tasks import Data, Part

Record = dict[str, Any]
_OUTPUT = "logits"
_BATCH = 256
_NOTES = ("start", "learning_rate", "rungs", "held_out_error", "chosen", "damping", "iterations", "relative_residual")


@dataclass(frozen=True, eq=False)
class Asked:
    """Labelled points of one task, and what the originals answer to them."""

    part: Part
    direct: Sequence[Array]


@dataclass(frozen=True, eq=False)
class Subject:
    """The originals of one setting and seed, and their test parts."""

    originals: Sequence[Original]
    pools: Mapping[str, Part]
    tests: Mapping[str, Asked]


@lru_cache(maxsize=2)
def _subject(originals: Originals, tasks: tuple[str, ...], seed: int, test_points: int | None) -> Subject:
    pools = {task: originals.pool(task) for task in tasks}
    modules = {task: originals.original(task, seed) for task in tasks}
    some = CalibrationInputs(next(iter(pools.values())).take(slice(0, 2)).inputs)
    signed = sign_models(modules, some, [_OUTPUT])
    network = originals.recipe.network
    tests = {task: originals.data.part(task, "test", network, 0, test_points) for task in tasks}
    return Subject(signed, pools, {task: _ask(signed, part) for task, part in tests.items()})


def measure(cell: Cell, data: Data) -> list[Record]:
    """Run a cell.

    Returns:
        One record for each erasure pattern in which an original is lost. ``encode_seconds`` is processor time of all
        coded models together, with one thread.
    """
    setting = cell.setting
    subject = _subject(Originals(setting.recipe, data), setting.tasks, cell.seed, cell.test_points)
    drawn = _draw(subject.pools, cell.points, cell.seed)
    names = list(next(iter(drawn.values())).inputs)
    calibration = CalibrationInputs(
        {name: np.concatenate([part.inputs[name] for part in drawn.values()]) for name in names}
    )
    padded = combinable(subject.originals, calibration)
    peak, started = PeakMemory(), time.process_time()
    protect = sensitivities(padded, calibration, setting.parities) if cell.sensitive else None
    code = default_code(len(setting.tasks), setting.parities, protect)
    encodings = encode_rows(padded, code.parities, calibration, seeded(cell.options, cell.seed))
    seconds, grown = time.process_time() - started, peak.grown_bytes()
    coded = [
        Original(f"coded_{row}", coded_module(padded[0].module, encoding.state_dict), padded[0].signature)
        for row, encoding in enumerate(encodings)
    ]
    seen = {task: _ask(subject.originals, part) for task, part in drawn.items()}
    results = {"test": _decoded(code, subject.tests, coded), "train": _decoded(code, seen, coded)}
    asked, plain = (options.model_dump(mode="json") for options in (cell.options, METHODS[cell.method]))
    members = [*setting.tasks, *(model.name for model in coded)]
    shared = {
        "study": cell.study,
        "setting": setting.name,
        "encoder": cell.method,
        "default": cell.default,
        "k": code.k,
        "m": code.m,
        "coefficients": code.parities,
        "points": cell.points,
        "seed": cell.seed,
        "changed": {name: value for name, value in asked.items() if value != plain[name]},
        "error_correlation": _error_correlation(code, subject.tests, coded),
        "original_accuracy": {task: _original_accuracy(subject.tests, setting, task) for task in setting.tasks},
        "encode_seconds": round(seconds, 3),
        **_cost(encodings),
        "peak_memory_bytes": grown,
        "encoders": encoders_digest(),
        "notes": plain_notes({key: encodings[0].notes[key] for key in _NOTES if key in encodings[0].notes}),
    }
    return [
        {
            **shared,
            "erased": [members[index] for index in pattern],
            "normalized_decoding_accuracy": _mean(results["test"][pattern]),
            "train_normalized_decoding_accuracy": _mean(results["train"][pattern]),
            "by_model": {setting.tasks[wanted]: value for wanted, value in results["test"][pattern].items()},
        }
        for pattern in results["test"]
    ]


def _draw(pools: Mapping[str, Part], points: int, seed: int) -> dict[str, Part]:
    """Draw calibration inputs; more points of a seed contain its fewer ones."""
    drawn = {}
    for number, (task, pool) in enumerate(pools.items()):
        order = np.random.default_rng([seed, number]).permutation(len(pool))
        drawn[task] = pool.take(np.sort(order[:points]))
    return drawn


def _ask(models: Sequence[Original], part: Part) -> Asked:
    return Asked(part, [_outputs(model.module, part) for model in models])


def _outputs(module: torch.nn.Module, part: Part) -> Array:
    batches = CalibrationInputs(part.inputs).batches(_BATCH)
    with torch.no_grad():
        return np.concatenate([call(module, to_tensors(batch), [_OUTPUT])[_OUTPUT].numpy() for batch in batches])


def _decoded(
    code: LinearCode, asked: Mapping[str, Asked], coded: Sequence[Original]
) -> dict[tuple[int, ...], dict[int, float]]:
    """Return the normalized decoding accuracy in % of every original lost in every erasure pattern."""
    patterns = [pattern for pattern in code.erasure_patterns() if any(index < code.k for index in pattern)]
    results: dict[tuple[int, ...], dict[int, float]] = {pattern: {} for pattern in patterns}
    for wanted, item in enumerate(asked.values()):
        answers = [*item.direct, *(_outputs(model.module, item.part) for model in coded)]
        members = [{_OUTPUT: answer} for answer in answers]
        direct = accuracy(members[wanted], item.part.labels)
        for pattern in patterns:
            if wanted in pattern:
                decoded = accuracy(decoded_outputs(code, members, pattern, wanted), item.part.labels)
                # An original that is never right, as in tests, has nothing to lose.
                results[pattern][wanted] = round(100 * decoded / direct, 3) if direct else 100.0
    return results


def _error_correlation(code: LinearCode, asked: Mapping[str, Asked], coded: Sequence[Original]) -> float | None:
    """Return how far two coded models err alike, mean over their pairs and the tasks; None for a single one.

    An error is the coded output less the combination that it stands for, less its mean over classes, which a softmax
    does not see.
    """
    if len(coded) == 1:
        return None
    combine = code.decoding(range(code.k), code.parities)
    found = []
    for item in asked.values():
        answers = [_outputs(model.module, item.part) for model in coded]
        due = decode(combine, [item.direct[source] for source in combine.sources], [answers[0].shape[1:]] * len(coded))
        errors = np.asarray(answers, dtype=np.float64) - due
        errors -= errors.mean(axis=-1, keepdims=True)
        found.append(np.corrcoef(errors.reshape(len(coded), -1))[np.triu_indices(len(coded), 1)].mean())
    return round(float(np.mean(found)), 3)


def _original_accuracy(tests: Mapping[str, Asked], setting: Setting, task: str) -> float:
    own = tests[task].direct[setting.tasks.index(task)]
    return round(accuracy({_OUTPUT: own}, tests[task].part.labels), 3)


def _cost(encodings: Sequence[Encoding]) -> dict[str, int]:
    return {
        "forward_passes": sum(encoding.cost.forward_passes for encoding in encodings),
        "backward_passes": sum(encoding.cost.backward_passes for encoding in encodings),
    }


def _mean(values: Mapping[int, float]) -> float:
    return round(float(np.mean(list(values.values()))), 3)
