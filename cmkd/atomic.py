"""Files and folders that appear whole or not at all."""

import glob
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Gives a path beside `path` to write to; at the end it takes the place of `path`; an error removes it."""
    unfinished = unfinished_path(path)
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def unfinished_path(path: Path) -> Path:
    """Where this process may make what is to become `path`; what killed processes of this machine left is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    machine = platform.node()
    for left in path.parent.glob(f".{glob.escape(path.name)}.{glob.escape(machine)}-*.tmp"):
        if not _is_running(int(left.name.split("-")[-1].removesuffix(".tmp"))):
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
    return path.with_name(f".{path.name}.{machine}-{os.getpid()}.tmp")


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
