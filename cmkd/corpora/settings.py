"""The settings of each corpus, as help and the command line know them, read without what building a corpus needs.

A corpus' settings are the keyword-only parameters of its `build`, and their descriptions are those of its docstring.
Both are read from the source, since importing a builder imports torch, for which nobody who asks for help should wait.
"""

from __future__ import annotations

import ast
import importlib.util
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypedDict, cast

import docstring_parser

from cmkd.command_line import option, shown
from cmkd.corpora import CORPORA, ON_ERROR, Preference, check_name, load_corpus

REQUIRED: Any = object()
"""The default of a setting that has none."""

_NAMES = {"os": os, "Mapping": Mapping, "Sequence": Sequence, "Preference": Preference}
"""What the annotations of builders are made of, beside the built-in types."""


@dataclass(frozen=True)
class Setting:
    """A setting of a corpus.

    Attributes:
        annotation: its type.
        default: its value where none is given; `REQUIRED` if one must be.
        description: what it is, in sentences.
    """

    annotation: Any
    default: Any
    description: str


SOURCES = ("corpus", "unlabelled")
"""The settings of a recipe that are a corpus or a list of them."""

SOURCE_SETTINGS = {
    "alias": Setting(
        str | None,
        None,
        "What ids, speakers and scores call this corpus, where several are learned from; null stands for its name.",
    ),
    "rated_dimensions": Setting(
        list[Literal["activation", "valence", "dominance"]] | None,
        None,
        "The dimensions whose ratings are used; those of others are dropped, in all splits. Null stands for all that "
        "the corpus rates. For a corpus that is to teach only some of what it knows.",
    ),
    "licence": Setting(
        str | None,
        None,
        "The licence of the corpus, by the Hub's name for it, such as cc-by-4.0; null where the package knows it. "
        "Cards need it; nothing that is learned depends on it.",
    ),
    "language": Setting(
        str | None,
        None,
        "The language of the speech, such as en; null where the package knows it. Cards show it; nothing that is "
        "learned depends on it.",
    ),
    "about": Setting(
        str | None,
        None,
        "What a reader of the card should know of this corpus, in a sentence or two: what was done to it, or where its "
        "sentences are from. Nothing that is learned depends on it.",
    ),
}
"""What a recipe may say of a corpus beside the settings of its builder."""

STATEMENTS = ("licence", "language", "about")
"""Those of them that are for readers only."""


class CorpusSettings(dict[str, Any]):
    """The settings of a corpus that a command was given, by name; marks the parameter of a command that takes them."""


def corpus_settings(name: str) -> dict[str, Setting]:
    """The settings of a corpus by name: `data_dir` and `on_error`, which all have, and those of its own.

    Args:
        name: one of [`cmkd.corpora.CORPORA`].

    Raises:
        ValueError: there is no such corpus.

    >>> corpus_settings("iemocap")["fold"].default
    1
    """
    check_name(name)
    spec = importlib.util.find_spec(CORPORA[name])
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"there is no module {CORPORA[name]!r}: the installation is not complete.")
    module = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    build = next(node for node in module.body if isinstance(node, ast.FunctionDef) and node.name == "build")
    described = _descriptions(ast.get_docstring(build)) | {"on_error": _descriptions(load_corpus.__doc__)["on_error"]}
    settings = {
        "data_dir": Setting(str | None, None, described["data_dir"]),
        "on_error": Setting(Literal[ON_ERROR], ON_ERROR[0], described["on_error"]),
    }
    for argument, default in zip(build.args.kwonlyargs, build.args.kw_defaults, strict=True):
        annotation = eval(ast.unparse(argument.annotation), _NAMES) if argument.annotation else Any
        value = REQUIRED if default is None else ast.literal_eval(default)
        settings[argument.arg] = Setting(annotation, value, described[argument.arg])
    return settings


def corpus_options(
    name: str | None,
    values: Mapping[str, Any],
    leave_out: Collection[str] = (),
    more: Mapping[str, Setting] = MappingProxyType({}),
) -> Any:
    """The options `--corpus.KEY` of a command, a type for [`cmkd.command_line.read_arguments`].

    Args:
        name: of the corpus; None if it is not known yet, and only `name` is an option.
        values: what a recipe says.
        leave_out: settings that the command has another way to give.
        more: settings that are not of its builder.

    Raises:
        ValueError: there is no such corpus.
    """
    settings = {"name": Setting(str, REQUIRED, f"Which corpus: {', '.join(CORPORA)}.")}
    if name is not None:
        settings |= {**corpus_settings(name), **more}
    options = {}
    for key, setting in settings.items():
        default = "required" if setting.default is REQUIRED else f"default: {shown(setting.default)}"
        default = f"in the recipe: {shown(values[key])}" if key in values else default
        if key not in leave_out:
            options[key] = option(setting.annotation, setting.description, default)
    kind = cast(Any, TypedDict)("CorpusOptions", options, total=False)
    kind.__doc__ = f"Settings of the corpus {name}."
    return kind


def _descriptions(docstring: str | None) -> dict[str, str]:
    parsed = docstring_parser.parse(docstring or "", style=docstring_parser.DocstringStyle.GOOGLE)
    return {parameter.arg_name: " ".join((parameter.description or "").split()) for parameter in parsed.params}
