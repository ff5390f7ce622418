"""The checks that every corpus passes through; `cmkd.corpora.report` lists the problems.

A builder reads its files into `SourceRow`s, with values as they stand there, and hands them to `check_rows`, or to
`cmkd.corpora.building.build_corpus`, which does so and keeps the result on the disk:

```py
report = CorpusReport(name="my-corpus", release="1.0", label_scale=(1, 7), config={})
rows = check_rows(read_my_corpus(data_dir), report, on_error, audio_folder=data_dir)
return Corpus.from_rows(rows, report)
```

With `on_error="skip"` every row that has a problem is left out. If rows clash with each other (an id or an audio file
used twice, a speaker or an audio file in two splits), evaluation stays whole: rows of test, and of splits with names of
their own, are kept in preference to those of validation, and these in preference to those of train; within one split,
the first row is kept. A speaker in two splits neither of which is train or validation (for example "test1" and "test2")
is not a clash, since nothing is learned or chosen on either. Sound that occurs twice is recognised by its samples
(`cmkd.features.audio.digest_audio`): in two splits it is a clash, in different files of one split it gets a note.

Rows may be stretches of one file, or channels of it. Such rows clash if they share sound and are in two splits, or if
they are the same stretch. Within a split stretches may overlap, as the speech of people who interrupt each other does.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import os
import re
import reprlib
import sys
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import stdev
from typing import Any, NamedTuple, Protocol, runtime_checkable

from datasets.utils import tqdm

from cmkd.corpora.report import CorpusError, CorpusProblem, CorpusReport, counted, quantity, shortened
from cmkd.corpora.schema import SPLITS, normalise_split, rows_by_split
from cmkd.corpora.values import Folders, as_name, as_number, as_text
from cmkd.features.audio import AudioError, digest_audio
from cmkd.features.stretch import Stretch, Taken, files_cut_up, stretch_of
from configuration_cmkd import EMOTION_DIMENSIONS

PROGRESS_BAR_FROM = 1000  # files

_MOST_CHANNELS = 2**10

_STRETCH = ("start", "end", "channel")
_GENDERS = {"female": "female", "f": "female", "male": "male", "m": "male", "": ""}
_SPLIT_NAME = re.compile(r"\w+(\.\w+)*")  # the names that datasets allows


class Rating(NamedTuple):
    """The ratings of one annotator for an utterance, as they stand in the corpus's files.

    Attributes:
        row (`str`): Where they stand, for example "labels_detailed.csv:12".
        annotator (`str`): The annotator's name.
        activation, valence, dominance (`float` or `str`, *optional*): On the scale of the corpus; NaN, None or "" if
            not rated.
    """

    row: str
    annotator: str
    activation: Any = None
    valence: Any = None
    dominance: Any = None


@runtime_checkable
class StoredSound(Protocol):
    """The content of a sound file in a user's table, read when it is needed, since all of it may be too much."""

    name: str
    """The name of the file, "" if it has none."""

    def read(self) -> bytes: ...


@dataclass(slots=True)
class SourceRow:
    """A row of a corpus as it stands in the corpus's files, not yet checked.

    Attributes:
        row (`str`): Where it stands, for example "manifest.csv:12".
        id (`str`): The id of the utterance, unique in the corpus.
        audio (`str`, `bytes` or `StoredSound`): The path of a sound file or its content.
        split (`str`): The name of its split, in any spelling that `normalise_split` knows.
        transcript (`str`, *optional*): The transcript, "" if there is none.
        activation, valence, dominance (`float` or `str`, *optional*): On the scale of the corpus; NaN, None or "" if
            not rated.
        speaker (`str`, *optional*): The name of the speaker, "" if unknown.
        gender (`str`, *optional*): "female", "male", "f" or "m" in any case; everything else is taken as unknown.
        ratings (`list[Rating]`, *optional*): Ratings of the individual annotators, if the corpus is loaded with them.
        start, end (`float` or `str`, *optional*): The stretch of the file, in seconds; None or "" for its beginning and
            its end.
        channel (`int` or `str`, *optional*): The channel of the file, counted from 0; None, "" or "mean" for the mean
            of all.
        further (`dict`, *optional*): Values of the columns that only this corpus has, as they are to be in it: the
            builder has checked them.

    A text field that is None or NaN counts as empty, and a whole number in it is taken as text.
    """

    row: str
    id: Any
    audio: Any
    split: Any
    transcript: Any = ""
    activation: Any = None
    valence: Any = None
    dominance: Any = None
    speaker: Any = ""
    gender: Any = ""
    ratings: Sequence[Rating] | None = None
    start: Any = None
    end: Any = None
    channel: Any = None
    further: Mapping[str, Any] = field(default_factory=dict)


