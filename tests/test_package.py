"""What importing the package costs and brings along."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import cmkd

CHECKOUT = Path(__file__).parents[1]
OURS = [*CHECKOUT.glob("*.py"), *(CHECKOUT / "cmkd").rglob("*.py")]


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys; before = set(sys.modules); import cmkd; print(*sorted(set(sys.modules) - before))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    imported = {name.split(".")[0] for name in result.stdout.split()}
    assert imported.isdisjoint({"torch", "transformers", "datasets", "numpy", "accelerate", "matplotlib", "pyarrow"})
    assert "cmkd" in imported


def test_every_public_name_is_there():
    for name in cmkd.__all__:
        assert getattr(cmkd, name) is not None
    assert set(cmkd.__all__) <= set(dir(cmkd))


@pytest.mark.parametrize("path", OURS, ids=lambda path: str(path.relative_to(CHECKOUT)))
def test_nothing_of_ours_reads_or_writes_pickles(path):
    """As docs/security.md promises, with its exceptions: Trainer's own checkpoints, and CPC's, read as weights only."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    weights_only = [
        node.func
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and path.name == "cpc_checkpoint.py"
        and any(keyword.arg == "weights_only" and ast.unparse(keyword.value) == "True" for keyword in node.keywords)
    ]
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            modules = {node.module or ""} if isinstance(node, ast.ImportFrom) else {name.name for name in node.names}
            modules = {module.split(".")[0] for module in modules}
            assert modules.isdisjoint({"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"})
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node not in weights_only:
            assert (node.value.id, node.attr) not in {("torch", "load"), ("torch", "save")}
        if isinstance(node, ast.keyword):
            assert node.arg != "allow_pickle"
