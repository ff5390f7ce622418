"""The labels of a corpus as networks learn them."""

import numpy as np
from datasets import Dataset

from configuration_cmkd import EMOTION_DIMENSIONS


def unit_interval_labels(rows: Dataset) -> np.ndarray:
    """The labels (n, 3) of a split on the unit interval, each by its own row's scale, with NaN where not rated."""
    minimum, maximum = np.array(rows["label_scale"], dtype=np.float32).reshape(-1, 2, 1).swapaxes(0, 1)
    values = np.stack([np.array(rows[name], dtype=np.float32) for name in EMOTION_DIMENSIONS], axis=1)
    return (values - minimum) / (maximum - minimum)


def label_variance(rows: Dataset) -> np.ndarray:
    """The variance (n, 3) of the noise of each label, on the unit interval squared, from its annotators' ratings.

    A label is the mean of n ratings, and its noise has the variance d^2 / n, where d^2 is that of the ratings (divisor
    n - 1). With one rating there is no such estimate: d^2 is then the mean over the other utterances. NaN where a label
    has no single ratings.

    Args:
        rows: a split of a corpus that has the spread of its annotators, `activation_std` and so on, and either their
            ratings (`annotators=True`), which are then counted, or their number in a column `num_ratings`.

    Raises:
        ValueError: it does not have these columns, or nowhere more than one rating in a dimension that is rated.
    """
    columns = set(rows.column_names)
    spread, ratings = ([f"{name}_{kind}" for name in EMOTION_DIMENSIONS] for kind in ("std", "ratings"))
    if not columns.issuperset(spread) or not (columns.issuperset(ratings) or "num_ratings" in columns):
        raise ValueError(
            "quality is 'label_noise', but the corpus has no ratings of single annotators, which tell how noisy a "
            "label is: set corpus.annotators to true if the corpus has that setting, or use quality soft."
        )
    scale = np.array(rows["label_scale"], dtype=float) @ [-1.0, 1.0]
    labels, found = unit_interval_labels(rows), []
    for name, label in zip(EMOTION_DIMENSIONS, labels.T, strict=True):
        if columns.issuperset(ratings):
            given = (np.array(of_it, dtype=float) for of_it in rows[f"{name}_ratings"])
            number = np.array([np.sum(~np.isnan(of_it)) for of_it in given])
        else:
            number = np.array(rows["num_ratings"])
        squares = (np.array(rows[f"{name}_std"], dtype=float) / scale) ** 2
        several = (number > 1) & ~np.isnan(label)
        if not several.any() and not np.isnan(label).all():
            raise ValueError(
                f"quality is 'label_noise', but no training utterance has more than one rating of {name}, so that the "
                "noise of its labels cannot be estimated: use quality soft."
            )
        squares = np.where(number == 1, squares[several].mean() if several.any() else np.nan, squares)
        found.append(np.where(number > 0, squares / np.maximum(number, 1), np.nan))
    return np.stack(found, axis=1)


def rated_dimensions(labels: np.ndarray) -> list[str]:
    """The dimensions in which labels (n, 3) have at least one rating.

    >>> rated_dimensions(np.array([[0.5, np.nan, np.nan], [np.nan, np.nan, 0.25]]))
    ['activation', 'dominance']
    """
    is_rated = ~np.isnan(labels).all(axis=0)
    return [name for name, of_it in zip(EMOTION_DIMENSIONS, is_rated, strict=True) if of_it]
