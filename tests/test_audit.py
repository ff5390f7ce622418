"""`cmkd audit`: a model gets the verdicts that it was built for, and what is reported is what was computed."""

import dataclasses
import json
import re
from pathlib import Path

import audmetric
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from datasets import Dataset
from scipy import stats
from small_models import TINY
from spoken_tones import write_corpus
from transformers import HubertConfig

import cmkd.audit.run
from cmkd.audit.cost import peak_memory
from cmkd.audit.disturbances import disturbances
from cmkd.audit.intervals import ccc, correlation_interval, difference_of_groups, interval, mean_error
from cmkd.audit.report import format_card
from cmkd.audit.run import QUICK_CLIPS, Settings, audit, column_groups, said_and_acted
from cmkd.audit.subjects import load_subject
from cmkd.audit.tests import GROUPS, TESTS, Cost, Evidence, WordAnswers
from cmkd.audit.words import evenly
from cmkd.commands import main
from cmkd.corpora import load_corpus
from cmkd.corpora.spoken_emobank import Sentence
from configuration_cmkd import EMOTION_DIMENSIONS

GENTLE = (
    "white_noise_10db",
    "babble_20db",
    "gain_-20db",
    "gain_+20db",
    "g711_mulaw",
    "silence_after",
    "end_cut",
    "tempo_1.1",
)
"""What a model that hears tones must stand."""

SMALL = HubertConfig(**TINY)

pytestmark = pytest.mark.usefixtures("quick_figures")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("audit") / "corpus")


@pytest.fixture(scope="module")
def corpus(place):
    return load_corpus("manifest", place, label_scale=(1, 7))


@pytest.fixture(scope="module")
def audited(place, corpus, tmp_path_factory):
    """Audits a model of spoken_tones, once for all tests that want the same."""
    done = {}

    def run(model, disturbances=GENTLE):
        key = model, disturbances
        if key not in done:
            output = tmp_path_factory.mktemp("audits") / model
            subject = load_subject(f"{place}/models.py:{model}")
            done[key] = audit(subject, corpus, output, Settings(disturbances=disturbances), SMALL), output
        return done[key]

    return run


def verdicts(results, test, of=None, condition=None):
    """Those of the findings of a test."""
    return {
        finding["verdict"]
        for finding in results["tests"][test]["findings"]
        if of in (None, finding["of"]) and condition in (None, finding["condition"])
    }


@pytest.mark.slow
def test_a_perfect_model_passes_all(audited):
    results, _ = audited("perfect")
    found = {name: verdicts(results, name) for name in TESTS}
    expected = {name: {"passed"} for name in TESTS}
    expected |= {
        "speaker_error": {"not applicable"},  # two clips of each speaker
        "batch_change": {"not applicable"},  # a function takes one
        "parameters": {"not applicable"},
        "relative_time": {"reported"},
        "working_memory": {"reported"},
        "follows_acting": set(),  # nobody says what was acted
        "follows_words": set(),  # nor was it asked
    }
    assert found == expected
    assert results["verdicts"]["robustness"]["failed"] == 0
    assert sum(map(sum, (counts.values() for counts in results["verdicts"].values()))) == sum(
        len(test["findings"]) for test in results["tests"].values()
    )


def test_what_hears_pitch_fails_where_the_pitch_changes(audited):
    results, _ = audited("perfect", ("pitch_+2",))
    assert verdicts(results, "mean_change") == {"failed"}
    by_dimension = {finding["of"]: finding["value"] for finding in results["tests"]["mean_change"]["findings"]}
    # from f to 2^(1/6) f, and f is 300 + 300 x Hz where the label x has a mean of about one half
    assert by_dimension["activation"] == pytest.approx((2 ** (1 / 6) - 1) * 450 / 300, abs=0.04)


def test_a_constant_model(audited):
    results, _ = audited("constant")
    for test in ("concordance", "spread", "ties"):
        assert verdicts(results, test) == {"failed"}
    for test in ("correlation", "entanglement"):
        assert verdicts(results, test) == {"not applicable"}
    for test in ("out_of_range", "mean_change", "large_change", "lost_concordance", "length_change"):
        assert verdicts(results, test) == {"passed"}


