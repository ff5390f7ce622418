"""Reads the cells of a user's table, as text or as numbers."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable
from decimal import Decimal
from numbers import Integral, Real
from pathlib import Path
from typing import Any


def as_text(value: Any) -> str:
    """A cell as text: a whole number without a decimal point, "" for None and NaN.

    Pandas makes floating point numbers of a column of whole ones that has gaps, so 1.0 is read as "1".

    Raises:
        TypeError: It is neither text nor a whole number.
        ValueError: It has lone surrogates, which JSON and file names may bring along.

    >>> [as_text(value) for value in ("a", 7, 1.0, None, float("nan"))]
    ['a', '7', '1', '', '']
    """
    if value is None:
        return ""
    if isinstance(value, str):
        value.encode()  # a UnicodeEncodeError is a ValueError
        return value
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(value)
    if isinstance(value, Integral):
        return str(value)
    if math.isnan(value):
        return ""
    if not float(value).is_integer():
        raise TypeError(value)
    return str(int(float(value)))


def as_name(value: Any) -> str:
    """`as_text` for names of speakers, splits and the like, which mean the same whatever their Unicode normal form.

    A Mac writes "ä" as "a" followed by a mark, and most others as one character; here it becomes one character. Spaces
    around a name are removed.

    >>> as_name(" Ja\\u0308ger") == "J\\u00e4ger"
    True
    """
    return unicodedata.normalize("NFC", as_text(value)).strip()


def as_number(value: Any) -> float:
    """A cell as a number, NaN for None and for blank text.

    Raises:
        TypeError, ValueError, OverflowError: It is not a number.

    >>> [as_number(value) for value in ("1.5", 2, " ", None)]
    [1.5, 2.0, nan, nan]
    """
    if value is None:
        return math.nan
    if isinstance(value, str):
        if "_" in value:  # float("1_0") is 10
            raise ValueError(value)
        return float(value) if value.strip() else math.nan
    if isinstance(value, bool) or not isinstance(value, (Real, Decimal)):
        raise TypeError(value)
    return float(value)


class Folders:
    """Finds files whose names have another Unicode normal form than on the disk."""

    def __init__(self) -> None:
        self._names: dict[Path, dict[str, list[str]]] = {}

    def spelled(self, path: str) -> str:
        """The path as the disk spells it, or unchanged if there is no such file or more than one.

        Args:
            path (`str`): A path, absolute or relative to the current folder.
        """
        if path.isascii() or "\0" in path or Path(path).exists():
            return path
        on_disk = Path(Path(path).anchor)
        for part in Path(path).parts[bool(Path(path).anchor) :]:
            if not (on_disk / part).exists():
                names = self._of(on_disk).get(unicodedata.normalize("NFC", part), [])
                if len(names) != 1:
                    return path
                part = names[0]
            on_disk /= part
        return str(on_disk)

    def _of(self, folder: Path) -> dict[str, list[str]]:
        if folder not in self._names:
            names: dict[str, list[str]] = {}
            entries: Iterable[Path] = folder.iterdir() if folder.is_dir() else ()
            for entry in entries:
                names.setdefault(unicodedata.normalize("NFC", entry.name), []).append(entry.name)
            self._names[folder] = names
        return self._names[folder]
