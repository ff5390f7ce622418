"""`spoken-emobank`: SpokenEmoBank, EmoBank's sentences spoken by a synthesiser. An open benchmark, in synthetic speech.

EmoBank (Buechel and Hahn 2017) holds 10,062 sentences with ratings by people. It is one file, corpus/emobank.csv in
the repository JULIELab/EmoBank on GitHub, with the columns id, split (train, dev, test), V, A, D (1 to 5, readers and
writers averaged) and text. `data_dir` is that file or its folder.

- **Valence** is the sentence's rating V as it stands, and it is in the words only: voice and prosody are independent of
  it. A and D of EmoBank are ratings of the words too, and are not read.
- **Activation and dominance** are acted (`cmkd.corpora.acted_speech` has the mapping and all noise): drawn for each
  utterance, expressed by rate, pitch, pitch range and volume, and rated with noise. The words say nothing about them.
- **Scale**: 1 to 5 in all three dimensions.
- **Voices**: `voices` says who speaks. "espeak" is espeak-ng, as the demo; recognisers get half of its words wrong.
  "kokoro" is Kokoro-82M, whose words they get as well as people's; it is heard neutral first, and acted on by WORLD
  (`cmkd.corpora.expression` has the mapping). Ratings and splits do not depend on who speaks.
- **Splits** are EmoBank's own; dev is called validation. The speakers of train (24 of espeak-ng, 20 of Kokoro) are not
  those of validation (4) and test (4). Those of espeak-ng are also new to the demo's speech encoder. A few sentences
  occur in more than one of EmoBank's splits, such as salutations; they are left where EmoBank has them, and the report
  has a note of their number.
- **Length**: sentences of `min_words` to `max_words` words. A word is a run of letters and digits, with single
  apostrophes, hyphens, dots or commas inside ("don't", "well-known", "U.S", "1,900"). 5,660 sentences have 3 to 16:
  4,570 in train, 566 in validation, 524 in test. Those without any word, such as '"', are left out whatever the length.
- **Identity**: an utterance depends on `seed`, on the sentence's id and on the number of the rendering, and on nothing
  else, so that other lengths or a cap change which utterances there are, but none of them.

Licences: EmoBank is CC-BY-SA 4.0, and so is what is derived from it: attribute it (Sven Buechel and Udo Hahn, "EmoBank:
Studying the Impact of Annotation Perspective and Representation Format on Dimensional Emotion Analysis", EACL 2017),
and pass this corpus on, in whole or in part, under the same licence only. The speech is made by espeak-ng, which is
GPL-3.0 and comes with the optional extra `cmkd[demo]`, or by Kokoro-82M, which is Apache-2.0 and comes with
`cmkd[kokoro]`, where espeak-ng turns letters into sounds.
"""

from __future__ import annotations

import hashlib
import math
import os
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from datasets import concatenate_datasets

from cmkd.corpora import Preference
from cmkd.corpora.acted_speech import SPLIT_VOICES, ActedUtterance, perform, spoken_corpus
from cmkd.corpora.intelligibility import described, word_errors_by
from cmkd.corpora.manifest import READERS
from cmkd.corpora.performed_speech import performed_corpus
from cmkd.corpora.report import CorpusError, CorpusProblem, CorpusReport
from cmkd.corpora.schema import Corpus, normalise_split
from cmkd.corpora.speech_synthesis import Voice
from cmkd.corpora.synthesisers import Espeak, Kokoro
from cmkd.corpora.transcripts import read_transcripts, replace_transcripts
from cmkd.spelling import did_you_mean

LABEL_SCALE = (1.0, 5.0)
COLUMNS = ("id", "split", "V", "text")

WORD = re.compile(r"[^\W_]+(?:['’.,-][^\W_]+)*")
"""A word of a sentence; what the synthesiser makes of it may be several, as for "1,900"."""

SPEAKERS: dict[str, type[Espeak] | type[Kokoro]] = {"espeak": Espeak, "kokoro": Kokoro}
"""Who can speak this corpus: a synthesiser needs voices for all three splits."""

SOURCE = "EmoBank is the file corpus/emobank.csv of the repository JULIELab/EmoBank on GitHub (CC-BY-SA 4.0)."


