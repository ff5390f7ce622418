"""Utterances that are stretches of one file, and which of them share sound, wholly or partly."""

from __future__ import annotations

import bisect
import math
from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple


def stretch_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """Which part of its file an utterance is, as arguments of `read_audio`, `measure_audio` and `digest_audio`.

    Args:
        row: a row of a corpus; its columns `start`, `end` and `channel` are used. Where one is None or missing, the
            utterance begins and ends with the file and is the mean of its channels.

    >>> stretch_of({"id": "a", "start": 1.5, "end": None, "channel": 1})
    {'start': 1.5, 'end': None, 'channel': 1}
    >>> stretch_of({"id": "a"})
    {'start': None, 'end': None, 'channel': 'mean'}
    """
    channel = row.get("channel")
    return {"start": row.get("start"), "end": row.get("end"), "channel": "mean" if channel is None else channel}


class Stretch(NamedTuple):
    """A part of a file.

    Attributes:
        file (hashable): Identifies the file.
        start, end (`float`): Where the stretch begins and ends, in seconds; 0 and infinity for the whole file.
        channel (`int`, *optional*): The channel, counted from 0; None for the mean of all, which shares sound with
            every channel.
    """

    file: Hashable
    start: float = 0.0
    end: float = math.inf
    channel: int | None = None

    def overlaps(self, other: Stretch) -> bool:
        """Whether some sound is in both stretches. Stretches that only touch do not overlap.

        >>> Stretch("a", 0, 2).overlaps(Stretch("a", 1, 3)), Stretch("a", 0, 2).overlaps(Stretch("a", 2, 3))
        (True, False)
        >>> Stretch("a", channel=0).overlaps(Stretch("a", channel=1)), Stretch("a").overlaps(Stretch("a", channel=1))
        (False, True)
        """
        in_time = self.file == other.file and self.start < other.end and other.start < self.end
        return in_time and (self.channel is None or other.channel is None or self.channel == other.channel)


class Taken:
    """A set of stretches that can be searched for those that overlap with a given one.

    They are kept by file and start. A search looks at the stretches of the file that begin before the end of the given
    one, and no earlier before its start than the longest stretch lasts.
    """

    def __init__(self) -> None:
        self._by_file: dict[Hashable, list[Stretch]] = {}
        self._longest: dict[Hashable, float] = {}

    def add(self, stretch: Stretch) -> None:
        bisect.insort(self._by_file.setdefault(stretch.file, []), stretch, key=_order)
        length = stretch.end - stretch.start
        self._longest[stretch.file] = max(self._longest.get(stretch.file, 0.0), length)

    def overlapping(self, stretch: Stretch) -> Iterator[Stretch]:
        """The stretches that overlap with this one, in the order in which they begin."""
        others = self._by_file.get(stretch.file, [])
        if not others:
            return
        first = bisect.bisect_left(others, stretch.start - self._longest[stretch.file], key=_start)
        for other in others[first:]:
            if other.start >= stretch.end:
                return
            if stretch.overlaps(other):
                yield other


def _order(stretch: Stretch) -> tuple[float, float]:
    return stretch.start, stretch.end


def _start(stretch: Stretch) -> float:
    return stretch.start


def files_cut_up(stretches: Iterable[tuple[Stretch, str]]) -> list[Hashable]:
    """The files that have parts in more than one split.

    >>> files_cut_up([(Stretch("a", 0, 1), "train"), (Stretch("a", 1, 2), "test"), (Stretch("b"), "test")])
    ['a']
    """
    splits: dict[Hashable, set[str]] = {}
    for stretch, split in stretches:
        splits.setdefault(stretch.file, set()).add(split)
    return [file for file, names in splits.items() if len(names) > 1]
