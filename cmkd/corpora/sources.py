"""What a run learns from: one corpus or several, and speech that nobody has rated.

`corpus:` of a recipe is a mapping, or a list of mappings: the corpora are then learned together. `unlabelled:` is such
a mapping or list of speech without ratings. Beside the settings of its builder a mapping may have those of
`cmkd.corpora.settings.SOURCE_SETTINGS`.

- **Names.** In a run of several corpora, and in unlabelled speech, ids and speakers begin with the corpus's name, as in
  `crema-d/1001_DFA_ANG_XX`: the same id, or speaker, in two corpora is not the same utterance or person.
- **Copies.** Corpora of one `name` (other than manifest and dataset, which say nothing about what they hold) are taken
  to be copies of one corpus, such as clips as they were recorded and as they sound elsewhere: the same id is the same
  utterance, whatever the alias, and the same speaker the same person, whose name begins with that of the first of them
  in all. So intervals and tests take all copies of what one person says together. Folds of cross-fitting and
  `labelled_share` keep them together too, and an utterance in two splits is refused.
- **Labels** stay on their corpus's own scale, and are learned on the unit interval, each by its own scale.
- **Splits** are those of each corpus. The same sound (by its samples, as in `cmkd.corpora.checks`) in two splits of two
  corpora is refused, or the utterance of the lesser split is left out where its corpus has `on_error: skip`; in the
  same split it gets a note.
- **Unlabelled speech** is the split `train` of each of its corpora. Its ratings, if it has any, are dropped. It is
  refused if a sound of it is also in validation or test, and, unless `same_sentences` says otherwise, if a sentence is:
  the teacher reads it, and would tell the student what the words of the test mean. Sentences are compared by their
  letters and digits, whatever case and punctuation.
- **`labelled_share`** takes the labels of the other training utterances away, corpus by corpus. Which these are is
  drawn from the ids and `labelled_seed`: a larger share has all utterances of a smaller one, and all copies of an
  utterance keep their labels or none does.
"""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args

import numpy as np
import pyarrow
from datasets import Dataset, Value, concatenate_datasets

from cmkd.corpora import load_corpus
from cmkd.corpora.licences import check_licence
from cmkd.corpora.report import CorpusError, CorpusProblem, CorpusReport, quantity
from cmkd.corpora.schema import SPLITS, Corpus
from cmkd.corpora.settings import SOURCE_SETTINGS, STATEMENTS, corpus_settings
from cmkd.corpora.transcripts import read_transcripts
from cmkd.features.audio import digest_audio
from cmkd.features.labels import unit_interval_labels
from cmkd.features.stretch import stretch_of
from configuration_cmkd import EMOTION_DIMENSIONS

UNLABELLED = "unlabelled"
"""The name of the split of a run's corpus that has no labels."""

SameSentences = Literal["refuse", "leave_out", "allow"]
"""What to do about unlabelled speech that says a sentence of validation or test."""

HELD_OUT = ("validation", "test")

OWN_DATA = ("manifest", "dataset")
"""The names of corpora that people bring themselves: two of the same name need have nothing in common."""

_RANKS = {"train": 0, "validation": 1}  # of the splits; all others are like test
_WORD = re.compile(r"[^\W_]+")
_NUMBER = pyarrow.float32()
_SHOWN = 5  # ids in a message
_SAME_SOUND = "same sound in two splits"


