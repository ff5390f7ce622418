"""Transcripts beside a corpus: the sidecar that `cmkd transcribe` writes and the corpora read.

A sidecar is one Parquet file with a row for each utterance, keyed by the corpus's ids:

| column | | |
|---|---|---|
| `id` | string | of the utterance, as in the corpus |
| `text` | string | "" if no words were heard |
| `average_log_probability` | float32 | natural logarithm, mean over the text's tokens; null if there are none |
| `no_speech_probability` | float32 | that nobody speaks, as the model says; null if it does not say |
| `duration` | float32 | of the audio that was transcribed, in seconds |
| `model` | string | Hub name or folder |
| `revision` | string | commit on the Hub, or what `cmkd.transcription.recognizers` makes of a folder's files |
| `settings` | string | JSON: what else the text depends on |
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import pyarrow
import pyarrow.parquet

from cmkd.corpora import Preference
from cmkd.corpora.values import as_name

if TYPE_CHECKING:
    from cmkd.corpora.checks import SourceRow
    from cmkd.corpora.report import CorpusReport
    from cmkd.corpora.schema import Corpus

SCHEMA = pyarrow.schema(
    [
        ("id", pyarrow.string()),
        ("text", pyarrow.string()),
        ("average_log_probability", pyarrow.float32()),
        ("no_speech_probability", pyarrow.float32()),
        ("duration", pyarrow.float32()),
        ("model", pyarrow.string()),
        ("revision", pyarrow.string()),
        ("settings", pyarrow.string()),
    ]
)
"""The columns of a sidecar."""


def read_transcripts(path: str | os.PathLike[str]) -> pyarrow.Table:
    """Reads and checks a sidecar.

    Returns:
        `pyarrow.Table`: The sidecar, with the columns of `SCHEMA`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not a Parquet file, lacks a column, has one of another type, has an id twice, or has a row
            without id, text or model.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"transcripts: there is no file {str(path)!r}; `cmkd transcribe` makes one.")
    try:
        table = pyarrow.parquet.ParquetFile(path).read()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as Parquet: {error}. Transcribe again.") from error
    missing = [name for name in SCHEMA.names if name not in table.column_names]
    if missing:
        raise ValueError(
            f"{path} has the columns {', '.join(table.column_names)}, but not {', '.join(missing)}: a file of "
            "transcripts has all of those that `cmkd transcribe` writes."
        )
    try:
        table = table.select(SCHEMA.names).cast(SCHEMA)
    except pyarrow.ArrowException as error:
        columns = ", ".join(f"{field.name} ({field.type})" for field in SCHEMA)
        raise ValueError(f"{path}: a column has another type than it should, {columns}: {error}.") from error
    for name in ("id", "text", "model"):
        if table[name].null_count:
            raise ValueError(
                f"{path}: {table[name].null_count} rows have no {name}: write '' where there are no words."
            )
    identifier, times = next(iter(Counter(table["id"].to_pylist()).most_common(1)), ("", 0))
    if times > 1:
        raise ValueError(f"{path}: the id {identifier!r} occurs {times} times: keep one row for each utterance.")
    return table


def join_transcripts(
    rows: Sequence[SourceRow], sidecar: str | os.PathLike[str] | None, prefer: Preference, report: CorpusReport
) -> list[SourceRow]:
    """Gives transcripts to the rows of a corpus, before they are checked.

    If `prefer` is "manual", a transcript of the corpus stays unless it is empty. With "asr" it is replaced by the
    sidecar's, even an empty one. Utterances that the sidecar lacks keep what they have.

    Args:
        rows (sequence of `SourceRow`): The rows, whose transcripts are changed in place.
        sidecar (path or None): See `read_transcripts`; None changes nothing.
        prefer (`str`): "manual" or "asr".
        report (`CorpusReport`): The report, whose version and config then record the sidecar and change with its texts;
            its notes say how many transcripts come from the sidecar and how many from the corpus.

    Returns:
        `list[SourceRow]`: The rows.

    Raises:
        FileNotFoundError, ValueError: As for `read_transcripts`; or `prefer` is something else, or there is no sidecar
            to prefer, or it has none of the utterances.
    """
    rows = list(rows)
    if sidecar is not None or prefer != "manual":
        ids = [_identifier(row.id) for row in rows]
        texts = _joined(ids, [row.transcript for row in rows], sidecar, prefer, report)
        for row, text in zip(rows, texts, strict=True):
            row.transcript = text
    return rows


