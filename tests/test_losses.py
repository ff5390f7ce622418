"""CCC and distances against numpy's moments, literals and finite differences."""

import numpy as np
import pytest
import torch

from cmkd import ccc_loss, concordance_cc, embedding_distance, weighted_mean


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
    with pytest.raises(ValueError, match="distance='l2': must be one of norm, squared_norm, mean_squared"):
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


def test_to_know_the_corpus_is_no_merit_within_groups():
    """Two corpora that are rated differently: who answers with the mean of the corpus knows nothing of its speech."""
    generator = np.random.default_rng(1)
    groups = torch.arange(2).repeat_interleave(50)
    labels = torch.from_numpy(0.2 + 0.6 * groups.numpy()[:, None] + 0.05 * generator.normal(size=(100, 1)))
    answers = (0.2 + 0.6 * groups)[:, None].double()
    assert ccc_loss(answers, labels).item() < 0.05
    assert ccc_loss(answers, labels, groups=groups).item() == 1.0


def test_groups_must_fit():
    with pytest.raises(ValueError, match=r"groups \(2,\) must hold a number for each of the 3 utterances"):
        ccc_loss(torch.zeros(3, 1), torch.zeros(3, 1), groups=torch.zeros(2))
