"""How every command reads its arguments, by tyro, and says what went wrong.

An option has the name of a parameter or of a setting of a recipe. Help shows it with underscores, as a recipe has it;
hyphens do as well. Values are written as in YAML: `null` is None, `true` and `false` are truth values, a mapping is
`"{mine: yours}"`. A list is several words, `--seeds 0 1 2`. A setting that is text stays the text that was given, so
that the release 1.10 is not 1.1.
"""

from __future__ import annotations

import functools
import inspect
import io
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from types import FunctionType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import tyro
import yaml
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

_REGISTRY = ConstructorRegistry()


def read_arguments(target: Any, arguments: Sequence[str], command: str) -> Any:
    """Reads the arguments of a command, and calls the function or makes the dictionary that they are for.

    Args:
        target: a function, whose annotated parameters are the options, or a `TypedDict`, of which those keys are set
            that were given. Help shows what its docstring says before `Args:`.
        arguments: what stands behind the command.
        command: the command as it was typed, for help and messages, such as "cmkd prepare".

    Raises:
        SystemExit: with 0 after help was asked for, and with 2 after a message on standard error about an option that
            does not exist (it suggests the nearest), is missing, or has a value that it cannot have.
    """
    read = functools.partial(
        tyro.cli,
        _with_whole_descriptions(target),
        prog=command,
        description="",
        use_underscores=True,
        config=(tyro.conf.FlagConversionOff,),
        registry=_REGISTRY,
    )
    if any(argument in ("-h", "--help") for argument in arguments):
        if target.__doc__:
            print(f"{paragraphs(target.__doc__)}\n")
        with _usage_within_the_terminal():
            read(args=["--help"])  # without the others: tyro would leave out what has been given already
    return read(args=list(arguments))


@contextmanager
def _usage_within_the_terminal() -> Iterator[None]:
    """Breaks the line that begins with "usage:", which is the only line of help that tyro leaves as long as it is."""
    text = io.TextIOWrapper(io.BytesIO(), sys.stdout.encoding)  # tyro draws boxes where the encoding has them,
    text.isatty = sys.stdout.isatty  # type: ignore[method-assign]  # and takes colours for a terminal
    try:
        with redirect_stdout(text):
            yield
    finally:
        text.seek(0)
        usage, end, rest = text.read().partition("\n")
        print(_broken(usage, _width(), " " * len("usage: ")), end=f"{end}{rest}")


def _with_whole_descriptions(target: Any) -> Any:
    """A copy of a function, with each description on one line: tyro breaks lines of help where the docstring does."""
    if not isinstance(target, FunctionType):
        return target
    parts = target.__code__, target.__globals__, target.__name__, target.__defaults__, target.__closure__
    described = FunctionType(*parts)  # not by functools.wraps, behind which tyro reads the original's docstring
    described.__dict__.update(target.__dict__)
    described.__annotations__ = target.__annotations__
    about, mark, descriptions = inspect.cleandoc(target.__doc__ or "").partition("\nArgs:\n")
    described.__doc__ = about + mark + re.sub(r"\n {8,}", " ", descriptions)
    return described


def paragraphs(docstring: str | None) -> str:
    """What a docstring says before `Args:`, as wide as the terminal; each indented line, an example, alone."""
    width = _width()
    text = inspect.cleandoc(docstring or "").partition("\nArgs:")[0].strip()
    return "\n\n".join(
        "\n".join(_broken(line, width, " " * 8, " \\") for line in part.splitlines())
        if part.startswith(" ")
        else _broken(part, width)
        for part in text.split("\n\n")
    )


def _width() -> int:
    return min(shutil.get_terminal_size().columns, 120)


def _broken(text: str, width: int, indent: str = "", end: str = "") -> str:
    """The text in lines of a width, those after the first behind `indent`; `end` closes each line but the last.

    An option stays in one line with its first value.

    >>> print(_broken("cmkd predict calls --model runs/demo --timeline", 30, "    ", " &"))
    cmkd predict calls &
        --model runs/demo &
        --timeline
    """
    together = re.sub(r"(?<![^ [])(-\S+) (?!-)", "\\1\xa0", text)
    if len(text) > width:
        width -= len(end)
    lines = textwrap.wrap(together, width, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False)
    return f"{end}\n".join(lines).replace("\xa0", " ")


