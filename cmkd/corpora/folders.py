"""Folders that were unzipped twice, or not at all."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz", ".7z", ".rar")


def unzipped(folder: Path) -> Path:
    """The folder itself, or, if it holds nothing but another folder of the same name, that one.

    Some programs leave such folders when they unzip `Labels.zip`, which holds the folder `Labels`, into a folder
    `Labels`. Names that begin with a dot or an underscore (`.DS_Store`, `__MACOSX`) do not count.
    """
    while folder.is_dir():
        inner = [path for path in folder.iterdir() if not path.name.startswith((".", "__"))]
        if len(inner) != 1 or inner[0].name.casefold() != folder.name.casefold() or not inner[0].is_dir():
            break
        folder = inner[0]
    return folder


def archive(folder: Path, names: Collection[str]) -> Path | None:
    """A file in `folder` that looks like the archive of one of these folders, whose names are in lower case."""
    if not folder.is_dir():
        return None
    wanted = {name + ending for name in names for ending in ARCHIVES}
    return min((path for path in folder.iterdir() if path.name.casefold() in wanted and path.is_file()), default=None)
