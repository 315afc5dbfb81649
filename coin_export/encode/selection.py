"""Choosing between coded models by how well they decode held-out calibration inputs."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, TypeAlias

import torch

from coin_export.code.linear import LinearCode
from coin_export.datasets.calibration import CalibrationInputs
from coin_export.encode.average import AverageOptions, average
from coin_export.encode.batch_norm import BatchNormPolicy, estimate_statistics
from coin_export.encode.coin import START, coin
from coin_export.encode.encoding import Encoding, StateDict
from coin_export.encode.folding import Folded, fold
from coin_export.encode.held_out import HeldOut
from coin_export.encode.regmean import RegMeanOptions, regmean
from coin_export.encode.regress import RegressOptions, regress
from coin_export.encode.teachers import (
    Inputs,
    finished_state,
    working_copy,
    working_inputs,
)
from coin_export.errors import NonFiniteError
from coin_export.model.signature import Original

ClosedForm: TypeAlias = Literal["average", "coin", "regmean", "regress", "head"]
FAMILIES: Sequence[Sequence[ClosedForm]] = (("average", "coin", "regmean"), ("head",), ("regress",))
"""Barycenters; and those that are fitted to outputs or features on the very calibration inputs, one by one."""

_Encode: TypeAlias = Callable[
    [Sequence[Original], Sequence[float], CalibrationInputs, Path | None],
    Encoding,
]
_CLOSED_FORMS: Mapping[ClosedForm, _Encode] = {
    "average": lambda models, beta, points, cache: average(models, beta, points, AverageOptions(), cache),
    "coin": lambda models, beta, points, cache: coin(models, beta, points, START, cache),
    "regmean": lambda models, beta, points, cache: regmean(models, beta, points, RegMeanOptions(), cache),
    "regress": lambda models, beta, points, cache: regress(models, beta, points, RegressOptions(), cache),
    "head": lambda models, beta, points, cache: regress(
        models, beta, points, RegressOptions(start="average", layers="head"), cache
    ),
}


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
    """Make closed forms with their default options, and choose in each family.

    ``head`` is the plain average with the last layer regressed. Where BatchNorm's statistics differ between the
    originals, each closed form is tried with averaged and with estimated ones; where it can be folded into the layer
    before it (see `fold`), so, too, but for ``regress``; or as ``batch_norm`` says. Of equals, the first is taken.
    Fisher statistics are computed once for the originals, and once for the folded ones.

    Returns:
        The best of each family; families without finite outputs are left out.

    Raises:
        NonFiniteError: if none has finite outputs.
        CoinExportError: as the encoders.
    """
    found: list[Choice] = []
    failure: NonFiniteError | None = None
    with tempfile.TemporaryDirectory(prefix="coin_export_statistics_") as folder:
        trials = _Trials(originals, code, calibration, batch_norm, cache or Path(folder), held_out)
        for family in families:
            try:
                found.append(trials.best(family))
            except NonFiniteError as error:
                failure = error
    if failure is not None and not found:
        raise failure
    return found


@dataclass(frozen=True, eq=False)
class _Trials:
    """Makes closed forms, and asks the held-out inputs which is best; see `best_closed_forms`."""

    originals: Sequence[Original]
    code: LinearCode
    calibration: CalibrationInputs
    batch_norm: BatchNormPolicy
    statistics: Path
    held_out: HeldOut

    @cached_property
    def _inputs(self) -> Inputs:
        return working_inputs(self.calibration)

    @cached_property
    def _folded(self) -> Folded | None:
        return fold(self.originals, self._inputs) if self.batch_norm in ("auto", "fold") else None

    def best(self, names: Sequence[ClosedForm]) -> Choice:
        """Return the best of these.

        Raises:
            NonFiniteError: if none has finite outputs.
        """
        errors: dict[str, float] = {}
        choice = Choice("", [], errors)
        for name in names:
            for title, modules in self._variants(name):
                least = min(errors.values(), default=math.inf)
                errors[title] = self.held_out.error(modules)
                if errors[title] < least:
                    choice = Choice(title, [finished_state(module, self.originals[0]) for module in modules], errors)
        if not choice.states:
            raise NonFiniteError(
                f"outputs hold NaN or infinity for all of {', '.join(errors)}; "
                "check the originals on the calibration inputs"
            )
        return choice

    def _variants(self, name: ClosedForm) -> Iterator[tuple[str, Sequence[torch.nn.Module]]]:
        """Yield a closed form with each way to treat BatchNorm; good until the next one."""
        policy = self.batch_norm
        # It fits each layer by itself, however the originals split its weights.
        folded = None if name == "regress" else self._folded
        if policy != "fold" or folded is None:
            modules = self._encode(name, self.originals)
            if policy != "estimate":
                yield name, modules
            if policy in ("auto", "estimate"):
                estimated = [estimate_statistics(module, self.originals, self._inputs) for module in modules]
                if policy == "estimate" or any(estimated):
                    yield f"{name}, BatchNorm estimated" if any(estimated) else name, modules
        if folded is not None:
            modules = self._encode(name, folded.originals)
            for module in modules:
                folded.unfold(module)
            yield f"{name}, BatchNorm folded", modules

    def _encode(self, name: ClosedForm, models: Sequence[Original]) -> list[torch.nn.Module]:
        encode = _CLOSED_FORMS[name]
        encodings = [encode(models, row, self.calibration, self.statistics) for row in self.code.parities]
        for encoding in encodings:
            self.held_out.teachers.passes.add(encoding.cost)
        return [working_copy(self.originals[0], encoding.state_dict) for encoding in encodings]