def option(annotation: Any, description: str, default: str) -> Any:
    """The annotation of an option in a `TypedDict`.

    Args:
        annotation: of its value.
        description: for help.
        default: what help says about its value where it is not given, such as "default: 32".
    """
    hint = f"({default})"
    return Annotated[annotation, tyro.conf.arg(help=description, help_behavior_hint=hint, metavar=_kind(annotation))]


def _kind(annotation: Any) -> str:
    """What help calls the values of a type.

    >>> _kind(list[int] | None), _kind(Literal["ts", "cts"]), _kind(str | os.PathLike[str])
    ('null|INT ...', '{ts,cts}', 'STR|PATH')
    """
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        return "|".join(sorted(map(_kind, inner), key=lambda kind: kind != "null"))
    if origin is Literal:
        return "{" + ",".join(map(str, inner)) + "}"
    if origin is Annotated:
        return _kind(inner[0])
    if origin in (list, Sequence):
        return f"{_kind(inner[0])} ..."
    if origin in (dict, Mapping):
        return '"{KEY: VALUE}"'
    named = {type(None): "null", bool: "[true|false]"}
    return "PATH" if origin is os.PathLike else named.get(annotation) or annotation.__name__.upper()


@contextmanager
def failures_in_words(command: str) -> Iterator[None]:
    """Ends the process with a message on standard error, and no traceback, where a user can mend what went wrong.

    The exit code is 1, and 130 after Ctrl-C. A `RuntimeError` is one of these where a process of the launch has died,
    which is how a collective operation says so; any other is a fault of ours, and stays.

    Args:
        command: the name that the message begins with.
    """
    but_overwrite = ", without --overwrite," if "--overwrite" in sys.argv else ""
    try:
        yield
    except (ValueError, OSError, ImportError, FloatingPointError, MemoryError) as error:
        sys.exit(f"{command}: {error}")
    except RuntimeError as error:
        from cmkd.processes import silent_processes

        silent = silent_processes()
        if silent is None:
            raise
        sys.exit(
            f"{command}: {silent}: it has died or was stopped, or its machine cannot be reached. The same "
            f"command{but_overwrite} goes on where it stopped. ({error})"
        )
    except KeyboardInterrupt:
        again = f"The same command{but_overwrite} goes on where it stopped."
        print(f"{command}: interrupted. {again}", file=sys.stderr)
        sys.exit(130)


def _rule(belongs: Callable[[PrimitiveTypeInfo], bool], metavar: str, read: Callable[[str], Any]) -> None:
    """Has tyro read one word as a value of the types that `belongs` is true of."""

    def rule(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
        if not belongs(info):
            return None
        return PrimitiveConstructorSpec(
            nargs=(0, 1) if info.type is bool else 1,
            metavar=metavar,
            instance_from_str=lambda words: read(words[0]) if words else True,
            is_instance=lambda value: value is None if info.type is type(None) else isinstance(value, info.type),
            str_from_instance=lambda value: [shown(value)],
        )

    _REGISTRY.primitive_rule(rule)


def shown(value: Any) -> str:
    """A value as the command line takes it.

    >>> shown(None), shown(True), shown(0.0005), shown(["ts", "cts"]), shown({"valence": None})
    ('null', 'true', '0.0005', 'ts cts', '{valence: null}')
    """
    if isinstance(value, (list, tuple)):
        return " ".join(shown(item) for item in value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {shown(item)}" for key, item in value.items()) + "}"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _word(words: Mapping[str, Any], rule: str) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        if text.lower() not in words:
            raise ValueError(f"{text!r}, but must be {rule}.")
        return words[text.lower()]

    return read


def _number(kind: Callable[[str], Any], rule: str) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        try:
            return kind(text)
        except ValueError:
            raise ValueError(f"{text!r}, but must be {rule}.") from None

    return read


def _mapping(text: str) -> dict[str, Any]:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = None
    if not isinstance(value, dict):
        raise ValueError(f'{text!r}, but must be a mapping in YAML, as in "{{valence: V}}".')
    return value


_rule(lambda info: info.type is type(None), "null", _word({"null": None, "none": None}, "null"))
_rule(lambda info: info.type is bool, "[true|false]", _word({"true": True, "false": False}, "true or false"))
_rule(lambda info: info.type is int, "INT", _number(int, "a whole number"))
_rule(lambda info: info.type is float, "FLOAT", _number(float, "a number"))
_rule(lambda info: info.type_origin in (dict, Mapping), '"{KEY: VALUE}"', _mapping)
_rule(lambda info: info.type_origin is os.PathLike, "PATH", str)
