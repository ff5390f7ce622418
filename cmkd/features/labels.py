"""The labels of a corpus as networks learn them."""

import numpy as np
from datasets import Dataset

from configuration_cmkd import EMOTION_DIMENSIONS


def unit_interval_labels(rows: Dataset) -> np.ndarray:
    """The labels (n, 3) of a split on the unit interval, each by its own row's scale, with NaN where not rated."""
    minimum, maximum = np.array(rows["label_scale"], dtype=np.float32).reshape(-1, 2, 1).swapaxes(0, 1)
    values = np.stack([np.array(rows[name], dtype=np.float32) for name in EMOTION_DIMENSIONS], axis=1)
    return (values - minimum) / (maximum - minimum)


def rated_dimensions(labels: np.ndarray) -> list[str]:
    """The dimensions in which labels (n, 3) have at least one rating.

    >>> rated_dimensions(np.array([[0.5, np.nan, np.nan], [np.nan, np.nan, 0.25]]))
    ['activation', 'dominance']
    """
    is_rated = ~np.isnan(labels).all(axis=0)
    return [name for name, of_it in zip(EMOTION_DIMENSIONS, is_rated, strict=True) if of_it]