@dataclass(frozen=True)
class Source:
    """One mapping of `corpus:` or `unlabelled:`.

    Attributes:
        alias: what the corpus is called in the run.
        arguments: of [`cmkd.corpora.load_corpus`].
        rated_dimensions: those whose ratings are used; None for all.
        statements: what the recipe says of it for readers, by the names in
            [`cmkd.corpora.settings.STATEMENTS`]; "" where it says nothing.
    """

    alias: str
    arguments: Mapping[str, Any]
    rated_dimensions: Sequence[str] | None
    statements: Mapping[str, str]

    def load(self, **settings: Any) -> Corpus:
        """Builds the corpus.

        Raises:
            ValueError: it is a stream, which has to be heard anew in every epoch; `rated_dimensions` names one that
                the corpus does not rate, or none; or as for `load_corpus`.
        """
        corpus = load_corpus(**(dict(self.arguments) | settings))
        if not isinstance(corpus, Corpus):
            raise ValueError(
                f"corpus.streaming of {self.alias} is True, but training hears every utterance many times: leave it "
                "out."
            )
        for name, text in self.statements.items():
            setattr(corpus.report, name, text)
        if self.rated_dimensions is not None:
            self._drop_ratings(corpus, self.rated_dimensions)
        return corpus

    def _drop_ratings(self, corpus: Corpus, kept: Sequence[str]) -> None:
        rated = {
            dimension
            for dimension in EMOTION_DIMENSIONS
            if any(of_split[dimension]["rated"] for of_split in corpus.report.labels.values())
        }
        if not kept or not set(kept) <= rated:
            raise ValueError(
                f"rated_dimensions of {self.alias} is {list(kept)}, but must be one or more of those that it rates: "
                f"{', '.join(name for name in EMOTION_DIMENSIONS if name in rated) or 'none'}."
            )
        dropped = [dimension for dimension in EMOTION_DIMENSIONS if dimension not in kept]
        for split, rows in corpus.items():
            unknown = np.full(len(rows), np.nan)
            corpus[split] = _replaced(rows, dict.fromkeys(dropped, unknown), _NUMBER)
        report = corpus.report
        report.digest = hashlib.sha256(repr((report.digest, dropped)).encode()).hexdigest()[:12]
        report.notes.append(f"ratings that are not used: {', '.join(dropped) or 'none'}")
        _count(report, corpus)


@dataclass
class RunReport(CorpusReport):
    """The report of what a run learns from, if that is more than one corpus with all of its labels.

    Numbers are those of all corpora together. If their scales differ, statistics of labels are on the unit interval;
    those of each corpus on its own scale are in its own report.

    Attributes:
        corpora (`dict[str, CorpusReport]`): The reports of several corpora by the names that they have in the run.
        unlabelled (`dict[str, CorpusReport]`): Those of the speech without labels, as their builders wrote them; what
            is used of it all together is the split `unlabelled` of this report.
    """

    corpora: dict[str, CorpusReport] = field(default_factory=dict)
    unlabelled: dict[str, CorpusReport] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        content = super().to_dict()
        if self.corpora:
            content["corpora"] = {name: report.to_dict() for name, report in self.corpora.items()}
        if self.unlabelled_version:
            reports = {name: report.to_dict() for name, report in self.unlabelled.items()}
            content["unlabelled"] = {"version": self.unlabelled_version, "corpora": reports}
        return content

    def __str__(self) -> str:
        parts = [*self.corpora.items(), *self.unlabelled.items()]
        return "\n\n".join([*(f"[{name}] {report}" for name, report in parts), super().__str__()])


