"""Training originals and running cells in worker processes of one thread each; what is kept is not done again."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from functools import partial
from itertools import groupby
from multiprocessing import get_context
from typing import Any

import torch

from scripts.reproduce.cache import kept_json
from scripts.reproduce.cells import Cell
from scripts.reproduce.measuring import Record, measure
from scripts.reproduce.methods import ALIKE, DEFAULT
from scripts.reproduce.originals import Originals, Recipe
from scripts.reproduce.tasks import Data

Tell = Callable[[str], None]
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def train_all(cells: Sequence[Cell], data: Data, workers: int, tell: Tell) -> None:
    """Train every original that the cells need and that is not there yet, the common starts first."""
    with _pool(workers) as pool:
        _train_all(pool, cells, data, tell)


def run_cells(cells: Sequence[Cell], data: Data, workers: int, tell: Tell) -> None:
    """Run every cell that has not been run yet; a cell that is done stays done if the rest is interrupted.

    Groups of cells with the same originals run in order, each after its originals were trained, so that first results
    do not wait for all training; within a group the default encoder, which takes longest, comes first.

    Raises:
        RuntimeError: names the cells that failed, once all others are done.
    """
    waiting = [cell for cell in cells if not cell.path(data.cache).exists()]
    tell(f"{len(cells) - len(waiting)} of {len(cells)} cells are done")
    running: list[tuple[Cell, Future[str]]] = []
    with _pool(workers) as pool:
        for _, alike in groupby(waiting, key=lambda cell: (cell.setting.recipe, cell.seed)):
            group = sorted(alike, key=lambda cell: cell.method not in (ALIKE, DEFAULT))
            _train_all(pool, group, data, tell)  # while cells of the group before run
            for cell in group:
                future = pool.submit(_run, cell, data)
                future.add_done_callback(partial(_tell_end, cell, tell))
                running.append((cell, future))
    failed = [_failure(cell, error) for cell, future in running if (error := future.exception())]
    if failed:
        raise RuntimeError("cells that failed:\n" + "\n".join(failed))


def _tell_end(cell: Cell, tell: Tell, future: Future[str]) -> None:
    error = future.exception()
    tell(future.result() if error is None else _failure(cell, error))


def _failure(cell: Cell, error: BaseException) -> str:
    return f"{cell.title}: {type(error).__name__}: {error}"


def _train_all(pool: Executor, cells: Sequence[Cell], data: Data, tell: Tell) -> None:
    wanted = dict.fromkeys((cell.setting.recipe, task, cell.seed) for cell in cells for task in cell.setting.tasks)
    recipes = dict.fromkeys(recipe for recipe, _, _ in wanted)
    if any(task == "cifar10" for _, task, _ in wanted):
        for part in ("train", "test"):
            data.images("cifar10", part)  # decoded once, not by each worker
    starts = [pool.submit(_pretrain, recipe, data) for recipe in recipes if recipe.pretraining is not None]
    for start in starts:
        tell(start.result())
    for original in [pool.submit(_train, *original, data) for original in wanted]:
        tell(original.result())


def done(cells: Iterable[Cell], data: Data, earlier: Sequence[Record] = ()) -> list[list[Record]]:
    """Return the records of each cell that has been run.

    Args:
        cells: those that are asked for.
        data: where they are kept.
        earlier: records of another run, for the cells that are not in this one's cache.
    """
    found = []
    for cell in cells:
        path = cell.path(data.cache)
        if path.exists():
            found.append([{"cell": path.stem, **record} for record in _kept(cell, data)])
        elif taken_over := [record for record in earlier if record["cell"] == path.stem]:
            found.append(taken_over)
    return found


def _kept(cell: Cell, data: Data) -> list[Record]:
    records: list[Record] = kept_json(cell.path(data.cache), lambda: measure(cell, data))
    return records


def _pool(workers: int) -> ProcessPoolExecutor:
    for name in _THREADS:  # read when a worker loads its libraries
        os.environ[name] = "1"
    return ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    )


def _pretrain(recipe: Recipe, data: Data) -> str:
    return _timed(f"{recipe.network}: common start", Originals(recipe, data).pretrained)


def _train(recipe: Recipe, task: str, seed: int, data: Data) -> str:
    return _timed(f"{recipe.network}: {task}, seed {seed}", lambda: Originals(recipe, data).original(task, seed))


def _run(cell: Cell, data: Data) -> str:
    return _timed(cell.title, lambda: _kept(cell, data))


def _timed(title: str, work: Callable[[], Any]) -> str:
    started = time.process_time()
    work()
    return f"{title} ({time.process_time() - started:.0f} s of processor time)"
