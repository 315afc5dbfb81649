"""The merge: plan the slices, then let a few threads read, combine and write them. Memory is a few slices."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from coin_export.encode.average import AverageOptions
from coin_export.encode.coin import CoinOptions
from coin_export.errors import ArchitectureError, BuildError, CodeError, NonFiniteError, UserError
from coin_export.fisher.files import FINGERPRINTED, INPUTS_KEY, MEANS_KEY, TIED_KEY, WEIGHTS_KEY, fingerprint
from coin_export.merge.checkpoint import DTYPES, Checkpoint, StoredTensor
from coin_export.merge.rules import Average, Coin, Rule
from coin_export.merge.writer import Output, writing

_SLICE_ELEMENTS = 2**18  # of each checkpoint: smaller ones cost calls, larger ones leave the cache


@dataclass(frozen=True)
class MergeReport:
    """What a merge did.

    Attributes:
        target: what was written.
        combined: tensors combined by the encoder asked for.
        averaged: names of floating-point tensors without statistics, which were plainly averaged.
        copied: names of tensors that are no floating point, taken from the first checkpoint.
    """

    target: Path
    combined: int
    averaged: tuple[str, ...]
    copied: tuple[str, ...]


@dataclass(frozen=True)
class _Job:
    """One tensor: where it is in every file, and how it is combined; without a rule it is copied from the first."""

    values: tuple[StoredTensor, ...]
    fishers: tuple[StoredTensor, ...]
    rule: Rule | None

    @property
    def elements(self) -> int:
        return torch.Size(self.values[0].shape).numel()


def merge(
    checkpoints: Sequence[Path],
    coefficients: Sequence[float],
    target: Path,
    options: AverageOptions | CoinOptions | None = None,
    fishers: Sequence[Path] = (),
    threads: int = 2,
) -> MergeReport:
    """Merge checkpoints of one architecture into one of the first one's form and dtypes.

    Args:
        checkpoints: two or more; see `Checkpoint`.
        coefficients: a positive number for each; divided by their sum.
        target: the file to write, or the folder if the first checkpoint is sharded.
        options: `average`, or `coin` with its damping and normalization; a damping of auto is 0.3, as a merge runs no
            model to try others. By default ``coin`` if there are statistics.
        fishers: for ``coin``, the statistics of each checkpoint as `write_statistics` writes them, by tensor name.
        threads: that read, combine and write.

    Raises:
        UserError: if there is no thread.
        CodeError: if numbers of checkpoints, coefficients and statistics disagree, or a coefficient is not positive.
        ModelError: if a file cannot be read.
        ArchitectureError: if the checkpoints' tensors differ, or statistics do not fit them, or are of other weights or
            inputs, as far as their files say of which.
        NonFiniteError: if a merged tensor holds NaN or infinity.
        BuildError: if the target cannot be written. Whatever the error, nothing is left behind.
    """
    options = options or (CoinOptions() if fishers else AverageOptions())
    betas = _checked(checkpoints, coefficients, fishers, options)
    if threads < 1:
        raise UserError(f"{threads} threads; at least one is needed")
    with ExitStack() as stack:
        models = [stack.enter_context(Checkpoint(path)) for path in checkpoints]
        statistics = [stack.enter_context(Checkpoint(path)) for path in fishers]
        _check_alike(models, statistics)
        _check_belong(models, statistics)
        jobs = _plan(models, statistics, betas, options)
        try:
            with writing(target, models[0]) as output:
                _run(jobs, models, statistics, output, threads)
        except OSError as error:
            raise BuildError(f"{target}: cannot be written: {error}; nothing was left behind") from error
    unweighed = [job.values[0].name for job in jobs if isinstance(job.rule, Average)] if fishers else []
    copied = [job.values[0].name for job in jobs if job.rule is None]
    return MergeReport(target, len(jobs) - len(unweighed) - len(copied), tuple(unweighed), tuple(copied))


def _checked(
    checkpoints: Sequence[Path],
    coefficients: Sequence[float],
    fishers: Sequence[Path],
    options: AverageOptions | CoinOptions,
) -> tuple[float, ...]:
    if len(checkpoints) < 2 or len(coefficients) != len(checkpoints):
        raise CodeError(
            f"{len(coefficients)} coefficients for {len(checkpoints)} checkpoints; give two or more of each"
        )
    if not all(0 < beta < float("inf") for beta in coefficients):
        raise CodeError(f"the coefficients {list(coefficients)} must all be positive numbers")
    needed = len(checkpoints) if isinstance(options, CoinOptions) else 0
    if len(fishers) != needed:
        raise CodeError(
            f"{len(fishers)} files of statistics, and {options.name!r} needs {needed}; "
            "`coin-export fisher` writes one for each model"
        )
    return tuple(beta / sum(coefficients) for beta in coefficients)


def _check_alike(models: Sequence[Checkpoint], statistics: Sequence[Checkpoint]) -> None:
    first = models[0].tensors
    for other in models[1:]:
        differing = [
            name
            for name in first.keys() | other.tensors.keys()
            if _kind(first.get(name)) != _kind(other.tensors.get(name))
        ]
        if differing:
            name = min(differing)
            raise ArchitectureError(
                f"{other.path} and {models[0].path} differ in {len(differing)} tensors; {name!r} is "
                f"{_kind(other.tensors.get(name))} and {_kind(first.get(name))}; merge models of one architecture"
            )
    for fisher in statistics:
        for name, tensor in fisher.tensors.items():
            if name not in first or tensor.shape != first[name].shape or name not in statistics[0].tensors:
                raise ArchitectureError(
                    f"{fisher.path}: the statistics of {name!r}, shape {tensor.shape}, fit no tensor of "
                    f"{models[0].path}, or are not in every file of statistics"
                )
        if fisher.tensors.keys() != statistics[0].tensors.keys():
            raise ArchitectureError(f"{fisher.path}: holds other statistics than {statistics[0].path}")


def _check_belong(models: Sequence[Checkpoint], statistics: Sequence[Checkpoint]) -> None:
    """Check that each file of statistics is of the checkpoint in the same place, and all of the same inputs."""
    inputs: dict[str, Path] = {}
    for model, fisher in zip(models, statistics, strict=False):
        told = _told(fisher, WEIGHTS_KEY)
        here = {name: _fingerprint(model, name) for name in told.keys() & model.tensors.keys()}
        differing = [name for name, found in here.items() if found != told[name]]
        if differing:
            raise ArchitectureError(
                f"{fisher.path}: the statistics are of other weights than those of {model.path}: {len(differing)} of "
                f"{len(here)} tensors differ, {min(differing)!r} among them; give statistics in the order of the "
                "checkpoints, and write them again with `coin-export fisher` after training"
            )
        inputs.setdefault(fisher.metadata[0].get(INPUTS_KEY, ""), fisher.path)
    if len(inputs.keys() - {""}) > 1:
        first, other, *_ = (path for digest, path in inputs.items() if digest)
        raise ArchitectureError(
            f"{other}: the statistics are of other calibration inputs than those of {first}; write all of them with "
            "the same ones"
        )


def _fingerprint(model: Checkpoint, name: str) -> str:
    tensor = model.tensors[name]
    dtype = DTYPES[tensor.dtype]
    content = bytearray(min(tensor.size, FINGERPRINTED * dtype.itemsize))
    model.read_into(memoryview(content), tensor, 0)
    return fingerprint(torch.frombuffer(content, dtype=dtype) if content else torch.empty(0))


def _kind(tensor: StoredTensor | None) -> str:
    return "absent" if tensor is None else f"{tensor.dtype} {list(tensor.shape)}"


def _plan(
    models: Sequence[Checkpoint],
    statistics: Sequence[Checkpoint],
    betas: tuple[float, ...],
    options: AverageOptions | CoinOptions,
) -> list[_Job]:
    rules = _coin_rules(statistics, betas, options) if isinstance(options, CoinOptions) else {}
    tied = _told(statistics[0], TIED_KEY) if statistics else {}
    jobs = []
    for name, tensor in models[0].tensors.items():
        source = tied.get(name, name)
        values = tuple(model.tensors[name] for model in models)
        if not DTYPES[tensor.dtype].is_floating_point:
            jobs.append(_Job(values[:1], (), None))
        elif source in rules and statistics[0].tensors[source].shape == tensor.shape:
            jobs.append(_Job(values, tuple(fisher.tensors[source] for fisher in statistics), rules[source]))
        else:
            jobs.append(_Job(values, (), Average(betas)))
    return jobs


def _coin_rules(statistics: Sequence[Checkpoint], betas: Sequence[float], options: CoinOptions) -> dict[str, Coin]:
    """Find scales and damping as `coin` does, from the means of the statistics alone."""
    means = [_means(fisher) for fisher in statistics]
    sizes = {name: torch.Size(tensor.shape).numel() for name, tensor in statistics[0].tensors.items()}
    elements = sum(sizes.values())
    wholes = [sum(mean[name] * size for name, size in sizes.items()) / elements for mean in means]

    def scale(model: int, name: str) -> float:
        if options.normalization == "none":
            return 1.0
        mean = wholes[model] if options.normalization == "per_model" else means[model][name]
        return 1.0 / mean if mean > 0 else 0.0

    scaled = [
        sum(scale(model, name) * means[model][name] * size for name, size in sizes.items()) / elements
        for model in range(len(statistics))
    ]
    added = options.settled_damping() * sum(beta * mean for beta, mean in zip(betas, scaled, strict=True))
    models = range(len(statistics))
    return {name: Coin(tuple(betas), tuple(scale(model, name) for model in models), added) for name in sizes}


def _means(fisher: Checkpoint) -> Mapping[str, float]:
    try:
        means = {
            name: float(mean) for metadata in fisher.metadata for name, mean in json.loads(metadata[MEANS_KEY]).items()
        }
    except (KeyError, ValueError, AttributeError, TypeError) as error:
        raise ArchitectureError(
            f"{fisher.path}: holds no means of its tensors; write it by `coin-export fisher`"
        ) from error
    if means.keys() != fisher.tensors.keys():
        raise ArchitectureError(f"{fisher.path}: its means and tensors differ; write it by `coin-export fisher` again")
    return means


def _told(fisher: Checkpoint, key: str) -> Mapping[str, str]:
    """Return what the metadata of statistics say of each of some tensors."""
    try:
        return {
            str(name): str(item)
            for metadata in fisher.metadata
            for name, item in json.loads(metadata.get(key, "{}")).items()
        }
    except (ValueError, AttributeError, TypeError) as error:
        raise ArchitectureError(
            f"{fisher.path}: its metadata {key!r} cannot be read; write it by `coin-export fisher`"
        ) from error


def _run(
    jobs: Sequence[_Job], models: Sequence[Checkpoint], statistics: Sequence[Checkpoint], output: Output, threads: int
) -> None:
    """Let threads take one slice after the other; an error in one ends all."""
    slices, taking, ended = _slices(jobs), threading.Lock(), threading.Event()

    def work() -> None:
        buffers = _Buffers(len(models) + len(statistics))
        try:
            while not ended.is_set():
                with taking:
                    taken = next(slices, None)
                if taken is None:
                    return
                _combine(*taken, models, statistics, output, buffers)
        except BaseException:
            ended.set()
            raise

    before = torch.get_num_threads()
    torch.set_num_threads(1)  # the slices are the parallel work
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            try:
                for future in [pool.submit(work) for _ in range(threads)]:
                    future.result()
            finally:
                ended.set()
    finally:
        torch.set_num_threads(before)


def _slices(jobs: Sequence[_Job]) -> Iterator[tuple[_Job, int, int]]:
    for job in jobs:
        for start in range(0, job.elements, _SLICE_ELEMENTS):
            yield job, start, min(start + _SLICE_ELEMENTS, job.elements)


class _Buffers:
    """What one thread reads into, again and again."""

    def __init__(self, number: int) -> None:
        self.raw = [torch.empty(8 * _SLICE_ELEMENTS, dtype=torch.uint8) for _ in range(number)]
        self.bytes = [raw.numpy().data for raw in self.raw]


def _combine(
    job: _Job,
    start: int,
    stop: int,
    models: Sequence[Checkpoint],
    statistics: Sequence[Checkpoint],
    output: Output,
    buffers: _Buffers,
) -> None:
    stored = DTYPES[job.values[0].dtype]
    wide = torch.promote_types(stored, torch.float32) if stored.is_floating_point else stored
    sources = list(
        zip([*models[: len(job.values)], *statistics[: len(job.fishers)]], (*job.values, *job.fishers), strict=True)
    )

    def read(count: int) -> list[torch.Tensor]:
        return [_read(*source, start, stop, buffers, place) for place, source in enumerate(sources[:count])]

    tensors = read(len(sources))
    result = tensors[0]
    if job.rule is not None:
        tensors = [tensor.to(wide) for tensor in tensors]
        result = job.rule(tensors[: len(job.values)], tensors[len(job.values) :])
        if not bool(torch.isfinite(result.sum())) and not bool(torch.isfinite(result).all()):
            result = _with_masks(result.clone(), [tensor.to(wide) for tensor in read(len(job.values))])
            if not bool((torch.isfinite(result) | torch.isneginf(result)).all()):
                raise NonFiniteError(f"tensor {job.values[0].name!r}: NaN or infinity; look at the checkpoints")
    output.write(result.to(stored).view(torch.uint8).numpy().data, job.values[0], start * stored.itemsize)


def _with_masks(result: torch.Tensor, values: Sequence[torch.Tensor]) -> torch.Tensor:
    """Put minus infinity where all checkpoints have it, as additive attention masks do: it has no mean."""
    masked = torch.stack([torch.isneginf(value) for value in values]).all(0)
    wrong = torch.isneginf(result) & ~masked
    return result.masked_fill(wrong, math.nan).masked_fill(masked, -math.inf)


def _read(
    checkpoint: Checkpoint, tensor: StoredTensor, start: int, stop: int, buffers: _Buffers, place: int
) -> torch.Tensor:
    dtype = DTYPES[tensor.dtype]
    size = (stop - start) * dtype.itemsize
    checkpoint.read_into(buffers.bytes[place][:size], tensor, start * dtype.itemsize)
    return buffers.raw[place][:size].view(dtype)
