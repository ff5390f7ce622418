"""All sources of a run, on the disk, in chunks that are claimed and in shards that are written.

The plan is one SQLite file, made whole and from then on only read, so that it may lie on a disk that machines share and
takes no memory whatever the number of sources. Sources of one file follow each other, and are in one chunk. A plan only
grows: what was numbered keeps its number, and what is new, or has changed, gets new chunks behind.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, fields
from itertools import groupby
from pathlib import Path

from cmkd.atomic import written_whole
from cmkd.predict.sources import Source

CHUNK_SOURCES = 256
"""Sources of a chunk, more only if they are of one file."""

CHUNK_BYTES = 2**26
"""Bytes of the files of a chunk, more only if it is one file."""

SHARD_CHUNKS = 64
"""Chunks of a shard, whose rows become one file."""

_FIELDS = tuple(field.name for field in fields(Source))
_COLUMNS = (
    "key BLOB UNIQUE, name TEXT, address TEXT, row INTEGER, start REAL, end REAL, channel INTEGER, id TEXT, "
    "label TEXT, size INTEGER, stamp TEXT"
)


@dataclass(frozen=True)
class Chunk:
    """Sources that follow each other.

    Attributes:
        number, shard (`int`)
        size (`int`): Bytes of its files, at least 1 for each source.
    """

    number: int
    shard: int
    size: int


@dataclass(frozen=True)
class Changes:
    """What a list of sources has that a plan had not.

    Attributes:
        new (`int`): How many are new.
        changed (`list[int]`): The numbers in the plan of those that are not what they were.
        gone (`int`): How many are in the plan and were not named now.
        first_gone (`list[str]`): The first few of them.
    """

    new: int
    changed: list[int]
    gone: int
    first_gone: list[str]


class Plan:
    """A plan that is there.

    Args:
        path: The SQLite file; nobody changes it.
    """

    def __init__(self, path: Path):
        self._connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True, check_same_thread=False
        )
        self.chunks = {
            number: Chunk(number, shard, size)
            for number, shard, size in self._connection.execute(
                "SELECT number, shard, size FROM chunks ORDER BY number"
            )
        }
        """By number; each stands for 256 sources or for 64 MB."""

    def close(self) -> None:
        self._connection.close()

    def sources(self, chunk: int) -> list[tuple[int, Source]]:
        """The sources of a chunk, each with its number in the plan."""
        table_rows = self._connection.execute(
            f"SELECT number, {', '.join(_FIELDS)} FROM sources WHERE chunk = ? ORDER BY number", (chunk,)
        )
        return [(number, Source(*values)) for number, *values in table_rows]

    def sources_of_files(self, chunk: int) -> Iterator[tuple[int, int, str, int | None]]:
        """All sources of the files that a chunk has sources of, in whatever chunk they are.

        A file has sources in several chunks where some of them were new when the plan was there already.

        Yields:
            The number and the shard of each, and the address and the row of its file.
        """
        yield from self._connection.execute(
            "SELECT s.number, c.shard, s.address, s.row "
            "FROM (SELECT DISTINCT address, row FROM sources WHERE chunk = ?) AS file "
            "JOIN sources AS s ON s.address = file.address AND s.row IS file.row "
            "JOIN chunks AS c ON c.number = s.chunk",
            (chunk,),
        )

    def shards(self) -> dict[int, list[int]]:
        """The chunks of each shard."""
        chunks_of_shard: dict[int, list[int]] = {}
        for chunk in self.chunks.values():
            chunks_of_shard.setdefault(chunk.shard, []).append(chunk.number)
        return chunks_of_shard

    def chunks_of(self, numbers: Iterable[int]) -> set[int]:
        """The chunks of some sources."""
        question = "SELECT chunk FROM sources WHERE number = ?"
        return {self._connection.execute(question, (number,)).fetchone()[0] for number in numbers}

    def count(self) -> int:
        """How many sources there are."""
        return int(self._connection.execute("SELECT COUNT(*) FROM sources").fetchone()[0])


class Incoming:
    """A list of sources, on its way to become a plan, or to be compared with one.

    Args:
        path: Of a file that it may take for itself, until `close`.
    """

    def __init__(self, path: Path):
        path.unlink(missing_ok=True)
        self.path = path
        self._connection = sqlite3.connect(path, isolation_level=None)
        self._run("PRAGMA journal_mode = OFF")
        self._run("PRAGMA synchronous = OFF")
        self._run(f"CREATE TABLE new (place INTEGER PRIMARY KEY, {_COLUMNS})")

    def close(self) -> None:
        self._connection.close()
        self.path.unlink(missing_ok=True)

    def gather(self, sources: Iterable[Source]) -> int:
        """Takes all sources, each once, and returns how many were named again.

        Raises:
            ValueError: There are none.
        """
        twice = 0
        statement = f"INSERT OR IGNORE INTO new VALUES (NULL, ?, {', '.join('?' * len(_FIELDS))})"
        self._run("BEGIN")
        for source in sources:
            twice += self._connection.execute(statement, [_key(source), *_values(source)]).rowcount == 0
        self._run("COMMIT")
        if not self._run("SELECT 1 FROM new LIMIT 1"):
            raise ValueError("there are no sources: name files, folders, globs, a list, or a data set.")
        return twice

    def compare(self, plan: Path, again: Iterable[int] = ()) -> Changes:
        """What is new, changed or gone, beside a plan.

        Args:
            plan: The plan's file.
            again: Numbers in the plan of sources that count as changed.
        """
        self._run("ATTACH ? AS old", (str(plan),))
        repeated = set(again)
        numbers = self._connection.execute(  # one after the other, since most have not changed
            "SELECT o.number, o.size = n.size AND o.stamp = n.stamp FROM old.sources o JOIN new n ON o.key = n.key"
        )
        changed = sorted(number for number, is_same in numbers if not is_same or number in repeated)
        ((new,),) = self._run("SELECT COUNT(*) FROM new WHERE key NOT IN (SELECT key FROM old.sources)")
        ((gone,),) = self._run("SELECT COUNT(*) FROM old.sources WHERE key NOT IN (SELECT key FROM new)")
        first = self._run("SELECT name FROM old.sources WHERE key NOT IN (SELECT key FROM new) ORDER BY number LIMIT 3")
        changes = Changes(new, changed, gone, [name for (name,) in first])
        self._run("DETACH old")
        return changes

    def write(self, path: Path) -> None:
        """Makes the plan of all sources."""
        with written_whole(path) as unfinished, closing(_new_plan(unfinished)) as plan:
            self._append(plan, 0, 0, 0)

    def extend(self, path: Path, changed: Iterable[int]) -> None:
        """Makes the plan anew: what it had, less what has changed, and behind it that and what is new."""
        with written_whole(path) as unfinished, closing(_new_plan(unfinished)) as plan:
            plan.execute("ATTACH ? AS old", (str(path),))
            plan.execute("INSERT INTO sources SELECT * FROM old.sources")
            plan.execute("INSERT INTO chunks SELECT * FROM old.chunks")
            questions = ("MAX(number) + 1 FROM sources", "MAX(number) + 1 FROM chunks", "MAX(shard) + 1 FROM chunks")
            number, chunk, shard = (plan.execute(f"SELECT {what}").fetchone()[0] for what in questions)
            plan.executemany("DELETE FROM sources WHERE number = ?", ((number,) for number in changed))
            plan.execute("DELETE FROM chunks WHERE number NOT IN (SELECT chunk FROM sources)")
            plan.commit()
            plan.execute("DETACH old")
            self._run("ATTACH ? AS kept", (str(unfinished),))
            self._run("DELETE FROM new WHERE key IN (SELECT key FROM kept.sources)")
            self._run("DETACH kept")
            self._append(plan, number, chunk, shard)

    def _append(self, plan: sqlite3.Connection, number: int, chunk: int, shard: int) -> None:
        """Adds the sources to a plan, numbered from `number` on, in chunks from `chunk` on."""
        first_chunk = chunk
        sources = chunk_size = 0
        ordered = self._connection.execute(
            f"SELECT MIN(place) OVER (PARTITION BY address, row) AS first, {', '.join(_FIELDS)} FROM new "
            "ORDER BY first, place"
        )
        for _, rows in groupby(ordered, key=lambda row: row[0]):
            group = [Source(*values) for _, *values in rows]
            size = max(group[0].size, len(group))
            if sources and (sources + len(group) > CHUNK_SOURCES or chunk_size + size > CHUNK_BYTES):
                chunk, sources, chunk_size = chunk + 1, 0, 0
            for source in group:
                plan.execute(
                    f"INSERT INTO sources VALUES (?, ?, ?, {', '.join('?' * len(_FIELDS))})",
                    [number, chunk, _key(source), *_values(source)],
                )
                number += 1
            sources, chunk_size = sources + len(group), chunk_size + size
            plan.execute(
                "INSERT OR REPLACE INTO chunks VALUES (?, ?, ?)",
                (chunk, shard + (chunk - first_chunk) // SHARD_CHUNKS, chunk_size),
            )
        plan.execute("CREATE INDEX IF NOT EXISTS by_chunk ON sources (chunk)")
        plan.execute("CREATE INDEX IF NOT EXISTS by_file ON sources (address, row)")
        plan.commit()

    def _run(self, statement: str, values: tuple[object, ...] = ()) -> list[tuple]:
        return self._connection.execute(statement, values).fetchall()


def _new_plan(path: Path) -> sqlite3.Connection:
    path.unlink(missing_ok=True)
    plan = sqlite3.connect(path)
    plan.execute("PRAGMA journal_mode = OFF")
    plan.execute("PRAGMA synchronous = OFF")
    plan.execute(f"CREATE TABLE sources (number INTEGER PRIMARY KEY, chunk INTEGER, {_COLUMNS})")
    plan.execute("CREATE TABLE chunks (number INTEGER PRIMARY KEY, shard INTEGER, size INTEGER)")
    plan.commit()
    return plan


def _key(source: Source) -> bytes:
    """Of what a source is part of, and which."""
    part = (source.address, source.row, source.start, source.end, source.channel)
    return hashlib.blake2b(repr(part).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _values(source: Source) -> list[object]:
    return [getattr(source, name) for name in _FIELDS]
