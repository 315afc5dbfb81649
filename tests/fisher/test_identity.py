"""What a module computes decides its digest; nothing else does."""

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from coin_export.datasets.calibration import CalibrationInputs
from coin_export.fisher.cache import cached_diagonal_fisher, statistics_digest
from coin_export.fisher.identity import module_digest
from coin_export.fisher.options import FisherOptions
from coin_export.model.signature import Original, infer_signature
from tests.e2e.kinds import KINDS
from tests.encode.cases import normal_points
from tests.reference.networks import CASES


class Scaled(nn.Module):
    """Computes with everything that a state dict does not hold."""

    version = 1

    def __init__(self, scale: float = 2.0) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.load_state_dict(self.first.state_dict())
        self.scale = scale
        self.table = {"shift": [torch.zeros(3)]}
        self.activation: Callable[[torch.Tensor], torch.Tensor] = torch.tanh
        self.register_buffer("mask", torch.ones(3), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.activation(self.first(x)) * self.get_buffer("mask") + self.table["shift"][0]
        out: torch.Tensor = self.scale * self.version * self.second(hidden)
        return out


class Subclassed(Scaled):
    version = 2


def tie(module: Scaled) -> None:
    module.second.weight = module.first.weight


def mask(module: Scaled) -> None:
    module.get_buffer("mask")[1] = 0.0


def shift(module: Scaled) -> None:
    module.table["shift"][0] += 1.0


def hook(module: Scaled) -> None:
    module.first.register_forward_hook(lambda _module, _inputs, output: 2 * output)


def set_to(**attributes: Any) -> Callable[[Scaled], None]:
    return lambda module: vars(module).update(attributes)


CHANGES: dict[str, Callable[[Scaled], object]] = {
    "nothing": lambda module: None,
    "tied weights": tie,
    "an unsaved buffer": mask,
    "a tensor in an attribute": shift,
    "an attribute": set_to(scale=3.0),
    "a new attribute": set_to(version=5),
    "a function": set_to(activation=torch.sin),
    "a function of one's own": set_to(activation=lambda x: x.sigmoid()),
    "another function of one's own": set_to(activation=lambda x: x.relu()),
    "an attribute of a part": lambda module: vars(module.first).update(gain=2),
    "a hook": hook,
}


def scaled() -> Scaled:
    torch.manual_seed(0)
    return Scaled().eval()


def test_whatever_decides_the_outputs_decides_the_digest() -> None:
    digests = {}
    for name, change in CHANGES.items():
        module = scaled()
        change(module)
        digests[name] = module_digest(module)
    torch.manual_seed(0)
    digests["a subclass"] = module_digest(Subclassed().eval())
    assert len(set(digests.values())) == len(digests), digests


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_module_never_hits_a_stale_cache(change: Callable[[Scaled], object], tmp_path: Any) -> None:
    calibration = normal_points(5)

    def fisher(module: nn.Module) -> tuple[dict[str, torch.Tensor], int]:
        original = Original("net", module, infer_signature(module, calibration))
        found = cached_diagonal_fisher(original, calibration, FisherOptions(), tmp_path)
        return found.diagonal, found.forward_passes

    fisher(scaled())
    changed = scaled()
    change(changed)
    diagonal, passes = fisher(changed)
    assert passes == (0 if change is CHANGES["nothing"] else 5)
    fresh = {key: tensor for key, tensor in fisher(copy.deepcopy(changed))[0].items()}
    assert all(torch.equal(diagonal[key], fresh[key]) for key in diagonal)


def shaped_by(closed: int) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: closed * x


def test_a_closure_belongs_to_its_function() -> None:
    digests = set()
    for closed in (1, 2):
        module = scaled()
        module.activation = shaped_by(closed)
        digests.add(module_digest(module))
    assert len(digests) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_network_made_twice_is_the_same(kind: str) -> None:
    assert module_digest(KINDS[kind].tuned(1)) == module_digest(KINDS[kind].tuned(1))
    assert module_digest(KINDS[kind].tuned(1)) != module_digest(KINDS[kind].tuned(2))


def test_a_recurrent_network_made_twice_is_the_same() -> None:
    assert module_digest(CASES["recurrent"].original().module) == module_digest(CASES["recurrent"].original().module)


def test_what_cannot_be_described_is_new_each_time() -> None:
    module = scaled()
    vars(module)["handle"] = iter([1, 2])
    assert module_digest(module) != module_digest(module)


def test_a_changed_input_changes_the_digest() -> None:
    original, points = CASES["mlp"].original(), normal_points(5)
    changed = points.arrays["x"].copy()
    changed[4, 2] += 1e-6
    digests = [
        statistics_digest(original, given, FisherOptions()) for given in (points, CalibrationInputs({"x": changed}))
    ]
    assert digests[0] != digests[1]


FORWARD = """
import torch
from helping import activation

class Net(torch.nn.Linear):
    def forward(self, x):
        return activation(super().forward(x))
"""


SETTINGS = """
from types import SimpleNamespace
import numpy as np
import torch
from fields import FIELDS, Options

SCALE, TABLE, UNUSED = 1.0, {"shift": [1, 2], "mask": np.ones(3)}, 0
OPTIONS = Options()

class Net(torch.nn.Linear):
    def forward(self, x):
        return SCALE * super().forward(x) + TABLE["shift"][0] + OPTIONS.bias + sum(FIELDS)
"""
SET = {
    "as it was": "SCALE = 1.0",
    "unused": "UNUSED = 5",
    "a number": "SCALE = 2.0",
    "deep in a table": "TABLE['shift'][1] = 3",
    "an array": "TABLE['mask'][1] = 0",
    "in an object": "OPTIONS.bias = 2.0",
    "imported": "FIELDS = (1, 2)",
}


def test_settings_in_global_variables_decide_too_as_they_are_now(tmp_path: Path) -> None:
    (tmp_path / "network.py").write_text(SETTINGS)
    (tmp_path / "fields.py").write_text("FIELDS = (1,)\nclass Options:\n    def __init__(self): self.bias = 1.0\n")
    script = "\n".join(
        [
            "import json, torch, network; from coin_export.fisher.identity import module_digest; torch.manual_seed(0)",
            "net, digests = network.Net(3, 2), []",
            f"for change in {list(SET.values())}:",
            "    exec(change, vars(network)); digests.append(module_digest(net))",
            "print(json.dumps(digests))",
        ]
    )
    command = [sys.executable, "-B", "-c", script]
    found = json.loads(subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout)
    digests = dict(zip(SET, found, strict=True))
    assert digests.pop("unused") == digests["as it was"]
    assert len(set(digests.values())) == len(digests), digests


def test_a_helper_in_another_file_decides_too(tmp_path: Path) -> None:
    """In processes of their own, as a file is read once."""
    (tmp_path / "network.py").write_text(FORWARD)
    script = (
        "import torch, network; from coin_export.fisher.identity import module_digest; torch.manual_seed(0); "
        "print(module_digest(network.Net(3, 2)))"
    )
    digests = []
    for helper in ("tanh", "tanh", "relu"):
        (tmp_path / "deeper.py").write_text(f"import torch\ndef chosen(x):\n    return torch.{helper}(x)\n")
        (tmp_path / "helping.py").write_text("import deeper\ndef activation(x):\n    return deeper.chosen(x)\n")
        done = subprocess.run(
            [sys.executable, "-B", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        digests.append(done.stdout)
    assert digests[0] == digests[1] != digests[2]