def load_run_corpus(
    corpus: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    unlabelled: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    *,
    labelled_share: float = 1.0,
    labelled_seed: int = 0,
    unlabelled_rest: bool = True,
    unlabelled_hours: float | None = None,
    same_sentences: SameSentences = "refuse",
) -> Corpus:
    """Builds all corpora of a recipe, as described at the top of this module.

    Args:
        corpus: what a recipe has under `corpus`.
        unlabelled: what it has under `unlabelled`.
        labelled_share: the share of the training utterances that keep their labels, above 0 and at most 1.
        labelled_seed: the seed that draws which.
        unlabelled_rest: whether the other training utterances are unlabelled speech, and not left out.
        unlabelled_hours: how much of the unlabelled speech is used; None stands for all. Which utterances are, is drawn
            from the ids and `labelled_seed`: more hours have all utterances of fewer.
        same_sentences: see [`SameSentences`].

    Returns:
        The corpus, with the split `unlabelled` beside its own if there is such speech. With several corpora the rows
        have the column `corpus`, and `label_scale` is that of the row's own; unlabelled ones have the column
        `asr_confidence`, see [`asr_confidence`], and always the column `corpus`, which is "" for the rest of a single
        one.

    Raises:
        CorpusError: a corpus has problems, or the same sound is in two splits or, in unlabelled speech, held out.
        ValueError: a setting is not valid, two corpora have one name, copies of one corpus are split differently, or
            unlabelled speech has no words or says a sentence of validation or test, or hours of it are asked for and
            there is none.
    """
    if not 0 < labelled_share <= 1:
        raise ValueError(f"labelled_share is {labelled_share}, but must be above 0 and at most 1.")
    if same_sentences not in get_args(SameSentences):
        raise ValueError(
            f"same_sentences is {same_sentences!r}, but must be one of {', '.join(get_args(SameSentences))}."
        )
    labelled = [_source(corpus)] if isinstance(corpus, Mapping) else [_source(one) for one in corpus]
    given = [unlabelled] if isinstance(unlabelled, Mapping) else list(unlabelled or [])
    without = [_source(one) for one in given]
    for source in without:
        if source.rated_dimensions is not None:
            raise ValueError(
                f"rated_dimensions of {source.alias} is {list(source.rated_dimensions)}, but no ratings of unlabelled "
                "speech are used: leave it out."
            )
    _check_names([*labelled, *without])
    built = labelled[0].load() if isinstance(corpus, Mapping) else _together(labelled)
    rest: Dataset | None = None
    if labelled_share < 1:
        built, rest = _with_share(built, labelled, labelled_share, labelled_seed)
        if not unlabelled_rest or not len(rest):
            rest = None
    if rest is None and not without:
        if unlabelled_hours is not None:
            raise ValueError(
                f"unlabelled_hours is {unlabelled_hours:g}, but there is no unlabelled speech: name some as "
                "`unlabelled`, take labels away with labelled_share, or leave it out."
            )
        return built
    return _with_unlabelled(built, rest, without, same_sentences, unlabelled_hours, labelled_seed)


def asr_confidence(ids: Sequence[str], texts: Sequence[str], source: Source) -> np.ndarray:
    """How sure it is that the words of each utterance were said, (n,) in [0, 1].

    It is 1 for a transcript that no recogniser wrote, and 0 where no words are known. Else it is the geometric mean of
    the probabilities that the recogniser gave to the tokens, times the probability that somebody speaks at all, as far
    as it says so. A transcript is taken for the recogniser's if it is that of the file `transcripts`.

    Args:
        ids: of the utterances, as the corpus has them, before they get its name.
        texts: their transcripts.
        source: the corpus.
    """
    confidence = np.array([float(bool(text.strip())) for text in texts])
    sidecar = source.arguments.get("transcripts")
    if sidecar is None:
        return confidence
    columns = ("id", "text", "average_log_probability", "no_speech_probability")
    table = read_transcripts(sidecar).select(columns).to_pydict()
    heard = {identifier: row for identifier, *row in zip(*(table[name] for name in columns), strict=True)}
    for index, (identifier, text) in enumerate(zip(ids, texts, strict=True)):
        if identifier not in heard or not confidence[index]:
            continue
        said, log_probability, silence = heard[identifier]
        if said == text and log_probability is not None:
            confidence[index] = math.exp(min(log_probability, 0.0)) * (1 - (silence or 0.0))
    return confidence


def corpora_of(rows: Dataset) -> list[str]:
    """The corpus of each row; empty where all are of the one corpus of a run."""
    return list(rows["corpus"]) if "corpus" in rows.column_names else []


def copies_of(report: CorpusReport) -> dict[str, str]:
    """The corpora of a run that are copies of one, as described at the top: for each the name of the first of them."""
    corpora = report.corpora if isinstance(report, RunReport) else {}
    return _copies({alias: of_corpus.name for alias, of_corpus in corpora.items()})


