"""The losses of arXiv 2112.00158: pure functions of tensors, without models.

Numbers in brackets are the paper's equations.
"""

from typing import Literal, get_args

import torch

Distance = Literal["norm", "squared_norm", "mean_squared"]


def concordance_cc(predictions: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Lin's concordance correlation coefficient of each dimension (Eq. 3).

    `2 cov(p, y) / (var p + var y + (mean p - mean y)^2)` with population moments (division by n), computed on centred
    values in fp32, or in fp64 if the input is fp64. It does not change if predictions and labels are put on another
    scale together.

    Args:
        predictions: (n, dims), or (n,) for one dimension.
        labels: of the same shape; NaN means "not rated", and leaves that pair out of that dimension, whatever the
            prediction.

    Returns:
        (dims,) in [-1, 1]. A dimension in which predictions or labels are constant, or fewer than two pairs are rated,
        has no covariance and gets 0, with a finite gradient. Values that differ only by rounding count as constant.

    Raises:
        ValueError: the shapes differ, or have more than two axes.

    >>> concordance_cc(torch.tensor([0.0, 1.0, 2.0]), torch.tensor([1.0, 2.0, 3.0]))
    tensor([0.5714])
    """
    if predictions.shape != labels.shape or predictions.ndim not in (1, 2):
        raise ValueError(
            f"predictions {tuple(predictions.shape)} and labels {tuple(labels.shape)} must both be (n, dims)."
        )
    dtype = torch.promote_types(torch.promote_types(predictions.dtype, labels.dtype), torch.float32)
    predictions, labels = (values.to(dtype).reshape(len(values), -1) for values in (predictions, labels))
    rated = ~labels.isnan()
    count = rated.sum(0).clamp(min=1)

    def mean(values: torch.Tensor) -> torch.Tensor:
        return values.masked_fill(~rated, 0.0).sum(0) / count

    predictions, labels = predictions.masked_fill(~rated, 0.0), labels.masked_fill(~rated, 0.0)
    mean_predictions, mean_labels = mean(predictions), mean(labels)
    predictions, labels = predictions - mean_predictions, labels - mean_labels
    covariance = mean(predictions * labels)
    spread = mean(predictions.square()) + mean(labels.square()) + (mean_predictions - mean_labels).square()
    limits = torch.finfo(dtype)
    rounding = (8 * limits.eps) ** 2 * (mean_predictions.square() + mean_labels.square()).detach() + limits.tiny
    return 2 * covariance / torch.maximum(spread, rounding)


def ccc_loss(
    predictions: torch.Tensor,
    labels: torch.Tensor,
    alpha: torch.Tensor | None = None,
    groups: torch.Tensor | None = None,
) -> torch.Tensor:
    """The emotion loss L_EMO = sum_j alpha_j (1 - CCC_j) (Eq. 5).

    With groups, which are corpora, the CCC is taken within each: 1 - CCC_j is then the mean over the groups, each with
    the number of its utterances that are rated in dimension j as its weight. What one group is rated above another
    gives no covariance then, so that to tell the groups apart is worth nothing but the bias that it removes in each.

    Args:
        predictions: (n, dims).
        labels: (n, dims); NaN means "not rated".
        alpha: (dims,) weights of the dimensions. None takes the mean over the dimensions that have a rating, so that
            the loss lies in [0, 2]; it is 1 if none has.
        groups: (n,) whole numbers, the same for utterances of the same group. None: all are of one.

    Returns:
        A scalar in fp32 or better. One sample, or constant predictions or labels, count as CCC 0.

    Raises:
        ValueError: the shapes do not fit.

    >>> round(ccc_loss(torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [1.0]])).item(), 4)
    0.0
    """
    if groups is None:
        loss = 1 - concordance_cc(predictions, labels)
    elif groups.shape != labels.shape[:1]:
        raise ValueError(f"groups {tuple(groups.shape)} must hold a number for each of the {len(labels)} utterances.")
    else:
        members = [groups == group for group in groups.unique()]
        each = torch.stack([1 - concordance_cc(predictions[of_one], labels[of_one]) for of_one in members])
        rated = (~labels.isnan()).reshape(len(labels), -1)
        counts = torch.stack([rated[of_one].sum(0) for of_one in members]).to(each.dtype)
        loss = (counts * each).sum(0) / counts.sum(0).clamp(min=1)
    if alpha is None:
        is_rated = (~labels.isnan()).reshape(len(labels), -1).any(0).to(loss.dtype)
        return weighted_mean(loss, is_rated) if is_rated.any() else loss.mean()
    if alpha.shape != loss.shape:
        raise ValueError(f"alpha {tuple(alpha.shape)} must hold one weight per dimension, {tuple(loss.shape)}.")
    return (alpha * loss).sum()


def embedding_distance(student: torch.Tensor, teacher: torch.Tensor, distance: Distance = "norm") -> torch.Tensor:
    """How far each student embedding is from the teacher's: L_STU of one utterance (Eq. 6).

    The paper writes an L2 norm and does not say whether it is squared. With d = student - teacher, of `size` values,
    `"norm"` is ||d||, `"squared_norm"` is ||d||^2 and `"mean_squared"` is ||d||^2 / size. The paper's lambda means
    something different with each: `squared_norm` pulls `size` (128) times harder than `mean_squared`.

    Args:
        student: (n, size).
        teacher: (n, size); no gradient flows into it.
        distance: one of the three.

    Returns:
        (n,), in fp32 or better. The gradient of the norm at distance 0 is 0.

    Raises:
        ValueError: the shapes differ, or the distance is unknown.

    >>> embedding_distance(torch.zeros(1, 2), torch.tensor([[3.0, 4.0]]))
    tensor([5.])
    """
    if student.shape != teacher.shape or student.ndim != 2:
        raise ValueError(f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} must both be (n, size).")
    dtype = torch.promote_types(student.dtype, torch.float32)
    difference = student.to(dtype) - teacher.detach().to(dtype)
    if distance == "norm":
        return torch.linalg.vector_norm(difference, dim=-1)
    if distance == "squared_norm":
        return difference.square().sum(-1)
    if distance == "mean_squared":
        return difference.square().mean(-1)
    raise ValueError(f"distance={distance!r}: must be one of {', '.join(get_args(Distance))}.")


def weighted_mean(values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The mean of `values` over the utterances that are kept: sum(weights * values) / sum(weights).

    The denominator is the sum of the weights, not the batch size: leaving utterances out does not weaken the pull on
    those that stay.

    Args:
        values: (n,).
        weights: (n,) in [0, 1].

    Returns:
        A scalar; 0, with a zero gradient, where all weights are 0.

    >>> weighted_mean(torch.tensor([1.0, 5.0, 9.0]), torch.tensor([1.0, 0.0, 1.0]))
    tensor(5.)
    """
    weights = weights.to(values.dtype)
    total = weights.sum()
    return (weights * values).sum() / torch.where(total > 0, total, torch.ones_like(total))
