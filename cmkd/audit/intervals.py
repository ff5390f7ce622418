"""Intervals over speakers of any statistic, by the jackknife of `cmkd.scoring.confidence`, which explains it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy.special import stdtrit  # type: ignore[import-untyped]

from cmkd.scoring.confidence import LEVEL
from cmkd.scoring.evaluation import ccc_of_moments

Statistic = Callable[[np.ndarray, np.ndarray], float]
"""Of labels (n,), or a row of them for each of n, and predictions (n,), none of them NaN."""

_ALMOST_ONE = 1 - 1e-12  # whose artanh is finite
_NOTHING = 1e-16  # a mean square of scores that are the same


def ccc(labels: np.ndarray, predictions: np.ndarray) -> float:
    """CCC; 0 where either is constant.

    >>> ccc(np.array([0.0, 0.5, 1.0]), np.array([0.0, 0.5, 1.0]))
    1.0
    """
    if np.ptp(labels) == 0 or np.ptp(predictions) == 0:
        return 0.0
    covariance = np.mean((labels - labels.mean()) * (predictions - predictions.mean()))
    return float(ccc_of_moments(covariance, labels.var(), predictions.var(), predictions.mean() - labels.mean()))


def pearson(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Pearson's correlation; 0 where either is constant.

    >>> pearson(np.array([0.0, 0.5, 1.0]), np.array([0.25, 0.5, 0.75]))
    1.0
    """
    if np.ptp(labels) == 0 or np.ptp(predictions) == 0:
        return 0.0
    return float(np.clip(np.corrcoef(labels, predictions)[0, 1], -1, 1))


def correlation_interval(labels: np.ndarray, predictions: np.ndarray, clusters: np.ndarray) -> list[float] | None:
    """The 95 % interval of Pearson's correlation over speakers, of its artanh and transformed back.

    Args:
        labels, predictions, clusters: as for `interval`.
    """

    def transformed(labels: np.ndarray, predictions: np.ndarray) -> float:
        return float(np.arctanh(np.clip(pearson(labels, predictions), -_ALMOST_ONE, _ALMOST_ONE)))

    ends = interval(transformed, labels, predictions, clusters)
    return None if ends is None else [float(np.tanh(end)) for end in ends]


def mean_error(labels: np.ndarray, predictions: np.ndarray) -> float:
    """The mean of prediction minus label."""
    return float(np.mean(predictions - labels))


def mean_absolute_error(labels: np.ndarray, predictions: np.ndarray) -> float:
    return float(np.mean(np.abs(predictions - labels)))


def share_explained(design: np.ndarray, scores: np.ndarray) -> float:
    """The share of the variance of scores within groups that some columns explain: a partial R², adjusted.

    Means of the groups are taken off both, and the scores are regressed on the columns. Both variances are divided by
    their degrees of freedom, so that the share is 0 on average where the columns are noise, however many they are; it
    may then fall below 0. 0 where the scores do not differ within the groups.

    Args:
        design: (n, 1 + k), the number of the group and the columns, as [`cmkd.audit.intervals.indicators`] makes them
            of names.
        scores: (n,).

    >>> design = np.array([[0, 1], [0, 2], [0, 3], [1, 1], [1, 2], [1, 3]])
    >>> round(share_explained(design, np.array([0.1, 0.2, 0.3, 0.6, 0.7, 0.8])), 6)
    1.0
    """
    columns, scores, freedom = _within_groups(design, scores)
    total = float((scores**2).sum())
    slopes, _, rank, _ = np.linalg.lstsq(columns, scores, rcond=None)
    if total < _NOTHING * len(scores) or freedom <= rank:
        return 0.0
    rest = float(((scores - columns @ slopes) ** 2).sum())
    return float(1 - (rest / (freedom - rank)) / (total / freedom))


