"""The cells of the reproduction: which encoder runs on what; the order in which an interrupted run is worth most."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from coin_export.code.design import default_code
from coin_export.encode.registry import DEFAULT_ENCODER, EncoderOptions
from scripts.reproduce.cache import path_of
from scripts.reproduce.methods import ALIKE, DEFAULT, METHODS, with_options
from scripts.reproduce.settings import HASTY, Scale, Setting

Study = Literal["comparison", "cost", "epochs", "points"]


@dataclass(frozen=True)
class Cell:
    """One encoder on one setting with one seed.

    Attributes:
        study: what it is run for.
        setting: the originals.
        method: name of the encoder in the records.
        options: the encoder's, before they are seeded.
        points: calibration inputs of each task.
        seed: of originals, calibration inputs and encoder.
        test_points: of each task, at most.
    """

    study: Study
    setting: Setting
    method: str
    options: EncoderOptions
    points: int
    seed: int
    test_points: int | None

    @property
    def title(self) -> str:
        """A name for people."""
        return f"{self.setting.name}: {self.method}, {self.points} points, seed {self.seed}"

    @property
    def default(self) -> bool:
        """Whether this is what `build` does when nothing is said."""
        return self.sensitive and self.options == DEFAULT_ENCODER

    @property
    def sensitive(self) -> bool:
        """Whether the code protects sensitive originals more, as `build` does; else all are alike, as in the paper."""
        return self.method == DEFAULT

    @property
    def key(self) -> dict[str, Any]:
        """What determines the records."""
        setting = self.setting
        return {
            "recipe": asdict(setting.recipe),
            "tasks": setting.tasks,
            "parities": setting.parities,
            "options": self.options.model_dump(mode="json"),
            "points": self.points,
            "seed": self.seed,
            "test_points": self.test_points,
            **({"protect": "sensitive"} if self.sensitive else {}),
            **({"code": _coefficients(setting)} if setting.parities > 1 else {}),
        }

    def path(self, cache: Path) -> Path:
        """Return where its records are kept."""
        return path_of(cache / "cells", self.method, self.key, "json")


def _coefficients(setting: Setting) -> list[list[float]]:
    """Return those of all models protected alike: what is searched for may change."""
    code = default_code(len(setting.tasks), setting.parities)
    return [[round(beta, 3) for beta in row] for row in code.parities]


def plan(scale: Scale) -> list[Cell]:
    """Return all cells: what the targets ask for, seed by seed, then the sweeps; each once."""
    cells = [cell for seed in range(scale.seeds) for cell in _of_settings(scale, seed)]
    cells += [cell for seed in range(scale.seeds) for cell in _of_costs(scale, seed)]
    cells += [cell for seed in range(scale.seeds) for cell in _of_sweeps(scale, seed)]
    once: dict[str, Cell] = {}
    for cell in cells:
        once.setdefault(f"{cell.setting.name} {cell.key}", cell)
    return list(once.values())


def _of_settings(scale: Scale, seed: int) -> Iterator[Cell]:
    for setting in scale.settings:
        for points in setting.points:
            for method in setting.methods:
                options = METHODS[method]
                if method in (ALIKE, DEFAULT) and setting.changed:
                    options = with_options(options, setting.changed)
                yield Cell("comparison", setting, method, options, points, seed, scale.test_points)


def _of_costs(scale: Scale, seed: int) -> Iterator[Cell]:
    """Growing budgets, for the cost to reach a given accuracy; all have the same code."""
    setting = scale.settings[0]
    for budget in scale.budgets:
        options = with_options(METHODS[ALIKE], {"budget": budget, **HASTY})
        yield Cell("cost", setting, ALIKE, options, setting.points[-1], seed, scale.test_points)
    for points, changed in scale.grid:
        options = with_options(METHODS["distill"], changed)
        yield Cell("cost", setting, "distill", options, points, seed, scale.test_points)


def _of_sweeps(scale: Scale, seed: int) -> Iterator[Cell]:
    setting = scale.settings[0]
    for epochs in scale.epochs:
        options = with_options(METHODS["distill"], {"epochs": epochs})
        yield Cell("epochs", setting, "distill", options, setting.points[-1], seed, scale.test_points)
    for points in scale.sweep:
        for method in scale.swept:
            yield Cell("points", setting, method, METHODS[method], points, seed, scale.test_points)
