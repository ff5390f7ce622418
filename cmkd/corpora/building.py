"""Makes a `Corpus` of the rows of a corpus's files, which is built once and then loaded from the disk in seconds.

A corpus module uses it like this:

```py
def build(data_dir, on_error, *, annotators=False, num_proc=None, streaming=False) -> Corpus | StreamedCorpus:
    report = CorpusReport(
        name="my-corpus",       # as in `CORPORA`
        release="1.0",          # the version of the report has a digest of what was built, too
        label_scale=(1, 7),
        config={"data_dir": str(Path(data_dir).absolute()), "annotators": annotators},   # every setting but those below
        terms="...",            # the licence that forbids to pass it on: makes public pushes an error
    )
    rows = read_my_labels(data_dir, report)     # list[SourceRow]; may add to report.problems, .notes, .warnings and,
                                                # for rows left out on purpose, to .skipped
    return build_corpus(
        rows,
        report,
        on_error,
        data_dir,               # where relative audio paths start
        annotators=annotators,  # True: columns ANNOTATOR_FEATURES, from SourceRow.ratings
        known_size=KnownSize("My Corpus 1.0", utterances={"train": 10, "test": 5}, hours=1.0),  # or None
        num_proc=num_proc,
        streaming=streaming,
    )
```

The label files are read at each load, which shows whether the corpus has changed. The rows are checked and the audio is
read once for the same rows, settings, code, and sizes and times of the audio files. The Arrow files hold the paths of
the audio, not the audio: 50,000 utterances take about 10 MB.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow

import audio_cmkd
from cmkd.corpora import checks, known_sizes, schema, statistics, values
from cmkd.corpora import report as reports
from cmkd.corpora.checks import SourceRow, check_rows
from cmkd.corpora.known_sizes import KnownSize
from cmkd.corpora.report import CorpusError, CorpusProblem, CorpusReport
from cmkd.corpora.schema import (
    Corpus,
    StreamedCorpus,
    corpus_features,
    rows_by_split,
    stored_features,
)
from cmkd.features import audio, stretch
from cmkd.features.audio import AudioError, measure_audio
from cmkd.features.stretch import stretch_of

VERSION = "1.0.0"
"""The version of what is kept on the disk."""

_REPORT = "report.json"
_PORTIONS = 64  # what a split is divided into for processes and for the workers of a DataLoader

_logger = logging.getLogger(__name__)


def build_corpus(
    source_rows: Sequence[SourceRow],
    report: CorpusReport,
    on_error: str,
    audio_folder: str | os.PathLike[str] | None,
    *,
    annotators: bool = False,
    further: Mapping[str, Any] | None = None,
    known_size: KnownSize | None = None,
    num_proc: int | None = None,
    streaming: bool = False,
) -> Corpus | StreamedCorpus:
    """Checks a corpus and keeps it in the cache of datasets, or takes it from there if nothing has changed.

    It is kept in the folder `cmkd` of `HF_DATASETS_CACHE`, complete or not at all. Warnings of the report are also
    logged.

    Args:
        source_rows (`list[SourceRow]`): The rows, in the order of the corpus.
        report (`CorpusReport`): As for `check_rows`; the report of the result is another object.
        on_error (`str`): See `check_rows`.
        audio_folder (path or None): Where relative audio paths start, and which no path may leave; None where paths
            are absolute and may lead anywhere.
        annotators (`bool`, *optional*, defaults to `False`): Whether the rows get the columns of `ANNOTATOR_FEATURES`.
        further (`dict`, *optional*): Features of the columns that only this corpus has, by name; every `SourceRow` has
            their values in `further`.
        known_size (`KnownSize`, *optional*): What the release should hold; a mismatch becomes a warning of the report.
        num_proc (`int`, *optional*): The number of processes that write the Arrow files. The audio is always read in
            threads, since what takes the time there does not hold Python's lock.
        streaming (`bool`, *optional*, defaults to `False`): Returns a `StreamedCorpus` and builds nothing: the audio of
            a row is read when the row is reached.

    Raises:
        CorpusError: There are problems and `on_error` is "raise", or the corpus or one of its splits has no rows left.
        ValueError: `num_proc` is less than 1.
    """
    if num_proc is not None and num_proc < 1:
        raise ValueError(f"num_proc is {num_proc}, but must be at least 1, or None for no further processes.")
    builder = _CorpusBuilder(
        list(source_rows),
        report,
        on_error,
        None if audio_folder is None else Path(audio_folder).absolute(),
        annotators=annotators,
        further=dict(further or {}),
        known_size=known_size,
        cache_dir=str(Path(datasets.config.HF_DATASETS_CACHE) / "cmkd"),
    )
    corpus: Corpus | StreamedCorpus
    if streaming:
        corpus = StreamedCorpus(builder.as_streaming_dataset(), report)
    else:
        builder.download_and_prepare(num_proc=num_proc)
        saved = CorpusReport.load(Path(builder.cache_dir) / _REPORT)
        built = builder.as_dataset()
        splits = {split: built[split].cast_column("audio", schema.FEATURES["audio"]) for split in saved.utterances}
        corpus = Corpus(splits, saved)
    for warning in corpus.report.warnings:
        _logger.warning("%s: %s", report.name, warning)
    return corpus


class _CorpusBuilder(datasets.GeneratorBasedBuilder):
    """Builds a corpus from rows that have already been read.

    Its configuration, and with it the folder, is named by the version and a digest of all that the rows depend on.
    """

    def __init__(
        self,
        source_rows: list[SourceRow],
        report: CorpusReport,
        on_error: str,
        audio_folder: Path | None,
        *,
        annotators: bool,
        further: Mapping[str, Any],
        known_size: KnownSize | None,
        cache_dir: str,
    ):
        self._source_rows = source_rows
        self._report = report
        self._on_error = on_error
        self._audio_folder = audio_folder
        self._annotators = annotators
        self._features = corpus_features(annotators, further)
        self._known_size = known_size
        key = _key(source_rows, report, on_error, audio_folder, self._features, known_size)
        super().__init__(
            cache_dir=cache_dir, dataset_name=report.name, config_name=f"{report.version}-{key}", version=VERSION
        )

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(features=stored_features(self._features))

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        rows = check_rows(
            self._source_rows,
            self._report,
            self._on_error,
            self._audio_folder,
            read_sound=not dl_manager.is_streaming,
            annotators=self._annotators,
        )
        self._source_rows = []  # neither needed any more nor to be sent to other processes
        if self._known_size:
            self._report.warnings += self._known_size.mismatches(self._report)
        if dl_manager.is_streaming:
            self._report.notes.append("streamed: the sound of a row is read and checked when the row comes")
            self._report.is_streamed = True
        else:
            self._report.save(Path(self._output_dir) / _REPORT)  # a folder that becomes `cache_dir` when all is done
        return [
            datasets.SplitGenerator(split, {"portions": _portions(rows), "read_sound": dl_manager.is_streaming})
            for split, rows in rows_by_split(rows).items()
        ]

    def _generate_examples(
        self, portions: list[list[dict[str, Any]]], read_sound: bool
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        for rows in portions:
            for row in rows:
                if not read_sound:
                    yield row["id"], _with_content(row)
                elif measured := measured_row(row, self._report, self._on_error, self._features):
                    yield row["id"], measured


def measured_row(
    row: dict[str, Any], report: CorpusReport, on_error: str, features: datasets.Features = schema.FEATURES
) -> dict[str, Any] | None:
    """A row of a stream with its sound and its duration; None for broken audio that is to be skipped.

    Raises:
        CorpusError: The audio is broken and `on_error` is "raise".
    """
    try:
        row = _with_content(row)
        duration = measure_audio(row["audio"], **stretch_of(row))
    except AudioError as error:
        problem = CorpusProblem(row["id"], error.reason, error.detail, field="audio", value=error.name)
        if on_error == "skip":
            _logger.warning("%s: left out of the stream: %s", report.name, problem)
            return None
        report = dataclasses.replace(report, problems=[problem])
        raise CorpusError(report, 'Correct the file, or pass on_error="skip" to leave such rows out.') from error
    arrow_schema = stored_features(features).arrow_schema
    batch = pyarrow.RecordBatch.from_pylist([{**row, "duration": duration}], arrow_schema)
    return batch.to_pylist()[0]  # with numbers of the precision that the built corpus has


def _key(
    source_rows: Sequence[SourceRow],
    report: CorpusReport,
    on_error: str,
    audio_folder: Path | None,
    features: datasets.Features,
    known_size: KnownSize | None,
) -> str:
    """A digest of all that the built corpus and its report depend on."""
    key = hashlib.sha256(repr((report, on_error, str(audio_folder), features, known_size)).encode())
    for module in (audio_cmkd, audio, checks, known_sizes, reports, schema, statistics, stretch, values):
        key.update(Path(str(module.__file__)).read_bytes())
    key.update(Path(__file__).read_bytes())
    folders = values.Folders()
    for row in source_rows:
        if isinstance(row.audio, bytes):
            row = dataclasses.replace(row, audio=hashlib.sha256(row.audio).hexdigest())
        elif isinstance(row.audio, str):
            key.update(repr(_size_and_time(folders.spelled(str(Path(audio_folder or "") / row.audio)))).encode())
        key.update(repr(row).encode())
    return key.hexdigest()[:16]


def _with_content(row: dict[str, Any]) -> dict[str, Any]:
    """The row with the content of its sound, if that is still in the user's table."""
    content = row["audio"]["bytes"]
    if content is None or isinstance(content, bytes):
        return row
    return {**row, "audio": {**row["audio"], "bytes": content.read()}}


def _size_and_time(path: str) -> tuple[int, int] | None:
    """The size of a file in bytes and its modification time in nanoseconds; None if it cannot be found."""
    try:
        status = Path(path).stat()
    except (OSError, ValueError):
        return None
    return status.st_size, status.st_mtime_ns


def _portions(rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Consecutive parts of about the same size."""
    number = min(_PORTIONS, len(rows))
    return [rows[len(rows) * part // number : len(rows) * (part + 1) // number] for part in range(number)]
