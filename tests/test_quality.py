"""Residuals against numpy's least squares; the threshold rule against a count by hand."""

import numpy as np
import pytest
import torch

from cmkd import fit_residuals, quality_weights, residual_std
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


def test_teachers_that_agree_are_believed():
    """By the formula: a spread of half the residuals in one dimension, of all of them in another, the third unrated."""
    predictions = torch.full((2, 3, 3), 0.5, dtype=torch.float64)
    predictions[0, 1] += torch.tensor([0.05, 0.2, 0.7])  # standard deviations of 0.025, 0.1 and 0.35
    predictions[1, 2, 2] = 0.9  # in a dimension without residuals
    weights = agreement_weights(predictions, torch.tensor([0.05, 0.1, torch.nan], dtype=torch.float64))
    assert weights.tolist() == pytest.approx([1.0, np.exp(-(0.5**2 + 1.0**2) / 4), 1.0])
    with pytest.raises(ValueError, match=r"fold_predictions \(1, 3, 3\) must be \(folds, n, dims\) with 2"):
        agreement_weights(predictions[:1], torch.ones(3))
    with pytest.raises(ValueError, match="must be above 0 in at least one dimension"):
        agreement_weights(predictions, torch.zeros(3))