@dataclass(frozen=True)
class Sentence:
    """A row of EmoBank."""

    id: str
    split: str
    valence: float
    text: str

    @property
    def words(self) -> list[str]:
        return WORD.findall(self.text)


def build(
    data_dir: str | os.PathLike[str] | None,
    on_error: str,
    *,
    min_words: int = 3,
    max_words: int = 16,
    max_utterances: int | None = None,
    only_split: str | None = None,
    renderings: int = 1,
    label_noise: float = 0.35,
    seed: int = 0,
    voices: str = "espeak",
    models_dir: str | os.PathLike[str] | None = None,
    speech_dir: str | os.PathLike[str] | None = None,
    num_proc: int = 2,
    transcripts: str | os.PathLike[str] | None = None,
    prefer_transcripts: Preference = "manual",
) -> Corpus:
    """Speaks EmoBank as the module's documentation describes, or takes it from the cache.

    Args:
        data_dir (path): emobank.csv, or the folder that it is in.
        on_error (`str`): See `load_corpus`.
        min_words (`int`, *optional*, defaults to 3): Shorter sentences are left out.
        max_words (`int`, *optional*, defaults to 16): Longer sentences are left out.
        max_utterances (`int`, *optional*): The most utterances of each split. Which are taken is drawn by `seed`; a
            larger number adds to those of a smaller one.
        only_split (`str`, *optional*): "train", "validation" or "test", to have that split alone, such as test for a
            model that was trained elsewhere. By default all three.
        renderings (`int`, *optional*, defaults to 1): How many times each training sentence is spoken, by speakers and
            with levels of activation and dominance of their own. Validation and test have one rendering whatever the
            number, so that results stay comparable.
        label_noise (`float`, *optional*, defaults to 0.35): The rater's noise in activation and dominance, in standard
            deviations of the noise-free ratings. Valence gets none: it has that of EmoBank's raters.
        seed (`int`, *optional*, defaults to 0): Seed of speakers, prosody and noise, and of what `max_utterances`
            takes.
        voices (`str`, *optional*, defaults to `"espeak"`): The synthesiser, "espeak" or "kokoro".
        models_dir (path, *optional*): The folder of Kokoro's files, `kokoro-v1.0*.onnx` and `voices-v1.0.bin`. By
            default they come from the Hub.
        speech_dir (path, *optional*): The folder in which Kokoro's speech is kept before it is acted on, about 100 MB
            an hour. By default it is in the cache of datasets.
        num_proc (`int`, *optional*, defaults to 2): Processes that speak; what is spoken does not depend on it.
        transcripts (path, *optional*): The file that `cmkd transcribe` wrote for this corpus.
        prefer_transcripts (`str`, *optional*, defaults to `"manual"`): Which transcript counts: "manual" the
            sentence that was spoken, "asr" that of the file `transcripts`. With such a file, the report has its word
            error rate, by speaker and by acting.

    Raises:
        FileNotFoundError: There is no emobank.csv, no such file of transcripts, or Kokoro's files are not in
            `models_dir`.
        CorpusError: Rows have problems and `on_error` is "raise", or the file as a whole cannot be used.
        ValueError: A setting is out of its range.
        ImportError: The synthesiser is not installed.
    """
    split_voices = _check_voices(voices, models_dir, speech_dir)
    _check_settings(min_words, max_words, max_utterances, renderings, label_noise)
    if only_split is not None and only_split not in split_voices:
        listed = ", ".join(map(repr, split_voices))
        raise ValueError(
            f"only_split is {only_split!r}, but must be one of {listed}.{did_you_mean(only_split, split_voices)}"
        )
    path = _find(data_dir)
    content = path.read_bytes()
    report = CorpusReport(
        name="spoken-emobank",
        release="",  # spoken_corpus makes it
        label_scale=LABEL_SCALE,
        config={
            "emobank_sha256": hashlib.sha256(content).hexdigest(),
            "min_words": min_words,
            "max_words": max_words,
            "max_utterances": max_utterances,
            "renderings": renderings,
            "label_noise": label_noise,
            "seed": seed,
            "voices": voices,
        }
        | ({} if only_split is None else {"only_split": only_split}),
        notes=[
            f"synthetic speech ({SPEAKERS[voices].licence}) of EmoBank's sentences; activation and dominance are acted",
            "derived from EmoBank (Buechel and Hahn 2017), CC-BY-SA 4.0: attribute it, share it under the same licence",
        ],
    )
    sentences = _read(content, path.name, report)
    if report.problems and on_error == "raise":
        raise CorpusError(report, 'Correct these rows, or pass on_error="skip" to leave them out and count them.')
    skipped = Counter({problem.row: problem.reason for problem in reversed(report.problems)}.values())

    splits: dict[str, list[ActedUtterance]] = {split: [] for split in SPLIT_VOICES}
    kept = []
    for sentence in sentences:
        reason = _reason_to_leave_out(len(sentence.words), min_words, max_words)
        if reason:
            skipped[reason] += 1
            continue
        kept.append(sentence)
        for rendering in range(renderings if sentence.split == "train" else 1):
            id = sentence.id if rendering == 0 else f"{sentence.id}-r{rendering + 1}"
            utterance = perform(
                id,
                sentence.text,
                sentence.valence,
                sentence.split,
                label_scale=LABEL_SCALE,
                label_noise=label_noise,
                rng=random.Random(f"{seed}/{id}"),
            )
            if voices != "espeak":  # drawn apart, so that nothing else depends on who speaks
                voice = random.Random(f"{seed}/{id}").choice(split_voices[sentence.split])
                utterance = replace(utterance, voice=voice)
            splits[sentence.split].append(utterance)
    if not kept:
        problem = CorpusProblem(path.name, "no sentences", f"none has {min_words} to {max_words} words")
        report.refuse(problem, f"Allow other lengths. {SOURCE}")
    if max_utterances is not None:
        for split, utterances in splits.items():
            drawn = random.Random(f"{seed}/{split}").sample(range(len(utterances)), len(utterances))[:max_utterances]
            splits[split] = [utterances[index] for index in sorted(drawn)]
            skipped["beyond max_utterances"] += len(utterances) - len(drawn)
    if only_split is not None:
        skipped["of another split"] += sum(len(of_split) for split, of_split in splits.items() if split != only_split)
        splits = {only_split: splits[only_split]}
        if not splits[only_split]:
            problem = CorpusProblem(path.name, "no sentences", f"none in the split {only_split}")
            report.refuse(problem, f"Take another split. {SOURCE}")
    report.skipped = {reason: number for reason, number in skipped.most_common() if number}
    in_two_splits = _number_in_two_splits(kept)
    if in_two_splits:
        report.notes.append(f"sentences that EmoBank has in more than one split: {in_two_splits}")
    if voices == "espeak":
        corpus = spoken_corpus(splits, report, num_proc)
    else:
        corpus = performed_corpus(
            splits, report, voices=voices, models_dir=models_dir, speech_dir=speech_dir, num_proc=num_proc
        )
    result = replace_transcripts(corpus, transcripts, prefer_transcripts)
    if transcripts is not None:
        report.notes += _understood(corpus, transcripts)
    return result


