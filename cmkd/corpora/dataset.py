"""`dataset`: any data set of the Hub or the disk that 🤗 datasets loads, if it has speech and ratings.

```yaml
corpus:
  name: dataset
  path: user/speech
  label_scale: [1, 5]
  columns: {activation: arousal_mean, transcript: text, speaker: speaker_id}
```

- `path` is what `load_dataset` takes, a name on the Hub, a folder of Parquet, CSV, JSON or sound files, or "parquet"
  and the like with `data_files`; or a folder that `save_to_disk` wrote.
- **Columns** are those of a manifest, see `cmkd.corpora.manifest`, and `columns` says which is which if they have other
  names; fields of nested columns have names with dots. Class labels are read as their names. Other columns are not
  read, and the report says so.
- **Sound** is the column `audio`, or the only one of the type `Audio`. It may also hold paths, or the content of files.
  It is read by this package's own reader: torchcodec is not needed.
- **Splits** are those of the data set; `splits={"train": "train[:90%]", "validation": "train[90%:]"}` makes others. A
  data set of one split that has a column `split` is divided by that column.
- **Ids** are made of split and position, as in `train-17`, if the data set has none.
- **The scale** of a data set that `cmkd.push_corpus` made is known; for all others `label_scale` is needed.

The rows are checked like those of every corpus, and kept with their sound in the cache of this package, so that they
are on the disk twice. With `streaming` all rows are read once without their sound, which is checked when it is reached.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import fsspec
import pyarrow
import pyarrow.compute

from cmkd.corpora import Preference
from cmkd.corpora.building import build_corpus, measured_row
from cmkd.corpora.checks import SourceRow, check_rows
from cmkd.corpora.columns import Reading, flat, flat_names, read_columns
from cmkd.corpora.manifest import UNRATED_SCALE, checked_scale
from cmkd.corpora.report import CorpusProblem, CorpusReport
from cmkd.corpora.schema import FEATURES, Corpus, StreamedCorpus, normalise_split, rows_by_split, stored_features
from cmkd.corpora.transcripts import join_transcripts
from cmkd.spelling import did_you_mean

_BATCH = 1000  # rows
_SAVED = ("dataset_dict.json", "state.json")  # what save_to_disk writes


def build(
    data_dir: str | os.PathLike[str] | None,
    on_error: str,
    *,
    path: str,
    label_scale: Sequence[float] | None = None,
    rated: bool = True,
    columns: Mapping[str, str | None] | None = None,
    splits: Mapping[str, str] | None = None,
    config_name: str | None = None,
    revision: str | None = None,
    data_files: Mapping[str, str | Sequence[str]] | str | Sequence[str] | None = None,
    audio_dir: str | os.PathLike[str] | None = None,
    transcripts: str | os.PathLike[str] | None = None,
    prefer_transcripts: Preference = "manual",
    num_proc: int | None = None,
    streaming: bool = False,
) -> Corpus | StreamedCorpus:
    """Loads a data set and builds the corpus that it holds, or takes it from the cache.

    Args:
        data_dir (path or None): The folder inside `path` to load, as `load_dataset` takes it.
        on_error (`str`): See `load_corpus`.
        path (`str`): The data set: a name on the Hub, a folder, or a kind of file such as "parquet", as `load_dataset`
            takes it; or a folder of `save_to_disk`.
        label_scale (`tuple[float, float]`, *optional*): Minimum and maximum of the scale of the labels; by default that
            in the column `label_scale`, which data sets that `cmkd.push_corpus` made have.
        rated (`bool`, *optional*, defaults to `True`): Whether the utterances are rated. With `False` no rating is read
            or needed, as for `unlabelled` speech in a recipe.
        columns (`dict[str, str | None]`, *optional*): The data set's own names of columns, by the names that they
            have in a manifest, as in `{valence: V}`; None where it has no such column, whatever its names look like.
        splits (`dict[str, str]`, *optional*): Splits of the data set, or slices of them, by the names that they get,
            as in `{train: "train[:90%]"}`; by default all of them under their own names.
        config_name (`str`, *optional*): Which configuration of the data set, the `name` of `load_dataset`.
        revision (`str`, *optional*): Branch, tag or commit of a data set of the Hub.
        data_files (`str`, list or dict, *optional*): The files of the data set, or by split, as `load_dataset`
            takes them.
        audio_dir (path, *optional*): Where relative paths of sound files start, and which no path may leave; by default
            paths are taken as they are.
        transcripts (path, *optional*): The file that `cmkd transcribe` wrote, for utterances without a transcript.
        prefer_transcripts (`str`, *optional*, defaults to `"manual"`): Which transcript counts where an
            utterance has one of the data set and one of the file `transcripts`: "manual" the data set's, "asr" the
            file's.
        num_proc (`int`, *optional*): Processes that write the cache; by default this one does.
        streaming (`bool`, *optional*, defaults to `False`): Whether to read sound only as its row comes, as a
            `StreamedCorpus`, without a cache. Training and scoring need `False`.

    Raises:
        CorpusError: Rows have problems and `on_error` is "raise", or the columns do not suffice.
        FileNotFoundError: There is no such data set.
        ValueError: A setting is not valid, or the data set has no such configuration or split.
    """
    arguments = {"name": config_name, "data_dir": data_dir, "data_files": data_files, "revision": revision}
    with _without_torchcodec():
        loaded = _load(path, arguments, splits, streaming)
        parts = {split: _undecoded(rows) for split, rows in loaded.items()}
    first = next(iter(parts.values()))
    report = CorpusReport(
        name="dataset",
        release=revision or ("disk" if Path(path).exists() else "main"),
        label_scale=(0.0, 1.0),  # until it is known
        config={"path": path, "splits": splits and dict(splits), "columns": columns and dict(columns)}
        | {name: str(value) for name, value in arguments.items() if value is not None},
        is_rated=rated,
    )
    _check_alike(parts, path, report)
    columns = _with_audio(columns, first.features, report)
    reading = read_columns(flat_names(first.features.arrow_schema), path, report, columns, required=("audio",))
    if rated:
        own = _own_scale(parts, path, report) if label_scale is None else label_scale
        report.label_scale = checked_scale(own)
    else:
        report.label_scale = UNRATED_SCALE
    report.config["label_scale"] = list(report.label_scale)
    with _without_torchcodec():
        source_rows = _source_rows(parts, reading, columns, path, report)
    source_rows = join_transcripts(source_rows, transcripts, prefer_transcripts, report)
    if not streaming:
        report.config["files"] = {split: _files(rows) for split, rows in parts.items()}
        return build_corpus(source_rows, report, on_error, audio_dir, num_proc=num_proc)
    rows = check_rows(source_rows, report, on_error, audio_dir, read_sound=False)
    report.notes.append("streamed: the sound of a row is read and checked when the row comes")
    report.is_streamed = True
    streams = {split: _stream(rows, report, on_error) for split, rows in rows_by_split(rows).items()}
    return StreamedCorpus(streams, report)


@dataclass(frozen=True)
class DatasetSound:
    """A `StoredSound` of `cmkd.corpora.checks`: the sound of a row of a data set.

    Attributes:
        rows (`Dataset` or `IterableDataset`): All rows of the split.
        column (`str`): The column of the sound; fields of nested columns are written with dots.
        split (`str`): The split of the data set.
        index (`int`): The number of the row.
        name (`str`): The name of the file, "" if it has none.
    """

    rows: Any = field(repr=False)
    column: str
    split: str
    index: int
    name: str = ""

    def read(self) -> bytes:
        return _content(flat(self.rows[self.index])[self.column])


@contextmanager
def _without_torchcodec() -> Iterator[None]:
    """Lets datasets pass on paths and contents of sound files, for which its own code also requires torchcodec."""
    original = datasets.Audio.encode_example

    def encode_example(self: datasets.Audio, value: Any) -> dict[str, Any]:
        if isinstance(value, (str, os.PathLike)):
            return {"bytes": None, "path": os.fspath(value)}
        if isinstance(value, dict) and set(value) <= {"bytes", "path"}:
            return {"bytes": value.get("bytes"), "path": value.get("path")}
        return original(self, value)

    datasets.Audio.encode_example = encode_example
    try:
        yield
    finally:
        datasets.Audio.encode_example = original


def _load(path: str, arguments: dict[str, Any], splits: Mapping[str, str] | None, streaming: bool) -> dict[str, Any]:
    """The splits of a data set by the names that they get."""
    if any((Path(path) / name).is_file() for name in _SAVED):
        given = [name for name, value in arguments.items() if value is not None]
        if given:
            own = {"name": "config_name"}.get(given[0], given[0])
            raise ValueError(
                f"{own} is {arguments[given[0]]!r}, but {path!r} was written by save_to_disk, which has no such choice:"
                " leave it out."
            )
        saved = datasets.load_from_disk(path)
        if isinstance(saved, datasets.Dataset):
            saved = datasets.DatasetDict({str(saved.split or "train"): saved})
        loaded: dict[str, Any] = dict(saved)
        if streaming:
            loaded = {split: rows.to_iterable_dataset() for split, rows in loaded.items()}
        return loaded if splits is None else {new: _chosen(loaded, new, own, path) for new, own in splits.items()}
    if splits is not None:
        return {
            new: datasets.load_dataset(path, split=own, streaming=streaming, **arguments) for new, own in splits.items()
        }
    return dict(datasets.load_dataset(path, streaming=streaming, **arguments))


def _chosen(loaded: Mapping[str, Any], new: str, own: str, path: str) -> Any:
    if own not in loaded:
        raise ValueError(
            f"splits[{new!r}] is {own!r}, but {path!r} has the splits {', '.join(map(repr, loaded))}; slices are for "
            f"data sets that load_dataset loads.{did_you_mean(own, loaded)}"
        )
    return loaded[own]


def _undecoded(rows: Any) -> Any:
    """The rows with sound as path and bytes, and without other columns that would have to be decoded."""
    if rows.features is None:  # a stream of JSON or CSV
        rows = rows._resolve_features()
    others = [name for name, feature in rows.features.items() if isinstance(feature, (datasets.Image, datasets.Video))]
    rows = rows.remove_columns(others) if others else rows
    features = datasets.Features({name: _without_decoding(feature) for name, feature in rows.features.items()})
    return rows if features == rows.features else rows.cast(features)


def _without_decoding(feature: Any) -> Any:
    if isinstance(feature, datasets.Audio):
        return datasets.Audio(sampling_rate=feature.sampling_rate, decode=False)
    if isinstance(feature, dict):
        return {name: _without_decoding(inner) for name, inner in feature.items()}
    return feature


def _check_alike(parts: Mapping[str, Any], path: str, report: CorpusReport) -> None:
    """Refuses splits with different columns, which would be read in different ways."""
    (first, rows), *others = parts.items()
    names = set(flat_names(rows.features.arrow_schema))
    for split, other in others:
        differing = names ^ set(flat_names(other.features.arrow_schema))
        if differing:
            detail = f"{', '.join(sorted(differing))}: in one of them only"
            fix = "Give all splits the same columns, or take some of them by the setting `splits`."
            report.refuse(CorpusProblem(path, f"columns of {first} and {split} differ", detail), fix)


def _with_audio(
    columns: Mapping[str, str | None] | None, features: datasets.Features, report: CorpusReport
) -> Mapping[str, str | None] | None:
    """`columns` with the only column of sound, if it has another name than "audio"."""
    sounds = [name for name, feature in features.items() if isinstance(feature, datasets.Audio)]
    if "audio" in (columns or {}) or "audio" in features or len(sounds) != 1:
        return columns
    report.notes.append(f"the column {sounds[0]!r}, the only one with sound, is read as 'audio'")
    return {**(columns or {}), "audio": sounds[0]}


def _own_scale(parts: Mapping[str, Any], path: str, report: CorpusReport) -> Any:
    """The value of the column `label_scale`, the same in all rows."""
    if any("label_scale" not in rows.features for rows in parts.values()):
        raise ValueError(f"label_scale is None, but {path!r} has no column of this name: pass the minimum and maximum.")
    scales = {tuple(row["label_scale"]) for rows in parts.values() for row in rows.select_columns(["label_scale"])}
    if len(scales) != 1:
        raise ValueError(f"label_scale is None, but {path!r} has the scales {sorted(scales)}: pass the right one.")
    return scales.pop()


def _source_rows(
    parts: Mapping[str, Any],
    reading: Reading,
    columns: Mapping[str, str | None] | None,
    path: str,
    report: CorpusReport,
) -> list[SourceRow]:
    by_column = "split" in reading and ("split" in (columns or {}) or len(parts) == 1)
    if by_column:
        report.notes.append(f"the splits are those of the column {reading['split']!r}")
    if "id" not in reading:
        report.notes[:] = [note for note in report.notes if "has no column 'id'" not in note]
        report.notes.append("the data set has no column 'id': ids are made of the split and the number of the row")
    source_rows: list[SourceRow] = []
    for split, rows in parts.items():
        names = {own: rows.features[own] for own in reading.values() if own in rows.features}
        for index, (cells, name) in enumerate(_cells(rows, reading["audio"])):
            where = f"{path}/{split}:{index}"
            for own, feature in names.items():
                if isinstance(feature, datasets.ClassLabel):
                    known = cells[own] is not None and cells[own] >= 0
                    cells[own] = feature.int2str(cells[own]) if known else None
            values = {column: cells[own] for column, own in reading.items() if column != "audio"}
            values.setdefault("id", f"{split}-{index}")
            own_split = values.get("split")
            if not by_column:
                values["split"] = split
                if isinstance(own_split, str) and normalise_split(own_split) != normalise_split(split):
                    detail = f"it is in the split {split!r} of the data set; say which counts by splits= or columns="
                    problem = CorpusProblem(where, "two splits", detail, str(values["id"]), "split", own_split)
                    report.problems.append(problem)
                    continue
            is_path = isinstance(name, _Path)
            audio = str(name) if is_path else DatasetSound(rows, reading["audio"], split, index, name)
            source_rows.append(SourceRow(row=where, audio=audio, **values))
    return source_rows


class _Path(str):
    """A path of a file, where the data set does not hold its content."""


def _cells(rows: Any, audio: str) -> Iterator[tuple[dict[str, Any], str]]:
    """The values of each row without its sound, and the path of the sound, or its name if the content is there."""
    top = audio.split(".")[0]
    if isinstance(rows, datasets.IterableDataset):
        for row in rows:
            cells = flat(row)
            cell = cells.pop(audio)
            yield cells, _name(cell)
        return
    for batch in rows.with_format("arrow").iter(_BATCH):
        others = batch.drop_columns([top]).to_pylist()
        sounds = _without_content(batch[top].combine_chunks()).to_pylist()
        for cells, sound in zip(others, sounds, strict=True):
            row = flat({**cells, top: sound})
            yield row, _name(row.pop(audio))


def _without_content(column: pyarrow.Array) -> pyarrow.Array:
    """Sound with b"" instead of its bytes, so that these are not read from the disk."""
    if pyarrow.types.is_struct(column.type):
        fields = [_without_content(pyarrow.compute.struct_field(column, inner.name)) for inner in column.type]
        return pyarrow.StructArray.from_arrays(fields, [inner.name for inner in column.type], mask=column.is_null())
    if pyarrow.types.is_binary(column.type) or pyarrow.types.is_large_binary(column.type):
        empty, nothing = pyarrow.scalar(b"", pyarrow.binary()), pyarrow.scalar(None, pyarrow.binary())
        return pyarrow.compute.if_else(column.is_null(), nothing, empty)
    return column


def _name(cell: Any) -> Any:
    """The path of a sound, as a `_Path`, or the name of one whose content is there; anything else is left as it is."""
    if isinstance(cell, dict):
        if cell.get("bytes") is not None:
            return cell.get("path") or ""
        cell = cell.get("path")
    return "" if isinstance(cell, bytes) else _Path(cell or "")


def _content(cell: Any) -> bytes:
    """The bytes of a sound file."""
    content = cell["bytes"] if isinstance(cell, dict) else cell
    if isinstance(content, bytes):
        return content
    with fsspec.open(cell["path"] if isinstance(cell, dict) else cell, "rb") as file:
        return file.read()


def _files(rows: datasets.Dataset) -> list[tuple[str, int, int]]:
    """The files that a split is read from, with sizes and modification times, so that a change is noticed."""
    files = [Path(entry["filename"]) for entry in rows.cache_files]
    return [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]


def _stream(rows: list[dict[str, Any]], report: CorpusReport, on_error: str) -> datasets.IterableDataset:
    return datasets.IterableDataset.from_generator(
        _streamed_rows, features=stored_features(FEATURES), gen_kwargs={"stream": (rows, report, on_error)}
    )


def _streamed_rows(stream: tuple[list[dict[str, Any]], CorpusReport, str]) -> Iterator[dict[str, Any]]:
    """Checked rows with the sound that the data set has for them, in the order in which it is reached."""
    rows, report, on_error = stream
    sources: dict[str, tuple[Any, dict[int, dict[str, Any]]]] = {}
    for row in rows:
        sound = row["audio"]["bytes"]
        if isinstance(sound, DatasetSound):
            sources.setdefault(sound.split, (sound, {}))[1][sound.index] = row
        elif measured := measured_row(row, report, on_error):
            yield measured
    for sound, wanted in sources.values():
        with _without_torchcodec():
            for index, cells in enumerate(sound.rows):
                if index not in wanted:
                    continue
                row = wanted[index]
                audio = {"bytes": _content(flat(cells)[sound.column]), "path": row["audio"]["path"]}
                if measured := measured_row({**row, "audio": audio}, report, on_error):
                    yield measured
