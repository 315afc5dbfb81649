"""What cannot be exported is told before the encoder runs, which takes far longer."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import DTypeLike
from torch import nn

from coin_export.datasets.calibration import CalibrationInputs
from coin_export.errors import ExportError, ModelError
from coin_export.pipeline.build import build_group
from coin_export.pipeline.plan import plan
from coin_export.recipe import Recipe


class Branching(nn.Linear):
    """Branches on the values of a tensor."""

    def __init__(self) -> None:
        super().__init__(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output = super().forward(x)
        return output if output.sum() > 0 else -output


class DoubleConvolution(nn.Sequential):
    """ONNX Runtime has no convolution of float64."""

    def __init__(self) -> None:
        super().__init__(nn.Unflatten(1, (1, 3)), nn.Conv1d(1, 2, 3), nn.Flatten())
        self.double()


CASES = {
    "branching": (Branching, np.float32, "model 'a': torch.export cannot capture the model"),
    "float64": (DoubleConvolution, np.float64, "lacks this operation for numbers of this kind, so try float32"),
}


@pytest.mark.parametrize(("make", "dtype", "message"), CASES.values(), ids=CASES)
def test_by_a_build(make: type[nn.Module], dtype: DTypeLike, message: str, tmp_path: Path) -> None:
    told: list[str] = []
    points = CalibrationInputs({"x": np.random.default_rng(0).normal(size=(20, 3)).astype(dtype)})
    with pytest.raises(ExportError, match=message):
        build_group("g", {"a": make(), "b": make()}, points, tmp_path / "repository", progress=told.append)
    assert told[-1].startswith(("exporting a, b", "comparing")) and not any("encoding" in text for text in told)
    assert not (tmp_path / "repository").exists()


@pytest.mark.parametrize("name", CASES)
def test_by_a_plan(name: str, tmp_path: Path) -> None:
    make, dtype, message = CASES[name]
    np.savez(tmp_path / "points.npz", x=np.random.default_rng(0).normal(size=(20, 3)).astype(dtype))
    models = []
    for model in "ab":
        torch.save(make().state_dict(), tmp_path / f"{model}.pt")
        models.append({"name": model, "factory": f"{__name__}:{make.__name__}", "checkpoint": tmp_path / f"{model}.pt"})
    recipe = Recipe.model_validate(
        {
            "name": "g",
            "models": models,
            "calibration": {"source": str(tmp_path / "points.npz"), "inputs": ["x"]},
            "target": tmp_path / "repository",
        }
    )
    with pytest.raises(ExportError, match=message):
        plan(recipe)
    assert {path.suffix for path in tmp_path.iterdir()} == {".npz", ".pt"}


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_a_script_module_is_refused_at_once(tmp_path: Path) -> None:
    scripted = torch.jit.script(nn.Linear(3, 2))
    points = CalibrationInputs({"x": np.zeros((20, 3), np.float32)})
    with pytest.raises(ModelError, match="model 'a' is a ScriptModule"):
        build_group("g", {"a": scripted, "b": scripted}, points, tmp_path / "repository")
