"""`crema-d`: CREMA-D, actors who say twelve sentences in six emotions, from your own copy.

CREMA-D (Cao et al. 2014, doi:10.1109/TAFFC.2014.2336244) is published on GitHub, CheyneyComputerScience/CREMA-D, under
the Open Database License 1.0 and its contents under the Database Contents License 1.0. Nothing of it comes with this
package. `data_dir` is the folder of a copy, of which are read:

```
AudioWAV/1001_DFA_ANG_XX.wav            the clips; or another folder of sound files, such as AudioMP3
processedResults/tabulatedVotes.csv     the votes of those who rated them; or the file beside the folder
VideoDemographics.csv                   who the actors are
README.md                               the twelve sentences; or the file that the setting `sentences` names
```

- **Labels are derived**: nobody rated activation, valence or dominance. About nine people heard each clip without its
  picture, chose one of six categories, and said how intense the emotion was, from 0 to 100. Each vote is taken for the
  point that Russell and Mehrabian (1977, "Evidence for a three-factor theory of emotions", Journal of Research in
  Personality 11, 273-294) measured for the word, drawn towards the neutral point by the intensity; a label is the mean
  of its votes' points. With n(e) votes for category e and their mean intensity m(e), which is what is published:

      label = sum over e of n(e) * m(e) / 100 * point(e)  /  sum over e of n(e)

  | category | activation | valence | dominance |
  |---|---|---|---|
  | anger ("angry") | .59 | -.51 | .25 |
  | disgust ("disgusted") | .35 | -.60 | .11 |
  | fear ("fearful") | .60 | -.64 | -.43 |
  | happiness ("happy") | .51 | .81 | .46 |
  | neutral | 0 | 0 | 0 |
  | sadness ("sad") | -.27 | -.63 | -.33 |

  The neutral voice is not one of their words: it is the middle of their scales, by definition.
- **Scale**: -1 to 1, that of the table.
- **Spread of the votes**: the columns `activation_std`, `valence_std` and `dominance_std` hold the sample standard
  deviation (divisor: the number of votes minus one) of the votes' points, on the scale of the labels; NaN if there is
  one vote only. It is a lower bound, since votes for one category count with the same intensity, their mean.
  `num_ratings` is the number of votes.
- **Speakers** are the 91 actors, `1001` to `1091`. They are split once for all, 61 for train, 15 for validation and 15
  for test: see `VALIDATION_ACTORS` and `TEST_ACTORS`. Those two have seven women and eight men each, drawn within
  strata of race and age.
- **Who the actors are**: the columns `age` (in years), `race` and `ethnicity`, as published, beside `gender`.
- **Transcripts** are the sentence of the clip. The same twelve are said in all emotions, so that the words tell hardly
  anything about the labels (a little, since an emotion is heard otherwise in one sentence than in another): a teacher
  that reads must not be better than one that does not.
- **Names** are actor, sentence, emotion and level: `1001_DFA_ANG_XX`. One is odd: the clip `1040_ITH_SAD_X` has the
  votes of `1040_ITH_SAD_XX`. A level X is read as XX, and the report names each.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from datasets import Features, Value

from cmkd.corpora import Preference
from cmkd.corpora.building import build_corpus
from cmkd.corpora.checks import SourceRow
from cmkd.corpora.folders import unzipped
from cmkd.corpora.known_sizes import KnownSize
from cmkd.corpora.manifest import READERS
from cmkd.corpora.report import CorpusProblem, CorpusReport
from cmkd.corpora.schema import Corpus, StreamedCorpus
from cmkd.corpora.transcripts import join_transcripts
from configuration_cmkd import EMOTION_DIMENSIONS

LABEL_SCALE = (-1.0, 1.0)

POINTS: dict[str, dict[str, float]] = {
    "A": {"activation": 0.59, "valence": -0.51, "dominance": 0.25},
    "D": {"activation": 0.35, "valence": -0.60, "dominance": 0.11},
    "F": {"activation": 0.60, "valence": -0.64, "dominance": -0.43},
    "H": {"activation": 0.51, "valence": 0.81, "dominance": 0.46},
    "N": {"activation": 0.0, "valence": 0.0, "dominance": 0.0},
    "S": {"activation": -0.27, "valence": -0.63, "dominance": -0.33},
}
"""The points of the categories after Russell and Mehrabian (1977), by the letter of the category's votes."""

