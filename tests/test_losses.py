"""CCC and distances against numpy's moments, literals and finite differences."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from cmkd import ccc_loss, concordance_cc, embedding_distance, info_nce, prediction_distance, weighted_mean


def ccc_by_numpy(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Pearson correlation times the bias-correction factor (Eq. 4), of the rated pairs."""
    rated = ~np.isnan(labels)
    predictions, labels = predictions[rated], labels[rated]
    pearson = np.corrcoef(predictions, labels)[0, 1]
    ratio = predictions.std() / labels.std()
    shift = (predictions.mean() - labels.mean()) / np.sqrt(predictions.std() * labels.std())
    return float(pearson * 2 / (ratio + 1 / ratio + shift**2))


@pytest.mark.parametrize(("scale", "offset"), [(1.0, 0.0), (0.01, 0.5), (6.0, 1000.0)])
def test_concordance_cc_is_correlation_times_bias_correction(scale, offset):
    generator = np.random.default_rng(0)
    labels = offset + scale * generator.normal(size=(50, 3))
    predictions = labels + scale * generator.normal(0.2, [0.1, 1.0, 5.0], size=(50, 3))
    labels[generator.random((50, 3)) < 0.2] = np.nan
    predictions, labels = (values.astype(np.float32).astype(np.float64) for values in (predictions, labels))
    found = concordance_cc(torch.from_numpy(predictions), torch.from_numpy(labels))
    expected = [ccc_by_numpy(*columns) for columns in zip(predictions.T, labels.T, strict=True)]
    assert found.tolist() == pytest.approx(expected, abs=1e-9)
    single = concordance_cc(torch.from_numpy(predictions).float(), torch.from_numpy(labels).float())
    assert single.dtype == torch.float32
    assert single.tolist() == pytest.approx(expected, abs=5e-6)


def test_concordance_cc_of_known_cases():
    labels = torch.tensor([[1.0, 1.0, 1.0], [2.0, 2.0, 2.0], [3.0, 3.0, 3.0]])
    predictions = torch.tensor([[1.0, 3.0, 2.0], [2.0, 2.0, 3.0], [3.0, 1.0, 4.0]])
    # The same, reversed, and shifted by one: 2 * (2/3) / (2/3 + 2/3 + 1) = 4/7.
    assert concordance_cc(predictions, labels).tolist() == pytest.approx([1.0, -1.0, 4 / 7])
    assert concordance_cc(predictions[:, 2], labels[:, 2]).tolist() == pytest.approx([4 / 7])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_fp32(dtype):
    generator = torch.Generator().manual_seed(0)
    predictions = (100 + torch.randn(64, 3, generator=generator)).to(dtype)  # squares would overflow fp16
    labels = (100 + torch.randn(64, 3, generator=generator)).to(dtype)
    found = concordance_cc(predictions, labels)
    expected = concordance_cc(predictions.double(), labels.double())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("predictions", "labels"),
    [
        ([0.3, 0.3, 0.3], [0.1, 0.5, 0.9]),
        ([0.1, 0.5, 0.9], [0.3, 0.3, 0.3]),
        ([0.3, 0.3, 0.3], [0.3, 0.3, 0.3]),
        ([0.7], [0.2]),
        ([0.7], [0.7]),
        ([0.1, 0.5, 0.9], [float("nan")] * 3),
        ([0.1, 0.5, 0.9], [float("nan"), 0.4, float("nan")]),
    ],
)
def test_no_covariance_means_zero_and_a_finite_gradient(predictions, labels, dtype):
    predictions = torch.tensor(predictions, dtype=dtype)[:, None].requires_grad_()
    loss = ccc_loss(predictions, torch.tensor(labels, dtype=dtype)[:, None])
    loss.backward()
    assert loss.item() == pytest.approx(1.0, abs=1e-6)
    assert predictions.grad.isfinite().all()


def test_the_gradient_of_the_loss_is_the_one_of_finite_differences():
    generator = torch.Generator().manual_seed(0)
    predictions = torch.randn(9, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.randn(9, 3, generator=generator, dtype=torch.float64)
    labels[2, 1] = float("nan")
    alpha = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda values: ccc_loss(values, labels, alpha), predictions)
    ccc_loss(predictions, labels).backward()
    assert predictions.grad[2, 1] == 0  # not rated


