"""Measure what diagonal Fisher statistics cost, against a plain pass, vmap(grad) and BackPACK.

    python scripts/bench_fisher.py [--output docs/results/fisher.json]

Three networks, Gaussian sign-probe statistics, one thread. The methods take turns within each repeat, and ratios are
of neighbouring runs, in processor time, so that a busy machine disturbs them little. "fisher" is the whole public call
with all that it does once; "plain" is one forward and one backward pass for each batch. "vmap" is `torch.func` as its
tutorial has it, and it and BackPACK take the batch size that is fastest for them. Peak memory is the growth of
the resident set over that of the loaded model and inputs, each run in a process of its own that has seen one batch of
that size (Linux); the median of three. BackPACK sums
the same squared gradients (`SumGradSquared`); it knows no attention, so the transformer goes without it.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import multiprocessing
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from backpack import backpack, extend  # type: ignore[import-untyped]  # ships no type information
from backpack.extensions import SumGradSquared  # type: ignore[import-untyped]  # as above
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from coin_export.datasets.calibration import CalibrationInputs
from coin_export.demo.networks import SmallCnn
from coin_export.fisher.diagonal import diagonal_fisher
from coin_export.fisher.likelihood import directions
from coin_export.fisher.options import FisherOptions
from coin_export.model.signature import Original, infer_signature, to_tensors

OTHERS = ("vmap", "backpack")
METHODS = ("plain", "fisher", *OTHERS)
TARGETS = {"small_cnn": 2.5, "resnet18": 1.5, "transformer": 1.5}  # time over that of the plain pass
MEMORY_TARGET = 2.0
BATCH_SIZES = (4, 8, 16, 32, 64, 128)  # that the others choose from
_MEMORY_REPEATS = 3


class Residual(nn.Module):
    """Two 3x3 convolutions with BatchNorm and a shortcut."""

    def __init__(self, wide: int, tall: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(wide, tall, 3, stride, 1, bias=False), nn.BatchNorm2d(tall))
        self.second = nn.Sequential(nn.Conv2d(tall, tall, 3, 1, 1, bias=False), nn.BatchNorm2d(tall))
        self.short: nn.Module = nn.Identity()
        if stride > 1 or wide != tall:
            self.short = nn.Sequential(nn.Conv2d(wide, tall, 1, stride, bias=False), nn.BatchNorm2d(tall))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return features."""
        return torch.relu(self.second(torch.relu(self.first(x))) + self.short(x))


def resnet18(width: int = 16) -> nn.Module:
    """ResNet-18 for 32 x 32 images."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    wide = width
    for tall, stride in ((width, 1), (2 * width, 2), (4 * width, 2), (8 * width, 2)):
        layers += [Residual(wide, tall, stride), Residual(tall, tall, 1)]
        wide = tall
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(wide, 10))


class Transformer(nn.Module):
    """A token embedding, four encoder layers of width 128, mean pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(1000, 128)
        layer = nn.TransformerEncoderLayer(128, 4, 512, dropout=0.0, activation="gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.head = nn.Linear(128, 6)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return logits."""
        logits: torch.Tensor = self.head(self.encoder(self.embedding(tokens)).mean(1))
        return logits


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "small_cnn": (SmallCnn, (1, 28, 28)),
    "resnet18": (resnet18, (3, 32, 32)),
    "transformer": (Transformer, (32,)),
}


def prepare(network: str, method: str, points: int, batch_size: int) -> Callable[[], object]:
    """Return what one run of a method does."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    make, shape = NETWORKS[network]
    generator = np.random.default_rng(0)
    if network == "transformer":
        array: np.ndarray[Any, Any] = generator.integers(0, 1000, size=(points, *shape))
    else:
        array = generator.normal(size=(points, *shape)).astype(np.float32)
    calibration = CalibrationInputs({"x": array})
    module = make().eval()
    original = Original(network, module, infer_signature(module, calibration))
    options = FisherOptions(batch_size=batch_size)
    if method == "fisher":
        return lambda: diagonal_fisher(original, calibration, options)
    vectors = directions(options, range(points), original.signature.outputs[0].shape[0])
    batches = [
        (torch.as_tensor(batch), some)
        for batch, some in zip(
            (to_tensors(batch)["x"] for batch in calibration.batches(batch_size)),
            torch.split(vectors, batch_size),
            strict=True,
        )
    ]
    if method == "plain":
        return lambda: _plain(module, batches)
    if method == "backpack":
        # BackPACK hooks every module: the first too, whose input wants no gradient, and those that only hold others.
        warnings.filterwarnings("ignore", "Full backward hook is firing")
        warnings.filterwarnings("ignore", "Extension saving to sum_grad_squared does not have an extension")
        extended = extend(module)
        return lambda: _backpack(extended, batches)
    return lambda: _vmap(module, batches)


def _plain(module: nn.Module, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    for batch, vectors in batches:
        module.zero_grad()
        module(batch).backward(vectors[:, 0])


def _backpack(module: nn.Module, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    totals: dict[str, torch.Tensor] = {}
    for batch, vectors in batches:
        module.zero_grad()
        with backpack(SumGradSquared()):
            (module(batch) * vectors[:, 0]).sum().backward()
        for name, parameter in module.named_parameters():
            squares = parameter.sum_grad_squared  # type: ignore[attr-defined]  # BackPACK sets it
            totals[name] = totals[name] + squares if name in totals else squares


def _vmap(module: nn.Module, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    parameters = {name: parameter.detach() for name, parameter in module.named_parameters()}
    buffers = dict(module.named_buffers())

    def score(weights: dict[str, torch.Tensor], point: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = functional_call(module, (weights, buffers), (point[None],))
        return (output[0] * vector).sum()

    of_points = vmap(grad(score), in_dims=(None, 0, 0))
    totals = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    with sdpa_kernel(SDPBackend.MATH):  # the others cannot be batched
        for batch, vectors in batches:
            for name, gradients in of_points(parameters, batch, vectors[:, 0]).items():
                totals[name] += gradients.square().sum(0)


def fastest(network: str, method: str, points: int) -> tuple[int, Callable[[], object]]:
    """Return the batch size that a method is fastest with, and what one run of it does then."""
    found: list[tuple[float, int, Callable[[], object]]] = []
    for batch_size in BATCH_SIZES:
        run = prepare(network, method, points, batch_size)
        run()
        start = time.process_time()
        run()
        found.append((time.process_time() - start, batch_size, run))
    _, batch_size, run = min(found, key=itemgetter(0))
    return batch_size, run


def _methods(network: str) -> list[str]:
    return [method for method in METHODS if (network, method) != ("transformer", "backpack")]


def measure_times(
    network: str, points: int, batch_size: int, repeats: int
) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Return seconds of each repeat by method, and the others' batch sizes; the first, unmeasured repeat warms up."""
    others = {method: fastest(network, method, points) for method in _methods(network) if method in OTHERS}
    runs = {
        method: prepare(network, method, points, batch_size) for method in _methods(network) if method not in OTHERS
    }
    runs |= {method: run for method, (_, run) in others.items()}
    seconds: dict[str, list[float]] = {method: [] for method in runs}
    for repeat in range(repeats + 1):
        for method, run in runs.items():
            start = time.process_time()
            run()
            if repeat:
                seconds[method].append(time.process_time() - start)
    return seconds, {method: chosen for method, (chosen, _) in others.items()}


