"""The settings of the reproduction: which originals, trained how; in full, and small for a quick look."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from scripts.reproduce.methods import ALIKE, DEFAULT
from scripts.reproduce.originals import Recipe
from scripts.reproduce.training import Training

FIRST = "small_cnn mnist+fashion"  # the setting of the sweeps
PRETRAINING_POINTS = 25_000
CLOSED_FORMS = ("average", "coin", "coin_undamped", "coin_categorical", "regmean", "regmean_linear", "regress")
ALL = (*CLOSED_FORMS, "distill", DEFAULT)
WITH_OTHERS = (*ALL, "auto", "distill_average", ALIKE)
HASTY = {  # nothing is tried first, the originals are asked once a point, and products are as exact as distillation's
    "starts": ("head",),
    "learning_rates": (0.04,),
    "batch_size": 32,
    "optimizer": "muon",
    "precision": "float32",
    "augmentation": {"mixed": 0.0, "shift": 0.0, "warp": 0.0},
}
FASTER = (  # points and epochs of distillation
    *((500, epochs) for epochs in (40, 50, 60, 70, 80, 160)),
    *((2000, epochs) for epochs in (7, 8, 9, 10, 15)),
    *((5000, epochs) for epochs in (3, 4)),
)
SWEEP = (50, 100, 200, 500, 1000, 2000, 5000)


@dataclass(frozen=True)
class Setting:
    """Originals that are coded together.

    Attributes:
        name: as it stands in the records.
        recipe: how the originals are trained.
        tasks: of the k originals, in the order of the code.
        parities: number of coded models, m.
        points: calibration inputs of each task.
        methods: the encoders to run.
        changed: options of the default encoder that are not the default ones here, since those take too long.
    """

    name: str
    recipe: Recipe
    tasks: tuple[str, ...]
    parities: int = 1
    points: tuple[int, ...] = (500,)
    methods: tuple[str, ...] = ALL
    changed: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Scale:
    """How much is run.

    Attributes:
        settings: all of them; the first is that of the sweeps.
        seeds: how many; each draws fine-tuning, calibration inputs and encoders anew.
        test_points: of each task, at most.
        sweep: calibration inputs of each task, for the methods in ``swept``.
        swept: methods of the sweep over calibration inputs.
        epochs: of distillation from a fresh start, at the last of the first setting's ``points``.
        grid: calibration inputs and changed options with which distillation is to reach a given accuracy.
        budgets: points learnt from that the default encoder gets for the same, in `HASTY` ways and with the same code.
    """

    settings: Sequence[Setting]
    seeds: int
    test_points: int | None
    sweep: Sequence[int]
    swept: Sequence[str]
    epochs: Sequence[int]
    grid: Sequence[tuple[int, Mapping[str, Any]]]
    budgets: Sequence[int]


SMALL_CNN = Recipe("small_cnn", (("mnist", Training(20_000, 3, 3e-3)), ("fashion-mnist", Training(20_000, 3, 3e-3))))
RESNET = Recipe(
    "resnet",
    (
        ("cifar10", Training(20_000, 2, 1e-3, augment=True)),
        ("mnist", Training(10_000, 2, 1e-3)),
        ("fashion-mnist", Training(20_000, 2, 1e-3)),
    ),
    width=12,
    pretraining=Training(PRETRAINING_POINTS, 6, 3e-3, augment=True),
)
MINILM = Recipe(
    "minilm",
    (
        ("trec", Training(3_000, 2, 1e-4, batch_size=32)),
        ("subj", Training(2_000, 1, 1e-4, batch_size=32)),
    ),
    heads_start_apart=True,
)


def _quick(recipe: Recipe) -> Recipe:
    """Return the recipe with few points and passes."""
    tasks = tuple((name, replace(training, points=4_000, epochs=2)) for name, training in recipe.tasks)
    start = recipe.pretraining and replace(recipe.pretraining, points=8_000, epochs=4)
    return replace(recipe, tasks=tasks, width=8, pretraining=start)


def _pairs(small_cnn: Recipe, resnet: Recipe, few: tuple[int, ...], many: tuple[int, ...]) -> tuple[Setting, ...]:
    """Return the settings of k = 2, with ``few`` calibration inputs for the small CNN and ``many`` for the ResNets."""
    return (
        Setting(FIRST, small_cnn, ("mnist", "fashion-mnist"), points=few, methods=WITH_OTHERS),
        Setting("resnet cifar10+mnist", resnet, ("cifar10", "mnist"), points=many),
        Setting("resnet_bn cifar10+mnist", replace(resnet, network="resnet_bn"), ("cifar10", "mnist"), points=many),
    )


def _triple(resnet: Recipe, parities: int, points: tuple[int, ...]) -> Setting:
    name = "resnet cifar10+mnist+fashion" + (f" m={parities}" if parities > 1 else "")
    return Setting(name, resnet, ("cifar10", "mnist", "fashion-mnist"), parities, points)


FULL = Scale(
    settings=(
        *_pairs(SMALL_CNN, RESNET, few=(100, 500), many=(500,)),
        _triple(RESNET, 1, (500,)),
        _triple(RESNET, 2, (500,)),
        Setting(FIRST, SMALL_CNN, ("mnist", "fashion-mnist"), points=(100,), methods=("barycenter_cg",)),
        Setting(
            "minilm trec+subj",
            MINILM,
            ("trec", "subj"),
            points=(100, 500),
            methods=("average", "coin", "regress", DEFAULT),
        ),
        Setting("resnet cifar10+fashion", RESNET, ("cifar10", "fashion-mnist")),
    ),
    seeds=3,
    test_points=None,
    sweep=SWEEP,
    swept=("average", "coin", "regmean", "regmean_linear", "regress", "distill", DEFAULT),
    epochs=(1, 2, 5, 10, 20, 40, 80, 160),
    grid=(
        (500, {"epochs": 80}),
        (2000, {"epochs": 20}),
        *((points, {"epochs": epochs, "learning_rate": 3e-3, "batch_size": 32}) for points, epochs in FASTER),
        (2000, {"epochs": 10, "learning_rate": 5e-3}),
    ),
    budgets=(1_500, 2_000, 2_500, 3_000, 3_500, 4_000, 5_000, 8_000),
)
_BRIEFLY = {"budget": 24_000}  # of the default encoder's points, where networks are slow
_CNN, _PAIR, _PAIR_BN = _pairs(_quick(SMALL_CNN), _quick(RESNET), few=(100,), many=(200,))
QUICK = Scale(
    settings=(
        _CNN,
        *(replace(setting, changed=_BRIEFLY) for setting in (_PAIR, _triple(_quick(RESNET), 2, (200,)), _PAIR_BN)),
    ),
    seeds=1,
    test_points=1_000,
    sweep=(50, 200, 500),
    swept=("average", "coin", "regmean", "regress", "distill"),
    epochs=(1, 5, 20, 80),
    grid=((1000, {"epochs": 10}), (1000, {"epochs": 20})),
    budgets=(4_000,),
)