@pytest.mark.slow
def test_a_model_that_hears_loudness(audited):
    results, _ = audited("loud")
    for condition in ("gain_-20db", "gain_+20db"):
        assert verdicts(results, "mean_change", "activation", condition) == {"failed"}
        assert verdicts(results, "lost_concordance", "activation", condition) == {"failed"}
        assert verdicts(results, "mean_change", "valence", condition) == {"passed"}
        value = next(
            finding["value"]
            for finding in results["tests"]["mean_change"]["findings"]
            if (finding["of"], finding["condition"]) == ("activation", condition)
        )
        assert value == pytest.approx(0.4, abs=0.01)
    assert verdicts(results, "mean_change", "activation", "babble_20db") == {"passed"}
    assert verdicts(results, "concordance") == {"passed"}
    deaf, _ = audited("perfect")
    assert verdicts(deaf, "mean_change", "activation", "gain_+20db") == {"passed"}


@pytest.mark.slow
def test_a_model_that_is_biased(audited):
    results, output = audited("biased")
    condition = "gender: female against male"
    assert verdicts(results, "error_gap", "valence", condition) == {"failed"}
    assert verdicts(results, "error_gap", "activation", condition) == {"passed"}
    finding = next(f for f in results["tests"]["error_gap"]["findings"] if f["of"] == "valence")
    table = pq.read_table(output / "answers/clean.parquet").to_pandas()
    errors = table["predicted_valence"] - table["valence"]
    assert finding["value"] == pytest.approx(0.2, abs=0.01)
    assert finding["value"] == pytest.approx(
        errors[table.gender == "female"].mean() - errors[table.gender == "male"].mean()
    )


def test_a_model_on_another_scale_and_one_of_one_dimension(audited):
    results, _ = audited("ratings", ())
    assert verdicts(results, "out_of_range") == {"failed"} and verdicts(results, "correlation") == {"passed"}
    results, _ = audited("only_valence", ())
    assert {finding["of"] for finding in results["tests"]["concordance"]["findings"]} == {"valence"}
    assert results["tests"]["ties"]["findings"] == [] and results["model"]["dimensions"] == ["valence"]


@pytest.mark.slow
def test_what_is_written(audited):
    results, output = audited("biased")
    files = {str(path.relative_to(output)) for path in output.rglob("*.*")}
    conditions = ("clean", "one_second", "one_second_ten_times", *GENTLE)
    expected = {"audit.json", "audit.md", "audit.html", "card.md", "answers/asked.json"}
    expected |= {f"figures/{name}.png" for name in ("robustness", "fairness")}
    assert files == expected | {f"answers/{name}.parquet" for name in conditions}
    assert json.loads((output / "audit.json").read_text()) == results and results["schema_version"] == 1
    card = (output / "card.md").read_text()
    index = yaml.safe_load(card.split("---")[1])["model-index"][0]["results"]
    metrics = {
        (metric["type"], metric["config"] if "config" in metric else metric["name"]): metric["value"]
        for result in index
        for metric in result["metrics"]
    }
    table = pq.read_table(output / "answers/clean.parquet").to_pandas()
    by_audmetric = audmetric.concordance_cc(table["valence"].to_numpy(), table["predicted_valence"].to_numpy())
    value = next(value for (kind, name), value in metrics.items() if kind == "concordance_cc" and "valence" in name)
    assert value == pytest.approx(by_audmetric, abs=1e-4) and len(metrics) == 6
    page = (output / "audit.html").read_text()
    assert not re.search(r'(src|href)="(?!data:|#)', page) and page.count("data:image/png;base64,") == 2
    for about in results["conditions"].values():
        assert about in page
    text = (output / "audit.md").read_text()
    for test in TESTS.values():
        if results["tests"][test.name]["findings"]:
            assert test.about in text and test.source in text


@pytest.mark.slow
def test_a_card_names_no_clip(audited):
    results, _ = audited("biased")
    notes = ["activation, valence and dominance are derived from votes", "one clip is odd, 'x7'"]
    results = results | {"corpus": results["corpus"] | {"notes": notes}}
    card = format_card(results)
    assert "The corpus: activation, valence and dominance are derived from votes.\n" in card and "x7" not in card


