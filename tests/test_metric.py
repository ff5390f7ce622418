"""The metric for `evaluate` against audmetric, torchmetrics and the formula."""

import multiprocessing
import runpy
import shutil
from pathlib import Path

import audmetric
import evaluate
import numpy as np
import pytest
import torch
from torchmetrics.functional import concordance_corrcoef

from cmkd.hub.cards import metric_card
from cmkd.metrics import CONCORDANCE_CC
from cmkd.scoring.evaluation import evaluate_predictions


@pytest.fixture
def metric(tmp_path):
    return evaluate.load(CONCORDANCE_CC, cache_dir=str(tmp_path))


def correlated(count: int, columns: int, seed: int = 0, bias: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """Predictions and references on about the unit interval that agree in part."""
    generator = np.random.default_rng(seed)
    references = generator.uniform(size=(count, columns))
    return 0.6 * references + bias + 0.2 * generator.normal(size=(count, columns)), references


@pytest.mark.parametrize("count", [2, 3, 50, 5000])
@pytest.mark.parametrize("offset", [0, 1e3])
def test_each_column_is_what_audmetric_says(metric, count, offset):
    predictions, references = correlated(count, 3, seed=count)
    found = metric.compute(predictions=predictions + offset, references=references + offset)
    expected = [
        audmetric.concordance_cc(reference, prediction)
        for prediction, reference in zip(predictions.T, references.T, strict=True)
    ]
    assert found["per_dimension"] == pytest.approx(expected, abs=1e-6)
    assert found["concordance_cc"] == pytest.approx(np.mean(expected), abs=1e-6)
    assert found["rated"] == [count] * 3


@pytest.mark.parametrize("count", [3, 50, 5000])
def test_each_column_is_what_torchmetrics_says_up_to_its_sample_moments(metric, count):
    """1 / CCC is (var(p) + var(y)) / 2 cov + bias² / 2 cov, and torchmetrics' cov alone is n / (n - 1) times ours."""
    predictions, references = correlated(count, 3, seed=count)
    found = np.array(metric.compute(predictions=predictions, references=references)["per_dimension"])
    stock = concordance_corrcoef(torch.tensor(predictions), torch.tensor(references)).numpy()
    covariance = np.array([np.cov(p, y)[0, 1] for p, y in zip(predictions.T, references.T, strict=True)])
    bias = predictions.mean(0) - references.mean(0)
    expected = 1 / (1 / stock + bias**2 / (2 * covariance * (count - 1)))
    assert found == pytest.approx(expected, abs=1e-6)
    if count == 3:
        assert np.abs(found - stock).max() > 1e-6  # the difference that the card documents is there
    centred = predictions - bias
    same = metric.compute(predictions=centred, references=references)["per_dimension"]
    assert same == pytest.approx(
        concordance_corrcoef(torch.tensor(centred), torch.tensor(references)).numpy(), abs=1e-6
    )


def test_unrated_pairs_are_left_out_by_dimension(metric):
    predictions, references = correlated(40, 3)
    references[::2, 0] = np.nan
    references[5:, 2] = np.nan
    found = metric.compute(predictions=predictions, references=references)
    expected = [
        audmetric.concordance_cc(references[:, column], predictions[:, column], ignore_nan=True) for column in range(3)
    ]
    assert found["per_dimension"] == pytest.approx(expected, abs=1e-6)
    assert found["rated"] == [20, 40, 5]
    holes = [[None if np.isnan(value) else value for value in row] for row in references.tolist()]
    assert metric.compute(predictions=predictions, references=holes) == found


def test_the_package_reports_the_same_numbers(metric):
    predictions, references = correlated(40, 3)
    references[::2, 0] = np.nan
    found = metric.compute(predictions=predictions, references=references)["per_dimension"]
    assert found == pytest.approx(list(evaluate_predictions(predictions, references)["ccc"].values()), abs=1e-12)


@pytest.mark.parametrize(
    ("predictions", "references", "expected", "theirs"),
    [
        ([0.3] * 3, [0.0, 0.5, 1.0], 0.0, 0.0),
        ([0.0, 0.5, 1.0], [0.3] * 3, 0.0, 0.0),
        ([0.3] * 3, [0.4] * 3, 0.0, 0.0),
        ([0.3] * 3, [0.3] * 3, 0.0, np.nan),  # the card's table
        ([0.3], [0.4], 0.0, np.nan),
        ([0.3, 0.4], [np.nan, np.nan], np.nan, np.nan),
        ([0.0, 1.0], [0.0, 1.0], 1.0, 1.0),
        ([0.0, 1.0], [1.0, 0.0], -1.0, -1.0),
    ],
)
def test_degenerate_input(metric, predictions, references, expected, theirs):
    found = metric.compute(predictions=predictions, references=references)
    assert found["concordance_cc"] == pytest.approx(expected, nan_ok=True)
    assert found["per_dimension"] == pytest.approx([expected], nan_ok=True)
    audeering = audmetric.concordance_cc(np.array(references), np.array(predictions), ignore_nan=True)
    assert audeering == pytest.approx(theirs, abs=1e-9, nan_ok=True)


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ([[1.0, 2.0]], [[1.0]], r"predictions have shape \(1, 2\) and references \(1, 1\)"),
        ([[1.0, 2.0], [1.0]], [[1.0, 2.0], [1.0]], "predictions are not numbers, or rows of equally many"),
        ([1.0, float("nan")], [1.0, 2.0], "1 of the predictions are not finite"),
        ([1.0, 2.0], [1.0, float("inf")], "references are infinite"),
    ],
)
def test_wrong_input_is_refused(metric, predictions, references, message):
    with pytest.raises(ValueError, match=message):
        metric.compute(predictions=predictions, references=references)


