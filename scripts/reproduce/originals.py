"""Originals: trained once and kept; which start, points and seeds make them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from coin_export.model.state import state_digest
from scripts.reproduce.cache import State, kept_state, path_of
from scripts.reproduce.networks import NetworkKind, make_network
from scripts.reproduce.tasks import CLASSES, Data, Part
from scripts.reproduce.training import Training, train

PRETRAINING_TASK = "cifar10"


@dataclass(frozen=True)
class Recipe:
    """How the originals of a kind of network come to be.

    Attributes:
        network: the kind.
        width: of the ResNets.
        tasks: how each task is trained, by name.
        pretraining: how the common start is trained, on the first points of CIFAR-10, which nothing else uses. None
            takes the network as it is made: random weights, another draw for each seed, or MiniLM's own.
        heads_start_apart: the originals of one seed are made from other seeds too, so that their heads differ.
    """

    network: NetworkKind
    tasks: tuple[tuple[str, Training], ...]
    width: int = 0
    pretraining: Training | None = None
    heads_start_apart: bool = False

    def training(self, task: str) -> Training:
        """Return how a task is trained."""
        return dict(self.tasks)[task]


@dataclass(frozen=True)
class Originals:
    """Makes, or finds, the originals of a recipe."""

    recipe: Recipe
    data: Data

    def pool(self, task: str) -> Part:
        """Return the training points of a task; the common start has seen none of them."""
        first = 0
        if task == PRETRAINING_TASK and self.recipe.pretraining is not None:
            first = self.recipe.pretraining.points
        return self.data.part(task, "train", self.recipe.network, first, first + self.recipe.training(task).points)

    def pretrained(self) -> State:
        """Return the weights from which the originals of all seeds are trained."""
        training = self.recipe.pretraining
        assert training is not None
        part = self.data.part(PRETRAINING_TASK, "train", self.recipe.network, 0, training.points)
        network = self._network(CLASSES[PRETRAINING_TASK], 0)
        key = {"training": asdict(training), "points": part.digest()}
        return self._kept("pretrained", key, lambda: train(network, part, training, 0).state_dict())

    def original(self, task: str, seed: int) -> nn.Module:
        """Return the network trained on a task, in eval mode."""
        recipe, training, pool = self.recipe, self.recipe.training(task), self.pool(task)
        own_seed = 100 * seed + sorted(CLASSES).index(task)  # originals of one seed see their points in other orders
        start_seed = own_seed if recipe.heads_start_apart else seed
        network = self._network(CLASSES[task], start_seed)
        if recipe.pretraining is not None:
            network.load_state_dict(self.pretrained())
        key: dict[str, Any] = {"training": asdict(training), "points": pool.digest(), "seeds": [own_seed, start_seed]}
        key["start"] = None if recipe.pretraining is None else state_digest(network.state_dict())
        network.load_state_dict(self._kept(task, key, lambda: train(network, pool, training, own_seed).state_dict()))
        return network.eval()

    def _network(self, classes: int, seed: int) -> nn.Module:
        return make_network(self.recipe.network, self.recipe.width, classes, seed)

    def _kept(self, title: str, key: Mapping[str, Any], make: Callable[[], State]) -> State:
        whole = {"network": self.recipe.network, "width": self.recipe.width, **key}
        folder = self.data.cache / "originals"
        return kept_state(path_of(folder, f"{self.recipe.network}-{title}", whole, "safetensors"), make)
