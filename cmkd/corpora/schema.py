"""One schema for every corpus: the columns, the names of the splits, and `Corpus`, which `load_corpus` returns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from datasets import Audio, Dataset, DatasetDict, Features, IterableDatasetDict, List, Value

from configuration_cmkd import EMOTION_DIMENSIONS

if TYPE_CHECKING:
    from datasets import IterableDataset

    from cmkd.corpora.report import CorpusReport

FEATURES = Features(
    {
        "id": Value("string"),
        "audio": Audio(decode=False),
        "transcript": Value("string"),
        **{dimension: Value("float32") for dimension in EMOTION_DIMENSIONS},
        "speaker": Value("string"),
        "gender": Value("string"),
        "split": Value("string"),
        "duration": Value("float32"),
        "label_scale": List(Value("float32"), length=2),
        "start": Value("float64"),
        "end": Value("float64"),
        "channel": Value("int32"),
    }
)
"""The columns of every corpus.

- `id`: unique in the corpus.
- `audio`: `{"bytes": ..., "path": ...}`, of which one may be None; [`cmkd.features.audio.read_audio`] reads it.
- `transcript`: "" if there is none.
- `activation`, `valence`, `dominance`: on the corpus's own scale; NaN means "not rated".
- `speaker`: "" if unknown.
- `gender`: "female", "male" or "".
- `split`: "train", "validation", "test" or another name, the same in every row of a split.
- `duration`: the duration of the utterance in seconds, as it was decoded.
- `label_scale`: minimum and maximum of the corpus's scale, the same in every row.
- `start`, `end`: the stretch of the file that is the utterance, in seconds; None for the beginning and the end of it.
- `channel`: which channel of the file is heard, counted from 0; None for the mean of all.

[`cmkd.features.stretch.stretch_of`] turns the last three into arguments of [`cmkd.features.audio.read_audio`].
"""

ANNOTATOR_FEATURES = Features(
    {
        "annotators": List(Value("string")),
        **{f"{dimension}_ratings": List(Value("float32")) for dimension in EMOTION_DIMENSIONS},
        **{f"{dimension}_std": Value("float32") for dimension in EMOTION_DIMENSIONS},
    }
)
"""The further columns of a corpus that is loaded with `annotators=True`.

- `annotators`: the names of those who rated the utterance.
- `activation_ratings`, `valence_ratings`, `dominance_ratings`: their ratings in the same order, on the corpus's own
  scale; NaN where one gave none. Their mean is not always the label: a corpus may leave ratings out of its consensus.
- `activation_std`, `valence_std`, `dominance_std`: the sample standard deviation (divisor n - 1) of the ratings that
  are not NaN, the spread from which the noise of a label can be estimated; NaN if there are fewer than two.
"""

SPLITS = ("train", "validation", "test")
"""The splits that training, model selection and the results table use, in this order."""

_VALIDATION_NAMES = {"val", "valid", "dev", "devel", "development"}

_STORED_AUDIO = {"bytes": Value("binary"), "path": Value("string")}


def corpus_features(annotators: bool, further: Mapping[str, Any] | None = None) -> Features:
    """The columns of a corpus, with those of its annotators or without, and further ones that only this corpus has."""
    return Features({**FEATURES, **(ANNOTATOR_FEATURES if annotators else {}), **(further or {})})


def stored_features(features: Features) -> Features:
    """The same columns with audio as bytes and path.

    datasets cannot build an Audio column without torchcodec, not even an undecoded one, but can cast this one to it.
    """
    return Features({**features, "audio": _STORED_AUDIO})


def normalise_split(name: str) -> str:
    """The name that a split has in a `Corpus`.

    Upper and lower case do not matter: "train", "validation" and "test" stay, and "val", "valid", "dev", "devel" and
    "development" become "validation". Every other name is kept as it is.

    >>> [normalise_split(name) for name in ("Train", "Development", "TEST", "Test1")]
    ['train', 'validation', 'test', 'Test1']
    """
    folded = name.casefold()
    if folded in SPLITS:
        return folded
    return "validation" if folded in _VALIDATION_NAMES else name


def rows_by_split(rows: Iterable[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Rows by their column `split`: train, validation and test first, the others in the order in which they come."""
    by_split: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    for row in rows:
        by_split.setdefault(row["split"], []).append(row)
    return {split: rows for split, rows in by_split.items() if rows}


class Corpus(DatasetDict):
    """The splits of a corpus, each a `Dataset` with the columns of `FEATURES`, and the report of the checks.

    A corpus with `annotators=True` has the columns of `ANNOTATOR_FEATURES` too. Methods inherited from `DatasetDict`
    (`map`, `filter`, ...) return a plain `DatasetDict`, without the report and without what guards a licensed corpus.
    `cmkd.push_corpus` puts a corpus on the Hub.

    Args:
        splits (`dict[str, Dataset]`): The data by split name.
        report (`CorpusReport`): What the corpus holds, what is wrong with it, and what was left out.
    """

    def __init__(self, splits: dict[str, Dataset], report: CorpusReport):
        super().__init__(splits)
        self.report = report

    @classmethod
    def from_rows(cls, rows: Iterable[dict[str, Any]], report: CorpusReport) -> Corpus:
        """Builds the splits from rows with the columns of `FEATURES`.

        The data set is held in memory: give the audio as paths, not as bytes, where there is much of it.
        """
        splits = {
            split: Dataset.from_list(rows, features=stored_features(FEATURES)).cast_column("audio", FEATURES["audio"])
            for split, rows in rows_by_split(rows).items()
        }
        return cls(splits, report)

    def push_to_hub(self, *args: Any, **settings: Any) -> NoReturn:
        """Refuses to push, since the method of `DatasetDict` would publish a licensed corpus without its terms.

        Raises:
            NotImplementedError: Always; use `cmkd.push_corpus` instead.
        """
        raise NotImplementedError(
            "a Corpus does not push itself, since its licence has to be checked first: call "
            "cmkd.push_corpus(corpus, repo_id), which takes the same settings."
        )


class StreamedCorpus(IterableDatasetDict):
    """The splits of a corpus, each an `IterableDataset` with the columns of a `Corpus`, and the report of the tables.

    Sound is read and checked only when its row is reached, so the report does not know hours, durations and broken
    files, nor sounds that occur twice. A broken file raises a `CorpusError` when its row is reached, or with
    `on_error="skip"` is left out with a warning in the log. The column `audio` is declared as a plain struct of bytes
    and path, since datasets cannot stream an `Audio` column without torchcodec; its values are those of a `Corpus`.

    Args:
        splits (`dict[str, IterableDataset]`): The data by split name.
        report (`CorpusReport`): What is known before any sound is read.
    """

    def __init__(self, splits: dict[str, IterableDataset], report: CorpusReport):
        super().__init__(splits)
        self.report = report

    def push_to_hub(self, *args: Any, **settings: Any) -> NoReturn:
        """Refuses, as that of a `Corpus` does.

        Raises:
            NotImplementedError: Always; `cmkd.push_corpus` pushes a corpus that is loaded without streaming.
        """
        raise NotImplementedError(
            "a StreamedCorpus cannot be pushed: its sound is not checked yet. Load it without streaming, and call "
            "cmkd.push_corpus(corpus, repo_id)."
        )