def test_alpha_weighs_the_dimensions():
    predictions = torch.tensor([[1.0, 3.0], [2.0, 2.0], [3.0, 1.0]])
    labels = torch.tensor([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]])  # CCC 1 and -1
    assert ccc_loss(predictions, labels).item() == pytest.approx(1.0)
    assert ccc_loss(predictions, labels, torch.tensor([0.25, 3.0])).item() == pytest.approx(6.0)
    with pytest.raises(ValueError, match=r"alpha \(3,\)"):
        ccc_loss(predictions, labels, torch.ones(3))


def test_shapes_must_fit():
    with pytest.raises(ValueError, match=r"predictions \(4, 3\) and labels \(4,\)"):
        concordance_cc(torch.zeros(4, 3), torch.zeros(4))


def test_the_three_distances_differ_by_square_and_size():
    student = torch.tensor([[3.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]], requires_grad=True)
    teacher = torch.tensor([[0.0, 4.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]], requires_grad=True)
    assert embedding_distance(student, teacher).tolist() == [5.0, 0.0]
    assert embedding_distance(student, teacher, "squared_norm").tolist() == [25.0, 0.0]
    assert embedding_distance(student, teacher, "mean_squared").tolist() == [6.25, 0.0]
    embedding_distance(student, teacher).sum().backward()
    assert student.grad.tolist() == [pytest.approx([0.6, -0.8, 0, 0]), [0, 0, 0, 0]]
    assert teacher.grad is None
    with pytest.raises(ValueError, match="distance='l2': must be one of norm, squared_norm, mean_squared, cosine"):
        embedding_distance(student, teacher, "l2")
    with pytest.raises(ValueError, match=r"student \(2, 4\) and teacher \(2, 3\)"):
        embedding_distance(student, teacher[:, :3])


def test_the_weighted_mean_divides_by_the_weights_that_are_kept():
    values = torch.tensor([1.0, 2.0, 30.0], requires_grad=True)
    mean = weighted_mean(values, torch.tensor([1.0, 0.5, 0.0]))
    mean.backward()
    assert mean.item() == pytest.approx(2 / 1.5)
    assert values.grad.tolist() == pytest.approx([1 / 1.5, 0.5 / 1.5, 0.0])
    nothing = weighted_mean(values, torch.zeros(3))
    nothing.backward()
    assert nothing.item() == 0 and values.grad.isfinite().all()


def drawn_pair(n=7, size=5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, n, size, generator=generator, dtype=torch.float64).unbind()


def matrix_of(student: torch.Tensor, target: torch.Tensor, temperature: float) -> torch.Tensor:
    """Cosines by torch's own function, divided by the temperature."""
    return torch.nn.functional.cosine_similarity(student[:, None], target[None], dim=-1) / temperature


def test_info_nce_is_the_cross_entropy_of_the_matrix_in_both_directions():
    student, target = drawn_pair()
    student, target = 3 * student, 0.1 * target.requires_grad_()  # lengths do not count
    matrix, diagonal = matrix_of(student, target, 0.2), torch.arange(7)
    both = [torch.nn.functional.cross_entropy(way, diagonal, reduction="none") for way in (matrix, matrix.T)]
    found = info_nce(student, target, 0.2)
    torch.testing.assert_close(found, (both[0] + both[1]).mean() / 2)
    assert not found.requires_grad  # no gradient flows into the target
    weights = torch.tensor([1.0, 0.5, 0.25, 1.0, 0.1, 1.0, 1.0], dtype=torch.float64)
    expected = (weights * (both[0] + both[1])).sum() / 2 / weights.sum()
    torch.testing.assert_close(info_nce(student, target, 0.2, weights), expected)


def test_info_nce_leaves_out_weight_0_as_if_it_were_not_there():
    student, target = drawn_pair()
    weights = torch.tensor([1.0, 0.0, 0.5, 1.0, 0.0, 1.0, 1.0], dtype=torch.float64)
    kept = weights > 0
    student = torch.where(kept[:, None], student, 0.0).requires_grad_()  # as rows that fill up a device
    found = info_nce(student, target, 0.1, weights)
    torch.testing.assert_close(found, info_nce(student[kept], target[kept], 0.1, weights[kept]))
    found.backward()
    assert student.grad.isfinite().all()
    assert (student.grad[~kept] == 0).all()
    nothing = info_nce(student, target, 0.1, torch.zeros(7))
    assert nothing.item() == 0.0