INTENSITIES = {
    "A": "meanAngerResp",
    "D": "meanDisgustResp",
    "F": "meanFearResp",
    "H": "meanHappyResp",
    "N": "meanNeutralResp",
    "S": "meanSadResp",
}
"""The columns with the mean intensity of a category's votes, 0 to 100; -1 where it has none."""

ACTORS = tuple(str(number) for number in range(1001, 1092))
"""The actors, by their numbers."""

# Drawn once for all: of each sex, sorted by race and age and cut into as many blocks as a split has places, two of each
# block at random.
VALIDATION_ACTORS = frozenset(
    map(str, (1004, 1023, 1030, 1038, 1046, 1052, 1055, 1062, 1064, 1065, 1069, 1078, 1085, 1090, 1091))
)
"""Seven women and eight men."""

TEST_ACTORS = frozenset(
    map(str, (1001, 1009, 1013, 1016, 1021, 1022, 1026, 1028, 1032, 1039, 1047, 1063, 1070, 1071, 1075))
)
"""Seven women and eight men."""

FURTHER_FEATURES = Features(
    {
        **{f"{dimension}_std": Value("float32") for dimension in EMOTION_DIMENSIONS},
        "num_ratings": Value("float32"),
        "age": Value("int32"),
        "race": Value("string"),
        "ethnicity": Value("string"),
    }
)
"""The columns that this corpus has besides those of every other one; the module's documentation describes them."""

SENTENCES = ("DFA", "IEO", "IOM", "ITH", "ITS", "IWL", "IWW", "MTI", "TAI", "TIE", "TSI", "WSI")
"""The sentences, by the letters in the names of the clips."""

CLIP = re.compile(
    rf"(?P<actor>\d{{4}})_(?P<sentence>{'|'.join(SENTENCES)})_(?P<emotion>ANG|DIS|FEA|HAP|NEU|SAD)_(?P<level>LO|MD|HI|XX?)",
    re.ASCII,
)
"""The name of a clip: who speaks, what is said, in which emotion and at which level of it (XX: not specified)."""

VOTES = "tabulatedVotes.csv"
DEMOGRAPHICS = "VideoDemographics.csv"
SOURCE = "CREMA-D is the repository CheyneyComputerScience/CREMA-D on GitHub (Open Database License 1.0)."

KNOWN_SIZE = KnownSize("CREMA-D", {"train": 4988, "validation": 1230, "test": 1224}, hours=5.26)

_SOUND_FILES = frozenset({".wav", ".mp3", ".opus", ".ogg", ".flac", ".m4a"})
_SENTENCE = re.compile(r"\W*(?P<text>\w.*?)\s*\((?P<sentence>[A-Z]{3})\)\W*")
_VOICE_ONLY = "1"  # the first digit of a row of votes; 2: the face only, 3: both
_LFS = b"version https://git-lfs"


