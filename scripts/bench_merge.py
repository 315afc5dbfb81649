"""Measure a streaming merge against reading and writing the same files: speed, and resident memory at its peak.

    python scripts/bench_merge.py [--output docs/results/merge.json]

k = 4 checkpoints of 500 MB in float32, and statistics of the same size for COIN. "copy" reads the very same files in
the same slices with the same threads, and writes one output of the same size: a merge without arithmetic. Methods take
turns within each repeat, and ratios are of neighbouring runs. Files are in the page cache, so the disk does not count.
Memory is the peak of the resident set of a process that does nothing else, torch included.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file

from coin_export.fisher.diagonal import DiagonalFisher
from coin_export.fisher.files import write_statistics
from coin_export.merge import merge

COUNT = 4
SHAPES = [(4096, 4096)] * 7 + [(4096, 1760)]
TARGET = 0.5
SLICE_BYTES = 4 * 2**18  # what a merge takes of a float32 checkpoint at once
METHODS = {"average": 0, "coin": COUNT}  # files of statistics


def make_files(folder: Path, scale: float) -> tuple[list[Path], list[Path]]:
    """Write checkpoints and statistics of random numbers."""
    shapes = [(max(1, int(rows * scale)), columns) for rows, columns in SHAPES]
    models, fishers = [], []
    for index in range(COUNT):
        torch.manual_seed(index)
        state = {f"layers.{number}.weight": torch.randn(shape) for number, shape in enumerate(shapes)}
        models.append(folder / f"model_{index}.safetensors")
        save_file(state, models[-1])
        for tensor in state.values():
            tensor.square_()
        fishers.append(folder / f"fisher_{index}.safetensors")
        write_statistics(DiagonalFisher(state, 1, 0, 0), fishers[-1])
    return models, fishers


def copy(paths: Sequence[Path], target: Path, threads: int) -> None:
    """Read all of ``paths`` and write as much as the first holds."""
    size = paths[0].stat().st_size
    readers = [os.open(path, os.O_RDONLY) for path in paths]
    writer = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    def move(starts: range) -> None:
        buffers = [memoryview(bytearray(SLICE_BYTES)) for _ in paths]
        for start in starts:
            counts = [os.preadv(reader, [buffer], start) for reader, buffer in zip(readers, buffers, strict=True)]
            os.pwrite(writer, buffers[0][: counts[0]], start)

    try:
        with ThreadPoolExecutor(threads) as pool:
            parts = [range(n * SLICE_BYTES, size, threads * SLICE_BYTES) for n in range(threads)]
            list(pool.map(move, parts))
    finally:
        for descriptor in (*readers, writer):
            os.close(descriptor)


def runs_of(models: list[Path], fishers: list[Path], target: Path, threads: int) -> dict[str, Callable[[], object]]:
    """Return what each method and its counterpart do."""
    runs: dict[str, Callable[[], object]] = {}
    for name, count in METHODS.items():
        used = fishers[:count]
        runs[name] = partial(merge, models, [1.0] * COUNT, target, fishers=used, threads=threads)
        runs[f"copy for {name}"] = partial(copy, [*models, *used], target, threads)
    return runs


def measure_times(runs: dict[str, Callable[[], object]], target: Path, repeats: int) -> dict[str, list[float]]:
    """Return seconds of each repeat; a first one that is not counted brings the files into the page cache."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            target.unlink(missing_ok=True)
            start = time.perf_counter()
            run()
            if repeat:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def peak_memory(arguments: tuple[list[Path], list[Path], Path, int, str]) -> float:
    """Return the peak of the resident set in MB; call it in a fresh process (Linux)."""
    models, fishers, target, threads, name = arguments
    runs_of(models, fishers, target, threads)[name]()
    # Not getrusage, whose peak is inherited from the process that started this one.
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


def record(name: str, seconds: dict[str, list[float]], memory: float, sizes: tuple[int, int]) -> dict[str, Any]:
    """Sum up one method."""
    own, plain = seconds[name], seconds[f"copy for {name}"]
    ratios = [other / mine for mine, other in zip(own, plain, strict=True)]
    moved = sum(sizes)
    return {
        "method": name,
        "files_read": COUNT + METHODS[name],
        "read_bytes": sizes[0],
        "written_bytes": sizes[1],
        "seconds_median": statistics.median(own),
        "seconds": own,
        "copy_seconds_median": statistics.median(plain),
        "copy_seconds": plain,
        "gb_per_s": moved / statistics.median(own) / 1e9,
        "speed_of_copy_median": statistics.median(ratios),
        "speed_of_copy_range": [min(ratios), max(ratios)],
        "speed_target": TARGET,
        "peak_memory_mb": memory,
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("docs/results/merge.json"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--scale", type=float, default=1.0, help="of the files' size; 1 is 500 MB each")
    parser.add_argument("--work-dir", type=Path, help="where the files are made; the system's temporary folder")
    options = parser.parse_args()
    torch.set_num_threads(1)
    records = []
    with tempfile.TemporaryDirectory(prefix="coin_export_bench_", dir=options.work_dir) as folder:
        target = Path(folder) / "out.safetensors"
        models, fishers = make_files(Path(folder), options.scale)
        seconds = measure_times(runs_of(models, fishers, target, options.threads), target, options.repeats)
        context = multiprocessing.get_context("spawn")
        for name, count in METHODS.items():
            with context.Pool(1) as pool:
                (memory,) = pool.map(peak_memory, [(models, fishers, target, options.threads, name)])
            read = sum(path.stat().st_size for path in [*models, *fishers[:count]])
            records.append(record(name, seconds, memory, (read, target.stat().st_size)))
    _print(records)
    content = {
        "command": f"python scripts/bench_merge.py --repeats {options.repeats}",
        "repeats": options.repeats,
        "threads": options.threads,
        "machine": f"{platform.machine()}, {os.cpu_count()} processors",
        "torch": torch.__version__,
        "records": records,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _print(records: Sequence[dict[str, Any]]) -> None:
    table = Table("method", "GB read", "GB written", "s", "copy s", "GB/s", "speed of copy (range)", "peak MB")
    for item in records:
        low, high = item["speed_of_copy_range"]
        table.add_row(
            item["method"],
            f"{item['read_bytes'] / 1e9:.2f}",
            f"{item['written_bytes'] / 1e9:.2f}",
            f"{item['seconds_median']:.2f}",
            f"{item['copy_seconds_median']:.2f}",
            f"{item['gb_per_s']:.2f}",
            f"{item['speed_of_copy_median']:.2f} ({low:.2f} to {high:.2f})",
            f"{item['peak_memory_mb']:.0f}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