def read_sentences(
    data_dir: str | os.PathLike[str], split: str, min_words: int = 3, max_words: int = 16
) -> list[Sentence]:
    """The sentences of a split of EmoBank, as they stand and unspoken.

    Args:
        data_dir (path): emobank.csv, or the folder that it is in.
        split (`str`): "train", "validation" or "test".
        min_words, max_words (`int`, *optional*, default to 3 and 16): Sentences of other lengths are left out.

    Raises:
        FileNotFoundError: There is no emobank.csv.
        CorpusError: Rows have problems, or the file as a whole cannot be used.
    """
    path = _find(data_dir)
    report = CorpusReport(name="spoken-emobank", release="", label_scale=LABEL_SCALE, config={})
    sentences = _read(path.read_bytes(), path.name, report)
    if report.problems:
        raise CorpusError(report, f"Correct these rows. {SOURCE}")
    return [
        sentence
        for sentence in sentences
        if sentence.split == split and not _reason_to_leave_out(len(sentence.words), min_words, max_words)
    ]


def _understood(corpus: Corpus, transcripts: str | os.PathLike[str]) -> list[str]:
    """Notes that say how many of the true words the recogniser of a file of transcripts got wrong."""
    table = read_transcripts(transcripts)
    heard = dict(zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True))
    try:
        errors = word_errors_by(concatenate_datasets(list(corpus.values())), heard)
    except ImportError as error:
        return [f"no word error rate of the transcripts: {error}"]
    return described(errors, ", ".join(sorted(set(table["model"].to_pylist()))))