def _copies(names: Mapping[str, str]) -> dict[str, str]:
    """What [`copies_of`] returns, from the name of each corpus by its alias."""
    members: dict[str, list[str]] = {}
    for alias, name in names.items():
        if name not in OWN_DATA:
            members.setdefault(name, []).append(alias)
    return {alias: aliases[0] for aliases in members.values() if len(aliases) > 1 for alias in aliases}


def utterance_keys(rows: Dataset, copies: Mapping[str, str]) -> list[str]:
    """The id of each row, that of the first copy where there are several.

    Args:
        rows: of a run.
        copies: what [`copies_of`] returned.
    """
    return [_of_first(identifier, copies) for identifier in rows["id"]]


def speaker_keys(rows: Dataset, copies: Mapping[str, str]) -> list[str]:
    """Who speaks in each row.

    It is "" where that is not known; but of a corpus with copies it is then the utterance, whose copies have at least
    that in common.
    """
    keys = zip(rows["speaker"], rows["id"], utterance_keys(rows, copies), strict=True)
    return [
        speaker or (f"speaker of {utterance}" if identifier.partition("/")[0] in copies else "")
        for speaker, identifier, utterance in keys
    ]


def _of_first(name: str, copies: Mapping[str, str]) -> str:
    alias, slash, own = name.partition("/")
    return f"{copies[alias]}/{own}" if slash and alias in copies else name


def sentence_key(text: str) -> str:
    """What two transcripts have in common that say the same sentence; "" if there are no words.

    >>> sentence_key("Good morning, Mr./Ms. Smith:") == sentence_key("good MORNING mr ms smith")
    True
    """
    return " ".join(_WORD.findall(unicodedata.normalize("NFKC", text).casefold()))


def same_sounds(rows: Dataset, others: Dataset) -> list[tuple[int, int]]:
    """The pairs of utterances of two data sets that have the same samples.

    Only sounds of the same duration are read.
    """
    durations, other_durations = np.array(rows["duration"]), np.array(others["duration"])
    both = np.intersect1d(durations, other_durations)
    digests: dict[str, list[int]] = {}
    for index, digest in _digests(rows, np.flatnonzero(np.isin(durations, both))):
        digests.setdefault(digest, []).append(index)
    found = _digests(others, np.flatnonzero(np.isin(other_durations, both)))
    return [(index, other) for other, digest in found for index in digests.get(digest, [])]


def _digests(rows: Dataset, indices: np.ndarray) -> Iterator[tuple[int, str]]:
    def digest(index: int) -> str:
        row = rows[index]
        return digest_audio(row["audio"], **stretch_of(row)).sha256

    with ThreadPoolExecutor() as pool:
        yield from zip(indices.tolist(), pool.map(digest, indices.tolist()), strict=True)


def _source(given: Mapping[str, Any]) -> Source:
    stated = {name: given[name] or "" for name in SOURCE_SETTINGS if name in given}
    arguments = {name: value for name, value in given.items() if name not in SOURCE_SETTINGS}
    if "name" not in arguments:
        raise ValueError(f"a corpus has the settings {', '.join(given)}, but no name: say which corpus it is.")
    alias = str(stated.get("alias") or arguments["name"])
    if not re.fullmatch(r"[\w.-]+", alias):
        raise ValueError(f"alias is {alias!r}, but must consist of letters, digits and '_', '.', '-'.")
    if stated.get("licence"):
        check_licence(stated["licence"])
    statements = {name: stated.get(name, "") for name in STATEMENTS}
    return Source(alias, arguments, given.get("rated_dimensions"), statements)


def _check_names(sources: Sequence[Source]) -> None:
    name, times = Counter(source.alias for source in sources).most_common(1)[0]
    if times > 1:
        raise ValueError(
            f"{times} corpora of this run are called {name!r}: give each a name of its own with the setting alias."
        )


