"""Intervals and p-values: against answers that are really swapped and left out, and what they promise by simulation."""

import itertools
import json
import time
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

import cmkd
from benchmarks.intervals import PAIRS, bootstrap, simulate
from cmkd.scoring import confidence
from cmkd.scoring.confidence import ccc_interval, paired_test, speaker_clusters
from cmkd.scoring.evaluation import Predictions, evaluate_predictions
from cmkd.scoring.scores import describe_intervals, describe_test, score_systems

DIMENSIONS = ("activation", "valence", "dominance")


def draw(seed, speakers=5, systems=2, has_equal_sizes=False):
    """Labels, systems' answers and speakers, with effects of the speakers on all of them."""
    generator = np.random.default_rng(seed)
    labels, answers, names = simulate(generator, speakers, has_equal_sizes, PAIRS["same"])
    while len(answers) < systems:
        answers.append(0.5 * labels + 0.5 * generator.standard_normal(labels.shape))
    return labels, answers, names


def ccc_of(predictions, labels):
    return np.array([evaluate_predictions(predictions, labels)["ccc"][name] for name in DIMENSIONS])


def shares(predictions, labels, clusters):
    """What each speaker (k, 3) adds to the CCC: its numerical derivative by the weight of the speaker's utterances."""

    def weighted(weights):
        def mean(values):
            return (weights[:, None] * values).sum(0) / weights.sum()

        bias = mean(predictions) - mean(labels)
        y, p = labels - mean(labels), predictions - mean(predictions)
        return 2 * mean(y * p) / (mean(y * y) + mean(p * p) + bias**2)

    step = 1e-6
    return np.array(
        [
            (weighted(1 + step * (clusters == one)) - weighted(1 - step * (clusters == one))) / (2 * step)
            for one in range(clusters.max() + 1)
        ]
    )


def statistic(first, second, labels, clusters):
    """t (3,) of the top of cmkd/scoring/confidence.py, from answers as they are."""
    error = np.sqrt(((shares(first, labels, clusters) - shares(second, labels, clusters)) ** 2).sum(0))
    return (ccc_of(first, labels) - ccc_of(second, labels)) / error


def test_p_is_the_share_of_all_swaps_that_are_as_far_from_0():
    labels, (first, second), names = draw(1)
    clusters = speaker_clusters(names)
    found = []
    for swapped in itertools.product([False, True], repeat=5):
        rows = np.array(swapped)[clusters][:, None]
        found.append(statistic(np.where(rows, second, first), np.where(rows, first, second), labels, clusters))
    expected = (np.abs(found) >= np.abs(found[0]) - 1e-6).mean(0)
    tests = paired_test(labels, first, second, names)
    assert [tests[name]["p"] for name in DIMENSIONS] == pytest.approx(expected, abs=1e-12)
    assert len(set(expected)) > 1  # or it would not tell much
    assert {tests[name]["smallest_p"] for name in DIMENSIONS} == {2 / 32}
    assert [tests[name]["difference"] for name in DIMENSIONS] == pytest.approx(
        ccc_of(first, labels) - ccc_of(second, labels), abs=1e-12
    )


def test_four_speakers_cannot_say_less_than_an_eighth():
    """The earlier bootstrap gave .0002."""
    labels = np.random.default_rng(0).uniform(size=(400, 3))
    good, poor = (labels + noise * np.random.default_rng(1).normal(size=labels.shape) for noise in (0.01, 3.0))
    found = cmkd.paired_test(labels, good, poor, ["a", "b", "c", "d"] * 100)
    for entry in found.values():
        assert entry["difference"] > 0.8 and entry["p"] == entry["smallest_p"] == 0.125


@pytest.mark.parametrize(
    ("speakers", "smallest"), [(1, 1), (2, 0.5), (3, 0.25), (14, 2 / 2**14), (15, 1e-4), (30, 1e-4)]
)
def test_the_smallest_p_is_reached_and_stated(speakers, smallest):
    labels = np.random.default_rng(0).uniform(size=(10 * speakers, 3))
    good, poor = (labels + noise * np.random.default_rng(1).normal(size=labels.shape) for noise in (0.001, 3.0))
    names = [f"s{row % speakers}" for row in range(len(labels))]
    for entry in paired_test(labels, good, poor, names).values():
        assert entry["smallest_p"] == pytest.approx(smallest) and entry["p"] == pytest.approx(smallest)


