"""`manifest`: your own corpus, described by one table with a row for each utterance.

The table is a CSV, TSV, JSONL or Parquet file, with text in UTF-8; fields of CSV and TSV are quoted with `"` if needed:

| column | | value |
|---|---|---|
| `audio` | required | path of a sound file, from `data_dir` or else from the manifest's folder |
| `split` | required | train, validation, test or another name |
| `activation`, `valence`, `dominance` | at least one | number on the corpus's scale, empty if not rated |
| `start`, `end` | optional | the stretch of the file, in seconds; empty for its beginning and its end |
| `channel` | optional | which channel is heard, counted from 0; empty or "mean" for the mean of all |
| `id` | optional | unique; without the column it is the name of the audio file without its ending |
| `transcript`, `speaker`, `gender` | optional | empty if there is none or it is unknown; gender is female or male |

- `arousal` is read as `activation`.
- In Parquet `audio` may be the content of the files, and in Parquet and JSONL an object `{"path": ..., "bytes": ...}`,
  as datasets writes it.
- Without the column `id`, a stretch or channel is added to the name of the file, as in `call_12.5-17.25_channel1`.
  Sound without a name is named after its place, `manifest.parquet:12`.
- Fields of nested objects have names with dots: `{"labels": {"act": 3}}` has the column `labels.act`. Labels that are
  nested under their own names, as in `labels.activation`, are read.
- The setting `columns` says which column is which if the table has other names:
  `{"activation": "labels.act", "audio": "file"}`; `{"start": None}` says that no column is meant.
- Other columns are not read, and the report says so; the duration is measured.
- Speech that nobody has rated takes the setting `rated=False`: it needs neither labels nor a scale, and a table
  without the column `split` is all of the split train.
- Paths may be absolute, but may not leave the folder in which they start.

The corpus is checked once and kept in the cache of datasets, see `cmkd.corpora.building`. Its version is a digest of
the table, and one of the rows and their sound.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from cmkd.corpora import Preference
from cmkd.corpora.building import build_corpus
from cmkd.corpora.checks import SourceRow
from cmkd.corpora.columns import Reading, default_id, flat, flat_names, read_columns
from cmkd.corpora.report import CorpusProblem, CorpusReport
from cmkd.corpora.schema import Corpus, StreamedCorpus
from cmkd.corpora.transcripts import join_transcripts

_WHOLE = re.compile(r"\d+(\.0)?", re.ASCII)

UNRATED_SCALE = (0.0, 1.0)
"""The scale that a corpus has where nothing is rated."""

Row = tuple[str, dict[str, Any]]
"""A row: where it stands, and its values by column."""

Table = tuple[list[str], list[Row]]
"""A table: its columns, and the rows that could be read."""


def build(
    data_dir: str | os.PathLike[str] | None,
    on_error: str,
    *,
    label_scale: Sequence[float] | None = None,
    rated: bool = True,
    manifest: str | os.PathLike[str] | None = None,
    columns: Mapping[str, str | None] | None = None,
    transcripts: str | os.PathLike[str] | None = None,
    prefer_transcripts: Preference = "manual",
    num_proc: int | None = None,
    streaming: bool = False,
) -> Corpus | StreamedCorpus:
    """Builds the corpus that a manifest describes, or takes it from the cache.

    Args:
        data_dir (path or None): The folder in which audio paths start; the manifest's folder if None.
        on_error (`str`): See `load_corpus`.
        label_scale (`tuple[float, float]`, *optional*): Minimum and maximum of the scale of the labels, for example
            `(1, 7)`. Needed unless nothing is rated.
        rated (`bool`, *optional*, defaults to `True`): Whether the utterances are rated. With `False` no rating is read
            or needed, as for `unlabelled` speech in a recipe.
        manifest (path, *optional*): The table; by default the one file in `data_dir` that is named manifest.csv,
            manifest.tsv, manifest.jsonl or manifest.parquet.
        columns (`dict[str, str | None]`, *optional*): The table's own names of columns, by the names that they have in
            a manifest, as in `{valence: V}`; None where it has no such column, whatever its names look like.
        transcripts (path, *optional*): The file that `cmkd transcribe` wrote, for utterances without a transcript.
        prefer_transcripts (`str`, *optional*, defaults to `"manual"`): Which transcript counts where an
            utterance has one of the manifest and one of the file `transcripts`: "manual" the manifest's, "asr" the
            file's.
        num_proc (`int`, *optional*): Processes that write the cache; by default this one does.
        streaming (`bool`, *optional*, defaults to `False`): Whether to read sound only as its row comes, as a
            `StreamedCorpus`, without a cache. Training and scoring need `False`.

    Raises:
        CorpusError: Rows have problems and `on_error` is "raise", or the table as a whole cannot be used.
        FileNotFoundError: There is no such manifest.
        ValueError: A setting is not valid.
    """
    if rated and label_scale is None:
        raise ValueError(
            "the corpus 'manifest' needs 'label_scale', the minimum and the maximum of the scale of the labels, for "
            "example (1, 7); speech that nobody has rated takes rated=False."
        )
    scale = checked_scale(label_scale) if rated and label_scale is not None else UNRATED_SCALE
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
        release=hashlib.sha256(content).hexdigest()[:12],
        label_scale=scale,
        config={"manifest": str(path), "data_dir": str(folder), "label_scale": list(scale)},
        is_rated=rated,
    )
    if columns is not None:
        report.config["columns"] = dict(columns)
    names, rows = READERS[path.suffix.lower()](content, path.name, report)
    reading = read_columns(names, path.name, report, columns, ("audio", "split") if rated else ("audio",))
    if path.suffix.lower() in (".csv", ".tsv"):
        _read_whole_numbers(rows, reading, report)
    source_rows = [_source_row(row, values, reading) for row, values in rows]
    if "split" not in reading:
        for source_row in source_rows:
            source_row.split = "train"
    source_rows = join_transcripts(source_rows, transcripts, prefer_transcripts, report)
    return build_corpus(source_rows, report, on_error, folder, num_proc=num_proc, streaming=streaming)


def checked_scale(label_scale: Sequence[float]) -> tuple[float, float]:
    """The minimum and the maximum of a scale; anything else is refused with a `ValueError`."""
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
    manifests = [
        path for path in sorted(Path(data_dir).iterdir()) if path.stem == "manifest" and path.suffix in READERS
    ]
    if not manifests:
        names = ", ".join(f"manifest{suffix}" for suffix in READERS)
        raise FileNotFoundError(f"data_dir {str(data_dir)!r} has none of {names}: rename the table or pass manifest=.")
    if len(manifests) > 1:
        names = ", ".join(path.name for path in manifests)
        raise ValueError(f"data_dir {str(data_dir)!r} has {names}: pass manifest= to say which one.")
    return manifests[0]


def _source_row(row: str, values: dict[str, Any], reading: Reading) -> SourceRow:
    known: dict[str, Any] = {column: values.get(own) for column, own in reading.items()}
    audio = known["audio"]
    if isinstance(audio, dict):  # as datasets writes it
        known["audio"] = audio.get("path") if audio.get("bytes") is None else audio["bytes"]
    if "id" not in known:
        name = audio.get("path") if isinstance(audio, dict) else audio
        stretch = (known.get(column) for column in ("start", "end", "channel"))
        known["id"] = row if name is None or isinstance(name, bytes) else default_id(name, *stretch)
    return SourceRow(row=row, **({"split": None} | known))


def _read_whole_numbers(rows: Sequence[Row], reading: Reading, report: CorpusReport) -> None:
    """Removes the ".0" from names that are all numbers: pandas writes columns of whole numbers with gaps like that."""
    for column in ("id", "speaker"):
        if column not in reading:
            continue
        own = reading[column]
        given = [values for _, values in rows if values[own].strip()]
        if not all(_WHOLE.fullmatch(values[own].strip()) for values in given):
            continue
        changed = [values for values in given if "." in values[own]]
        for values in changed:
            values[own] = values[own].strip().removesuffix(".0")
        if changed:
            first = changed[0][own]
            report.notes.append(
                f"{column} is a column of whole numbers written like {first + '.0'!r}, read as {first!r}: "
                f"{len(changed):,} rows"
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
        fix = 'Quote a field with " at both ends, and double each " within it.'
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
            values = flat(values)
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
        table = pyarrow.parquet.read_table(pyarrow.BufferReader(content))
        rows = table.to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        report.refuse(CorpusProblem(name, "broken table", str(error)), "Write the Parquet file again.")
    return flat_names(table.schema), [(f"{name}:{number}", flat(values)) for number, values in enumerate(rows, start=1)]


READERS: dict[str, Callable[[bytes, str, CorpusReport], Table]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}
"""What reads a table, by the ending of the file's name."""
