"""The report of a corpus: what it holds and what is wrong with it, and the error that reports it."""

from __future__ import annotations

import csv
import hashlib
import io
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn

import datasets

from cmkd.atomic import written_whole
from cmkd.corpora.statistics import added, drawn_histogram, duration_histogram, label_statistics
from cmkd.json_files import read_json, write_json
from configuration_cmkd import EMOTION_DIMENSIONS

ADVICE = {
    "audio in two splits": "keep the file, or all stretches of it that overlap, in one split only",
    "channels cancel out": "choose one with the column channel, or record the file again",
    "audio used twice": "keep one row for each file, or for each stretch of it with the columns start and end",
    "duplicate id": "give every row an id of its own",
    "empty audio": "restore the file, or remove the row",
    "missing file": "correct the path (folders are separated by '/'), or pass the data_dir= where it starts",
    "missing value": "fill in the field, or remove the row",
    "no such channel": "correct the channel, which is counted from 0, or leave the field empty for the mean of all",
    "non-finite audio": "make the file again",
    "not a number": "write it like 3.5, and leave the field empty where there is none",
    "not a channel": "write its number, counted from 0, or leave the field empty for the mean of all",
    "not a stretch": "write start and end in seconds from the beginning of the file, or leave them empty for all of it",
    "not a split name": "use letters, digits and '_' only, for example train, validation, test",
    "not text": "write the value as a string of valid Unicode",
    "outside the folder": "pass a data_dir= that contains all audio files",
    "outside the scale": "correct the label, or the scale of the corpus",
    "same sound in two splits": "keep one of the two files",
    "speaker in two splits": "keep a speaker in one split; leave the field empty where the speaker is unknown",
    "two files of this name": "keep one of them in the audio folder",
    "stretch outside the audio": "correct start and end, which are in seconds from the beginning of the file",
    "truncated audio": "restore the file, or remove the row",
    "unrated": "rate at least one dimension, or remove the row (speech for `unlabelled` takes rated=False)",
    "unreadable audio": "convert the file to wav or flac",
}
"""What to do about a row, by the reason why it is refused."""

SHOWN_PROBLEMS = 20


@dataclass(frozen=True)
class CorpusProblem:
    """One reason why a row, or the whole corpus, cannot be used.

    Attributes:
        row (`str`): Where the row stands, for example "manifest.csv:12"; "" if the whole corpus is meant.
        reason (`str`): The rule that it breaks, in words that are the same for all rows, such as "outside the scale".
        detail (`str`, *optional*): The particulars of this case.
        id (`str`, *optional*): The id of the utterance, if it is known.
        field (`str`, *optional*): The column.
        value (`str`, *optional*): The value in that column.
    """

    row: str
    reason: str
    detail: str = ""
    id: str = ""
    field: str = ""
    value: str = ""

    def __str__(self) -> str:
        row = self.row + (f" (id {shortened(self.id)})" if self.id else "")
        field = f"{self.field} {shortened(self.value)}" if self.field else ""
        place = ", ".join(part for part in (row, field) if part)
        return ": ".join(part for part in (place, self.reason, self.detail) if part)


