"""A corpus that is rated in two of the three dimensions: trained, evaluated, reported and described as such."""

import json
import math
import re

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from formulas import ccc
from tones import SIZES, write_recipe
from transformers import AutoFeatureExtractor, AutoModel, pipeline

import train_distill
from cmkd.hub.staging import stage_run
from cmkd.losses import ccc_loss, concordance_cc
from cmkd.quality import fit_residuals, quality_weights
from cmkd.scoring.evaluation import evaluate_predictions
from configuration_cmkd import CMKDStudentConfig
from modeling_cmkd import CMKDStudentModel

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_figures")]


def nothing_but_numbers(constant):
    raise AssertionError(f"{constant} is no JSON")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Rated in arousal and dominance."""
    folder = tmp_path_factory.mktemp("two")
    recipe = write_recipe(folder, stages=["teacher", "finetune", "ts", "cts"], num_epochs=2)
    manifest = folder / "corpus/manifest.csv"
    rows = [line.split(",") for line in manifest.read_text().splitlines()]
    rows[0][3] = "arousal"
    manifest.write_text("".join(",".join(row[:4] + row[5:]) + "\n" for row in rows))  # without valence
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        train_distill.main([str(recipe)])
    return folder / "run"


def test_it_is_evaluated_in_what_is_rated(run):
    results = json.loads((run / "results.json").read_text(), parse_constant=nothing_but_numbers)
    for system, splits in results["systems"].items():
        for split, scores in splits.items():
            table = pq.read_table(run / "predictions" / f"{system}_{split}.parquet").to_pandas()
            assert scores["n"] == len(table) == SIZES[split]
            assert table["valence"].isna().all() and table["predicted_valence"].isna().all()
            assert scores["ccc"]["valence"] is scores["interval"]["valence"] is None
            rated = table.dropna(subset="dominance")
            assert scores["ccc"]["activation"] == pytest.approx(ccc(table["predicted_activation"], table["activation"]))
            assert scores["ccc"]["dominance"] == pytest.approx(ccc(rated["predicted_dominance"], rated["dominance"]))
    assert results["conditioning"]["residual_std"]["valence"] is None
    assert results["conditioning"]["residual_std"]["activation"] > 0
    assert 0 < results["conditioning"]["discarded_fraction"] < 1  # those that are left out are judged by two dimensions


def test_the_checkpoint_knows_it(run):
    config = json.loads((run / "student/config.json").read_text(), parse_constant=nothing_but_numbers)
    assert config["rated_dimensions"] == ["activation", "dominance"]
    assert config["label_mean"][1] == 0 and config["label_std"][1] == 1
    model = AutoModel.from_pretrained(run / "student", trust_remote_code=True).eval()
    extractor = AutoFeatureExtractor.from_pretrained(run / "student")
    wave = 0.3 * np.sin(np.arange(4000) / 5).astype(np.float32)
    with torch.no_grad():
        logits = model(**extractor(wave, sampling_rate=16000, return_tensors="pt")).logits[0]
    assert logits.isnan().tolist() == [False, True, False]


def test_the_report_says_so(run):
    text = (run / "report.md").read_text()
    row = next(line for line in text.splitlines() if line.startswith("| Pearson"))
    assert row.split("|")[3].strip() == "n/a"
    assert not re.search(r"\bnan\b", text, re.IGNORECASE)


def test_the_card_says_so_and_the_pipeline_leaves_it_out(run, tmp_path):
    stage_run(run, "me/two-dimensions", tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "**Not valence**: the training corpus has no such ratings, so nothing was learned there." in card
    scores = card.split("## How good it is")[1]
    test = next(line for line in scores.splitlines() if line.startswith("| test | 8 | "))
    assert test.split("|")[4].strip() == "not rated"
    assert not re.search(r"\bnan\b", card.replace("are NaN in", ""), re.IGNORECASE)
    assert re.search(r"standard deviation of \d\.\d+ \(activation\), \d\.\d+ \(dominance\)", card)
    metrics = [
        metric["name"] for metric in yaml.safe_load(card.split("---")[1])["model-index"][0]["results"][0]["metrics"]
    ]
    assert metrics == ["CCC of activation", "CCC of dominance"]

    score = pipeline(model=str(tmp_path), trust_remote_code=True)
    answer = score({"raw": 0.3 * np.sin(np.arange(8000) / 5).astype(np.float32), "sampling_rate": 16000})
    assert list(answer["scores"]) == list(answer["ratings"]) == ["activation", "dominance"]
    assert all(math.isfinite(value) for value in (*answer["scores"].values(), *answer["ratings"].values()))
    assert list(answer["timeline"][0]["scores"]) == ["activation", "dominance"]


SPEECH = {
    "model_type": "hubert",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "conv_dim": (8,) * 7,
    "num_conv_pos_embedding_groups": 4,
}
HEAD = {"gru_hidden_size": 8, "embedding_size": 8}


def test_logits_of_what_is_not_rated_are_nan_and_gradients_are_finite():
    torch.manual_seed(0)
    model = CMKDStudentModel(CMKDStudentConfig(SPEECH, rated_dimensions=["valence"], **HEAD))
    output = model(torch.randn(3, 4000))
    assert output.logits.isnan().tolist() == [[True, False, True]] * 3
    labels = torch.tensor([[math.nan, 0.2, math.nan], [math.nan, 0.5, math.nan], [math.nan, 0.9, math.nan]])
    loss = ccc_loss(output.logits, labels)
    loss.backward()
    assert loss.item() == pytest.approx(1 - ccc(output.logits[:, 1].detach().numpy(), labels[:, 1].numpy()), abs=1e-5)
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert gradients and all(gradient.isfinite().all() for gradient in gradients)
    assert model.prediction_head.weight.grad.abs().sum(1).ne(0).tolist() == [False, True, False]
    assert model(torch.randn(3, 4000), labels=labels).loss.isfinite()


def test_labels_of_what_a_student_has_not_learnt_are_refused_until_it_is_to_learn_it():
    torch.manual_seed(0)
    model = CMKDStudentModel(CMKDStudentConfig(SPEECH, rated_dimensions=["valence"], **HEAD))
    labels, waves = torch.rand(3, 3), torch.randn(3, 4000)
    labels[:, 0] = math.nan
    message = r"labels rate dominance, which is not among config.rated_dimensions, \['valence'\]: .*rated_dimensions = "
    with pytest.raises(ValueError, match=message):
        model(waves, labels=labels)
    model.config.rated_dimensions = ["valence", "dominance"]
    output = model(waves, labels=labels)
    found = [1 - ccc(output.logits[:, index].detach().numpy(), labels[:, index].numpy()) for index in (1, 2)]
    assert output.loss.item() == pytest.approx(np.mean(found), abs=1e-5)


@pytest.mark.parametrize("rated", [[], ["arousal"], ["valence", "activation"], ["valence", "valence"]])
def test_rated_dimensions_are_checked(rated):
    with pytest.raises(ValueError, match=r"rated_dimensions=.*: must be one or more of activation, valence, dominance"):
        CMKDStudentConfig(rated_dimensions=rated)


def test_a_dimension_without_ratings_neither_scores_nor_judges():
    predictions = np.array([[0.0, np.nan, 0.1], [0.5, np.nan, 0.4], [1.0, np.nan, 0.9], [0.2, np.nan, 0.6]])
    labels = np.array([[0.0, np.nan, 0.2], [0.4, np.nan, 0.5], [1.0, np.nan, 0.8], [0.4, np.nan, 0.5]])
    scores = evaluate_predictions(predictions, labels)
    assert scores["ccc"]["valence"] is scores["pearson"]["valence"] is scores["mae"]["valence"] is None
    both = [0, 2]
    assert concordance_cc(torch.tensor(predictions), torch.tensor(labels))[both].tolist() == pytest.approx(
        [ccc(predictions[:, index], labels[:, index]) for index in both]
    )
    residuals = fit_residuals(torch.tensor(predictions), torch.tensor(labels))
    for index in both:
        slope, shift = np.polyfit(predictions[:, index], labels[:, index], 1)
        expected = slope * predictions[:, index] + shift - labels[:, index]
        np.testing.assert_allclose(residuals[:, index], expected, atol=1e-12)
    assert residuals[:, 1].isnan().all()
    spread = residuals[:, both].square().mean(0).sqrt()
    expected = (~(residuals[:, both].abs() > 1.2 * spread).any(1)).float()
    assert quality_weights(residuals, 1.2).tolist() == expected.tolist()
    labels[0, 1] = 0.5
    with pytest.raises(ValueError, match=r"predictions\[0\] = .*: every prediction must be finite"):
        fit_residuals(torch.tensor(predictions), torch.tensor(labels))
    with pytest.raises(ValueError, match="predictions must be finite"):
        evaluate_predictions(predictions, labels)