@dataclass(frozen=True)
class Votes:
    """What those who only heard a clip voted.

    Attributes:
        row (`str`): Where they stand, file and line.
        clip (`str`): The name of the clip, with the level XX for X.
        counts (`dict[str, int]`): The number of votes by category; at least one category has some.
        intensities (`dict[str, float]`): The mean intensity, 0 to 1, of each category that has votes.
    """

    row: str
    clip: str
    counts: Mapping[str, int]
    intensities: Mapping[str, float]

    def label(self, dimension: str) -> float:
        """The mean of the votes' points in a dimension, -1 to 1."""
        total = sum(self.counts.values())
        return math.fsum(self.counts[key] * self._point(key, dimension) for key in self.intensities) / total

    def spread(self, dimension: str) -> float:
        """The sample standard deviation of the votes' points in a dimension; NaN for a single vote."""
        total = sum(self.counts.values())
        if total < 2:
            return math.nan
        mean = self.label(dimension)
        squares = (self.counts[key] * (self._point(key, dimension) - mean) ** 2 for key in self.intensities)
        return math.sqrt(math.fsum(squares) / (total - 1))

    def _point(self, category: str, dimension: str) -> float:
        return self.intensities[category] * POINTS[category][dimension]


@dataclass(frozen=True)
class Actor:
    """An actor as VideoDemographics.csv describes them; "" and None stand for what it does not say."""

    age: int | None
    sex: str
    race: str
    ethnicity: str


def build(
    data_dir: str | os.PathLike[str] | None,
    on_error: str,
    *,
    audio_dir: str | None = None,
    sentences: str | os.PathLike[str] | None = None,
    transcripts: str | os.PathLike[str] | None = None,
    prefer_transcripts: Preference = "manual",
    num_proc: int | None = None,
    streaming: bool = False,
) -> Corpus | StreamedCorpus:
    """Builds CREMA-D as the module's documentation describes, or takes it from the cache.

    Args:
        data_dir (path): The folder of a copy of CREMA-D.
        on_error (`str`): See `load_corpus`. Clips without votes and votes without a clip are problems too.
        audio_dir (`str`, *optional*): The folder in `data_dir` that has the clips. By default AudioWAV, or else the
            only folder whose name starts with "Audio".
        sentences (path, *optional*): A text file with a line for each of the twelve sentences, the words and then the
            letters of the clips' names in parentheses, such as "Words of the clip (DFA)". By default README.md in
            `data_dir`, where the published one has such a list. Without either there are no transcripts.
        transcripts (path, *optional*): The file that `cmkd transcribe` wrote, for clips without a sentence.
        prefer_transcripts (`str`, *optional*, defaults to `"manual"`): Which transcript counts where a clip has a
            sentence and one of the file `transcripts`: "manual" the sentence, "asr" the file's.
        num_proc (`int`, *optional*): Processes that write the cache; by default this one does.
        streaming (`bool`, *optional*, defaults to `False`): Whether to read sound only as its row comes, as a
            `StreamedCorpus`, without a cache. Training and scoring need `False`.

    Raises:
        FileNotFoundError: There is no such folder, or it lacks the votes, the demographics or the clips.
        CorpusError: Rows have problems and `on_error` is "raise", or nothing usable is left.
        ValueError: A setting is not valid, or several folders may hold the clips.
    """
    folder = _find_copy(data_dir)
    audio_folder = _find_audio(folder, audio_dir)
    tables = {VOTES: _find_table(folder, VOTES, "processedResults"), DEMOGRAPHICS: _find_table(folder, DEMOGRAPHICS)}
    contents = {name: _read_bytes(path) for name, path in tables.items()}
    said, sentences_file = _read_sentences(folder, sentences)
    report = CorpusReport(
        name="crema-d",
        release=hashlib.sha256(b"".join(contents.values())).hexdigest()[:12],
        label_scale=LABEL_SCALE,
        config={"data_dir": str(folder.absolute()), "audio_dir": audio_folder.name},
        notes=[
            "activation, valence and dominance are derived from votes for categories of emotion by people who only "
            "heard the voice (Russell and Mehrabian 1977): nobody rated them",
            "CREMA-D (Cao et al. 2014): Open Database License 1.0, contents under the Database Contents License 1.0",
            f"audio in {audio_folder.name}",
            f"sentences in {sentences_file.name}" if sentences_file else "no list of sentences: see setting sentences",
        ],
    )
    actors = _read_actors(contents[DEMOGRAPHICS], report)
    votes = _read_votes(contents[VOTES], report)
    sounds = _find_sounds(audio_folder, folder, report)
    report.problems += [
        CorpusProblem(path, "no votes", f"{VOTES} has no row of those who only heard it", id=clip)
        for clip, path in sounds.items()
        if clip not in votes
    ]
    rows = []
    for clip, of_clip in votes.items():
        actor = clip[:4]
        if actor not in actors:
            detail = f"{DEMOGRAPHICS} does not have the actor"
            report.problems.append(CorpusProblem(of_clip.row, "unknown actor", detail, clip, "ActorID", actor))
            continue
        expected = f"{audio_folder.name}/{clip}.wav"
        rows.append(_source_row(of_clip, sounds.get(clip, expected), actors[actor], said))
    if said and (unsaid := {row.id[5:8] for row in rows if not row.transcript}):
        report.notes.append(f"sentences that the list does not have: {', '.join(sorted(unsaid))}")
    rows = join_transcripts(rows, transcripts, prefer_transcripts, report)
    return build_corpus(
        rows,
        report,
        on_error,
        folder,
        further=FURTHER_FEATURES,
        known_size=KNOWN_SIZE,
        num_proc=num_proc,
        streaming=streaming,
    )


