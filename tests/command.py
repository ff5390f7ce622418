"""The command `cmkd` called in this process, as tests of commands need it."""

import io
from contextlib import redirect_stderr, redirect_stdout
from typing import NamedTuple
from unittest import mock

from cmkd.commands import main


class Called(NamedTuple):
    """The outcome of a call."""

    exit_code: int
    stdout: str
    stderr: str


def call(*arguments: object, answer: str = "") -> Called:
    """Calls `cmkd` with these arguments; `answer` is what is typed in. Only `SystemExit` is caught."""
    output, errors = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    code = 0
    with redirect_stdout(output), redirect_stderr(errors), mock.patch("sys.stdin", io.StringIO(answer)):
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as end:  # Python prints a text, and exits with 1
            code = end.code if isinstance(end.code, int) else 1
            if isinstance(end.code, str):
                print(end.code, file=errors)
    return Called(code, *(stream.buffer.getvalue().decode() for stream in (output, errors)))
