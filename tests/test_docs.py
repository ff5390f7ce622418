"""Every code block of README, CONTRIBUTING and docs/ is run or checked here, or says above itself why it is not.

A block of Python is run in a folder that has what the pages speak of (a tiny student in runs/demo/student, and sound);
the blocks of a page are one program. A comment on the line above a block changes that:

    <!-- not run: needs a copy of IEMOCAP -->                            it is only compiled
    <!-- runs in: tests/test_finetuning.py::test_the_page_... -->        another test runs it

Of a block of shell commands every command, file and option must exist, and of YAML every setting of a recipe. What a
program says, and files that are no code, are blocks of `text`.
"""

import ast
import functools
import io
import re
import shlex
import tempfile
from contextlib import redirect_stderr
from importlib import import_module
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np
import pytest
import soundfile
import yaml
from tiny_run import make_networks

from cmkd.commands import COMMANDS, command, main
from cmkd.runs.recipe import Recipe, load_recipe

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
_BLOCK = re.compile(
    r"(?:^ *<!-- (?P<mark>.*?) -->\n)?^(?P<indent> *)```(?P<language>.*)\n(?P<text>(?s:.*?))^ *```$", re.MULTILINE
)
LANGUAGES = {"python", "bash", "yaml", "text", "bibtex", "{toctree}", "{eval-rst}"}
OTHERS = {"hf", "pre-commit"}
"""Commands of others, whose options are theirs."""


class Block(NamedTuple):
    page: Path
    line: int
    language: str
    mark: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    content = page.read_text(encoding="utf-8")
    found = []
    for match in _BLOCK.finditer(content):
        line = content[: match.start("language")].count("\n") + 1
        indent = len(match["indent"])
        text = "".join(line[indent:] for line in match["text"].splitlines(keepends=True))
        found.append(Block(page, line, match["language"].strip(), match["mark"] or "", text))
    return found


ALL = [block for page in PAGES for block in blocks(page)]


def of(language: str):
    return pytest.mark.parametrize("block", [block for block in ALL if block.language == language], ids=str)


def test_every_block_is_of_a_kind_that_is_checked():
    assert len([block for block in ALL if block.language == "python"]) >= 20
    for page in PAGES:
        fences = [line for line in page.read_text(encoding="utf-8").splitlines() if line.lstrip().startswith("```")]
        assert len(fences) == 2 * len(blocks(page)), f"{page}: a block is not closed, or not read by this test"
    for block in ALL:
        assert block.language in LANGUAGES, f"{block}: the block has to say what it is, see tests/test_docs.py"
        if block.mark.startswith(("not run", "runs in")):
            assert re.fullmatch(r"not run: \w.{9,}|runs in: tests/\w+\.py::\w+", block.mark), f"{block}: {block.mark}"


@of("python")
def test_python_is_python_and_its_imports_are_there(block):
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0].startswith(("cmkd", "modeling_cmkd")):
            module = import_module(node.module)
            for name in node.names:
                assert hasattr(module, name.name), f"{block}: {node.module} has no {name.name}"
    if block.mark.startswith("runs in: "):
        file, name = block.mark.removeprefix("runs in: ").split("::")
        functions = ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8")))
        assert name in {node.name for node in functions if isinstance(node, ast.FunctionDef)}, f"{block}: {block.mark}"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a tiny student and the recordings that the pages name."""
    folder = tmp_path_factory.mktemp("docs")
    run = folder / "runs/demo"
    run.mkdir(parents=True)
    make_networks(run)
    (folder / "students").symlink_to(ROOT / "students")
    generator = np.random.default_rng(0)

    def record(name: str, seconds: float, channels: int = 1) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        soundfile.write(folder / name, generator.normal(0, 0.1, (int(16000 * seconds), channels)), 16000)

    record("speech.wav", 2)
    record("speech.mp3", 2)
    record("meeting.wav", 40)
    for name in ("call.wav", "calls/1.wav", "calls/2.wav"):
        record(name, 20, channels=2)
    return folder


RUN = [page for page in PAGES if any(block.language == "python" and not block.mark for block in blocks(page))]


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_python_of_a_page_runs(python, page, place):
    """As one program, in a process of its own; what is marked is not part of it."""
    program = "".join(block.text for block in blocks(page) if block.language == "python" and not block.mark)
    (place / "page.py").write_text(program, encoding="utf-8")
    code = "import runpy; runpy.run_path('page.py', run_name='__main__')"
    done = python.run(code, environment={"HF_MODULES_CACHE": str(place / "modules")}, cwd=place, timeout=900)
    assert done.returncode == 0, done.stderr


@of("yaml")
def test_yaml_is_a_part_of_a_recipe(block):
    content = yaml.safe_load(block.text)
    assert content and content.keys() <= Recipe.model_fields.keys() | {"inherits"}, str(block)


def commands(text: str) -> list[list[str]]:
    """The words of each command of a block, less comments, environment variables, and loops around it."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words and (re.fullmatch(r"\w+=.*", words[0]) or words[0] in ("do", "for", "done")):
            words = words[1:] if words[0] != "for" else []
        if words:
            found.append(words)
    return found


