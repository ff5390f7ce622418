"""What is made of the tables of a run when it is complete: the timeline, other formats, label tracks and the page."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import quote

import numpy as np
import pyarrow.parquet

from cmkd.atomic import written_whole
from cmkd.predict.labels import WRITERS, Track, label_file
from cmkd.predict.plan import Plan
from cmkd.predict.rows import ERRORS, Shape
from cmkd.predict.sources import DATASET, is_remote
from cmkd.predict.store import Store
from cmkd.predict.summary import write_summary

Format = Literal["parquet", "csv", "jsonl"]
Labels = Literal["audacity", "elan", "textgrid"]
FORMATS, LABELS = get_args(Format), get_args(Labels)


@dataclass(frozen=True)
class Export:
    """What is made beside the tables of scores and of errors.

    Attributes:
        timeline (`bool`): A row for each window.
        formats (`frozenset[str]`): "csv" and "jsonl".
        labels (`frozenset[str]`): "audacity", "elan" and "textgrid".
        summary (`bool`): summary.html.
    """

    timeline: bool
    formats: frozenset[str]
    labels: frozenset[str]
    summary: bool


def exports_of(store: Store, timeline: bool, format: Format, labels: Labels | None, summary: bool) -> Export:
    """What is asked for now, and what the folder has from earlier runs: it would go stale if it were not made again."""
    folder = store.folder
    there = {ending for ending in FORMATS if (folder / f"scores.{ending}").exists()}
    labelled = {kind for kind in LABELS if any((store.journal / "labels").glob(f"{kind}-*"))}
    return Export(
        timeline=timeline or (folder / "timeline").exists(),
        formats=frozenset({*there, format} - {"parquet"}),
        labels=frozenset(labelled if labels is None else {*labelled, labels}),
        summary=summary or (folder / "summary.html").exists(),
    )


def write_exports(store: Store, plan: Plan, shape: Shape, export: Export, settings: Mapping[str, Any]) -> None:
    """Makes everything that is not there yet; all shards are complete."""
    _write_errors(store)
    if export.timeline:
        _write_timeline(store, shape)
    tables = {"scores": shape.scores} | ({"timeline": _timeline_schema(shape)} if export.timeline else {})
    for ending in sorted(export.formats):
        for name, schema in tables.items():
            paths = store.shard_paths(store.folder / name)
            with written_whole(store.folder / f"{name}.{ending}") as unfinished:
                _WRITERS[ending](unfinished, schema, _rows(paths))
    for kind in sorted(export.labels):
        _write_labels(store, plan, shape, kind)
    if export.summary:
        write_summary(store, shape, settings)


def _write_errors(store: Store) -> None:
    path = store.folder / "errors.parquet"
    shards = [shard for shard in store.shard_paths(store.errors) if pyarrow.parquet.read_metadata(shard).num_rows]
    if not shards:
        path.unlink(missing_ok=True)
        return
    with written_whole(path) as unfinished, pyarrow.parquet.ParquetWriter(unfinished, ERRORS) as writer:
        for shard in shards:  # each by itself, since they may be as many as the sources
            writer.write_table(pyarrow.parquet.read_table(shard))


def _timeline_schema(shape: Shape) -> pyarrow.Schema:
    return shape.windows.remove(shape.windows.get_field_index("peaks"))


def _write_timeline(store: Store, shape: Shape) -> None:
    names = _timeline_schema(shape).names
    for path in store.shard_paths(store.windows):
        target = store.folder / "timeline" / path.name
        if not target.exists():
            with written_whole(target) as unfinished:
                pyarrow.parquet.write_table(pyarrow.parquet.read_table(path, columns=names), unfinished)


def _rows(paths: list[Path]) -> Iterator[dict[str, Any]]:
    for path in paths:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(4096):
            yield from batch.to_pylist()


def _write_csv(path: Path, schema: pyarrow.Schema, rows: Iterator[dict[str, Any]]) -> None:
    """The embedding becomes a column for each of its numbers."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        names = [name for name in schema.names if name != "embedding"]
        first = next(rows, None)
        size = len(first["embedding"]) if first is not None and "embedding" in first else 0
        writer.writerow([*names, *(f"embedding_{number}" for number in range(size))])
        for row in [] if first is None else _with(first, rows):
            writer.writerow([*(row[name] for name in names), *row.get("embedding", ())])


def _write_jsonl(path: Path, schema: pyarrow.Schema, rows: Iterator[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _with(first: dict[str, Any], rows: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    yield first
    yield from rows


_WRITERS: dict[str, Callable[[Path, pyarrow.Schema, Iterator[dict[str, Any]]], None]] = {
    "csv": _write_csv,
    "jsonl": _write_jsonl,
}


def _write_labels(store: Store, plan: Plan, shape: Shape, kind: str) -> None:
    """The labels of all files that a shard has sources of, whole: also of those sources that other shards have."""
    _, write = WRITERS[kind]
    chunks = plan.shards()
    paths = {int(path.stem): path for path in store.shard_paths(store.windows)}
    for shard in paths:
        mark = store.journal / "labels" / f"{kind}-{shard:05d}"
        if mark.exists():
            continue
        files: dict[str, list[int]] = {}
        by_shard: dict[int, list[int]] = {}
        for chunk in chunks.get(shard, []):
            for number, at, address, row in plan.sources_of_files(chunk):
                files.setdefault(_label_file(address, row, store), []).append(number)
                by_shard.setdefault(at, []).append(number)
        table = _windows([(paths[at], numbers) for at, numbers in by_shard.items()], shape)
        numbers = table["number"].to_numpy()
        channels = np.array([-1 if value is None else value for value in table["channel"].to_pylist()], dtype=int)
        columns = {name: table[name].to_numpy() for name in ("start", "end", *shape.names)}
        silent = table["silent"].to_numpy(zero_copy_only=False)
        for file, own in files.items():
            is_own = np.isin(numbers, own)
            tracks = [
                Track(
                    channel=None if channel < 0 else int(channel),
                    starts=columns["start"][rows],
                    ends=columns["end"][rows],
                    silent=silent[rows],
                    scores={name: columns[name][rows] for name in shape.names},
                )
                for channel in np.unique(channels[is_own])
                for rows in [np.flatnonzero(is_own & (channels == channel))]
            ]
            if tracks:
                with written_whole(Path(label_file(file, kind))) as unfinished:
                    write(unfinished, Path(file).name, tracks)
        with written_whole(mark) as unfinished:
            unfinished.touch()


def _windows(parts: list[tuple[Path, list[int]]], shape: Shape) -> pyarrow.Table:
    """What labels say of the windows of some sources, each with the table that it is in."""
    names = ["number", "channel", "start", "end", "silent", *shape.names]
    schema = pyarrow.schema([shape.windows.field(name) for name in names])
    tables = [
        pyarrow.parquet.read_table(path, columns=names, filters=[("number", "in", numbers)]) for path, numbers in parts
    ]
    return pyarrow.concat_tables([schema.empty_table(), *tables])


def _label_file(address: str, row: int | None, store: Store) -> str:
    """What the name of a label file begins with: beside the sound, if that is a file of this machine."""
    if address.startswith(DATASET):
        return str(store.folder / "labels" / f"{quote(address.removeprefix(DATASET).lstrip('/'), safe='/')}" / str(row))
    if is_remote(address):
        return str(store.folder / "labels" / quote(address.replace("://", "/", 1), safe="/ "))
    return address
