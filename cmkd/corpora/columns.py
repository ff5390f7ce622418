"""Decides which column of a user's table is which column of a corpus."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import PurePath
from typing import Any

import pyarrow

from cmkd.corpora.report import CorpusProblem, CorpusReport
from cmkd.corpora.values import as_number
from cmkd.spelling import did_you_mean
from configuration_cmkd import EMOTION_DIMENSIONS

COLUMNS = (
    "id",
    "audio",
    "transcript",
    *EMOTION_DIMENSIONS,
    "speaker",
    "gender",
    "split",
    "start",
    "end",
    "channel",
)
"""The columns that are read from a table, which are the fields of a `SourceRow`."""

OTHER_NAMES = {"arousal": "activation", "audio.path": "audio"}
"""Names that are read as another name with the same meaning."""

_STRETCH_LIKE = {
    *("begin", "onset", "offset", "stop", "tmin", "tmax", "xmin", "xmax", "t_start", "t_end", "from_time", "to_time"),
    *(f"{edge}{unit}" for edge in ("start", "end") for unit in ("time", "_time", "_s", "_sec", "_seconds", "_ms")),
    *(f"{edge}{unit}" for edge in ("begin", "stop") for unit in ("_time", "_s", "_sec", "_seconds", "_ms")),
    *(f"{edge}{unit}" for edge in ("start", "end") for unit in ("_frame", "_sample")),
    *(f"{part}_{edge}" for part in ("segment", "seg", "clip") for edge in ("start", "end")),
}
"""Names of columns that say that a row is a stretch of a file, but not necessarily in seconds from its beginning."""

_LENGTHS = {"duration", "dur", "length", *(f"duration_{unit}" for unit in ("s", "sec", "seconds", "ms"))}
"""Names of columns that say, together with a start, where a stretch ends."""

Reading = dict[str, str]
"""For each column that is read, its name in the table."""


def read_columns(
    names: Sequence[str],
    table: str,
    report: CorpusReport,
    columns: Mapping[str, str | None] | None = None,
    required: Sequence[str] = ("audio", "split"),
) -> Reading:
    """Decides which columns are read, and refuses a table whose columns are too few or ambiguous.

    Args:
        names (`list[str]`): The columns of the table; fields of nested objects are written with dots.
        table (`str`): The name of the table, for messages.
        report (`CorpusReport`): The report, which gets notes on what is read under another name and what is not read.
        columns (`dict[str, str | None]`, *optional*): The table's names by those of `COLUMNS`, given by the user; None
            says that the table has no such column, whatever its names look like.
        required (sequence of `str`, *optional*): Columns that must exist, besides one of the three dimensions; none of
            these is needed, or read, if the corpus of the report is not rated.

    Raises:
        CorpusError: A required column is missing, or it is not clear which one is meant.
        ValueError: `columns` names a column that is not read, or one that the table does not have.
    """
    listed = f"the columns are {', '.join(repr(name) for name in names)}"
    fix = (
        "Correct the names of the columns, or say with the setting `columns` which is which, for example "
        "columns={'activation': 'arousal_mean'}; a .csv file is separated by commas, a .tsv file by tabs."
    )
    if not names:
        report.refuse(CorpusProblem(table, "no columns", "the table is empty"), fix)
    reading = {column: own for column, own in (columns or {}).items() if own is not None}
    none = set(columns or {}) - set(reading)
    _check_setting(columns or {}, names, listed)
    given = set(reading.values())
    for name in dict.fromkeys(names):
        column = OTHER_NAMES.get(name, name)
        if names.count(name) > 1 and (column in COLUMNS or name in given):
            report.refuse(CorpusProblem(table, f"more than one column {name!r}", listed), fix)
        if column not in COLUMNS or name in given or column in (columns or {}):
            continue
        if column in reading:
            report.refuse(CorpusProblem(table, f"columns {reading[column]!r} and {name!r}", "they mean the same"), fix)
        reading[column] = name
        if name != column:
            report.notes.append(f"the column {name!r} is read as {column!r}")
    _read_nested_labels(reading, none, names, table, report, fix)
    unread = [name for name in names if name not in reading.values()]
    for name in unread:
        _refuse_if_meant(name, reading, none, table, report, fix)
    for column in required:
        if column not in reading:
            report.refuse(CorpusProblem(table, f"no column {column!r}", listed), fix)
    if not report.is_rated:
        ratings = [reading.pop(dimension) for dimension in EMOTION_DIMENSIONS if dimension in reading]
        if ratings:
            report.notes.append(f"ratings are not read: {', '.join(map(repr, ratings))}")
    elif not set(EMOTION_DIMENSIONS) & set(reading):
        report.refuse(CorpusProblem(table, f"none of the columns {', '.join(EMOTION_DIMENSIONS)}", listed), fix)
    if "id" not in reading and "audio" in reading:
        report.notes.append(
            f"the {report.name} has no column 'id': ids are the names of the audio files without ending"
            + (", with the stretch or channel" if {"start", "end", "channel"} & set(reading) else "")
        )
    for name in unread:
        alike = get_close_matches(name.casefold(), [known for known in COLUMNS if known not in reading], n=1)
        report.notes.append(f"the column {name!r} is not read" + (f"; did you mean {alike[0]!r}?" if alike else ""))
    return reading


def default_id(audio: Any, start: Any = None, end: Any = None, channel: Any = None) -> Any:
    """The id of a row that has none: the name of its file, with the stretch and channel if it has any.

    >>> default_id("calls/a.wav"), default_id("calls/a.wav", "12.50", 17.25, 1), default_id("a.wav", 3, None)
    ('a', 'a_12.5-17.25_channel1', 'a_3-')
    """
    if not isinstance(audio, str):
        return None
    seconds = ["" if _is_empty(value) else _plain(value) for value in (start, end)]
    stretch = f"_{seconds[0] or 0}-{seconds[1]}" if any(seconds) else ""
    one = "" if _is_empty(channel) or channel == "mean" else f"_channel{_plain(channel)}"
    return PurePath(audio).stem + stretch + one


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A row with the fields of nested objects as columns of their own; `{"path": ..., "bytes": ...}` stays an object.

    >>> flat({"audio": {"path": "a.wav"}, "labels": {"activation": 3, "by": {"anna": 4}}})
    {'audio': {'path': 'a.wav'}, 'labels.activation': 3, 'labels.by.anna': 4}
    """
    row: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value and not set(value) <= {"path", "bytes"}:
            row |= flat(value, f"{prefix}{name}.")
        else:
            row[f"{prefix}{name}"] = value
    return row


