"""A batch job: every row of an .npz file through a coded group, a bounded number of requests at a time.

    coin-export serve model_repository --per-model --grpc-port 8001        # as `make demo` leaves it: three servers
    python examples/batch_job.py inputs.npz answers.npz 127.0.0.1:8001 127.0.0.1:8002 127.0.0.1:8003

The file holds one array per input of the group, each of shape (points, ...). The answers' file gets one array
``MODEL/OUTPUT`` per original and output, in the order of the points, and ``MODEL/source``: 0 where the model itself
answered, 1 where its answer was decoded, 2 where there is none (such rows hold NaN). Ends with 1 if any is missing.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from coin_export.client import Answer, Answers, CodedClient, Source
from coin_export.code.manifest import Group
from coin_export.errors import CoinExportError, UndecodableError

DIRECT, DECODED, MISSING = 0, 1, 2
Array = np.ndarray[Any, Any]


@dataclass
class ModelResult:
    """What one original answered.

    Attributes:
        points: how many there are.
        outputs: by name, of shape (points, ...).
        source: of each point.
        accuracy: of each point, the accuracy in % that was measured at build for such an answer; NaN if none was.
    """

    points: int
    outputs: dict[str, Array] = field(default_factory=dict)
    source: Array = field(init=False)
    accuracy: Array = field(init=False)

    def __post_init__(self) -> None:
        self.source = np.full(self.points, MISSING, np.int8)
        self.accuracy = np.full(self.points, np.nan)

    def put(self, rows: slice, answer: Answer, direct_accuracy: float | None) -> None:
        """Keep the answer for some points."""
        for name, array in answer.outputs.items():
            if name not in self.outputs:
                self.outputs[name] = np.full((self.points, *array.shape[1:]), np.nan, array.dtype)
            self.outputs[name][rows] = array
        decoded_accuracy = None if answer.quality is None else answer.quality.degraded_accuracy
        direct = answer.source is Source.DIRECT
        accuracy = direct_accuracy if direct else decoded_accuracy
        self.source[rows] = DIRECT if direct else DECODED
        self.accuracy[rows] = np.nan if accuracy is None else accuracy

    def summary(self) -> str:
        """Say how many answers came from where, and what they are worth together."""
        direct, decoded, missing = (int((self.source == source).sum()) for source in (DIRECT, DECODED, MISSING))
        known = self.accuracy[~np.isnan(self.accuracy)]
        worth = f"{known.mean():.1f} %" if len(known) == direct + decoded > 0 else "not measured at build"
        return f"{direct} direct, {decoded} decoded, {missing} missing; expected accuracy {worth}"


async def run(
    client: CodedClient, inputs: dict[str, Array], *, batch: int, concurrency: int, deadline_s: float
) -> dict[str, ModelResult]:
    """Ask for every point; what cannot be answered in time is left out, and the job goes on."""
    points = len(next(iter(inputs.values())))
    results = {member.name: ModelResult(points) for member in client.group.originals}
    accuracies = {member.name: member.accuracy for member in client.group.originals}
    parts = _parts(points, batch)

    async def work() -> None:
        for rows in parts:  # all workers draw from the same iterator
            for model, answer in (await _ask(client, inputs, rows, deadline_s)).items():
                if model in results:  # coded models are no use by themselves
                    results[model].put(rows, answer, accuracies[model])

    await asyncio.gather(*(work() for _ in range(concurrency)))
    return results


def _parts(points: int, batch: int) -> Iterator[slice]:
    for start in range(0, points, batch):
        yield slice(start, min(start + batch, points))


async def _ask(
    client: CodedClient, inputs: dict[str, Array], rows: slice, deadline_s: float
) -> Answers | dict[str, Answer]:
    try:
        return await client.infer({name: array[rows] for name, array in inputs.items()}, deadline=deadline_s)
    except UndecodableError as error:
        print(f"points {rows.start} to {rows.stop - 1}: {error}", file=sys.stderr)
        return error.arrived


def save(results: dict[str, ModelResult], path: Path) -> None:
    """Write the answers."""
    arrays = {f"{model}/source": result.source for model, result in results.items()}
    for model, result in results.items():
        arrays |= {f"{model}/{name}": array for name, array in result.outputs.items()}
    np.savez(path, **arrays)


def report(group: Group, results: dict[str, ModelResult]) -> None:
    """Print the summary."""
    print(f"group {group.name}: {len(next(iter(results.values())).source)} points")
    for model, result in results.items():
        print(f"  {model}: {result.summary()}")


async def job(options: argparse.Namespace) -> int:
    """Read, ask, write, report; return the exit code."""
    with np.load(options.inputs, allow_pickle=False) as file:
        inputs = {name: file[name] for name in file.files}
    async with CodedClient(options.addresses) as client:
        results = await run(
            client, inputs, batch=options.batch, concurrency=options.concurrency, deadline_s=options.deadline
        )
        report(client.group, results)
    save(results, options.answers)
    return int(any((result.source == MISSING).any() for result in results.values()))


def main() -> None:
    """Run the job."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", type=Path, help="an .npz file with one array per input")
    parser.add_argument("answers", type=Path, help="the .npz file to write")
    parser.add_argument("addresses", nargs="+", metavar="HOST:PORT", help="the Triton servers' gRPC endpoints")
    parser.add_argument("--batch", type=int, default=32, help="points per request")
    parser.add_argument("--concurrency", type=int, default=8, help="requests under way")
    parser.add_argument("--deadline", type=float, default=5.0, help="seconds per request")
    options = parser.parse_args()
    try:
        sys.exit(asyncio.run(job(options)))
    except (CoinExportError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
