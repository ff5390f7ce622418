"""The versions of the files that CMKD writes for others to read; docs/compatibility.md is the promise about them.

A version goes up when a field is renamed, removed or means something else. A field that is only added leaves it as it
is. Files made before versions were written down have none, and are read as those of version 1.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

SCHEMA_VERSIONS = {
    "results.json": 1,
    "stage.json": 1,
    "about.json": 1,
    "tables.json": 1,
    "evaluation.json": 1,
    "audit.json": 1,
    "comparison.json": 1,
    "prediction.json": 1,
}
"""The version of each file that this release writes, and the newest that it reads."""


def with_version(name: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a file, its `schema_version` first.

    >>> with_version("stage.json", {"complete": False})
    {'schema_version': 1, 'complete': False}
    """
    return {"schema_version": SCHEMA_VERSIONS[name], **content}


def check_version(path: Path, content: Mapping[str, Any]) -> None:
    """Refuses a file that a newer release of CMKD has written.

    Raises:
        ValueError: its `schema_version` is not a whole number from 1 to that of this release.

    >>> check_version(Path("run/stage.json"), {"complete": True})  # made before versions were written down
    """
    newest, version = SCHEMA_VERSIONS[path.name], content.get("schema_version", 1)
    if isinstance(version, bool) or not isinstance(version, int) or not 1 <= version <= newest:
        raise ValueError(
            f"{path} says that its schema_version is {version!r}, but this release of cmkd reads versions 1 to "
            f"{newest}: a newer release wrote the file. Use that release or a later one (pip install --upgrade cmkd)."
        )
