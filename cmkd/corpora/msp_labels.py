"""The label files of MSP-Podcast: `labels_consensus` and `labels_detailed`, as CSV or JSON.

Consensus: one row per utterance; in JSON, an object of the same fields (or a list that holds one) by file name:

```
FileName,EmoClass,EmoAct,EmoVal,EmoDom,SpkrID,Gender,Split_Set
MSP-PODCAST_0001_0008.wav,N,4.2,3.6,4.0,127,Female,Train
```

Detailed: one row per rating, in one of two forms; in JSON, by file name and then by annotator:

```
FileName,Workers,EmoClass_Major,EmoClass_Second,EmoAct,EmoVal,EmoDom
MSP-PODCAST_0001_0008.wav,WORKER00000014,Neutral,"Neutral,Happy",4.0,3.0,4.0

FileName,EmoDetail
MSP-PODCAST_0001_0008.wav,"WORKER00000014; Neutral; Neutral,Happy; A:4.000000; V:3.000000; D:4.000000;"
```

Files may begin with a byte order mark and have Windows line ends. Other columns are not read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from cmkd.corpora.checks import Rating
from cmkd.corpora.manifest import READERS
from cmkd.corpora.report import CorpusProblem, CorpusReport

CONSENSUS_FIELDS = ("EmoAct", "EmoVal", "EmoDom", "Split_Set")
OPTIONAL_FIELDS = ("SpkrID", "Gender")
ANNOTATOR_FIELDS = ("Workers", "Worker", "WorkerID")

_EMO_DETAIL = re.compile(
    r"\s*(?P<annotator>[^;]+?)\s*;.*;\s*A:(?P<activation>[^;]*);\s*V:(?P<valence>[^;]*);\s*D:(?P<dominance>[^;]*);?\s*",
    re.DOTALL,
)
_BLANKS = (" ", "\t", "\r", "\n")  # of JSON


@dataclass(frozen=True)
class Label:
    """A row of the consensus file.

    Attributes:
        row (`str`): Where it stands, for example "labels_consensus.csv:12".
        file_name (`str`): The name of the audio file.
        fields (`dict`): The values of `CONSENSUS_FIELDS` and `OPTIONAL_FIELDS` as they stand there; None if absent.
    """

    row: str
    file_name: str
    fields: dict[str, Any]


def read_consensus(path: Path, report: CorpusReport) -> list[Label]:
    """Reads the consensus file.

    Args:
        path (`Path`): A .csv or .json file.
        report (`CorpusReport`): The report, which gets the problems of rows that cannot be used.

    Raises:
        CorpusError: The file as a whole cannot be used.
    """
    labels = []
    for row, values in _read(path, report, ("FileName", *CONSENSUS_FIELDS), (*CONSENSUS_FIELDS, *OPTIONAL_FIELDS)):
        file_name = values["FileName"]
        if _is_file_name(file_name):
            fields = {field: values.get(field) for field in (*CONSENSUS_FIELDS, *OPTIONAL_FIELDS)}
            labels.append(Label(row, file_name.strip(), fields))
        else:
            report.problems.append(_no_file_name(row, file_name))
    return labels


def read_ratings(path: Path, report: CorpusReport) -> tuple[dict[str, list[Rating]], list[CorpusProblem]]:
    """Reads the detailed file.

    Args:
        path (`Path`): A .csv or .json file.
        report (`CorpusReport`): The report of the corpus, for the error; it is not changed.

    Returns:
        The ratings by file name, and the problems of lines that could not be read.

    Raises:
        CorpusError: The file as a whole cannot be used.
    """
    own_report = replace(report, problems=[], notes=[])
    ratings: dict[str, list[Rating]] = {}
    for row, values in _read_detailed(path, own_report):
        file_name = values["FileName"]
        if not _is_file_name(file_name):
            own_report.problems.append(_no_file_name(row, file_name))
            continue
        rating = _rating(row, values)
        if rating is None:
            detail = "it is not like 'WORKER00000014; Neutral; Neutral; A:4.0; V:3.0; D:4.0;'"
            shown = str(values.get("EmoDetail"))
            own_report.problems.append(CorpusProblem(row, "not a rating", detail, field="EmoDetail", value=shown))
        else:
            ratings.setdefault(file_name.strip(), []).append(rating)
    return ratings, own_report.problems


def _is_file_name(name: Any) -> bool:
    return isinstance(name, str) and bool(name.strip()) and not set(name) & set("/\\\0")


def _no_file_name(row: str, name: Any) -> CorpusProblem:
    return CorpusProblem(row, "not a file name", field="FileName", value=str(name))


def _rating(row: str, values: dict[str, Any]) -> Rating | None:
    if "EmoDetail" in values:
        match = _EMO_DETAIL.fullmatch(str(values["EmoDetail"]))
        return Rating(row, **match.groupdict()) if match else None
    name = next((values[field] for field in ANNOTATOR_FIELDS if values.get(field)), "")
    return Rating(row, str(name).strip(), values["EmoAct"], values["EmoVal"], values["EmoDom"])


def _read_detailed(path: Path, report: CorpusReport) -> Iterator[tuple[str, dict[str, Any]]]:
    """The ratings of a detailed file, whatever its form, with the fields of one of the CSV forms."""
    if path.suffix.lower() == ".csv":
        columns, rows = _read_csv(path, report)
        fields = ("FileName", "EmoDetail") if "EmoDetail" in columns else ("FileName", "EmoAct", "EmoVal", "EmoDom")
        _require(columns, fields, path.name, report)
        yield from rows
        return
    for row, file_name, workers in _read_json(path, report):
        if not isinstance(workers, dict):
            report.problems.append(_no_object(row, file_name, workers))
            continue
        for worker, values in workers.items():
            if isinstance(values, dict) and not {"EmoAct", "EmoVal", "EmoDom"} - set(values):
                yield row, {"FileName": file_name, "Workers": worker, **_without(values, "EmoDetail")}
            else:
                detail = "it needs EmoAct, EmoVal and EmoDom"
                report.problems.append(CorpusProblem(row, "not a rating", detail, field=worker, value=str(values)))


def _without(values: dict[str, Any], field: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != field}


def _read(
    path: Path, report: CorpusReport, required: Sequence[str], known: Sequence[str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of a consensus file with the field FileName."""
    if path.suffix.lower() == ".csv":
        columns, rows = _read_csv(path, report)
        _require(columns, required, path.name, report)
        yield from rows
        return
    for row, file_name, entry in _read_json(path, report):
        values = entry[0] if isinstance(entry, list) and len(entry) == 1 else entry
        if not isinstance(values, dict):
            report.problems.append(_no_object(row, file_name, entry))
            continue
        missing = [field for field in required[1:] if field not in values]
        if missing:
            detail = f"it has no {' and no '.join(missing)}"
            report.problems.append(CorpusProblem(row, "missing field", detail, file_name))
        else:
            yield row, {"FileName": file_name, **{field: values.get(field) for field in known}}