def options_of(words: list[str]) -> list[str]:
    return [word.split("=")[0] for word in words if re.match(r"--?[a-zA-Z]", word)]


def check_recipe(words: list[str], block: Block) -> None:
    """The words after `cmkd train`: a recipe, then settings. One that is not there may be of any corpus."""
    recipe, *settings = words
    path = ROOT / recipe
    assert path.is_file() or not recipe.startswith("recipes/") or "$" in recipe, f"{block}: {recipe}"
    with tempfile.TemporaryDirectory() as folder:
        if not path.is_file():
            path = Path(folder, "recipe.yaml")
            path.write_text("corpus: {name: manifest}\n")
        try:
            load_recipe(path, [word for word in settings if word != "..."])
        except (SystemExit, ValueError) as error:
            raise AssertionError(f"{block}: {' '.join(words)}: {error}") from error


def check_cmkd(words: list[str], block: Block) -> None:
    """The words after `cmkd`, which are read as the command would, but do nothing."""
    assert words[0] in COMMANDS, f"{block}: cmkd has no command {words[0]!r}"
    if words[0] in ("train", "crossval"):
        check_recipe(words[1:], block)
        return
    function = command(words[0])

    @functools.wraps(function)
    def nothing(*args: object, **kwargs: object) -> None:
        pass

    with mock.patch("cmkd.commands.command", lambda name: nothing), redirect_stderr(io.StringIO()) as errors:
        try:
            main(words)
        except SystemExit as end:
            raise AssertionError(f"{block}: {' '.join(words)}: {errors.getvalue()}{end.code}") from end


def check_command(words: list[str], block: Block) -> None:
    if words[0] in ("python", ".venv/bin/python", "accelerate", "torchrun"):
        presets = [word for word in words if word.startswith("launch/")]
        assert all((ROOT / preset).is_file() for preset in presets), str(block)
        if "train_distill.py" in words:
            check_recipe(words[words.index("train_distill.py") + 1 :], block)
        elif "-m" in words:
            module, after = words[words.index("-m") + 1], words[words.index("-m") + 2 :]
            if module == "cmkd":
                check_cmkd(after, block)
            elif module.startswith("benchmarks."):
                source = (ROOT / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")
                goes_to_train = "parse_known_args" in source  # what it does not know is a setting of cmkd train
                for option in options_of(after):
                    is_setting = goes_to_train and option.removeprefix("--").split(".")[0] in Recipe.model_fields
                    assert is_setting or f'"{option}"' in source, f"{block}: {module} has no {option}"
            else:
                assert module in ("pytest", "http.server"), f"{block}: {module}"
        elif words[1].endswith(".py"):
            written = words[1] == "exported/onnx_cmkd.py"  # by `cmkd export`, as tests/test_export.py has it
            assert written or (ROOT / words[1]).is_file(), f"{block}: {words[1]}"
        return
    if words[0] == "cmkd":
        check_cmkd(words[1:], block)
        return
    if words[0] == "make":
        source = (ROOT / "Makefile").read_text(encoding="utf-8")
        targets = [word for word in words[1:] if "=" not in word]
        assert targets and all(re.search(rf"^{target}:", source, re.M) for target in targets), f"{block}: {words}"
        return
    if words[0] == "pip":
        assert words[1] == "install", f"{block}: {words}"
        return
    assert words[0].removeprefix(".venv/bin/") in OTHERS, f"{block}: what is {words[0]!r}?"


@of("bash")
def test_commands_and_their_options_are_there(block):
    for words in commands(block.text):
        check_command(words, block)


@pytest.mark.parametrize(
    "command",
    [
        "cmkd prepair iemocap",
        "cmkd push run user/name --publik",
        "cmkd push run",
        "cmkd prepare iemocap folder --corpus.fol 1",
        "cmkd prepare iemocap folder --corpus.fold one",
        "accelerate launch -m cmkd transcribe iemocap folder --modell x",
        "cmkd train x.yaml --learning_rat 1",
        "cmkd train recipes/demo.yaml --corpus.fold 1",
        "python train_distill.py x.yaml --learning_rat 1",
        "python train_distill.py recipes/no_such.yaml",
        "python -m benchmarks.systems --pages x",
        "make tasts",
        "frobnicate",
    ],
)
def test_a_command_that_is_not_there_is_found(command):
    with pytest.raises(AssertionError):
        check_command(shlex.split(command), Block(ROOT / "README.md", 1, "bash", "", command))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_that_are_there(page):
    """Sphinx checks those inside of docs/, and their anchors, when the site is built; this also those around it."""
    for target in re.findall(r"\]\(([^)\s#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)}: {target}"
