"""How good the teacher is on each utterance (Eq. 8 of arXiv 2112.00158): pure functions of tensors."""

import torch


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


def agreement_weights(fold_predictions: torch.Tensor, residual_spread: torch.Tensor) -> torch.Tensor:
    r"""How far teachers that were trained on different folds agree on utterances that nobody rated.

    With s_j the standard deviation of the K predictions of dimension j (divisor K), and sigma_j that of the teacher's
    residuals where there are ratings, w = exp(-1/2 mean_j (s_j / sigma_j)^2), the mean being over the rated dimensions.
    Full agreement gives 1, and a disagreement as large as the error that the teacher makes anyway exp(-1/2) = 0.61.

    Args:
        fold_predictions: (K, n, dims), on the unit interval; K is at least 2.
        residual_spread: (dims,), from `residual_std`; NaN in a dimension that nobody rated, which is left out.

    Returns:
        (n,) in [0, 1].

    Raises:
        ValueError: the shapes do not fit, or no dimension has residuals above 0.

    >>> agreement_weights(torch.tensor([[[0.5], [0.2]], [[0.5], [0.4]]]), torch.tensor([0.1]))
    tensor([1.0000, 0.6065])
    """
    if fold_predictions.ndim != 3 or len(fold_predictions) < 2 or residual_spread.shape != fold_predictions.shape[2:]:
        raise ValueError(
            f"fold_predictions {tuple(fold_predictions.shape)} must be (folds, n, dims) with 2 folds or more, and "
            f"residual_spread {tuple(residual_spread.shape)} (dims,)."
        )
    rated = residual_spread > 0
    if not rated.any():
        raise ValueError(f"residual_spread={residual_spread.tolist()}: must be above 0 in at least one dimension.")
    spread = fold_predictions[..., rated].std(0, correction=0) / residual_spread[rated]
    return torch.exp(-spread.square().mean(-1) / 2)


def quality_weights(residuals: torch.Tensor, threshold: float = 2.0) -> torch.Tensor:
    """The paper's hard rule for the utterances on which the student learns from the teacher.

    Args:
        residuals: (n, dims), from `fit_residuals`; NaN where an utterance is not rated, which is no reason to leave it
            out.
        threshold: the threshold, in standard deviations of each dimension's residuals.

    Returns:
        (n,): 0 where the absolute value of r exceeds the threshold in any dimension, 1 elsewhere.

    Raises:
        ValueError: the threshold is not above 0.

    >>> quality_weights(torch.tensor([[1.0], [-1.0], [1.0], [-1.0], [9.0]]), threshold=2.0)
    tensor([1., 1., 1., 1., 0.])
    """
    if not threshold > 0:
        raise ValueError(f"threshold={threshold!r}: must be above 0, in standard deviations; the paper's is 2.")
    poor = residuals.abs() > threshold * residual_std(residuals)
    return (~poor.any(-1)).to(torch.get_default_dtype())
