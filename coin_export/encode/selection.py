"""Choosing between coded models by how well they decode held-out calibration inputs."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import torch

from coin_export.code.linear import LinearCode
from coin_export.datasets.calibration import CalibrationInputs
from coin_export.encode.augmentation import AugmentationOptions, augment, can_augment
from coin_export.encode.average import AverageOptions, average
from coin_export.encode.batch_norm import BatchNormPolicy, estimate_statistics
from coin_export.encode.coin import CoinOptions, coin
from coin_export.encode.criterion import Criterion, finite
from coin_export.encode.encoding import Encoding, StateDict
from coin_export.encode.regmean import RegMeanOptions, regmean
from coin_export.encode.regress import RegressOptions, regress
from coin_export.encode.teachers import (
    Inputs,
    Teachers,
    batches_of,
    finished_state,
    points_of,
    working_copy,
    working_inputs,
)
from coin_export.errors import NonFiniteError
from coin_export.model.signature import Original

ClosedForm: TypeAlias = Literal["average", "coin", "regmean", "regress", "head"]
FAMILIES: Sequence[Sequence[ClosedForm]] = (("average", "coin", "regmean"), ("head",), ("regress",))
"""Barycenters; and those that are fitted to outputs or features on the very calibration inputs, one by one."""
_BATCH = 256
_AUGMENTED = 3

_Encode: TypeAlias = Callable[
    [Sequence[Original], Sequence[float], CalibrationInputs, Path | None],
    Encoding,
]
_CLOSED_FORMS: Mapping[ClosedForm, _Encode] = {
    "average": lambda models, beta, points, cache: average(models, beta, points, AverageOptions(), cache),
    "coin": lambda models, beta, points, cache: coin(models, beta, points, CoinOptions(), cache),
    "regmean": lambda models, beta, points, cache: regmean(models, beta, points, RegMeanOptions(), cache),
    "regress": lambda models, beta, points, cache: regress(models, beta, points, RegressOptions(), cache),
    "head": lambda models, beta, points, cache: regress(
        models, beta, points, RegressOptions(start="average", layers="head"), cache
    ),
}


class HeldOut:
    """Held-out inputs with the originals' answers to them, asked once.

    With augmentation, also what it makes of them: three more of each point, so that few points decide less by chance.
    """

    def __init__(
        self,
        teachers: Teachers,
        criterion: Criterion,
        points: CalibrationInputs,
        augmentation: AugmentationOptions | None = None,
        seed: int = 0,
    ) -> None:
        self.teachers = teachers
        self._criterion = criterion
        inputs: Inputs = working_inputs(points)
        if augmentation is not None and can_augment(inputs, augmentation):
            generator = torch.Generator().manual_seed(seed)
            more = [augment(inputs, augmentation, generator) for _ in range(_AUGMENTED)]
            inputs = {name: torch.cat([tensor, *(made[name] for made in more)]) for name, tensor in inputs.items()}
        self._batches = [(batch, teachers(batch)) for batch in batches_of(inputs, _BATCH)]
        self.in_nats = criterion.in_nats(self._batches[0][1])

    def error(self, modules: Sequence[torch.nn.Module]) -> float:
        """Return the criterion for the m coded models over all points; infinity when it is not finite."""
        total, points = 0.0, 0
        with torch.no_grad():
            for inputs, answers in self._batches:
                count = points_of(inputs)
                total += count * float(self._criterion(self.teachers.ask(modules, inputs), answers))
                points += count
        return finite(total / points)


@dataclass(frozen=True, eq=False)
class Choice:
    """The best of several encodings.

    Attributes:
        name: which one it is.
        states: weights of the m coded models.
        errors: held-out criterion of each, by name, in the order in which they were tried.
    """

    name: str
    states: Sequence[StateDict]
    errors: Mapping[str, float]

    @property
    def error(self) -> float:
        """Its held-out criterion."""
        return self.errors[self.name]


def families_of(names: Sequence[ClosedForm]) -> list[list[ClosedForm]]:
    """Split closed forms into the `FAMILIES` that have a member among them."""
    families = [[name for name in names if name in family] for family in FAMILIES]
    return [family for family in families if family]


def best_closed_forms(
    originals: Sequence[Original],
    code: LinearCode,
    calibration: CalibrationInputs,
    families: Sequence[Sequence[ClosedForm]],
    batch_norm: BatchNormPolicy,
    cache: Path | None,
    held_out: HeldOut,
) -> list[Choice]:
    """Make closed forms with their default options, and choose in each family; Fisher statistics are computed once.

    ``head`` is the plain average with the last layer regressed. Where BatchNorm's statistics differ between the
    originals, each closed form is tried with averaged and with estimated ones, or as ``batch_norm`` says. Of equals,
    the first is taken.

    Returns:
        The best of each family; families without finite outputs are left out.

    Raises:
        NonFiniteError: if none has finite outputs.
        CoinExportError: as the encoders.
    """
    found: list[Choice] = []
    failure: NonFiniteError | None = None
    inputs = working_inputs(calibration)

    def best(names: Sequence[ClosedForm], statistics: Path) -> Choice:
        errors: dict[str, float] = {}
        choice = Choice("", [], errors)
        for name in names:
            encodings = [_CLOSED_FORMS[name](originals, row, calibration, statistics) for row in code.parities]
            for encoding in encodings:
                held_out.teachers.passes.add(encoding.cost)
            modules = [working_copy(originals[0], encoding.state_dict) for encoding in encodings]
            for title in _with_statistics(name, modules, originals, inputs, batch_norm):
                least = min(errors.values(), default=math.inf)
                errors[title] = held_out.error(modules)
                if errors[title] < least:
                    choice = Choice(title, [finished_state(module, originals[0]) for module in modules], errors)
        if not choice.states:
            raise NonFiniteError(
                f"outputs hold NaN or infinity for all of {', '.join(errors)}; "
                "check the originals on the calibration inputs"
            )
        return choice

    with tempfile.TemporaryDirectory(prefix="coin_export_statistics_") as folder:
        for family in families:
            try:
                found.append(best(family, cache or Path(folder)))
            except NonFiniteError as error:
                failure = error
    if failure is not None and not found:
        raise failure
    return found


def _with_statistics(
    name: str,
    modules: Sequence[torch.nn.Module],
    originals: Sequence[Original],
    inputs: Inputs,
    batch_norm: BatchNormPolicy,
) -> Iterator[str]:
    """Yield a name for each way to treat BatchNorm, while the modules are treated so."""
    if batch_norm != "estimate":
        yield name
    if batch_norm != "average":
        estimated = [estimate_statistics(module, originals, inputs) for module in modules]
        if batch_norm == "estimate" or any(estimated):
            yield f"{name}, BatchNorm estimated" if any(estimated) else name
