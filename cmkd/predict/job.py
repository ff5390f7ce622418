"""What a run has to do: the plan, the folder and the shape of the rows, as every engine needs them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import pyarrow

from cmkd.predict.pieces import Piece
from cmkd.predict.plan import Plan
from cmkd.predict.rows import Shape
from cmkd.predict.store import Store


@dataclass(frozen=True)
class Job:
    """What is scored, and where it is written.

    Attributes:
        store (`Store`), plan (`Plan`), shape (`Shape`)
        embeddings (`bool`): Whether they are kept.
    """

    store: Store
    plan: Plan
    shape: Shape
    embeddings: bool

    def write(self, piece: Piece, table: pyarrow.Table) -> None:
        """Stores a piece that has been scored."""
        self.store.write_piece(self._shard(piece.chunk), piece, table)

    def is_scored(self, chunk: int) -> bool:
        """Whether all of a chunk is stored."""
        return self.store.is_scored(self._shard(chunk), chunk)

    def scored_pieces(self, chunk: int) -> set[int]:
        """The numbers of the pieces of a chunk that are stored."""
        return set(self.store.piece_paths(self._shard(chunk), chunk)[0])

    def assemble(self, shard: int) -> bool:
        """Makes the tables of a shard if all of it is stored; returns whether it is complete."""
        return self.store.assemble(self.plan, shard, self.shards[shard], self.shape)

    @cached_property
    def shards(self) -> dict[int, list[int]]:
        """The chunks of each shard."""
        return self.plan.shards()

    def _shard(self, chunk: int) -> int:
        return self.plan.chunks[chunk].shard