def test_info_nce_does_not_push_the_same_words_apart():
    student, target = drawn_pair()
    groups = torch.tensor([4, 0, 4, 1, 2, 4, 3])
    found = []
    for row in range(7):  # a loop over the utterances, each with its target and those of other groups
        others = [other for other in range(7) if other == row or groups[other] != groups[row]]
        own = torch.tensor(others.index(row))
        along, across = (
            matrix_of(student[[row]], target[others], 0.3)[0],
            matrix_of(student[others], target[[row]], 0.3)[:, 0],
        )
        found += [torch.nn.functional.cross_entropy(way, own) for way in (along, across)]
    torch.testing.assert_close(info_nce(student, target, 0.3, groups=groups), torch.stack(found).mean())
    assert info_nce(student, target, 0.3, groups=torch.zeros(7)).item() == pytest.approx(0.0, abs=1e-12)


def test_the_gradient_of_info_nce_is_the_one_of_finite_differences():
    student, target = drawn_pair()
    weights = torch.tensor([1.0, 0.0, 0.5, 1.0, 0.3, 1.0, 1.0], dtype=torch.float64)
    groups = torch.tensor([0, 1, 0, 2, 3, 4, 5])
    assert torch.autograd.gradcheck(lambda x: info_nce(x, target, 0.5, weights, groups), student.requires_grad_())


def test_info_nce_refuses_what_does_not_fit():
    student, target = drawn_pair()
    with pytest.raises(ValueError, match=r"student \(7, 5\) and target \(6, 5\)"):
        info_nce(student, target[:6], 0.1)
    with pytest.raises(ValueError, match=r"groups \(6,\) must hold one value per utterance, \(7,\)"):
        info_nce(student, target, 0.1, groups=torch.zeros(6))
    with pytest.raises(ValueError, match=r"temperature=0: must be above 0"):
        info_nce(student, target, 0)


def test_the_cosine_distance_looks_at_directions_only():
    student = torch.tensor([[3.0, 0.0], [0.0, 2.0], [-1.0, 0.0], [0.0, 0.0]], requires_grad=True)
    teacher = torch.tensor([[9.0, 0.0], [1.0, 1.0], [7.0, 0.0], [1.0, 0.0]], requires_grad=True)
    found = embedding_distance(student, teacher, "cosine")
    assert found.tolist() == pytest.approx([0.0, 1 - 0.5**0.5, 2.0, 1.0])
    found.sum().backward()
    assert student.grad.isfinite().all() and teacher.grad is None


def unit(values: torch.Tensor) -> torch.Tensor:
    return values / values.square().sum(1, keepdim=True).sqrt()


