"""Reproduce the paper's tables and figures, and prove the default encoder: see docs/results.md.

    python scripts/reproduce_paper.py --data-dir ../shared/data [--quick]
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

from scripts.reproduce.originals import Originals, Recipe
from scripts.reproduce.settings import MINILM, RESNET, RESNET_BN, SMALL_CNN
from scripts.reproduce.tasks import Data


def _train(recipe: Recipe, data: Data, task: str | None, seed: int) -> str:
    torch.set_num_threads(1)
    started = time.process_time()
    originals = Originals(recipe, data)
    if task is None:
        originals.pretrained()
    else:
        originals.original(task, seed)
    return f"{recipe.network} {task or 'start'} {seed}: {time.process_time() - started:.0f} s"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data-dir", type=Path, default=Path("../shared/data"))
    parser.add_argument("--cache", type=Path, default=Path("artifacts/reproduce"))
    options = parser.parse_args()
    data = Data(options.data_dir, options.cache)
    data.images("cifar10", "train")
    data.images("cifar10", "test")
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        starts = [pool.submit(_train, recipe, data, None, 0) for recipe in (RESNET, RESNET_BN)]
        first = [(recipe, task, 0) for recipe in (SMALL_CNN,) for task in recipe.tasks]
        futures = [pool.submit(_train, recipe, data, task, seed) for recipe, task, seed in first]
        for future in starts:
            print(future.result(), flush=True)
        for seed in range(3):
            for recipe in (RESNET, RESNET_BN, SMALL_CNN, MINILM):
                futures += [pool.submit(_train, recipe, data, task, seed) for task in recipe.tasks]
        for future in futures:
            print(future.result(), flush=True)


if __name__ == "__main__":
    main()
