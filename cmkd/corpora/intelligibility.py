"""How well a recogniser understands a spoken corpus, whose true words are known: word error rates by voice and acting.

Both texts go through Whisper's English normaliser (lower case, no punctuation, numbers as digits, contractions written
out; British spellings stay) before jiwer counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from datasets import Dataset

THIRDS = ("low", "middle", "high")


def word_errors(truth: Sequence[str], heard: Sequence[str]) -> dict[str, Any]:
    """The word error rate and its components, over all utterances whose true sentence has a word.

    Args:
        truth (`list[str]`): What was said.
        heard (`list[str]`): What the recogniser understood, in the same order.

    Returns:
        `dict`: `utterances`, `words` (of the true sentences), `word_error_rate` (None without words; more than 1 is
        possible), `substitutions`, `deletions`, `insertions`, `without_error` and `empty` (utterances).

    Raises:
        ImportError: jiwer is not installed.
    """
    try:
        import jiwer
    except ImportError as error:
        raise ImportError("Word error rates need jiwer: pip install jiwer") from error
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    english = EnglishTextNormalizer({})

    def normalise(text: str) -> str:  # it leaves one dot of three
        return " ".join(word for word in english(text).split() if any(map(str.isalnum, word)))

    pairs = [(normalise(sentence), normalise(text)) for sentence, text in zip(truth, heard, strict=True)]
    pairs = [(sentence, text) for sentence, text in pairs if sentence]
    counts = {"substitutions": 0, "deletions": 0, "insertions": 0}
    words = 0
    if pairs:
        counted = jiwer.process_words([sentence for sentence, _ in pairs], [text for _, text in pairs])
        counts = {name: getattr(counted, name) for name in counts}
        words = counted.hits + counted.substitutions + counted.deletions
    return {
        "utterances": len(pairs),
        "words": words,
        "word_error_rate": round(sum(counts.values()) / words, 4) if words else None,
        **counts,
        "without_error": sum(sentence == text for sentence, text in pairs),
        "empty": sum(not text for _, text in pairs),
    }


def word_errors_by(rows: Dataset, heard: Mapping[str, str]) -> dict[str, dict[str, dict[str, Any]]]:
    """Word errors of all, by speaker, and by thirds of the rated activation and dominance.

    Args:
        rows (`Dataset`): Utterances with their true transcripts.
        heard (`dict[str, str]`): What the recogniser understood by id; utterances without an entry are left out.

    Returns:
        `dict`: Under `all`, `speaker`, `activation` and `dominance` what [`word_errors`] returns, by the name of the
        speaker or one of `THIRDS`. Dimensions that are not rated are left out.
    """
    known = [place for place, identifier in enumerate(rows["id"]) if identifier in heard]
    truth = [rows["transcript"][place] for place in known]
    texts = [heard[rows["id"][place]] for place in known]
    groups: dict[str, list[str]] = {"all": ["all"] * len(known), "speaker": [rows["speaker"][place] for place in known]}
    for dimension in ("activation", "dominance"):
        ratings = np.array([rows[dimension][place] for place in known], dtype=float)
        if len(ratings) and not np.isnan(ratings).any():
            edges = np.quantile(ratings, [1 / 3, 2 / 3])
            groups[dimension] = [THIRDS[int(np.searchsorted(edges, rating))] for rating in ratings]
    return {
        group: {
            name: word_errors(*_of(name, names, truth, texts))
            for name in sorted(set(names), key=THIRDS.index if group in ("activation", "dominance") else None)
        }
        for group, names in groups.items()
    }


def described(errors: Mapping[str, Mapping[str, Mapping[str, Any]]], recogniser: str) -> list[str]:
    """What [`word_errors_by`] found, as notes for the report of the corpus."""
    notes = []
    for group, by_name in errors.items():
        rates = {name: found["word_error_rate"] for name, found in by_name.items() if found["words"]}
        if group == "all" and rates:
            words = by_name["all"]["words"]
            notes.append(f"word error rate of {recogniser}: {rates['all']:.1%} of {words:,} words")
        elif rates:
            listed = ", ".join(f"{name} {rate:.1%}" for name, rate in rates.items())
            what = group if group == "speaker" else f"rated {group}, by thirds"
            notes.append(f"word error rate by {what}: {listed}")
    return notes


def _of(name: str, names: Sequence[str], truth: Sequence[str], texts: Sequence[str]) -> tuple[list[str], list[str]]:
    places = [place for place, one in enumerate(names) if one == name]
    return [truth[place] for place in places], [texts[place] for place in places]