def _named(rows: Dataset, alias: str, copies: Mapping[str, str]) -> Dataset:
    """The rows with the corpus's name before ids, that of the first of its copies before speakers, and as a column."""
    first = copies.get(alias, alias)
    prefixed = {
        "id": [f"{alias}/{value}" for value in rows["id"]],
        "speaker": [value and f"{first}/{value}" for value in rows["speaker"]],
        "corpus": [alias] * len(rows),
    }
    return _replaced(rows, prefixed)


def _replaced(rows: Dataset, columns: Mapping[str, Any], kind: Any = None) -> Dataset:
    for name, values in columns.items():
        if name in rows.column_names:
            rows = rows.remove_columns(name)
        rows = rows.add_column(name, pyarrow.array(values, kind or pyarrow.string()))
    return rows


def alike(parts: Sequence[Dataset]) -> Dataset:
    """One data set of the rows of several, with the columns that all have."""
    names = [name for name in parts[0].column_names if all(name in part.column_names for part in parts)]
    return concatenate_datasets([part.select_columns(names) for part in parts])


def _completed(parts: Sequence[Dataset]) -> list[Dataset]:
    """The data sets with every column of numbers that one of them has, such as the spread of ratings; NaN where new."""
    numbers = {name for part in parts for name, kind in part.features.items() if kind == Value("float32")}
    missing = [sorted(numbers - set(part.column_names)) for part in parts]
    return [
        _replaced(part, {name: np.full(len(part), np.nan) for name in names}, _NUMBER)
        for part, names in zip(parts, missing, strict=True)
    ]


def _together(sources: Sequence[Source]) -> Corpus:
    corpora = {source.alias: source.load() for source in sources}
    copies = _copies({source.alias: source.arguments["name"] for source in sources})
    splits = {
        name: {split: _named(rows, name, copies) for split, rows in corpus.items()} for name, corpus in corpora.items()
    }
    reports = {name: corpus.report for name, corpus in corpora.items()}
    scales = {report.label_scale for report in reports.values()}
    terms = [f"{name}: {report.terms}" for name, report in reports.items() if report.terms]
    versions = [(name, report.name, report.version) for name, report in reports.items()]
    report = RunReport(
        name=" + ".join(corpora),
        release="several",
        label_scale=scales.pop() if len(scales) == 1 else (0.0, 1.0),
        config={name: report.config for name, report in reports.items()},
        skipped=dict(sum((Counter(report.skipped) for report in reports.values()), Counter())),
        warnings=[f"{name}: {warning}" for name, report in reports.items() for warning in report.warnings],
        notes=[f"{name}: {note}" for name, report in reports.items() for note in report.notes],
        terms=" ".join(terms),
        corpora=reports,
    )
    left_out = _check_between(sources, splits, report)
    _check_copies(splits, copies, left_out)
    report.digest = hashlib.sha256(repr((versions, sorted(left_out))).encode()).hexdigest()[:12]
    order = [*SPLITS, *dict.fromkeys(split for of in splits.values() for split in of if split not in SPLITS)]
    parts = {split: [of[split] for of in splits.values() if split in of] for split in order}
    together = {split: _without(alike(_completed(of)), left_out) for split, of in parts.items() if of}
    for name, of_corpus in reports.items():
        _count(of_corpus, {split: rows for split, rows in _of_corpus(together, name).items() if len(rows)})
    return Corpus(_count(report, together), report)


def _check_copies(
    splits: Mapping[str, Mapping[str, Dataset]], copies: Mapping[str, str], left_out: Collection[str]
) -> None:
    """Refuses copies of one corpus that are split differently, so that one learns what the other is tested on.

    Raises:
        ValueError: an utterance that is not left out is in two splits.
    """
    known: dict[str, tuple[str, str]] = {}
    for alias in copies:
        for split, rows in splits[alias].items():
            for identifier, key in zip(rows["id"], utterance_keys(rows, copies), strict=True):
                if identifier in left_out:
                    continue
                other, other_split = known.setdefault(key, (identifier, split))
                if other_split != split:
                    raise ValueError(
                        f"{identifier!r} is in the split {split}, and {other!r} in {other_split}: corpora of one name "
                        f"are copies, whose utterances must be in the same split. Give {copies[alias]} and {alias} the "
                        "same settings of splits."
                    )


