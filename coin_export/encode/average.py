"""Plain averaging: theta_c = sum_i beta_i theta_i."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from coin_export.datasets.calibration import CalibrationInputs
from coin_export.encode.barycenter import barycenter
from coin_export.encode.cost import CostMeter
from coin_export.encode.encoding import Encoding
from coin_export.model.signature import Original


class AverageOptions(BaseModel):
    """Plain averaging has nothing to choose."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["average"] = Field(default="average", description="Plain weighted average; needs no statistics.")


def average(
    originals: Sequence[Original],
    coefficients: Sequence[float],
    calibration: CalibrationInputs,
    options: AverageOptions,
    cache: Path | None = None,
) -> Encoding:
    """Average the originals' weights; see `Encoder`."""
    meter = CostMeter()
    state_dict = barycenter(originals, coefficients)
    return Encoding(state_dict, meter.cost())
