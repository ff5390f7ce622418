"""Timelines as label tracks, for Audacity, ELAN and Praat.

Windows may overlap, and the tracks of ELAN and Praat may not. So a track says for each stretch between two edges of
windows the mean of the windows that cover it; those that are silent count only where all are, which is said then.
"""

from __future__ import annotations

import mimetypes
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np

SILENT = "silent"


@dataclass(frozen=True)
class Track:
    """The windows of one channel of a file.

    Attributes:
        channel (`int`, *optional*): None for the mean of all.
        starts, ends (`np.ndarray`): (windows,), seconds from the beginning of the file.
        silent (`np.ndarray`): (windows,), bool.
        scores (`dict[str, np.ndarray]`): (windows,) of each dimension.
    """

    channel: int | None
    starts: np.ndarray
    ends: np.ndarray
    silent: np.ndarray
    scores: dict[str, np.ndarray]

    def stretches(self) -> Iterator[tuple[float, float, dict[str, float] | None]]:
        """Start, end and the scores there, None where all is silent; stretches that no window covers are left out."""
        edges = np.unique(np.concatenate([self.starts, self.ends]))
        first, behind = np.searchsorted(edges, self.starts), np.searchsorted(edges, self.ends)
        covered = _sums(np.ones(len(self.starts)), first, behind, len(edges))
        audible = _sums((~self.silent).astype(float), first, behind, len(edges))
        sums = {
            name: _sums(np.where(self.silent, 0.0, values), first, behind, len(edges))
            for name, values in self.scores.items()
        }
        for number in range(len(edges) - 1):
            if covered[number] > 0:
                means = (
                    {name: float(values[number] / audible[number]) for name, values in sums.items()}
                    if (audible[number] > 0)
                    else None
                )
                yield float(edges[number]), float(edges[number + 1]), means


def _sums(values: np.ndarray, first: np.ndarray, behind: np.ndarray, edges: int) -> np.ndarray:
    """Of the values of the windows that cover the stretch behind each edge."""
    steps = np.zeros(edges)
    np.add.at(steps, first, values)
    np.subtract.at(steps, behind, values)
    return np.cumsum(steps)


def _write_audacity(path: Path, name: str, tracks: Sequence[Track]) -> None:
    """A label track of Audacity: start, end and text, by tabs."""
    lines = []
    for track in tracks:
        channel = "" if track.channel is None else f"channel {track.channel}: "
        for start, end, means in track.stretches():
            text = SILENT if means is None else ", ".join(f"{name} {value:.3f}" for name, value in means.items())
            lines.append((start, f"{start:.6f}\t{end:.6f}\t{channel}{text}\n"))
    path.write_text("".join(line for _, line in sorted(lines)), encoding="utf-8")


def _tiers(tracks: Sequence[Track]) -> Iterator[tuple[str, list[tuple[float, float, str]]]]:
    """A tier for each dimension of each channel."""
    for track in tracks:
        stretches = list(track.stretches())
        for name in track.scores:
            title = name if track.channel is None else f"{name} (channel {track.channel})"
            yield (
                title,
                [(start, end, SILENT if means is None else f"{means[name]:.3f}") for start, end, means in stretches],
            )


def _write_textgrid(path: Path, name: str, tracks: Sequence[Track]) -> None:
    from praatio import textgrid
    from praatio.utilities.constants import Interval

    end = max(float(track.ends.max()) for track in tracks)
    grid = textgrid.Textgrid()
    for title, intervals in _tiers(tracks):
        grid.addTier(textgrid.IntervalTier(title, [Interval(*one) for one in intervals], 0, end))
    grid.save(str(path), format="long_textgrid", includeBlankSpaces=True)


def _write_elan(path: Path, name: str, tracks: Sequence[Track]) -> None:
    """A document of ELAN (EAF 3.0), which names the sound beside it."""
    document = ElementTree.Element(
        "ANNOTATION_DOCUMENT",
        {
            "AUTHOR": "cmkd",
            "DATE": datetime.now().astimezone().isoformat(timespec="seconds"),
            "FORMAT": "3.0",
            "VERSION": "3.0",
            "xmlns:xsi": "http://www.w3.org/2001/XMLSchema-instance",
            "xsi:noNamespaceSchemaLocation": "http://www.mpi.nl/tools/elan/EAFv3.0.xsd",
        },
    )
    header = ElementTree.SubElement(document, "HEADER", {"MEDIA_FILE": "", "TIME_UNITS": "milliseconds"})
    kind = mimetypes.guess_type(name)[0] or "audio/x-wav"
    media = {"MEDIA_URL": f"./{name}", "MIME_TYPE": kind, "RELATIVE_MEDIA_URL": f"./{name}"}
    ElementTree.SubElement(header, "MEDIA_DESCRIPTOR", media)
    order = ElementTree.SubElement(document, "TIME_ORDER")
    slots = annotations = 0
    for title, intervals in _tiers(tracks):
        tier = ElementTree.SubElement(document, "TIER", {"LINGUISTIC_TYPE_REF": "default-lt", "TIER_ID": title})
        for start, end, text in intervals:
            names = []
            for seconds in (start, end):
                slots += 1
                names.append(f"ts{slots}")
                slot = {"TIME_SLOT_ID": names[-1], "TIME_VALUE": str(round(1000 * seconds))}
                ElementTree.SubElement(order, "TIME_SLOT", slot)
            annotations += 1
            place = {"ANNOTATION_ID": f"a{annotations}", "TIME_SLOT_REF1": names[0], "TIME_SLOT_REF2": names[1]}
            annotation = ElementTree.SubElement(tier, "ANNOTATION")
            aligned = ElementTree.SubElement(annotation, "ALIGNABLE_ANNOTATION", place)
            ElementTree.SubElement(aligned, "ANNOTATION_VALUE").text = text
    kind_of_tier = {"LINGUISTIC_TYPE_ID": "default-lt", "TIME_ALIGNABLE": "true", "GRAPHIC_REFERENCES": "false"}
    ElementTree.SubElement(document, "LINGUISTIC_TYPE", kind_of_tier)
    ElementTree.indent(document)
    ElementTree.ElementTree(document).write(path, encoding="UTF-8", xml_declaration=True)


WRITERS: dict[str, tuple[str, Callable[[Path, str, Sequence[Track]], None]]] = {
    "audacity": ("txt", _write_audacity),
    "elan": ("eaf", _write_elan),
    "textgrid": ("TextGrid", _write_textgrid),
}
"""How names of files end, and what writes them: to a path, for a sound of that name."""


def label_file(sound: str, kind: str) -> str:
    """The label file of a sound.

    >>> label_file("calls/a.wav", "audacity")
    'calls/a.wav.cmkd.txt'
    """
    return f"{sound}.cmkd.{WRITERS[kind][0]}"


def is_label_file(name: str) -> bool:
    """Whether a file is called what [`label_file`] calls one."""
    return any(name.endswith(label_file("", kind)) for kind in WRITERS)