def test_batches_are_scored_as_one(metric):
    predictions, references = correlated(50, 2)
    for start in range(0, 50, 7):
        metric.add_batch(predictions=predictions[start : start + 7], references=references[start : start + 7])
    assert metric.compute() == metric.compute(predictions=predictions, references=references)


def compute_part(rank: int, folder: str, cache: str, predictions: np.ndarray, references: np.ndarray):
    metric = evaluate.load(folder, num_process=2, process_id=rank, experiment_id="two", cache_dir=cache)
    return metric.compute(predictions=predictions[rank::2], references=references[rank::2])


def test_two_processes_are_scored_as_one(metric, tmp_path):
    """With a copy of the folder, away from this package."""
    predictions, references = correlated(51, 3)
    references[::5, 1] = np.nan
    folder = tmp_path / "space/concordance_cc"
    shutil.copytree(CONCORDANCE_CC, folder)
    shared = (str(folder), str(tmp_path / "cache"), predictions, references)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        found, nothing = pool.starmap(compute_part, [(rank, *shared) for rank in range(2)], chunksize=1)
    assert nothing is None
    expected = metric.compute(predictions=predictions, references=references)
    assert found["rated"] == [51, 40, 51]
    assert found["per_dimension"] == pytest.approx(expected["per_dimension"], abs=1e-12)


def test_the_folder_is_a_space_whose_card_tells_the_truth(metric):
    card = (Path(CONCORDANCE_CC) / "README.md").read_text(encoding="utf-8")
    front = card.split("---")[1]
    assert "sdk: gradio" in front and "app_file: app.py" in front
    assert {path.name for path in Path(CONCORDANCE_CC).glob("*.*")} >= {
        "app.py",
        "concordance_cc.py",
        "requirements.txt",
    }
    assert f"# {metric.compute(predictions=[0, 1, 1], references=[0, 1, 2])}" in card


def test_the_card_of_the_space_is_made_from_the_template():
    """README.md of the folder is what `cmkd.hub.cards.metric_card` gives; this is how it was written."""
    info = evaluate.load(CONCORDANCE_CC)
    card = metric_card("Concordance correlation coefficient", info.description, info.inputs_description, info.citation)
    assert (Path(CONCORDANCE_CC) / "README.md").read_text(encoding="utf-8") == card


def test_the_page_of_the_space_computes_what_the_metric_does(metric):
    compute = runpy.run_path(str(Path(CONCORDANCE_CC) / "app.py"))["compute"]
    found = compute(metric, "[[0, 0.1], [1, 0.5], [1, 0.6]]", "[[0, 0], [1, null], [2, 1]]")
    assert found == metric.compute(
        predictions=[[0, 0.1], [1, 0.5], [1, 0.6]], references=[[0, 0], [1, float("nan")], [2, 1]]
    )
    assert found["rated"] == [3, 2] and found["per_dimension"][0] == pytest.approx(2 / 3)
    for wrong in ("3", "[]", '{"a": 1}'):
        with pytest.raises(ValueError, match="lists of at least one entry"):
            compute(metric, wrong, "[1]")
    with pytest.raises(ValueError, match="Expecting"):
        compute(metric, "[0, 1", "[0, 1]")
