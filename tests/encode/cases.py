"""Originals for the tests of encoders."""

import copy

import numpy as np
import torch
from torch import nn

from coin_export.code.linear import LinearCode
from coin_export.datasets.calibration import CalibrationInputs
from coin_export.encode.cost import Passes
from coin_export.encode.criterion import Criterion
from coin_export.encode.encoding import StateDict
from coin_export.encode.held_out import HeldOut
from coin_export.encode.teachers import Teachers, working_copy
from coin_export.model.signature import Original, infer_signature
from tests.reference.networks import CASES


def normal_points(points: int = 60, *shape: int) -> CalibrationInputs:
    values = np.random.default_rng(1).normal(size=(points, *(shape or (3,)))).astype(np.float32)
    return CalibrationInputs({"x": values})


def originals_of(*modules: nn.Module, calibration: CalibrationInputs | None = None) -> list[Original]:
    calibration = calibration or normal_points()
    return [
        Original(f"model_{index}", module.eval(), infer_signature(module, calibration))
        for index, module in enumerate(modules)
    ]


def deep_linear() -> nn.Module:
    """Linear in its input but not in its weights: the combination can be reached, and the average misses it."""
    return nn.Sequential(nn.Linear(3, 6, bias=False), nn.Linear(6, 2))


def deep_linear_originals(count: int = 2) -> list[Original]:
    torch.manual_seed(3)
    return originals_of(*(deep_linear() for _ in range(count)))


def trio(case: str) -> list[Original]:
    return [CASES[case].original(name, seed) for seed, name in enumerate("abc")]


def twins(case: str) -> list[Original]:
    one = CASES[case].original("a")
    return [one, Original("b", copy.deepcopy(one.module), one.signature)]


def output_error(
    state: StateDict, originals: list[Original], coefficients: list[float], points: CalibrationInputs
) -> float:
    """Return the mean squared error of the coded model's outputs."""
    error = Criterion(LinearCode.from_rows([coefficients]), "error")
    return HeldOut(Teachers(originals, Passes()), error, points).error([working_copy(originals[0], state)])


def decoded_divergence(
    states: list[StateDict], originals: list[Original], rows: list[list[float]], points: CalibrationInputs
) -> float:
    criterion = Criterion(LinearCode.from_rows(rows), "divergence")
    modules = [working_copy(originals[0], state) for state in states]
    return HeldOut(Teachers(originals, Passes()), criterion, points).error(modules)


def same_bytes(left: StateDict, right: StateDict) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
