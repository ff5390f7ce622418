"""`iemocap`: IEMOCAP, acted conversations of two in five sessions, from your own copy of the full release.

IEMOCAP (Busso et al. 2008) is licensed by the University of Southern California; nothing of it comes with this package.
`data_dir` is the folder with Session1 to Session5, IEMOCAP_full_release, or the folder that this one is in. Of each
session are read:

```
sentences/wav/Ses01F_impro01/Ses01F_impro01_F000.wav       the utterances ("turns")
dialog/EmoEvaluation/Ses01F_impro01.txt                    their labels; not Attribute/, Categorical/, Self-evaluation/
dialog/transcriptions/Ses01F_impro01.txt                   what is said
```

- **Labels** are the means over the annotators, which are in the first line of a turn's block: `[6.2901 - 8.2357]`,
  name, category, `[2.5000, 2.5000, 2.5000]`. The order there is valence, activation, dominance; a header that says
  otherwise is a problem of each of the file's turns. Categories (`neu`, `xxx`, ...) are not read: all turns are rated.
- **Scale**: 1 to 5. A few of the published means lie half a step beyond it, at 0.5 or 5.5. `beyond_scale` decides what
  happens to them; by default they stay as published, so that all 10,039 utterances of the paper are there. On the unit
  interval, on which models are trained, such a label is -0.125 or 1.125, which does no harm to the loss.
- **Speakers** are the session and the letter of the turn, which is the last one of a name: `Ses01F_impro01_M003` is
  spoken by `Ses01_M`, a man. The first letter, in `Ses01F`, says who wore the markers.
- **Transcripts** are matched by the turn's name; lines that have none (`M: ...`, notes) are counted in the report.
- **Text files** are UTF-8; those that are not are read as Windows-1252, or else Latin-1, and the report says how many.
  Files whose names start with a dot, such as the `._Ses01F_impro01.txt` that a Mac leaves behind, are not the corpus'.

No speaker is in two splits, whichever the protocol:

| `protocol` | `fold` | test | validation | train |
|---|---|---|---|---|
| `"leave-one-session-out"` (the paper's) | 1 to 5 | session `fold` | the next session, 1 after 5 | the other three |
| `"leave-one-speaker-out"` | 1 to 10: Ses01_F, Ses01_M, Ses02_F, ... | one speaker | the partner | the other four |

When one speaker is left out, the checkpoint is chosen on the same conversations that are tested, although on the other
voice in them, which may flatter the results.

With `annotators=True` the corpus has the columns of `ANNOTATOR_FEATURES` in `cmkd.corpora.schema`, from the lines
`A-E3: val 3; act 2; dom  2; ()`. A rating outside 1 to 5 is left out of them, and the report counts those.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath

from cmkd.corpora import Preference
from cmkd.corpora.building import build_corpus
from cmkd.corpora.checks import Rating, SourceRow
from cmkd.corpora.folders import archive, unzipped
from cmkd.corpora.known_sizes import KnownSize
from cmkd.corpora.report import CorpusProblem, CorpusReport
from cmkd.corpora.schema import SPLITS, Corpus, StreamedCorpus
from cmkd.corpora.transcripts import join_transcripts
from cmkd.spelling import did_you_mean
from configuration_cmkd import EMOTION_DIMENSIONS

LABEL_SCALE = (1.0, 5.0)

LABEL_LIMITS = (0.5, 5.5)
"""Half a step beyond the scale, which is as far as published labels go; anything further is an error of the copy."""

SESSIONS = (1, 2, 3, 4, 5)
SPEAKERS = tuple(f"Ses0{session}_{letter}" for session in SESSIONS for letter in "FM")
"""The speakers, in the order of the folds of "leave-one-speaker-out"."""

NUM_FOLDS = {"leave-one-session-out": len(SESSIONS), "leave-one-speaker-out": len(SPEAKERS)}
"""The number of folds by protocol."""

BEYOND_SCALE = ("keep", "clip", "refuse")

SESSION_SIZES = {1: 1819, 2: 1811, 3: 2136, 4: 2103, 5: 2170}
"""The number of labelled turns in the full release."""

SOURCE = "USC gives IEMOCAP to researchers on request: https://sail.usc.edu/iemocap"
TERMS = "IEMOCAP is licensed by USC to you alone: its audio, labels and transcripts may not be passed on"

TURN = re.compile(r"(?P<dialogue>Ses0(?P<session>[1-5])[FM]_\w+)_(?P<letter>[FM])(?:\d|XX)\w*", re.ASCII)
"""The name of a turn: its dialogue, who speaks, its number, and sometimes a suffix."""

_LABELS = re.compile(r"\[[^\[\]]*\]\s*(?P<turn>\S+)\s+\S+\s+\[(?P<values>[^\[\]]*)\]")
_NUMBER = re.compile(r"-?\d+(\.\d*)?", re.ASCII)
_HEADER = re.compile(r"%.*\[(?P<order>[^\[\]]*)\]")
_CATEGORIES = re.compile(r"C-\w+\s*:")
_RATING = re.compile(r"A-(?P<annotator>\w+)\s*:\s*val(?P<val>[^;]*);\s*act(?P<act>[^;]*);\s*dom(?P<dom>[^;]*);.*")
_TRANSCRIPTION = re.compile(r"(?P<turn>Ses\w+)\s*\[[\d.\s-]+\]\s*:?\s*(?P<text>.*)")
_TAG = re.compile(r"\s*\[[^\[\]]*\]\s*(?P<punctuation>[.,!?;:]*)")

_RELEASE = "IEMOCAP_full_release"
_LIKE_LABELS = "labels are like '[6.2901 - 8.2357] Ses01F_impro01_F000 neu [2.5000, 2.5000, 2.5000]'"


@dataclass
class LabelledTurn:
    """A turn and its labels as published.

    Attributes:
        row (`str`): Where it stands, file and line.
        name (`str`): Its name, which matches `TURN`.
        dialogue (`str`): The dialogue that it is part of.
        speaker (`str`): The speaker, one of `SPEAKERS`.
        activation, valence, dominance (`float`): Its labels on the scale of the corpus, or a little beyond it.
        ratings (`list[Rating]`): The ratings of the individual annotators.
    """

    row: str
    name: str
    dialogue: str
    speaker: str
    activation: float
    valence: float
    dominance: float
    ratings: list[Rating] = field(default_factory=list)


@dataclass
class LabelFile:
    """The content of a label file.

    Attributes:
        turns (`list[LabelledTurn]`): The turns, in the order of the file.
        problems (`list[CorpusProblem]`): Problems with lines that start a turn's block or name a turn.
        other_lines (`list[str]`): Places of lines that are neither header, labels nor an annotator's ratings.
    """

    turns: list[LabelledTurn] = field(default_factory=list)
    problems: list[CorpusProblem] = field(default_factory=list)
    other_lines: list[str] = field(default_factory=list)


@dataclass
class TranscriptionFile:
    """The content of a transcription file.

    Attributes:
        texts (`list[tuple[str, str, str]]`): Place, name of the turn, and the words.
        other_lines (`list[str]`): Places of lines that do not start with a turn's name and times.
    """

    texts: list[tuple[str, str, str]] = field(default_factory=list)
    other_lines: list[str] = field(default_factory=list)


@dataclass
class Release:
    """What a copy of IEMOCAP holds, not yet checked.

    Attributes:
        turns (`list[LabelledTurn]`): The turns of all sessions.
        texts (`dict[str, str]`): Transcripts by the name of the turn.
        sounds (`dict[str, str]`): Paths relative to the folder of the release, by the name of the turn.
        problems (`list[CorpusProblem]`): Problems with lines of label files.
        incomplete (`list[CorpusProblem]`): Folders and label files that are missing or empty.
        observed (`dict[str, list[str]]`): Observations for which no row is left out, with the places.
        version (`str`): A digest of the label and transcription files, which changes if they do.
    """

    turns: list[LabelledTurn] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)
    sounds: dict[str, str] = field(default_factory=dict)
    problems: list[CorpusProblem] = field(default_factory=list)
    incomplete: list[CorpusProblem] = field(default_factory=list)
    observed: dict[str, list[str]] = field(default_factory=dict)
    version: str = ""

    def observe(self, what: str, places: Collection[str]) -> None:
        """Adds places to `observed`, if there are any."""
        if places:
            self.observed.setdefault(what, []).extend(places)


def build(
    data_dir: str | os.PathLike[str] | None,
    on_error: str,
    *,
    fold: int = 1,
    protocol: str = "leave-one-session-out",
    beyond_scale: str = "keep",
    strip_tags: bool = False,
    transcripts: str | os.PathLike[str] | None = None,
    prefer_transcripts: Preference = "manual",
    annotators: bool = False,
    num_proc: int | None = None,
    streaming: bool = False,
) -> Corpus | StreamedCorpus:
    """Builds IEMOCAP as the module's documentation describes, or takes it from the cache.

    Args:
        data_dir (path): The folder with Session1 to Session5, or the one that IEMOCAP_full_release is in.
        on_error (`str`): See `load_corpus`. A session, folder or label file that is missing or holds nothing is a
            problem too; with "skip" it becomes a warning.
        fold (`int`, *optional*, defaults to 1): Which fold of the cross-validation: 1 to 5, or 1 to 10 where one
            speaker is left out.
        protocol (`str`, *optional*, defaults to `"leave-one-session-out"`): How the folds are made:
            "leave-one-session-out", as in the paper, or "leave-one-speaker-out".
        beyond_scale (`str`, *optional*, defaults to `"keep"`): What becomes of labels a little outside the scale,
            1 to 5: "keep" leaves them as published, "clip" makes them the end of the scale, and a note has
            their number; "refuse" makes them problems. Labels far beyond the scale are problems whatever the setting.
        strip_tags (`bool`, *optional*, defaults to `False`): Whether to take `[LAUGHTER]`, `[BREATHING]` and the like
            out of the release's transcripts, which are left as they are by default.
        transcripts (path, *optional*): The file that `cmkd transcribe` wrote, for utterances without a transcript.
        prefer_transcripts (`str`, *optional*, defaults to `"manual"`): Which transcript counts where a turn
            has one of the release and one of the file `transcripts`: "manual" the release's, "asr" the file's.
        annotators (`bool`, *optional*, defaults to `False`): Whether the rows also have the ratings of the single
            annotators and their spread.
        num_proc (`int`, *optional*): Processes that write the cache; by default this one does.
        streaming (`bool`, *optional*, defaults to `False`): Whether to read sound only as its row comes, as a
            `StreamedCorpus`, without a cache. Training and scoring need `False`.

    Raises:
        FileNotFoundError: There is no such folder, or it has no folders Session1 to Session5.
        CorpusError: Rows have problems and `on_error` is "raise", or nothing usable is left.
        ValueError: A setting is not valid.
    """
    splits = speaker_splits(protocol, fold)
    _check_choice("beyond_scale", beyond_scale, BEYOND_SCALE)
    folder = find_release(data_dir)
    release = read_release(folder)
    report = CorpusReport(
        name="iemocap",
        release=release.version,
        label_scale=LABEL_SCALE,
        config={
            "data_dir": str(folder.absolute()),
            "fold": fold,
            "protocol": protocol,
            "beyond_scale": beyond_scale,
            "strip_tags": strip_tags,
            "annotators": annotators,
        },
        problems=[*(release.incomplete if on_error == "raise" else []), *release.problems],
        warnings=[str(problem) for problem in release.incomplete if on_error == "skip"],
        terms=TERMS,
        label_limits=LABEL_LIMITS if beyond_scale == "keep" else None,
    )
    turns = _on_scale(release, beyond_scale)
    rows = [_source_row(turn, release, splits, strip_tags, annotators) for turn in turns]
    report.notes += [f"{what}: {len(where):,}, the first {where[0]}" for what, where in release.observed.items()]
    rows = join_transcripts(rows, transcripts, prefer_transcripts, report)
    return build_corpus(
        rows,
        report,
        on_error,
        folder,
        annotators=annotators,
        known_size=_known_size(splits, protocol),
        num_proc=num_proc,
        streaming=streaming,
    )


def speaker_splits(protocol: str, fold: int) -> dict[str, str]:
    """The split of each speaker.

    Args:
        protocol (`str`): One of `NUM_FOLDS`.
        fold (`int`): 1 to the number of the protocol's folds.

    Raises:
        ValueError: There is no such protocol or fold.

    >>> splits = speaker_splits("leave-one-session-out", fold=5)
    >>> [[speaker for speaker in SPEAKERS if splits[speaker] == split] for split in ("validation", "test")]
    [['Ses01_F', 'Ses01_M'], ['Ses05_F', 'Ses05_M']]
    """
    _check_choice("protocol", protocol, NUM_FOLDS)
    if isinstance(fold, bool) or not isinstance(fold, int) or not 1 <= fold <= NUM_FOLDS[protocol]:
        raise ValueError(f"fold is {fold!r}, but must be a whole number from 1 to {NUM_FOLDS[protocol]} ({protocol}).")
    splits = dict.fromkeys(SPEAKERS, "train")
    if protocol == "leave-one-session-out":
        following = fold % len(SESSIONS) + 1
        splits |= {f"Ses0{following}_{letter}": "validation" for letter in "FM"}
        splits |= {f"Ses0{fold}_{letter}": "test" for letter in "FM"}
    else:
        test = SPEAKERS[fold - 1]
        partner = test[:-1] + {"F": "M", "M": "F"}[test[-1]]
        splits |= {partner: "validation", test: "test"}
    return splits


def without_tags(text: str) -> str:
    """A transcript without the tags in square brackets, "" if no word is left.

    >>> [without_tags(text) for text in ("Oh, [LAUGHTER] no [BREATHING].", "[LAUGHTER]", "[LAUGHTER]. Yes!")]
    ['Oh, no.', '', 'Yes!']
    """
    if not _TAG.search(text):
        return text
    text = _TAG.sub(lambda tag: tag["punctuation"] + " " if tag.start() else "", text)
    return " ".join(text.split()) if any(character.isalnum() for character in text) else ""


def parse_labels(text: str, name: str) -> LabelFile:
    """Reads a file of the folder EmoEvaluation.

    Args:
        text (`str`): The content of the file.
        name (`str`): The name of the file, for places such as "Ses01F_impro01.txt:3".

    Returns:
        `LabelFile`: Every line that starts with "[" is a turn or has a problem, and so has every other line with the
        name of a turn in it, except the header and the annotators' ratings. Ratings belong to the turn before them.
    """
    label_file = LabelFile()
    order = "V, A, D"
    ratings: list[Rating] | None = None  # of the turn; None where none has begun
    for row, line in _lines(text, name):
        rating = _RATING.fullmatch(line)
        if line.startswith("%"):
            header = _HEADER.fullmatch(line)
            order = header["order"] if header else order
        elif line.startswith("["):
            ratings = []
            _read_labels(line, row, order, ratings, label_file)
        elif rating and ratings is not None:
            valence, activation, dominance = (value.strip() for value in rating.group("val", "act", "dom"))
            ratings.append(Rating(row, rating["annotator"], activation, valence, dominance))
        elif _CATEGORIES.match(line):
            continue
        elif "Ses0" in line:
            ratings = []
            label_file.problems.append(CorpusProblem(row, "not a line of labels", _LIKE_LABELS, "", "line", line))
        else:
            ratings = None
            label_file.other_lines.append(row)
    return label_file


def _read_labels(line: str, row: str, order: str, ratings: list[Rating], label_file: LabelFile) -> None:
    """Adds the turn, or all that is wrong with the line."""
    match = _LABELS.fullmatch(line)
    values = [value.strip() for value in match["values"].split(",")] if match else []
    if match is None or len(values) != len(EMOTION_DIMENSIONS):
        label_file.problems.append(CorpusProblem(row, "not a line of labels", _LIKE_LABELS, "", "line", line))
        return
    turn = match["turn"]
    name = TURN.fullmatch(turn)
    labels = dict(zip(("valence", "activation", "dominance"), values, strict=True))
    problems = [
        CorpusProblem(row, "not a number", "", turn, dimension, value)
        for dimension, value in labels.items()
        if not _NUMBER.fullmatch(value)
    ]
    if name is None:
        detail = "turns are like 'Ses01F_impro01_F000', with F or M for who speaks"
        problems.append(CorpusProblem(row, "not the name of a turn", detail, turn, "turn", turn))
    if "".join(order.split()) != "V,A,D":
        detail = "the header of the file must say [V, A, D]"
        problems.append(CorpusProblem(row, "unknown order of labels", detail, turn, "header", order))
    if name is None or problems:
        label_file.problems += problems
    else:
        numbers = {dimension: float(value) for dimension, value in labels.items()}
        speaker = f"Ses0{name['session']}_{name['letter']}"
        label_file.turns.append(LabelledTurn(row, turn, name["dialogue"], speaker, **numbers, ratings=ratings))


def parse_transcriptions(text: str, name: str) -> TranscriptionFile:
    """Reads a file of the folder transcriptions.

    Args:
        text (`str`): The content of the file.
        name (`str`): The name of the file, for places such as "Ses01F_impro01.txt:3".

    Returns:
        `TranscriptionFile`: Every line that is not blank, as a transcript or as one of the other lines.
    """
    transcriptions = TranscriptionFile()
    for row, line in _lines(text, name):
        match = _TRANSCRIPTION.fullmatch(line)
        if match:
            transcriptions.texts.append((row, match["turn"], match["text"]))
        else:
            transcriptions.other_lines.append(row)
    return transcriptions


def _lines(text: str, name: str) -> Iterator[tuple[str, str]]:
    r"""The lines that are not blank, stripped, with their places; \n, \r\n and \r end a line."""
    for number, line in enumerate(io.StringIO(text, newline=None), start=1):
        if line.strip():
            yield f"{name}:{number}", line.strip()


def find_release(data_dir: str | os.PathLike[str] | None) -> Path:
    """The folder with Session1 to Session5, or some of them.

    Raises:
        FileNotFoundError: Neither `data_dir` nor IEMOCAP_full_release in it is such a folder.
        ValueError: `data_dir` is None.
    """
    if data_dir is None:
        raise ValueError(f"data_dir is None: pass the folder with Session1 to Session5. {SOURCE}")
    for folder in (Path(data_dir), unzipped(Path(data_dir)), unzipped(Path(data_dir) / _RELEASE)):
        if any((folder / f"Session{session}").is_dir() for session in SESSIONS):
            return folder
    packed = archive(Path(data_dir), {_RELEASE.casefold(), *(f"session{session}" for session in SESSIONS)})
    raise FileNotFoundError(
        f"data_dir is {str(data_dir)!r}, which is not a folder with Session1 to Session5, nor does it have one that is "
        f"named {_RELEASE}. " + (f"Unpack {packed.name}, which is there." if packed else SOURCE)
    )


def read_release(folder: Path) -> Release:
    """Reads all labels and transcripts, and finds the audio.

    Args:
        folder (`Path`): The folder with Session1 to Session5.
    """
    release = Release()
    version = hashlib.sha256()
    for session in SESSIONS:
        if not (folder / f"Session{session}").is_dir():
            release.incomplete.append(_missing(folder, f"Session{session}"))
            continue
        for path, name in _files(folder, f"Session{session}/dialog/EmoEvaluation", "Ses*.txt", release):
            version.update(content := path.read_bytes())
            _add_labels(_decoded(content, name, release), name, release)
        for path, name in _files(folder, f"Session{session}/dialog/transcriptions", "Ses*.txt", release):
            version.update(content := path.read_bytes())
            _add_transcriptions(_decoded(content, name, release), name, release)
        for _, name in _files(folder, f"Session{session}/sentences/wav", "*/*.wav", release):
            _add_sound(name, release)
    release.version = version.hexdigest()[:12]
    _compare(release)
    return release


def _files(folder: Path, place: str, pattern: str, release: Release) -> list[tuple[Path, str]]:
    """The files of a folder of the release, each with its path from there, except hidden ones (with a dot)."""
    inner = folder
    for part in place.split("/"):
        inner = unzipped(inner / part)
    candidates = sorted(inner.glob(pattern))
    paths = [path for path in candidates if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    if not paths:
        detail = f"no files {pattern}"
        problem = CorpusProblem(place, "empty folder", detail) if inner.is_dir() else _missing(folder, place, detail)
        release.incomplete.append(problem)
    return [(path, path.relative_to(folder).as_posix()) for path in paths]


def _missing(folder: Path, place: str, detail: str = "") -> CorpusProblem:
    """The problem that a folder of the release is missing, or still packed."""
    packed = archive((folder / place).parent, {PurePath(place).name.casefold()})
    return CorpusProblem(place, "missing folder", f"unzip {packed.name}, which is there" if packed else detail)


def _decoded(content: bytes, name: str, release: Release) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        pass
    try:
        text, encoding = content.decode("cp1252"), "Windows-1252"
    except UnicodeDecodeError:
        text, encoding = content.decode("latin-1"), "Latin-1"
    release.observe(f"text files that are not UTF-8, read as {encoding}", [name])
    return text


def _add_labels(text: str, name: str, release: Release) -> None:
    file = parse_labels(text, name)
    release.turns += file.turns
    release.problems += file.problems
    release.observe("lines of label files that are neither labels nor ratings", file.other_lines)
    if not file.turns and not file.problems:
        release.incomplete.append(CorpusProblem(name, "no labels", "the file has no line of labels"))


def _add_transcriptions(text: str, name: str, release: Release) -> None:
    file = parse_transcriptions(text, name)
    release.observe("transcription lines without a turn's name and times, not read", file.other_lines)
    for row, turn, transcript in file.texts:
        if turn in release.texts:
            release.observe("transcription lines of a turn that had one before, not read", [row])
        else:
            release.texts[turn] = transcript


def _add_sound(name: str, release: Release) -> None:
    turn = Path(name).stem
    if turn in release.sounds:
        release.observe("sound files of a turn that had one before, not read", [name])
    else:
        release.sounds[turn] = name


def _compare(release: Release) -> None:
    """Observes turns and sounds without a counterpart; a labelled turn without sound is left to the checks."""
    labelled = {turn.name for turn in release.turns} | {problem.id for problem in release.problems}
    release.observe(
        "transcribed turns without labels, not read", [turn for turn in release.texts if turn not in labelled]
    )
    release.observe(
        "labelled turns without a transcript in the release",
        [turn.row for turn in release.turns if turn.name not in release.texts],
    )
    release.observe(
        "sound files without labels, not read", [name for turn, name in release.sounds.items() if turn not in labelled]
    )


def _on_scale(release: Release, beyond_scale: str) -> list[LabelledTurn]:
    """Does what `beyond_scale` says about labels between the scale and `LABEL_LIMITS`."""
    if beyond_scale == "refuse":
        return release.turns
    minimum, maximum = LABEL_SCALE
    done = {"keep": "kept as published", "clip": "set to the end of the scale"}[beyond_scale]
    result = []
    for turn in release.turns:
        labels = {dimension: getattr(turn, dimension) for dimension in EMOTION_DIMENSIONS}
        beyond = {
            dimension: label
            for dimension, label in labels.items()
            if LABEL_LIMITS[0] <= label < minimum or maximum < label <= LABEL_LIMITS[1]
        }
        where = [f"{turn.row} ({dimension} {label:g})" for dimension, label in beyond.items()]
        release.observe(f"labels a little beyond the scale of {minimum:g} to {maximum:g}, {done}", where)
        if beyond_scale == "clip":
            turn = replace(turn, **{key: min(max(label, minimum), maximum) for key, label in beyond.items()})
        result.append(turn)
    return result


def _source_row(
    turn: LabelledTurn, release: Release, splits: Mapping[str, str], strip_tags: bool, annotators: bool
) -> SourceRow:
    expected = f"Session{turn.dialogue[4]}/sentences/wav/{turn.dialogue}/{turn.name}.wav"
    transcript = release.texts.get(turn.name, "")
    return SourceRow(
        row=turn.row,
        id=turn.name,
        audio=release.sounds.get(turn.name, expected),
        split=splits[turn.speaker],
        transcript=without_tags(transcript) if strip_tags else transcript,
        activation=turn.activation,
        valence=turn.valence,
        dominance=turn.dominance,
        speaker=turn.speaker,
        gender=turn.speaker[-1],
        ratings=[_rating_on_scale(rating, release) for rating in turn.ratings] if annotators else None,
    )


def _rating_on_scale(rating: Rating, release: Release) -> Rating:
    """The rating without values outside the scale; what is not a number is left to the checks."""
    minimum, maximum = LABEL_SCALE
    beyond = {}
    for dimension in EMOTION_DIMENSIONS:
        value = getattr(rating, dimension)
        if _NUMBER.fullmatch(value) and not minimum <= float(value) <= maximum:
            beyond[dimension] = ""
            release.observe(
                "ratings of single annotators outside the scale, left out", [f"{rating.row} ({dimension} {value})"]
            )
    return rating._replace(**beyond)


def _known_size(splits: Mapping[str, str], protocol: str) -> KnownSize:
    """The known sizes, by split if splits are sessions; those of individual speakers are not known."""
    utterances = {}
    if protocol == "leave-one-session-out":
        utterances = {
            split: sum(size for session, size in SESSION_SIZES.items() if splits[f"Ses0{session}_F"] == split)
            for split in SPLITS
        }
    return KnownSize("IEMOCAP", utterances, total=sum(SESSION_SIZES.values()), hours=12)


def _check_choice(setting: str, value: str, choices: Collection[str]) -> None:
    if value not in choices:
        listed = ", ".join(map(repr, choices))
        raise ValueError(f"{setting} is {value!r}, but must be one of {listed}.{did_you_mean(value, choices)}")
