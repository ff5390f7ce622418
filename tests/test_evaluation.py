import json
import math

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr

from cmkd.losses import concordance_cc
from cmkd.scoring.evaluation import evaluate_predictions, read_predictions, write_predictions


def concordance_by_equation_4(prediction, label):
    """CCC as Pearson's correlation times the bias-correction factor, from scale and location shift."""
    scale = np.std(prediction) / np.std(label)
    location = (np.mean(prediction) - np.mean(label)) / math.sqrt(np.std(prediction) * np.std(label))
    return pearsonr(prediction, label).statistic * 2 / (scale + 1 / scale + location**2)


def test_scores_worked_out_by_hand():
    # activation: cov 2/3, both variances 2/3, means 1 and 2; valence: the reverse order; dominance: half the spread.
    predictions = np.array([[0.0, 2.0, 0.0], [1.0, 1.0, 0.5], [2.0, 0.0, 1.0]])
    labels = np.array([[1.0, 0.0, 0.0], [2.0, 1.0, 1.0], [3.0, 2.0, 2.0]])

    scores = evaluate_predictions(predictions, labels)

    assert scores["n"] == 3
    assert scores["ccc"] == pytest.approx({"activation": 4 / 7, "valence": -1.0, "dominance": 8 / 13})
    assert scores["pearson"] == pytest.approx({"activation": 1.0, "valence": -1.0, "dominance": 1.0})
    assert scores["mae"] == pytest.approx({"activation": 1.0, "valence": 4 / 3, "dominance": 0.5})


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(3, 200), unrated=st.floats(0, 0.5))
def test_scores_equal_scipy_over_the_rated_pairs(seed, count, unrated):
    generator = np.random.default_rng(seed)
    labels = generator.uniform(size=(count, 3))
    predictions = 0.3 + 0.5 * labels + 0.2 * generator.standard_normal((count, 3))
    labels[3:][generator.uniform(size=(count - 3, 3)) < unrated] = np.nan

    scores = evaluate_predictions(predictions, labels)

    assert scores["n"] == count
    for column, dimension in enumerate(("activation", "valence", "dominance")):
        rated = ~np.isnan(labels[:, column])
        prediction, label = predictions[rated, column], labels[rated, column]
        assert scores["ccc"][dimension] == pytest.approx(concordance_by_equation_4(prediction, label), abs=1e-9)
        assert scores["pearson"][dimension] == pytest.approx(pearsonr(prediction, label).statistic, abs=1e-9)
        assert scores["mae"][dimension] == pytest.approx(sum(abs(prediction - label)) / rated.sum(), abs=1e-9)


def test_ccc_is_the_one_that_is_trained_on():
    generator = np.random.default_rng(0)
    predictions, labels = generator.uniform(size=(2, 50, 3))
    labels[::5, 1] = np.nan
    predictions[:, 2] = labels[:, 2] = 0.1  # constant and equal: no covariance

    ccc = list(evaluate_predictions(predictions, labels)["ccc"].values())

    assert ccc == pytest.approx(concordance_cc(torch.from_numpy(predictions), torch.from_numpy(labels)).tolist())
    assert ccc[2] == 0


def test_predictions_in_single_precision_are_scored_in_double():
    labels = np.linspace(0, 1, 4000)[:, None].repeat(3, axis=1)
    predictions = (1000 + labels).astype(np.float32)

    ccc = evaluate_predictions(predictions, 1000 + labels)["ccc"]["valence"]

    assert ccc == pytest.approx(
        concordance_by_equation_4(predictions[:, 0].astype(float), 1000 + labels[:, 0]), abs=1e-9
    )


@pytest.mark.parametrize("constant", ["predictions", "labels", "both"])
def test_constant_input_has_ccc_zero_and_no_correlation(constant):
    predictions, labels = np.random.default_rng(0).uniform(size=(2, 9, 3))
    if constant != "labels":
        predictions = np.full_like(predictions, 0.1)
    if constant != "predictions":
        labels = np.full_like(labels, 0.1)

    scores = evaluate_predictions(predictions, labels)

    assert set(scores["ccc"].values()) == {0.0}
    assert set(scores["pearson"].values()) == {None}


def test_dimension_without_ratings_has_no_scores_and_the_result_is_valid_json():
    predictions = np.array([[0.1, 0.2, 0.3], [0.2, 0.4, 0.5]])
    labels = np.array([[0.1, np.nan, 0.3], [0.2, np.nan, np.nan]])

    scores = json.loads(json.dumps(evaluate_predictions(predictions, labels), allow_nan=False))

    assert [scores[metric]["valence"] for metric in ("ccc", "pearson", "mae")] == [None, None, None]
    assert [scores[metric]["dominance"] for metric in ("ccc", "pearson", "mae")] == [0.0, None, 0.0]


