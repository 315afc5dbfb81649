"""The settings of the reproduction: which originals, trained how; in full, and small for a quick look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from scripts.reproduce.originals import Recipe
from scripts.reproduce.training import Training

PRETRAINING_POINTS = 25_000


@dataclass(frozen=True)
class Setting:
    """Originals that are coded together.

    Attributes:
        name: as it stands in the records.
        recipe: how the originals are trained.
        tasks: of the k originals, in the order of the code.
        parities: number of coded models, m.
    """

    name: str
    recipe: Recipe
    tasks: Sequence[str]
    parities: int = 1

    @property
    def k(self) -> int:
        """Number of originals."""
        return len(self.tasks)


SMALL_CNN = Recipe(
    "small_cnn",
    {"mnist": Training(20_000, 3, 3e-3), "fashion-mnist": Training(20_000, 3, 3e-3)},
)
RESNET = Recipe(
    "resnet",
    {
        "cifar10": Training(20_000, 2, 1e-3, augment=True),
        "mnist": Training(10_000, 2, 1e-3),
        "fashion-mnist": Training(20_000, 2, 1e-3),
    },
    width=12,
    pretraining=Training(PRETRAINING_POINTS, 8, 3e-3, augment=True),
)
RESNET_BN = replace(RESNET, network="resnet_bn")
MINILM = Recipe(
    "minilm",
    {"trec": Training(3_000, 2, 1e-4, batch_size=32), "subj": Training(2_000, 1, 1e-4, batch_size=32)},
    heads_start_apart=True,
)

SETTINGS = (
    Setting("small_cnn mnist+fashion", SMALL_CNN, ("mnist", "fashion-mnist")),
    Setting("resnet cifar10+mnist", RESNET, ("cifar10", "mnist")),
    Setting("resnet_bn cifar10+mnist", RESNET_BN, ("cifar10", "mnist")),
    Setting("resnet cifar10+mnist+fashion", RESNET, ("cifar10", "mnist", "fashion-mnist")),
    Setting("resnet cifar10+mnist+fashion m=2", RESNET, ("cifar10", "mnist", "fashion-mnist"), parities=2),
    Setting("minilm trec+subj", MINILM, ("trec", "subj")),
    Setting("resnet cifar10+fashion", RESNET, ("cifar10", "fashion-mnist")),
)
