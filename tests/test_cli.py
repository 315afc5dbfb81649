import subprocess
import sys
from pathlib import Path

import pytest

from coin_export import __version__

COMMANDS = ("build", "fisher", "merge", "inspect", "verify", "serve", "infer", "evaluate", "demo")


def run(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command as a user does."""
    command = [sys.executable, "-c", "from coin_export.cli import main; main()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=120, check=False)


def test_help_names_every_command_and_each_explains_itself() -> None:
    overview = run("--help").stdout
    assert all(command in overview for command in COMMANDS)
    for command in COMMANDS:
        result = run(command, "--help")
        assert result.returncode == 0 and "Usage" in result.stdout


def test_the_version_is_printed() -> None:
    assert run("--version").stdout.strip() == __version__


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("build", "none.yaml"), "none.yaml: cannot be read"),
        (("inspect", "nowhere"), "nowhere"),
        (("verify", "nowhere"), "nowhere"),
        (("serve", "nowhere"), "nowhere"),
        (("infer", "127.0.0.1:1", "--input", "none.npz"), "none.npz: no such file"),
        (("evaluate", "nowhere", "--data", "nonsense"), "write it as NAME=FILE"),
        (("demo", "--encoder", "magic"), "--encoder 'magic': choose one of average, coin"),
    ],
)
def test_a_user_error_is_one_message_and_exit_code_two(
    tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    result = run(*arguments, cwd=tmp_path)
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith("error: ") and message in result.stderr
    assert "Traceback" not in result.stderr and len(result.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [("build",), ("nonsense",), ("infer", "a:1", "--deadline", "soon")])
def test_wrong_usage_exits_with_two(arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert result.returncode == 2 and "Traceback" not in result.stderr


def test_servers_that_cannot_be_reached_are_a_failure_and_exit_code_one() -> None:
    result = run("inspect", "127.0.0.1:1")
    assert result.returncode == 1
    assert result.stderr.startswith("error: ") and "127.0.0.1:1" in result.stderr


def test_a_command_whose_extra_is_not_installed_names_what_to_install() -> None:
    blocked = "import sys; sys.modules['torch'] = None; from coin_export.cli import main; main()"
    command = [sys.executable, "-c", blocked, "build", "recipe.yaml"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 2
    assert "needs torch" in result.stderr and "pip install 'coin-export[build]'" in result.stderr
