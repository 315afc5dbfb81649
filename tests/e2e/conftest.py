"""A user's own project on disk: a module with a factory, checkpoints, calibration and labelled data, a recipe."""

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

FACTORY = """
import torch
from torch import nn


def make(width: int = 16) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, width), nn.ReLU(), nn.Linear(width, 3))
"""


COMMAND = [sys.executable, "-c", "from coin_export.cli import main; main()"]


@dataclass(frozen=True)
class UserProject:
    """Where everything is, and the labelled points of each original."""

    folder: Path
    recipe: Path
    target: Path
    names: tuple[str, ...]

    def run(self, *arguments: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
        """Run the command in the project's folder, as a user does."""
        result = subprocess.run(
            [*COMMAND, *arguments], capture_output=True, text=True, cwd=self.folder, timeout=300, check=False
        )
        assert result.returncode == expect, result.stdout + result.stderr
        return result

    def files(self) -> dict[str, bytes]:
        """Return the content of every file of the repository."""
        return files(self.target)

    def rewrite(self, **changes: Any) -> Path:
        """Write the recipe again with some top-level keys changed."""
        content = yaml.safe_load(self.recipe.read_text()) | changes
        self.recipe.write_text(yaml.safe_dump(content))
        return self.recipe


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def make_project(folder: Path, originals: int = 2) -> UserProject:
    """Write a project whose originals are one network with slightly different heads."""
    (folder / "my_networks.py").write_text(FACTORY)
    namespace: dict[str, Any] = {}
    exec(FACTORY, namespace)
    random = np.random.default_rng(0)
    names = tuple(f"task_{index}" for index in range(originals))
    for index, name in enumerate(names):
        network = namespace["make"](16)
        generator = torch.Generator().manual_seed(index)
        with torch.no_grad():
            for parameter in network[3].parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
        save_file(network.state_dict(), folder / f"{name}.safetensors")
        images = random.normal(size=(60, 3, 4)).astype(np.float32)
        with torch.no_grad():
            labels = network(torch.from_numpy(images)).argmax(1).numpy()
        np.savez(folder / f"{name}_test.npz", image=images, labels=labels)
    np.savez(folder / "calibration.npz", image=random.normal(size=(80, 3, 4)).astype(np.float32))
    recipe = {
        "name": "tasks",
        "models": [
            {
                "name": name,
                "factory": "my_networks:make",
                "arguments": {"width": 16},
                "checkpoint": f"{name}.safetensors",
            }
            for name in names
        ],
        "calibration": {"source": "calibration.npz"},
        "encoder": {"name": "coin"},
        "outputs": ["scores"],
        "evaluation": {name: {"source": f"{name}_test.npz"} for name in names},
        "target": "repository",
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return project_in(folder, names)


def project_in(folder: Path, names: tuple[str, ...]) -> UserProject:
    return UserProject(folder, folder / "recipe.yaml", folder / "repository", names)


@pytest.fixture
def project(tmp_path: Path) -> UserProject:
    return make_project(tmp_path)


@pytest.fixture(scope="session")
def built_once(tmp_path_factory: pytest.TempPathFactory) -> UserProject:
    project = make_project(tmp_path_factory.mktemp("project"))
    project.run("build", "recipe.yaml")
    return project


@pytest.fixture
def built(built_once: UserProject, tmp_path: Path) -> UserProject:
    """A project after `coin-export build`, for the test to do with as it likes."""
    shutil.copytree(built_once.folder, tmp_path, dirs_exist_ok=True)
    return project_in(tmp_path, built_once.names)