def _check_between(
    sources: Sequence[Source], splits: Mapping[str, Mapping[str, Dataset]], report: CorpusReport
) -> set[str]:
    """Looks for the same sound, and the same sentence, in two corpora; returns the ids that are left out.

    Raises:
        CorpusError: the same sound is in two splits, and the corpus whose utterance it is does not have on_error: skip.
    """
    skips = {source.alias for source in sources if source.arguments.get("on_error") == "skip"}
    whole = {name: alike(list(of.values())) for name, of in splits.items()}
    names, left_out, again = list(whole), set[str](), 0
    for position, name in enumerate(names):
        for other in names[position + 1 :]:
            columns = [(whole[one]["id"], whole[one]["split"]) for one in (name, other)]
            for pair in same_sounds(whole[name], whole[other]):
                (id_, split), (other_id, other_split) = (
                    (ids[index], of[index]) for (ids, of), index in zip(columns, pair, strict=True)
                )
                if _RANKS.get(split, 2) == _RANKS.get(other_split, 2):
                    again += 1
                    continue
                lesser = (id_, split, name), (other_id, other_split, other)
                (bad, _, corpus), (kept, kept_split, _) = sorted(lesser, key=lambda one: _RANKS.get(one[1], 2))
                if corpus in skips:
                    left_out.add(bad)
                else:
                    detail = f"also {kept}, split {kept_split}"
                    report.problems.append(CorpusProblem("", _SAME_SOUND, detail, bad, "audio"))
    if report.problems:
        raise CorpusError(report, "Or give the corpus of the utterance on_error: skip, to leave it out and count it.")
    if left_out:
        report.skipped[_SAME_SOUND] = report.skipped.get(_SAME_SOUND, 0) + len(left_out)
    if again:
        report.notes.append(f"{quantity(again, 'sound')} in the same split of two corpora")
    for name in names:
        trained = {sentence_key(text) for text in splits[name].get("train", {"transcript": []})["transcript"]} - {""}
        for other in set(names) - {name}:
            held = {key for split in HELD_OUT for key in _sentences(splits[other].get(split))}
            if held & trained:
                number = quantity(len(held & trained), "sentence")
                report.notes.append(f"{number} of {other}'s validation or test also in the training split of {name}")
    return left_out


def _sentences(rows: Dataset | None) -> set[str]:
    return set() if rows is None else {sentence_key(text) for text in rows["transcript"]} - {""}


def _without(rows: Dataset, left_out: set[str]) -> Dataset:
    if not left_out:
        return rows
    return rows.select([index for index, identifier in enumerate(rows["id"]) if identifier not in left_out])


def _of_corpus(splits: Mapping[str, Dataset], name: str) -> dict[str, Dataset]:
    return {
        split: rows.select(np.flatnonzero(np.array(rows["corpus"]) == name)) if "corpus" in rows.column_names else rows
        for split, rows in splits.items()
    }


def _count(report: CorpusReport, splits: dict[str, Dataset]) -> dict[str, Dataset]:
    """Sets the numbers of a report from the rows of each split, and returns these."""
    by_split = {}
    for split, rows in splits.items():
        minimum, maximum = report.label_scale
        labels = unit_interval_labels(rows).astype(float) * (maximum - minimum) + minimum
        columns = zip(rows["speaker"], rows["duration"], labels.tolist(), strict=True)
        by_split[split] = [
            {"speaker": speaker, "duration": duration, **dict(zip(EMOTION_DIMENSIONS, values, strict=True))}
            for speaker, duration, values in columns
        ]
    report.count(by_split)
    return splits