def split_of(actor: str) -> str:
    """The split of an actor.

    >>> [split_of(actor) for actor in ("1001", "1002", "1004")]
    ['test', 'train', 'validation']
    """
    return "test" if actor in TEST_ACTORS else "validation" if actor in VALIDATION_ACTORS else "train"


def _source_row(votes: Votes, audio: str, actor: Actor, said: Mapping[str, str]) -> SourceRow:
    speaker = votes.clip[:4]
    return SourceRow(
        row=votes.row,
        id=votes.clip,
        audio=audio,
        split=split_of(speaker),
        transcript=said.get(votes.clip[5:8], ""),
        activation=votes.label("activation"),
        valence=votes.label("valence"),
        dominance=votes.label("dominance"),
        speaker=speaker,
        gender=actor.sex,
        further={
            **{f"{dimension}_std": votes.spread(dimension) for dimension in EMOTION_DIMENSIONS},
            "num_ratings": float(sum(votes.counts.values())),
            "age": actor.age,
            "race": actor.race,
            "ethnicity": actor.ethnicity,
        },
    )


def _find_copy(data_dir: str | os.PathLike[str] | None) -> Path:
    if data_dir is None:
        raise ValueError(f"data_dir is None: pass the folder of a copy of CREMA-D. {SOURCE}")
    folder = unzipped(Path(data_dir))
    if not folder.is_dir():
        raise FileNotFoundError(f"data_dir is {str(data_dir)!r}, but there is no such folder. {SOURCE}")
    return folder


def _find_audio(folder: Path, audio_dir: str | None) -> Path:
    if audio_dir is not None:
        if not (folder / audio_dir).is_dir() or (folder / audio_dir).parent != folder:
            raise FileNotFoundError(f"audio_dir is {audio_dir!r}, but {str(folder)!r} has no folder of this name.")
        return folder / audio_dir
    if (folder / "AudioWAV").is_dir():
        return folder / "AudioWAV"
    candidates = [path for path in sorted(folder.iterdir()) if path.is_dir() and path.name.startswith("Audio")]
    if not candidates:
        raise FileNotFoundError(
            f"data_dir {str(folder)!r} has no folder AudioWAV, nor another whose name starts with 'Audio': name "
            f"the one that has the clips with audio_dir. {SOURCE}"
        )
    if len(candidates) > 1:
        names = ", ".join(path.name for path in candidates)
        raise ValueError(f"data_dir {str(folder)!r} has {names}: say with audio_dir which has the clips.")
    return candidates[0]


