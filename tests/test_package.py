"""What importing the package costs and brings along."""

import subprocess
import sys

import cmkd


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys; before = set(sys.modules); import cmkd; print(*sorted(set(sys.modules) - before))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported = {name.split(".")[0] for name in result.stdout.split()}
    assert imported.isdisjoint({"torch", "transformers", "datasets", "numpy", "accelerate", "matplotlib", "pyarrow"})
    assert "cmkd" in imported


def test_every_public_name_is_there():
    for name in cmkd.__all__:
        assert getattr(cmkd, name) is not None
    assert set(cmkd.__all__) <= set(dir(cmkd))
