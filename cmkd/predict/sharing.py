"""Which pieces this process scores, where several share the work.

Processes know of each other by the claims in the output folder alone. Each takes chunks that nobody is at. When there
are none left it helps where others are still at work: it reads their chunks too, and scores the pieces that nobody has
claimed. So the last long file is shared, a piece each, and what that costs is reading it more than once.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, groupby

from cmkd.predict import pieces
from cmkd.predict.pieces import Piece, cut_into_pieces
from cmkd.predict.plan import Plan
from cmkd.predict.readers import Group, Readers
from cmkd.predict.reading import Event
from cmkd.predict.sources import DATASET, Source
from cmkd.predict.store import Store


@dataclass(frozen=True)
class Passed:
    """This process has been through a chunk: what it has not scored others had done or were at."""

    chunk: int


@dataclass(frozen=True)
class _Pass:
    """One way through a chunk."""

    chunk: int
    number: int


class Sharing:
    """The pieces that this process has to score, as they come.

    Args:
        store: The output folder.
        plan: What there is to do.
        sampling_rate: Hz of what is read.
    """

    def __init__(self, store: Store, plan: Plan, sampling_rate: int):
        self._store, self._plan = store, plan
        self._most = pieces.PIECE_SECONDS * sampling_rate
        self._lock = threading.Lock()
        self._under_way: set[int] = set()
        self._totals: dict[int, int] = {}
        self._passes = 0

    def pieces(self, readers: Readers[_Pass]) -> Iterator[Piece | Passed]:
        """Pieces that this process has claimed, each to be written or released, and marks between them.

        It ends when all chunks are scored, by whomever. To be taken in one thread only, and `passed` to be called for
        every mark, in whatever thread.
        """
        events = readers.events(self._groups())
        for way, first in events:
            assert first is not None
            total = 0
            for piece in cut_into_pieces(way.chunk, chain([first], _of_one_pass(events)), self._most):
                total += 1
                if self._may_score(piece):
                    yield piece
            self._totals[way.chunk] = total
            yield Passed(way.chunk)

    def passed(self, mark: Passed) -> None:
        """What this process had claimed of a chunk is written."""
        self._store.release_chunk(mark.chunk)
        with self._lock:
            self._under_way.discard(mark.chunk)

    def _may_score(self, piece: Piece) -> bool:
        shard = self._plan.chunks[piece.chunk].shard
        if self._store.has_piece(shard, piece) or not self._store.claim_piece(piece.chunk, piece.number):
            return False
        if self._store.has_piece(shard, piece) or self._store.is_complete(shard):  # since it was looked for
            self._store.release_piece(piece.chunk, piece.number)
            return False
        return True

    def _groups(self) -> Iterator[tuple[_Pass, Group] | None]:
        for chunk in self._chunks():
            if chunk is None:
                yield None
                continue
            self._passes += 1
            way = _Pass(chunk, self._passes)
            for group in groups_of(self._plan.sources(chunk)):
                yield way, group
            yield way, []

    def _chunks(self) -> Iterator[int | None]:
        """Chunks to read, None where there is nothing to do but to wait."""
        left = []
        for chunk in self._plan.chunks:
            if self._is_scored(chunk):
                continue
            if self._store.claim_chunk(chunk):
                if self._is_scored(chunk):
                    self._store.release_chunk(chunk)
                    continue
                yield self._begin(chunk)
            left.append(chunk)
        while left := [chunk for chunk in left if not self._is_scored(chunk)]:
            waits = True
            for chunk in left:
                if chunk not in self._under_way and self._has_work(chunk):
                    waits = False
                    yield self._begin(chunk)
            if waits:
                yield None

    def _begin(self, chunk: int) -> int:
        with self._lock:
            self._under_way.add(chunk)
        return chunk

    def _has_work(self, chunk: int) -> bool:
        """Whether a chunk that others are at, or were at, has something for this process."""
        if self._is_scored(chunk):
            return False
        if chunk not in self._totals:
            return True
        piece_paths, _ = self._store.piece_paths(self._plan.chunks[chunk].shard, chunk)
        for number in range(self._totals[chunk]):
            if number not in piece_paths and self._store.claim_piece(chunk, number):  # whoever was at it has died
                self._store.release_piece(chunk, number)
                return not self._is_scored(chunk)
        return False

    def _is_scored(self, chunk: int) -> bool:
        return self._store.is_scored(self._plan.chunks[chunk].shard, chunk)


def _of_one_pass(events: Iterator[tuple[_Pass, Event | None]]) -> Iterator[Event]:
    for _, event in events:
        if event is None:
            return
        yield event


def groups_of(sources: list[tuple[int, Source]]) -> Iterator[Group]:
    """The sources of a chunk, those of one file together."""
    for _, group in groupby(sources, key=lambda one: _file(*one)):
        yield list(group)


def _file(number: int, source: Source) -> tuple[str, int | None]:
    return source.address, source.row if source.address.startswith(DATASET) else None