def within_slope(design: np.ndarray, scores: np.ndarray) -> float:
    """By how much scores rise with the one column of a design, less the means of the groups.

    Args:
        design, scores: as for `share_explained`, with k = 1.

    >>> design = np.array([[0, 1], [0, 2], [1, 1], [1, 3]])
    >>> round(within_slope(design, np.array([0.5, 0.6, 0.1, 0.3])), 6)
    0.1
    """
    columns, scores, _ = _within_groups(design, scores)
    return float(np.linalg.lstsq(columns, scores, rcond=None)[0][0])


def indicators(names: Sequence[str]) -> np.ndarray:
    """Names (n,) as columns (n, number of different names) of 0 and 1.

    >>> indicators(["b", "a", "b"]).tolist()
    [[0, 1], [1, 0], [0, 1]]
    """
    different, which = np.unique(np.array(names, dtype=str), return_inverse=True)
    return np.eye(len(different), dtype=int)[which]


def _within_groups(design: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Columns (n, k) and scores (n,) less the means of the groups, and the degrees of freedom that are left."""
    _, groups = np.unique(design[:, 0], return_inverse=True)
    values = np.column_stack([design[:, 1:], scores]).astype(np.float64)
    sums = np.zeros((groups.max() + 1, values.shape[1]))
    np.add.at(sums, groups, values)
    values -= (sums / np.bincount(groups)[:, None])[groups]
    return values[:, :-1], values[:, -1], len(scores) - int(groups.max()) - 1


def interval(
    statistic: Statistic, labels: np.ndarray, predictions: np.ndarray, clusters: np.ndarray
) -> list[float] | None:
    """The 95 % interval of a statistic over speakers; None for fewer than two.

    Args:
        statistic: what is computed.
        labels, predictions: (n,), without NaN.
        clusters: (n,), the number of each utterance's speaker.
    """
    error, freedom = _error(statistic, labels, predictions, clusters)
    value = statistic(labels, predictions)
    return None if error is None else _ends(value, error, freedom)


def difference_of_groups(
    statistic: Statistic, labels: np.ndarray, predictions: np.ndarray, clusters: np.ndarray, in_first: np.ndarray
) -> tuple[float, list[float] | None]:
    """A statistic of one group minus that of the others, and its 95 % interval over speakers.

    The groups have different speakers, so that their errors are independent: the squares add up, and the degrees of
    freedom are those of Welch and Satterthwaite.

    Args:
        statistic, labels, predictions, clusters: as for `interval`.
        in_first: (n,), whether an utterance is of the group.

    Returns:
        The difference and [low, high], or None in its place if a group has fewer than two speakers.
    """
    parts = [(labels[rows], predictions[rows], clusters[rows]) for rows in (in_first, ~in_first)]
    first, second = (statistic(*part[:2]) for part in parts)
    errors = [_error(statistic, *part) for part in parts]
    if any(error is None for error, _ in errors):
        return first - second, None
    squares = np.array([error**2 for error, _ in errors if error is not None])
    freedoms = np.array([freedom for _, freedom in errors])
    total = squares.sum()
    freedom = float(total**2 / (squares**2 / freedoms).sum()) if total else 1.0
    return first - second, _ends(first - second, float(np.sqrt(total)), freedom)


def _error(
    statistic: Statistic, labels: np.ndarray, predictions: np.ndarray, clusters: np.ndarray
) -> tuple[float | None, float]:
    """The standard error by the jackknife, and its degrees of freedom."""
    speakers, utterances = np.unique(clusters, return_counts=True)
    if len(speakers) < 2:
        return None, 0.0
    value = statistic(labels, predictions)
    without = np.array([statistic(labels[rows], predictions[rows]) for rows in (clusters != one for one in speakers)])
    count = len(speakers)
    error = float(np.sqrt((count - 1) / count * ((without - value) ** 2).sum()))
    return error, max(1.0, float(utterances.sum() ** 2 / (utterances**2).sum()) - 1)


def _ends(value: float, error: float, freedom: float) -> list[float]:
    margin = float(stdtrit(freedom, (1 + LEVEL) / 2) * error)
    return [value - margin, value + margin]