def check_rows(
    source_rows: Iterable[SourceRow],
    report: CorpusReport,
    on_error: str,
    audio_folder: str | os.PathLike[str] | None = None,
    read_sound: bool = True,
    annotators: bool = False,
) -> list[dict[str, Any]]:
    """Checks a corpus and completes its report.

    Audio files are read once, in threads, and not kept.

    Args:
        source_rows (iterable of `SourceRow`): The rows, in the order of the corpus.
        report (`CorpusReport`): The report, which gets all problems, notes and counts. Problems that it already has, of
            rows that could not even be read, count as rows left out, in addition to those in `skipped`.
        on_error (`str`): "raise" raises an error if there are any problems, "skip" leaves out the rows that have one. A
            problem with an individual annotator's rating removes that rating, not the row.
        audio_folder (path, *optional*): Where relative audio paths start, and which no path may leave. Symbolic links
            in it are followed wherever they lead. Not needed if the audio is given as bytes.
        read_sound (`bool`, *optional*, defaults to `True`): Whether audio files are read. If not, missing ones are
            still reported, but durations stay NaN.
        annotators (`bool`, *optional*, defaults to `False`): Whether the rows get the columns of `ANNOTATOR_FEATURES`.

    Returns:
        `list[dict]`: Rows with the columns of `FEATURES` and absolute audio paths, for `Corpus.from_rows`.

    Raises:
        CorpusError: There are problems and `on_error` is "raise", or the corpus or one of its splits has no rows left.
    """
    unread = {problem.row: problem.reason for problem in reversed(report.problems)}
    candidates = [_Candidate(row, report, audio_folder) for row in source_rows]
    _locate(candidates)
    if read_sound:
        _measure(candidates)
    _check_clashes(candidates)
    for candidate in candidates:
        report.problems += [*candidate.problems, *candidate.rating_problems]
    if report.problems and on_error == "raise":
        raise CorpusError(report, 'Correct these rows, or pass on_error="skip" to leave them out and count them.')

    kept = [candidate for candidate in candidates if not candidate.problems]
    label_scale = list(report.label_scale)  # one list for all rows
    rows = [candidate.to_row(label_scale, annotators) for candidate in kept]
    skipped = Counter(report.skipped)
    skipped.update(unread.values())
    skipped.update(candidate.problems[0].reason for candidate in candidates if candidate.problems)
    report.skipped = dict(skipped.most_common())
    report.notes += [*_notes_on_names(kept), *_notes(kept)]
    report.count(rows_by_split(rows))
    report.digest = _digest(rows, [candidate.sound for candidate in kept]) if read_sound else ""
    lost = dict.fromkeys(c.split for c in candidates if c.split and c.split not in report.utterances)
    if lost or not rows:
        what = f"of {' and '.join(lost)}" if lost else "of the corpus"
        report.refuse(CorpusProblem("", "nothing left", f"no row {what} is usable"), "Correct the rows.")
    return rows


def _digest(rows: list[dict[str, Any]], sounds: list[str]) -> str:
    digest = hashlib.sha256()
    for row, sound in zip(rows, sounds, strict=True):
        stretch = {column: row[column] for column in _STRETCH if row[column] is not None}
        values = [value for column, value in row.items() if column not in ("audio", *_STRETCH)]
        digest.update(json.dumps([*values, sound, *([stretch] if stretch else [])]).encode())
    return digest.hexdigest()[:12]


