"""The best of the closed forms, chosen by how well it decodes held-out inputs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from coin_export.code.linear import LinearCode
from coin_export.datasets.calibration import CalibrationInputs
from coin_export.encode.batch_norm import BatchNormPolicy
from coin_export.encode.cost import CostMeter, Passes
from coin_export.encode.criterion import Criterion, CriterionName
from coin_export.encode.encoding import Encoding
from coin_export.encode.held_out import HeldOut
from coin_export.encode.selection import ClosedForm, best_closed_forms
from coin_export.encode.teachers import Teachers
from coin_export.model.signature import Original


class AutoOptions(BaseModel):
    """Among what to choose, and on what."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["auto"] = Field(default="auto", description="The best of the closed forms; no training.")
    candidates: tuple[ClosedForm, ...] = Field(
        default=("average", "coin", "head", "regmean", "regress"),
        min_length=1,
        description="The encoders to try, with their default options, coin with a damping of 0.3; head is the plain "
        "average with its last layer regressed.",
    )
    criterion: CriterionName = Field(
        default="divergence",
        description="divergence: between the softmax of decoded outputs and that of the originals' own; error: their "
        "mean squared difference, for outputs that are no logits.",
    )
    batch_norm: BatchNormPolicy = Field(
        default="auto",
        description="BatchNorm: running statistics averaged over the originals (average), or those of the coded "
        "model's own features on the calibration inputs (estimate); itself folded into the layer before it in all "
        "originals first (fold; as average where nothing can be folded); or whichever decodes best (auto).",
    )
    held_out: float = Field(
        default=0.2, gt=0, lt=1, description="Share of the calibration inputs that decides and is not used otherwise."
    )
    seed: int = Field(default=0, ge=0, description="Seed of the split.")


def auto(
    originals: Sequence[Original],
    code: LinearCode,
    calibration: CalibrationInputs,
    options: AutoOptions,
    cache: Path | None = None,
) -> list[Encoding]:
    """Try the closed forms and keep the one that decodes held-out inputs best; see `Encoder`.

    Raises:
        CalibrationError: if there are fewer than two points.
        CoinExportError: as `best_closed_forms`.
    """
    meter = CostMeter()
    used, decides = calibration.split(options.held_out, options.seed)
    teachers = Teachers(originals, Passes())
    held_out = HeldOut(teachers, Criterion(code, options.criterion), decides)
    (choice,) = best_closed_forms(originals, code, used, [options.candidates], options.batch_norm, cache, held_out)
    notes = {
        "chosen": choice.name,
        "why": f"least {options.criterion} of the decoded outputs on {len(decides)} held-out points",
        "held_out_errors": dict(choice.errors),
    }
    return meter.share(choice.states, teachers.passes, notes)