def test_the_contrastive_distance_is_cross_entropy_over_the_utterances_that_are_kept():
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(9, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(9, 5, generator=generator, dtype=torch.float64)
    similarity = unit(student.detach()) @ unit(teacher).T / 0.2
    expected = cross_entropy(similarity, torch.arange(9), reduction="none")
    found = embedding_distance(student, teacher, "contrastive", temperature=0.2)
    torch.testing.assert_close(found.detach(), expected)

    kept = torch.tensor([0, 2, 3, 7])
    weights = torch.zeros(9).index_fill(0, kept, 1.0)
    found = weighted_mean(embedding_distance(student, teacher, "contrastive", weights, 0.2), weights)
    alone = student.detach()[kept].requires_grad_()
    expected = cross_entropy(unit(alone) @ unit(teacher[kept]).T / 0.2, torch.arange(4))
    torch.testing.assert_close(found, expected)
    found.backward()
    expected.backward()
    torch.testing.assert_close(student.grad[kept], alone.grad)
    assert student.grad[1].tolist() == [0] * 5


def test_an_example_that_counts_a_half_is_half_an_example():
    student, teacher = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.eye(2)
    found = embedding_distance(student, teacher, "contrastive", torch.tensor([1.0, 0.5]), 1.0)
    assert found.tolist() == pytest.approx([np.log(1 + 0.5 / np.e), np.log(1 + 1 / np.e)])
    assert embedding_distance(student[:1], teacher[:1], "contrastive").tolist() == [0.0]
    with pytest.raises(ValueError, match="temperature=0: must be above 0"):
        embedding_distance(student, teacher, "contrastive", temperature=0)
    with pytest.raises(ValueError, match=r"weights \(3,\) must hold one weight per utterance, \(2,\)"):
        embedding_distance(student, teacher, "contrastive", torch.ones(3))


def test_an_utterance_that_is_there_twice_is_no_example_against_itself():
    """As if the question were which of the different embeddings of the teacher is one's own."""
    generator = torch.Generator().manual_seed(3)
    student = torch.randn(8, 5, generator=generator, dtype=torch.float64)
    targets = torch.randn(5, 5, generator=generator, dtype=torch.float64)
    own = torch.tensor([0, 1, 2, 0, 3, 4, 2, 0])
    expected = cross_entropy(unit(student) @ unit(targets).T / 0.2, own, reduction="none")
    found = embedding_distance(student, targets[own], "contrastive", temperature=0.2)
    torch.testing.assert_close(found, expected)
    weights = torch.tensor([0.5, 1.0, 0.0, 0.5, 0.25, 1.0, 0.0, 0.5], dtype=torch.float64)  # alike for the same
    similarity = unit(student) @ unit(targets).T / 0.2
    of_target = torch.tensor([0.5, 1.0, 0.0, 0.25, 1.0], dtype=torch.float64)
    others = torch.stack([of_target.index_fill(0, target, 0.0) for target in own]) * similarity.exp()
    right = similarity.gather(1, own[:, None])[:, 0].exp()
    found = embedding_distance(student, targets[own], "contrastive", weights, 0.2)
    torch.testing.assert_close(found, -torch.log(right / (right + others.sum(1))))
    twice = embedding_distance(student[[0, 3]], targets[[0, 0]], "contrastive")
    assert twice.tolist() == [0.0, 0.0]


def weighted_ccc_by_numpy(predictions: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> float:
    (variance, covariance), (_, other) = np.cov(predictions, labels, aweights=weights, ddof=0)
    bias = np.average(predictions, weights=weights) - np.average(labels, weights=weights)
    return 2 * covariance / (variance + other + bias**2)


def test_weights_enter_the_moments():
    generator = np.random.default_rng(0)
    labels = generator.normal(size=(40, 3))
    predictions, weights = labels + generator.normal(size=(40, 3)), generator.uniform(size=(40, 3))
    weights[generator.random((40, 3)) < 0.3] = 0
    labels[4, 1] = np.nan
    weights[5, 2], predictions[5, 2] = 0, np.nan  # of no account
    found = concordance_cc(*(torch.from_numpy(values) for values in (predictions, labels, weights)))
    for dimension in range(3):
        kept = ~np.isnan(labels[:, dimension]) & (weights[:, dimension] > 0)
        columns = (values[kept, dimension] for values in (predictions, labels, weights))
        assert found[dimension].item() == pytest.approx(weighted_ccc_by_numpy(*columns), abs=1e-12)
    with pytest.raises(ValueError, match=r"weights \(40,\) must have the shape of the labels, \(40, 3\)"):
        concordance_cc(torch.zeros(40, 3), torch.zeros(40, 3), torch.ones(40))


def test_predictions_teach_each_dimension_where_the_teacher_is_good_in_it():
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(20, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    student = torch.randn(20, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(prediction_distance(student, teacher), ccc_loss(student, teacher.detach()))
    weights = torch.ones(20, 3, dtype=torch.float64)
    weights[3, 2] = 0  # poor in dominance
    loss = prediction_distance(student, teacher, weights)
    loss.backward()
    assert student.grad[3, 2] == 0 and (student.grad[3, :2] != 0).all() and teacher.grad is None
    columns = [(student[:, index], teacher[:, index], weights[:, index]) for index in range(3)]
    each = [weighted_ccc_by_numpy(*(values.detach().numpy() for values in of_one)) for of_one in columns]
    assert loss.item() == pytest.approx(1 - np.mean(each), abs=1e-12)

    unlearned = teacher.detach().clone()
    unlearned[:, 1] = torch.nan  # nobody rated valence
    weights[:, 2] = 0
    found = prediction_distance(student, unlearned, weights)
    assert found.item() == pytest.approx(1 - each[0], abs=1e-12)
    nothing = prediction_distance(student, unlearned, torch.zeros(20, 3))
    student.grad = None
    nothing.backward()
    assert nothing.item() == 0 and student.grad.abs().sum() == 0


def lin(predictions, labels) -> float:
    """Lin's CCC by numpy."""
    covariance = np.cov(predictions, labels, bias=True)
    return 2 * covariance[0, 1] / (covariance.trace() + (np.mean(predictions) - np.mean(labels)) ** 2)


def test_within_groups_the_loss_is_the_mean_over_them_by_their_rated_utterances():
    generator = np.random.default_rng(0)
    predictions, labels = generator.normal(size=(2, 30, 3))
    groups = np.array([2] * 12 + [5] * 18)
    labels[groups == 2, 1] = np.nan  # a corpus without this dimension
    labels[[0, 3, 20], 0] = np.nan
    labels[:, 2] = np.nan
    expected = []
    for dimension in (0, 1):
        rated = ~np.isnan(labels[:, dimension])
        of_group = {group: (rated & (groups == group)) for group in (2, 5) if (rated & (groups == group)).any()}
        sizes = [chosen.sum() for chosen in of_group.values()]
        losses = [1 - lin(predictions[chosen, dimension], labels[chosen, dimension]) for chosen in of_group.values()]
        expected.append(np.average(losses, weights=sizes))
    found = ccc_loss(*map(torch.from_numpy, (predictions, labels)), groups=torch.from_numpy(groups))
    assert found.item() == pytest.approx(np.mean(expected), rel=1e-12)
    one = ccc_loss(*map(torch.from_numpy, (predictions, labels)), groups=torch.zeros(30))
    assert one.item() == ccc_loss(*map(torch.from_numpy, (predictions, labels))).item()


def test_within_groups_predictions_are_compared_by_the_sum_of_their_weights():
    generator = np.random.default_rng(4)
    student, teacher = generator.normal(size=(2, 30, 3))
    weights = generator.uniform(size=(30, 3)) * (generator.random((30, 3)) < 0.8)
    groups = np.array([3] * 11 + [0] * 19)
    weights[groups == 3, 1] = 0  # one corpus teaches nothing in this dimension
    teacher[:, 2] = np.nan  # which the teacher has not learned
    tensors = [torch.from_numpy(values) for values in (student, teacher, weights, groups)]
    losses = []
    for dimension, corpora in ((0, (3, 0)), (1, (0,))):
        columns = [values[:, dimension] for values in (student, teacher, weights)]
        each = [1 - weighted_ccc_by_numpy(*(values[groups == one] for values in columns)) for one in corpora]
        losses.append(np.average(each, weights=[columns[2][groups == one].sum() for one in corpora]))
    assert prediction_distance(*tensors).item() == pytest.approx(np.mean(losses), abs=1e-12)
    without = prediction_distance(tensors[0][:, :2], tensors[1][:, :2], groups=tensors[3])  # as ccc_loss has it
    torch.testing.assert_close(without, ccc_loss(tensors[0][:, :2], tensors[1][:, :2], groups=tensors[3]))


def test_to_know_the_corpus_is_no_merit_within_groups():
    """Two corpora that are rated differently: who answers with the mean of the corpus knows nothing of its speech."""
    generator = np.random.default_rng(1)
    groups = torch.arange(2).repeat_interleave(50)
    labels = torch.from_numpy(0.2 + 0.6 * groups.numpy()[:, None] + 0.05 * generator.normal(size=(100, 1)))
    answers = (0.2 + 0.6 * groups)[:, None].double()
    assert ccc_loss(answers, labels).item() < 0.05
    assert ccc_loss(answers, labels, groups=groups).item() == 1.0
    assert prediction_distance(answers, labels).item() < 0.05
    assert prediction_distance(answers, labels, torch.ones(100, 1), groups).item() == 1.0


def test_groups_must_fit():
    with pytest.raises(ValueError, match=r"groups \(2,\) must hold a number for each of the 3 utterances"):
        ccc_loss(torch.zeros(3, 1), torch.zeros(3, 1), groups=torch.zeros(2))
    with pytest.raises(ValueError, match=r"groups \(2,\) must hold a number for each of the 3 utterances"):
        prediction_distance(torch.zeros(3, 1), torch.zeros(3, 1), groups=torch.zeros(2))