class _Candidate:
    """A row on its way through the checks: its values, valid or else empty, and its problems."""

    __slots__ = (
        "audio",
        "channel",
        "duration",
        "end",
        "file",
        "gender",
        "id",
        "labels",
        "problems",
        "rating_problems",
        "ratings",
        "raw",
        "sound",
        "speaker",
        "split",
        "start",
        "transcript",
    )

    def __init__(self, raw: SourceRow, report: CorpusReport, audio_folder: str | os.PathLike[str] | None):
        self.raw = raw
        self.problems: list[CorpusProblem] = []
        self.id = ""  # until it is read, since problems show it
        self.id = self._name("id", required=True)
        self.audio: str | bytes | StoredSound = self._audio(audio_folder)
        self.start, self.end = self._start_and_end()
        self.channel = self._channel()
        self.split = sys.intern(self._split())  # many rows, few values: each is in memory once
        self.labels = [math.nan] * len(EMOTION_DIMENSIONS)
        if report.is_rated:
            self.labels = self._labels(report.label_scale, report.label_limits or report.label_scale)
        self.transcript = self._text("transcript")
        self.speaker = sys.intern(self._name("speaker"))
        self.gender = self._name("gender")
        self.rating_problems: list[CorpusProblem] = []
        self.ratings = [self._rating(rating, report.label_scale) for rating in raw.ratings or ()]
        self.file = ""  # the path without symbolic links, set by locate, or the digest of the content, set by measure
        self.duration = math.nan  # set by measure
        self.sound = ""  # the digest of the samples, set by measure

    @property
    def stretch(self) -> Stretch:
        """The file and the part of it that the row is."""
        end = math.inf if self.end is None else self.end
        return Stretch(self.file, self.start or 0.0, end, self.channel)

    @property
    def rank(self) -> int:
        """The rank of its split: if rows clash, those of the split with the higher rank are kept."""
        return {"": -1, "train": 0, "validation": 1}.get(self.split, 2)

    def refuse(self, field: str, reason: str, detail: str = "") -> None:
        value = getattr(self.raw, field)
        shown = "" if value is None else value if isinstance(value, str) else reprlib.repr(value)
        self.problems.append(CorpusProblem(self.raw.row, reason, detail, self.id, field, shown))

    def locate(self, folders: Folders) -> None:
        """Finds the audio file."""
        if isinstance(self.audio, str):
            self.audio = folders.spelled(self.audio)
            try:
                self.file = str(Path(self.audio).resolve(strict=True))
            except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: links in a circle, in Python 3.12
                self.refuse("audio", "missing file", str(error))

    def measure(self) -> None:
        """Measures the duration and takes the digest, if the audio is good."""
        content = self.audio if isinstance(self.audio, (str, bytes)) else self.audio.read()
        if isinstance(content, bytes):
            self.file = f"sha256:{hashlib.sha256(content).hexdigest()}"
        try:
            self.duration, self.sound = digest_audio(content, **stretch_of(self.columns_of_stretch()))
        except AudioError as error:
            self.refuse("audio", error.reason, error.detail)

    def columns_of_stretch(self) -> dict[str, Any]:
        return {"start": self.start, "end": self.end, "channel": self.channel}

    def to_row(self, label_scale: list[float], annotators: bool) -> dict[str, Any]:
        if isinstance(self.audio, str):
            audio: dict[str, Any] = {"bytes": None, "path": self.audio}
        else:
            audio = {"bytes": self.audio, "path": None if isinstance(self.audio, bytes) else self.audio.name or None}
        row = {
            "id": self.id,
            "audio": audio,
            "transcript": self.transcript,
            **dict(zip(EMOTION_DIMENSIONS, self.labels, strict=True)),
            "speaker": self.speaker,
            "gender": _GENDERS.get(self.gender.casefold(), ""),
            "split": self.split,
            "duration": self.duration,
            "label_scale": label_scale,
            **self.columns_of_stretch(),
        }
        if annotators:
            row["annotators"] = [name for name, _ in self.ratings]
            for number, dimension in enumerate(EMOTION_DIMENSIONS):
                ratings = [values[number] for _, values in self.ratings]
                given = [rating for rating in ratings if not math.isnan(rating)]
                row[f"{dimension}_ratings"] = ratings
                row[f"{dimension}_std"] = stdev(given) if len(given) > 1 else math.nan
        row.update(self.raw.further)
        return row

    def _rating(self, rating: Rating, label_scale: tuple[float, float]) -> tuple[str, list[float]]:
        """The annotator and the ratings, with NaN where there is none or it has a problem."""
        minimum, maximum = label_scale
        values = []
        for dimension in EMOTION_DIMENSIONS:
            value = getattr(rating, dimension)
            field, shown = f"{dimension} by {rating.annotator}", "" if value is None else str(value)
            try:
                number = as_number(value)
            except (TypeError, ValueError, OverflowError):
                self.rating_problems.append(CorpusProblem(rating.row, "not a number", "", self.id, field, shown))
                number = math.nan
            if number < minimum or number > maximum:
                detail = f"the scale is {minimum:g} to {maximum:g}"
                problem = CorpusProblem(rating.row, "outside the scale", detail, self.id, field, shown)
                self.rating_problems.append(problem)
                number = math.nan
            values.append(number)
        return rating.annotator, values

    def _text(self, field: str, required: bool = False) -> str:
        return self._read(as_text, field, required)

    def _name(self, field: str, required: bool = False) -> str:
        return self._read(as_name, field, required)

    def _read(self, read: Callable[[Any], str], field: str, required: bool) -> str:
        try:
            value = read(getattr(self.raw, field))
        except (TypeError, ValueError):
            self.refuse(field, "not text")
            return ""
        if required and not value.strip():
            self.refuse(field, "missing value")
            return ""
        return value

    def _start_and_end(self) -> tuple[float | None, float | None]:
        known = len(self.problems)
        start, end = self._seconds("start"), self._seconds("end")
        if len(self.problems) == known and end is not None and end <= (start or 0.0):
            self.refuse("end", "not a stretch", f"it must be after start, {start or 0:g} s")
        return (start, end) if len(self.problems) == known else (None, None)

    def _seconds(self, field: str) -> float | None:
        try:
            seconds = as_number(getattr(self.raw, field))
        except (TypeError, ValueError, OverflowError):
            self.refuse(field, "not a number")
            return None
        if seconds < 0 or math.isinf(seconds):
            self.refuse(field, "not a stretch", "it must be 0 or more, and finite")
        return None if math.isnan(seconds) else seconds

    def _channel(self) -> int | None:
        try:
            text = as_name(self.raw.channel)
            if text in ("", "mean"):
                return None
            channel = as_number(text)
            if channel.is_integer() and 0 <= channel < _MOST_CHANNELS:
                return int(channel)
        except (TypeError, ValueError, OverflowError):
            pass
        each = ": a row is one utterance, so write one for each channel" if self.raw.channel == "each" else ""
        self.refuse("channel", "not a channel", f"it must be a whole number from 0 on, or 'mean'{each}")
        return None

    def _split(self) -> str:
        split = normalise_split(self._name("split", required=True))
        if split and not _SPLIT_NAME.fullmatch(split):
            self.refuse("split", "not a split name")
            return ""
        return split

    def _audio(self, folder: str | os.PathLike[str] | None) -> str | bytes | StoredSound:
        if isinstance(self.raw.audio, (bytes, StoredSound)):
            return self.raw.audio
        path = self._text("audio", required=True)
        if not path or folder is None:
            return path
        root = Path(os.path.normpath(Path(folder).absolute()))
        file = Path(os.path.normpath(root / path))  # unlike resolve(), lets symbolic links lead out of the folder
        if root not in file.parents:
            self.refuse("audio", "outside the folder", f"paths start in {root} and may not leave it")
            return ""
        return str(file)

    def _labels(self, label_scale: tuple[float, float], limits: tuple[float, float]) -> list[float]:
        known = len(self.problems)
        labels = [self._label(dimension, label_scale, limits) for dimension in EMOTION_DIMENSIONS]
        if all(math.isnan(label) for label in labels) and len(self.problems) == known:
            self.problems.append(CorpusProblem(self.raw.row, "unrated", "no dimension has a label", self.id))
        return labels

    def _label(self, dimension: str, label_scale: tuple[float, float], limits: tuple[float, float]) -> float:
        try:
            label = as_number(getattr(self.raw, dimension))
        except (TypeError, ValueError, OverflowError):
            self.refuse(dimension, "not a number")
            return math.nan
        if label < limits[0] or label > limits[1]:
            self.refuse(dimension, "outside the scale", "the scale is {:g} to {:g}".format(*label_scale))
        return label


