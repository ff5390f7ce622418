"""`manifest`: your own corpus, described by one table with a row for each utterance.

The table is a CSV, TSV, JSONL or Parquet file, text in UTF-8, the fields of CSV and TSV quoted by `"` where needed:

| column | | value |
|---|---|---|
| `audio` | required | path of a wav, flac, mp3 or ogg file, from `data_dir` or else from the manifest's folder |
| `split` | required | train, validation, test or another name |
| `activation`, `valence`, `dominance` | at least one | number on the corpus' scale, empty if not rated |
| `id` | optional | unique; without the column it is the name of the audio file without its ending |
| `transcript`, `speaker`, `gender` | optional | empty if there is none or it is unknown; gender is female or male |

Other columns are not read, and the report says so; the duration is measured. Paths may be absolute, but may not leave
the folder in which they start.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from numbers import Real
from pathlib import Path, PurePath
from typing import Any

import pyarrow
import pyarrow.parquet

from cmkd.corpora.checks import CorpusProblem, CorpusReport, SourceRow, check_rows
from cmkd.corpora.schema import Corpus
from cmkd.transcripts import Preference, join_transcripts
from configuration_cmkd import EMOTION_DIMENSIONS

COLUMNS = ("id", "audio", "transcript", *EMOTION_DIMENSIONS, "speaker", "gender", "split")

Row = tuple[str, dict[str, Any]]
"""Where it stands, and its values by column."""

Table = tuple[list[str], list[Row]]
"""The columns, and the rows that could be read."""


def build(
    data_dir: str | os.PathLike[str] | None,
    on_error: str,
    *,
    label_scale: Sequence[float],
    manifest: str | os.PathLike[str] | None = None,
    transcripts: str | os.PathLike[str] | None = None,
    prefer_transcripts: Preference = "manual",
) -> Corpus:
    """Builds the corpus that a manifest describes.

    Args:
        data_dir (path or None): The folder in which audio paths start; the manifest's folder if None.
        on_error (`str`): See `load_corpus`.
        label_scale (`tuple[float, float]`): Minimum and maximum of the scale of the labels, for example `(1, 7)`.
        manifest (path, *optional*): The table; by default the one file in `data_dir` that is named manifest.csv,
            manifest.tsv, manifest.jsonl or manifest.parquet.
        transcripts (path, *optional*): What `cmkd transcribe` wrote, for the utterances whose transcript is empty.
        prefer_transcripts (`str`, *optional*, defaults to `"manual"`): "asr" puts those in the place of the manifest's
            transcripts too.

    Raises:
        CorpusError: Rows have problems and `on_error` is "raise", or the table as a whole cannot be used.
        FileNotFoundError: There is no such manifest.
        ValueError: A setting is not valid.
    """
    scale = _scale(label_scale)
    if data_dir is not None and not Path(data_dir).is_dir():
        raise FileNotFoundError(f"data_dir is {str(data_dir)!r}, but no such folder exists.")
    path = _find(data_dir) if manifest is None else Path(manifest)
    if path.suffix.lower() not in READERS:
        raise ValueError(f"manifest is {str(path)!r}, but its name must end in one of {', '.join(READERS)}.")
    if not path.is_file():
        raise FileNotFoundError(f"manifest is {str(path)!r}, but no such file exists.")
    folder = path.parent if data_dir is None else Path(data_dir)
    content = path.read_bytes()
    report = CorpusReport(
        name="manifest",
        version=hashlib.sha256(content).hexdigest()[:12],
        label_scale=scale,
        config={"manifest": str(path), "data_dir": str(folder), "label_scale": list(scale)},
    )
    columns, rows = READERS[path.suffix.lower()](content, path.name, report)
    _check_columns(columns, path.name, report)
    if "id" not in columns:
        report.notes.append("the manifest has no column 'id': ids are the names of the audio files without ending")
    source_rows = join_transcripts(
        [_source_row(row, values, "id" in columns) for row, values in rows], transcripts, prefer_transcripts, report
    )
    return Corpus.from_rows(check_rows(source_rows, report, on_error, folder), report)


def _scale(label_scale: Sequence[float]) -> tuple[float, float]:
    limits = tuple(label_scale) if isinstance(label_scale, Sequence) else ()
    numbers = len(limits) == 2 and all(isinstance(limit, Real) for limit in limits)
    if not (numbers and -math.inf < limits[0] < limits[1] < math.inf):
        raise ValueError(
            f"label_scale is {label_scale!r}, but must be two numbers, the minimum and the maximum of the scale of the"
            " labels, for example (1, 7)."
        )
    return float(limits[0]), float(limits[1])


def _find(data_dir: str | os.PathLike[str] | None) -> Path:
    """The manifest in a folder."""
    if data_dir is None:
        raise ValueError("data_dir and manifest are None: pass manifest= (a file) or data_dir= (its folder).")
    found = [path for path in sorted(Path(data_dir).iterdir()) if path.stem == "manifest" and path.suffix in READERS]
    if not found:
        names = ", ".join(f"manifest{suffix}" for suffix in READERS)
        raise FileNotFoundError(f"data_dir {str(data_dir)!r} has none of {names}: rename the table or pass manifest=.")
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise ValueError(f"data_dir {str(data_dir)!r} has {names}: pass manifest= to say which one.")
    return found[0]


def _source_row(row: str, values: dict[str, Any], has_id: bool) -> SourceRow:
    known = {column: values.get(column) for column in COLUMNS}
    if not has_id and isinstance(known["audio"], str):
        known["id"] = PurePath(known["audio"]).stem
    return SourceRow(row=row, **known)


def _check_columns(columns: Sequence[str], name: str, report: CorpusReport) -> None:
    """Refuses a table without the columns it needs or with ambiguous ones; notes those that are not read."""
    listed = f"the columns are {', '.join(repr(column) for column in columns)}"
    fix = "Correct the names of the columns; a .csv file is separated by commas, a .tsv file by tabs."
    if not columns:
        report.refuse(CorpusProblem(name, "no columns", "the table is empty"), fix)
    for column in COLUMNS:
        if columns.count(column) > 1:
            report.refuse(CorpusProblem(name, f"more than one column {column!r}", listed), fix)
    for column in columns:
        meant = column.strip().casefold()
        if column not in COLUMNS and meant in COLUMNS and meant not in columns:
            report.refuse(CorpusProblem(name, f"column {column!r}", f"write {meant!r}"), fix)
    for column in ("audio", "split"):
        if column not in columns:
            report.refuse(CorpusProblem(name, f"no column {column!r}", listed), fix)
    if not set(EMOTION_DIMENSIONS) & set(columns):
        report.refuse(CorpusProblem(name, f"none of the columns {', '.join(EMOTION_DIMENSIONS)}", listed), fix)
    for column in columns:
        if column not in COLUMNS:
            alike = get_close_matches(column.casefold(), [known for known in COLUMNS if known not in columns], n=1)
            report.notes.append(
                f"the column {column!r} is not read" + (f"; did you mean {alike[0]!r}?" if alike else "")
            )


def _decode(content: bytes, name: str, report: CorpusReport) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        detail = f"byte {error.object[error.start]:#04x}, {error.reason}"
        report.refuse(CorpusProblem(f"{name}:{line}", "not UTF-8", detail), "Save the file as UTF-8.")


def _read_csv(content: bytes, name: str, report: CorpusReport, delimiter: str = ",") -> Table:
    reader = csv.reader(io.StringIO(_decode(content, name, report), newline=""), delimiter=delimiter, strict=True)
    columns: list[str] = []
    rows: list[Row] = []
    line = 1
    broken: list[str] = []
    try:
        for fields in reader:
            row, last_line = f"{name}:{line}", reader.line_num
            if last_line > line:
                broken.append(row)
            line = last_line + 1
            if not fields:
                continue
            if not columns:
                columns = fields
            elif len(fields) != len(columns):
                detail = f"{len(fields)}, but the header has {len(columns)}; quote fields that contain separators"
                report.problems.append(CorpusProblem(row, "wrong number of fields", detail))
            else:
                rows.append((row, dict(zip(columns, fields, strict=True))))
    except csv.Error as error:
        fix = 'Quote a field by " at both ends, and double each " within it.'
        report.refuse(CorpusProblem(f"{name}:{line}", "broken table", f"{error} (line {reader.line_num})"), fix)
    if broken:
        report.notes.append(f"rows with line breaks in a field: {len(broken):,}, the first at {broken[0]}")
    return columns, rows


def _read_tsv(content: bytes, name: str, report: CorpusReport) -> Table:
    return _read_csv(content, name, report, delimiter="\t")


def _read_jsonl(content: bytes, name: str, report: CorpusReport) -> Table:
    columns: dict[str, None] = {}
    rows: list[Row] = []
    for number, line in enumerate(_decode(content, name, report).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line, object_pairs_hook=_unique)
            if not isinstance(values, dict):
                raise ValueError(f"it is a {type(values).__name__}")
        except (ValueError, RecursionError) as error:
            report.problems.append(CorpusProblem(f"{name}:{number}", "not a JSON object", str(error)))
        else:
            columns |= dict.fromkeys(values)
            rows.append((f"{name}:{number}", values))
    return list(columns), rows


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a key is repeated")
    return values


def _read_parquet(content: bytes, name: str, report: CorpusReport) -> Table:
    try:
        file = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(content))
        columns = file.schema_arrow.names
        known = [column for column in columns if column in COLUMNS]
        rows = file.read(columns=known).to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        report.refuse(CorpusProblem(name, "broken table", str(error)), "Write the Parquet file anew.")
    if any(isinstance(values.get("audio"), bytes) for values in rows):
        problem = CorpusProblem(name, "no paths", "the column 'audio' holds bytes")
        report.refuse(problem, "Write the audio to files, and their paths to the column.")
    return columns, [(f"{name}:{number}", values) for number, values in enumerate(rows, start=1)]


READERS: dict[str, Callable[[bytes, str, CorpusReport], Table]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}
"""By the ending of the file's name."""