@pytest.mark.slow
def test_an_audit_goes_on_where_it_stopped(place, corpus, tmp_path):
    subject = load_subject(f"{place}/models.py:perfect")
    settings = Settings(disturbances=("white_noise_10db", "mp3"))
    before = audit(subject, corpus, tmp_path / "audit", settings, SMALL)
    (tmp_path / "audit/answers/white_noise_10db.parquet").unlink()
    (tmp_path / "audit/audit.json").unlink()
    asked = []

    def score(waves):
        asked.extend(waves)
        return subject.score(waves)

    counting = dataclasses.replace(subject, score=score)
    after = audit(counting, corpus, tmp_path / "audit", settings, SMALL)
    assert len(asked) == 32 + 5  # the clips of the one that is missing, and the measurement of the cost
    for test in set(TESTS) - {"real_time_factor", "relative_time", "working_memory"}:
        assert after["tests"][test] == before["tests"][test]
    with pytest.raises(FileExistsError, match="answers of another audit .model was"):
        audit(dataclasses.replace(subject, identity="other"), corpus, tmp_path / "audit", settings, SMALL)


def test_a_quick_audit_has_all_speakers(tmp_path, monkeypatch):
    monkeypatch.setattr(cmkd.audit.run, "QUICK_CLIPS", 16)
    folder = write_corpus(tmp_path / "corpus", speakers=10)
    corpus = load_corpus("manifest", folder, label_scale=(1, 7))
    subject = load_subject(f"{folder}/models.py:perfect")
    results = audit(subject, corpus, tmp_path / "audit", Settings(quick=True, disturbances=()), SMALL)
    assert results["clips"] == 16 < QUICK_CLIPS and results["speakers"] == 10
    gap = results["tests"]["error_gap"]["findings"][0]
    assert gap["verdict"] == "not applicable" and gap["note"].startswith("5 and 5 speakers: 6 of each are needed")


@pytest.mark.slow
def test_the_command_and_a_comparison(place, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cmkd.audit.run, "HubertConfig", lambda: SMALL)
    (tmp_path / "groups.csv").write_text(
        "speaker,age\n" + "".join(f"s{index},{'old' if index < 8 else 'young'}\n" for index in range(16))
    )
    for model in ("perfect", "biased"):
        main(
            f"audit {place}/models.py:{model} manifest {place} --corpus.label_scale 1 7 --output {tmp_path / model} "
            f"--disturbances gain_+20db --groups {tmp_path}/groups.csv".split()
        )
    said = capsys.readouterr().out
    assert "error_gap: 1 of 6; the largest is valence, gender: female against male: 0.2" in said
    results = json.loads((tmp_path / "biased/audit.json").read_text())
    assert verdicts(results, "error_gap", "activation", "age: old against young") == {"passed"}
    main(
        ["audit", "--compare", str(tmp_path / "perfect"), str(tmp_path / "biased"), "--output", str(tmp_path / "both")]
    )
    found = json.loads((tmp_path / "both/comparison.json").read_text())
    assert set(found["conditions"]) == {"clean", "gain_+20db"}
    valence = found["conditions"]["clean"]["valence"]
    assert valence["difference"] == pytest.approx(valence["ccc"][0] - valence["ccc"][1]) and valence["difference"] > 0
    assert valence["p"] < 0.05 and found["conditions"]["clean"]["activation"]["p"] == 1
    assert {"test": "error_gap", "of": "valence", "condition": "gender: female against male"}.items() <= next(
        entry for entry in found["verdicts"] if entry["test"] == "error_gap"
    ).items()
    assert capsys.readouterr().out.count("| clean |") == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("{place}/models.py:perfect manifest {place} --corpus.label_scale 1 7", "--output is missing"),
        ("--output {here}/a", "name a model and a corpus"),
        (
            "{place}/models.py:perfekt manifest {place} --corpus.label_scale 1 7 --output {here}/a",
            "Did you mean 'perfect'",
        ),
        (
            "{place}/models.py:perfect manifest {place} --corpus.label_scale 1 7 --output {here}/a --by age",
            "--by age: the corpus has no column of text or numbers",
        ),
        (
            "{place}/models.py:perfect manifest {place} --corpus.label_scale 1 7 --output {here}/a --acted emotion",
            "--acted emotion: the corpus has no column of text",
        ),
        (
            "{place}/models.py:perfect manifest {place} --corpus.label_scale 1 7 --output {here}/a --disturbances mp4",
            "--disturbances mp4: must be of .* Did you mean 'mp3'",
        ),
        (
            "{place}/models.py:perfect manifest {place} --corpus.label_scale 1 7 --output {here}/a --split dev",
            "has no split 'dev'; it has test",
        ),
        ("{place}/models.py:perfect manifest {place} --corpus.label_scale 1 7 --output {place}", "holds no audit.json"),
        ("--compare {place} {place}", "no file .*audit.json: --compare takes two folders"),
    ],
)
def test_what_is_refused(place, tmp_path, words, message):
    with pytest.raises(SystemExit) as error:
        main(["audit", *words.format(place=place, here=tmp_path).split()])
    assert re.search(message, str(error.value.code))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("name,age\na,1\n", "must have either id or speaker"),
        ("speaker,age\ns1,1\ns1,2\n", "line 3 says of speaker 's1' other than before"),
        ("speaker,age\ns1\n", "line 2 has not as many fields"),
        ("speaker,age\nnobody,1\n", "none of its speakers is of the clips"),
    ],
)
def test_tables_of_groups_that_do_not_fit(place, corpus, tmp_path, table, message):
    (tmp_path / "groups.csv").write_text(table)
    subject = load_subject(f"{place}/models.py:constant")
    settings = Settings(groups=tmp_path / "groups.csv", disturbances=())
    with pytest.raises(ValueError, match=message):
        audit(subject, corpus, tmp_path / "audit", settings, SMALL)


