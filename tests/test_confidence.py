"""Intervals and p-values: against a plain loop over resampled tables, and what they promise on simulated data."""

import time

import numpy as np
import pytest

from cmkd.confidence import bootstrap_ccc, confidence_interval, paired_p_value, speaker_clusters
from cmkd.evaluation import Predictions, evaluate_predictions
from cmkd.scores import score_systems

DIMENSIONS = ("activation", "valence", "dominance")


def simulate(generator, speakers, utterances, systems=1):
    """Labels and predictions with an effect of each speaker on all of them, and the names of the speakers.

    Label = speaker + utterance, prediction = label / 2 + speaker's bias + noise, all Gaussian.
    """
    names = np.repeat([f"s{number}" for number in range(speakers)], utterances)

    def effect(scale):
        return np.repeat(scale * generator.standard_normal((speakers, 3)), utterances, axis=0)

    labels = effect(0.6) + generator.standard_normal((len(names), 3))
    predictions = {
        f"system{number}": 0.5 * labels + effect(0.3) + 0.4 * generator.standard_normal(labels.shape) + 0.2
        for number in range(systems)
    }
    return predictions, labels, list(names)


TRUE_VARIANCE = 0.6**2 + 1
TRUE_CCC = 2 * 0.5 * TRUE_VARIANCE / (0.25 * TRUE_VARIANCE + 0.3**2 + 0.4**2 + TRUE_VARIANCE + 0.2**2)
"""Of the distribution that `simulate` draws from."""


def test_every_resample_is_the_score_of_its_utterances():
    """The oracle draws the same speakers, puts their rows one under the other, and scores the table."""
    generator = np.random.default_rng(1)
    predictions, labels, speakers = simulate(generator, 7, 3, systems=2)
    labels[::4, 1] = np.nan
    labels[3:, 2] = np.nan  # rated for one speaker only
    speakers[-2:] = ["", ""]
    found = bootstrap_ccc(predictions, labels, speakers, resamples=200, seed=5)

    groups = [[row for row, name in enumerate(speakers) if name == f"s{number}"] for number in range(7)]
    groups += [[len(speakers) - 2], [len(speakers) - 1]]
    draws = np.random.default_rng(5).integers(len(groups), size=(200, len(groups)))
    for index, draw in enumerate(draws):
        rows = [row for group in draw for row in groups[group]]
        for system, answers in predictions.items():
            expected = evaluate_predictions(answers[rows], labels[rows])["ccc"]
            assert found[system][index, 0] == pytest.approx(expected["activation"], abs=1e-10)
            assert found[system][index, 1] == pytest.approx(expected["valence"], abs=1e-10)
    assert np.isnan(found["system0"][:, 2]).all()


def test_resamples_of_constants_score_as_constants_do():
    speakers = ["a", "a", "b", "b"]
    labels = np.array([[0.1, 0.1, 0.7], [0.1, 0.1, 0.1], [0.1, 0.5, 0.7], [0.1, 0.7, 0.3]])
    predictions = {"ts": 1e6 + labels}
    found = bootstrap_ccc(predictions, labels, speakers, resamples=50)["ts"]
    assert (found[:, 0] == 0).all()
    assert (found[:, 1] == 0).any() and (found[:, 1] > 0).any()  # valence of speaker a is constant
    assert np.isfinite(found).all()


def test_the_interval_is_that_of_a_plain_bootstrap():
    predictions, labels, speakers = simulate(np.random.default_rng(2), 30, 8)
    answers, generator, scores = predictions["system0"], np.random.default_rng(99), []
    rows = {name: [row for row, other in enumerate(speakers) if other == name] for name in dict.fromkeys(speakers)}
    for _ in range(2000):
        chosen = [row for name in generator.choice(list(rows), size=len(rows)) for row in rows[name]]
        prediction, label = answers[chosen, 1], labels[chosen, 1]
        covariance = np.cov(prediction, label, bias=True)
        scores.append(2 * covariance[0, 1] / (np.trace(covariance) + (prediction.mean() - label.mean()) ** 2))
    resampled = bootstrap_ccc(predictions, labels, speakers)["system0"]
    expected = np.percentile(scores, [2.5, 97.5])
    assert confidence_interval(resampled)["valence"] == pytest.approx(expected, abs=0.1 * np.ptp(expected))
    low, high = confidence_interval(resampled, 0.5)["valence"]
    assert (low, high) == pytest.approx(np.percentile(scores, [25, 75]), abs=0.1 * np.ptp(expected))