def test_speakers_whom_both_answer_alike_do_not_lower_the_smallest_p():
    labels, (first, second), names = draw(2, speakers=6)
    same = np.array([name in ("speaker 0", "speaker 3") for name in names])[:, None]
    found = paired_test(labels, np.where(same, second, first), second, names)
    assert {entry["smallest_p"] for entry in found.values()} == {2 / 2**4}
    for entry in paired_test(labels, first, first, names).values():
        assert entry == {"difference": 0.0, "interval": [0.0, 0.0], "p": 1.0, "smallest_p": 1.0}


def test_the_test_is_symmetric_seeded_and_blind_to_scale_and_order():
    labels, (first, second), names = draw(3, speakers=20)
    found, again = (paired_test(labels, first, second, names) for _ in range(2))
    assert found == again
    turned = paired_test(labels, second, first, names)
    order = np.random.default_rng(0).permutation(len(names))
    shifted = paired_test(7 * labels + 3, 7 * first + 3, 7 * second + 3, names)
    for name in DIMENSIONS:
        assert turned[name]["p"] == found[name]["p"] == shifted[name]["p"]
        assert turned[name]["difference"] == pytest.approx(-found[name]["difference"])
        assert turned[name]["interval"] == pytest.approx([-end for end in reversed(found[name]["interval"])])
    exhaustive = draw(4, speakers=8)
    order = np.random.default_rng(0).permutation(len(exhaustive[2]))
    mixed = paired_test(exhaustive[0][order], *(a[order] for a in exhaustive[1]), [exhaustive[2][row] for row in order])
    for name, entry in paired_test(exhaustive[0], *exhaustive[1], exhaustive[2]).items():
        assert mixed[name]["p"] == entry["p"] and mixed[name]["interval"] == pytest.approx(entry["interval"])


def test_random_swaps_come_close_to_all(monkeypatch):
    labels, (first, second), names = draw(5, speakers=12)
    all_swaps = paired_test(labels, first, second, names)
    monkeypatch.setattr(confidence, "PERMUTATIONS", 2000)  # of 2048 that there are
    drawn = paired_test(labels, first, second, names)
    for name in DIMENSIONS:
        assert drawn[name]["p"] == pytest.approx(all_swaps[name]["p"], abs=0.03)
        assert (all_swaps[name]["smallest_p"], drawn[name]["smallest_p"]) == (1 / 2048, 1 / 2000)


def jackknife(value, labels, names, transform):
    """The interval of `value(rows)` by leaving out one speaker after the other."""
    names = np.array(names)
    each = list(dict.fromkeys(names))
    sizes = np.array([(names == one).sum() for one in each])
    middle = transform(value(np.full(len(names), True)))
    without = np.array([transform(value(names != one)) for one in each])
    error = np.sqrt((len(each) - 1) / len(each) * ((without - middle) ** 2).sum(0))
    freedom = sizes.sum() ** 2 / (sizes**2).sum() - 1
    return middle - stats.t.ppf(0.975, freedom) * error, middle + stats.t.ppf(0.975, freedom) * error


def test_intervals_are_those_of_a_jackknife_written_out():
    labels, (first, second), names = draw(6, speakers=7)
    low, high = jackknife(lambda rows: ccc_of(first[rows], labels[rows]), labels, names, np.arctanh)
    found = ccc_interval(labels, first, names)
    assert [found[name] for name in DIMENSIONS] == [
        pytest.approx(pair) for pair in zip(np.tanh(low), np.tanh(high), strict=True)
    ]

    def difference(rows):
        return ccc_of(first[rows], labels[rows]) - ccc_of(second[rows], labels[rows])

    low, high = jackknife(difference, labels, names, lambda value: value)
    tests = paired_test(labels, first, second, names)
    assert [tests[name]["interval"] for name in DIMENSIONS] == [
        pytest.approx(pair) for pair in zip(low, high, strict=True)
    ]


def test_several_trainings_are_their_mean():
    labels, answers, names = draw(7, systems=4)
    ours, theirs = np.stack(answers[:2]), np.stack(answers[2:])
    clusters = speaker_clusters(names)

    def value(rows):
        return sum(ccc_of(one[rows], labels[rows]) for one in answers[:2]) / 2

    low, high = jackknife(value, labels, names, np.arctanh)
    found = ccc_interval(labels, ours, names)
    assert found["valence"] == pytest.approx([np.tanh(low[1]), np.tanh(high[1])])

    def t(pairs):
        share = sum(shares(a, labels, clusters) - shares(b, labels, clusters) for a, b in pairs)
        return sum(ccc_of(a, labels) - ccc_of(b, labels) for a, b in pairs) / np.sqrt((share**2).sum(0))

    drawn = []
    for swapped in itertools.product([False, True], repeat=5):
        rows = np.array(swapped)[clusters][:, None]
        pairs = zip(ours, theirs, strict=True)
        drawn.append(t([(np.where(rows, b, a), np.where(rows, a, b)) for a, b in pairs]))
    expected = (np.abs(drawn) >= np.abs(drawn[0]) - 1e-6).mean(0)
    tests = paired_test(labels, ours, theirs, names)
    assert [tests[name]["p"] for name in DIMENSIONS] == pytest.approx(expected, abs=1e-12)
    one = paired_test(labels, ours[:1], theirs[:1], names)
    assert one == paired_test(labels, ours[0], theirs[0], names)


