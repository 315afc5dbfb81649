"""Try an encoder with other options on a setting of the reproduction; prints what it reaches and keeps no record.

    python scripts/try_encoder.py "resnet cifar10+mnist" 500 refine '{"budget": 512000}'

The settings are those of `scripts/reproduce/settings.py`. Originals are trained if the cache lacks them.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch

from scripts.reproduce.cells import Cell
from scripts.reproduce.measuring import measure
from scripts.reproduce.methods import METHODS, with_options
from scripts.reproduce.settings import FULL
from scripts.reproduce.summary import NORMALIZED, TRAIN
from scripts.reproduce.tasks import Data

SETTINGS = {setting.name: setting for setting in FULL.settings}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one cell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("setting", choices=SETTINGS)
    parser.add_argument("points", type=int, help="calibration inputs of each task")
    parser.add_argument("encoder", choices=METHODS)
    parser.add_argument("changed", type=json.loads, nargs="?", default={}, help="options to change, a JSON object")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--test-points", type=int, help="of each task; default: all")
    parser.add_argument("--data-dir", type=Path, default=Path("../shared/data"), help="folder with the data sets")
    parser.add_argument("--cache", type=Path, default=Path("artifacts/reproduce"), help="trained originals")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    setting, options = SETTINGS[given.setting], with_options(METHODS[given.encoder], given.changed)
    cell = Cell("comparison", setting, given.encoder, options, given.points, given.seed, given.test_points)
    records = [
        record for record in measure(cell, Data(given.data_dir, given.cache)) if len(record["erased"]) == record["m"]
    ]
    reached = {
        NORMALIZED: statistics.fmean(record[NORMALIZED] for record in records),
        TRAIN: statistics.fmean(record[TRAIN] for record in records),
        "coefficients": records[0]["coefficients"],
        "by_model": {" + ".join(record["erased"]): record["by_model"] for record in records},
        "encode_seconds": records[0]["encode_seconds"],
        "notes": records[0]["notes"],
    }
    print(json.dumps(reached))


if __name__ == "__main__":
    main()
