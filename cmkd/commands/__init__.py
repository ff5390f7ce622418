"""The command `cmkd`: one function per command, in one module per group. See `cmkd --help`.

`GROUPS` lists all commands. Of these modules only the one of the command that was called is imported, and they import
what is heavy inside of their functions, so that help is quick.

A command is a function whose annotated parameters are its arguments and options, and whose docstring describes them.
One that has a parameter `corpus: CorpusSettings` also has one called `name`, of the corpus, whose settings then are the
options `--corpus.KEY`. One that takes `*arguments` reads these itself.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import shutil
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import tyro

from cmkd.command_line import failures_in_words, paragraphs, read_arguments
from cmkd.corpora import CORPORA
from cmkd.corpora.settings import corpus_options
from cmkd.spelling import did_you_mean

GROUPS: Mapping[str, Mapping[str, tuple[str, str]]] = {
    "Training": {
        "train": ("training", "Train the teacher and the students of a recipe, and write a report."),
        "crossval": ("training", "Train and test a recipe on every fold of a corpus."),
        "cache": ("features", "List the stored features of frozen encoders, and remove those that are not needed."),
    },
    "Scoring": {
        "predict": ("predict", "Score files, folders, segments and data sets of speech with a student."),
        "evaluate": ("scoring", "Score a student or a teacher on a corpus, and write predictions and figures."),
        "audit": ("audit", "Audit any model: is it right, robust, steady and fair, and what does it cost."),
        "export": ("export", "Write a student for ONNX Runtime, which needs no torch, or as a page."),
        "table": ("scoring", "Put runs into the tables of the paper, beside the published figures."),
    },
    "Corpora": {
        "prepare": ("corpora", "Build and check a corpus, print its card, and write the card beside the data."),
        "transcribe": ("corpora", "Transcribe a corpus, for the words that the teacher reads."),
    },
    "Sharing on the Hub": {
        "push": ("hub", "Put the student or the teacher of a run on the Hub."),
        "push-corpus": ("hub", "Put a corpus on the Hub, its sound included."),
        "push-space": ("hub", "Put a page on the Hub that scores uploaded or recorded speech."),
        "push-metric": ("hub", "Put the metric concordance_cc on the Hub."),
        "convert-cpc": ("hub", "Convert a published checkpoint of Modified CPC for recipes and AutoModel."),
    },
}
"""By group and command: the module of this package that has it, and what it does, in one sentence."""

_ABOUT = f"""
usage: cmkd COMMAND ...

Cross-modal conditional teacher-student training for speech emotion recognition.

`cmkd COMMAND --help` says what a command does and lists its options, `cmkd train RECIPE --help` those of a recipe with
its values, and `cmkd prepare NAME --help` the settings of a corpus, whose NAME is one of {", ".join(CORPORA)}.
"""

COMMANDS = {name: entry for commands in GROUPS.values() for name, entry in commands.items()}

CorpusName = Annotated[
    str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME", help=f"The corpus: {', '.join(CORPORA)}.")
]
DataDir = Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="[DATA_DIR]")]


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command that the arguments name.

    Args:
        arguments: what stands behind `cmkd`; by default what this process was started with.

    Raises:
        SystemExit: with 1 after a message about what went wrong, with 2 after one about the arguments.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        return
    name, *rest = arguments
    if name not in COMMANDS:
        print(f"cmkd: there is no command {name!r}.{did_you_mean(name, COMMANDS)} See cmkd --help.", file=sys.stderr)
        sys.exit(2)
    with failures_in_words(f"cmkd {name}"):
        function = command(name)
        parameters = inspect.signature(function).parameters
        if "arguments" in parameters:
            function(*rest)
            return
        if "corpus" in parameters:
            function = _with_corpus_options(function, rest)
        read_arguments(function, rest, f"cmkd {name}")


def command(name: str) -> Callable[..., None]:
    """The function that is a command, such as "push-corpus"."""
    return getattr(importlib.import_module(f"cmkd.commands.{COMMANDS[name][0]}"), name.replace("-", "_"))


def _with_corpus_options(function: Callable[..., None], arguments: Sequence[str]) -> Callable[..., None]:
    """The function with the settings of the corpus that the arguments name as options, once they name one."""
    signature = inspect.signature(function)
    position = list(signature.parameters).index("name")
    first = list(takewhile(lambda argument: not argument.startswith("-"), arguments))
    options = corpus_options(first[position] if len(first) > position else None, {}, leave_out=("name", "data_dir"))

    @functools.wraps(function, assigned=("__doc__", "__name__", "__module__"))
    def with_options(**values: Any) -> None:
        function(**values)

    hints = get_type_hints(function, include_extras=True) | {"corpus": options}
    parameters = [parameter.replace(annotation=hints[key]) for key, parameter in signature.parameters.items()]
    del with_options.__wrapped__
    with_options.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    with_options.__annotations__ = hints
    return with_options


def _overview() -> str:
    column = max(map(len, COMMANDS)) + 4
    width = min(shutil.get_terminal_size().columns, 120)
    lines = [paragraphs(_ABOUT)]
    for group, commands in GROUPS.items():
        lines.append(f"\n{group}:")
        for name, (_, sentence) in commands.items():
            start, rest = f"  {name}".ljust(column), " " * column
            lines.append(textwrap.fill(sentence, width, initial_indent=start, subsequent_indent=rest))
    return "\n".join(lines)