def test_a_dimension_that_is_not_rated_is_none_and_one_speaker_has_no_interval():
    labels, (first, second), names = draw(8)
    labels[:, 2] = np.nan
    labels[[name != "speaker 1" for name in names], 1] = np.nan
    labels[::3, 0] = np.nan
    found = paired_test(labels, first, second, names)
    assert found["dominance"] is None
    assert found["valence"]["interval"] is None
    assert (found["valence"]["p"], found["valence"]["smallest_p"]) == (1.0, 1.0)
    rated = ~np.isnan(labels[:, 0])
    kept = [name for name, is_rated in zip(names, rated, strict=True) if is_rated]
    assert found["activation"] == paired_test(labels[rated], first[rated], second[rated], kept)["activation"]
    assert ccc_interval(labels, first, names)["dominance"] is ccc_interval(labels, first, names)["valence"] is None


def test_constants_score_0_and_perfect_answers_have_no_spread():
    labels, (first, _), names = draw(9)
    constant = np.full_like(labels, 0.1)
    assert ccc_interval(labels, constant, names)["valence"] == [0.0, 0.0]
    assert ccc_interval(labels, labels, names)["valence"] == [1.0, 1.0]
    found = paired_test(labels, first, constant, names)["valence"]
    assert found["difference"] == pytest.approx(ccc_of(first, labels)[1], abs=1e-12)
    assert 2 / 32 <= found["p"] <= 1
    flat = np.full_like(labels, 0.7)
    assert paired_test(flat, first, labels, names)["valence"]["difference"] == 0.0
    almost = labels.copy()
    almost[0] += 1  # all others are perfect, so that without this speaker the CCC is 1
    assert ccc_interval(labels, almost, names)["valence"] == [-1.0, 1.0]


def rates(name, speakers, has_equal_sizes, repeats, permutations):
    """How often p <= .05 and intervals hold the truth, and the same for the earlier bootstrap."""
    generator, pair = np.random.default_rng([speakers, has_equal_sizes]), PAIRS[name]
    truth = [system.ccc for system in pair]
    found = {"p": [], "difference": [], "ccc": [], "before": []}
    for repeat in range(repeats):
        labels, answers, names = simulate(generator, speakers, has_equal_sizes, pair)
        for entry in paired_test(labels, *answers, names).values():
            found["p"].append(entry["p"] <= 0.05)
            found["difference"].append(entry["interval"][0] <= truth[0] - truth[1] <= entry["interval"][1])
        found["ccc"] += [low <= truth[0] <= high for low, high in ccc_interval(labels, answers[0], names).values()]
        differences = np.subtract(*bootstrap(labels, answers, names, repeat))
        rarer = np.minimum((differences <= 0).sum(0), (differences >= 0).sum(0))
        found["before"] += list(2 * (1 + rarer) / (differences.shape[0] + 1) <= 0.05)
    return {key: float(np.mean(values)) for key, values in found.items()}


@pytest.mark.slow
@pytest.mark.parametrize("speakers", [4, 6, 10, 20, 60])
@pytest.mark.parametrize("has_equal_sizes", [True, False])
def test_level_and_coverage_hold_by_simulation(monkeypatch, speakers, has_equal_sizes):
    """At reduced size; benchmarks/intervals.py does it at full size. Three standard errors of 300 samples: .038."""
    monkeypatch.setattr(confidence, "PERMUTATIONS", 500)
    found = rates("same", speakers, has_equal_sizes, 100, 500)
    assert found["p"] <= (0 if speakers == 4 else 0.05 + 0.038)
    assert found["difference"] >= 0.95 - 0.038 - 0.01
    assert found["ccc"] >= 0.95 - 0.038 - 0.01
    if speakers == 4:
        assert found["before"] > 0.12


