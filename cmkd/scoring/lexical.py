"""What a network has learned about words, measured directly: it finds the sentence, and a line from it gives ratings.

numpy only; no network and no training is needed here.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from cmkd.scoring.evaluation import evaluate_predictions
from configuration_cmkd import EMOTION_DIMENSIONS

RECALLS = (1, 5)
"""The numbers of sentences among which the right one counts as found."""

RIDGE_STRENGTHS = tuple(10.0**power for power in range(-5, 5))
"""The penalties of [`ridge_scores`] that are tried, for inputs of variance 1 and a mean squared error."""

_ROWS = 1024  # whose similarities are held at a time


def sentence_ranks(found: np.ndarray, sentences: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """At which place each utterance's own sentence comes, when all sentences are sorted by their cosine with `found`.

    Args:
        found: (n, size), where a network puts each utterance.
        sentences: (n, size), where its sentence is; the same for utterances of the same group.
        groups: (n,), the same number for utterances with the same words: these are one sentence, not several.

    Returns:
        (n,) from 1, the nearest. Sentences that are exactly as near as the own one count as nearer, so that a network
        that puts all utterances in one place, or nowhere, finds nothing.
    """
    _, first, own = np.unique(groups, return_index=True, return_inverse=True)
    found, candidates = _of_length_1(found), _of_length_1(sentences[first])
    ranks = []
    for start in range(0, len(found), _ROWS):
        similarity = found[start : start + _ROWS] @ candidates.T
        rows = np.arange(len(similarity))
        ranks.append((similarity >= similarity[rows, own[start : start + _ROWS], None]).sum(1))
    return np.concatenate(ranks) if ranks else np.zeros(0, dtype=int)


def retrieval_scores(found: np.ndarray, sentences: np.ndarray, groups: np.ndarray) -> dict[str, Any]:
    """How well the sentences of a split are found, and how well they would be by chance.

    Args:
        found, sentences, groups: as for [`sentence_ranks`].

    Returns:
        `n`, the number of utterances; `sentences`, that of different ones; `recall_at_1` and `recall_at_5`, the shares
        of utterances whose sentence is among the 1 and 5 nearest; `median_rank`; `mean_reciprocal_rank`; and `chance`,
        the last four for sentences in random order.

    >>> places = np.eye(2)
    >>> retrieval_scores(places, places, np.array([0, 1]))["recall_at_1"]
    1.0
    """
    ranks = sentence_ranks(found, sentences, groups)
    number = len(np.unique(groups))
    by_chance = np.arange(1, number + 1)
    return {"n": len(ranks), "sentences": number, **_of_ranks(ranks), "chance": _of_ranks(by_chance)}


def ridge_scores(
    inputs: Mapping[str, np.ndarray], labels: Mapping[str, np.ndarray], is_used: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """How much of the ratings a line from `inputs` holds: a ridge regression for each dimension, fitted on train.

    Each coordinate is brought to mean 0 and variance 1 on train. The strength of the penalty is the one of
    `RIDGE_STRENGTHS` with the best CCC on validation, for each dimension by itself; so the figure of validation is a
    little too good, and that of test is not.

    Args:
        inputs: by split, train, validation and test among them, (n, size).
        labels: by split, (n, 3) on the unit interval, NaN where not rated.
        is_used: by split, (n,), whether an utterance counts.

    Returns:
        `strength` by dimension, and `ccc` and `pearson` by split and dimension. A ridge answers too evenly where the
        inputs hold little, which the CCC counts against it and Pearson's correlation does not. None in a dimension in
        which nobody is rated.
    """
    train = inputs["train"][is_used["train"]].astype(np.float64)
    mean, std = train.mean(0), train.std(0)
    standardized = {split: (values - mean) / np.where(std > 0, std, 1.0) for split, values in inputs.items()}
    scores = {}
    for strength in RIDGE_STRENGTHS:
        answers = _ridge_answers(standardized, labels["train"], is_used["train"], strength)
        scores[strength] = {
            split: evaluate_predictions(answer[is_used[split]], labels[split][is_used[split]])
            for split, answer in answers.items()
        }
    best: dict[str, float | None] = {}
    for name in EMOTION_DIMENSIONS:
        tried = {strength: of_it["validation"]["ccc"][name] for strength, of_it in scores.items()}
        rated = {strength: ccc for strength, ccc in tried.items() if ccc is not None}
        best[name] = max(rated, key=rated.__getitem__, default=None)

    def of_best(metric: str) -> dict[str, dict[str, float | None]]:
        return {
            split: {
                name: None if strength is None else scores[strength][split][metric][name]
                for name, strength in best.items()
            }
            for split in inputs
        }

    return {"strength": best, "ccc": of_best("ccc"), "pearson": of_best("pearson")}


def _ridge_answers(
    inputs: Mapping[str, np.ndarray], labels: np.ndarray, is_used: np.ndarray, strength: float
) -> dict[str, np.ndarray]:
    """(n, 3) for each split: minimises, per dimension, the mean squared error on train plus strength ||weights||^2."""
    columns = []
    for label in labels.T:
        rows = is_used & ~np.isnan(label)
        if not rows.any():
            columns.append({split: np.zeros(len(values)) for split, values in inputs.items()})
            continue
        x, y = inputs["train"][rows], label[rows].astype(np.float64)
        centre, mean = x.mean(0), y.mean()
        x = x - centre
        gram = x.T @ x / len(x) + strength * np.eye(x.shape[1])
        weights = np.linalg.solve(gram, x.T @ (y - mean) / len(x))
        columns.append({split: (values - centre) @ weights + mean for split, values in inputs.items()})
    return {split: np.stack([column[split] for column in columns], axis=1) for split in inputs}


def _of_ranks(ranks: np.ndarray) -> dict[str, float]:
    recalls = {f"recall_at_{number}": float((ranks <= number).mean()) for number in RECALLS}
    return {**recalls, "median_rank": float(np.median(ranks)), "mean_reciprocal_rank": float((1 / ranks).mean())}


def _of_length_1(values: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    return values / np.where(lengths > 0, lengths, 1.0)
