r"""How sure a CCC is, and whether two systems differ by more than chance: the bootstrap over speakers.

Utterances of one speaker are alike, so that what is drawn anew is speakers, not utterances: each of the resamples
draws, with replacement, as many speakers as there are, and takes all utterances of each. An utterance whose speaker is
unknown is a speaker of its own; where many are, intervals are too narrow. With fewer than about 20 speakers they are
rough, and rather too narrow.

A resample is a vector of weights, how often each speaker was drawn, and CCC depends on a split only through the number
of rated utterances, the sums, sums of squares and sum of products of predictions and labels. These are added up a
speaker once, of values less their mean over the split so that nothing cancels; a resample is then a weighted sum.

All systems of a split are scored on the same resamples, which makes the comparison of two a paired one. With $d$ the
difference of their CCC in a resample and $B$ resamples,

$$p = \min\left(1, 2\,\frac{1 + \min(\#\{d \le 0\}, \#\{d \ge 0\})}{B + 1}\right)$$

is the two-sided p-value of the hypothesis that they are equally good: the smallest level at which the percentile
interval of the difference leaves out 0. With 10,000 resamples the smallest possible value is 0.0002.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from configuration_cmkd import EMOTION_DIMENSIONS

LEVEL = 0.95
RESAMPLES = 10_000
SEED = 0

_WEIGHTS_AT_A_TIME = 4_000_000
_CONSTANT = 1e-12  # a variance below this share of the split's is one of a constant, but for rounding


def speaker_clusters(speakers: Sequence[str]) -> np.ndarray:
    """The number (n,) of each utterance's speaker, from 0 on; every "" has a number of its own.

    >>> speaker_clusters(["b", "", "a", "b", ""]).tolist()
    [0, 1, 2, 0, 3]
    """
    numbers: dict[Any, int] = {}
    return np.array([numbers.setdefault(speaker or index, len(numbers)) for index, speaker in enumerate(speakers)])


def bootstrap_ccc(
    predictions: Mapping[str, np.ndarray],
    labels: np.ndarray,
    speakers: Sequence[str],
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> dict[str, np.ndarray]:
    """CCC of several systems on the same resamples of the speakers of one split.

    As in `cmkd.evaluation.evaluate_predictions`, an utterance without a rating is left out of that dimension, and CCC
    is 0 where predictions or labels are constant.

    Args:
        predictions: by system (n, 3), finite.
        labels: (n, 3), NaN where not rated.
        speakers: n names, "" where unknown.
        resamples: how often to draw.
        seed: of the draws; the same seed draws the same speakers.

    Returns:
        By system (resamples, 3), float64; NaN where a resample has no rating in the dimension, and throughout a
        dimension in which fewer than two speakers are rated: there is nothing to draw.

    Raises:
        ValueError: the shapes differ, or `resamples` is below 1.
    """
    if resamples < 1:
        raise ValueError(f"resamples={resamples}: must be at least 1.")
    labels = np.asarray(labels, dtype=np.float64)
    shapes = {name: np.shape(values) for name, values in predictions.items()}
    expected = (len(speakers), len(EMOTION_DIMENSIONS))
    if labels.shape != expected or any(shape != expected for shape in shapes.values()):
        raise ValueError(
            f"labels and predictions of {len(speakers)} speakers must have shape {expected}; "
            f"got {labels.shape} and {shapes}."
        )
    if not len(speakers):
        raise ValueError("there is no utterance to draw: a split needs at least one.")
    clusters = speaker_clusters(speakers)
    rated = ~np.isnan(labels)
    centred_labels = _centred(labels, rated)
    of_labels = np.stack([rated, centred_labels, centred_labels**2])
    of_systems = {}
    for name, values in predictions.items():
        centred = _centred(np.asarray(values, dtype=np.float64), rated)
        of_systems[name] = np.stack([centred, centred**2, centred * centred_labels])
    bias = {name: _means(values, rated) - _means(labels, rated) for name, values in predictions.items()}

    per_utterance = np.concatenate([of_labels, *of_systems.values()])  # (3 + 3 systems, n, 3)
    totals = np.zeros((clusters.max() + 1, len(per_utterance), len(EMOTION_DIMENSIONS)))
    np.add.at(totals, clusters, per_utterance.transpose(1, 0, 2))
    drawn = _draw(totals, resamples, np.random.default_rng(seed))  # (resamples, 3 + 3 systems, 3)

    enough = (totals[:, 0] > 0).sum(0) >= 2
    scale = totals.sum(0)
    found = {}
    for index, name in enumerate(of_systems):
        moments = drawn[:, 3 + 3 * index : 6 + 3 * index]
        spread = scale[3 + 3 * index + 1] / np.maximum(scale[0], 1), scale[2] / np.maximum(scale[0], 1)
        found[name] = np.where(enough, _ccc(drawn[:, :3], moments, bias[name], spread), np.nan)
    return found


def confidence_interval(resampled: np.ndarray, level: float = LEVEL) -> dict[str, list[float] | None]:
    """The percentile interval of what `bootstrap_ccc` returns for a system, or of a difference of two.

    Args:
        resampled: (resamples, 3); NaN is left out.
        level: of confidence, 0 to 1.

    Returns:
        By dimension [low, high]; None where every value is NaN.
    """
    tail = (1 - level) / 2
    return {
        dimension: [float(value) for value in np.nanquantile(column, [tail, 1 - tail])]
        if np.isfinite(column).any()
        else None
        for dimension, column in zip(EMOTION_DIMENSIONS, resampled.T, strict=True)
    }


def paired_p_value(differences: np.ndarray) -> dict[str, float | None]:
    """The two-sided p-value, as at the top of this module, of the hypothesis that two systems are equally good.

    Args:
        differences: (resamples, 3), CCC of one less CCC of the other on the same resamples; NaN is left out.

    Returns:
        By dimension, above 0 and up to 1; None where every value is NaN.
    """
    found: dict[str, float | None] = {}
    for dimension, column in zip(EMOTION_DIMENSIONS, differences.T, strict=True):
        values = column[~np.isnan(column)]
        rarer = min((values <= 0).sum(), (values >= 0).sum())
        found[dimension] = min(1.0, float(2 * (1 + rarer) / (len(values) + 1))) if len(values) else None
    return found


def _means(values: np.ndarray, rated: np.ndarray) -> np.ndarray:
    """Mean (3,) over the rated utterances; 0 where there is none."""
    return np.where(rated, values, 0.0).sum(0, dtype=np.float64) / np.maximum(rated.sum(0), 1)


def _centred(values: np.ndarray, rated: np.ndarray) -> np.ndarray:
    return np.where(rated, values - _means(values, rated), 0.0)


def _draw(totals: np.ndarray, resamples: int, generator: np.random.Generator) -> np.ndarray:
    """Sums (resamples, …) of the rows of `totals` (speakers, …), as many drawn each time as there are."""
    speakers = len(totals)
    flat = totals.reshape(speakers, -1)
    at_a_time = max(1, _WEIGHTS_AT_A_TIME // speakers)
    drawn = np.empty((resamples, flat.shape[1]))
    for start in range(0, resamples, at_a_time):
        count = min(at_a_time, resamples - start)
        numbers = generator.integers(speakers, size=(count, speakers)) + np.arange(count)[:, None] * speakers
        weights = np.bincount(numbers.ravel(), minlength=count * speakers).reshape(count, speakers)
        drawn[start : start + count] = weights.astype(np.float64) @ flat
    return drawn.reshape(resamples, *totals.shape[1:])


def _ccc(
    of_labels: np.ndarray, of_system: np.ndarray, bias: np.ndarray, spread: tuple[np.ndarray, np.ndarray]
) -> np.ndarray:
    """CCC (resamples, 3) from sums (resamples, 3, 3) of values less their means over the split.

    Args:
        of_labels: number rated, sum and sum of squares of the labels.
        of_system: sum and sum of squares of the predictions, sum of the products of both.
        bias: (3,) mean prediction less mean label over the split.
        spread: variances (3,) of predictions and labels over the split, against which a constant is told.
    """
    number, label_sum, label_squares = (of_labels[:, row] for row in range(3))
    system_sum, system_squares, products = (of_system[:, row] for row in range(3))
    with np.errstate(invalid="ignore", divide="ignore"):
        label_mean, system_mean = label_sum / number, system_sum / number
        label_variance = label_squares / number - label_mean**2
        system_variance = system_squares / number - system_mean**2
        covariance = products / number - label_mean * system_mean
        ccc = 2 * covariance / (system_variance + label_variance + (system_mean - label_mean + bias) ** 2)
    constant = (system_variance <= _CONSTANT * spread[0]) | (label_variance <= _CONSTANT * spread[1])
    return np.where(number > 0, np.where(constant, 0.0, ccc), np.nan)
