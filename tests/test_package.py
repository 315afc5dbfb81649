import subprocess
import sys

import pytest

import coin_export


def test_every_public_name_exists() -> None:
    for name in coin_export.__all__:
        assert getattr(coin_export, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = coin_export.nothing


def test_importing_the_package_imports_neither_half() -> None:
    code = "import sys, coin_export; print({'torch', 'onnx', 'onnxruntime', 'tritonclient'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.strip() == "set()"
