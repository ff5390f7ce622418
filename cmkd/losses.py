"""The losses of arXiv 2112.00158: pure functions of tensors, without models.

Numbers in brackets are the paper's equations.
"""

from typing import Literal, get_args

import torch
from torch.nn.functional import cosine_similarity, normalize

Distance = Literal["norm", "squared_norm", "mean_squared", "cosine", "contrastive"]
"""How far the student's embedding of an utterance is from the teacher's."""


def concordance_cc(
    predictions: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Lin's concordance correlation coefficient of each dimension (Eq. 3).

    `2 cov(p, y) / (var p + var y + (mean p - mean y)^2)` with population moments (division by n, or by the sum of the
    weights), computed on centred values in fp32, or in fp64 if the input is fp64. It does not change if predictions and
    labels are put on another scale together.

    Args:
        predictions: (n, dims), or (n,) for one dimension.
        labels: of the same shape; NaN means "not rated", and leaves that pair out of that dimension, whatever the
            prediction.
        weights: of the same shape, in [0, 1], how much a pair counts in the moments; 0 leaves it out. None stands for 1
            everywhere.

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
    if weights is not None and weights.shape != labels.shape:
        raise ValueError(f"weights {tuple(weights.shape)} must have the shape of the labels, {tuple(labels.shape)}.")
    dtype = torch.promote_types(torch.promote_types(predictions.dtype, labels.dtype), torch.float32)
    predictions, labels = (values.to(dtype).reshape(len(values), -1) for values in (predictions, labels))
    rated = ~labels.isnan()
    if weights is None:
        shares = rated.to(dtype)
    else:
        shares = weights.to(dtype).reshape(len(weights), -1).masked_fill(~rated, 0.0)
        rated = shares > 0
    total = shares.sum(0)
    total = torch.where(total > 0, total, torch.ones_like(total))

    def mean(values: torch.Tensor) -> torch.Tensor:
        return (shares * values).sum(0) / total

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
    loss = _one_less_ccc(predictions, labels, None, groups)
    if alpha is None:
        is_rated = (~labels.isnan()).reshape(len(labels), -1).any(0).to(loss.dtype)
        return weighted_mean(loss, is_rated) if is_rated.any() else loss.mean()
    if alpha.shape != loss.shape:
        raise ValueError(f"alpha {tuple(alpha.shape)} must hold one weight per dimension, {tuple(loss.shape)}.")
    return (alpha * loss).sum()


def prediction_distance(
    student: torch.Tensor,
    teacher: torch.Tensor,
    weights: torch.Tensor | None = None,
    groups: torch.Tensor | None = None,
) -> torch.Tensor:
    """How far the student's predictions are from the teacher's: L_PRE = mean_j (1 - CCC_j(student, teacher; w_j)).

    An embedding belongs to all dimensions together, predictions to one each: this is what an utterance can teach about
    valence although the teacher is wrong about its dominance. CCC_j is `concordance_cc`, in the place of a squared
    difference. L_PRE is then in the unit of L_EMO: with a weight of 1, agreeing with the teacher counts as much as
    agreeing with the annotators, on any scale, and a dimension of little variance does not count less.

    With groups, which are corpora, the CCC is taken within each, as in [`ccc_loss`]: 1 - CCC_j is then the mean over
    the groups, each with the sum of its weights in dimension j as its weight. Else a student that tells corpora apart,
    of which the teacher thinks differently, would agree with it without hearing how anybody speaks.

    Args:
        student: (n, dims).
        teacher: (n, dims); no gradient flows into it. NaN in a dimension that it has not learned, which leaves it out.
        weights: (n, dims) in [0, 1], such as `cmkd.dimension_weights`; None stands for 1 everywhere.
        groups: (n,) whole numbers, the same for utterances of the same group. None: all are of one.

    Returns:
        A scalar in [0, 2]: the mean over the dimensions that have a weight above 0; 0 if none has.

    Raises:
        ValueError: the shapes do not fit.

    >>> teacher = torch.tensor([[0.0, 0.0], [1.0, 1.0], [9.0, 2.0]])
    >>> student = torch.tensor([[0.0, 2.0], [1.0, 1.0], [0.0, 0.0]])
    >>> prediction_distance(student, teacher, torch.tensor([[1.0, 1.0], [1.0, 1.0], [0.0, 1.0]]))  # 1 - 1, 1 + 1
    tensor(1.)
    """
    teacher = teacher.detach()
    loss = _one_less_ccc(student, teacher, weights, groups)
    counted = ~teacher.isnan() if weights is None else ~teacher.isnan() & (weights > 0)
    return weighted_mean(loss, counted.reshape(len(teacher), -1).any(0).to(loss.dtype))


def _one_less_ccc(
    predictions: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None, groups: torch.Tensor | None
) -> torch.Tensor:
    """(dims,), 1 - CCC, or its mean over the groups, each with the sum of its weights in the dimension."""
    if groups is None:
        return 1 - concordance_cc(predictions, labels, weights)
    if groups.shape != labels.shape[:1]:
        raise ValueError(f"groups {tuple(groups.shape)} must hold a number for each of the {len(labels)} utterances.")
    losses, totals = [], []
    for group in groups.unique():
        own = groups == group
        shares = None if weights is None else weights[own]
        losses.append(1 - concordance_cc(predictions[own], labels[own], shares))
        rated = ~labels[own].isnan()
        counted = rated.to(losses[0].dtype) if shares is None else shares.to(losses[0].dtype).masked_fill(~rated, 0.0)
        totals.append(counted.reshape(len(counted), -1).sum(0))
    total = torch.stack(totals).sum(0)
    weighted = (torch.stack(totals) * torch.stack(losses)).sum(0)
    return weighted / torch.where(total > 0, total, torch.ones_like(total))


def embedding_distance(
    student: torch.Tensor,
    teacher: torch.Tensor,
    distance: Distance = "norm",
    weights: torch.Tensor | None = None,
    temperature: float = 0.1,
) -> torch.Tensor:
    """How far each student embedding is from the teacher's: L_STU of one utterance (Eq. 6).

    The paper writes an L2 norm and does not say whether it is squared. With d = student - teacher, of `size` values,
    `"norm"` is ||d||, `"squared_norm"` is ||d||^2 and `"mean_squared"` is ||d||^2 / size. The paper's lambda means
    something different with each: `squared_norm` pulls `size` (128) times harder than `mean_squared`.

    Two look at directions only, so that their size does not depend on that of the embeddings. `"cosine"` is
    1 - cos(student, teacher). `"contrastive"`, InfoNCE, asks which of the teacher's embeddings is the utterance's own
    (the paper names contrastive learning as future work): with s_ij = cos(student_i, teacher_j) / temperature,

        -log( exp(s_ii) / (exp(s_ii) + sum_{j != i} w_j exp(s_ij)) )

    so that an utterance on which the teacher is not trusted is no example for others either; without weights this is
    cross-entropy over the utterances. The more utterances there are, the harder it is: it is 0 for one alone. What the
    teacher puts in the very same place is one embedding to choose from, not several: an utterance that is there twice
    (a step may have it twice where a small corpus goes round) is no example against itself, and for the others it
    counts once, with its mean weight.

    Args:
        student: (n, size).
        teacher: (n, size); no gradient flows into it.
        distance: one of the five.
        weights: (n,) in [0, 1], w, which only `"contrastive"` looks at; None stands for 1 everywhere.
        temperature: of `"contrastive"`, above 0: the lower, the more the nearest of the others count.

    Returns:
        (n,), in fp32 or better. The gradient of the norm at distance 0 is 0.

    Raises:
        ValueError: the shapes differ, the distance is unknown, or the temperature is not above 0.

    >>> embedding_distance(torch.zeros(1, 2), torch.tensor([[3.0, 4.0]]))
    tensor([5.])
    >>> teacher = torch.eye(2)
    >>> embedding_distance(torch.tensor([[2.0, 0.0], [1.0, 0.0]]), teacher, "contrastive", temperature=1.0)
    tensor([0.3133, 1.3133])
    """
    if student.shape != teacher.shape or student.ndim != 2:
        raise ValueError(f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} must both be (n, size).")
    dtype = torch.promote_types(student.dtype, torch.float32)
    student, teacher = student.to(dtype), teacher.detach().to(dtype)
    if distance == "norm":
        return torch.linalg.vector_norm(student - teacher, dim=-1)
    if distance == "squared_norm":
        return (student - teacher).square().sum(-1)
    if distance == "mean_squared":
        return (student - teacher).square().mean(-1)
    if distance == "cosine":
        return 1 - cosine_similarity(student, teacher, dim=-1)
    if distance == "contrastive":
        return _contrastive_distance(student, teacher, weights, temperature)
    raise ValueError(f"distance={distance!r}: must be one of {', '.join(get_args(Distance))}.")


def info_nce(
    student: torch.Tensor,
    target: torch.Tensor,
    temperature: float,
    weights: torch.Tensor | None = None,
    groups: torch.Tensor | None = None,
) -> torch.Tensor:
    """How hard it is to tell each utterance's target from those of the others: InfoNCE (arXiv 1807.03748), symmetric.

    With rows brought to length 1 and `similarity[i, j] = student[i] @ target[j] / temperature`, an utterance's loss is
    the mean of two cross-entropies: of finding its target among all targets, along row i, and of finding its student
    among all students, along column i. The result is the weighted mean over the utterances,
    `sum(weights * losses) / sum(weights)`, as in [`weighted_mean`].

    Args:
        student: (n, size).
        target: (n, size); no gradient flows into it.
        temperature: what the cosines are divided by, above 0; a small one looks at the nearest of the others only.
        weights: (n,) in [0, 1]; None counts every utterance once. One of weight 0 takes no part: it is nobody's
            negative either.
        groups: (n,) whole numbers; None puts each utterance into a group of its own. Utterances of the same group,
            such as those with the same words, are not negatives of each other.

    Returns:
        A scalar of at least 0, in fp32 or better; 0 where no utterance has a negative, or all weights are 0.

    Raises:
        ValueError: the shapes do not fit, or the temperature is not above 0.

    >>> two = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> round(info_nce(two, two, temperature=1.0).item(), 4)  # -log(e / (e + 1))
    0.3133
    """
    if student.shape != target.shape or student.ndim != 2:
        raise ValueError(f"student {tuple(student.shape)} and target {tuple(target.shape)} must both be (n, size).")
    for name, values in (("weights", weights), ("groups", groups)):
        if values is not None and values.shape != student.shape[:1]:
            raise ValueError(f"{name} {tuple(values.shape)} must hold one value per utterance, ({len(student)},).")
    if not temperature > 0:
        raise ValueError(f"temperature={temperature!r}: must be above 0, for example 0.1.")
    dtype = torch.promote_types(torch.promote_types(student.dtype, target.dtype), torch.float32)
    student = normalize(student.to(dtype), dim=-1)
    target = normalize(target.detach().to(dtype), dim=-1)
    if weights is None:
        weights = student.new_ones(len(student))
    counts = ((weights != 0)[:, None] & (weights != 0)).to(dtype)
    if groups is not None:
        counts = counts * (groups[:, None] != groups)
    similarity = student @ target.T / temperature
    both = (_cross_entropies(similarity, counts) + _cross_entropies(similarity.T, counts)) / 2
    return weighted_mean(both, weights)


def _cross_entropies(similarity: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """(n,), of finding i along row i of (n, n), where j counts `counts[i, j]` times among the others, and i once."""
    counts = counts.to(similarity.dtype).clone().fill_diagonal_(1.0)
    return torch.logsumexp(similarity + counts.log(), dim=-1) - similarity.diagonal()


def _contrastive_distance(
    student: torch.Tensor, teacher: torch.Tensor, weights: torch.Tensor | None, temperature: float
) -> torch.Tensor:
    if not temperature > 0:
        raise ValueError(f"temperature={temperature!r}: must be above 0; 0.1 is usual.")
    if weights is None:
        weights = torch.ones(len(student), device=student.device)
    if weights.shape != student.shape[:1]:
        raise ValueError(f"weights {tuple(weights.shape)} must hold one weight per utterance, ({len(student)},).")
    similarity = normalize(student, dim=-1) @ normalize(teacher, dim=-1).T / temperature
    same = (teacher[:, None] == teacher).all(-1)
    return _cross_entropies(similarity, (weights / same.sum(-1)).expand_as(similarity).masked_fill(same, 0.0))


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
