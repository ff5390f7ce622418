"""Concordance correlation coefficient of each column, for the `evaluate` library.

`evaluate.load` copies this file alone, so it imports nothing of CMKD and has a formula of its own.
"""

import datasets
import evaluate
import numpy as np

_DESCRIPTION = r"""
The concordance correlation coefficient of Lin (1989): how well predictions agree with references, in correlation, scale
and mean at once. 1 is perfect agreement, 0 none, -1 perfect disagreement. With population moments (denominator n),

CCC = 2 cov(p, y) / (var(p) + var(y) + (mean(p) - mean(y))^2)
"""

_INPUTS = """
Args:
    predictions: numbers (n,), or rows of one number for each dimension (n, dimensions), finite.
    references: the same shape; NaN or None where an item has no rating in a dimension: that pair is left out of that
        dimension only.

Returns:
    `concordance_cc`: the mean over dimensions, NaN if any of them is.
    `per_dimension`: the coefficient of each dimension, in order. Where predictions or references are constant, a single
        item included, it is 0; where nothing is rated, NaN.
    `rated`: how many items each dimension was computed from.

Raises:
    ValueError: shapes differ, rows differ in length, a prediction is not finite, or a reference is infinite.

Example:

    metric = evaluate.load("path/to/concordance_cc")
    metric.compute(predictions=[0, 1, 1], references=[0, 1, 2])
    # {'concordance_cc': 0.6666666666666666, 'per_dimension': [0.6666666666666666], 'rated': [3]}
"""

_CITATION = """
@article{lin1989concordance,
  title = {A concordance correlation coefficient to evaluate reproducibility},
  author = {Lin, Lawrence I-Kuei},
  journal = {Biometrics},
  volume = {45},
  number = {1},
  pages = {255--268},
  year = {1989}
}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _INPUTS)
class ConcordanceCC(evaluate.Metric):
    """The metric, for numbers or rows of numbers; it gathers them over processes as every metric of `evaluate` does."""

    def _info(self) -> evaluate.MetricInfo:
        row = datasets.List(datasets.Value("float64"))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=[
                datasets.Features({"predictions": kind, "references": kind})
                for kind in (datasets.Value("float64"), row)
            ],
        )

    def _compute(self, predictions: list, references: list) -> dict:
        return _scores(_columns(predictions, "predictions"), _columns(references, "references"))


def _scores(predictions: np.ndarray, references: np.ndarray) -> dict:
    """The result of the metric for predictions and references of shape (n, dimensions)."""
    if predictions.shape != references.shape:
        raise ValueError(
            f"predictions have shape {predictions.shape} and references {references.shape}: must be equal."
        )
    if not np.isfinite(predictions).all():
        raise ValueError(f"{np.sum(~np.isfinite(predictions))} of the predictions are not finite: all must be.")
    if np.isinf(references).any():
        raise ValueError("references are infinite: they must be finite, or NaN where there is no rating.")
    rated = ~np.isnan(references)
    columns = zip(predictions.T, references.T, rated.T, strict=True)
    coefficients = [concordance_cc(prediction[keep], reference[keep]) for prediction, reference, keep in columns]
    return {
        "concordance_cc": float(np.mean(coefficients)),
        "per_dimension": coefficients,
        "rated": rated.sum(axis=0).tolist(),
    }


def concordance_cc(prediction: np.ndarray, reference: np.ndarray) -> float:
    """The coefficient of two finite fp64 vectors (n,), from -1 to 1; NaN if n is 0, 0 if either is constant.

    >>> round(concordance_cc(np.array([0.0, 1.0, 1.0]), np.array([0.0, 1.0, 2.0])), 6)
    0.666667
    """
    if not len(reference):
        return float("nan")
    if np.ptp(prediction) == 0 or np.ptp(reference) == 0:
        return 0.0
    covariance = np.mean((prediction - prediction.mean()) * (reference - reference.mean()))
    bias = prediction.mean() - reference.mean()
    return float(2 * covariance / (prediction.var() + reference.var() + bias**2))


def _columns(values: list, name: str) -> np.ndarray:
    """The values as (n, dimensions) in fp64, with NaN for None."""
    try:
        array = np.array(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} are not numbers, or rows of equally many numbers: {error}") from error
    return array[:, None] if array.ndim == 1 else array