def test_intervals_cover_the_truth_as_often_as_they_say():
    generator, hits, narrow = np.random.default_rng(3), [], []
    for _ in range(300):
        predictions, labels, speakers = simulate(generator, 60, 6)
        for names, counted in ((speakers, hits), ([""] * len(speakers), narrow)):
            intervals = confidence_interval(bootstrap_ccc(predictions, labels, names, 400)["system0"]).values()
            counted += [low <= TRUE_CCC <= high for low, high in intervals]
    assert 0.90 <= np.mean(hits) <= 0.98
    assert np.mean(narrow) < np.mean(hits) - 0.03  # utterances drawn one by one promise too much


def test_p_values_of_equal_systems_are_uniform_and_of_unequal_ones_small():
    generator, equal, unequal = np.random.default_rng(4), [], []
    for _ in range(200):
        predictions, labels, speakers = simulate(generator, 60, 6, systems=2)
        predictions["better"] = 0.3 * predictions["system0"] + 0.7 * labels
        resampled = bootstrap_ccc(predictions, labels, speakers, 400)
        equal += paired_p_value(resampled["system1"] - resampled["system0"]).values()
        unequal += paired_p_value(resampled["better"] - resampled["system0"]).values()
    assert 0.02 <= np.mean(np.array(equal) < 0.05) <= 0.10
    assert 0.42 <= np.mean(np.array(equal) < 0.5) <= 0.58
    assert max(unequal) < 0.05


def test_the_p_value_by_hand():
    differences = np.array([[1.0, -1.0, 0.0], [2.0, 1.0, 0.0], [3.0, 1.0, 0.0], [4.0, np.nan, 0.0]])
    assert paired_p_value(differences) == {"activation": 2 / 5, "valence": 1.0, "dominance": 1.0}
    assert paired_p_value(np.full((3, 3), np.nan)) == dict.fromkeys(DIMENSIONS)


def test_the_interval_leaves_out_0_where_the_p_value_is_below_the_level():
    generator = np.random.default_rng(6)
    for shift in np.linspace(0, 0.06, 25):
        differences = np.repeat(generator.normal(shift, 0.02, size=(4000, 1)), 3, axis=1)
        low, high = confidence_interval(differences)["valence"]
        p_value = paired_p_value(differences)["valence"]
        if abs(p_value - 0.05) > 0.002:
            assert (p_value < 0.05) == (low > 0 or high < 0)


def test_the_seed_decides_and_order_of_systems_does_not():
    predictions, labels, speakers = simulate(np.random.default_rng(7), 10, 4, systems=2)
    first = bootstrap_ccc(predictions, labels, speakers, 50, seed=1)
    again = bootstrap_ccc(dict(reversed(predictions.items())), labels, speakers, 50, seed=1)
    np.testing.assert_allclose(first["system0"], again["system0"], rtol=1e-12)
    assert not np.allclose(first["system0"], bootstrap_ccc(predictions, labels, speakers, 50, seed=2)["system0"])


def test_ten_thousand_resamples_of_ten_thousand_utterances_take_seconds():
    generator = np.random.default_rng(8)
    predictions, labels, speakers = simulate(generator, 1000, 10, systems=6)
    started = time.process_time()
    resampled = bootstrap_ccc(predictions, labels, speakers)
    assert resampled["system5"].shape == (10_000, 3)
    assert time.process_time() - started < 20


