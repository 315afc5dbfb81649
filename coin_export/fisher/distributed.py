"""Statistics by several processes: each takes a part of the points, and the sums are added.

Started by ``torchrun``, or inside any process group of `torch.distributed`. On a single process nothing is different.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
import torch.distributed.nn  # before any group is joined: see `process_group`

from coin_export.datasets.calibration import CalibrationInputs
from coin_export.fisher.diagonal import DiagonalFisher, averaged, summed_squares
from coin_export.fisher.general import parameters_and_constants
from coin_export.fisher.options import FisherOptions
from coin_export.model.signature import Original


@contextmanager
def process_group() -> Iterator[int]:
    """Join the processes that ``torchrun`` started, over gloo, while the block runs.

    The group's threads end with the block. They would outlive it, and now and then abort the process as the interpreter
    ends, if `torch.distributed.nn` were first imported inside (by the compiler, say): its functions keep the group of
    the moment as the default of an argument.

    Yields:
        This process's rank: 0 when it is alone.
    """
    if not dist.is_available() or dist.is_initialized() or int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
        return
    dist.init_process_group("gloo")
    try:
        yield dist.get_rank()
    finally:
        dist.destroy_process_group()


def part_of(points: int, rank: int, processes: int) -> range:
    """Return the points of one process: all parts together are all points, and none is larger by more than one."""
    return range(points * rank // processes, points * (rank + 1) // processes)


def distributed_diagonal_fisher(
    original: Original, calibration: CalibrationInputs, options: FisherOptions
) -> DiagonalFisher:
    """Estimate the diagonal of the Fisher information as `diagonal_fisher` does, with all processes of the group.

    Every process gives the same arguments and gets the same result: up to the rounding of sums in float64, that of a
    single process.

    Raises:
        CoinExportError: as `diagonal_fisher`. The others then wait for this process; ``torchrun`` ends them.
    """
    rank, processes = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    part = part_of(len(calibration), rank, processes)
    totals = summed_squares(original, calibration, options, part)
    parameters, _ = parameters_and_constants(original.module)
    counted = torch.tensor(len(part))
    if processes > 1:
        for name, parameter in parameters.items():  # in the same order everywhere
            totals.setdefault(name, torch.zeros(parameter.shape, dtype=torch.float64))
            dist.all_reduce(totals[name])
        dist.all_reduce(counted)
    return averaged(original, options, totals, int(counted))
