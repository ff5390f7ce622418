"""The folder that a run writes to, which also says what is done and who is at what.

```
OUTPUT/prediction.json     what the numbers depend on beside the sources: model, window, channel
       scores/00000.parquet   a row for each source and channel, a file for each shard
       errors.parquet, timeline/, scores.csv, summary.html    made of these at the end: `cmkd.predict.exports`
       journal/plan.sqlite    all sources: `cmkd.predict.plan`
               pieces/        what is scored of shards that are not complete
               windows/, errors/   of complete shards
               claims         locks, one byte for each thing that a process is at
```

Every file appears whole or not at all. A shard is complete when its file in `scores` is there, which is written last.
Claims are locks on bytes of one file: the system lets go of them when a process ends, however it ends. They save work
and nothing depends on them: should two processes score the same piece, both write the same.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.compute
import pyarrow.parquet

from cmkd.atomic import unfinished_path, written_whole
from cmkd.formats import check_version, with_version
from cmkd.json_files import read_json, write_json
from cmkd.predict.pieces import Piece
from cmkd.predict.plan import Plan
from cmkd.predict.reading import UNREACHABLE
from cmkd.predict.rows import ERRORS, Shape, rows_of_chunk

SETTINGS = "prediction.json"
OURS = (SETTINGS, "scores", "timeline", "journal", "errors.parquet", "summary.html")
EXPORTS = tuple(f"{table}.{ending}" for table in ("scores", "timeline") for ending in ("csv", "jsonl"))

_PIECE = re.compile(r"(\d+)-(\d+)(-last)?\.parquet")
_PIECES_OF_CHUNK = 2**20
_SHARD, _FINISH, _AT_WORK = 2**60, 2**61, 2**62


class Store:
    """An output folder.

    Args:
        folder: Is made if it is not there, and goes again if nothing is begun in it.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.journal = folder / "journal"
        self.plan_path = self.journal / "plan.sqlite"
        self.scores = folder / "scores"
        self.windows = self.journal / "windows"
        self.errors = self.journal / "errors"
        self._complete: set[int] = set()
        self._assembling = threading.Lock()
        self._made = [path for path in (folder, *folder.parents) if not path.exists()]
        self.journal.mkdir(parents=True, exist_ok=True)
        self._claims = os.open(self.journal / "claims", os.O_RDWR | os.O_CREAT, 0o666)

    def close(self) -> None:
        """Lets go of all claims, and takes the folder away again if it holds no plan and nobody is at one."""
        os.close(self._claims)
        if [path.name for path in self.journal.iterdir()] == ["claims"]:
            (self.journal / "claims").unlink()
            with suppress(OSError):  # there is something else in it
                for path in (self.journal, *self._made):
                    path.rmdir()

    # -- settings

    def read_settings(self) -> dict[str, Any] | None:
        path = self.folder / SETTINGS
        if not path.exists():
            return None
        content = read_json(path, "choose another folder, or begin anew with --overwrite.")
        check_version(path, content)
        return dict(content)

    def write_settings(self, settings: Mapping[str, Any]) -> None:
        write_json(self.folder / SETTINGS, with_version(SETTINGS, settings))

    # -- claims

    def claim_chunk(self, chunk: int) -> bool:
        """Whether nobody else is at a chunk; then this process is."""
        return self._lock(chunk * _PIECES_OF_CHUNK + _PIECES_OF_CHUNK - 1)

    def release_chunk(self, chunk: int) -> None:
        self._unlock(chunk * _PIECES_OF_CHUNK + _PIECES_OF_CHUNK - 1)

    def claim_piece(self, chunk: int, piece: int) -> bool:
        return self._lock(chunk * _PIECES_OF_CHUNK + piece)

    def release_piece(self, chunk: int, piece: int) -> None:
        self._unlock(chunk * _PIECES_OF_CHUNK + piece)

    def enter(self) -> bool:
        """Whether nobody else is at work in this folder: then nobody begins until `join` or `close`.

        Waits while another process makes the plan; afterwards there is one, or this process is alone.
        """
        while not self._lock(_AT_WORK):
            self.join()
            if self.plan_path.exists():
                return False
            self._unlock(_AT_WORK)  # whoever made the plan has died
        return True

    def join(self) -> None:
        """Says that this process is at work in the folder; waits while another one is alone there."""
        fcntl.lockf(self._claims, fcntl.LOCK_SH, 1, _AT_WORK)

    @contextmanager
    def finishing(self) -> Iterator[None]:
        """One process after the other makes what is made at the end."""
        fcntl.lockf(self._claims, fcntl.LOCK_EX, 1, _FINISH)
        try:
            yield
        finally:
            self._unlock(_FINISH)

    def _lock(self, byte: int) -> bool:
        try:
            fcntl.lockf(self._claims, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
        except (BlockingIOError, PermissionError):
            return False
        except OSError as error:
            raise OSError(
                f"{self.journal / 'claims'} cannot be locked ({error}): choose an output folder on a disk that has "
                "locks, such as a local one or NFS version 4."
            ) from error
        return True

    def _unlock(self, byte: int) -> None:
        fcntl.lockf(self._claims, fcntl.LOCK_UN, 1, byte)

    # -- pieces

    def piece_paths(self, shard: int, chunk: int) -> tuple[dict[int, Path], int | None]:
        """The scored pieces of a chunk, and how many it has in all, None where the last is not there."""
        paths: dict[int, Path] = {}
        total = None
        try:
            names = os.listdir(self._pieces(shard))  # noqa: PTH208 (names are all that is needed of many)
        except FileNotFoundError:
            names = []
        for name in names:
            match = _PIECE.fullmatch(name)
            if match and int(match[1]) == chunk:
                paths[int(match[2])] = self._pieces(shard) / name
                total = int(match[2]) + 1 if match[3] else total
        return paths, total

    def write_piece(self, shard: int, piece: Piece, table: pyarrow.Table) -> None:
        last = "-last" if piece.is_last else ""
        with written_whole(self._pieces(shard) / f"{piece.chunk:07d}-{piece.number:06d}{last}.parquet") as unfinished:
            pyarrow.parquet.write_table(table, unfinished)

    def has_piece(self, shard: int, piece: Piece) -> bool:
        last = "-last" if piece.is_last else ""
        return (self._pieces(shard) / f"{piece.chunk:07d}-{piece.number:06d}{last}.parquet").exists()

    def forget_chunks(self, plan: Plan, chunks: Iterable[int]) -> None:
        """Removes what is scored of chunks whose shard is not complete."""
        for chunk in chunks:
            for path in self.piece_paths(plan.chunks[chunk].shard, chunk)[0].values():
                path.unlink(missing_ok=True)

    def _pieces(self, shard: int) -> Path:
        return self.journal / "pieces" / f"{shard:05d}"

    # -- shards

    def is_complete(self, shard: int) -> bool:
        if shard not in self._complete and self._shard(self.scores, shard).exists():
            self._complete.add(shard)
        return shard in self._complete

    def is_scored(self, shard: int, chunk: int) -> bool:
        """Whether all pieces of a chunk are there, or its shard is complete."""
        if self.is_complete(shard):
            return True
        paths, total = self.piece_paths(shard, chunk)
        if total is not None and len(paths) == total:
            return True
        return not paths and self.is_complete(shard)  # it became complete just now, and its pieces went

    def assemble(self, plan: Plan, shard: int, chunks: Iterable[int], shape: Shape) -> bool:
        """Makes the tables of a shard of its pieces, if all are there and nobody else is at it.

        Returns:
            Whether the shard is complete now.
        """
        chunks = list(chunks)
        with self._assembling:
            if self.is_complete(shard):
                shutil.rmtree(self._pieces(shard), ignore_errors=True)  # of a process that was killed just before that
                return True
            if not all(self.is_scored(shard, chunk) for chunk in chunks) or not self._lock(_SHARD + shard):
                return False
            try:
                if not self.is_complete(shard):
                    self._write_shard(plan, shard, chunks, shape)
                shutil.rmtree(self._pieces(shard), ignore_errors=True)
            finally:
                self._unlock(_SHARD + shard)
            return self.is_complete(shard)

    def _write_shard(self, plan: Plan, shard: int, chunks: Iterable[int], shape: Shape) -> None:
        folders = {self.scores: shape.scores, self.windows: shape.windows, self.errors: ERRORS}
        with ExitStack() as names:  # what is entered first is put in place last: the scores
            paths = [names.enter_context(written_whole(self._shard(folder, shard))) for folder in folders]
            with ExitStack() as files:
                writers = [
                    files.enter_context(pyarrow.parquet.ParquetWriter(path, schema))
                    for path, schema in zip(paths, folders.values(), strict=True)
                ]
                for chunk in chunks:
                    piece_paths, _ = self.piece_paths(shard, chunk)
                    pieces = [pyarrow.parquet.read_table(piece_paths[number]) for number in sorted(piece_paths)]
                    for writer, table in zip(
                        writers, rows_of_chunk(dict(plan.sources(chunk)), pieces, shape), strict=True
                    ):
                        writer.write_table(table)

    def drop_rows(self, shard: int, numbers: Iterable[int]) -> None:
        """Takes sources out of the tables of a complete shard."""
        dropped = pyarrow.array(list(numbers), pyarrow.int64())
        for folder in (self.errors, self.windows, self.folder / "timeline", self.scores):
            path = self._shard(folder, shard)
            if path.exists():
                table = pyarrow.parquet.read_table(path)
                kept = table.filter(pyarrow.compute.invert(pyarrow.compute.is_in(table["number"], dropped)))
                with written_whole(path) as unfinished:
                    pyarrow.parquet.write_table(kept, unfinished)

    def unreachable(self) -> list[int]:
        """The numbers of sources of complete shards that could not be fetched."""
        numbers: list[int] = []
        for path in sorted(self.errors.glob("*.parquet")):
            table = pyarrow.parquet.read_table(path, columns=["number", "kind"])
            numbers += table.filter(pyarrow.compute.equal(table["kind"], UNREACHABLE))["number"].to_pylist()
        return numbers

    def shard_paths(self, folder: Path) -> list[Path]:
        """The files of all complete shards."""
        return sorted(folder.glob("[0-9]*.parquet"))

    def _shard(self, folder: Path, shard: int) -> Path:
        return folder / f"{shard:05d}.parquet"

    # -- else

    def downloads(self) -> Path:
        """A folder for this process, for copies of files of other machines; what killed processes left is removed."""
        path = unfinished_path(self.journal / "downloads")
        path.mkdir(exist_ok=True)
        return path

    def remove_downloads(self, downloads: Path) -> None:
        """Removes the folder of this process, and those of processes that were killed since it began."""
        shutil.rmtree(downloads, ignore_errors=True)
        unfinished_path(self.journal / "downloads")

    def begin_anew(self, keep: Path) -> None:
        """Removes everything that a run has written, but a file of the journal that is this run's own."""
        for name in (*OURS, *EXPORTS):
            path = self.folder / name
            if name == "journal":
                for inner in path.iterdir():
                    if inner.name not in ("claims", keep.name):
                        shutil.rmtree(inner) if inner.is_dir() else inner.unlink()
            elif path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        self._complete.clear()
