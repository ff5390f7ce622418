"""A licensed corpus of nine noises, in rows as a builder gives them."""

import json

import numpy as np
import soundfile

from cmkd.corpora.building import build_corpus
from cmkd.corpora.checks import Rating, SourceRow
from cmkd.corpora.report import CorpusReport

TERMS = "The Institute of Toys allows nobody to pass it on."


def write(path, seed, seconds=0.1, rate=8000, **settings):
    samples = np.random.default_rng(seed).integers(-9000, 9000, int(seconds * rate), dtype=np.int16)
    soundfile.write(path, samples, rate, **settings)


def source_rows():
    """Five rows of train, two of validation, two of test."""
    splits = ["train"] * 5 + ["dev"] * 2 + ["test"] * 2
    return [
        SourceRow(
            row=f"labels.csv:{number + 2}",
            id=f"u{number}",
            audio=f"{number}.wav",
            split=split,
            transcript=f"Word {number}.",
            activation=1.1 + number / 2,
            valence=None if number == 3 else "4.2",
            dominance=3,
            speaker=split,
            gender="f",
            ratings=[Rating("detailed.csv:1", "ann", 1.1, None, 3), Rating("detailed.csv:2", "bob", 2.1, 5.0, 3)],
        )
        for number, split in enumerate(splits)
    ]


def build(folder, rows=None, on_error="raise", terms="", **settings):
    report = CorpusReport(name="toys", release="1.0", label_scale=(1, 7), config={"data_dir": str(folder)}, terms=terms)
    return build_corpus(source_rows() if rows is None else rows, report, on_error, folder, **settings)


def as_text(rows):
    """Rows that can be compared although NaN is not NaN."""
    return json.dumps(list(rows))
