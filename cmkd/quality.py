"""How good the teacher is on each utterance (Eq. 8 of arXiv 2112.00158): pure functions of tensors."""

from typing import Literal, get_args

import torch

Quality = Literal["hard", "soft", "label_noise"]
"""The rules by which a residual becomes a weight."""


def fit_residuals(predictions: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Residuals of a least-squares line from the teacher's predictions to the labels (Eq. 8).

    In each dimension, w and b minimise the sum of squares of r_i = w p_i + b - y_i over the rated utterances. The line
    is meant to be fitted, and the residuals to be taken, on the training split.

    Args:
        predictions: (n, dims), the teacher's.
        labels: (n, dims); NaN means "not rated".

    Returns:
        (n, dims) in fp64; NaN where the label is NaN, which may be a whole dimension. Where all predictions are the
        same, the line is flat at the mean label.

    Raises:
        ValueError: the shapes differ, a prediction of a rated dimension is not finite, or a dimension has just one
            rated utterance.
    """
    if predictions.shape != labels.shape or predictions.ndim != 2:
        raise ValueError(
            f"predictions {tuple(predictions.shape)} and labels {tuple(labels.shape)} must both be (n, dims)."
        )
    rated = ~labels.isnan()
    count = rated.sum(0)
    bad = ~predictions.isfinite() & (count > 0)
    if bad.any():
        row = int(bad.any(1).nonzero()[0])
        raise ValueError(f"predictions[{row}] = {predictions[row].tolist()}: every prediction must be finite.")
    if (count == 1).any() or not count.any():
        raise ValueError(
            f"The dimensions have {count.tolist()} rated utterances: a line needs at least 2 in each that is rated."
        )
    predictions, labels = predictions.double(), labels.double()

    def mean(values: torch.Tensor) -> torch.Tensor:
        return values.masked_fill(~rated, 0.0).sum(0) / count.clamp(min=1)

    mean_predictions, mean_labels = mean(predictions), mean(labels)
    centred = predictions - mean_predictions
    variance = mean(centred.square())
    slope = mean(centred * (labels - mean_labels)) / torch.where(variance > 0, variance, torch.ones_like(variance))
    return slope * centred + mean_labels - labels


def residual_std(residuals: torch.Tensor) -> torch.Tensor:
    """Standard deviation of each dimension's residuals about 0, their mean by construction: (n, dims) -> (dims,)."""
    return residuals.square().nanmean(0).sqrt()


def dimension_weights(
    residuals: torch.Tensor,
    threshold: float = 2.0,
    quality: Quality = "hard",
    label_variance: torch.Tensor | None = None,
) -> torch.Tensor:
    r"""How much the student learns from the teacher about each dimension of each utterance.

    With u = abs(r) / s, the absolute residual in units s of what is expected, and c the threshold:

    - `"hard"`, the paper's rule: w = 1 where u <= c, else 0.
    - `"soft"`: w = 2^(-(u / c)^2), Welsch's weight of robust regression. It is 1 at u = 0, a half at the threshold of
      the hard rule, and 1/16 at twice the threshold; it falls everywhere and jumps nowhere.
    - `"label_noise"`: the same function, in another unit. If the label is off by noise of variance v_i, which the
      spread of the annotators tells, and the teacher by an error of variance t^2, then the expected square of the
      residual is s_i^2 = t^2 + v_i: a residual that the label's own noise explains is no evidence against the teacher.

    s is `residual_std` in the first two, and s_i in the third, where t^2 = mean(r^2) - mean(v), but at least a tenth of
    mean(r^2), since a few annotators may agree by chance. Where v_i = 0 for all, the third is the second.

    For c -> infinity all three are 1 everywhere, which is T/S; for c -> 0 all go to 0 wherever r is not 0.

    Args:
        residuals: (n, dims), from `fit_residuals`; NaN where an utterance is not rated, which is no reason to leave it
            out: its weight is 1.
        threshold: c, in the units of u.
        quality: the rule.
        label_variance: (n, dims), v, in the squared unit of the residuals; NaN where the spread is not known, which
            counts as the mean of those known. For `"label_noise"`, and for no other rule.

    Returns:
        (n, dims) in [0, 1].

    Raises:
        ValueError: the threshold is not above 0, the rule is unknown, or `label_variance` is given without need, is
            missing, has another shape, is negative, or is not known for any rated utterance of a dimension.

    >>> residuals = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [9.0, 0.0]])
    >>> dimension_weights(residuals, threshold=2.0)[-1]
    tensor([0., 1.])
    >>> dimension_weights(torch.tensor([[3.0], [4.0], [5.0], [0.0]]), 2.0, "soft").flatten()
    tensor([0.8827, 0.8011, 0.7071, 1.0000])
    """
    if not threshold > 0:
        raise ValueError(f"threshold={threshold!r}: must be above 0, in standard deviations; the paper's is 2.")
    if quality not in get_args(Quality):
        raise ValueError(f"quality={quality!r}: must be one of {', '.join(get_args(Quality))}.")
    if (label_variance is not None) != (quality == "label_noise"):
        raise ValueError(
            f"quality={quality!r} and label_variance is {'missing' if label_variance is None else 'given'}: "
            "'label_noise' needs it, and the other rules do not use it."
        )
    if quality == "hard":
        good = ~(residuals.abs() > threshold * residual_std(residuals))
        return good.to(torch.get_default_dtype())
    expected = residuals.square().nanmean(0).expand_as(residuals)
    if label_variance is not None:
        expected = _expected_squares(residuals, label_variance)
    exponent = residuals.square() / (threshold**2 * expected)
    exponent = torch.where((residuals == 0) | residuals.isnan(), 0.0, exponent)
    return torch.exp2(-exponent).to(torch.get_default_dtype())


def quality_weights(
    residuals: torch.Tensor,
    threshold: float = 2.0,
    quality: Quality = "hard",
    label_variance: torch.Tensor | None = None,
) -> torch.Tensor:
    """How much the student learns from the teacher's embedding of each utterance.

    An embedding cannot be split by dimension, so that this is the product of `dimension_weights` over the dimensions.
    By the hard rule it is 1 where the teacher is good in all dimensions, else 0, as in the paper. By the soft ones it
    is 2^(-||u||^2 / c^2): the dimensions add up as the squares of a length do.

    Args:
        residuals, threshold, quality, label_variance: as for `dimension_weights`.

    Returns:
        (n,) in [0, 1]; 0 leaves the utterance out.

    Raises:
        ValueError: as `dimension_weights` does.

    >>> quality_weights(torch.tensor([[1.0], [-1.0], [1.0], [-1.0], [9.0]]), threshold=2.0)
    tensor([1., 1., 1., 1., 0.])
    """
    return dimension_weights(residuals, threshold, quality, label_variance).prod(-1)


def _expected_squares(residuals: torch.Tensor, label_variance: torch.Tensor) -> torch.Tensor:
    """t^2 + v_i of `dimension_weights`: (n, dims)."""
    if label_variance.shape != residuals.shape or (label_variance < 0).any():
        raise ValueError(
            f"label_variance {tuple(label_variance.shape)} must have the shape of the residuals, "
            f"{tuple(residuals.shape)}, and no negative value."
        )
    rated = ~residuals.isnan()
    variance = label_variance.to(residuals.dtype).masked_fill(~rated, torch.nan)
    mean = variance.nanmean(0)
    if (mean.isnan() & rated.any(0)).any():
        raise ValueError(
            "label_variance is NaN in every rated utterance of a dimension: without any spread of annotators its "
            "noise cannot be estimated; use quality='soft'."
        )
    squares = residuals.square().nanmean(0)
    of_teacher = torch.maximum(squares - mean, 0.1 * squares)
    return of_teacher + torch.where(variance.isnan(), mean, variance)


def agreement_weights(disagreement: torch.Tensor, residual_spread: torch.Tensor) -> torch.Tensor:
    r"""How far teachers that were trained on different folds agree on utterances that nobody rated.

    With s_j the standard deviation of their predictions of dimension j (divisor: the number of teachers), and sigma_j
    that of the teacher's residuals where there are ratings, w = exp(-1/2 mean_j (s_j / sigma_j)^2), the mean being over
    the rated dimensions.
    Full agreement gives 1, and a disagreement as large as the error that the teacher makes anyway exp(-1/2) = 0.61.

    Args:
        disagreement: (n, dims), s, on the unit interval.
        residual_spread: (dims,), from `residual_std`; NaN in a dimension that nobody rated, which is left out.

    Returns:
        (n,) in [0, 1].

    Raises:
        ValueError: the shapes do not fit, or no dimension has residuals above 0.

    >>> agreement_weights(torch.tensor([[0.0], [0.1]]), torch.tensor([0.1]))
    tensor([1.0000, 0.6065])
    """
    if disagreement.ndim != 2 or residual_spread.shape != disagreement.shape[1:]:
        raise ValueError(
            f"disagreement {tuple(disagreement.shape)} must be (n, dims), and residual_spread "
            f"{tuple(residual_spread.shape)} (dims,)."
        )
    rated = residual_spread > 0
    if not rated.any():
        raise ValueError(f"residual_spread={residual_spread.tolist()}: must be above 0 in at least one dimension.")
    return torch.exp(-(disagreement / residual_spread)[:, rated].square().mean(-1) / 2)