@dataclass
class CorpusReport:
    """What a corpus holds, what is wrong with it and what was left out.

    Attributes:
        name (`str`): The name of the corpus, as in `load_corpus`.
        release (`str`): The release of its data or their table, as the owners or the builder call it.
        label_scale (`tuple[float, float]`): Minimum and maximum of its labels.
        config (`dict`): The settings that it was built with.
        problems (`list[CorpusProblem]`): All problems.
        warnings (`list[str]`): What a reader must know because results may not be what they seem.
        notes (`list[str]`): What a reader should know, but for which no row is left out.
        skipped (`dict[str, int]`): The number of rows left out, by the first reason for each.
        utterances (`dict[str, int]`): The number of utterances by split.
        hours (`dict[str, float | None]`): The hours of audio by split, None if not measured.
        speakers (`dict[str, int]`): The number of known speakers by split.
        labels (`dict`): By split, what `cmkd.corpora.statistics.label_statistics` returns.
        durations (`dict`): By split, what `cmkd.corpora.statistics.duration_histogram` returns.
        transcripts (`str`): A digest of the transcripts that were joined from a file; "" if none were.
        digest (`str`): A digest of all rows and their sound, whatever folder they are in; "" if the sound was not read.
        is_streamed (`bool`): Whether the sound is read only when its row is reached.
        terms (`str`): The licence that forbids passing the corpus on, "" if there is none.
        licence (`str`): The licence as the user states it, by the Hub's name for it; "" if they do not.
        language (`str`): The language as the user states it; "" if they do not.
        about (`str`): What the user says of it to readers of a card; "" if nothing.
        unlabelled_version (`str`): A digest of the speech without labels that a run learns from beside it; "" if there
            is none.
        is_rated (`bool`): Whether its utterances need ratings; if not, none are read.
        label_limits (`tuple[float, float]`, *optional*): The lowest and the highest label that the checks admit, for a
            corpus that publishes labels beyond its scale.
    """

    name: str
    release: str
    label_scale: tuple[float, float]
    config: dict[str, Any]
    problems: list[CorpusProblem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    skipped: dict[str, int] = field(default_factory=dict)
    utterances: dict[str, int] = field(default_factory=dict)
    hours: dict[str, float | None] = field(default_factory=dict)
    speakers: dict[str, int] = field(default_factory=dict)
    labels: dict[str, dict[str, dict[str, float | int | None]]] = field(default_factory=dict)
    durations: dict[str, dict[str, int]] = field(default_factory=dict)
    transcripts: str = ""
    digest: str = ""
    is_streamed: bool = False
    terms: str = ""
    licence: str = ""
    language: str = ""
    about: str = ""
    unlabelled_version: str = ""
    is_rated: bool = True
    label_limits: tuple[float, float] | None = None

    @property
    def version(self) -> str:
        """Release, transcripts and digest in one name, which changes if any of them does.

        >>> CorpusReport("toys", "1.0", label_scale=(1, 7), config={}, transcripts="ab", digest="cd").version
        '1.0+transcripts-ab-cd'
        """
        transcripts = f"+transcripts-{self.transcripts}" if self.transcripts else ""
        digest = f"-{self.digest}" if self.digest else ""
        return f"{self.release}{transcripts}{'-streamed' if self.is_streamed else digest}"

    def count(self, by_split: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        """Sets all numbers from the rows of each split.

        Args:
            by_split: By split, rows with the columns speaker, duration (NaN if not measured) and the labels.
        """
        self.utterances = {split: len(rows) for split, rows in by_split.items()}
        self.speakers = {split: len({row["speaker"] for row in rows} - {""}) for split, rows in by_split.items()}
        self.labels = {split: label_statistics(rows) for split, rows in by_split.items()}
        self.hours, self.durations = {}, {}
        for split, rows in by_split.items():
            durations = [row["duration"] for row in rows]
            measured = not any(math.isnan(duration) for duration in durations)
            self.hours[split] = math.fsum(durations) / 3600 if measured else None
            self.durations[split] = duration_histogram(durations) if measured else {}

    def refuse(self, problem: CorpusProblem, fix: str) -> NoReturn:
        """Raises a `CorpusError` for a problem of the whole corpus that leaving out rows cannot solve."""
        self.problems.insert(0, problem)
        raise CorpusError(self, fix)

    def to_dict(self) -> dict[str, Any]:
        """The object "corpus" of `results.json`."""
        return {
            "name": self.name,
            "version": self.version,
            "release": self.release,
            "transcripts": self.transcripts,
            "digest": self.digest,
            "label_scale": list(self.label_scale),
            "utterances": self.utterances,
            "hours": self.hours,
            "speakers": self.speakers,
            "labels": self.labels,
            "durations": self.durations,
            "skipped": self.skipped,
            "warnings": self.warnings,
            "notes": self.notes,
            "terms": self.terms,
            "licence": self.licence,
            "language": self.language,
            "about": self.about,
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes everything as JSON, whole or not at all: `to_dict()` and all other attributes."""
        write_json(Path(path), self.to_dict() | asdict(self))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> CorpusReport:
        """Reads what `save` wrote.

        Raises:
            FileNotFoundError, ValueError: There is no such file, or it is damaged.
        """
        content = read_json(Path(path), "delete the folder that it is in; the corpus is then built again.")
        del content["version"]  # made of the others
        for limits in ("label_scale", "label_limits"):
            content[limits] = content[limits] and tuple(content[limits])
        content["problems"] = [CorpusProblem(**problem) for problem in content["problems"]]
        return cls(**content)

    def __str__(self) -> str:
        """The card of the corpus, for the terminal."""
        minimum, maximum = self.label_scale
        labels = f"labels from {minimum:g} to {maximum:g} (mean ± standard deviation)" if self.is_rated else "not rated"
        lines = [f"{self.name} {self.version}, {labels}"]
        lines += [f"WARNING: {warning}" for warning in self.warnings]
        lines += [_table_line("", "utterances", "hours", "speakers", *EMOTION_DIMENSIONS)]
        for split, utterances in self.utterances.items():
            hours = self.hours[split]
            means = [_mean_and_std(self.labels[split][dimension]) for dimension in EMOTION_DIMENSIONS]
            length = "?" if hours is None else f"{hours:.2f}"
            lines += [_table_line(split, f"{utterances:,}", length, f"{self.speakers[split]:,}", *means)]
        lines += drawn_histogram(added(self.durations.values()))
        if self.skipped:
            lines += [f"left out: {quantity(sum(self.skipped.values()), 'row')}: {counted(self.skipped)}"]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


class CorpusError(ValueError):
    """A corpus that would corrupt results; the message lists the first cases.

    Attributes:
        report (`CorpusReport`): The report, with all cases in `problems`.
        fix (`str`): What to do about them.
        problems_file (`Path` or None): The file that lists all cases, which `load_corpus` writes.
    """

    def __init__(self, report: CorpusReport, fix: str):
        super().__init__(report, fix)
        self.report = report
        self.fix = fix
        self.problems_file: Path | None = None

    def __str__(self) -> str:
        problems = self.report.problems
        reasons = Counter(problem.reason for problem in problems)
        lines = [f"the corpus {self.report.name!r} has {quantity(len(problems), 'problem')}: {counted(reasons)}"]
        lines += [f"  {problem}" for problem in problems[:SHOWN_PROBLEMS]]
        if len(problems) > SHOWN_PROBLEMS:
            lines += [f"  ... and {len(problems) - SHOWN_PROBLEMS:,} more"]
        if self.problems_file is not None:
            lines += [f"all of them, as a table: {self.problems_file}"]
        elif len(problems) > SHOWN_PROBLEMS:
            lines += ["all of them: `.report.problems` of this error"]
        lines += [f"{reason}: {ADVICE[reason]}." for reason in reasons if reason in ADVICE]
        return "\n".join([*lines, self.fix])


def write_problems(report: CorpusReport) -> Path:
    """Writes all problems of a corpus to a CSV file in UTF-8, whole or not at all, and returns its path.

    It is in the folder `cmkd/problems` of `HF_DATASETS_CACHE`; its name has a digest of the problems, so that the same
    problems have the same file. Its columns are row, reason, detail, id, field and value, as in `CorpusProblem`.
    """
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, [field.name for field in fields(CorpusProblem)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(asdict, report.problems))
    content = table.getvalue().encode("utf-8", "backslashreplace")  # lone surrogates are problems, too
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "cmkd" / "problems"
    path = (folder / f"{report.name}-{hashlib.sha256(content).hexdigest()[:12]}.csv").absolute()
    with written_whole(path) as file:
        file.write_bytes(content)
    return path


def counted(reasons: Mapping[str, int]) -> str:
    """Reasons with their numbers, the most frequent first.

    >>> counted({"unrated": 1, "empty audio": 1200})
    'empty audio (1,200), unrated (1)'
    """
    return ", ".join(f"{reason} ({number:,})" for reason, number in Counter(reasons).most_common())


def quantity(number: int, noun: str, plural: str | None = None) -> str:
    """A number with its noun.

    >>> quantity(1, "row"), quantity(1200, "row")
    ('1 row', '1,200 rows')
    """
    return f"{number:,} " + (noun if number == 1 else plural or f"{noun}s")


def shortened(value: str) -> str:
    """A value as messages quote it, with at most 100 characters."""
    return repr(value) if len(value) <= 100 else f"{value[:100]!r}..."


def _table_line(split: str, utterances: str, hours: str, speakers: str, *labels: str) -> str:
    return " ".join([f"{split:12} {utterances:>10} {hours:>8} {speakers:>8}", *(f"{label:>13}" for label in labels)])


def _mean_and_std(statistics: dict[str, float | int | None]) -> str:
    return f"{statistics['mean']:.2f} ± {statistics['std']:.2f}" if statistics["rated"] else "not rated"
