"""The folders of stored features: what each of them is, which are in use, and which may go.

```
<cache_dir>/speech-<digest>/   about.json  in_use  and the safetensors files of `cmkd.features.store`
```

about.json says what the features are of. A job holds a lock on `in_use`, shared with others, as long as it may read the
folder, so that nothing is removed under it; the time of change of that file is that of the last use. This module needs
no torch.
"""

import fcntl
import functools
import hashlib
import importlib.util
import os
import re
import time
import weakref
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, Literal

from cmkd.formats import with_version
from cmkd.json_files import read_json, write_json

StoredDtype = Literal["float32", "bfloat16"]
"""As what features are stored; bfloat16 takes half the space."""

CODE = (
    "modeling_cmkd",
    "speech_encoder_cmkd",
    "audio_cmkd",
    "cmkd.features.audio",
    "cmkd.features.stretch",
    "cmkd.features.inputs",
)
"""The modules that stored features depend on."""

_LOCK, _ABOUT = "in_use", "about.json"
_NAME = re.compile(r"(speech|text)-[0-9a-f]{16}")


@functools.cache
def code_version() -> str:
    """A digest of the modules of `CODE` and of the version of transformers: features of another cannot be used."""
    digest = hashlib.sha256(version("transformers").encode())
    for name in CODE:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError(f"there is no module {name!r}, which stored features depend on.")
        digest.update(Path(spec.origin).read_bytes())
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class StoredFolder:
    """A folder of stored features.

    Attributes:
        path (`Path`): Where it is.
        about (`dict`): What is in it: `part`, `encoder`, `dtype`, `settings`, `code`, `transformers`, `made` and
            `schema_version`; empty where an earlier version of CMKD has made it, which did not say.
        size (`int`): Bytes of all files.
        files (`int`): How many of them hold features.
        last_used (`float`): Seconds since 1970.
    """

    path: Path
    about: Mapping[str, Any]
    size: int
    files: int
    last_used: float

    @property
    def part(self) -> str:
        """`"speech"` or `"text"`."""
        return self.path.name.split("-")[0]

    @property
    def is_of_other_code(self) -> bool:
        """Whether this installation cannot use it, since other code has made it."""
        return self.about.get("code") != code_version()

    def is_in_use(self) -> bool:
        """Whether a job may be reading it; jobs of an earlier version do not say so."""
        try:
            with (self.path / _LOCK).open("r+") as lock:
                return not _is_alone(lock)
        except FileNotFoundError:
            return False
        except PermissionError:  # it is somebody else's, whose lock cannot be tried
            return True

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON."""
        return {
            "folder": str(self.path),
            "size": self.size,
            "files": self.files,
            "last_used": datetime.fromtimestamp(self.last_used).astimezone().isoformat(timespec="seconds"),
            "in_use": self.is_in_use(),
            "of_other_code": self.is_of_other_code,
            **self.about,
        }


class Hold:
    """Keeps a folder from being removed as long as this lives, or until `close()`.

    Args:
        descriptor: of an open file with a lock on it.
    """

    def __init__(self, descriptor: int):
        self.descriptor = descriptor
        self.close = weakref.finalize(self, os.close, descriptor)


def hold(folder: Path, about: Mapping[str, Any]) -> Hold | None:
    """Makes a folder if it is not there, and protects it from removal as long as what is returned lives.

    Args:
        folder: of stored features.
        about: what is in it, less what this function knows; written down once.

    Returns:
        None where the folder belongs to somebody else and can only be read.
    """
    path = folder / _LOCK
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path.touch()
        except (FileNotFoundError, FileExistsError):  # it was removed just now
            if folder.is_file():
                raise
            continue
        except OSError:
            if not path.exists():
                return None
        try:
            lock = Hold(os.open(path, os.O_RDONLY))
        except FileNotFoundError:
            continue
        fcntl.flock(lock.descriptor, fcntl.LOCK_SH)
        if _is_still_there(lock.descriptor, path):
            break
        lock.close()
    if not (folder / _ABOUT).exists():
        known = {"code": code_version(), "transformers": version("transformers")}
        known["made"] = datetime.now().astimezone().isoformat(timespec="seconds")
        # On a full disk the features, which come next, will not go in either, and that is said with advice.
        with suppress(OSError):
            write_json(folder / _ABOUT, with_version("about.json", {**about, **known}))
    return lock


def stored_folders(cache_dir: Path) -> list[StoredFolder]:
    """Those in a folder, the last used first. What is not a folder of stored features is passed over."""
    found = []
    for path in cache_dir.iterdir() if cache_dir.is_dir() else ():
        if _NAME.fullmatch(path.name) and path.is_dir():
            with suppress(FileNotFoundError):  # removed while it was looked at
                found.append(_look_at(path))
    return sorted(found, key=lambda folder: folder.last_used, reverse=True)


def select(
    folders: Sequence[StoredFolder],
    *,
    encoder: str | None = None,
    unused_days: float | None = None,
    of_other_code: bool = False,
    keep_gb: float | None = None,
) -> list[StoredFolder]:
    """The folders that all of the given conditions name.

    Args:
        folders: as [`stored_folders`] gives them.
        encoder: The name of the encoder, or the end of its path.
        unused_days: Not used for more than so many days.
        of_other_code: Made by other code than this installation's.
        keep_gb: Of those that the other conditions name, the least recently used, as many as have to go for all of
            `folders` to take no more than this many 10^9 bytes.
    """
    found = list(folders)
    if encoder is not None:
        found = [folder for folder in found if f"/{folder.about.get('encoder')}".endswith(f"/{encoder}")]
    if unused_days is not None:
        found = [folder for folder in found if time.time() - folder.last_used > unused_days * 86400]
    if of_other_code:
        found = [folder for folder in found if folder.is_of_other_code]
    if keep_gb is not None:
        left, too_many = sum(folder.size for folder in folders), []
        for folder in sorted(found, key=lambda folder: folder.last_used):
            if left > keep_gb * 1e9:
                too_many.append(folder)
                left -= folder.size
        found = too_many
    return found


def remove(folder: StoredFolder) -> bool:
    """Removes a folder; False where it is in use, and stays.

    A job that comes while it is removed waits, and then makes a folder of its own.
    """
    path = folder.path / _LOCK
    path.touch()
    with path.open("r+") as lock:
        if not _is_alone(lock):
            return False
        for path in [*folder.path.glob("*.safetensors"), *folder.path.glob(".*.tmp")]:
            path.unlink(missing_ok=True)
        for name in (_ABOUT, _LOCK):
            (folder.path / name).unlink(missing_ok=True)
        with suppress(OSError):  # a job has begun it anew, or it holds something of yours
            folder.path.rmdir()
    return True


def format_folders(folders: Iterable[StoredFolder]) -> str:
    """A table for people."""
    rows = [("size", "files", "last used", "part", "encoder", "stored as", "", "folder")]
    rows += [
        (
            f"{folder.size / 1e9:.2f} GB",
            f"{folder.files:,}",
            f"{datetime.fromtimestamp(folder.last_used):%Y-%m-%d %H:%M}",
            folder.part,
            str(folder.about.get("encoder", "not recorded")),
            str(folder.about.get("dtype", "")),
            ", ".join(
                name
                for name, holds in (("in use", folder.is_in_use()), ("of other code", folder.is_of_other_code))
                if holds
            ),
            str(folder.path),
        )
        for folder in folders
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column < 2 else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _look_at(path: Path) -> StoredFolder:
    files = [file for file in path.iterdir() if file.is_file()]
    stored = [file for file in files if file.suffix == ".safetensors"]
    uses = [file for file in files if file.name == _LOCK] or stored or [path]
    about: dict[str, Any] = {}
    with suppress(FileNotFoundError, ValueError):  # none, or damaged: what is not known is not of this code
        about = read_json(path / _ABOUT, "it says what the features beside it are.")
    return StoredFolder(
        path,
        about,
        sum(file.stat().st_size for file in files),
        len(stored),
        max(file.stat().st_mtime for file in uses),
    )


def _is_alone(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_still_there(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