def evidence(labels, answers, speakers=None, **more):
    """Of answers (n, 3) to n clips that nothing else is known of."""
    speakers = [f"s{index}" for index in range(len(labels))] if speakers is None else speakers
    values = {"disturbed": {}, "batched": None, "once": None, "ten_times": None, "columns": {}, "said": []}
    values |= {"acted": None, "words": None, "cost": None} | more
    return Evidence(EMOTION_DIMENSIONS, np.asarray(labels), np.asarray(answers), speakers=speakers, **values)


@pytest.fixture
def random():
    return np.random.default_rng(3)


def findings(test, of):
    return {(found.of, found.condition): found for found in TESTS[test].measure(of)}


def test_values_are_those_of_other_libraries(random):
    labels = random.uniform(size=(40, 3))
    labels[::5, 2] = np.nan
    answers = 0.6 * np.nan_to_num(labels) + 0.3 * random.uniform(size=(40, 3))
    under = answers + random.normal(0, 0.1, (40, 3))
    of = evidence(labels, answers, disturbed={"x": under})
    for index, name in enumerate(EMOTION_DIMENSIONS):
        rows = ~np.isnan(labels[:, index])
        truth, given = labels[rows, index], answers[rows, index]
        value = audmetric.concordance_cc(truth, given)
        assert findings("concordance", of)[name, ""].value == pytest.approx(value)
        assert findings("correlation", of)[name, ""].value == pytest.approx(stats.pearsonr(truth, given)[0])
        assert findings("absolute_error", of)[name, ""].value == pytest.approx(
            audmetric.mean_absolute_error(truth, given)
        )
        lost = findings("lost_concordance", of)[name, "x"].value
        assert lost == pytest.approx(value - audmetric.concordance_cc(truth, under[rows, index]))
        change = np.sort(np.abs(under - answers)[:, index])
        assert findings("mean_change", of)[name, "x"].value == pytest.approx(change.sum() / 40)
        assert change[37] <= findings("large_change", of)[name, "x"].value <= change[38]


def test_intervals_are_those_of_scipy_where_a_speaker_has_one_clip(random):
    labels, answers = random.uniform(size=(2, 25))
    errors = answers - labels
    ends = interval(mean_error, labels, answers, np.arange(25))
    assert ends == pytest.approx(stats.ttest_1samp(errors, 0).confidence_interval(0.95))
    first = np.arange(25) < 11
    value, ends = difference_of_groups(mean_error, labels, answers, np.arange(25), first)
    welch = stats.ttest_ind(errors[first], errors[~first], equal_var=False)
    assert value == pytest.approx(errors[first].mean() - errors[~first].mean())
    assert ends == pytest.approx(welch.confidence_interval(0.95))
    assert interval(ccc, labels, answers, np.zeros(25)) is None
    low, high = correlation_interval(labels, labels + 0.01 * answers, np.arange(25))
    assert 0.99 < low < np.corrcoef(labels, labels + 0.01 * answers)[0, 1] < high < 1
    fisher = stats.pearsonr(labels, answers).confidence_interval(0.95)  # for normal variables, which these are not
    assert correlation_interval(labels, answers, np.arange(25)) == pytest.approx(list(fisher), abs=0.15)