def _locate(candidates: list[_Candidate]) -> None:
    folders = Folders()
    for candidate in candidates:
        if candidate.audio:
            candidate.locate(folders)


def _measure(candidates: list[_Candidate]) -> None:
    with_audio = [candidate for candidate in candidates if candidate.file or not isinstance(candidate.audio, str)]
    hidden = None if len(with_audio) >= PROGRESS_BAR_FROM else True  # None: hidden unless standard error is a terminal
    with ThreadPoolExecutor() as pool:
        measured = pool.map(_Candidate.measure, with_audio)
        for _ in tqdm(measured, "checking audio", len(with_audio), unit=" files", disable=hidden):
            pass


def _check_clashes(candidates: list[_Candidate]) -> None:
    for candidate, first in _clashing(candidates, lambda candidate: candidate.id):
        if candidate is not first:
            candidate.refuse("id", "duplicate id", _place(first))
    _check_stretches(candidates)
    for candidate, first in _clashing(candidates, lambda candidate: candidate.sound):
        if candidate.split != first.split and not (candidate.file and candidate.stretch.overlaps(first.stretch)):
            candidate.refuse("audio", "same sound in two splits", f"{_shown_audio(first)} {_place(first)}")
    for candidate, first in _clashing(candidates, lambda candidate: candidate.speaker):
        if 0 <= candidate.rank < first.rank:
            candidate.refuse("speaker", "speaker in two splits", _place(first))