def test_the_simulation_at_full_size_says_what_is_claimed():
    """docs/results/statistics.json, as benchmarks/intervals.py wrote it: claims of docs/statistics.md."""
    content = json.loads((Path(__file__).parents[1] / "docs/results/statistics.json").read_text())
    error = content["monte_carlo_error"]
    assert len(content["cases"]) == len(PAIRS) * 5 * 2
    for case in content["cases"]:
        if case["pair"] != "unequal":
            of_one_kind = case["pair"] == "same"
            assert case["below_.05"] <= 0.05 + (3 * error if of_one_kind else 0.06), case
            assert case["speakers"] > 4 or (case["below_.05"] == 0 and case["before_below_.05"] > 0.15), case
        hard = case["pair"] == "by_speaker"
        assert case["covers_difference"] >= (0.88 if hard else 0.95 - 4 * error), case
        assert case["covers_ccc"] >= (0.92 if hard else 0.95 - 4 * error), case


def test_the_systems_of_the_simulation_are_as_good_as_each_other():
    for name, pair in PAIRS.items():
        generator = np.random.default_rng(0)
        labels, answers, _ = simulate(generator, 5_000, True, pair)
        for system, answer in zip(pair, answers, strict=True):
            assert ccc_of(answer, labels) == pytest.approx(system.ccc, abs=0.02)
        assert (pair[0].ccc == pytest.approx(pair[1].ccc)) == (name != "unequal")
        assert (astuple(pair[0]) == astuple(pair[1])) == (name == "same")


def test_ten_thousand_utterances_take_seconds():
    labels, (first, second), _ = draw(10, speakers=340, has_equal_sizes=True)
    assert len(labels) > 10_000
    started = time.process_time()
    for names in (["a", "b", "c", "d"] * 2550, [f"{row % 1000}" for row in range(10_200)]):
        paired_test(labels, first, second, names)
    assert time.process_time() - started < 20


def test_utterances_without_speaker_are_their_own():
    assert speaker_clusters(["x", "", "x", ""]).tolist() == [0, 1, 0, 2]
    labels, (first, second), names = draw(11)
    alone = paired_test(labels, first, second, [""] * len(names))
    assert alone == paired_test(labels, first, second, [str(row) for row in range(len(names))])


def test_speakers_may_be_whole_numbers_and_nothing_else():
    """A speaker named 0 is a speaker like any other, not an unknown one."""
    labels, (first, second), names = draw(11)
    numbers = np.unique(names, return_inverse=True)[1]
    assert 0 in numbers and (numbers == 0).sum() > 1
    assert paired_test(labels, first, second, numbers) == paired_test(labels, first, second, names)
    assert speaker_clusters([0, 0, 1, 1, ""]).tolist() == [0, 0, 1, 1, 2]
    for wrong in (None, np.nan, 1.0, b"a"):
        with pytest.raises(ValueError, match=r"speakers\[1\] is .*: must be a name or a whole number, and \"\""):
            speaker_clusters(["a", wrong])


def test_a_dimension_that_nobody_rated_need_not_be_answered():
    labels, (first, second), names = draw(11)
    labels[:, 2] = np.nan
    expected = paired_test(labels, first, second, names)
    first[:, 2] = second[:, 2] = np.nan
    assert paired_test(labels, first, second, names) == expected
    assert expected["dominance"] is None and ccc_interval(labels, first, names)["dominance"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros((2, 3)), np.zeros((2, 3)), np.zeros((2, 3)), ["a"]), r"with 1 speakers.*must have shape \(1, 3\)"),
        (
            (np.zeros((2, 3)), np.zeros((2, 2)), np.zeros((2, 2)), ["a", "b"]),
            r"got labels \(2, 3\), predictions \(2, 2\)",
        ),
        ((np.zeros((2, 3)), np.zeros((2, 3)), np.zeros((5, 2, 3)), ["a", "b"]), r"others \(5, 2, 3\)"),
        ((np.zeros((2, 3)), np.zeros((0, 2, 3)), np.zeros((0, 2, 3)), ["a", "b"]), r"predictions \(0, 2, 3\)"),
        ((np.zeros((0, 3)), np.zeros((0, 3)), np.zeros((0, 3)), []), "there is no utterance"),
        (
            (np.zeros((2, 3)), np.zeros((2, 3)), np.array([[0, 0, 0], [0, np.nan, 0]]), ["a", "b"]),
            r"others\[1, 1\] is nan: every prediction must be finite",
        ),
        (
            (np.array([[0, 0, 0], [0, 0, np.inf]]), np.zeros((2, 3)), np.zeros((2, 3)), ["a", "b"]),
            r"labels\[1, 2\] is inf: a label must be finite, or NaN",
        ),
    ],
)
def test_input_that_cannot_be_compared_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        paired_test(*arguments)