def peak_memory(arguments: tuple[str, str, int, int]) -> float:
    """Return by how many MB one run raises the resident set; call it in a fresh process."""
    network, method, points, batch_size = arguments
    # A first run loads code and compiles kernels for these shapes, which is not what is asked for.
    prepare(network, method, batch_size, batch_size)()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what it has freed does not count as resident
    run = prepare(network, method, points, batch_size)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # resets the peak
    before = _status("VmRSS")
    run()
    return (_status("VmHWM") - before) / 1024


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))


def bench(network: str, points: int, batch_size: int, repeats: int) -> dict[str, Any]:
    """Measure one network."""
    seconds, chosen = measure_times(network, points, batch_size, repeats)
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        arguments = {method: (network, method, points, batch_size) for method in seconds}
        memory = {
            method: statistics.median(pool.apply(peak_memory, (some,)) for _ in range(_MEMORY_REPEATS))
            for method, some in arguments.items()
        }
    over_plain = _ratio(seconds["fisher"], seconds["plain"])
    others = {method: _ratio(seconds["fisher"], seconds[method]) for method in seconds if method in OTHERS}
    return {
        "network": network,
        "parameters": sum(parameter.numel() for parameter in NETWORKS[network][0]().parameters()),
        "points": points,
        "batch_size": batch_size,
        "others_batch_sizes": chosen,
        "seconds": {method: _spread(values) for method, values in seconds.items()},
        "over_plain": over_plain,
        "over_others": others,
        "peak_memory_mb": memory,
        "memory_over_plain": memory["fisher"] / memory["plain"],
        "targets": {
            "over_plain": _judged(over_plain["median"], TARGETS[network]),
            "over_faster_other": _judged(max(ratio["median"] for ratio in others.values()), 1.0),
            "memory_over_plain": _judged(memory["fisher"] / memory["plain"], MEMORY_TARGET),
        },
    }


def _judged(value: float, most: float) -> dict[str, Any]:
    return {"value": value, "at_most": most, "met": value <= most}


def _ratio(ours: list[float], theirs: list[float]) -> dict[str, float]:
    return _spread([left / right for left, right in zip(ours, theirs, strict=True)])


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def show(records: list[dict[str, Any]]) -> None:
    """Print the table."""

    def cell(spread: dict[str, float]) -> str:
        return f"{spread['median']:.2f} ({spread['min']:.2f} to {spread['max']:.2f})"

    table = Table(
        "network", "batch", "fisher / plain", "fisher / vmap", "fisher / BackPACK", "memory / plain", "missed"
    )
    for record in records:
        table.add_row(
            record["network"],
            str(record["batch_size"]),
            cell(record["over_plain"]),
            *(cell(record["over_others"][name]) if name in record["over_others"] else "" for name in OTHERS),
            f"{record['memory_over_plain']:.2f}",
            ", ".join(name for name, target in record["targets"].items() if not target["met"]),
        )
    Console(width=130).print(table)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=512)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[FisherOptions().batch_size])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--networks", choices=NETWORKS, nargs="+", default=list(NETWORKS))
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    records = [
        bench(network, options.points, size, options.repeats)
        for network in options.networks
        for size in options.batch_sizes
    ]
    show(records)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "command": " ".join(["python", *sys.argv]),
            "torch": torch.__version__,
            "threads": 1,
            "repeats": options.repeats,
            "records": records,
        }
        options.output.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
