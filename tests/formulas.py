"""The paper's formulas in numpy, written out anew."""

import numpy as np


def ccc(predictions: np.ndarray, labels: np.ndarray) -> float:
    """The concordance correlation coefficient of rated pairs, Eq. 4."""
    covariance = np.cov(predictions, labels, bias=True)
    return 2 * covariance[0, 1] / (covariance[0, 0] + covariance[1, 1] + (predictions.mean() - labels.mean()) ** 2)