def test_utterances_without_speaker_are_their_own():
    assert speaker_clusters(["x", "", "x", ""]).tolist() == [0, 1, 0, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (({"ts": np.zeros((2, 3))}, np.zeros((2, 3)), ["a"]), r"of 1 speakers must have shape \(1, 3\)"),
        (({"ts": np.zeros((2, 2))}, np.zeros((2, 3)), ["a", "b"]), r"got \(2, 3\) and {'ts': \(2, 2\)}"),
        (({"ts": np.zeros((0, 3))}, np.zeros((0, 3)), []), "there is no utterance"),
        (({"ts": np.zeros((1, 3))}, np.zeros((1, 3)), ["a"], 0), "resamples=0: must be at least 1"),
    ],
)
def test_input_that_cannot_be_drawn_from_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_ccc(*arguments)


def make_answers(systems=("finetune", "ts", "cts"), speakers=12, seed=0):
    generator = np.random.default_rng(seed)
    predictions, labels, names = simulate(generator, speakers, 5, systems=len(systems))
    genders = ["female" if int(name[1:]) % 2 else "male" for name in names]
    ids = [f"u{number}" for number in range(len(names))]
    return {
        system: Predictions(list(ids), answers, labels, names, genders)
        for system, answers in zip(systems, predictions.values(), strict=True)
    }


def test_results_hold_scores_intervals_and_comparisons():
    answers = {split: make_answers(seed=seed) for seed, split in enumerate(("train", "validation", "test"))}
    results = score_systems(answers, resamples=300, seed=2)
    assert list(results["systems"]) == ["finetune", "ts", "cts"]
    pairs = [("ts", "finetune"), ("cts", "finetune"), ("cts", "ts")]
    expected = [(*pair, split) for split in ("validation", "test") for pair in pairs]
    assert [(e["system"], e["baseline"], e["split"]) for e in results["comparisons"]] == expected
    for system, splits in results["systems"].items():
        for split, scores in splits.items():
            answer = answers[split][system]
            resampled = bootstrap_ccc({"x": answer.predictions}, answer.labels, answer.speakers, 300, 2)["x"]
            assert scores["ccc"] == evaluate_predictions(answer.predictions, answer.labels)["ccc"]
            for dimension, interval in confidence_interval(resampled).items():
                assert scores["interval"][dimension] == pytest.approx(interval)
            women = [gender == "female" for gender in answer.genders]
            assert scores["by_gender"]["female"] == {
                "n": 30,
                "ccc": evaluate_predictions(answer.predictions[women], answer.labels[women])["ccc"],
            }
    entry = results["comparisons"][-1]
    scores = {system: results["systems"][system]["test"]["ccc"] for system in ("ts", "cts")}
    for dimension in DIMENSIONS:
        difference = scores["cts"][dimension] - scores["ts"][dimension]
        assert entry["difference"][dimension] == pytest.approx(difference)
        low, high = entry["interval"][dimension]
        assert low < difference < high and 0 < entry["p_value"][dimension] <= 1
    assert results["confidence"]["splits"]["test"] == {"speakers": 12, "utterances_without_speaker": 0}
    assert (results["confidence"]["resamples"], results["confidence"]["seed"]) == (300, 2)


def test_one_speaker_has_no_interval_and_unknown_genders_no_score():
    answers = make_answers(speakers=1)
    answers["ts"].genders[:] = [""] * 5
    results = score_systems({"test": answers}, resamples=20)
    assert results["systems"]["ts"]["test"]["interval"] == dict.fromkeys(DIMENSIONS)
    assert results["systems"]["ts"]["test"]["by_gender"] == {}
    assert results["comparisons"][0]["p_value"] == dict.fromkeys(DIMENSIONS)


def test_answers_about_other_utterances_are_not_compared():
    answers = make_answers()
    answers["ts"].ids[0] = "another"
    with pytest.raises(ValueError, match="predictions of finetune and ts on test are about other utterances"):
        score_systems({"test": answers}, resamples=20)
