from pathlib import Path

import pytest

from coin_export.code.manifest import Group
from tests.repository.groups import build


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "place" / "models"


@pytest.fixture
def built(target: Path, tmp_path: Path) -> Group:
    """A repository with a group, a foreign model and other things, at ``target``."""
    group = build(target, tmp_path / "files")
    (target / "README.md").write_text("read me")
    (target / ".gitkeep").touch()
    (target / "foreign" / "1").mkdir(parents=True)
    (target / "foreign" / "config.pbtxt").write_text('name: "foreign"\nfield_of_tomorrow: 1\n')
    (target / "foreign" / "1" / "weights").write_bytes(bytes(1000))
    (target / "link").symlink_to("foreign/1")
    return group
