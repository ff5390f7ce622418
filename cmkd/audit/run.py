"""An audit: the model is asked about every clip under every condition, once, and then tested.

```
<output>/answers/asked.json          what was asked: the model, the corpus, the clips; another audit is refused
<output>/answers/<condition>.parquet as `cmkd.scoring.evaluation.write_predictions` writes them
<output>/audit.json                  see `audit`
<output>/audit.md, audit.html, card.md, figures/  see `cmkd.audit.report`
```

What is in `answers` is not asked again, so that an audit that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import csv
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Value
from tqdm.auto import tqdm
from transformers import HubertConfig

from cmkd.audit.cost import measure_cost
from cmkd.audit.disturbances import Disturbance, disturbances
from cmkd.audit.report import NAME, write_reports
from cmkd.audit.subjects import Subject
from cmkd.audit.tests import GROUPS, TESTS, VERDICTS, Evidence, WordAnswers
from cmkd.audit.words import QUICK_SENTENCES, SENTENCES, RatedWords, rated_words
from cmkd.corpora import crema_d
from cmkd.corpora.schema import Corpus
from cmkd.features.audio import read_audio
from cmkd.features.labels import rated_dimensions, unit_interval_labels
from cmkd.features.stretch import stretch_of
from cmkd.formats import with_version
from cmkd.json_files import read_json, write_json
from cmkd.runs.folder import versions
from cmkd.scoring.evaluation import read_predictions, write_predictions
from cmkd.spelling import did_you_mean, enumerated
from configuration_cmkd import EMOTION_DIMENSIONS

QUICK_CLIPS = 64
"""Clips of an audit with `--quick`."""

CLEAN, BATCHED, ONCE, TEN_TIMES = "clean", "in_batches", "one_second", "one_second_ten_times"
SEED = 0
VOICES = 32
"""Clips that babble is made of."""

BATCH = 8
"""Utterances of a batch."""

_ASKED = "asked.json"

_NAMES = {"crema-d": crema_d.CLIP}
"""By corpus whose clips are named by what was said and acted, the pattern with the groups `sentence` and `emotion`."""


@dataclass(frozen=True)
class Settings:
    """What is asked of a model.

    Attributes:
        split: Of the corpus.
        by: Columns of the corpus whose groups are compared; of numbers, those above the median and the others.
        groups: A CSV file with a column `id` or `speaker`, and further columns whose groups are compared.
        quick: Whether `QUICK_CLIPS` clips are asked about, of as many speakers as possible, and not all.
        disturbances: By name; None: all.
        acted: The column of the corpus, or of `groups`, with the emotion that was acted; None: by the names of the
            clips where the corpus is CREMA-D, and otherwise not known.
        words: EmoBank's file, of whose sentences the model is asked in speech without expression; None: it is not.
        words_voices: Who speaks them, "espeak" or "kokoro".
        words_models_dir, words_speech_dir: As `models_dir` and `speech_dir` of SpokenEmoBank.
    """

    split: str = "test"
    by: tuple[str, ...] = ("gender",)
    groups: Path | None = None
    quick: bool = False
    disturbances: tuple[str, ...] | None = None
    acted: str | None = None
    words: Path | None = None
    words_voices: str = "espeak"
    words_models_dir: Path | None = None
    words_speech_dir: Path | None = None


def check_audit(corpus: Any, settings: Settings, dimensions: Sequence[str] | None = None) -> None:
    """Checks what can be checked before a model is asked.

    Raises:
        ValueError: the corpus is a stream, has no such split or column, or no rating in a dimension that the model
            answers; or there is no such disturbance.
        ImportError: a package that a disturbance needs is missing.
    """
    if not isinstance(corpus, Corpus):
        raise ValueError("corpus.streaming is true, but an audit takes a whole corpus: leave it out.")
    if settings.split not in corpus:
        raise ValueError(
            f"the corpus has no split {settings.split!r}; it has {', '.join(corpus)}. Name one as --split."
        )
    rows = corpus[settings.split]
    usable = [name for name in rows.column_names if rows.features[name] == rows.features["speaker"]]
    numbers = [name for name in rows.column_names if _is_number(rows, name)]
    for column in settings.by:
        if column not in usable + numbers:
            raise ValueError(
                f"--by {column}: the corpus has no column of text or numbers of this name; it has "
                f"{', '.join(usable + numbers)}. Give other groups in a table, as --groups FILE."
                f"{did_you_mean(column, usable + numbers)}"
            )
    if settings.acted is not None and settings.acted not in usable and settings.groups is None:
        raise ValueError(
            f"--acted {settings.acted}: the corpus has no column of text of this name; it has {', '.join(usable)}. "
            f"Give the emotions in a table, as --groups FILE.{did_you_mean(settings.acted, usable)}"
        )
    known = disturbances([])
    for name in settings.disturbances or ():
        if name not in known:
            raise ValueError(f"--disturbances {name}: must be of {', '.join(known)}.{did_you_mean(name, known)}")
    for name in known if settings.disturbances is None else settings.disturbances:
        known[name].check()
    rated = rated_dimensions(unit_interval_labels(rows))
    if dimensions is not None and not set(rated) & set(dimensions):
        raise ValueError(
            f"{settings.split} is rated in {enumerated(rated) or 'no dimension'}, and the model answers "
            f"{enumerated(list(dimensions))}: there is nothing to compare."
        )


def check_output(output: Path) -> None:
    """Checks that an audit may be written to a folder: it is not there, empty, or of an audit.

    Raises:
        FileExistsError: it holds something else.
    """
    known = (output / NAME).is_file() or (output / "answers" / _ASKED).is_file()
    if output.exists() and not known and (output.is_file() or any(output.iterdir())):
        raise FileExistsError(f"{str(output)!r} is there, and holds no {NAME}: give --output another folder.")


def audit(
    subject: Subject, corpus: Corpus, output: Path, settings: Settings, reference: HubertConfig | None = None
) -> dict[str, Any]:
    """Asks a model, tests what it answered, and writes the reports.

    Args:
        subject: the model.
        corpus: on whatever scale; answers and labels are compared on the unit interval.
        output: a folder; answers that are in it are not asked again.
        settings: what is asked.
        reference: the encoder beside which the cost is measured; by default HuBERT Base.

    Returns:
        The content of audit.json: `model`, as [`cmkd.audit.subjects.Subject.describe`] has it; `corpus`, as in
        results.json; `settings`, `versions`; `clips` and `speakers`, how many; `conditions`, by disturbance its
        definition; `tests`, by name what [`cmkd.audit.tests.AuditTest.run`] says; and `verdicts`, by group how many
        findings have which verdict.

    Raises:
        ValueError: see `check_audit`; the table of groups does not fit; or a clip cannot be scored, which the message
            names.
        FileExistsError: the folder holds something else, or the audit of another model, corpus or choice of clips.
    """
    check_audit(corpus, settings, subject.dimensions)
    check_output(output)
    rows = _chosen(corpus[settings.split], QUICK_CLIPS if settings.quick else None)
    columns = {name: column_groups(rows, name) for name in settings.by} | _groups(settings.groups, rows)
    said, acted = said_and_acted(rows, corpus.report.name, settings.acted, columns)
    words = None
    if settings.words is not None:
        most = QUICK_SENTENCES if settings.quick else SENTENCES
        words = rated_words(
            settings.words, settings.words_voices, most, settings.words_models_dir, settings.words_speech_dir
        )
    kinds = disturbances(_voices(rows, subject.sampling_rate))
    asked = {
        "model": subject.identity,
        "corpus": corpus.report.digest,
        "split": settings.split,
        "clips": zlib.crc32("\n".join(rows["id"]).encode()),
        "seed": SEED,
        "definitions": zlib.crc32("\n".join(kind.about for kind in kinds.values()).encode()),
    }
    _claim(output / "answers" / _ASKED, asked)
    chosen = {name: kinds[name] for name in (kinds if settings.disturbances is None else settings.disturbances)}
    answers = _ask(subject, _conditions(subject, rows, chosen, words), output / "answers")
    labels = unit_interval_labels(rows).astype(np.float64)
    evidence = Evidence(
        subject.dimensions,
        labels,
        answers[CLEAN],
        {name: answers[name] for name in chosen},
        answers.get(BATCHED),
        answers[ONCE],
        answers[TEN_TIMES],
        list(rows["speaker"]),
        {name: values for name, values in columns.items() if name != settings.acted},
        said,
        acted,
        None if words is None else WordAnswers(words.valence, words.speakers, answers[words.condition]),
        measure_cost(subject, HubertConfig() if reference is None else reference),
    )
    tests = {name: test.run(evidence) for name, test in TESTS.items()}
    results = with_version(
        NAME,
        {
            "model": subject.describe(),
            "corpus": corpus.report.to_dict(),
            "settings": {
                "split": settings.split,
                "by": list(settings.by),
                "groups": sorted(set(columns) - set(settings.by)),
                "quick": settings.quick,
                "acted": settings.acted,
                "words": None if words is None else words.about,
                "seed": SEED,
            },
            "versions": versions(),
            "clips": len(rows),
            "speakers": len(set(rows["speaker"]) - {""}),
            "conditions": {name: disturbance.about for name, disturbance in chosen.items()},
            "tests": tests,
            "verdicts": count_verdicts(tests),
        },
    )
    write_json(output / NAME, results)
    write_reports(results, output)
    return results


def count_verdicts(tests: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """By group and verdict, how many findings there are."""
    counts = {group: dict.fromkeys(VERDICTS, 0) for group in GROUPS}
    for test in tests.values():
        for finding in test["findings"]:
            counts[test["group"]][finding["verdict"]] += 1
    return counts


def _chosen(rows: Dataset, most: int | None) -> Dataset:
    """All rows, or as many as are asked for, one of each speaker before a second of any; in their order."""
    if most is None or len(rows) <= most:
        return rows
    order = np.random.default_rng(SEED).permutation(len(rows))
    speakers = rows["speaker"]
    turns: dict[str, int] = {}
    turn = np.zeros(len(rows), dtype=int)
    for row in order:
        turn[row] = turns.get(speakers[row], 0)
        turns[speakers[row]] = turn[row] + 1
    by_turn = order[np.argsort(turn[order], kind="stable")]
    return rows.select(sorted(by_turn[:most].tolist()))


def _groups(table: Path | None, rows: Dataset) -> dict[str, list[str]]:
    if table is None:
        return {}
    if not table.is_file():
        raise FileNotFoundError(f"--groups {table}: there is no such file.")
    with table.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        lines = list(reader)
        names = list(reader.fieldnames or ())
    keys = [name for name in ("id", "speaker") if name in names]
    if len(keys) != 1 or len(names) < 2:
        raise ValueError(
            f"--groups {table}: its columns are {', '.join(names) or 'none'}, but it must have either id or speaker, "
            "and one or more columns of groups."
        )
    by_key: dict[str, dict[str, str]] = {}
    for number, line in enumerate(lines, start=2):
        if None in line or None in line.values():
            raise ValueError(f"--groups {table}: line {number} has not as many fields as the first line.")
        if by_key.setdefault(line[keys[0]], line) != line:
            raise ValueError(f"--groups {table}: line {number} says of {keys[0]} {line[keys[0]]!r} other than before.")
    if not set(by_key) & set(rows[keys[0]]):
        raise ValueError(f"--groups {table}: none of its {keys[0]}s is of the clips that are audited.")
    empty = dict.fromkeys(names, "")
    return {name: [by_key.get(key, empty)[name].strip() for key in rows[keys[0]]] for name in names if name != keys[0]}


def _is_number(rows: Dataset, name: str) -> bool:
    feature = rows.features[name]
    return isinstance(feature, Value) and feature.dtype.startswith(("int", "float"))


def column_groups(rows: Dataset, name: str) -> list[str]:
    """A column as groups: text as it is, numbers in two halves about the median of the speakers; "" where unknown."""
    values = list(rows[name])
    if not _is_number(rows, name):
        return values
    of_speakers = {speaker: value for speaker, value in zip(rows["speaker"], values, strict=True) if _known(value)}
    if not of_speakers:
        return [""] * len(values)
    median = float(np.median(list(of_speakers.values())))
    halves = {True: f"above {median:g}", False: f"up to {median:g}"}
    return [halves[value > median] if _known(value) else "" for value in values]


def _known(value: float | None) -> bool:
    return value is not None and not np.isnan(value)


def said_and_acted(
    rows: Dataset, corpus: str, acted: str | None, columns: Mapping[str, Sequence[str]]
) -> tuple[list[str], list[str] | None]:
    """What is said in each clip, and the emotion that was acted, "" where unknown; None where it is of none."""
    if acted is not None:
        if acted not in columns and acted not in rows.column_names:
            raise ValueError(
                f"--acted {acted}: neither the corpus nor the table of --groups has a column of this name; they have "
                f"{', '.join([*rows.column_names, *columns])}.{did_you_mean(acted, columns)}"
            )
        return list(rows["transcript"]), list(columns[acted] if acted in columns else rows[acted])
    if corpus not in _NAMES:
        return list(rows["transcript"]), None
    names = [_NAMES[corpus].fullmatch(name) for name in rows["id"]]
    return [name["sentence"] if name else "" for name in names], [name["emotion"] if name else "" for name in names]


def _claim(path: Path, asked: Mapping[str, Any]) -> None:
    """Writes down what is asked, or finds that the same was asked before."""
    if not path.is_file():
        write_json(path, asked)
        return
    before = read_json(path, "delete the folder that it is in; the model is then asked again.")
    for name, value in asked.items():
        if before.get(name) != value:
            raise FileExistsError(
                f"{path.parent} holds answers of another audit ({name} was {before.get(name)!r}, and is {value!r}): "
                "give --output another folder."
            )


def _voices(rows: Dataset, rate: int) -> list[np.ndarray]:
    chosen = np.random.default_rng(SEED).permutation(len(rows))[:VOICES]
    return [_read(rows[int(index)], rate) for index in chosen]


def _read(row: Mapping[str, Any], rate: int) -> np.ndarray:
    return read_audio(row["audio"], rate, **stretch_of(row))


@dataclass(frozen=True)
class _Condition:
    """What is asked at once: of n utterances, `wave(index)` of each, and the columns that its file gets."""

    name: str
    ids: Sequence[str]
    wave: Callable[[int], np.ndarray]
    columns: tuple[np.ndarray, Sequence[str], Sequence[str]]
    batch: int = 1


def _conditions(
    subject: Subject, rows: Dataset, chosen: Mapping[str, Disturbance], words: RatedWords | None
) -> list[_Condition]:
    rate, ids = subject.sampling_rate, list(rows["id"])
    columns = (unit_interval_labels(rows), list(rows["speaker"]), list(rows["gender"]))

    @lru_cache(maxsize=QUICK_CLIPS)  # so that a quick audit decodes each clip once
    def decoded(index: int) -> np.ndarray:
        return _read(rows[index], rate)

    def clean(index: int) -> np.ndarray:
        return decoded(index).copy()

    def second(index: int, times: int) -> np.ndarray:
        return np.tile(np.resize(clean(index), rate), times)

    def disturbed(index: int, disturbance: Disturbance) -> np.ndarray:
        # by clip and disturbance, so that neither their order nor an interruption makes a difference
        seeds = [SEED, zlib.crc32(disturbance.name.encode()), zlib.crc32(ids[index].encode())]
        return disturbance.apply(clean(index), rate, np.random.default_rng(seeds))

    found = [_Condition(CLEAN, ids, clean, columns)]
    if subject.batches:
        found.append(_Condition(BATCHED, ids, clean, columns, BATCH))
    for name, times in ((ONCE, 1), (TEN_TIMES, 10)):
        found.append(_Condition(name, ids, partial(second, times=times), columns))
    for name, disturbance in chosen.items():
        found.append(_Condition(name, ids, partial(disturbed, disturbance=disturbance), columns))
    if words is not None:
        ratings = np.full((len(words.ids), len(EMOTION_DIMENSIONS)), np.nan)
        ratings[:, EMOTION_DIMENSIONS.index("valence")] = words.valence
        of_words = (ratings, words.speakers, words.genders)
        found.append(_Condition(words.condition, words.ids, partial(words.read, rate=rate), of_words))
    return found


def _ask(subject: Subject, conditions: Sequence[_Condition], folder: Path) -> dict[str, np.ndarray]:
    """By condition the answers (n, 3); those that are in the folder are not asked for again."""
    answers = {}
    total = sum(len(condition.ids) for condition in conditions)
    with tqdm(total=total, desc="asking", unit="clip", disable=None) as bar:
        for condition in conditions:
            path = folder / f"{condition.name}.parquet"
            if path.is_file() and (stored := read_predictions(path)).ids == list(condition.ids):
                answers[condition.name] = stored.predictions
                bar.update(len(condition.ids))
                continue
            bar.set_postfix_str(condition.name)
            parts = []
            for some in _batches(range(len(condition.ids)), condition.batch):
                names = [condition.ids[index] for index in some]
                try:
                    scores = np.asarray(subject.score([condition.wave(index) for index in some]), dtype=np.float64)
                except ValueError as error:
                    raise ValueError(f"{condition.name} of {', '.join(names)}: {error}") from error
                _check_scores(subject, scores, names, condition.name)
                parts.append(scores)
                bar.update(len(some))
            answers[condition.name] = np.concatenate(parts)
            write_predictions(path, condition.ids, answers[condition.name], *condition.columns)
    return answers


def _batches(numbers: range, size: int) -> Iterable[range]:
    return (numbers[start : start + size] for start in range(0, len(numbers), size))


def _check_scores(subject: Subject, scores: np.ndarray, names: Sequence[str], condition: str) -> None:
    for dimension in subject.dimensions:
        values = scores[:, EMOTION_DIMENSIONS.index(dimension)]
        if not np.isfinite(values).all():
            where = int(np.flatnonzero(~np.isfinite(values))[0])
            raise ValueError(
                f"{subject.name} answered {values[where]} as {dimension} of {names[where]} ({condition}): scores must "
                "be finite, so that there is nothing to compare."
            )