def _find_table(folder: Path, name: str, *inner: str) -> Path:
    candidates = [folder / part / name for part in (*inner, "")]
    for path in candidates:
        if path.is_file():
            return path
    where = " or ".join(repr(path.relative_to(folder).as_posix()) for path in candidates)
    raise FileNotFoundError(f"data_dir {str(folder)!r} has no file {where}. {SOURCE}")


def _read_bytes(path: Path) -> bytes:
    content = path.read_bytes()
    if content.startswith(_LFS):
        raise ValueError(f"{str(path)!r} only says where Git LFS has the file: call git lfs pull in its folder.")
    return content


def _read_sentences(folder: Path, setting: str | os.PathLike[str] | None) -> tuple[dict[str, str], Path | None]:
    """The sentences by their letters, and the file that they are in; none if README.md does not list them.

    Raises:
        FileNotFoundError: There is no file of the name that the setting gives.
        ValueError: That file lists no sentence, or two for the same letters.
    """
    path = folder / "README.md" if setting is None else Path(setting)
    if setting is not None and not path.is_file():
        raise FileNotFoundError(f"sentences is {str(setting)!r}, but there is no such file.")
    said: dict[str, str] = {}
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    for number, line in enumerate(lines, start=1):
        match = _SENTENCE.fullmatch(line)
        if match and match["sentence"] in SENTENCES:
            first = said.setdefault(match["sentence"], match["text"])
            if first != match["text"]:
                raise ValueError(
                    f"{path}:{number} says {match['text']!r} for {match['sentence']}, but a line before it {first!r}: "
                    "leave one of them."
                )
    if setting is not None and not said:
        raise ValueError(
            f'sentences is {str(setting)!r}, but none of its {len(lines)} lines is like "Words of the clip (DFA)".'
        )
    return said, path if said else None


def _read_actors(content: bytes, report: CorpusReport) -> dict[str, Actor]:
    actors = {}
    for row, values in _table(content, DEMOGRAPHICS, ("ActorID", "Age", "Sex", "Race", "Ethnicity"), report):
        number, age = values["ActorID"].strip(), values["Age"].strip()
        if number not in ACTORS:
            detail = f"the actors are {ACTORS[0]} to {ACTORS[-1]}"
            report.problems.append(CorpusProblem(row, "unknown actor", detail, "", "ActorID", number))
        elif number in actors:
            report.problems.append(CorpusProblem(row, "duplicate actor", "", "", "ActorID", number))
        elif age and not re.fullmatch(r"\d{1,3}", age, re.ASCII):
            report.problems.append(CorpusProblem(row, "not a number", "", "", "Age", age))
        else:
            sex, race, ethnicity = (values[column].strip() for column in ("Sex", "Race", "Ethnicity"))
            actors[number] = Actor(int(age) if age else None, sex, race, ethnicity)
    return actors


def _read_votes(content: bytes, report: CorpusReport) -> dict[str, Votes]:
    """The votes of those who only heard the clips, by the name of the clip; all that is wrong goes to the report."""
    columns = ("", *INTENSITIES, "fileName", "numResponses", *INTENSITIES.values())
    votes: dict[str, Votes] = {}
    for row, values in _table(content, VOTES, columns, report):
        if not values[""].strip().startswith(_VOICE_ONLY):
            continue
        name = values["fileName"].strip()
        match = CLIP.fullmatch(name)
        problems = [] if match else [_not_a_clip(row, name, "fileName")]
        problems += _wrong_votes(row, name, values)
        clip = _full_name(name)
        if not problems and clip in votes:
            problems = [CorpusProblem(row, "duplicate id", f"also in {votes[clip].row}", clip, "fileName", name)]
        if problems:
            report.problems += problems
            continue
        counts = {key: int(values[key]) for key in INTENSITIES}
        intensities = {key: float(values[INTENSITIES[key]]) / 100 for key, count in counts.items() if count}
        votes[clip] = Votes(row, clip, counts, intensities)
    return votes