def replace_transcripts(corpus: Corpus, sidecar: str | os.PathLike[str] | None, prefer: Preference) -> Corpus:
    """`join_transcripts` for a corpus that has already been built; its audio is neither read nor copied.

    Returns:
        `Corpus`: The corpus with other transcripts, and with the same report, which is changed in place.
    """
    from cmkd.corpora.schema import Corpus

    if sidecar is None and prefer == "manual":
        return corpus
    ids = [identifier for rows in corpus.values() for identifier in rows["id"]]
    manual = [text for rows in corpus.values() for text in rows["transcript"]]
    texts = iter(_joined(ids, manual, sidecar, prefer, corpus.report))
    splits = {}
    for split, rows in corpus.items():
        column = pyarrow.array([next(texts) for _ in range(len(rows))], pyarrow.string())
        replaced = rows.remove_columns("transcript").add_column("transcript", column)
        splits[split] = replaced.select_columns(rows.column_names)
    return Corpus(splits, corpus.report)


def _joined(
    ids: Sequence[str],
    manual: Sequence[Any],
    sidecar: str | os.PathLike[str] | None,
    prefer: Preference,
    report: CorpusReport,
) -> list[Any]:
    """The transcripts of the utterances with these ids and these manual transcripts."""
    if prefer not in get_args(Preference):
        raise ValueError(f"prefer_transcripts is {prefer!r}, but must be 'manual' or 'asr'.")
    if sidecar is None:
        raise ValueError("prefer_transcripts is 'asr', but there are none: pass transcripts=, a file of transcripts.")
    table = read_transcripts(sidecar)
    heard = dict(zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True))
    known = set(ids) & heard.keys()
    if not known:
        raise ValueError(
            f"{sidecar} has {len(heard):,} utterances, but none of this corpus, whose ids are such as {ids[0]!r}: "
            "pass the transcripts of this corpus."
            if ids
            else f"{sidecar} cannot be joined: the corpus has no utterances."
        )
    texts, origins = [], Counter[str]()
    for identifier, own in zip(ids, manual, strict=True):
        if identifier in heard and (prefer == "asr" or _is_empty(own)):
            texts.append(heard[identifier])
            origins["asr"] += 1
        else:
            texts.append(own)
            origins["none" if _is_empty(own) else "manual"] += 1
    digest = hashlib.sha256(repr((prefer, sorted(heard.items()))).encode()).hexdigest()[:12]
    report.transcripts = digest
    report.config |= {"transcripts": str(sidecar), "prefer_transcripts": prefer}
    models = sorted(set(zip(table["model"].to_pylist(), table["revision"].to_pylist(), strict=True)))
    name, lacking = Path(sidecar).name, len(ids) - sum(identifier in heard for identifier in ids)
    report.notes.append(
        f"transcripts: {origins['asr']:,} by {', '.join(f'{model} ({revision})' for model, revision in models)} from "
        f"{name}, {origins['manual']:,} of the corpus itself, {origins['none']:,} missing"
    )
    if lacking:
        report.notes.append(f"{name} lacks {lacking:,} utterances of this corpus: run `cmkd transcribe` again for them")
    if len(heard) > len(known):
        report.notes.append(f"{name} has {len(heard) - len(known):,} utterances that are not in this corpus")
    return texts


def _identifier(value: Any) -> str:
    """The id that the checks make of a row's value; "" if they will refuse it."""
    try:
        return as_name(value)
    except (TypeError, ValueError):
        return ""


def _is_empty(transcript: Any) -> bool:
    return transcript is None or (isinstance(transcript, str) and not transcript.strip())