def _with_share(corpus: Corpus, sources: Sequence[Source], share: float, seed: int) -> tuple[Corpus, Dataset]:
    """The corpus with a share of its training split, and the rest of that without labels."""
    rows = corpus["train"]
    names = corpora_of(rows) or [""] * len(rows)
    copies = copies_of(corpus.report)
    keys = _drawn(utterance_keys(rows, copies), seed)
    members: dict[str, set[str]] = {}
    for name, key in zip(names, keys, strict=True):
        members.setdefault(copies.get(name, name), set()).add(key)
    labelled_keys = {key for of_one in members.values() for key in sorted(of_one)[: math.ceil(share * len(of_one))]}
    kept = {index for index, key in enumerate(keys) if key in labelled_keys}
    labelled = rows.select(sorted(kept))
    confidence = np.ones(len(rows), dtype=np.float32)
    all_ids, all_texts = list(rows["id"]), list(rows["transcript"])
    for source in sources:
        name = source.alias if corpora_of(rows) else ""
        own = [index for index, of_row in enumerate(names) if of_row == name]
        ids, texts = ([values[index] for index in own] for values in (all_ids, all_texts))
        own_ids = [one.removeprefix(f"{name}/") for one in ids] if name else ids
        confidence[own] = asr_confidence(own_ids, texts, source)
    rest = _unrated(rows, confidence).select([index for index in range(len(rows)) if index not in kept])
    drawn = (corpus.report.version, share, seed, *(["copies together"] if copies else []))
    report = _run_report(corpus.report)
    report.digest = hashlib.sha256(repr(drawn).encode()).hexdigest()[:12]
    report.notes.append(f"{len(labelled):,} of {len(rows):,} training utterances have kept their labels")
    splits = {**corpus, "train": labelled}
    for name, of_corpus in report.corpora.items():
        _count(of_corpus, _of_corpus(splits, name))
    return Corpus(_count(report, splits), report), rest


def _run_report(report: CorpusReport) -> RunReport:
    values = {one.name: getattr(report, one.name) for one in fields(report)}
    return RunReport(**values | {"notes": list(report.notes), "skipped": dict(report.skipped)})


def _with_unlabelled(
    corpus: Corpus,
    rest: Dataset | None,
    sources: Sequence[Source],
    same_sentences: SameSentences,
    hours: float | None,
    seed: int,
) -> Corpus:
    report = _run_report(corpus.report)
    parts, versions = [], []
    if rest is not None:
        parts.append(rest if corpora_of(rest) else _replaced(rest, {"corpus": [""] * len(rest)}))
        versions.append(("rest of", corpus.report.version))
    for source in sources:
        has_setting = "rated" in corpus_settings(source.arguments["name"])
        built = source.load(**({"rated": False} if has_setting else {}))
        if "train" not in built:
            raise ValueError(
                f"the unlabelled corpus {source.alias} has no split train, only {', '.join(built)}: unlabelled speech "
                "is the split train."
            )
        rows = built["train"]
        confidence = asr_confidence(rows["id"], rows["transcript"], source)
        if not confidence.any():
            raise ValueError(
                f"no utterance of the unlabelled corpus {source.alias} has words, which the teacher reads: let `cmkd "
                "transcribe` write them, and give them as `transcripts`."
            )
        if not confidence.all():
            number = quantity(int((confidence == 0).sum()), "utterance")
            report.notes.append(f"{number} of the unlabelled corpus {source.alias} without words")
        parts.append(_unrated(_named(rows, source.alias, {}), confidence))
        report.unlabelled[source.alias] = built.report
        versions.append((source.alias, built.report.version))
    together = alike(parts)
    _check_ids(together, corpus)
    left_out = _check_held_out(together, corpus, same_sentences, report)
    together = _without(together, left_out)
    if hours is not None:
        together = _of_length(together, hours, seed)
    sure = np.array(together["asr_confidence"], dtype=np.float32).tobytes()
    key = (versions, sorted(left_out), hours, seed if hours is not None else None, sure)
    report.unlabelled_version = hashlib.sha256(repr(key).encode()).hexdigest()[:12]
    licensed = [f"{name}: {one.terms}" for name, one in report.unlabelled.items() if one.terms]
    report.terms = " ".join(filter(None, [report.terms, *licensed]))
    return Corpus(_count(report, {**corpus, UNLABELLED: together}), report)