def _wrong_votes(row: str, clip: str, values: Mapping[str, str]) -> Iterator[CorpusProblem]:
    counts = {key: values[key].strip() for key in (*INTENSITIES, "numResponses")}
    wrong = [(key, value) for key, value in counts.items() if not re.fullmatch(r"\d+", value, re.ASCII)]
    for key, value in wrong:
        yield CorpusProblem(row, "not a number", "votes are counted", clip, key, value)
    if wrong:
        return
    total = sum(int(counts[key]) for key in INTENSITIES)
    if total != int(counts["numResponses"]) or total == 0:
        detail = f"the six categories have {total} together"
        yield CorpusProblem(row, "votes do not add up", detail, clip, "numResponses", counts["numResponses"])
    for key, column in INTENSITIES.items():
        try:
            intensity = float(values[column])
        except ValueError:
            yield CorpusProblem(row, "not a number", "", clip, column, values[column])
            continue
        if int(counts[key]) and not 0 <= intensity <= 100:
            detail = f"the intensity of the votes for {key}, which is from 0 to 100"
            yield CorpusProblem(row, "outside the scale", detail, clip, column, values[column])


def _find_sounds(audio_folder: Path, folder: Path, report: CorpusReport) -> dict[str, str]:
    """Paths of the clips, relative to the folder of the copy, by the name of the clip."""
    files = [
        path
        for path in sorted(audio_folder.iterdir())
        if path.suffix.lower() in _SOUND_FILES and not path.name.startswith(".")
    ]
    if not files:
        raise FileNotFoundError(
            f"{str(audio_folder)!r} has no sound files ({', '.join(sorted(_SOUND_FILES))}). {SOURCE}"
        )
    with files[0].open("rb") as file:
        if file.read(len(_LFS)) == _LFS:
            raise ValueError(
                f"{str(files[0])!r} only says where Git LFS has the clip: call git lfs pull in its folder."
            )
    sounds: dict[str, str] = {}
    odd = []
    for path in files:
        place, clip = path.relative_to(folder).as_posix(), _full_name(path.stem)
        match = CLIP.fullmatch(path.stem)
        if match is None:
            report.problems.append(_not_a_clip(place, path.stem, "file"))
        elif match["actor"] not in ACTORS:
            detail = f"the actors are {ACTORS[0]} to {ACTORS[-1]}"
            report.problems.append(CorpusProblem(place, "unknown actor", detail, clip, "file", path.name))
        elif clip in sounds:
            report.problems.append(
                CorpusProblem(place, "two files of this name", sounds[clip], clip, "file", path.name)
            )
        else:
            sounds[clip] = place
            if clip != path.stem:
                odd.append(path.name)
    if odd:
        report.notes.append(f"clips whose level X is read as XX: {len(odd)}, {', '.join(odd[:5])}")
    return sounds


def _table(
    content: bytes, name: str, columns: tuple[str, ...], report: CorpusReport
) -> list[tuple[str, dict[str, str]]]:
    given, rows = READERS[".csv"](content, name, report)
    missing = [column for column in columns if column not in given]
    if missing:
        detail = f"no {', '.join(map(repr, missing))} among {', '.join(map(repr, given)) or 'no columns at all'}"
        report.refuse(CorpusProblem(name, "not CREMA-D's columns", detail), SOURCE)
    return rows


def _not_a_clip(row: str, name: str, field: str) -> CorpusProblem:
    return CorpusProblem(row, "not the name of a clip", "clips are like 1001_DFA_ANG_XX", "", field, name)


def _full_name(name: str) -> str:
    """The name of a clip with XX for a level X.

    >>> _full_name("1040_ITH_SAD_X"), _full_name("1040_ITH_SAD_HI")
    ('1040_ITH_SAD_XX', '1040_ITH_SAD_HI')
    """
    return f"{name}X" if name.endswith("_X") else name
