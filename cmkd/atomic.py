"""Files and folders that appear whole or not at all, whether a process is killed or the power fails."""

import glob
import os
import platform
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Gives a path beside `path` to write to, which takes the place of `path` at the end; an error removes it."""
    unfinished = unfinished_path(path)
    try:
        yield unfinished
        put_in_place(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def folder_written_whole(path: Path) -> Iterator[Path]:
    """Gives an empty folder beside `path`, which becomes it at the end; an error removes it.

    `path` must not be there at the end, or be an empty folder.
    """
    unfinished = unfinished_path(path)
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    try:
        yield unfinished
        put_in_place(unfinished, path)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def unfinished_path(path: Path) -> Path:
    """A path where this process may write what is to become `path`; leftovers of killed processes here are removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    machine = platform.node()
    for left in path.parent.glob(f".{glob.escape(path.name)}.{glob.escape(machine)}-*.tmp"):
        process = re.search(r"-(\d+)\.tmp$", left.name)
        if process and not _is_running(int(process[1])):
            # Another process may be removing it too.
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)
    return path.with_name(f".{path.name}.{machine}-{os.getpid()}.tmp")


def put_in_place(unfinished: Path, path: Path) -> None:
    """Renames a file or folder to what it is to be called, once its content is on the disk; then so is the name.

    Without the first, a name may stand for content that was never written after a power cut; without the second, what
    is written next, such as a mark that all is complete, may be there although this is not.
    """
    sync(unfinished)
    unfinished.replace(path)
    _sync(path.parent)


def sync(path: Path) -> None:
    """Waits until a file, or a folder with all that is in it, is on the disk and not only on its way."""
    for folder, _, names in os.walk(path):
        for name in names:
            _sync(Path(folder, name))
        _sync(Path(folder))
    if not path.is_dir():
        _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
