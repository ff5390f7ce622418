"""The folders of stored features: what each of them holds, which are in use, and which may be removed.

```
<cache_dir>/speech-<digest>/   about.json  in_use  and the safetensors files of `cmkd.features.store`
```

about.json says what the features were computed from. As long as a job may read the folder, it holds a shared lock on
`in_use`, so that nothing is removed while it reads; the modification time of that file is the time of the last use.
This module does not need torch.
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
"""The number format that features are stored in; bfloat16 takes half the space."""

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
    """A digest of the modules in `CODE` and the version of transformers; features with another digest are not used."""
    digest = hashlib.sha256(version("transformers").encode())
    for name in CODE:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError(
                f"there is no module {name!r}, which stored features depend on: the installation is not complete."
            )
        digest.update(Path(spec.origin).read_bytes())
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class StoredFolder:
    """A folder of stored features.

    Attributes:
        path (`Path`): Where it is.
        about (`dict`): What is in it: `part`, `encoder`, `dtype`, `settings`, `code`, `transformers`, `made` and
            `schema_version`; empty if the folder was made by an earlier version of CMKD, which did not record this.
        size (`int`): Size of all files, in bytes.
        files (`int`): How many of the files hold features.
        last_used (`float`): Time of the last use, in seconds since 1970.
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
        """Whether this installation cannot use it because it was made by other code."""
        return self.about.get("code") != code_version()

    def is_in_use(self) -> bool:
        """Whether a job may be reading it; jobs of an earlier version do not take a lock and are missed."""
        try:
            with (self.path / _LOCK).open("r+") as lock:
                return not _is_alone(lock)
        except FileNotFoundError:
            return False
        except PermissionError:  # it belongs to another user, and its lock cannot be tried
            return True

    def to_dict(self) -> dict[str, Any]:
        """Its fields as a dict that `json.dumps` takes."""
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
    """Keeps a folder from being removed for as long as this object lives, or until `close()`.

    Args:
        descriptor: that of an open file with a lock on it.
    """

    def __init__(self, descriptor: int):
        self.descriptor = descriptor
        self.close = weakref.finalize(self, os.close, descriptor)


def hold(folder: Path, about: Mapping[str, Any]) -> Hold | None:
    """Makes a folder if it does not exist, and protects it from removal for as long as the returned object lives.

    Args:
        folder: a folder of stored features.
        about: what is in it, except for what this function adds; it is written when the folder is made.

    Returns:
        The hold on it; None if the folder belongs to another user and can only be read.
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
        # On a full disk the features, which come next, cannot be written either, and that error gives advice.
        with suppress(OSError):
            write_json(folder / _ABOUT, with_version("about.json", {**about, **known}))
    return lock


def stored_folders(cache_dir: Path) -> list[StoredFolder]:
    """The folders of stored features in a folder, the last used first; whatever else is in it is passed over."""
    stored = []
    for path in cache_dir.iterdir() if cache_dir.is_dir() else ():
        if _NAME.fullmatch(path.name) and path.is_dir():
            with suppress(FileNotFoundError):  # removed while it was looked at
                stored.append(_look_at(path))
    return sorted(stored, key=lambda folder: folder.last_used, reverse=True)


def select(
    folders: Sequence[StoredFolder],
    *,
    encoder: str | None = None,
    unused_days: float | None = None,
    of_other_code: bool = False,
    keep_gb: float | None = None,
) -> list[StoredFolder]:
    """The folders that meet all of the given conditions.

    Args:
        folders: as [`stored_folders`] returns them.
        encoder: Take those of this encoder, given by its name or the end of its path.
        unused_days: Take those that have not been used for more than this number of days.
        of_other_code: Take those made by other code than this installation's.
        keep_gb: Of those that meet the other conditions, take the least recently used, as many as have to be removed
            for all of `folders` together to take no more than this, in units of 10^9 bytes.
    """
    selected = list(folders)
    if encoder is not None:
        selected = [folder for folder in selected if f"/{folder.about.get('encoder')}".endswith(f"/{encoder}")]
    if unused_days is not None:
        selected = [folder for folder in selected if time.time() - folder.last_used > unused_days * 86400]
    if of_other_code:
        selected = [folder for folder in selected if folder.is_of_other_code]
    if keep_gb is not None:
        left, too_many = sum(folder.size for folder in folders), []
        for folder in sorted(selected, key=lambda folder: folder.last_used):
            if left > keep_gb * 1e9:
                too_many.append(folder)
                left -= folder.size
        selected = too_many
    return selected


def remove(folder: StoredFolder) -> bool:
    """Removes a folder, or returns False and leaves it if it is in use.

    A job that arrives while it is being removed waits, and then makes a folder of its own. Several processes may remove
    the same folder at once.
    """
    path = folder.path / _LOCK
    try:
        path.touch()
        lock = path.open("r+")
    except FileNotFoundError:  # another process has removed it
        return True
    with lock:
        if not _is_alone(lock):
            return False
        if not _is_still_there(lock.fileno(), path):  # another process has removed it, and a job may have made it again
            return not folder.path.exists()
        for path in [*folder.path.glob("*.safetensors"), *folder.path.glob(".*.tmp")]:
            path.unlink(missing_ok=True)
        for name in (_ABOUT, _LOCK):
            (folder.path / name).unlink(missing_ok=True)
        with suppress(OSError):  # a job has made it again, or it holds files of the user's
            folder.path.rmdir()
    return True


def format_folders(folders: Iterable[StoredFolder]) -> str:
    """A table of folders to print."""
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
    with suppress(FileNotFoundError, ValueError):  # missing or damaged: what is not known counts as other code
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
