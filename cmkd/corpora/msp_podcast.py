"""`msp-podcast`: MSP-Podcast, spontaneous speech from podcasts, from your own copy of a release from 1.0 to 2.0.

MSP-Podcast (Lotfian and Busso 2019) is licensed by the University of Texas at Dallas; nothing of it comes with this
package. `data_dir` is the folder of the release. The releases differ, and what is there is taken:

| | read from |
|---|---|
| labels | `labels_concensus.csv` (sic, up to 1.9) or `labels_consensus.csv` (from 1.10) in `Labels`, else .json |
| audio | every .wav in `Audios` or `Audio`, at any depth; names that start with a dot are not the corpus' |
| transcripts | `Transcripts/*.txt`, one utterance a file, where the release has them; "" where it has none |
| annotators | `labels_detailed.csv`, else .json, in `Labels`: with `annotators=True` |

Folders may have any case and lack the final "s". An utterance's id is the name of its file without ending.

- **Splits**: `Train` is train, `Validation` and `Development` are validation, and `Test1` is called test, since
  training and its report want a split of that name, and it is the one that papers mean. `Test2` and `Test3` keep their
  names.
- **Test3**: its labels are withheld. Its rows without any label are counted as left out, not as errors.
- **Speakers**: `Unknown` is "", and the report says how many utterances this keeps from the check that no speaker is in
  two splits.
- **Release**: taken from `release`, else from the name of the folder (MSP-PODCAST-Publish-1.6). Failing both, the
  labels only tell a range: the spelling "concensus" and `Validation` mean up to 1.9, "consensus" and `Development` from
  1.10 on, and `Test3` from 1.11 on. Nothing else in a release says its number, so the report names what was gone by.

The paper's configuration is `release="1.6"`: train, validation and test only, compared with the published 34,280, 5,958
and 10,124 utterances and 84 hours. Another release has other utterances under the same split names: results on two
releases are not comparable.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmkd.corpora import Preference
from cmkd.corpora.building import build_corpus
from cmkd.corpora.checks import Rating, SourceRow
from cmkd.corpora.folders import archive, unzipped
from cmkd.corpora.known_sizes import KnownSize
from cmkd.corpora.msp_labels import Label, read_consensus, read_ratings
from cmkd.corpora.report import CorpusProblem, CorpusReport
from cmkd.corpora.schema import SPLITS, Corpus, StreamedCorpus, normalise_split
from cmkd.corpora.transcripts import join_transcripts
from cmkd.spelling import did_you_mean

LABEL_SCALE = (1.0, 7.0)

RELEASES = (*(f"1.{minor}" for minor in range(13)), "2.0")

PAPER_RELEASE = "1.6"
KNOWN_SIZES = {
    "1.6": KnownSize("MSP-Podcast 1.6", {"train": 34_280, "validation": 5_958, "test": 10_124}, hours=84.0),
}
"""By release, as published."""

TERMS = (
    "MSP-Podcast is licensed by the University of Texas at Dallas to those who signed its agreement, who may not pass "
    "on its audio, labels or transcripts."
)
SOURCE = "MSP-Podcast is given out by the University of Texas at Dallas: https://lab-msp.com/MSP/MSP-Podcast.html"

_FOLDER_NAME = re.compile(r"msp[-_ ]?podcast.*?(?P<release>\d+\.\d+)", re.IGNORECASE | re.ASCII)
_LABEL_FILE = re.compile(r"labels_con[cs]ensus\.(csv|json)", re.IGNORECASE)
_RATINGS_FILE = re.compile(r"labels_detailed\.(csv|json)", re.IGNORECASE)
_LABELS, _AUDIO, _TRANSCRIPTS = ("labels", "label"), ("audios", "audio"), ("transcripts", "transcript")
_UP_TO_1_9, _FROM_1_10, _FROM_1_11 = "1.0-to-1.9", "from-1.10", "from-1.11"


def build(
    data_dir: str | os.PathLike[str] | None,
    on_error: str,
    *,
    release: str | None = None,
    annotators: bool = False,
    transcripts: str | os.PathLike[str] | None = None,
    prefer_transcripts: Preference = "manual",
    num_proc: int | None = None,
    streaming: bool = False,
) -> Corpus | StreamedCorpus:
    """Builds MSP-Podcast from the folder of a release, or takes it from the cache.

    Args:
        data_dir (path): The folder of the release, with `Labels` and `Audios`.
        on_error (`str`): See `load_corpus`.
        release (`str`, *optional*): The release that the folder holds, "1.0" to "2.0". "1.6" is the paper's
            configuration: other splits than train, validation and test are left out. By default the release is
            recognised and all splits are kept.
        annotators (`bool`, *optional*, defaults to `False`): Whether the rows also have the ratings of the single
            annotators and their spread, the columns of `cmkd.corpora.schema.ANNOTATOR_FEATURES`.
        transcripts (path, *optional*): A table that `cmkd transcribe` wrote, for utterances without a transcript.
        prefer_transcripts (`str`, *optional*, defaults to `"manual"`): Which transcript wins where the release and the
            table both have one: "manual" the release's, "asr" the table's.
        num_proc (`int`, *optional*): Processes that write the cache; by default this one does.
        streaming (`bool`, *optional*, defaults to `False`): Whether to read sound only as its row comes, as a
            `StreamedCorpus`, without a cache. Training and scoring need `False`.

    Raises:
        FileNotFoundError: The folder, its labels, its audio, or what `annotators` or `transcripts` need is missing.
        CorpusError: Rows have problems and `on_error` is "raise", or the labels as a whole cannot be used.
        ValueError: A setting is not valid, or there is more than one folder or label file to choose from.
    """
    if release is not None and release not in RELEASES:
        raise ValueError(
            f"release is {release!r}, but must be None or one of {', '.join(map(repr, RELEASES))}."
            f"{did_you_mean(str(release), RELEASES)}"
        )
    layout = find_layout(data_dir)
    report = CorpusReport(
        name="msp-podcast",
        release="",  # _recognise sets it
        label_scale=LABEL_SCALE,
        config={
            "data_dir": str(layout.folder),
            "release": release,
            "annotators": annotators,
        },
        terms=TERMS,
    )
    rows = _read_release(layout, release, annotators, on_error, report)
    known_size = KNOWN_SIZES.get(report.release)
    rows = join_transcripts(rows, transcripts, prefer_transcripts, report)
    return build_corpus(
        rows,
        report,
        on_error,
        layout.folder,
        annotators=annotators,
        known_size=known_size,
        num_proc=num_proc,
        streaming=streaming,
    )


def _read_release(
    layout: Layout, release: str | None, annotators: bool, on_error: str, report: CorpusReport
) -> list[SourceRow]:
    """Reads all but the audio."""
    labels = read_consensus(layout.labels, report)
    split_names = {_own_split(label) for label in labels}
    _recognise(release, layout, split_names, report)
    names = _split_names(split_names)
    report.notes += [f"the split {own!r} is called {name!r}" for own, name in names.items() if own.casefold() != name]
    sounds = _find_sounds(layout, report)
    rows = _source_rows(labels, names, sounds, layout, release, report)
    _add_transcripts(rows, layout, report)
    if annotators:
        _add_ratings(rows, labels, layout, on_error, report)
    return rows


@dataclass(frozen=True)
class Layout:
    """Where the parts of a release lie; `ratings` and `transcripts` may be missing, or these not be unzipped yet."""

    folder: Path
    labels: Path
    audio: Path
    ratings: Path | None
    transcripts: Path | None
    transcripts_archive: Path | None


def find_layout(data_dir: str | os.PathLike[str] | None) -> Layout:
    """Finds the parts of a release.

    Raises:
        FileNotFoundError: The folder, its labels or its audio folder is missing.
        ValueError: `data_dir` is None, or there is more than one folder or label file to choose from.
    """
    if data_dir is None:
        raise ValueError(f"data_dir is None: pass the folder of your copy of MSP-Podcast. {SOURCE}")
    folder = Path(os.path.normpath(Path(data_dir).absolute()))
    if not folder.is_dir():
        raise FileNotFoundError(f"data_dir is {str(data_dir)!r}, but no such folder exists. {SOURCE}")
    folder = _release_folder(folder)
    labels = _subfolder(folder, *_LABELS)
    audio = _subfolder(folder, *_AUDIO)
    if labels is None or audio is None:
        name, names = ("Labels", _LABELS) if labels is None else ("Audios", _AUDIO)
        packed = archive(folder, names)
        fix = (
            f"unzip {packed.name}, which is there."
            if packed
            else "pass the folder of the release, such as MSP-PODCAST-Publish-1.6."
        )
        raise FileNotFoundError(f"data_dir {str(folder)!r} has no folder {name}: {fix}")
    found = sorted(path for path in labels.iterdir() if _LABEL_FILE.fullmatch(path.name))
    tables = [path for path in found if path.suffix.lower() == ".csv"] or found
    if not tables:
        raise FileNotFoundError(f"{str(labels)!r} has no labels_consensus.csv (or labels_concensus, or .json).")
    if len(tables) > 1:
        raise ValueError(f"{str(labels)!r} has {' and '.join(path.name for path in tables)}: keep that of the release.")
    detailed = [path for path in labels.iterdir() if _RATINGS_FILE.fullmatch(path.name)]
    return Layout(
        folder=folder,
        labels=tables[0],
        audio=audio,
        ratings=min(detailed, key=lambda path: path.suffix.lower(), default=None),
        transcripts=_subfolder(folder, *_TRANSCRIPTS),
        transcripts_archive=archive(folder, _TRANSCRIPTS),
    )


def _release_folder(folder: Path) -> Path:
    """The folder, or the only one in it that has labels, where it has none itself: the release was unzipped twice."""
    if _subfolder(folder, *_LABELS) is None:
        inner = [path for path in folder.iterdir() if path.is_dir() and _subfolder(path, *_LABELS) is not None]
        if len(inner) == 1:
            return inner[0]
    return folder


def _subfolder(folder: Path, *names: str) -> Path | None:
    found = sorted(path for path in folder.iterdir() if path.name.casefold() in names and path.is_dir())
    if len(found) > 1:
        listed = " and ".join(path.name for path in found)
        raise ValueError(f"data_dir {str(folder)!r} has {listed}: keep the one that belongs to the release.")
    return unzipped(found[0]) if found else None


def _recognise(release: str | None, layout: Layout, split_names: set[str], report: CorpusReport) -> None:
    """Sets the release and says what it was taken from, and warns if the labels look like those of other releases."""
    spelling = "concensus" if "concensus" in layout.labels.name.lower() else "consensus"
    signs = [(f"the spelling {spelling!r}", _UP_TO_1_9 if spelling == "concensus" else _FROM_1_10)]
    for name, range_of_releases in (("Validation", _UP_TO_1_9), ("Development", _FROM_1_10), ("Test3", _FROM_1_11)):
        if name.casefold() in {split.casefold() for split in split_names}:
            signs.append((f"the split {name!r}", range_of_releases))
    named = _FOLDER_NAME.search(layout.folder.name)
    if release is not None:
        report.release, source = release, "the setting release"
    elif named:
        report.release, source = named["release"], f"the name of the folder, {layout.folder.name}"
    else:
        ranges = {range_of_releases for _, range_of_releases in signs}
        report.release = max(ranges - {_UP_TO_1_9}, default=_UP_TO_1_9)
        source = " and ".join(sign for sign, _ in signs)
    parts = [path.relative_to(layout.folder).as_posix() for path in (layout.labels, layout.audio)]
    report.notes.append(f"release {report.release}, going by {source}; labels in {parts[0]}, audio in {parts[1]}")
    if release is not None and named and named["release"] != release:
        report.warnings.append(f"release is {release!r}, but the folder is called {layout.folder.name}")
    for sign, range_of_releases in signs:
        if not _is_in(report.release, range_of_releases):
            report.warnings.append(
                f"{sign} belongs to releases {range_of_releases}, but the release is {report.release}"
            )


def _is_in(release: str, range_of_releases: str) -> bool:
    if release in (_UP_TO_1_9, _FROM_1_10, _FROM_1_11):
        early = release == _UP_TO_1_9
    else:
        early = [int(part) for part in release.split(".")] < [1, 10]
    return early == (range_of_releases == _UP_TO_1_9)


def _split_names(own_names: Iterable[str]) -> dict[str, str]:
    """The name of each split in a `Corpus`, by its name in the release."""
    names = {own: normalise_split(own) for own in sorted(own_names)}
    has_test = "test" in names.values()
    return {own: "test" if own.casefold() == "test1" and not has_test else name for own, name in names.items()}


def _find_sounds(layout: Layout, report: CorpusReport) -> dict[str, list[str]]:
    """The paths of the wav files by their name without ending, from `data_dir`."""
    sounds: dict[str, list[str]] = {}
    others = []
    for parent, folders, files in os.walk(layout.audio, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        where = Path(parent).relative_to(layout.folder)
        for name in sorted(files):
            if name.startswith("."):
                continue
            stem, ending = os.path.splitext(name)  # noqa: PTH122 (a thousand times faster than a Path for each file)
            if ending.lower() == ".wav":
                sounds.setdefault(stem, []).append(f"{where}{os.sep}{name}")
            else:
                others.append(f"{where}{os.sep}{name}")
    if others:
        report.notes.append(f"files in {layout.audio.name} that are no wav: {len(others):,}, the first {others[0]!r}")
    return sounds


def _source_rows(
    labels: Sequence[Label],
    names: dict[str, str],
    sounds: dict[str, list[str]],
    layout: Layout,
    release: str | None,
    report: CorpusReport,
) -> list[SourceRow]:
    rows = []
    labelled = set()
    left_out: Counter[str] = Counter()
    for label in labels:
        id = _id(label.file_name)
        labelled.add(id)
        split = names[_own_split(label)]
        if split.casefold() == "test3" and _is_unrated(label):
            left_out["labels withheld"] += 1
        elif release == PAPER_RELEASE and split not in SPLITS and split:
            left_out[f"{split} is not in the paper's configuration"] += 1
        elif len(sounds.get(id, ())) > 1:
            report.problems.append(
                CorpusProblem(
                    label.row, "two files of this name", " and ".join(sounds[id]), id, "FileName", label.file_name
                )
            )
        else:
            missing = f"{layout.audio.relative_to(layout.folder)}{os.sep}{label.file_name}"
            rows.append(_source_row(label, id, split, sounds.get(id, [missing])[0]))
    report.skipped = dict(left_out)
    without = sorted(set(sounds) - labelled)
    if without:
        reason = " (Test3's labels are withheld)" if _is_in(report.release, _FROM_1_11) else ""
        report.notes.append(f"wav files without labels{reason}: {len(without):,}, the first {without[0]!r}")
    return rows


def _source_row(label: Label, id: str, split: str, audio: str) -> SourceRow:
    speaker = label.fields["SpkrID"]
    unknown = isinstance(speaker, str) and speaker.strip().casefold() == "unknown"
    return SourceRow(
        row=label.row,
        id=id,
        audio=audio,
        split=split if isinstance(label.fields["Split_Set"], str) else label.fields["Split_Set"],
        activation=label.fields["EmoAct"],
        valence=label.fields["EmoVal"],
        dominance=label.fields["EmoDom"],
        speaker="" if unknown else speaker,
        gender=label.fields["Gender"],
    )


def _own_split(label: Label) -> str:
    """The split as it stands in the file, "" if there is none or it is not text, which `check_rows` refuses."""
    split = label.fields["Split_Set"]
    return split.strip() if isinstance(split, str) else ""


def _id(file_name: str) -> str:
    return file_name[:-4] if file_name.lower().endswith(".wav") else file_name


def _is_unrated(label: Label) -> bool:
    return all(_is_empty(label.fields[field]) for field in ("EmoAct", "EmoVal", "EmoDom"))


def _is_empty(value: Any) -> bool:
    return value is None or value != value or (isinstance(value, str) and value.strip().casefold() in ("", "nan"))


def _add_transcripts(rows: Sequence[SourceRow], layout: Layout, report: CorpusReport) -> None:
    """Fills in the transcripts that the release has."""
    if layout.transcripts is None and layout.transcripts_archive is not None:
        name = layout.transcripts_archive.name
        report.warnings.append(f"{name} is not unzipped, so that no utterance has a transcript: unzip it where it is")
        return
    if layout.transcripts is None:
        report.notes.append("this copy has no folder Transcripts: `cmkd transcribe` makes transcripts")
        return
    missing, other_encoding = [], []
    for row in rows:
        try:
            content = (layout.transcripts / f"{row.id}.txt").read_bytes()
        except (OSError, ValueError):  # ValueError: an id that no file can have
            missing.append(row.id)
            continue
        text, is_utf8 = _decode(content)
        row.transcript = " ".join(text.split())
        if not is_utf8:
            other_encoding.append(row.id)
    if missing:
        report.notes.append(f"utterances without a file in Transcripts: {len(missing):,}, the first {missing[0]!r}")
    if other_encoding:
        report.notes.append(
            f"transcripts that are not UTF-8 and were read as Windows-1252 or Latin-1: {len(other_encoding):,}, the "
            f"first {other_encoding[0]!r}"
        )


def _decode(content: bytes) -> tuple[str, bool]:
    for encoding in ("utf-8-sig", "cp1252"):
        try:
            return content.decode(encoding), encoding == "utf-8-sig"
        except UnicodeDecodeError:
            pass
    return content.decode("latin-1"), False


def _add_ratings(
    rows: Sequence[SourceRow], labels: Sequence[Label], layout: Layout, on_error: str, report: CorpusReport
) -> None:
    """Fills in the ratings of the single annotators."""
    if layout.ratings is None:
        raise FileNotFoundError(
            f"annotators is True, but {str(layout.labels.parent)!r} has no labels_detailed.csv or .json."
        )
    by_file, problems = read_ratings(layout.ratings, report)
    ratings: dict[str, list[Rating]] = {}
    for file_name, of_file in by_file.items():
        ratings.setdefault(_id(file_name), []).extend(of_file)
    if problems and on_error == "raise":
        report.problems += problems
    elif problems:
        report.notes.append(f"lines of {layout.ratings.name} left out: {len(problems):,}, first {problems[0]}")
    unlabelled = sorted(set(ratings) - {_id(label.file_name) for label in labels})
    if unlabelled:
        report.notes.append(
            f"files with ratings in {layout.ratings.name} but no row in {layout.labels.name}: {len(unlabelled):,}, the "
            f"first {unlabelled[0]!r}"
        )
    for row in rows:
        row.ratings = ratings.get(row.id, [])
    unrated = [row.id for row in rows if not row.ratings]
    if unrated:
        report.notes.append(
            f"utterances without ratings of single annotators: {len(unrated):,}, the first {unrated[0]!r}"
        )