def _no_object(row: str, file_name: str, value: Any) -> CorpusProblem:
    return CorpusProblem(row, "not a JSON object", f"it is a {type(value).__name__}", file_name)


def _read_csv(path: Path, report: CorpusReport) -> tuple[list[str], list[tuple[str, dict[str, Any]]]]:
    columns, rows = READERS[".csv"](path.read_bytes(), path.name, report)
    return [column.strip() for column in columns], [
        (row, {column.strip(): value for column, value in values.items()}) for row, values in rows
    ]


def _require(columns: Sequence[str], required: Sequence[str], name: str, report: CorpusReport) -> None:
    for field in required:
        if columns.count(field) != 1:
            what = "no column" if field not in columns else "more than one column"
            listed = f"the columns are {', '.join(map(repr, columns)) or 'none at all'}"
            problem = CorpusProblem(name, f"{what} {field!r}", listed)
            report.refuse(problem, "Restore the file from the release; its fields are separated by commas.")


def _read_json(path: Path, report: CorpusReport) -> Iterator[tuple[str, str, Any]]:
    """The place, key and value of each member of the object in a JSON file, including repeated keys."""

    def refuse(row: str, reason: str, detail: str) -> NoReturn:
        report.refuse(CorpusProblem(row, reason, detail), "Restore the file from the release.")

    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        refuse(f"{path.name}:{line}", "not UTF-8", error.reason)
    row, line, counted = f"{path.name}:1", 1, 0
    position = _skip_blank(text, 0)
    if text[position : position + 1] != "{":
        refuse(row, "not JSON", "it must begin with '{'")
    position = _skip_blank(text, position + 1)
    while text[position : position + 1] != "}":
        line += text.count("\n", counted, position)
        row, counted = f"{path.name}:{line}", position
        try:
            key, value, position = _member(text, position)
        except (ValueError, RecursionError) as error:
            refuse(row, "not JSON", str(error))
        yield row, key, value
        if text[position : position + 1] == ",":
            position = _skip_blank(text, position + 1)
        elif text[position : position + 1] != "}":
            refuse(row, "not JSON", f"',' or '}}' must follow the value of {key!r:.80}")
    if text[position + 1 :].strip():
        refuse(row, "not JSON", "something follows after the last '}'")


def _member(text: str, position: int) -> tuple[str, Any, int]:
    """The key and value that begin at `position`, and the position of what follows them."""
    key, position = _JSON.raw_decode(text, position)
    position = _skip_blank(text, position)
    if not isinstance(key, str) or text[position : position + 1] != ":":
        raise ValueError(f"a file name in quotes and ':' are expected, not {key!r:.80}")
    value, position = _JSON.raw_decode(text, _skip_blank(text, position + 1))
    return key, value, _skip_blank(text, position)


def _skip_blank(text: str, position: int) -> int:
    while text[position : position + 1] in _BLANKS:
        position += 1
    return position


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a name is repeated within the value")
    return values


_JSON = json.JSONDecoder(object_pairs_hook=_unique)
