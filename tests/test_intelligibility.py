"""Word error rates of a spoken corpus, against counts by hand."""

import math
import sys

import pytest
from datasets import Dataset

from cmkd.corpora.intelligibility import described, word_errors, word_errors_by


def test_errors_are_counted_after_normalising():
    found = word_errors(
        ["Don't go... Mr. Smith!", "Five cats.", "...", "red green blue black"],
        ["do not go mister smith", "5 dogs", "nothing said", ""],
    )
    assert found == {
        "utterances": 3,  # the third has no word
        "words": 5 + 2 + 4,
        "word_error_rate": round((1 + 4) / 11, 4),
        "substitutions": 1,
        "deletions": 4,
        "insertions": 0,
        "without_error": 1,
        "empty": 1,
    }
    assert word_errors([], []) | {"word_error_rate": 0} == dict.fromkeys(found, 0)
    assert word_errors([], [])["word_error_rate"] is None
    assert word_errors(["yes"], ["oh yes it is"])["word_error_rate"] == 3


def rows_of(number, activation=None):
    return Dataset.from_dict(
        {
            "id": [f"u{index}" for index in range(number)],
            "transcript": [f"this is word {index}" for index in range(number)],
            "speaker": ["anna" if index % 2 else "ben" for index in range(number)],
            "activation": activation or [float(index) for index in range(number)],
            "dominance": [float(-index) for index in range(number)],
        }
    )


def test_errors_by_speaker_and_by_thirds_of_the_ratings():
    rows = rows_of(9)
    heard = {f"u{index}": f"this is word {index}" for index in range(9)}
    heard |= {"u0": "this was word 0", "u7": "this was a word"}
    found = word_errors_by(rows, heard)
    rates = {group: {name: one["word_error_rate"] for name, one in names.items()} for group, names in found.items()}
    assert rates == {
        "all": {"all": round(4 / 36, 4)},
        "speaker": {"anna": round(3 / 16, 4), "ben": round(1 / 20, 4)},
        "activation": {"low": round(1 / 12, 4), "middle": 0.0, "high": round(3 / 12, 4)},
        "dominance": {"low": round(3 / 12, 4), "middle": 0.0, "high": round(1 / 12, 4)},
    }
    assert described(found, "a recogniser") == [
        "word error rate of a recogniser: 11.1% of 36 words",
        "word error rate by speaker: anna 18.8%, ben 5.0%",
        "word error rate by rated activation, by thirds: low 8.3%, middle 0.0%, high 25.0%",
        "word error rate by rated dominance, by thirds: low 25.0%, middle 0.0%, high 8.3%",
    ]


def test_what_was_not_transcribed_or_not_rated_is_left_out():
    found = word_errors_by(rows_of(4, activation=[1.0, math.nan, 2.0, 3.0]), {"u1": "this is word 1"})
    assert set(found) == {"all", "speaker", "dominance"}
    assert found["all"]["all"]["utterances"] == 1 and list(found["speaker"]) == ["anna"]
    assert described(word_errors_by(rows_of(2), {}), "a recogniser") == []


def test_without_jiwer_it_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "jiwer", None)
    with pytest.raises(ImportError, match="need jiwer: pip install jiwer"):
        word_errors(["a"], ["a"])