def make_answers(systems=("finetune", "ts", "cts"), speakers=12, seed=0):
    labels, answers, names = draw(seed, speakers, len(systems), has_equal_sizes=True)
    genders = ["female" if int(name.split()[1]) % 2 else "male" for name in names]
    ids = [f"u{number}" for number in range(len(names))]
    return {
        system: Predictions(list(ids), answer, labels, names, genders)
        for system, answer in zip(systems, answers, strict=True)
    }


def test_results_hold_scores_intervals_and_comparisons():
    answers = {split: make_answers(seed=seed) for seed, split in enumerate(("train", "validation", "test"))}
    results = score_systems(answers)
    assert list(results["systems"]) == ["finetune", "ts", "cts"]
    pairs = [("ts", "finetune"), ("cts", "finetune"), ("cts", "ts")]
    expected = [(*pair, split) for split in ("validation", "test") for pair in pairs]
    assert [(e["system"], e["baseline"], e["split"]) for e in results["comparisons"]] == expected
    for system, splits in results["systems"].items():
        for split, scores in splits.items():
            answer = answers[split][system]
            assert scores["ccc"] == evaluate_predictions(answer.predictions, answer.labels)["ccc"]
            assert scores["interval"] == ccc_interval(answer.labels, answer.predictions, answer.speakers)
            women = [gender == "female" for gender in answer.genders]
            assert scores["by_gender"]["female"] == {
                "n": sum(women),
                "ccc": evaluate_predictions(answer.predictions[women], answer.labels[women])["ccc"],
            }
    entry = results["comparisons"][-1]
    assert set(entry) == {"system", "baseline", "split", "difference", "interval", "p", "smallest_p"}
    cts, ts = answers["test"]["cts"], answers["test"]["ts"]
    for dimension, test in paired_test(cts.labels, cts.predictions, ts.predictions, cts.speakers).items():
        assert {field: entry[field][dimension] for field in test} == test
    assert results["confidence"] == {
        "level": 0.95,
        "permutations": 10_000,
        "seed": 0,
        "splits": {
            split: {"speakers": 12, "utterances_without_speaker": 0} for split in ("train", "validation", "test")
        },
    }


def test_one_speaker_has_no_interval_and_unknown_genders_no_score():
    answers = make_answers(speakers=1)
    answers["ts"].genders[:] = [""] * len(answers["ts"].ids)
    results = score_systems({"test": answers})
    assert results["systems"]["ts"]["test"]["interval"] == dict.fromkeys(DIMENSIONS)
    assert results["systems"]["ts"]["test"]["by_gender"] == {}
    assert results["comparisons"][0]["interval"] == dict.fromkeys(DIMENSIONS)
    assert results["comparisons"][0]["smallest_p"] == dict.fromkeys(DIMENSIONS, 1.0)


def test_answers_about_other_utterances_are_not_compared():
    answers = make_answers()
    answers["ts"].ids[0] = "another"
    with pytest.raises(ValueError, match="predictions of finetune and ts on test are about different utterances"):
        score_systems({"test": answers})


def test_what_is_said_of_them():
    assert "cannot be below 0.125, however" in describe_test([0.125, None, 0.125])
    assert "cannot be below 0.125 to 0.5, however" in describe_test([0.125, 0.5])
    confidence_of = score_systems({"test": make_answers(speakers=4)})["confidence"]
    assert "over the 4 speakers of test (jackknife" in describe_intervals(confidence_of, ["test"])
    confidence_of["splits"]["test"]["utterances_without_speaker"] = 7
    assert "4 speakers of test and 7 utterances whose speaker is unknown" in describe_intervals(confidence_of, ["test"])
    assert describe_intervals(confidence_of, ["test"]).endswith("counts as a speaker, so that it is too narrow.")


def test_what_nobody_rated_need_not_be_answered():
    """As where a model is trained on a corpus of two dimensions: its predictions of the third are NaN."""
    generator = np.random.default_rng(3)
    labels = generator.uniform(size=(24, 3))
    first, second = labels + generator.normal(size=(2, 24, 3))
    speakers = list("abcdef") * 4
    intervals = ccc_interval(labels, first, speakers)
    found = paired_test(labels, first, second, speakers)
    for values in (labels, first, second):
        values[:, 1] = np.nan
    assert ccc_interval(labels, first, speakers) == intervals | {"valence": None}
    assert paired_test(labels, first, second, speakers) == found | {"valence": None}
    first[3, 2] = np.nan
    with pytest.raises(ValueError, match=r"predictions\[3, 2\] is nan: every prediction must be finite"):
        ccc_interval(labels, first, speakers)
