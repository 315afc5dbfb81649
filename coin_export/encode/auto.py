"""The best of the closed forms: plain averaging and COIN with a few dampings, chosen on held-out inputs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from coin_export.datasets.calibration import CalibrationInputs
from coin_export.encode.combination import Combination
from coin_export.encode.cost import CostMeter, Passes
from coin_export.encode.encoding import Encoding
from coin_export.encode.selection import Dampings, HeldOut, best_barycenter
from coin_export.model.signature import Original


class AutoOptions(BaseModel):
    """Among what to choose, and on what."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["auto"] = Field(default="auto", description="The best of plain averaging and COIN; no training.")
    dampings: Dampings = Field(
        default=(0.01, 0.1, 1.0), description="COIN's dampings to try, besides the plain average."
    )
    held_out: float = Field(
        default=0.2, gt=0, lt=1, description="Share of the calibration inputs that decides and is not used otherwise."
    )
    seed: int = Field(default=0, ge=0, description="Seed of the split.")


def auto(
    originals: Sequence[Original],
    coefficients: Sequence[float],
    calibration: CalibrationInputs,
    options: AutoOptions,
    cache: Path | None = None,
) -> Encoding:
    """Try the closed forms and keep the one whose outputs match best on held-out inputs; see `Encoder`.

    Raises:
        CalibrationError: if there are fewer than two points.
        CoinExportError: as `best_barycenter`.
    """
    meter = CostMeter()
    used, decides = calibration.split(options.held_out, options.seed)
    combination = Combination(originals, coefficients, Passes())
    held_out = HeldOut(combination, decides)
    choice = best_barycenter(originals, coefficients, used, options.dampings, cache, combination, held_out)
    passes = combination.passes
    notes = {
        "chosen": choice.name,
        "why": f"least mean squared error of the outputs on {len(decides)} held-out points",
        "held_out_errors": dict(choice.errors),
    }
    return Encoding(choice.encoding.state_dict, meter.cost(passes.forward, passes.backward), notes)
