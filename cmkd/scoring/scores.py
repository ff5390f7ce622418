"""The scores of all systems of a run, as in results.json, and sentences that explain their intervals and tests."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from cmkd.scoring.confidence import LEVEL, PERMUTATIONS, SEED, ccc_interval, paired_test
from cmkd.scoring.evaluation import Predictions, evaluate_predictions
from cmkd.spelling import enumerated
from cmkd.stages import COMPARISONS, STAGES

_COMPARED = [name for name in STAGES if any(name in pair for pair in COMPARISONS)]
NOTHING_COMPARED = f"Not known: it takes two of {enumerated([STAGES[name].short_name for name in _COMPARED])}."
"""What a report says if there are no comparisons."""

_COMPARED_SPLITS = ("validation", "test")
_GENDERS = ("female", "male")


def score_systems(predictions: Mapping[str, Mapping[str, Predictions]]) -> dict[str, Any]:
    """Scores every system on every split; `cmkd.scoring.confidence` explains the intervals and p-values.

    Args:
        predictions: the answers by split and system.

    Returns:
        Three entries of results.json:

        - `systems`: by system and split, what `evaluate_predictions` returns, and in addition `interval`, by dimension
          [low, high], or None if the split has fewer than two rated speakers, and `by_gender`, by "female" and "male"
          where there are any, `{"n": …, "ccc": {…}}`. With several corpora also `by_corpus`, by the corpus's name
          what `evaluate_predictions` returns of its utterances, and their `interval`.
        - `comparisons`: for each pair of COMPARISONS that were both scored on validation or test
          `{"system", "baseline", "split", "difference", "interval", "p", "smallest_p"}`. The last four are by
          dimension, as `cmkd.paired_test` returns them, or None if nobody rated it; the difference is the CCC of the
          system minus that of the baseline. With several corpora also `by_corpus`, the last four by the corpus's name.
        - `confidence`: as `describe_confidence` returns it.

    Raises:
        ValueError: two systems have answered different utterances of a split, or with different labels.
    """
    systems: dict[str, dict[str, Any]] = {}
    comparisons, speakers = [], {}
    for split, answers in predictions.items():
        if not answers:
            continue
        speakers[split] = _same_utterances(split, answers).speakers
        for system, answer in answers.items():
            scores = _with_interval(answer) | {"by_gender": _by_gender(answer)}
            if answer.corpora:
                scores["by_corpus"] = {name: _with_interval(part) for name, part in by_corpus(answer).items()}
            systems.setdefault(system, {})[split] = scores
        for system, baseline in pairs_to_compare(split, answers):
            pair = answers[system], answers[baseline]
            names = {"system": system, "baseline": baseline, "split": split}
            comparisons.append(names | compare(*pair) | compare_by_corpus(*pair))
    order = [system for answers in predictions.values() for system in answers]
    return {
        "systems": {system: systems[system] for system in dict.fromkeys(order)},
        "comparisons": comparisons,
        "confidence": describe_confidence(speakers),
    }


def pairs_to_compare(split: str, systems: Collection[str]) -> list[tuple[str, str]]:
    """The pairs of COMPARISONS that are both among `systems`; none on train."""
    if split not in _COMPARED_SPLITS:
        return []
    return [(system, baseline) for system, baseline in COMPARISONS if system in systems and baseline in systems]


def compare(ours: Predictions, others: Predictions) -> dict[str, dict[str, Any]]:
    """The result of `cmkd.paired_test` for two systems, by field and dimension: `{"p": {"activation": …, …}, …}`.

    Args:
        ours: the answers of the system, of one seed or of several.
        others: those of the system to compare with, to the same utterances.
    """
    tests = paired_test(ours.labels, ours.predictions, others.predictions, ours.speakers)
    return {
        field: {dimension: entry and entry[field] for dimension, entry in tests.items()}
        for field in ("difference", "interval", "p", "smallest_p")
    }


def compare_by_corpus(ours: Predictions, others: Predictions) -> dict[str, Any]:
    """The same for the utterances of each corpus, as `{"by_corpus": {name: …}}`; empty where there is one corpus."""
    if not ours.corpora:
        return {}
    parts = by_corpus(others)
    return {"by_corpus": {name: compare(part, parts[name]) for name, part in by_corpus(ours).items()}}


def by_corpus(answer: Predictions) -> dict[str, Predictions]:
    """The answers to the utterances of each corpus by its name, in the order in which they come; of several corpora."""
    parts = {}
    for name in dict.fromkeys(answer.corpora):
        rows = [row for row, corpus in enumerate(answer.corpora) if corpus == name]
        ids, speakers, genders = ([of[row] for row in rows] for of in (answer.ids, answer.speakers, answer.genders))
        parts[name] = Predictions(ids, answer.predictions[..., rows, :], answer.labels[rows], speakers, genders)
    return parts


def interval_of(answer: Predictions) -> dict[str, list[float] | None]:
    """The result of `cmkd.ccc_interval` for a system."""
    return ccc_interval(answer.labels, answer.predictions, answer.speakers)


def describe_confidence(speakers: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """What intervals and tests are based on.

    Args:
        speakers: by split, the speaker of each utterance, "" where unknown.

    Returns:
        `level`; `permutations`, the most that are tried, and their `seed`; and in `splits`, by split, how many
        `speakers` are known, and how many `utterances_without_speaker` each count as a speaker.
    """
    splits = {
        split: {"speakers": len(set(names) - {""}), "utterances_without_speaker": list(names).count("")}
        for split, names in speakers.items()
    }
    return {"level": LEVEL, "permutations": PERMUTATIONS, "seed": SEED, "splits": splits}


def describe_intervals(confidence: Mapping[str, Any], splits: Collection[str]) -> str:
    """A sentence about what the intervals of these splits are based on.

    Args:
        confidence: as `describe_confidence` returns it.
        splits: the splits whose intervals are shown.

    >>> confidence = describe_confidence({"test": ["anna", "ben"]})
    >>> describe_intervals(confidence, ["test"])
    'In brackets the 95% interval over the 2 speakers of test (jackknife with the t distribution).'
    """
    shown = {split: entry for split, entry in confidence["splits"].items() if split in splits}
    counted = [
        f"{entry['speakers']:,} speakers of {split}"
        + (
            f" and {entry['utterances_without_speaker']:,} utterances whose speaker is unknown"
            if entry["utterances_without_speaker"]
            else ""
        )
        for split, entry in shown.items()
    ]
    unknown = any(entry["utterances_without_speaker"] for entry in shown.values())
    return (
        f"In brackets the {confidence['level']:.0%} interval over the {' and the '.join(counted)} "
        "(jackknife with the t distribution)."
        + (" Each utterance of an unknown speaker counts as a speaker, so that it is too narrow." if unknown else "")
    )


def describe_test(smallest: Iterable[float | None], permutations: int = PERMUTATIONS) -> str:
    """Sentences about what the p-values are, and how small they can be.

    Args:
        smallest: the `smallest_p` of each test that is shown; None is left out.
        permutations: the most permutations that are tried.

    >>> "cannot be below 0.125, however large" in describe_test([0.125, 0.125])
    True
    """
    values = sorted({value for value in smallest if value is not None})
    bound = format_p(values[0]) + (f" to {format_p(values[-1])}" if len(values) > 1 else "") if values else "1"
    return (
        "p is two-sided, of a permutation test in which the answers of the two systems are swapped for some of the "
        f"speakers (all ways, or {permutations:,} drawn at random). With these speakers it cannot be below {bound}, "
        "however large the difference. It is not corrected for the number of comparisons."
    )


def format_p(value: float) -> str:
    """A p-value with three digits.

    >>> format_p(0.125), format_p(0.0001), format_p(1.0)
    ('0.125', '0.0001', '1')
    """
    return f"{value:.3g}"


def _same_utterances(split: str, answers: Mapping[str, Predictions]) -> Predictions:
    """The answers of the first system, after checking that all systems answered the same utterances."""
    (name, first), *others = answers.items()
    for other, answer in others:
        if answer.ids != first.ids or not np.array_equal(answer.labels, first.labels, equal_nan=True):
            raise ValueError(
                f"predictions of {name} and {other} on {split} are about different utterances or labels: they come "
                "from different corpora; repeat one of the two stages with --overwrite."
            )
    return first


def _with_interval(answer: Predictions) -> dict[str, Any]:
    return evaluate_predictions(answer.predictions, answer.labels) | {"interval": interval_of(answer)}


def _by_gender(answer: Predictions) -> dict[str, Any]:
    genders = np.array(answer.genders)
    by_gender = {}
    for gender in _GENDERS:
        chosen = genders == gender
        if chosen.any():
            scores = evaluate_predictions(answer.predictions[chosen], answer.labels[chosen])
            by_gender[gender] = {"n": scores["n"], "ccc": scores["ccc"]}
    return by_gender
