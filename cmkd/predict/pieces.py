"""Pieces: what is claimed, scored in batches and stored as one.

A piece is what a run of events of one chunk holds, some minutes of sound: where one ends depends on the sources of the
chunk alone, not on who reads it nor on when. So whoever reads a chunk again, another process or the same after it was
killed, finds the same pieces, and knows those that are scored already by their numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import pyarrow

from cmkd.predict.engines import Engine
from cmkd.predict.reading import Ended, Event, Failed, Heard

PIECE_SECONDS = 600.0
"""Seconds of sound after which a piece is full; it takes 38 MB at 16 kHz."""

PIECE_WINDOWS = 4096
"""Windows after which it is full too."""

SCORED = pyarrow.schema(
    [
        ("source", pyarrow.int64()),
        ("channel", pyarrow.int16()),
        ("start", pyarrow.float64()),
        ("end", pyarrow.float64()),
        ("silent", pyarrow.bool_()),
        ("peaks", pyarrow.binary()),
        ("scores", pyarrow.list_(pyarrow.float32())),
        ("embedding", pyarrow.list_(pyarrow.float32())),
        ("channels", pyarrow.int16()),
        ("offset", pyarrow.float64()),
        ("kind", pyarrow.string()),
        ("message", pyarrow.string()),
    ]
)
"""Of a scored piece: a row for each event. A window has everything up to its embedding, the end of a source `channels`
and `offset`, a failure `kind` and `message`; what it lacks is null."""


@dataclass
class Piece:
    """Events of a chunk that follow each other.

    Attributes:
        chunk, number (`int`): Which it is, the pieces of a chunk being numbered from 0.
        is_last (`bool`): Whether the chunk has no other behind it.
        events (`list[Event]`)
    """

    chunk: int
    number: int
    is_last: bool = False
    events: list[Event] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Of the sound that is in it; where windows overlap, that counts twice."""
        return sum(event.end - event.start for event in self.events if isinstance(event, Heard))


def cut_into_pieces(chunk: int, events: Iterable[Event], most: float) -> Iterator[Piece]:
    """The pieces of a chunk, each as soon as it is known whether it is the last; there is one at least.

    Args:
        chunk: Its number.
        events: All of it.
        most: Samples after which a piece is full.
    """
    piece = Piece(chunk, 0)
    samples = windows = 0
    for event in events:
        if samples >= most or windows >= PIECE_WINDOWS:
            yield piece
            piece = Piece(chunk, piece.number + 1)
            samples = windows = 0
        piece.events.append(event)
        if isinstance(event, Heard):
            samples += len(event.samples)
            windows += 1
    piece.is_last = True
    yield piece


def score(piece: Piece, engine: Engine, batch_seconds: float, keep_embeddings: bool) -> pyarrow.Table:
    """Scores the windows of a piece, in batches of like length.

    Args:
        piece: What is scored.
        engine: The network.
        batch_seconds: The most sound in a batch, padding included; a longer window is alone in its batch, and 0 scores
            one window after the other.
        keep_embeddings: Whether the table has them.

    Returns:
        A table of the schema `SCORED`.
    """
    heard = [event for event in piece.events if isinstance(event, Heard)]
    scores: list[Any] = [None] * len(heard)
    embeddings: list[Any] = [None] * len(heard)
    windows = batches([len(event.samples) for event in heard], batch_seconds * engine.sampling_rate)
    for batch, (scores_of_batch, vectors) in zip(windows, _run(engine, heard, windows), strict=True):
        for row, index in enumerate(batch):
            scores[index], embeddings[index] = scores_of_batch[row], vectors[row]
    scored = iter(zip(scores, embeddings, strict=True))
    return pyarrow.Table.from_pylist([_row(event, scored, keep_embeddings) for event in piece.events], SCORED)


def _run(
    engine: Engine, heard: Sequence[Heard], windows: Sequence[Sequence[int]]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """What the engine says of each batch, several of them being scored at once if that suits it."""
    waves = ([heard[index].samples for index in batch] for batch in windows)
    if engine.batches_at_once == 1:
        yield from map(engine.run, waves)
        return
    with ThreadPoolExecutor(engine.batches_at_once) as threads:
        yield from threads.map(engine.run, waves)


def _row(event: Event, scored: Iterator[tuple[Any, Any]], keep_embedding: bool) -> dict[str, Any]:
    row: dict[str, Any] = {"source": event.source}
    if isinstance(event, Heard):
        scores, embedding = next(scored)
        row.update({name: getattr(event, name) for name in ("channel", "start", "end", "silent", "peaks")})
        row.update(scores=scores, embedding=embedding if keep_embedding else None)
    elif isinstance(event, Ended):
        row.update(channels=event.channels, offset=event.offset)
    else:
        row.update(kind=event.kind, message=event.message)
    return row


_EVENTS = {"heard": Heard, "ended": Ended, "failed": Failed}


def pack(piece: Piece) -> bytes:
    """A piece as one Arrow table, to be sent to another machine."""
    columns: dict[str, Any] = {"event": [type(event).__name__.lower() for event in piece.events]}
    names = {field.name for kind in _EVENTS.values() for field in fields(kind)} - {"samples"}
    columns |= {name: [getattr(event, name, None) for event in piece.events] for name in sorted(names)}
    waves = [event.samples if isinstance(event, Heard) else np.zeros(0, np.float32) for event in piece.events]
    ends = np.cumsum([0, *map(len, waves)], dtype=np.int64)
    columns["samples"] = pyarrow.LargeListArray.from_arrays(ends, np.concatenate([np.zeros(0, np.float32), *waves]))
    table = pyarrow.table(columns).replace_schema_metadata(
        {"chunk": str(piece.chunk), "number": str(piece.number), "is_last": str(int(piece.is_last))}
    )
    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def unpack(content: bytes) -> Piece:
    """The piece that [`pack`] has packed."""
    with pyarrow.ipc.open_stream(content) as reader:
        table = reader.read_all()
    about = {key.decode(): int(value) for key, value in table.schema.metadata.items()}
    samples = table["samples"].combine_chunks()
    events: list[Event] = []
    for index, row in enumerate(table.drop_columns("samples").to_pylist()):
        kind = _EVENTS[row.pop("event")]
        values = {field.name: row.get(field.name) for field in fields(kind)}
        if kind is Heard:
            values["samples"] = samples[index].values.to_numpy()
        events.append(kind(**values))
    return Piece(about["chunk"], about["number"], bool(about["is_last"]), events)


def batches(lengths: Sequence[int], most: float) -> list[list[int]]:
    """Puts windows of like length together, so that a batch with its padding is no larger than `most`.

    >>> batches([3, 9, 4, 10], most=20)
    [[3, 1], [2, 0]]
    >>> batches([3, 30], most=20), batches([3, 4], most=0)
    ([[1], [0]], [[1], [0]])
    """
    batches_so_far: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        if batches_so_far and lengths[batches_so_far[-1][0]] * (len(batches_so_far[-1]) + 1) <= most:
            batches_so_far[-1].append(index)
        else:
            batches_so_far.append([index])
    return batches_so_far