def _check_voices(
    voices: str, models_dir: str | os.PathLike[str] | None, speech_dir: str | os.PathLike[str] | None
) -> Mapping[str, Sequence[Voice]]:
    """The voices of each split."""
    if voices not in SPEAKERS:
        listed = ", ".join(map(repr, SPEAKERS))
        raise ValueError(f"voices is {voices!r}, but must be one of {listed}.{did_you_mean(voices, SPEAKERS)}")
    if voices == "espeak":
        for name, value in (("models_dir", models_dir), ("speech_dir", speech_dir)):
            if value is not None:
                raise ValueError(f"{name} is {str(value)!r}, but is for voices: kokoro only; voices is 'espeak'.")
    return SPEAKERS[voices].split_voices


def _check_settings(
    min_words: int, max_words: int, max_utterances: int | None, renderings: int, label_noise: float
) -> None:
    if not 1 <= min_words <= max_words:
        raise ValueError(
            f"min_words is {min_words} and max_words {max_words}, but must be at least 1 and at least min_words."
        )
    if max_utterances is not None and max_utterances < 1:
        raise ValueError(f"max_utterances is {max_utterances}, but must be at least 1, or None for all.")
    if renderings < 1:
        raise ValueError(f"renderings is {renderings}, but must be at least 1.")
    if label_noise < 0:
        raise ValueError(f"label_noise is {label_noise}, but must be at least 0.")


def _find(data_dir: str | os.PathLike[str] | None) -> Path:
    if data_dir is None:
        raise ValueError(f"data_dir is None: pass the path of emobank.csv. {SOURCE}")
    path = Path(data_dir)
    if path.is_dir():
        path /= "emobank.csv"
    if not path.is_file():
        raise FileNotFoundError(f"data_dir is {str(data_dir)!r}, but there is no file {str(path)!r}. {SOURCE}")
    return path


def _read(content: bytes, name: str, report: CorpusReport) -> list[Sentence]:
    """Reads and checks the rows; those with a problem go to the report."""
    columns, rows = READERS[".csv"](content, name, report)
    missing = [column for column in COLUMNS if column not in columns]
    if missing:
        detail = f"no {', '.join(map(repr, missing))} among {', '.join(map(repr, columns)) or 'no columns at all'}"
        report.refuse(CorpusProblem(name, "not EmoBank's columns", detail), SOURCE)
    sentences: dict[str, Sentence] = {}
    for row, values in rows:
        id, split = values["id"].strip(), normalise_split(values["split"].strip())
        valence = _number(values["V"])
        if not id:
            report.problems.append(CorpusProblem(row, "missing value", field="id"))
        elif id in sentences:
            report.problems.append(CorpusProblem(row, "duplicate id", id=id))
        elif split not in SPLIT_VOICES:
            problem = CorpusProblem(
                row, "unknown split", "EmoBank has train, dev and test", id, "split", values["split"]
            )
            report.problems.append(problem)
        elif math.isnan(valence):
            report.problems.append(CorpusProblem(row, "not a number", "", id, "V", values["V"]))
        elif not LABEL_SCALE[0] <= valence <= LABEL_SCALE[1]:
            report.problems.append(CorpusProblem(row, "outside the scale", "which is 1 to 5", id, "V", values["V"]))
        else:
            sentences[id] = Sentence(id, split, valence, values["text"])
    return list(sentences.values())


def _number(text: str) -> float:
    """A rating as a number, NaN if it is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def _reason_to_leave_out(num_words: int, min_words: int, max_words: int) -> str:
    """ "" if a sentence of this length is to be spoken."""
    if num_words == 0:
        return "no speakable word"
    if num_words < min_words:
        return f"fewer than {min_words} words"
    if num_words > max_words:
        return f"more than {max_words} words"
    return ""


def _number_in_two_splits(sentences: Iterable[Sentence]) -> int:
    splits = defaultdict(set)
    for sentence in sentences:
        splits[" ".join(sentence.words).casefold()].add(sentence.split)
    return sum(len(of_speaker) > 1 for of_speaker in splits.values())
