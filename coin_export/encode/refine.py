"""Refining a barycenter: a short label-free distillation from the best of them.

A barycenter is a far better start than fresh weights, so few steps suffice, and few points: the originals answer
mixtures of them, shifted, zoomed and turned, as well. All coded models of a code are fitted together, to what decoding
makes of them in every erasure pattern. What cannot be known beforehand (which start, which learning rate, when to stop)
is decided by the same criterion on calibration inputs held out from everything else.

How far to step does not depend on the network alone, but on how far its originals have moved from each other: learning
rates are in units of that; see `spreads`.

Regressed closed forms may be named as starts, too. They are fitted to the very points, so they are ahead before any
step, and behind after some, when they have lost more of what the originals know of other points. So different kinds of
starts race: each takes a short descent at one learning rate, the winner takes further ones at the other rates, and the
best of all goes on. Where inputs cannot be mixed, all there is to learn is learnt soon, and each trial takes the whole
of it.

A schedule must know its end, but how many steps a network needs cannot be known beforehand. So there are rungs:
descents with a schedule of their own, each from where the one before led and twice as long, until the budget is used up
or the criterion is good enough. A rate that serves a short descent may be too high for a long one, which then diverges:
a third of it takes over, from where the last good one led. Held-out points tell that, but they are too few to tell
which of two good ends is better: the later one is, on other inputs.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from coin_export.code.linear import LinearCode
from coin_export.datasets.calibration import CalibrationInputs
from coin_export.encode.augmentation import AugmentationOptions, can_mix
from coin_export.encode.batch_norm import BatchNormPolicy
from coin_export.encode.cost import CostMeter, Passes
from coin_export.encode.criterion import Criterion, CriterionName
from coin_export.encode.distillation import OptimizerName, Schedule, fit, train_what_differs
from coin_export.encode.encoding import Encoding, StateDict
from coin_export.encode.execution import Precision
from coin_export.encode.held_out import HeldOut
from coin_export.encode.selection import Choice, ClosedForm, best_closed_forms, families_of
from coin_export.encode.spread import spreads
from coin_export.encode.teachers import Teachers, finished_state, working_copy, working_inputs
from coin_export.model.signature import Original

_log = logging.getLogger(__name__)

_TRIALS = 4  # they take one in so many parts of the budget
_TRIAL = 3  # and each of them one in so many parts of the steps of the descents that follow
_DIVERGED = 3  # descents; after one more, there are no others
_SLOWER = 3.0
_FAR = 0.05  # squared error over variance; nearer than that, any output is near enough
_WORSE = 2.0  # who ends at so many times the error that it began at has diverged, too

LearningRate = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class RefineOptions(BaseModel):
    """How a closed form is refined."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["refine"] = Field(
        default="refine", description="Short label-free distillation from the best closed form."
    )
    budget: int = Field(
        default=256_000,
        ge=1,
        description="Points learnt from for each original beyond the first, as the more of them there are, the more "
        "exact the coded model must be; each as often as it is shown. Fewer where the result is good enough before.",
    )
    passes: int = Field(
        default=20,
        ge=1,
        description="Where inputs cannot be mixed, such as token ids, each is shown so often at most, however large "
        "the budget: more would only learn them by heart.",
    )
    first_rung: int = Field(
        default=8_000,
        ge=1,
        description="Points of the first descent. Each one that follows goes on from the last good one and is twice as "
        "long.",
    )
    good_enough: float = Field(
        default=0.005,
        ge=0,
        allow_inf_nan=False,
        description="A descent that reaches this held-out divergence, in nats, is the last one; outputs that are no "
        "logits have no such measure.",
    )
    batch_size: int = Field(default=64, ge=1, description="Points in a step.")
    learning_rates: tuple[LearningRate, ...] = Field(
        default=(0.05,),
        min_length=1,
        description="Of each parameter, in units of how far the originals lie apart there. Of several, which are tried "
        "in short runs, the best is used; all starts are compared at the first one.",
    )
    trial_steps: int = Field(
        default=100,
        ge=1,
        description="Steps of each short run; fewer where all of them together would take more than a quarter of the "
        "budget, or one of them more than a third of what may follow, and none for a single start and rate. Where "
        "inputs cannot be mixed and the budget allows, each run is the whole descent.",
    )
    optimizer: OptimizerName | Literal["auto"] = Field(
        default="auto",
        description="muon: orthogonal steps for matrices and kernels, Adam for the rest; or adam alone. auto: adam "
        "where inputs cannot be mixed, so that descents are short; else muon.",
    )
    precision: Precision = Field(
        default="auto",
        description="Of products of matrices while descending; held-out points are decoded in float32. auto: bfloat16 "
        "where the processor has units for it (AMX), the models bear it, and the criterion is the divergence; else "
        "float32.",
    )
    criterion: CriterionName = Field(
        default="divergence",
        description="What is descended on, and decides. divergence: between the softmax of decoded outputs and that of "
        "the originals' own, both ways; error: their mean squared difference, for outputs that are no logits.",
    )
    augmentation: AugmentationOptions = Field(
        default=AugmentationOptions(),
        description="Mixtures of floating-point inputs, shifts and warps of images, exchanges of integers.",
    )
    starts: tuple[ClosedForm, ...] = Field(
        default=("average", "coin"),
        min_length=1,
        description="Closed forms to try as a start; head is the plain average with its last layer regressed. What is "
        "regressed on the few calibration inputs is ahead at first, but decodes other inputs worse in the end.",
    )
    batch_norm: BatchNormPolicy = Field(
        default="auto",
        description="BatchNorm: running statistics averaged over the originals (average), or those of the coded "
        "model's own features on the calibration inputs (estimate); itself folded into the layer before it in all "
        "originals first (fold; as average where nothing can be folded); or whichever decodes best (auto).",
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
        CoinExportError: as `best_closed_forms`.
    """
    meter = CostMeter()
    learnt_from, decides = calibration.split(options.held_out, options.seed)
    teachers, criterion = Teachers(originals, Passes()), Criterion(code, options.criterion)
    held_out = HeldOut(teachers, criterion, decides, options.augmentation, options.seed)
    families, units = families_of(options.starts), spreads([original.module for original in originals])
    starts = best_closed_forms(originals, code, learnt_from, families, options.batch_norm, cache, held_out)
    inputs = working_inputs(learnt_from)
    precision = "float32" if options.precision == "auto" and options.criterion == "error" else options.precision
    hastened = teachers.hastened(inputs, precision)

    endless = can_mix(inputs, options.augmentation)
    optimizer: OptimizerName = ("muon" if endless else "adam") if options.optimizer == "auto" else options.optimizer

    def descend(states: Sequence[StateDict], steps: int, rate: float, seed: int) -> _Descent:
        modules = [train_what_differs(working_copy(originals[0], state), originals) for state in states]
        schedule = Schedule(steps, options.batch_size, rate, optimizer)
        taken = fit(modules, hastened, criterion, inputs, schedule, options.seed + seed, options.augmentation, units)
        error = held_out.error(modules) if taken == steps else math.inf
        return _Descent(error, [finished_state(module, originals[0]) for module in modules], rate, taken)

    contests = len(starts) + len(options.learning_rates) - 1
    budget = math.ceil(options.budget * (len(originals) - 1) / options.batch_size)
    trial_steps, whole = _lengths(options, budget, contests, None if endless else len(learnt_from))
    start = min(starts, key=lambda choice: choice.error)
    here = best = _Descent(start.error, start.states)
    rate, left = options.learning_rates[0], whole
    trial_errors: Mapping[tuple[Choice, float], float] = {}
    if trial_steps:

        def trial(choice: Choice, rate: float) -> _Descent:
            return descend(choice.states, trial_steps, rate, 0)

        ahead, rate, end, trial_errors = _race(starts, options.learning_rates, trial)
        left = min(whole, budget - trial_steps * contests)
        if end.error <= _WORSE * ahead.error:
            start, here = ahead, end
            left = min(left, whole - trial_steps)
        else:
            rate = min(options.learning_rates) / _SLOWER
    done: list[dict[str, float]] = []
    good_enough = options.good_enough if held_out.in_nats else -math.inf
    for descent in _rungs_of(here, rate, left, options, good_enough, descend):
        done.append({"steps": descent.steps, "learning_rate": descent.rate, "held_out_error": descent.error})
        here = _later(here, descent)
    best = min(best, here, key=lambda descent: descent.error)
    if options.criterion == "divergence":
        before, after = (
            held_out.relative_errors([working_copy(originals[0], state) for state in states])
            for states in (start.states, best.states)
        )
        _warn_of_values(before, after)
    notes = {
        "start": start.name,
        "start_errors": {name: error for choice in starts for name, error in choice.errors.items()},
        "learning_rate": done[-1]["learning_rate"] if done else rate,
        "trial_errors": {f"{choice.name} {rate:g}": error for (choice, rate), error in trial_errors.items()},
        "rungs": done,
        "held_out_error": best.error,
    }
    return meter.share(best.states, teachers.passes, notes)


def _warn_of_values(before: Mapping[str, float], after: Mapping[str, float]) -> None:
    """Warn of outputs that a descent on divergences led away from the originals'; logits come several times nearer."""
    away = [name for name in after if after[name] > max(before[name], _FAR)]
    if away:
        _log.warning(
            "the squared error of %s grew, in units of its variance: what was fitted is its softmax over the last "
            "dimension; if it is of values and no logits, such as boxes or depths, build with code.space 'values' "
            "(criterion 'error')",
            ", ".join(f"output {name!r} ({before[name]:.2g} to {after[name]:.2g})" for name in away),
        )


def _lengths(options: RefineOptions, budget: int, contests: int, points: int | None) -> tuple[int, int]:
    """Return the steps of each trial, none for a single contestant, and those of one start in all.

    Args:
        options: of the encoder.
        budget: steps in all.
        contests: number of trials.
        points: to learn from, if there are no others; None if there is no end of them.
    """
    trial = min(options.trial_steps, budget // (_TRIALS * contests))
    whole = budget
    if points is not None:
        whole = min(budget, options.passes * points // min(options.batch_size, points))
        trial = whole if whole * contests <= budget else min(trial, whole // _TRIAL)
    return (trial if contests > 1 else 0), whole


@dataclass(frozen=True, eq=False)
class _Descent:
    """Where a descent ended: its held-out criterion, the weights of the m coded models, its rate, its steps.

    Only ends count. Before its learning rate has fallen, a descent is noisier than the few held-out points can tell.
    """

    error: float
    states: Sequence[StateDict]
    rate: float = 0.0
    steps: int = 0


def _later(here: _Descent, descent: _Descent) -> _Descent:
    """Return the descent from here, unless it diverged."""
    return descent if descent.error <= _WORSE * here.error else here


def _rungs_of(
    here: _Descent,
    rate: float,
    steps: int,
    options: RefineOptions,
    good_enough: float,
    descend: Callable[[Sequence[StateDict], int, float, int], _Descent],
) -> Iterator[_Descent]:
    """Yield descents, each from where the last good one led."""
    first = math.ceil(options.first_rung / options.batch_size)
    diverged, lengths = 0, deque(rungs(steps, first))
    for number in count(1):
        if not lengths:
            return
        length = lengths.popleft()
        descent = descend(here.states, length, rate, number)
        yield descent
        here = _later(here, descent)
        if here.error <= good_enough:
            return
        if here is not descent and diverged < _DIVERGED:
            diverged, rate = diverged + 1, rate / _SLOWER
            lengths = deque(rungs(sum(lengths) + length - descent.steps, first))


def _race(
    starts: Sequence[Choice], rates: Sequence[float], trial: Callable[[Choice, float], _Descent]
) -> tuple[Choice, float, _Descent, dict[tuple[Choice, float], float]]:
    """Run all starts at the first rate, and the winner at the others.

    Returns:
        The start, the rate and the end of the best trial, and the errors of all.
    """
    first, *others = rates
    trials = {(choice, first): trial(choice, first) for choice in starts}
    winner, _ = _ahead(trials)
    trials |= {(winner, rate): trial(winner, rate) for rate in others}
    best = _ahead(trials)
    return *best, trials[best], {entry: descent.error for entry, descent in trials.items()}


def _ahead(trials: Mapping[tuple[Choice, float], _Descent]) -> tuple[Choice, float]:
    """Return the start and the rate of the trial with the least error; of equals, the first."""
    return min(trials, key=lambda entry: trials[entry].error)


def rungs(steps: int, first: int) -> list[int]:
    """Return the lengths of descents, each twice the one before, that take ``steps`` in all.

    There are as many as leave the first one ``first`` steps or more, and at least one unless there are no steps.
    """
    if not steps:
        return []
    count = max(1, (steps // first + 1).bit_length() - 1)
    shortest = steps // (2**count - 1)
    lengths = [shortest * 2**index for index in range(count)]
    return [*lengths[:-1], steps - sum(lengths[:-1])]
