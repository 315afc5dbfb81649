"""What counts as a usable answer, whatever its datatype and size."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from coin_export.client.signature import Signature
from tests.client.fake_triton import CLASSES, make_group

DTYPES: dict[str, type[np.floating[Any]]] = {"FP16": np.float16, "FP32": np.float32, "FP64": np.float64}

BATCHES = (3, 300)  # few and many numbers


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("datatype", DTYPES)
@pytest.mark.parametrize("value", [0.0, -1.0, "largest", "smallest"])
def test_every_finite_number_is_usable(datatype: str, value: Any, batch: int) -> None:
    limits = np.finfo(DTYPES[datatype])
    number = {"largest": limits.max, "smallest": limits.min}.get(value, value)
    assert problem_with(datatype, np.full((batch, CLASSES), number, DTYPES[datatype])) == ""


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("datatype", DTYPES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_number_that_is_not_finite_makes_an_answer_unusable(datatype: str, value: float, batch: int) -> None:
    array = np.ones((batch, CLASSES), DTYPES[datatype])
    array[2, 1] = value
    assert "contains NaN or infinity" in problem_with(datatype, array)


def problem_with(datatype: str, array: np.ndarray[Any, Any]) -> str:
    group = make_group()
    signature = Signature(replace(group, outputs=(replace(group.outputs[0], dtype=datatype),)), 0)
    return signature.problem_with(0, {"logits": array}, len(array), None)
