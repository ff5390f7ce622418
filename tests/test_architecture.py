"""Who may import whom: the rooms of CONTRIBUTING.md ("Where things are"), read from the imports of every module.

An import counts wherever it stands: at the top, in a function, or under TYPE_CHECKING, which is never run but says all
the same that one module knows the other. `import_module("...")` and the table of lazy names in `cmkd/__init__.py` are
not imports of this kind: that file is the door of the package, through which nothing inside it may go.

Tests import no tests, programs in their strings included: otherwise no file could be changed, or left out, on its own.
"""

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

LEVELS: Sequence[Sequence[str]] = (
    ("cmkd.__main__",),
    ("train_distill", "cmkd.commands"),
    ("cmkd.audit",),
    ("cmkd.reporting", "cmkd.predict"),
    ("cmkd.hub", "cmkd.transcription", "cmkd.runs", "cmkd.export"),
    ("modeling_cmkd", "speech_encoder_cmkd", "pipeline_cmkd", "windows_cmkd"),
    ("cmkd.corpora",),
    ("cmkd.features",),
    ("cmkd.training",),
    ("cmkd.scoring",),
    (
        "cmkd.stages",
        "cmkd.losses",
        "cmkd.quality",
        "cmkd.metrics",
        "cmkd.formats",
        "cmkd.json_files",
        "cmkd.atomic",
        "cmkd.spelling",
        "cmkd.command_line",
        "cmkd.processes",
        "cmkd.identity",
        "cmkd.places",
        "cmkd.cpus",
    ),
    ("configuration_cmkd", "audio_cmkd"),
)
"""Rooms from the top down. A module may import its own room and every level below; rooms of one level are strangers,
but for the base, whose modules may know each other as long as there is no circle."""

BASE = LEVELS[-2]
TRAVELLING = (
    "configuration_cmkd",
    "audio_cmkd",
    "speech_encoder_cmkd",
    "modeling_cmkd",
    "pipeline_cmkd",
    "windows_cmkd",
)
"""These go to the Hub with every checkpoint, and may import nothing of ours but each other."""
SELF_CONTAINED = ("cmkd.losses", "cmkd.quality", "cmkd.metrics")
"""These may import nothing of ours at all, but the names of configuration_cmkd."""
DOOR = "cmkd"


