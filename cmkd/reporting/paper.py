"""The figures that Srinivasan, Huang and Kirchhoff publish (arXiv 2112.00158), row by row, and what trains each row.

Tables 1, 2 and 3 of the paper as plain data, and later work on another release. Nothing here is computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from configuration_cmkd import EMOTION_DIMENSIONS

_BERT = "bert-base-uncased"
_HUBERT_BASE = "facebook/hubert-base-ls960"
_HUBERT_LARGE = "facebook/hubert-large-ll60k"


@dataclass(frozen=True)
class PublishedRow:
    """One row of a table.

    Attributes:
        number: the number of the row in the paper; None for later work.
        system: the name of the system.
        scores: the figures by dimension, None for one that is not given; None for a row that nobody has published.
        stage: the stage that trains it; None for other papers' figures.
        encoders: the settings of a recipe that make a run of `stage` this row, with their values.
        builds_on: the number of the row of the same table that it is compared with.
        metric: what `scores` are, an entry of results.json.
    """

    number: int | None
    system: str
    scores: Mapping[str, float | None] | None
    stage: str | None = None
    encoders: Mapping[str, str] = field(default_factory=dict)
    builds_on: int | None = None
    metric: Literal["ccc", "pearson"] = "ccc"


@dataclass(frozen=True)
class PublishedTable:
    """One table.

    Attributes:
        name: its name, such as "Table 2".
        title: what it shows.
        corpus: the name of the corpus in `cmkd.corpora`.
        split: the split that is scored.
        rows: its rows, in the order of the paper.
        release: the release of the corpus, as its version writes it; None if there is only one.
        utterances: the number of utterances in all splits together in the paper; None if it is not compared.
        gap: by stage, the numbers of rows; the first of them that was run represents the stage in the figure of the
            valence gap. "audio" stands for the best audio-only system without a teacher, frozen or fine-tuned.
    """

    name: str
    title: str
    corpus: str
    split: str
    rows: tuple[PublishedRow, ...]
    release: str | None = None
    utterances: int | None = None
    gap: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def _scores(*values: float | None) -> Mapping[str, float | None]:
    return dict(zip(EMOTION_DIMENSIONS, values, strict=True))


def _speech(encoder: str) -> Mapping[str, str]:
    return {"student_speech_encoder": encoder}


def _teacher(encoder: str) -> Mapping[str, str]:
    return {"teacher_speech_encoder": encoder, "text_encoder": _BERT}


_TEXT = {"text_encoder": _BERT}
_LARGE_TEACHER = _teacher(_HUBERT_LARGE)
_BASE_TEACHER = _teacher(_HUBERT_BASE)
_STUDENT = {**_speech(_HUBERT_BASE), **_LARGE_TEACHER}
_BASE_STUDENT = {**_speech(_HUBERT_BASE), **_BASE_TEACHER}

TABLE_1 = PublishedTable(
    name="Table 1",
    title="the teacher on its own training split",
    corpus="msp-podcast",
    split="train",
    rows=(
        PublishedRow(9, "teacher: 7 + 8, CCC", _scores(0.763, 0.687, 0.715), "teacher", _LARGE_TEACHER),
        PublishedRow(
            9, "teacher: 7 + 8, Pearson", _scores(0.764, 0.699, 0.717), "teacher", _LARGE_TEACHER, metric="pearson"
        ),
    ),
    release="1.6",
    utterances=50_362,
)
"""Its rows bear the teacher's number in Table 2; the paper gives them none."""

TABLE_2 = PublishedTable(
    name="Table 2",
    title="CCC on test",
    corpus="msp-podcast",
    split="test",
    rows=(
        PublishedRow(1, "attention baseline (Lin & Busso 2020)", _scores(0.695, 0.307, 0.613)),
        PublishedRow(2, "CPC baseline (Li et al. 2021)", _scores(0.706, 0.377, 0.639)),
        PublishedRow(3, "Modified CPC, frozen", _scores(0.736, 0.396, 0.662), "audio", _speech("cpc/60k")),
        PublishedRow(
            4,
            "wav2vec 2.0 Base, frozen",
            _scores(0.728, 0.363, 0.636),
            "audio",
            _speech("facebook/wav2vec2-base-960h"),
        ),
        PublishedRow(
            5,
            "wav2vec 2.0 Large, frozen",
            _scores(0.735, 0.472, 0.654),
            "audio",
            _speech("facebook/wav2vec2-large-lv60"),
        ),
        PublishedRow(6, "HuBERT Base, frozen", _scores(0.733, 0.485, 0.640), "audio", _speech(_HUBERT_BASE)),
        PublishedRow(7, "HuBERT Large, frozen", _scores(0.752, 0.547, 0.674), "audio", _speech(_HUBERT_LARGE)),
        PublishedRow(8, "BERT Base, text only, frozen", _scores(0.317, 0.563, 0.290), "text", _TEXT),
        PublishedRow(9, "teacher: 7 + 8", _scores(0.765, 0.690, 0.683), "teacher", _LARGE_TEACHER, builds_on=7),
        PublishedRow(10, "6 fine-tuned", _scores(0.730, 0.533, 0.644), "finetune", _speech(_HUBERT_BASE), builds_on=6),
        PublishedRow(11, "T/S, teacher 9, student 6", _scores(0.738, 0.590, 0.650), "ts", _STUDENT, builds_on=10),
        PublishedRow(12, "cT/S, teacher 9, student 6", _scores(0.757, 0.627, 0.671), "cts", _STUDENT, builds_on=11),
    ),
    release="1.6",
    utterances=50_362,
    gap={"audio": (10, 6), "ts": (11,), "cts": (12,), "teacher": (9,)},
)

TABLE_3 = PublishedTable(
    name="Table 3",
    title="CCC, 5-fold cross-validation",
    corpus="iemocap",
    split="test",
    rows=(
        PublishedRow(1, "multimodal baseline (Atmaja & Akagi 2020)", _scores(0.594, 0.446, 0.485)),
        PublishedRow(2, "HuBERT Base", _scores(0.663, 0.527, 0.530), "audio", _speech(_HUBERT_BASE)),
        PublishedRow(3, "BERT Base, text only", _scores(0.463, 0.576, 0.442), "text", _TEXT),
        PublishedRow(4, "teacher: 2 + 3", _scores(0.668, 0.648, 0.537), "teacher", _BASE_TEACHER, builds_on=2),
        PublishedRow(5, "T/S", _scores(0.667, 0.582, 0.545), "ts", _BASE_STUDENT, builds_on=2),
        PublishedRow(6, "cT/S", _scores(0.645, 0.481, 0.528), "cts", _BASE_STUDENT, builds_on=5),
    ),
    utterances=10_039,
    gap={"audio": (2,), "ts": (5,), "cts": (6,), "teacher": (4,)},
)

TABLES = (TABLE_1, TABLE_2, TABLE_3)

LATER_RELEASE = "MSP-Podcast 1.7, test-1"
"""What LATER was scored on: not the release and test split of Table 2."""

LATER = (
    PublishedRow(None, "wav2vec2-large-robust, all fine-tuned (Wagner et al. 2023)", _scores(None, 0.638, None)),
    PublishedRow(None, "best audio-only: Wav2Small's teacher ensemble", _scores(0.762, 0.676, 0.684)),
)
"""Other papers' later audio-only systems."""