def test_the_three_verdicts_of_a_gap(random):
    """The same bias is shown, or cannot be told, by how much the speakers differ among each other."""
    groups = np.array(["a", "b"] * 20)

    def verdict(bias, noise):
        labels = random.uniform(size=(40, 3))
        answers = labels + bias * (groups == "a")[:, None] + random.normal(0, noise, (40, 3))
        of = evidence(labels, answers, columns={"group": list(groups)})
        return {finding["verdict"] for finding in TESTS["error_gap"].run(of)["findings"]}

    assert verdict(0.0, 0.01) == {"passed"}
    assert verdict(0.3, 0.01) == {"failed"}
    assert verdict(0.05, 0.3) == {"undecided"}


def test_groups_that_share_speakers_get_no_claim(random):
    labels = random.uniform(size=(40, 3))
    speakers = [f"s{index % 20}" for index in range(40)]
    of = evidence(labels, labels, speakers, columns={"device": ["phone"] * 20 + ["studio"] * 20})
    found = TESTS["concordance_gap"].run(of)["findings"]
    assert {finding["verdict"] for finding in found} == {"not applicable"}
    assert "Some speakers are in both" in found[0]["note"]


def test_the_error_of_speakers():
    """Two of three speakers have ten clips: one is rated 0.3 too high on average, one 0.1 too low."""
    labels = np.full((25, 3), 0.5)
    answers = labels + np.repeat([0.3, -0.1, 0.9], [10, 10, 5])[:, None]
    found = findings("speaker_error", evidence(labels, answers, ["a"] * 10 + ["b"] * 10 + ["c"] * 5))
    assert found["valence", ""].value == pytest.approx(0.2)
    assert found["valence", ""].note == "Over 2 speakers; the largest is 0.300."


def test_ties_and_entanglement(random):
    labels = random.uniform(size=(200, 3))
    answers = labels.copy()
    answers[:50, 2] = answers[:50, 0]
    answers[:, 1] = 0.9 * answers[:, 0]
    of = evidence(labels, answers)
    assert findings("ties", of)["activation and dominance", ""].value == 0.25
    expected = 1 - abs(stats.pearsonr(labels[:, 0], labels[:, 1])[0])
    assert findings("entanglement", of)["activation and valence", ""].value == pytest.approx(expected)


def test_batches_and_lengths_and_cost():
    zeros = np.zeros((4, 3))
    moved = zeros.copy()
    moved[2, 1] = 0.01
    cost = Cost(0.5, 0.25, 1000, 2000, 3_000_000, None, "cpu")
    of = evidence(zeros, zeros, batched=moved, once=zeros, ten_times=moved, cost=cost)
    assert findings("batch_change", of)["valence", ""].value == 0.01
    assert findings("length_change", of)["valence", ""].value == 0.0025
    assert findings("parameters", of)["model", ""].value == 1000
    assert findings("relative_time", of)["model", ""].value == 2
    assert "on Linux" in findings("working_memory", of)["model", ""].note
    known = dataclasses.replace(of, cost=dataclasses.replace(cost, reference_memory=50_000_000))
    found = findings("working_memory", known)["model", ""]
    assert (found.value, found.note) == (3, "On cpu; HuBERT Base takes 50.")
    assert TESTS["real_time_factor"].run(of)["findings"][0]["verdict"] == "passed"
    assert TESTS["batch_change"].run(of)["findings"][1]["verdict"] == "failed"


def by_least_squares(scores, given, columns):
    """The adjusted partial R² of columns, by two regressions with an indicator for each group."""
    groups = np.equal.outer(given, np.unique(given)).astype(float)
    both = np.column_stack([groups, columns])
    variances = []
    for design in (groups, both):
        rest = scores - design @ np.linalg.lstsq(design, scores, rcond=None)[0]
        variances.append((rest**2).sum() / (len(scores) - np.linalg.matrix_rank(design)))
    return 1 - variances[1] / variances[0]


