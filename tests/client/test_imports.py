import subprocess
import sys

import coin_export.client

BLOCKED = ("torch", "onnx", "onnxruntime", "onnxscript", "pydantic", "safetensors", "yaml")
CODE = f"""
import sys
for name in {BLOCKED!r}:
    sys.modules[name] = None  # importing it raises ImportError
import coin_export.client
assert not {{"coin_export.serve", "coin_export.model", "coin_export.export", "coin_export.recipe"}} & set(sys.modules)
print(*coin_export.client.__all__)
"""


def test_the_client_imports_without_the_packages_of_the_build() -> None:
    found = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stderr
    assert found.stdout.split() == coin_export.client.__all__


def test_every_public_name_exists() -> None:
    assert all(hasattr(coin_export.client, name) for name in coin_export.client.__all__)