def _check_stretches(candidates: list[_Candidate]) -> None:
    """Refuses rows that are the same stretch of a file, and rows of two splits that share a part of a file."""
    stretches: dict[Stretch, _Candidate] = {}
    for candidate, first in _clashing(candidates, lambda candidate: candidate.stretch if candidate.file else None):
        if candidate is first:
            stretches[first.stretch] = first
        elif candidate.split != first.split:
            candidate.refuse("audio", "audio in two splits", _place(first))
        elif isinstance(candidate.audio, str):  # sound in a table has no name by which it could be used twice
            candidate.refuse("audio", "audio used twice", _place(first))
    taken = Taken()
    for candidate in sorted(stretches.values(), key=lambda candidate: -candidate.rank):
        others = (stretches[stretch] for stretch in taken.overlapping(candidate.stretch))
        clash = next((other for other in others if other.split != candidate.split), None)
        if clash is None:
            taken.add(candidate.stretch)
        else:
            candidate.refuse("audio", "audio in two splits", f"some of it is {_place(clash)}")


def _clashing(
    candidates: list[_Candidate], key: Callable[[_Candidate], Hashable]
) -> Iterator[tuple[_Candidate, _Candidate]]:
    """Every candidate with the one of the same key that is kept in preference to the others, which is often itself."""
    groups: dict[Hashable, list[_Candidate]] = defaultdict(list)
    for candidate in candidates:
        if key(candidate):
            groups[key(candidate)].append(candidate)
    for group in groups.values():
        first = max(group, key=lambda candidate: candidate.rank)  # the first of those of the highest rank
        yield from ((candidate, first) for candidate in group)