def modules_of(root: Path) -> dict[str, Path]:
    """Every module of the package and beside it, by its dotted name; a package has the name of its folder."""
    found = {}
    beside = [path for path in sorted(root.glob("*.py")) if path.name != "setup.py"]  # which is run, never imported
    for path in [*beside, *sorted((root / "cmkd").rglob("*.py"))]:
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported_names(path: Path, module: str) -> Iterator[tuple[str, int]]:
    """Everything that a file imports, as a dotted name, with the line; "from a import b" gives a.b."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = node.module or ""
            if node.level:
                parts = package.split(".") if package else []
                above = parts[: len(parts) - node.level + 1]
                start = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((f"{start}.{alias.name}" if start else alias.name, node.lineno) for alias in node.names)


def arrows_of(root: Path) -> dict[str, dict[str, int]]:
    """By module the modules that it imports, each with the line of the first such import."""
    modules = modules_of(root)
    arrows: dict[str, dict[str, int]] = {module: {} for module in modules}
    for module, path in modules.items():
        for name, line in imported_names(path, module):
            target = name
            while target and target not in modules:
                target = target.rpartition(".")[0]
            if target and target != module:
                arrows[module].setdefault(target, line)
    return arrows


def room_of(module: str) -> str:
    """The room, the file at the base or the file beside the package that a module is; "" if it has no place."""
    names = (name for level in LEVELS for name in level)
    return next((name for name in names if module == name or module.startswith(f"{name}.")), "")


def circles(arrows: Mapping[str, Mapping[str, object]]) -> list[list[str]]:
    """The circles among the arrows; each starts at the name that comes first in the alphabet."""
    found: list[list[str]] = []
    done: set[str] = set()

    def walk(module: str, way: list[str]) -> None:
        if module in way:
            circle = way[way.index(module) :]
            start = circle.index(min(circle))
            found.append([*circle[start:], *circle[:start], circle[start]])
        elif module not in done:
            for target in arrows.get(module, ()):
                walk(target, [*way, module])
            done.add(module)

    for module in arrows:
        walk(module, [])
    return found


def imports_of_tests(root: Path) -> Iterator[str]:
    """A sentence for each."""
    pattern = re.compile(r"^ *(?:from|import) (?:.*, *)?(test_\w+)", re.MULTILINE)
    for path in sorted((root / "tests").glob("*.py")):
        text = path.read_text(encoding="utf-8")
        for match in pattern.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            yield (
                f"tests/{path.name}:{line} imports {match[1]}: what tests share goes into conftest.py or into a module "
                "of tests/ whose name says what is in it"
            )


def violations(root: Path) -> list[str]:
    """A sentence for each arrow that may not be and for each circle, and for each module that has no room."""
    arrows = arrows_of(root)
    found = []
    level_of = {name: level for level, names in enumerate(LEVELS) for name in names}
    for module in arrows:
        if module != DOOR and not room_of(module):
            found.append(f"{module} has no room: give it a place in LEVELS and in CONTRIBUTING.md")
    between: dict[str, dict[str, int]] = {}
    for module, targets in arrows.items():
        for target, line in targets.items():
            arrow = f"{module}:{line} imports {target}"
            here, there = room_of(module), room_of(target)
            if target == DOOR and module != DOOR:
                found.append(f"{arrow}: nothing goes through the door of the package; name the module")
            if not here or not there or here == there:
                continue
            between.setdefault(here, {})[there] = line
            if level_of[there] < level_of[here]:
                found.append(f"{arrow}: the arrow runs up, from {here} to {there}")
            elif level_of[there] == level_of[here] and here not in (*BASE, *TRAVELLING):
                found.append(f"{arrow}: {here} and {there} are rooms of one level, which do not know each other")
            if module in TRAVELLING and target not in TRAVELLING:
                found.append(f"{arrow}: a file that travels to the Hub may import those that travel with it only")
            if here in SELF_CONTAINED and there != "configuration_cmkd":
                found.append(f"{arrow}: {here} may import packages only")
    found += [f"a circle of modules: {' -> '.join(circle)}" for circle in circles(arrows)]
    found += [f"a circle of rooms: {' -> '.join(circle)}" for circle in circles(between)]
    return [*found, *imports_of_tests(root)]


def test_arrows_run_down_and_there_is_no_circle():
    assert violations(ROOT) == []


def test_the_imports_are_those_that_the_files_have():
    arrows = arrows_of(ROOT)
    assert arrows["cmkd.losses"] == {}
    assert {"cmkd.losses", "cmkd.training.arguments"} <= arrows["cmkd.training.trainer"].keys()
    assert "cmkd.corpora.report" in arrows["cmkd.corpora.schema"]  # under TYPE_CHECKING
    assert "cmkd.hub.corpus" in arrows["cmkd.hub.push"]  # in a function
    assert "configuration_cmkd" in arrows["modeling_cmkd"]


def test_contributing_names_every_room():
    table = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("## Where things are")[1].split("\n## ")[0]
    rooms = {room_of(module) for module in arrows_of(ROOT)} - {""}
    assert [room for room in sorted(rooms) if f"`{room.removeprefix('cmkd.')}`" not in table] == []


SOUND = {
    "configuration_cmkd.py": "",
    "modeling_cmkd.py": "try:\n    from .configuration_cmkd import A\nexcept:\n    import configuration_cmkd",
    "train_distill.py": "from cmkd.hub.push import push\nfrom cmkd.runs import folder",
    "cmkd/__init__.py": "if TYPE_CHECKING:\n    from cmkd.hub.push import push as push",
    "cmkd/atomic.py": "import os",
    "cmkd/identity.py": "from cmkd.atomic import written_whole",
    "cmkd/losses.py": "import torch\nfrom configuration_cmkd import A",
    "cmkd/corpora/__init__.py": "",
    "cmkd/corpora/schema.py": "from cmkd.corpora import report",
    "cmkd/corpora/report.py": "from cmkd.atomic import written_whole",
    "cmkd/hub/__init__.py": "",
    "cmkd/hub/push.py": "def push():\n    from cmkd.corpora.schema import Corpus",
    "cmkd/runs/__init__.py": "",
    "cmkd/runs/folder.py": "from . import seeds\nfrom modeling_cmkd import Student",
    "cmkd/runs/seeds.py": "import cmkd.losses",
    "tests/tones.py": "import numpy",
    "tests/test_tones.py": "from tones import SIZES",
}
"""A package of a few files in which all is right."""

VIOLATIONS = {
    "at the top": (
        {"cmkd/corpora/report.py": "from cmkd.hub.push import push"},
        "cmkd.corpora.report:1 imports cmkd.hub.push: the arrow runs up, from cmkd.corpora to cmkd.hub",
    ),
    "in a function": (
        {"cmkd/losses.py": "def loss():\n    import cmkd.identity"},
        "cmkd.losses:2 imports cmkd.identity: cmkd.losses may import packages only",
    ),
    "under TYPE_CHECKING": (
        {"cmkd/atomic.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from cmkd.runs import folder"},
        "cmkd.atomic:3 imports cmkd.runs.folder: the arrow runs up, from cmkd.atomic to cmkd.runs",
    ),
    "relative": (
        {"cmkd/corpora/report.py": "from ..runs.seeds import gather"},
        "cmkd.corpora.report:1 imports cmkd.runs.seeds: the arrow runs up, from cmkd.corpora to cmkd.runs",
    ),
    "of a room as a whole": (
        {"cmkd/atomic.py": "from cmkd import runs"},
        "cmkd.atomic:1 imports cmkd.runs: the arrow runs up, from cmkd.atomic to cmkd.runs",
    ),
    "of the main script": (
        {"cmkd/runs/folder.py": "import train_distill"},
        "cmkd.runs.folder:1 imports train_distill: the arrow runs up, from cmkd.runs to train_distill",
    ),
    "to a neighbour": (
        {"cmkd/runs/seeds.py": "from cmkd.hub import push"},
        "cmkd.runs.seeds:1 imports cmkd.hub.push: cmkd.runs and cmkd.hub are rooms of one level, which do not know "
        "each other",
    ),
    "through the door": (
        {"cmkd/runs/seeds.py": "from cmkd import push"},
        "cmkd.runs.seeds:1 imports cmkd: nothing goes through the door of the package; name the module",
    ),
    "of what stays from what travels": (
        {"modeling_cmkd.py": "from cmkd.atomic import written_whole"},
        "modeling_cmkd:1 imports cmkd.atomic: a file that travels to the Hub may import those that travel with it only",
    ),
    "a circle in a room": (
        {"cmkd/corpora/report.py": "def f():\n    from cmkd.corpora.schema import Corpus"},
        "a circle of modules: cmkd.corpora.report -> cmkd.corpora.schema -> cmkd.corpora.report",
    ),
    "a circle at the base": (
        {"cmkd/atomic.py": "from cmkd.identity import digest"},
        "a circle of modules: cmkd.atomic -> cmkd.identity -> cmkd.atomic",
    ),
    "a circle of rooms": (
        {"cmkd/runs/seeds.py": "from cmkd.hub import push", "cmkd/hub/cards.py": "from cmkd.runs import folder"},
        "a circle of rooms: cmkd.hub -> cmkd.runs -> cmkd.hub",
    ),
    "a module without a room": (
        {"cmkd/utils.py": ""},
        "cmkd.utils has no room: give it a place in LEVELS and in CONTRIBUTING.md",
    ),
    "of a test by a test": (
        {"tests/test_seeds.py": "import os\nfrom test_tones import recipe  # the fixture"},
        "tests/test_seeds.py:2 imports test_tones: what tests share goes into conftest.py or into a module of tests/ "
        "whose name says what is in it",
    ),
    "of a test by a program of a test": (
        {"tests/worker.py": 'PROGRAM = """\n    import sys, test_tones\n"""'},
        "tests/worker.py:2 imports test_tones: what tests share goes into conftest.py or into a module of tests/ whose "
        "name says what is in it",
    ),
}


def make_tree(root: Path, files: Mapping[str, str]) -> Path:
    for name, text in (SOUND | dict(files)).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_a_tree_in_which_all_is_right(tmp_path):
    assert violations(make_tree(tmp_path, {})) == []


@pytest.mark.parametrize(("files", "sentence"), VIOLATIONS.values(), ids=VIOLATIONS)
def test_each_kind_of_violation_is_found(tmp_path, files, sentence):
    assert sentence in violations(make_tree(tmp_path, files))


if __name__ == "__main__":
    raise SystemExit("\n".join(violations(ROOT)) or None)
