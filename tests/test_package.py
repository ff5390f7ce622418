"""What importing the package costs and brings along, and the versions that it declares."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

import cmkd
from cmkd.formats import SCHEMA_VERSIONS, check_version, with_version
from cmkd.hub.push import ALLOWED

CHECKOUT = Path(__file__).parents[1]
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REQUIREMENTS = {
    canonicalize_name(requirement.name): requirement.specifier
    for extra in [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    for requirement in map(Requirement, extra)
}
OURS = [*CHECKOUT.glob("*.py"), *(CHECKOUT / "cmkd").rglob("*.py")]


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys; before = set(sys.modules); import cmkd; print(*sorted(set(sys.modules) - before))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=900)
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


def test_every_file_that_travels_with_a_checkpoint_is_named_where_it_has_to_be():
    """It is installed, checked, pushed, and named to whoever has to read it before it runs."""
    travelling = {path.name for path in CHECKOUT.glob("*_cmkd.py")}
    settings = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    assert {f"{name}.py" for name in settings["setuptools"]["py-modules"]} >= travelling
    assert set(settings["mypy"]["files"]) >= travelling
    assert set(settings["pytest"]["ini_options"]["testpaths"]) >= travelling
    errors = {rule.rpartition(":")[2] for rule in settings["pytest"]["ini_options"]["filterwarnings"]}
    assert {f"{name}.py" for name in errors} >= travelling
    assert {name for name in ALLOWED if name.endswith(".py")} == travelling
    for page in ("README.md", "docs/security.md", "docs/hub.md"):
        assert set(re.findall(r"`(\w+_cmkd\.py)`", (CHECKOUT / page).read_text(encoding="utf-8"))) >= travelling, page


def pins(name: str) -> dict[str, Version]:
    """The version of every package in a file of constraints, which has lines of one form only."""
    lines = (CHECKOUT / name).read_text(encoding="utf-8").splitlines()
    requirements = [Requirement(line) for line in lines if line and not line.lstrip().startswith("#")]
    assert all(re.fullmatch(r"==[^,*]+", str(requirement.specifier)) for requirement in requirements)
    assert len({canonicalize_name(requirement.name) for requirement in requirements}) == len(requirements)
    return {
        canonicalize_name(requirement.name): Version(str(requirement.specifier)[2:]) for requirement in requirements
    }


def test_the_pinned_versions_are_versions_that_the_metadata_admit():
    pinned = pins("constraints.txt")
    for name, specifier in REQUIREMENTS.items():
        assert pinned[name] in specifier, name


def test_the_lowest_versions_are_the_lower_bounds_of_the_metadata():
    """So that every lower bound is a release, and one that the tests run with."""
    lowest = pins("constraints-lowest.txt")
    needs_newer_numpy = {"kokoro-onnx"}  # than the lower bound, and no test needs it
    for name, specifier in REQUIREMENTS.items():
        if name in needs_newer_numpy:
            continue
        (bound,) = [Version(part.version) for part in specifier if part.operator == ">="]
        assert lowest[name] == bound, f"{name}: compute constraints-lowest.txt anew, as CONTRIBUTING.md says"


def test_every_python_that_the_metadata_admit_has_a_job():
    named = [line.rpartition(" ")[2] for line in PROJECT["classifiers"] if ":: Python :: 3." in line]
    admitted = SpecifierSet(PROJECT["requires-python"])
    assert [f"3.{minor}" for minor in range(100) if f"3.{minor}" in admitted] == named

    workflow = yaml.safe_load((CHECKOUT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    matrix = workflow["jobs"]["test"]["strategy"]["matrix"]
    assert matrix["python-version"] == named and matrix["versions"] == ["pinned"]
    assert matrix["include"] == [
        {"versions": "lowest", "python-version": named[0]},
        {"versions": "newest", "python-version": named[-1]},
    ]


def test_the_version_stands_once():
    assert "version" not in PROJECT and PROJECT["dynamic"] == ["version"]
    assert yaml.safe_load((CHECKOUT / "CITATION.cff").read_text(encoding="utf-8"))["version"] == cmkd.__version__


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of what the checkout has, made from its source distribution as a build tool makes it."""
    place = tmp_path_factory.mktemp("wheel")
    unneeded = shutil.ignore_patterns("__pycache__")
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "train_distill.py"):
        (place / "checkout").mkdir(exist_ok=True)
        shutil.copy(CHECKOUT / name, place / "checkout")
    for path in CHECKOUT.glob("*_cmkd.py"):
        shutil.copy(path, place / "checkout")
    for name in ("cmkd", "hub_cards"):
        shutil.copytree(CHECKOUT / name, place / "checkout" / name, ignore=unneeded)
    build = "from setuptools import build_meta as b; print(b.{}({!r}))"
    options = {"capture_output": True, "text": True, "check": True}
    sdist = [sys.executable, "-c", build.format("build_sdist", str(place))]
    made = subprocess.run(sdist, cwd=place / "checkout", timeout=900, **options)
    shutil.unpack_archive(place / made.stdout.split()[-1], place)
    (source,) = place.glob("cmkd-*/")
    wheel = [sys.executable, "-c", build.format("build_wheel", str(place))]
    made = subprocess.run(wheel, cwd=source, timeout=900, **options)
    return place / made.stdout.split()[-1]


@pytest.mark.slow
def test_a_wheel_is_complete_and_in_nobodys_way(wheel, tmp_path):
    """As the release workflow checks it: outside the checkout, from the wheel's own files."""
    shutil.unpack_archive(wheel, tmp_path / "installed", "zip")
    done = subprocess.run(
        [sys.executable, str(CHECKOUT / ".ci/check_wheel.py"), str(wheel)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "installed"), "HF_MODULES_CACHE": str(tmp_path / "modules")},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0 and "complete, and in nobody's way" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("version", [2, 0, "1", True, None])
def test_a_file_of_a_format_that_is_not_known_is_refused(version, tmp_path):
    with pytest.raises(ValueError, match=r"results\.json says that its schema_version is .*reads versions 1 to 1"):
        check_version(tmp_path / "results.json", {"schema_version": version})


def test_a_file_of_before_versions_is_read_and_a_new_one_says_its_own():
    check_version(Path("results.json"), {"systems": {}})
    assert with_version("results.json", {"systems": {}}) == {"schema_version": 1, "systems": {}}
    page = (CHECKOUT / "docs/compatibility.md").read_text(encoding="utf-8")
    for name, version in SCHEMA_VERSIONS.items():
        assert re.search(rf"^\| `{re.escape(name)}`.* \| {version} \|", page, re.MULTILINE), name
