"""The labels of a corpus as networks learn them."""

import numpy as np
from datasets import Dataset

from configuration_cmkd import EMOTION_DIMENSIONS


def unit_interval_labels(rows: Dataset) -> np.ndarray:
    """The labels (n, 3) of a split on the unit interval, with NaN where not rated."""
    minimum, maximum = rows["label_scale"][0]
    values = np.stack([np.array(rows[name], dtype=np.float32) for name in EMOTION_DIMENSIONS], axis=1)
    return (values - minimum) / (maximum - minimum)


def label_variance(rows: Dataset) -> np.ndarray:
    """The variance (n, 3) of the noise of each label, on the unit interval squared, from its annotators' ratings.

    A label is the mean of n ratings, and its noise has the variance d^2 / n, where d^2 is that of the ratings (divisor
    n - 1). With one rating there is no such estimate: d^2 is then the mean over the other utterances. NaN where a label
    has no single ratings.

    Args:
        rows: a split of a corpus, loaded with `annotators=True`.

    Raises:
        ValueError: it has no ratings of single annotators, or nowhere more than one in a dimension that is rated.
    """
    if f"{EMOTION_DIMENSIONS[0]}_ratings" not in rows.column_names:
        raise ValueError(
            "quality is 'label_noise', but the corpus has no ratings of single annotators, which tell how noisy a "
            "label is: set corpus.annotators to true if the corpus has that setting, or use quality soft."
        )
    minimum, maximum = rows["label_scale"][0]
    labels, columns = unit_interval_labels(rows), []
    for name, label in zip(EMOTION_DIMENSIONS, labels.T, strict=True):
        number = np.array([np.sum(~np.isnan(np.array(of_it, dtype=float))) for of_it in rows[f"{name}_ratings"]])
        squares = (np.array(rows[f"{name}_std"], dtype=float) / (maximum - minimum)) ** 2
        several = (number > 1) & ~np.isnan(label)
        if not several.any() and not np.isnan(label).all():
            raise ValueError(
                f"quality is 'label_noise', but no training utterance has more than one rating of {name}, so that the "
                "noise of its labels cannot be estimated: use quality soft."
            )
        squares = np.where(number == 1, squares[several].mean() if several.any() else np.nan, squares)
        columns.append(np.where(number > 0, squares / np.maximum(number, 1), np.nan))
    return np.stack(columns, axis=1)


def rated_dimensions(labels: np.ndarray) -> list[str]:
    """The dimensions in which labels (n, 3) have at least one rating.

    >>> rated_dimensions(np.array([[0.5, np.nan, np.nan], [np.nan, np.nan, 0.25]]))
    ['activation', 'dominance']
    """
    is_rated = ~np.isnan(labels).all(axis=0)
    return [name for name, of_it in zip(EMOTION_DIMENSIONS, is_rated, strict=True) if of_it]