def _of_length(rows: Dataset, hours: float, seed: int) -> Dataset:
    """As many of the rows as last so many hours, the last of which ends beyond them."""
    order = np.argsort(_drawn(rows["id"], seed))
    ends = np.cumsum(np.array(rows["duration"], dtype=float)[order]) / 3600
    if ends[-1] < hours:
        raise ValueError(
            f"unlabelled_hours is {hours:g}, but there are only {ends[-1]:.3g} hours of unlabelled speech: take fewer, "
            "or leave it out for all of them."
        )
    return rows.select(np.sort(order[: int(np.searchsorted(ends, hours)) + 1]))


def _drawn(ids: Iterable[str], seed: int) -> list[str]:
    """A key for each id, whose order is that of a draw."""
    return [hashlib.sha256(f"{seed}/{identifier}".encode()).hexdigest() for identifier in ids]


def _unrated(rows: Dataset, confidence: np.ndarray) -> Dataset:
    """The rows without ratings, in the split of unlabelled speech."""
    floats = {dimension: np.full(len(rows), np.nan) for dimension in EMOTION_DIMENSIONS} | {
        "asr_confidence": confidence
    }
    return _replaced(_replaced(rows, floats, pyarrow.float32()), {"split": [UNLABELLED] * len(rows)})


def _check_ids(rows: Dataset, corpus: Corpus) -> None:
    known = {identifier for of_split in corpus.values() for identifier in of_split["id"]}
    for identifier in rows["id"]:
        if identifier in known:
            raise ValueError(
                f"the unlabelled utterance {identifier!r} has the id of another one: give one of the two corpora "
                "another alias."
            )
        known.add(identifier)


def _check_held_out(rows: Dataset, corpus: Corpus, same_sentences: SameSentences, report: CorpusReport) -> set[str]:
    """Looks for sounds and sentences of validation and test in unlabelled speech; returns the ids to leave out.

    Raises:
        CorpusError: a sound is there, whatever the setting.
        ValueError: a sentence is there, and `same_sentences` is "refuse".
    """
    held = {split: corpus[split] for split in HELD_OUT if split in corpus}
    ids, texts = rows["id"], rows["transcript"]
    problems = [
        CorpusProblem("", _SAME_SOUND, f"also {held_rows['id'][other]}, split {split}", ids[index], "audio")
        for split, held_rows in held.items()
        for index, other in same_sounds(rows, held_rows)
    ]
    if problems:
        raise CorpusError(
            replace(report, problems=problems), "Unlabelled speech must not hold an utterance of validation or test."
        )
    sentences = set().union(*(_sentences(held_rows) for held_rows in held.values()))
    said = [identifier for identifier, text in zip(ids, texts, strict=True) if sentence_key(text) in sentences]
    if not said:
        return set()
    shown = ", ".join(map(repr, said[:_SHOWN])) + (f" and {len(said) - _SHOWN:,} more" if len(said) > _SHOWN else "")
    if same_sentences == "refuse":
        raise ValueError(
            f"{quantity(len(said), 'unlabelled utterance says', 'unlabelled utterances say')} a sentence of validation "
            f"or test: {shown}. The teacher reads it, so that the student would learn what the words of the test mean. "
            "same_sentences: leave_out leaves them out, and same_sentences: allow takes them all the same."
        )
    if same_sentences == "allow":
        report.warnings.append(
            f"{quantity(len(said), 'unlabelled utterance says', 'unlabelled utterances say')} a sentence of validation "
            "or test, which same_sentences allows: scores on these sentences are too good"
        )
        return set()
    report.skipped["unlabelled, with a sentence of validation or test"] = len(said)
    return set(said)
