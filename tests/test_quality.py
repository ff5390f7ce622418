"""Residuals against numpy's least squares; the threshold rule against a count by hand."""

import numpy as np
import pytest
import torch

from cmkd import dimension_weights, fit_residuals, quality_weights, residual_std
from cmkd.quality import agreement_weights


def test_residuals_are_those_of_least_squares():
    generator = np.random.default_rng(0)
    predictions = generator.normal(size=(40, 3))
    labels = predictions * [2.0, -1.0, 0.1] + [0.0, 5.0, 1.0] + generator.normal(size=(40, 3))
    labels[3, 1] = np.nan
    found = fit_residuals(torch.from_numpy(predictions).float(), torch.from_numpy(labels)).numpy()
    for dimension in range(3):
        rated = ~np.isnan(labels[:, dimension])
        slope, offset = np.polyfit(predictions[rated, dimension].astype(np.float32), labels[rated, dimension], 1)
        expected = slope * predictions[:, dimension] + offset - labels[:, dimension]
        np.testing.assert_allclose(found[:, dimension], expected, atol=1e-6)
    assert np.isnan(found[3, 1]) and np.isnan(found).sum() == 1
    np.testing.assert_allclose(residual_std(torch.from_numpy(found)), np.nanstd(found, axis=0), rtol=1e-9)


def test_constant_predictions_leave_the_deviation_from_the_mean():
    residuals = fit_residuals(torch.full((4, 1), 0.7), torch.tensor([[1.0], [2.0], [3.0], [6.0]]))
    assert residuals.flatten().tolist() == pytest.approx([2.0, 1.0, 0.0, -3.0])


def test_an_utterance_is_left_out_if_any_dimension_exceeds_the_threshold():
    residuals = torch.zeros(100, 3, dtype=torch.float64)
    residuals[:, 0] = torch.tensor([1.0, -1.0]).repeat(50)
    residuals[7, 1] = 3.0  # the only one in its dimension: 10 standard deviations
    residuals[8, 2] = float("nan")
    residuals[9, 0] = -2.5  # standard deviation 1.026
    weights = quality_weights(residuals)
    assert weights.dtype == torch.float32 and set(weights.tolist()) == {0.0, 1.0}
    assert weights.eq(0).nonzero().flatten().tolist() == [7, 9]
    assert quality_weights(residuals, threshold=2.5).eq(0).nonzero().flatten().tolist() == [7]
    assert quality_weights(residuals, threshold=0.5).sum() == 0


def test_normal_residuals_lose_the_share_that_the_normal_distribution_says():
    residuals = torch.randn(20000, 3, generator=torch.Generator().manual_seed(0))
    share = 1 - quality_weights(residuals).mean().item()
    assert share == pytest.approx(1 - 0.9545**3, abs=0.01)  # 13 %; the paper's 12.7 % of MSP-Podcast


@pytest.mark.parametrize("threshold", [0.0, -1.0, float("nan")])
def test_a_threshold_must_be_positive(threshold):
    with pytest.raises(ValueError, match="threshold=.*above 0"):
        quality_weights(torch.ones(3, 3), threshold)


def test_what_cannot_be_fitted_is_refused():
    with pytest.raises(ValueError, match=r"predictions \(3, 3\) and labels \(2, 3\)"):
        fit_residuals(torch.zeros(3, 3), torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"predictions\[1\] = .*nan.*finite"):
        fit_residuals(torch.tensor([[0.0], [float("nan")]]), torch.zeros(2, 1))
    with pytest.raises(ValueError, match=r"\[2, 1\] rated utterances: a line needs at least 2"):
        fit_residuals(torch.zeros(2, 2), torch.tensor([[0.0, 1.0], [0.5, float("nan")]]))