def test_how_far_a_model_follows_what_is_acted(random):
    """Of three models, one hears the acting, one the words and one a bit of both; the measure is that of two
    regressions, and 1 and about 0 for the first two."""
    said = np.repeat(["one", "two", "three", "four"], 30)
    acted = np.tile(["angry", "happy", "sad"], 40)
    voice = np.select([acted == "angry", acted == "happy"], [0.1, 0.9], 0.4)
    words = np.select([said == "one", said == "two"], [0.2, 0.8], 0.5)
    noise = random.normal(0, 0.1, 120)
    answers = np.column_stack([words + 0.5 * voice, words + noise, words + 0.3 * voice + noise])
    speakers = [f"s{index % 10}" for index in range(120)]
    of = evidence(np.zeros((120, 3)), answers, speakers, said=list(said), acted=list(acted))
    found = findings("follows_acting", of)
    assert found["activation", ""].value == pytest.approx(1)
    assert abs(found["valence", ""].value) < 0.05 < found["dominance", ""].value
    indicators = np.equal.outer(acted, ["angry", "happy", "sad"]).astype(float)
    for index, name in enumerate(EMOTION_DIMENSIONS):
        assert found[name, ""].value == pytest.approx(by_least_squares(answers[:, index], said, indicators))
    low, high = found["dominance", ""].interval
    assert 0 < low < found["dominance", ""].value < high < 1
    assert found["valence", ""].note == "120 clips: 4 sentences, 3 emotions, 10 speakers."
    few = evidence(np.zeros((6, 3)), answers[:6], said=list(said[:6]), acted=["sad"] * 6)
    assert "There must be two emotions or more" in findings("follows_acting", few)["valence", ""].note
    same = dataclasses.replace(of, clean=np.full((120, 3), 0.5))
    assert findings("follows_acting", same)["valence", ""].note.startswith("The answers are constant")


def test_the_share_is_0_on_average_for_a_model_that_hears_nothing(random):
    """However few clips there are: the mean over 150 models is within three standard errors of 0."""
    said, acted = ["a", "b"] * 12, ["x", "y", "z"] * 8
    shares = []
    for _ in range(50):
        of = evidence(np.zeros((24, 3)), random.normal(size=(24, 3)), said=said, acted=acted)
        shares += [found.value for found in findings("follows_acting", of).values()]
    assert abs(np.mean(shares)) < 3 * np.std(shares) / np.sqrt(150)


def test_how_far_a_model_follows_the_words(random):
    """One falls with the words, one knows the voices only, one follows the words and something else."""
    valence = random.uniform(size=80)
    voices = np.array(["a", "b"] * 40)
    is_b = (voices == "b").astype(float)
    answers = np.column_stack([1 - 0.5 * valence + is_b, is_b + random.normal(0, 0.1, 80), valence + 0.3 * is_b])
    answers[:, 2] += random.normal(0, valence.std(), 80)
    words = WordAnswers(valence, list(voices), answers)
    found = findings("follows_words", evidence(np.zeros((1, 3)), np.zeros((1, 3)), words=words))
    assert found["activation", ""].value == pytest.approx(1)
    fall = 0.5 * (valence.max() - valence.min())
    assert found["activation", ""].note.endswith(
        f"2 voices. From the lowest to the highest rating the score falls by {fall:.3f}."
    )
    assert abs(found["valence", ""].value) < 0.1
    low, high = found["dominance", ""].interval
    assert low < 0.5 < high and high - low < 0.4  # as much of one as of the other
    assert found["dominance", ""].value == pytest.approx(by_least_squares(answers[:, 2], voices, valence[:, None]))