def flat_names(schema: pyarrow.Schema | Iterable[pyarrow.Field], prefix: str = "") -> list[str]:
    """The columns that `flat` makes of the rows of a table."""
    names: list[str] = []
    for field in schema:
        fields = list(field.type) if pyarrow.types.is_struct(field.type) else []
        if fields and not {inner.name for inner in fields} <= {"path", "bytes"}:
            names += flat_names(fields, f"{prefix}{field.name}.")
        else:
            names.append(f"{prefix}{field.name}")
    return names


def _check_setting(columns: Mapping[str, str | None], names: Sequence[str], listed: str) -> None:
    for column, own in columns.items():
        if column not in COLUMNS:
            raise ValueError(
                f"columns has {column!r}, but must have some of {', '.join(map(repr, COLUMNS))}."
                f"{did_you_mean(column, COLUMNS)}"
            )
        if own is not None and own not in names:
            raise ValueError(f"columns[{column!r}] is {own!r}, but {listed}.{did_you_mean(str(own), names)}")


def _read_nested_labels(
    reading: Reading, none: set[str], names: Sequence[str], table: str, report: CorpusReport, fix: str
) -> None:
    """Reads labels that are fields of an object under their own names, if there are none outside of it."""
    for dimension in EMOTION_DIMENSIONS:
        if dimension in reading or dimension in none:
            continue
        last = [(name, name.rpartition(".")[2]) for name in names if "." in name]
        matching = [name for name, field in last if OTHER_NAMES.get(field, field) == dimension]
        if len(matching) > 1:
            report.refuse(CorpusProblem(table, f"columns {' and '.join(map(repr, matching))}", "which is it?"), fix)
        if matching:
            reading[dimension] = matching[0]
            report.notes.append(f"the column {matching[0]!r} is read as {dimension!r}")


def _refuse_if_meant(name: str, reading: Reading, none: set[str], table: str, report: CorpusReport, fix: str) -> None:
    """Refuses a column that was probably meant to be read, since otherwise the wrong thing would be learned."""
    folded = name.strip().casefold()
    meant = OTHER_NAMES.get(folded, folded)
    if meant in COLUMNS and meant not in reading and meant not in none:
        report.refuse(CorpusProblem(table, f"column {name!r}", f"write {meant!r}"), fix)
    last = re.sub(r"[\s-]+", "_", folded.rpartition(".")[2])
    is_edge = last in _STRETCH_LIKE or ("." in name and last in ("start", "end"))
    if is_edge and not {"start", "end"} & (set(reading) | none):
        detail = (
            "if a row is a stretch of its file, name the columns 'start' and 'end', in seconds from the beginning of "
            "the file; if not, say so with columns={'start': None}, or take the column out"
        )
        report.refuse(CorpusProblem(table, f"column {name!r}", detail), fix)
    if last in _LENGTHS and "start" in reading and "end" not in reading and "end" not in none:
        detail = (
            f"together with {reading['start']!r} it says where a stretch ends, but it is not read: add a column 'end', "
            "the sum of both in seconds; if all rows go on to the end of their file, say so with columns={'end': None}"
        )
        report.refuse(CorpusProblem(table, f"column {name!r}", detail), fix)


def _is_empty(value: Any) -> bool:
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def _plain(value: Any) -> str:
    """A number without superfluous zeros; any other text is left as it is, for the checks to refuse."""
    try:
        number = as_number(value)
    except (TypeError, ValueError, OverflowError):
        return str(value)
    return f"{number:.6f}".rstrip("0").rstrip(".")
