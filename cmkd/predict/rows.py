"""From scored pieces to rows: one for each source and channel, one for each window, one for each error."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow
import pyarrow.compute

from cmkd.predict.sources import Source
from windows_cmkd import Window, time_shares

_SOURCE = [
    ("number", pyarrow.int64()),
    ("source", pyarrow.string()),
    ("id", pyarrow.string()),
    ("label", pyarrow.string()),
    ("channel", pyarrow.int16()),
]
_MEAN = -1

ERRORS = pyarrow.schema(
    [
        ("number", pyarrow.int64()),
        ("source", pyarrow.string()),
        ("id", pyarrow.string()),
        ("start", pyarrow.float64()),
        ("end", pyarrow.float64()),
        ("kind", pyarrow.string()),
        ("message", pyarrow.string()),
    ]
)


@dataclass(frozen=True)
class Shape:
    """Which columns rows have.

    Attributes:
        dimensions (`tuple[int, ...]`): The places of the rated dimensions among activation, valence and dominance.
        names (`tuple[str, ...]`): What they are called.
        label_scale (`tuple[float, float]`): Of the ratings.
        embeddings (`bool`): Whether there are any.
    """

    dimensions: tuple[int, ...]
    names: tuple[str, ...]
    label_scale: tuple[float, float]
    embeddings: bool

    @property
    def scores(self) -> pyarrow.Schema:
        """A row for each source and channel."""
        whole = [
            ("channels", pyarrow.int16()),
            ("start", pyarrow.float64()),
            ("end", pyarrow.float64()),
            ("duration", pyarrow.float64()),
            ("windows", pyarrow.int64()),
            ("silent", pyarrow.bool_()),
        ]
        return pyarrow.schema([*_SOURCE, *whole, *self._answer])

    @property
    def windows(self) -> pyarrow.Schema:
        """A row for each window, with its picture."""
        own = [("start", pyarrow.float64()), ("end", pyarrow.float64()), ("silent", pyarrow.bool_())]
        return pyarrow.schema([*_SOURCE, *own, *self._answer, ("peaks", pyarrow.binary())])

    @property
    def _answer(self) -> list[tuple[str, pyarrow.DataType]]:
        fields = [(name, pyarrow.float64()) for name in (*self.names, *(f"{name}_rating" for name in self.names))]
        return [*fields, ("embedding", pyarrow.list_(pyarrow.float32()))] if self.embeddings else fields

    def answer(self, scores: np.ndarray, embeddings: np.ndarray | None) -> dict[str, Any]:
        """The columns of scores, ratings and embeddings of some rows, from (rows, 3) and (rows, size)."""
        minimum, maximum = self.label_scale
        columns: dict[str, Any] = {}
        for place, name in zip(self.dimensions, self.names, strict=True):
            columns[name] = scores[:, place]
            columns[f"{name}_rating"] = scores[:, place] * (maximum - minimum) + minimum
        if embeddings is not None:
            columns["embedding"] = list(embeddings.astype(np.float32))
        return columns


def rows_of_chunk(
    sources: Mapping[int, Source], pieces: Sequence[pyarrow.Table], shape: Shape
) -> tuple[pyarrow.Table, pyarrow.Table, pyarrow.Table]:
    """The tables of scores, of windows and of errors, in the order of the sources.

    Args:
        sources: Of the chunk, by their numbers.
        pieces: All of the chunk, as `cmkd.predict.pieces.score` made them, in their order.
        shape: Of the tables.
    """
    table = pyarrow.concat_tables(pieces)
    failed = _by_source(table, ["kind", "message"])
    ended = _by_source(table, ["channels", "offset"])
    assert failed.keys() | ended.keys() == sources.keys()
    errors = [
        {"number": number, "source": source.name, "id": source.id, "start": source.start, "end": source.end}
        | {name: failed[number][name] for name in ("kind", "message")}
        for number, source in sources.items()
        if number in failed
    ]
    heard = table.filter(pyarrow.compute.is_valid(table["scores"]))
    numbers = heard["source"].to_numpy()
    channels = heard["channel"].to_numpy()
    starts, ends = heard["start"].to_numpy(), heard["end"].to_numpy()
    silent = heard["silent"].to_numpy(zero_copy_only=False)
    logits = _matrix(heard["scores"]).astype(np.float64)
    vectors = _matrix(heard["embedding"]).astype(np.float64) if shape.embeddings else None
    peaks = heard["peaks"].to_pylist()
    wholes, windows = [shape.scores.empty_table()], [shape.windows.empty_table()]
    for number, channel, rows in _groups(numbers, channels):
        if number in failed:
            continue
        source, offset = sources[number], ended[number]["offset"]
        own = [Window(0, starts[row], ends[row], bool(silent[row]), False) for row in rows]
        shares = time_shares(own)
        whole = {
            **_source_columns(number, source, channel, 1),
            "channels": [ended[number]["channels"]],
            "start": [offset],
            "end": [offset + own[-1].end],
            "duration": [own[-1].end],
            "windows": [len(own)],
            "silent": [all(window.silent for window in own)],
            **shape.answer((shares @ logits[rows])[None], None if vectors is None else (shares @ vectors[rows])[None]),
        }
        each = {
            **_source_columns(number, source, channel, len(own)),
            "start": offset + starts[rows],
            "end": offset + ends[rows],
            "silent": silent[rows],
            **shape.answer(logits[rows], None if vectors is None else vectors[rows]),
            "peaks": [peaks[row] for row in rows],
        }
        wholes.append(pyarrow.Table.from_pydict(whole, shape.scores))
        windows.append(pyarrow.Table.from_pydict(each, shape.windows))
    return (
        pyarrow.concat_tables(wholes).combine_chunks(),
        pyarrow.concat_tables(windows).combine_chunks(),
        pyarrow.Table.from_pylist(errors, ERRORS),
    )


def _by_source(table: pyarrow.Table, columns: list[str]) -> dict[int, dict[str, Any]]:
    """The rows that have a value in the first of the columns."""
    rows = table.filter(pyarrow.compute.is_valid(table[columns[0]])).select(["source", *columns])
    return {row["source"]: row for row in rows.to_pylist()}


def _source_columns(number: int, source: Source, channel: int, rows: int) -> dict[str, Any]:
    values = {
        "number": number,
        "source": source.name,
        "id": source.id,
        "label": source.label,
        "channel": None if channel == _MEAN else channel,
    }
    return {name: [value] * rows for name, value in values.items()}


def _groups(numbers: np.ndarray, channels: np.ndarray) -> Iterator[tuple[int, int, np.ndarray]]:
    """The rows of each source and channel, in their order."""
    order = np.lexsort((np.arange(len(numbers)), channels, numbers))
    if len(order):
        keys = np.stack([numbers[order], channels[order]])
        edges = np.flatnonzero((keys[:, 1:] != keys[:, :-1]).any(axis=0)) + 1
        for rows in np.split(order, edges):
            yield int(numbers[rows[0]]), int(channels[rows[0]]), rows


def _matrix(column: pyarrow.ChunkedArray) -> np.ndarray:
    values = column.combine_chunks()
    if not len(values):
        return np.zeros((0, 0), np.float32)
    return values.flatten().to_numpy(zero_copy_only=False).reshape(len(values), -1)
