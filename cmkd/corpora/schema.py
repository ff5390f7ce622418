"""One schema for every corpus: the columns, the names of the splits, and `Corpus`, what `load_corpus` returns."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from datasets import Audio, Dataset, DatasetDict, Features, List, Value

from configuration_cmkd import EMOTION_DIMENSIONS

if TYPE_CHECKING:
    from cmkd.corpora.checks import CorpusReport

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
    }
)
"""The columns of every corpus.

- `id`: unique in the corpus.
- `audio`: `{"bytes": ..., "path": ...}`, one of the two may be None; [`cmkd.audio.read_audio`] reads it.
- `transcript`: "" if there is none.
- `activation`, `valence`, `dominance`: on the corpus' own scale; NaN means "not rated".
- `speaker`: "" if unknown.
- `gender`: "female", "male" or "".
- `split`: "train", "validation", "test" or another name, the same in every row of a split.
- `duration`: measured, in seconds.
- `label_scale`: minimum and maximum of the corpus' scale, the same in every row.
"""

SPLITS = ("train", "validation", "test")
"""The splits that training, model selection and the results table use, in this order."""

_VALIDATION_NAMES = {"val", "valid", "dev", "devel", "development"}

# datasets cannot build an Audio column without torchcodec, not even an undecoded one, but can cast this one to it.
_STORED_FEATURES = Features({**FEATURES, "audio": {"bytes": Value("binary"), "path": Value("string")}})


def normalise_split(name: str) -> str:
    """The name that a split has in a `Corpus`.

    Whatever the case, "train", "validation" and "test" are themselves, and "val", "valid", "dev", "devel" and
    "development" are "validation". Every other name is kept as it is.

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

    Methods inherited from `DatasetDict` (`map`, `filter`, ...) return a plain `DatasetDict`, without the report.

    Args:
        splits (`dict[str, Dataset]`): The data by split name.
        report (`CorpusReport`): What was found, and what was left out.
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
            split: Dataset.from_list(rows, features=_STORED_FEATURES).cast_column("audio", FEATURES["audio"])
            for split, rows in rows_by_split(rows).items()
        }
        return cls(splits, report)
