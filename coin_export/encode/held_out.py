"""Calibration inputs that decide between coded models."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from coin_export.datasets.calibration import CalibrationInputs
from coin_export.encode.augmentation import AugmentationOptions, answered, augment, can_augment
from coin_export.encode.criterion import Criterion, finite
from coin_export.encode.teachers import Inputs, Teachers, batches_of, concatenated, points_of, working_inputs

_BATCH = 256
_AUGMENTED = 3


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
        inputs = working_inputs(points)
        sets: list[Inputs] = [inputs]
        if augmentation is not None and can_augment(inputs, augmentation):
            generator = torch.Generator().manual_seed(seed)
            sets += [augment(inputs, augmentation, generator) for _ in range(_AUGMENTED)]
        whole, plain = _joined(sets), _joined([inputs] * len(sets))
        batches = zip(batches_of(whole, _BATCH), batches_of(plain, _BATCH), strict=True)
        self._batches = [answered(teachers, batch, as_given) for batch, as_given in batches]
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

    def relative_errors(self, modules: Sequence[torch.nn.Module]) -> dict[str, float]:
        """Return for each output the mean squared error of what is decoded over the variance of the originals' own."""
        error = Criterion(self._criterion.code, "error")
        coded, own = [], []
        with torch.no_grad():
            for inputs, answers in self._batches:
                coded.append(self.teachers.ask(modules, inputs))
                own.append(answers)
            return {
                name: finite(float(error([found], [wanted]) / wanted.var(1, correction=0).mean()))
                for name, found, wanted in zip(
                    self.teachers.output_names, concatenated(coded), concatenated(own), strict=True
                )
            }


def _joined(sets: Sequence[Inputs]) -> Inputs:
    return {name: torch.cat([inputs[name] for inputs in sets]) for name in sets[0]}