def normal_residuals(number: int = 400) -> torch.Tensor:
    residuals = torch.randn(number, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    residuals *= torch.tensor([0.1, 1.0, 3.0])
    residuals[5, 1] = float("nan")
    residuals[6] = float("nan")  # without any label
    return residuals


def test_the_hard_rule_by_dimension_is_the_paper_s_when_all_are_taken_together():
    residuals = normal_residuals()
    found = dimension_weights(residuals, 1.5)
    values = residuals.numpy()
    spread = np.sqrt(np.nanmean(values**2, axis=0))
    assert found.tolist() == np.where(np.abs(values) > 1.5 * spread, 0.0, 1.0).tolist()
    assert found[5, 1] == 1 and found[6].tolist() == [1, 1, 1]
    assert quality_weights(residuals, 1.5).tolist() == (found.numpy() == 1).all(1).astype(float).tolist()


def test_soft_weights_are_welschs_with_a_half_at_the_threshold():
    residuals = normal_residuals()
    found = dimension_weights(residuals, 2.0, "soft").numpy()
    values = residuals.numpy()
    spread = np.sqrt(np.nanmean(values**2, axis=0))
    expected = np.exp(-np.log(2) * (values / (2.0 * spread)) ** 2)
    np.testing.assert_allclose(found, np.where(np.isnan(values), 1.0, expected), rtol=1e-6)
    order = np.argsort(np.abs(values[:, 0])[7:])
    assert (np.diff(found[7:, 0][order]) < 0).all()  # falls everywhere
    together = quality_weights(residuals, 2.0, "soft").numpy()
    length = np.nansum((values / spread) ** 2, axis=1)
    np.testing.assert_allclose(together, 2.0 ** (-length / 4), rtol=1e-5)
    # A residual of c standard deviations: 3, 0, 0 and 0 have the standard deviation 1.5, of which 3 is two.
    literal = torch.tensor([[3.0], [0.0], [0.0], [0.0]])
    assert dimension_weights(literal, 2.0, "soft").flatten().tolist() == [0.5, 1, 1, 1]


@pytest.mark.parametrize("quality", ["hard", "soft"])
def test_the_limits_are_ts_and_no_teacher_at_all(quality):
    residuals = normal_residuals()
    residuals[0] = 0.0
    assert (dimension_weights(residuals, 1e9, quality) == 1).all()
    nothing = dimension_weights(residuals, 1e-9, quality)
    assert torch.equal(nothing > 0, residuals.isnan() | (residuals == 0))
    assert torch.equal(dimension_weights(torch.zeros(4, 3), 2.0, quality), torch.ones(4, 3))


def test_what_the_noise_of_the_labels_explains_is_no_evidence_against_the_teacher():
    generator = np.random.default_rng(0)
    noise = generator.uniform(0.05, 2.0, size=(20000, 1))
    residuals = 0.7 * generator.normal(size=noise.shape) + noise * generator.normal(size=noise.shape)
    variance = torch.from_numpy(noise**2)
    found = dimension_weights(torch.from_numpy(residuals), 2.0, "label_noise", variance).numpy()
    of_teacher = np.mean(residuals**2) - np.mean(noise**2)
    assert of_teacher == pytest.approx(0.49, abs=0.03)  # what it was drawn with
    np.testing.assert_allclose(found, 2.0 ** (-(residuals**2) / (4 * (of_teacher + noise**2))), rtol=1e-5)
    # Standardised as it should be, the weight does not depend on the noise; by the soft rule it does.
    quiet, loud = noise[:, 0] < 0.5, noise[:, 0] > 1.5
    soft = dimension_weights(torch.from_numpy(residuals), 2.0, "soft").numpy()
    assert found[quiet].mean() == pytest.approx(found[loud].mean(), abs=0.02)
    assert soft[quiet].mean() > soft[loud].mean() + 0.15


def test_labels_whose_noise_is_not_known_have_the_mean_of_those_known_and_none_at_all_is_refused():
    residuals = torch.tensor([[1.0], [2.0], [-2.0], [-1.0]])
    known = torch.tensor([[0.4], [0.8], [0.6], [0.6]])
    unknown = torch.tensor([[0.4], [0.8], [float("nan")], [float("nan")]])
    torch.testing.assert_close(
        dimension_weights(residuals, 2.0, "label_noise", known),
        dimension_weights(residuals, 2.0, "label_noise", unknown),
    )
    without = dimension_weights(residuals, 2.0, "label_noise", torch.zeros(4, 1))
    torch.testing.assert_close(without, dimension_weights(residuals, 2.0, "soft"))
    # More noise than there is residual: a tenth of the mean square, 2.5, is the teacher's at least.
    found = dimension_weights(residuals, 2.0, "label_noise", torch.tensor([[0.0], [9.0], [9.0], [9.0]]))
    assert found[0].item() == pytest.approx(2 ** (-1 / (4 * 0.25)))
    for arguments, message in (
        ((2.0, "label_noise"), "label_variance is missing"),
        ((2.0, "soft", known), "label_variance is given"),
        ((2.0, "label_noise", -known), "no negative value"),
        ((2.0, "label_noise", known[:2]), r"label_variance \(2, 1\) must have the shape of the residuals"),
        ((2.0, "label_noise", known * float("nan")), "NaN in every rated utterance"),
        ((2.0, "welsch"), "quality='welsch': must be one of hard, soft, label_noise"),
    ):
        with pytest.raises(ValueError, match=message):
            dimension_weights(residuals, *arguments)


def test_teachers_that_agree_are_believed():
    """By the formula: a spread of half the residuals in one dimension, of all of them in another, the third unrated."""
    disagreement = torch.tensor([[0.0, 0.0, 0.0], [0.025, 0.1, 0.35], [0.0, 0.0, 0.2]], dtype=torch.float64)
    weights = agreement_weights(disagreement, torch.tensor([0.05, 0.1, torch.nan], dtype=torch.float64))
    assert weights.tolist() == pytest.approx([1.0, np.exp(-(0.5**2 + 1.0**2) / 4), 1.0])
    with pytest.raises(ValueError, match=r"disagreement \(3, 3\) must be \(n, dims\), and residual_spread \(2,\)"):
        agreement_weights(disagreement, torch.ones(2))
    with pytest.raises(ValueError, match="must be above 0 in at least one dimension"):
        agreement_weights(disagreement, torch.zeros(3))