def test_sentences_are_spoken_and_their_words_compared(place, corpus, tmp_path):
    """A model that finds long sentences happy follows the words of a table where the longer ones are; what it answered
    is not asked again, and other sentences are."""
    pytest.importorskip("espeakng_loader", reason='needs the extra "demo"')
    said = ("we saw" + 5 * " the old house").split()
    lines = ["id,split,V,A,D,text"]
    lines += [f"t{size},test,{1 + size / 4},3,3,{' '.join(said[:size])}" for size in range(3, 16)]
    lines += ["train,train,5,3,3,this one is not of the test split", "long,test,5,3,3," + " ".join(said * 2)]
    (tmp_path / "emobank.csv").write_text("\n".join(lines) + "\n")
    settings = Settings(disturbances=(), words=tmp_path, words_speech_dir=tmp_path / "speech")
    subject = load_subject(f"{place}/models.py:long_is_happy")
    results = audit(subject, corpus, tmp_path / "audit", settings, SMALL)
    found = results["tests"]["follows_words"]["findings"][0]
    assert found["of"] == "valence" and found["value"] > 0.8 and "13 sentences" in found["note"]
    assert results["settings"]["words"].startswith("13 sentences of EmoBank's test split, spoken by espeak-ng")
    asked = []
    counting = dataclasses.replace(subject, score=lambda waves: [asked.extend(waves), subject.score(waves)][1])
    assert audit(counting, corpus, tmp_path / "audit", settings, SMALL)["tests"]["follows_words"]["findings"] == [found]
    assert len(asked) == 5  # of the cost
    (tmp_path / "emobank.csv").write_text("\n".join(lines[:-4]) + "\n")
    audit(counting, corpus, tmp_path / "audit", settings, SMALL)
    assert len(asked) == 5 + 11 + 5


def test_sentences_are_taken_evenly_over_their_ratings():
    many = [Sentence(str(index), "test", 3.0 + index / 1000, "") for index in range(100)]
    few = [Sentence("low", "test", 1.0, ""), Sentence("high", "test", 5.0, ""), Sentence("mid", "test", 2.1, "")]
    assert [sentence.id for sentence in evenly(many + few, 5)] == ["low", "mid", "0", "99", "high"]
    assert evenly(few, 3) == sorted(few, key=lambda sentence: sentence.valence)


def test_columns_as_groups():
    sex = ["f", "m", "", "f", "m", "f"]
    rows = Dataset.from_dict({"age": [20, 40, 40, 30, None, 50], "sex": sex, "speaker": list("abbcde")})
    young, old = "up to 35", "above 35"  # of four speakers who are 20, 40, 30 and 50
    assert column_groups(rows, "age") == [young, old, old, young, "", old]
    assert column_groups(rows, "sex") == sex


def test_what_is_said_and_acted():
    rows = Dataset.from_dict({"id": ["1001_DFA_ANG_XX", "1002_TIE_NEU_XX", "x"], "transcript": ["a", "b", ""]})
    assert said_and_acted(rows, "crema-d", None, {}) == (["DFA", "TIE", ""], ["ANG", "NEU", ""])
    assert said_and_acted(rows, "manifest", None, {}) == (["a", "b", ""], None)
    assert said_and_acted(rows, "manifest", "mood", {"mood": ["x", "y", ""]}) == (["a", "b", ""], ["x", "y", ""])
    with pytest.raises(ValueError, match="--acted moods: neither the corpus .* Did you mean 'mood'"):
        said_and_acted(rows, "manifest", "moods", {"mood": ["x", "y", ""]})


def test_the_peak_of_memory_is_that_of_the_function():
    def run():
        return np.ones(8_000_000).sum()  # 64 MB

    found = peak_memory(run, torch.device("cpu"))
    if found is None:
        pytest.skip("this system does not say")
    assert found == pytest.approx(64e6, rel=0.1)


def test_every_test_says_what_it_is():
    for name, test in TESTS.items():
        assert test.name == name and test.group in GROUPS and test.unit and test.source and test.about.endswith(".")
        assert (test.threshold is None) == (test.rule == "reported")


def test_the_page_lists_every_test_and_every_disturbance():
    page = (Path(__file__).parents[1] / "docs/audit.md").read_text(encoding="utf-8").split("## Two models")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("| `")
    ]
    listed = {row[0].strip("`"): row[1:] for row in rows}
    words = {"at least": "at least {:g}", "at most": "at most {:g}", "within": "within ±{:g}", "reported": "none"}
    for test in TESTS.values():
        limit = words[test.rule].format(test.threshold)
        assert listed[test.name] == [test.about, limit, test.unit, test.source]
    for kind in disturbances([]).values():
        assert listed[kind.name] == [kind.about]