@pytest.mark.parametrize(
    ("predictions", "labels", "message"),
    [
        (np.zeros((4, 3)), np.zeros((5, 3)), r"activation, valence, dominance; got \(4, 3\) and \(5, 3\)"),
        (np.zeros((4, 2)), np.zeros((4, 2)), r"got \(4, 2\) and \(4, 2\)"),
        (np.zeros(3), np.zeros(3), r"got \(3,\) and \(3,\)"),
        (np.zeros((0, 3)), np.zeros((0, 3)), "hold no utterance"),
        (
            np.array([[0, 0, 0], [0, np.nan, 0]]),
            np.zeros((2, 3)),
            "predictions must be finite; got nan in row 1, column 1",
        ),
        (np.zeros((1, 3)), np.array([[0, 0, np.inf]]), "labels must be finite, or NaN .* got inf in row 0, column 2"),
    ],
)
def test_input_that_cannot_be_scored_is_refused(predictions, labels, message):
    with pytest.raises(ValueError, match=message):
        evaluate_predictions(predictions, labels)


def test_predictions_survive_a_round_trip(tmp_path):
    path = tmp_path / "predictions" / "teacher_test.parquet"
    predictions = np.array([[0.1, 0.2, 0.3], [1 / 3, 0.5, 0.6]], dtype=np.float32)
    labels = np.array([[0.0, np.nan, 1.0], [0.25, 0.5, np.nan]])

    write_predictions(path, ["b", "a"], predictions, labels, ["anna", ""], ["female", ""])

    found = read_predictions(path)
    assert found.ids == ["b", "a"]
    np.testing.assert_array_equal(found.predictions, predictions)
    np.testing.assert_array_equal(found.labels, labels)
    assert (found.speakers, found.genders) == (["anna", ""], ["female", ""])
    assert pq.read_schema(path).names == [
        "id",
        "speaker",
        "gender",
        "predicted_activation",
        "predicted_valence",
        "predicted_dominance",
        "activation",
        "valence",
        "dominance",
    ]


def test_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "ts_test.parquet"
    write_predictions(path, ["old"], np.zeros((1, 3)), np.zeros((1, 3)), ["x"], ["male"])

    def fill_the_disk(table, where):
        where.write_bytes(b"half of it")
        raise OSError("no space left on device")

    monkeypatch.setattr(pq, "write_table", fill_the_disk)
    with pytest.raises(OSError, match="no space left"):
        write_predictions(path, ["new"], np.ones((1, 3)), np.ones((1, 3)), ["x"], ["male"])

    assert list(tmp_path.iterdir()) == [path]
    assert read_predictions(path).ids == ["old"]


def test_ids_must_fit_the_predictions(tmp_path):
    with pytest.raises(ValueError, match=r"of 1 ids must have shape \(1, 3\); got \(2, 3\) and \(2, 3\)"):
        write_predictions(tmp_path / "x.parquet", ["only one"], np.zeros((2, 3)), np.zeros((2, 3)), [""], [""])
    with pytest.raises(ValueError, match="must be a speaker for each of the 1 ids; got 2"):
        write_predictions(tmp_path / "x.parquet", ["only one"], np.zeros((1, 3)), np.zeros((1, 3)), ["", ""], [""])


def test_unusable_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="teacher_test.parquet"):
        read_predictions(tmp_path / "teacher_test.parquet")

    path = tmp_path / "ts_test.parquet"
    write_predictions(path, ["a"], np.zeros((1, 3)), np.zeros((1, 3)), ["anna"], [""])
    pq.write_table(pq.read_table(path).drop_columns(["valence"]), path)
    with pytest.raises(ValueError, match=r"ts_test.parquet has no column valence; its columns are id, .*, dominance"):
        read_predictions(path)


def test_in_a_file_of_an_earlier_version_all_speakers_are_unknown(tmp_path):
    path = tmp_path / "ts_test.parquet"
    write_predictions(path, ["a", "b"], np.zeros((2, 3)), np.zeros((2, 3)), ["anna", "ben"], ["female", "male"])
    pq.write_table(pq.read_table(path).drop_columns(["speaker", "gender"]), path)
    found = read_predictions(path)
    assert found.speakers == found.genders == ["", ""]
