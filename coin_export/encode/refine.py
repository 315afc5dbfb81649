"""Refining a closed form: a short label-free distillation from the best of them.

A barycenter is a far better start than fresh weights, so few steps suffice, and few points: the originals answer
mixtures and shifts of them as well. All coded models of a code are fitted together, to what decoding makes of them in
every erasure pattern. What cannot be known beforehand (which start, which learning rate, when to stop) is decided by
the same criterion on calibration inputs held out from everything else.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from coin_export.code.linear import LinearCode
from coin_export.datasets.calibration import CalibrationInputs
from coin_export.encode.augmentation import AugmentationOptions
from coin_export.encode.batch_norm import BatchNormPolicy
from coin_export.encode.cost import CostMeter, Passes
from coin_export.encode.criterion import Criterion, CriterionName
from coin_export.encode.distillation import OptimizerName, Schedule, fit, train_what_differs
from coin_export.encode.encoding import Encoding, StateDict
from coin_export.encode.selection import ClosedForm, HeldOut, best_closed_form
from coin_export.encode.teachers import Teachers, finished_state, working_copy, working_inputs
from coin_export.model.signature import Original

LearningRate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_CHECKS = 20


class RefineOptions(BaseModel):
    """How a closed form is refined."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["refine"] = Field(
        default="refine", description="Short label-free distillation from the best closed form."
    )
    budget: int = Field(
        default=64_000,
        ge=1,
        description="Points learnt from, each counted as often as it is shown; more is better, with diminishing "
        "returns, and the time grows with it.",
    )
    batch_size: int = Field(default=64, ge=1, description="Points in a step.")
    learning_rates: tuple[LearningRate, ...] = Field(
        default=(3e-4, 1e-3, 3e-3), min_length=1, description="Tried in short runs; the best is used."
    )
    trial_steps: int = Field(default=40, ge=1, description="Steps of each short run; none run for a single rate.")
    optimizer: OptimizerName = Field(
        default="muon",
        description="muon: orthogonal steps for matrices and kernels, Adam for the rest; or adam alone.",
    )
    criterion: CriterionName = Field(
        default="divergence",
        description="What is descended on, and decides. divergence: of the softmax of decoded outputs from that of the "
        "originals' own; error: their mean squared difference, for outputs that are no logits.",
    )
    augmentation: AugmentationOptions = Field(
        default=AugmentationOptions(), description="Mixtures and shifts of floating-point inputs."
    )
    starts: tuple[ClosedForm, ...] = Field(
        default=("average", "coin", "head", "regress"),
        min_length=1,
        description="Closed forms to try as a start; head is the plain average with its last layer regressed.",
    )
    batch_norm: BatchNormPolicy = Field(
        default="auto",
        description="Running statistics of BatchNorm: averaged over the originals (average), those of the coded "
        "model's own features on the calibration inputs (estimate), or whichever decodes better (auto).",
    )
    held_out: float = Field(
        default=0.05,
        gt=0,
        lt=1,
        description="Share of the calibration inputs that decides and is not learnt from. Small, since points to learn "
        "from count more.",
    )
    seed: int = Field(default=0, ge=0, description="Seed of the split, of the order of points and of augmentation.")


def refine(
    originals: Sequence[Original],
    code: LinearCode,
    calibration: CalibrationInputs,
    options: RefineOptions,
    cache: Path | None = None,
) -> list[Encoding]:
    """Refine the best closed form; see `Encoder`. On the held-out part the result is never worse than its start.

    Parameters that are equal in all originals, such as those of a shared backbone, stay as they are.

    Raises:
        CalibrationError: if there are fewer than two points.
        CoinExportError: as `best_closed_form`.
    """
    meter = CostMeter()
    learnt_from, decides = calibration.split(options.held_out, options.seed)
    teachers, criterion = Teachers(originals, Passes()), Criterion(code, options.criterion)
    held_out = HeldOut(teachers, criterion, decides)
    start = best_closed_form(originals, code, learnt_from, options.starts, options.batch_norm, cache, held_out)
    inputs = working_inputs(learnt_from)

    def descend(schedule: Schedule) -> _BestIterate:
        modules = [train_what_differs(working_copy(originals[0], state), originals) for state in start.states]
        best = _BestIterate(modules, held_out, start.errors[start.name], schedule.steps)
        fit(modules, teachers, criterion, inputs, schedule, options.seed, options.augmentation, best)
        return best

    steps = math.ceil(options.budget / options.batch_size)
    schedule = Schedule(steps, options.batch_size, options.learning_rates[0], options.optimizer)
    short = replace(schedule, steps=options.trial_steps)
    rates = options.learning_rates if len(options.learning_rates) > 1 else ()
    trials = {rate: descend(replace(short, learning_rate=rate)).last for rate in rates}
    if trials:
        schedule = replace(schedule, learning_rate=min(trials, key=lambda rate: trials[rate]))
    best = descend(schedule)
    notes = {
        "start": start.name,
        "start_errors": dict(start.errors),
        "learning_rate": schedule.learning_rate,
        "trial_errors": {f"{rate:g}": error for rate, error in trials.items()},
        "steps": steps,
        "best_step": best.step,
        "held_out_error": best.error,
    }
    return meter.share(best.finished(originals[0]) or start.states, teachers.passes, notes)


class _BestIterate:
    """Looks at the coded models every few steps and keeps their weights when they beat all before."""

    def __init__(self, modules: Sequence[torch.nn.Module], held_out: HeldOut, error: float, steps: int) -> None:
        self._modules = modules
        self._held_out = held_out
        self._steps = steps
        self._every = max(1, steps // _CHECKS)
        self._states: list[StateDict] = []
        self.step = 0
        self.error = error
        self.last = error

    def __call__(self, step: int) -> None:
        if step % self._every and step != self._steps:
            return
        self.last = self._held_out.error(self._modules)
        if self.last < self.error:
            self.step, self.error = step, self.last
            self._states = [copy.deepcopy(module.state_dict()) for module in self._modules]

    def finished(self, original: Original) -> list[StateDict]:
        """Return the best weights, in the original's dtypes; none if nothing has beaten the start."""
        for module, state in zip(self._modules, self._states, strict=False):
            module.load_state_dict(state)
        return [finished_state(module, original) for module in self._modules] if self._states else []