def _place(candidate: _Candidate) -> str:
    return f"also in {candidate.raw.row}" + (f", split {candidate.split}" if candidate.split else "")


def _shown_audio(candidate: _Candidate) -> str:
    return shortened(candidate.raw.audio) if isinstance(candidate.raw.audio, str) else "audio"


def _notes_on_names(kept: list[_Candidate]) -> list[str]:
    """Notes about names that differ from their spelling in the table."""
    notes = []
    for column in ("id", "speaker", "gender", "split", "transcript"):
        values = [(getattr(candidate.raw, column), candidate) for candidate in kept]
        numbers = [(raw, candidate) for raw, candidate in values if isinstance(raw, float) and not math.isnan(raw)]
        if numbers:
            raw, candidate = numbers[0]
            where = f"{quantity(len(numbers), 'utterance')}, first {raw} as {shortened(as_text(raw))}"
            notes += [f"{column} is a floating point number, read as a whole one: {where} ({candidate.raw.row})"]
        if column != "transcript":
            others = [c for raw, c in values if isinstance(raw, str) and not unicodedata.is_normalized("NFC", raw)]
            if others:
                where = f"{quantity(len(others), 'utterance')}, first {shortened(getattr(others[0], column))}"
                notes += [f"{column} is in another Unicode normal form than NFC and read in NFC: {where}"]
    respelled = [c for c in kept if isinstance(c.audio, str) and _respelled(c)]
    if respelled:
        first = f"first {shortened(str(respelled[0].audio))} ({respelled[0].raw.row})"
        notes += [f"audio found under a name in another Unicode normal form: {len(respelled):,}, {first}"]
    return notes


def _respelled(candidate: _Candidate) -> bool:
    raw = Path(as_text(candidate.raw.audio)).name
    return not raw.isascii() and Path(str(candidate.audio)).name != raw


def _notes(kept: list[_Candidate]) -> list[str]:
    notes = []
    missing = [split for split in SPLITS if all(candidate.split != split for candidate in kept)]
    if missing:
        notes += [f"no rows of {' and '.join(missing)}"]
    for split in dict.fromkeys(candidate.split for candidate in kept):
        alike = difflib.get_close_matches(split.casefold(), SPLITS, n=1, cutoff=0.7)
        if alike and split not in SPLITS and split.isalpha():
            notes += [f"the split {split!r} keeps its name; did you mean {alike[0]!r}?"]
    unknown = sum(not candidate.speaker for candidate in kept)
    if unknown:
        notes += [f"{quantity(unknown, 'utterance')} of unknown speakers: whether these cross splits cannot be checked"]
    twice = [(candidate, first) for candidate, first in _clashing(kept, lambda c: c.sound) if candidate is not first]
    if twice:
        candidate, first = twice[0]
        example = f"{shortened(candidate.id)} ({candidate.raw.row}) like {shortened(first.id)} ({first.raw.row})"
        notes += [
            f"{quantity(len(twice), 'utterance')} with the sound of another one of the same split, first {example}"
        ]
    cut_up = files_cut_up((candidate.stretch, candidate.split) for candidate in kept if candidate.file)
    if cut_up:
        where = f"{len(cut_up):,}, the first {shortened(str(cut_up[0]))}"
        notes += [f"files of which different parts are in different splits: {where}"]
    bad_ratings = [problem for candidate in kept for problem in candidate.rating_problems]
    if bad_ratings:
        reasons = counted(Counter(problem.reason for problem in bad_ratings))
        number = quantity(len(bad_ratings), "rating of single annotators", "ratings of single annotators")
        notes += [f"{number} left out: {reasons}, first {bad_ratings[0]}"]
    genders = Counter(candidate.gender for candidate in kept if candidate.gender.casefold() not in _GENDERS)
    notes += [f"gender {gender!r} of {quantity(n, 'utterance')} is taken as unknown" for gender, n in genders.items()]
    return notes
