"""Which teacher judges which utterance; and what a run with cross-fitting, variants and controls leaves behind."""

import json
import shutil
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict
from tones import SIZES, write_recipe
from transformers import TrainerState

import train_distill
from benchmarks import beyond
from cmkd.features.inputs import ChosenRows
from cmkd.features.labels import label_variance
from cmkd.runs.conditioning import Conditioning, describe_conditioning, read_conditioning, write_conditioning
from cmkd.runs.cross_fitting import deal_out, folds_of, read_cross_fitted
from cmkd.runs.folder import write_embeddings
from cmkd.runs.recipe import Recipe, load_recipe
from cmkd.scoring.confidence import paired_test
from cmkd.scoring.evaluation import evaluate_predictions, read_predictions, write_predictions
from cmkd.stages import describe_variant
from cmkd.training.trainer import CMKDTrainer
from configuration_cmkd import EMOTION_DIMENSIONS

pytestmark = pytest.mark.usefixtures("quick_figures")

ROOT = Path(__file__).parent.parent


def test_speakers_are_dealt_out_evenly_and_whole():
    generator = np.random.default_rng(0)
    speakers = [f"s{index}" for index in generator.integers(0, 23, size=500)] + [""] * 7
    folds = deal_out(speakers, 5)
    for speaker in set(speakers) - {""}:
        assert len({fold for fold, of_it in zip(folds, speakers, strict=True) if of_it == speaker}) == 1
    sizes = np.bincount(folds, minlength=5)
    assert sizes.sum() == 507 and sizes.max() - sizes.min() <= max(map(speakers.count, set(speakers)))
    assert len(set(folds[-7:])) > 1  # each unknown speaker is one
    assert deal_out(speakers, 5).tolist() == folds.tolist()
    assert deal_out(["a", "b", "b", "c"], 3).tolist() == [1, 0, 0, 2]
    with pytest.raises(
        ValueError, match="cross_fitting is 4, but the training split has 3 speakers.*--cross_fitting 3"
    ):
        deal_out(["a", "b", "b", "c"], 4)
    with pytest.raises(ValueError, match="the training split has one speaker, of whom nobody can be held out"):
        deal_out(["a", "a"], 2)


def corpus_of(speakers: list[str], labels: np.ndarray) -> DatasetDict:
    columns = dict(zip(EMOTION_DIMENSIONS, labels.T, strict=True))
    names = [f"u{row}" for row in range(len(speakers))]
    train = Dataset.from_dict({"id": names, "speaker": speakers, "label_scale": [[1.0, 7.0]] * len(names), **columns})
    corpus = DatasetDict({"train": train, "validation": train.select([0]), "test": train.select([1])})
    corpus.report = None
    return corpus


def test_an_utterance_without_any_rating_is_answered_by_all_and_taught_to_none():
    labels = np.random.default_rng(0).uniform(1, 7, size=(12, 3))
    labels[[2, 7]] = np.nan
    labels[3, 1] = np.nan  # rated in the others
    folds = folds_of(corpus_of([f"s{row % 4}" for row in range(12)], labels), 2)
    answered = [fold["test"]["id"] for fold in folds]
    for fold in folds:
        assert not {f"s{int(name[1:]) % 4}" for name in fold["train"]["id"]} & {
            f"s{int(name[1:]) % 4}" for name in set(fold["test"]["id"]) - {"u2", "u7"}
        }
        assert sorted([*fold["train"]["id"], *fold["test"]["id"]]) == sorted(f"u{row}" for row in range(12))
        assert fold["train"]["id"][0] == f"u{fold.rows_of_whole['train'][0]}"
    expected = sorted([*(f"u{row}" for row in range(12)), "u2", "u7"])
    assert sorted(name for of_fold in answered for name in of_fold) == expected


def test_a_fold_without_which_nothing_can_be_learned_is_refused():
    labels = np.full((6, 3), 4.0)
    labels[:3, 1] = [1, 2, 3]  # valence differs in one speaker's utterances only
    labels[:, (0, 2)] = np.arange(12).reshape(6, 2) / 2 + 1
    with pytest.raises(ValueError, match=r"without fold 1 valence has fewer than 2 different ratings"):
        folds_of(corpus_of(["a", "a", "a", "b", "b", "c"], labels), 2)


def test_chosen_rows_are_looked_up_when_they_are_asked_for():
    class Column(list):
        asked: list[int] = []

        def __getitem__(self, index):
            self.asked.append(index)
            return super().__getitem__(index)

    column = Column("abcdef")
    chosen = ChosenRows(column, np.array([4, 1]))
    assert column.asked == [] and len(chosen) == 2
    assert list(chosen) == ["e", "b"]


def test_the_noise_of_a_label_is_that_of_a_mean():
    rows = corpus_of(
        ["a"] * 4, np.array([[3.0, 2.0, np.nan], [4.0, 5.0, np.nan], [2.0, 6.0, np.nan], [5.0, 5.0, np.nan]])
    )
    nothing = [[], [], [], []]
    ratings = [[2.0, 4.0], [3.0, 5.0, 4.0, float("nan")], [2.0], []]
    spread = [np.std([2, 4], ddof=1), np.std([3, 5, 4], ddof=1), np.nan, np.nan]
    train = rows["train"]
    with pytest.raises(ValueError, match="no ratings of single annotators.*annotators to true.*use quality soft"):
        label_variance(train)
    for name, given in zip(EMOTION_DIMENSIONS, (ratings, ratings, nothing), strict=True):
        train = train.add_column(f"{name}_ratings", given)
        train = train.add_column(f"{name}_std", spread if given is ratings else [np.nan] * 4)
    found = label_variance(train)
    pooled = (2 + 1) / 2  # the variances of the first two
    np.testing.assert_allclose(found[:, 0], np.array([2 / 2, 1 / 3, pooled, np.nan]) / 36)
    assert np.isnan(found[:, 2]).all()  # nobody rated it
    counted = train.remove_columns([f"{name}_ratings" for name in EMOTION_DIMENSIONS])
    with pytest.raises(ValueError, match="no ratings of single annotators"):
        label_variance(counted)  # a spread of nobody knows how many
    counted = counted.add_column("num_ratings", [2, 3, 1, 0])
    np.testing.assert_array_equal(label_variance(counted), found)
    train = train.remove_columns("valence_ratings").add_column("valence_ratings", [[4.0]] * 4)
    with pytest.raises(ValueError, match="no training utterance has more than one rating of valence"):
        label_variance(train)


def test_controls_take_away_what_they_say():
    generator = np.random.default_rng(0)
    weights = (generator.random(200) > 0.2).astype(float)
    taught = Conditioning(
        np.arange(200.0)[:, None], np.arange(200.0)[:, None].repeat(3, 1), weights, weights[:, None] * [1.0, 0.5, 0.25]
    )
    shuffled = taught.controlled("shuffled_teacher", seed=0)
    other = shuffled.embeddings[:, 0].astype(int)
    assert sorted(other) == list(range(200)) and (other != np.arange(200)).all()
    assert (shuffled.predictions[:, 1] == other).all() and (shuffled.weights == weights[other]).all()
    assert taught.controlled("shuffled_teacher", seed=0).embeddings.tolist() == shuffled.embeddings.tolist()
    assert taught.controlled("shuffled_teacher", seed=1).embeddings.tolist() != shuffled.embeddings.tolist()
    for seed in range(20):  # of two, each gets the other's
        pair = Conditioning(*(values[:2] for values in vars(taught).values()))
        assert pair.controlled("shuffled_teacher", seed).embeddings[:, 0].tolist() == [1, 0]
    drawn = taught.controlled("random_quality", seed=0)
    assert drawn.embeddings is taught.embeddings and drawn.predictions is taught.predictions
    assert (drawn.weights != weights).any() and sorted(drawn.weights) == sorted(weights)
    assert (drawn.dimension_weights == drawn.weights[:, None] * [1.0, 0.5, 0.25]).all()
    for control in ("no_distillation", None):
        assert taught.controlled(control, seed=0) is taught


def test_what_an_earlier_run_said_of_unlabelled_speech_is_not_taken_for_labelled(tmp_path):
    """In one folder: first with a tenth of the labels and the rest judged, now with all labels."""

    def write(name: str, values: dict[str, float]) -> None:
        columns = {"id": list(values), "embedding": [[value] for value in values.values()]}
        columns["weight"] = list(values.values())
        columns |= {
            f"{kind}_{name}": columns["weight"] for kind in ("predicted", "weight") for name in EMOTION_DIMENSIONS
        }
        (tmp_path / "conditioning").mkdir(exist_ok=True)
        pq.write_table(pa.table(columns), tmp_path / "conditioning" / name)

    write("train.parquet", {"a": 0.1, "b": 0.2, "c": 0.3})
    write("unlabelled.parquet", {"b": 0.8, "d": 0.9})
    taught = read_conditioning(tmp_path, ["c", "b"])
    for values in (taught.embeddings[:, 0], taught.predictions[:, 1], taught.weights, taught.dimension_weights[:, 2]):
        assert values == pytest.approx([0.3, 0.2])
    with pytest.raises(
        ValueError, match=r"unlabelled.parquet and train.parquet .* both have 1 utterances, such as 'b'"
    ):
        read_conditioning(tmp_path, ["a"], ["d"])
    with pytest.raises(ValueError, match="train.parquet lacks 1 utterances, such as 'd'"):
        read_conditioning(tmp_path, ["a", "d"])
    write("unlabelled.parquet", {"e": 0.8, "d": 0.9})
    assert read_conditioning(tmp_path, ["c", "a"], ["d"]).weights == pytest.approx([0.3, 0.1, 0.9])
    with pytest.raises(ValueError, match="unlabelled.parquet lacks 1 utterances, such as 'b'"):
        read_conditioning(tmp_path, ["a"], ["b"])


class Memoriser(CMKDTrainer):
    """Answers what it was trained on by heart, whatever the model, and everything else with 0.5."""

    def train(self, **arguments):
        columns = self.train_dataset.columns
        self.memory = {self._key(row): columns["labels"][row] for row in range(len(self.train_dataset))}
        self.state = TrainerState(
            log_history=[{"epoch": 1, "loss": 1.0, "learning_rate": 0.1}, {"epoch": 1, "eval_loss": 1.0, "eval_ccc": 0}]
        )

    def _key(self, row: int, dataset=None) -> bytes:
        return (dataset or self.train_dataset).columns["speech_features"][row].numpy().tobytes()

    def predict(self, dataset):
        unknown = np.full(3, 0.5)
        answers = [self.memory.get(self._key(row, dataset), unknown) for row in range(len(dataset))]
        return (np.nan_to_num(np.stack(answers), nan=0.25), np.zeros((len(dataset), 4), np.float32)), None, None


@pytest.mark.slow
def test_nobody_is_judged_by_a_teacher_that_has_heard_them(tmp_path, monkeypatch):
    """Against a teacher that knows every utterance of its training by heart, and nothing else."""
    monkeypatch.setattr(train_distill, "CMKDTrainer", Memoriser)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    recipe = write_recipe(tmp_path, stages=["teacher"])
    train_distill.main([str(recipe), "--output_dir", str(tmp_path / "own")])
    train_distill.main([str(recipe), "--output_dir", str(tmp_path / "other"), "--cross_fitting", "4"])
    labels = read_predictions(tmp_path / "own/predictions/teacher_train.parquet").labels
    own, other = (
        pq.read_table(tmp_path / name / "conditioning/train.parquet").to_pandas() for name in ("own", "other")
    )
    mean = np.nanmean(labels, axis=0)
    for index, name in enumerate(EMOTION_DIMENSIONS):
        np.testing.assert_allclose(own[f"residual_{name}"].dropna(), 0, atol=1e-6)  # it seems to know all
        np.testing.assert_allclose(other[f"residual_{name}"], mean[index] - labels[:, index], atol=1e-6)  # and nothing
        rated = ~np.isnan(labels[:, index])
        np.testing.assert_allclose(other[f"predicted_{name}"][rated], labels[rated, index], atol=1e-6)  # all is taught
    answered = read_cross_fitted(tmp_path / "other", 4, list(other["id"]))
    assert (answered.predictions == 0.5).all() and (answered.disagreement == 0).all()
    for fold in range(1, 5):
        found = read_predictions(tmp_path / f"other/cross_fitting/{fold}_of_4/predictions/teacher_test.parquet")
        assert len(set(found.speakers)) == 1
    with pytest.raises(ValueError, match="cross_fitting has no answer to 1 utterances, such as 'stranger'"):
        read_cross_fitted(tmp_path / "other", 4, ["stranger"])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder of recipes like those of recipes/beyond/, on tones, trained with two seeds by the driver."""
    folder = tmp_path_factory.mktemp("beyond")
    write_recipe(folder, num_epochs=1).rename(folder / "common.yaml")
    common = (folder / "common.yaml").read_text()
    (folder / "common.yaml").write_text(common.replace(f"output_dir: {folder}/run\n", f"cache_dir: {folder}/store\n"))
    student = "inherits: common.yaml\nteacher_run: ../teacher\n"
    for name, text in {
        "teacher": "inherits: common.yaml\nstages: [teacher]\ncross_fitting: 2\n",
        "cts": f"{student}stages: [cts]\n",
        "ts": f"{student}stages: [ts]\n",
        "best": f"{student}stages: [cts]\nquality: soft\ncross_fitting: 2\nprediction_weight: 1\n",
        "control": f"{student}stages: [ts]\nembedding_distance: contrastive\ncontrol: shuffled_teacher\n",
    }.items():
        (folder / f"{name}.yaml").write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        beyond.main(
            [*map(str, (folder, "--output_dir", folder / "runs")), "--seeds", "3", "5", "--output", f"{folder}/x.json"]
        )
        yield folder


@pytest.mark.slow
def test_the_driver_compares_all_with_what_they_have_to_beat(place):
    found = json.loads((place / "x.json").read_text())
    rows = {row["system"]: row for row in found["rows"]}
    assert list(rows) == [
        "teacher: audio and text",
        "T/S student",
        "cT/S student",
        "cT/S student, soft, cross-fitted, predictions by dimension",
        "T/S student, contrastive, control shuffled_teacher",
    ]
    best, base = rows["cT/S student, soft, cross-fitted, predictions by dimension"], rows["T/S student"]
    ours = [json.loads((place / f"runs/best/seed_{seed}/results.json").read_text()) for seed in (3, 5)]
    assert best["conditioning"] == [one["conditioning"] for one in ours] and base["conditioning"] is None
    assert best["train"]["each"] == [one["systems"]["cts"]["train"]["ccc"] for one in ours]
    assert {name: best["settings"][name] for name in ("quality", "cross_fitting", "prediction_weight")} == {
        "quality": "soft",
        "cross_fitting": 2,
        "prediction_weight": 1.0,
    }
    assert best["labelled"]["utterances"] == 25 and best["unlabelled"] is None and str(place) not in json.dumps(found)
    assert best["updates"] == 4 and best["seeds"] == [3, 5]  # 25 utterances in steps of 8, once
    assert set(best["against"]) == {"T/S student", "cT/S student"} and set(base["against"]) == {"cT/S student"}
    files = [
        [read_predictions(place / f"runs/{run}/seed_{seed}/predictions/{stage}_test.parquet") for seed in (3, 5)]
        for run, stage in (("best", "cts"), ("ts", "ts"))
    ]
    ours, theirs = (np.stack([answer.predictions for answer in answers]) for answers in files)
    test = paired_test(files[0][0].labels, ours, theirs, files[0][0].speakers)
    for name in EMOTION_DIMENSIONS:
        entry = best["against"]["T/S student"]
        assert {key: entry[key][name] for key in ("difference", "p")} == {
            key: test[name][key] for key in ("difference", "p")
        }
        each = [one[name] - other[name] for one, other in zip(best["each"], base["each"], strict=True)]
        assert entry["std"][name] == pytest.approx(np.std(each, ddof=1))
        assert entry["difference"][name] == pytest.approx(best["ccc"][name] - base["ccc"][name])
    shown = beyond.format_rows(found["rows"]).splitlines()
    assert shown[0] == "| system | updates | A | V | D | V less T/S student | V less cT/S student |"
    assert len(shown) == 7 and shown[3].startswith("| T/S student | 4 |")


@pytest.mark.slow
def test_all_can_be_asked_about_another_corpus_in_place_of_their_own(place, tmp_path, monkeypatch, capsys):
    """Here the same sounds with the opposite ratings, 8 - x of 1 to 7."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    opposite = tmp_path / "opposite"
    shutil.copytree(place / "corpus", opposite)
    table = pd.read_csv(opposite / "manifest.csv")
    table[list(EMOTION_DIMENSIONS)] = 8 - table[list(EMOTION_DIMENSIONS)]
    table.to_csv(opposite / "manifest.csv", index=False)
    corpus = f"{{name: manifest, data_dir: {opposite}, label_scale: [1, 7]}}"
    output = tmp_path / "y.json"
    runs = [str(place), "--output_dir", f"{place}/runs", "--seeds", "3", "5", "--table"]
    with pytest.raises(SystemExit):
        beyond.main([*runs, "--test", "manifest"])
    assert (
        "--test is 'manifest', but must be YAML such as '{name: manifest, data_dir: corpus}'" in capsys.readouterr().err
    )
    beyond.main([*runs, "--test", corpus, "--output", str(output)])
    found, before = (json.loads(path.read_text()) for path in (output, place / "x.json"))
    assert found["tested_on"]["utterances"]["test"] == found["corpus"]["utterances"]["test"]
    assert "tested_on" not in before and found["tested_on"]["version"] != found["corpus"]["version"]
    answers = {
        row["system"]: [
            read_predictions(place / f"runs/{row['run']}/seed_{seed}/predictions/{row['stage']}_test.parquet")
            for seed in (3, 5)
        ]
        for row in found["rows"]
    }
    base = np.stack([one.predictions for one in answers["T/S student"]])
    for row, own in zip(found["rows"], before["rows"], strict=True):
        labels, speakers = 1 - answers[row["system"]][0].labels, answers[row["system"]][0].speakers
        ours = np.stack([one.predictions for one in answers[row["system"]]])
        each = [evaluate_predictions(of_seed, labels)["ccc"] for of_seed in ours]
        assert row["each"] == [pytest.approx(one, abs=1e-5) for one in each] and row["each"] != own["each"]
        assert row["train"] == own["train"] and row["settings"] == own["settings"]
        if row["system"] != "T/S student":
            test = paired_test(labels, ours, base, speakers)["valence"]
            difference = row["against"]["T/S student"]["difference"]["valence"]
            assert difference == pytest.approx(test["difference"], abs=1e-5)


CCC = {"activation": 0.5, "valence": 0.25, "dominance": 0.125}


def write_results(folder, stages, unlabelled=0, starts_from=None, **settings):
    """A run of one seed as the driver reads it."""
    generator = np.random.default_rng(0)
    labels = generator.uniform(size=(30, 3))
    for stage in stages:
        path = folder / f"predictions/{stage}_test.parquet"
        answers = labels + generator.normal(size=(30, 3))
        write_predictions(path, list(map(str, range(30))), answers, labels, [f"s{n % 5}" for n in range(30)], [""] * 30)
    corpus = {"version": "1.0", "utterances": {"train": 70, "test": 30}, "hours": {"train": 0.5, "test": 0.1}}
    if unlabelled:
        corpus["utterances"]["unlabelled"], corpus["hours"]["unlabelled"] = unlabelled, 2.5
        corpus["unlabelled"] = {"version": "0123", "corpora": {}}
    recipe = Recipe(
        corpus={"name": "own", "data_dir": "/secret/place/own"}, output_dir="x", stages=list(stages), **settings
    )
    results = {
        "corpus": corpus,
        "seed": 4,
        "recipe": recipe.model_dump(mode="json", exclude={"output_dir"}),
        "cost": {"processes": 1},
        "systems": {stage: {"test": {"ccc": CCC, "interval": None}, "train": {"ccc": CCC}} for stage in stages},
        "starts_from": starts_from or {},
        "conditioning": {"quality": recipe.quality, "discarded_fraction": 0.125, "mean_weight": 0.875},
        "encoders": {"ears": {"name": recipe.ears, "revision": None, "commit": "sha256-12"}},
    }
    results |= {"unlabelled": {"utterances": unlabelled, "mean_weight": 0.75}} if unlabelled else {}
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def names(runs):
    return [(system.folder.name, system.name) for system in beyond.systems_of(runs)]


def test_a_system_is_named_by_what_it_does_otherwise_than_the_most(tmp_path):
    squared = {"embedding_distance": "mean_squared", "ears": "../listener"}
    runs = [
        write_results(tmp_path / "tuned", ["finetune"], **squared),
        write_results(tmp_path / "ts", ["ts"], **squared),
        write_results(tmp_path / "words", ["ts"], starts_from={"ts": "lexical"}, **squared),
        write_results(tmp_path / "soft", ["cts"], quality="soft", **squared),
        write_results(tmp_path / "norm", ["ts"], ears="../listener"),
    ]
    alike = [
        ("tuned", "audio only, fine-tuned"),
        ("ts", "T/S student"),
        ("words", "T/S student, after lexical"),
        ("norm", "T/S student, norm"),
        ("soft", "cT/S student, soft"),
    ]
    assert names(runs) == alike
    more = write_results(tmp_path / "more", ["ts"], unlabelled=90, **squared)
    assert dict(names([*runs, more])) == dict(alike) | {"more": "T/S student, and unlabelled speech"}
    deaf = write_results(tmp_path / "deaf", ["ts"], embedding_distance="mean_squared")
    heard = {name: f"{shown}, ears of listener" for name, shown in alike}
    assert dict(names([*runs, deaf])) == heard | {"deaf": "T/S student"}
    all_hear = [write_results(tmp_path / f"all_{stage}", [stage], unlabelled=90) for stage in ("ts", "cts", "teacher")]
    assert {name for _, name in names(all_hear)} == {"teacher: audio and text", "T/S student", "cT/S student"}


def test_two_systems_of_one_name_are_not_compared(tmp_path):
    runs = [write_results(tmp_path / name, ["ts"], num_epochs=epochs) for name, epochs in (("ts", 3), ("more", 4))]
    with pytest.raises(ValueError, match=r"ts and \S*more both have a system 'T/S student', .* out with --only"):
        beyond.systems_of(runs)


def test_no_training_is_asked_for_twice():
    """With all of the labels nothing is left that speech without labels could add."""
    folder = ROOT / "recipes/beyond/spoken_emobank"
    with pytest.raises(
        ValueError, match=r"ts\.yaml and \S*unlabelled\.yaml are the same training, since with .*--only"
    ):
        beyond.main([str(folder), "--seeds", "0", "1"])
    beyond.check_recipes(beyond.recipes_of(folder, None), ["--labelled_share", "0.3"])
    for name in ("spoken_demo", "crema_d"):
        beyond.check_recipes(beyond.recipes_of(folder.parent / name, None), [])


def test_rows_say_what_a_system_learned_from_and_how(tmp_path):
    settings = {"embedding_distance": "mean_squared", "num_epochs": 3, "labelled_share": 0.5}
    runs = [
        write_results(tmp_path / "tuned", ["finetune"], **settings),
        write_results(tmp_path / "soft", ["cts"], 90, quality="soft", ears="/secret/listener", **settings),
    ]
    tuned, soft = beyond.compare_systems(beyond.systems_of(runs))
    assert "/secret" not in json.dumps([tuned, soft])
    of_both = {"corpus": {"name": "own", "data_dir": "own"}, **settings}
    assert tuned["settings"] == of_both and soft["settings"] == of_both | {"quality": "soft", "ears": "listener"}
    assert tuned["labelled"] == soft["labelled"] == {"utterances": 70, "hours": 0.5}
    judged = {"utterances": 90, "mean_weight": 0.75}
    assert tuned["unlabelled"] is None and soft["unlabelled"] == {"utterances": 90, "hours": 2.5, "judged": [judged]}
    assert tuned["conditioning"] is None
    assert soft["conditioning"] == [{"quality": "soft", "discarded_fraction": 0.125, "mean_weight": 0.875}]
    assert tuned["ears"] is None and soft["ears"] == {"name": "listener", "revision": None, "commit": "sha256-12"}
    assert tuned["train"] == soft["train"] == {"ccc": CCC, "std": None, "each": [CCC]}
    assert tuned["ways"] == {} and soft["ways"] == {"quality": "soft", "ears": "ears of listener"}


@pytest.mark.slow
def test_each_seed_is_taught_by_its_own_teacher_judged_by_its_own_folds(place):
    for seed in (3, 5):
        teacher, best = place / f"runs/teacher/seed_{seed}", place / f"runs/best/seed_{seed}"
        table = pq.read_table(best / "conditioning/train.parquet").to_pandas()
        assert (table["id"] == [f"train_{row}" for row in range(SIZES["train"])]).all()
        labels = read_predictions(teacher / "predictions/teacher_train.parquet")
        judged = read_cross_fitted(teacher, 2, list(table["id"])).predictions
        weights = np.ones(len(table))
        for index, name in enumerate(EMOTION_DIMENSIONS):
            rated = ~np.isnan(labels.labels[:, index])
            line = np.polyfit(judged[rated, index], labels.labels[rated, index], 1)
            residuals = np.polyval(line, judged[:, index]) - labels.labels[:, index]
            np.testing.assert_allclose(table[f"residual_{name}"], residuals, atol=1e-6)
            np.testing.assert_allclose(table[f"predicted_{name}"], labels.predictions[:, index])
            weight = np.where(rated, 2.0 ** (-(residuals**2) / np.nanmean(residuals**2)), 1.0)  # residual_threshold 1
            np.testing.assert_allclose(table[f"weight_{name}"], weight, rtol=1e-4)
            weights *= weight
        np.testing.assert_allclose(table["weight"], weights, rtol=1e-4)
        said = json.loads((best / "results.json").read_text())["conditioning"]
        assert said["quality"] == "soft" and said["cross_fitting"]["folds"] == 2 and said["discarded_fraction"] == 0
        assert said["mean_weight"] == pytest.approx(weights.mean(), rel=1e-4)
        assert sorted(path.name for path in (teacher / "cross_fitting/1_of_2/teacher").iterdir()) == [
            "stage.json",
            "training_log.json",
        ]


@pytest.mark.slow
def test_a_control_is_said_to_be_one(place):
    run = place / "runs/control"
    said = "**Control: shuffled_teacher, each utterance is taught what the teacher knows about another one; not a sys"
    for folder in (run, run / "seed_3"):
        assert json.loads((folder / "results.json").read_text())["control"] == "shuffled_teacher"
        assert said in (folder / "report.md").read_text()
    assert "control" not in json.loads((place / "runs/ts/results.json").read_text())
    report = (place / "runs/best/seed_3/report.md").read_text()
    assert "the teacher that has not heard the speaker (cross-fitting, 2 folds) is more than 1 standard dev" in report
    assert "With quality soft nothing is left out" in report


@pytest.mark.slow
def test_folds_are_not_repeated_and_are_missed_where_there_are_none(place, capsys):
    stored = sorted((place / "store").rglob("*.safetensors"))
    arguments = ["--output_dir", str(place / "runs/teacher"), "--seeds", "3", "5"]
    train_distill.main([str(place / "teacher.yaml"), *arguments])
    assert capsys.readouterr().out.count("teacher: complete, not repeated") == 2 * 3
    best = [str(place / "best.yaml"), "--output_dir", str(place / "runs/best3"), "--seeds", "3", "5"]
    with pytest.raises(FileNotFoundError, match="fitting is 3, .* lacks 3 of those 3 folds: .*--cross_fitting 3"):
        train_distill.main([*best, "--cross_fitting", "3"])
    with pytest.raises(ValueError, match="cross_fitting is 9, but the training split has 4 speakers"):
        train_distill.main([str(place / "teacher.yaml"), *arguments, "--cross_fitting", "9"])
    with pytest.raises(ValueError, match="'label_noise', but the corpus has no ratings of single annotators"):
        train_distill.main([*best, "--quality", "label_noise"])
    assert sorted((place / "store").rglob("*.safetensors")) == stored  # folds and students share what frozen parts gave


STUDENTS_BEYOND = {
    "finetune": "",
    "ts": "",
    "cts_hard": "",
    "cts_soft": "soft",
    "cts_cross_fitted": "cross-fitted",
    "cts_soft_cross_fitted": "soft, cross-fitted",
    "per_dimension": "soft, cross-fitted, predictions by dimension",
    "cosine": "cosine",
    "contrastive": "contrastive",
    "control_shuffled_teacher": "control shuffled_teacher",
    "control_random_quality": "control random_quality",
    "control_no_distillation": "control no_distillation",
}
ON_CREMA_D = ("finetune", "ts", "cts_hard", "cts_soft", "cosine", "control_shuffled_teacher")


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("spoken_demo", STUDENTS_BEYOND | {"lexical": "after lexical"}),
        ("spoken_emobank", STUDENTS_BEYOND | {"unlabelled": "and unlabelled speech", "norm": "norm"}),
        (
            "crema_d",
            {name: STUDENTS_BEYOND[name] for name in ON_CREMA_D} | {"cts_label_noise": "label noise", "norm": "norm"},
        ),
    ],
)
def test_the_recipes_beyond_the_paper_share_one_teacher_and_differ_by_what_their_names_say(folder, expected):
    paths = sorted((ROOT / "recipes/beyond" / folder).glob("*.yaml"))
    found = {path.stem: load_recipe(path) for path in paths if path.stem != "common"}
    teacher = found.pop("teacher")
    is_cross_fitted = any(recipe.cross_fitting for recipe in found.values())
    assert teacher.stages == ["text", "teacher"] and teacher.cross_fitting == (5 if is_cross_fitted else None)
    variants = {}
    for name, recipe in found.items():
        has_rest = recipe.unlabelled_rest and folder == "spoken_emobank"  # which is run with labelled_share 0.1
        corpus = {"unlabelled": {}} if has_rest else {}
        starts = {"ts": "lexical"} if "lexical" in recipe.stages else {}
        results = {"recipe": recipe.model_dump(), "corpus": corpus, "starts_from": starts}
        ways = describe_variant(recipe.stages[-1], results, "mean_squared")
        assert ways.pop("ears", None) == ("ears of cmkd-open" if folder == "spoken_emobank" else None)
        variants[name] = ", ".join(ways.values())
    assert variants == expected
    for name, recipe in found.items():
        assert len(recipe.stages) == 1 or (name == "lexical" and recipe.stages == ["lexical", "ts"])
        assert recipe.output_dir == f"runs/{folder}/{name}" and recipe.cache_dir == f"runs/{folder}/cache"
        assert recipe.corpus == teacher.corpus and recipe.num_epochs == teacher.num_epochs
        if name != "finetune":
            assert recipe.teacher_folder == Path(teacher.output_dir)
            assert Path(recipe.locate(recipe.student_speech_encoder)).is_dir() or folder != "spoken_demo"
        assert recipe.ears is None or Path(recipe.locate(recipe.ears), "config.json").is_file()


def test_the_annotators_of_each_utterance_are_asked_about_its_own_label(tmp_path):
    """The teacher's answers may be in another order than the corpus."""
    generator = np.random.default_rng(0)
    ratings = generator.uniform(1, 7, size=(30, 3, 4))
    rows = corpus_of([f"s{row % 3}" for row in range(30)], ratings.mean(2))["train"]
    for index, name in enumerate(EMOTION_DIMENSIONS):
        rows = rows.add_column(f"{name}_ratings", ratings[:, index].tolist())
        rows = rows.add_column(f"{name}_std", ratings[:, index].std(1, ddof=1).tolist())
    order = generator.permutation(30)
    labels, ids = (ratings.mean(2)[order] - 1) / 6, [f"u{row}" for row in order]
    predictions = labels + generator.normal(size=(30, 3)) / 4
    write_predictions(tmp_path / "predictions/teacher_train.parquet", ids, predictions, labels, [""] * 30, [""] * 30)
    write_embeddings(tmp_path, ids, predictions)
    recipe = Recipe(corpus={"name": "own"}, output_dir=str(tmp_path), quality="label_noise")
    write_conditioning(recipe, rows)
    variance = ratings.var(2, ddof=1)[order] / 4 / 36
    found = pq.read_table(tmp_path / "conditioning/train.parquet").to_pandas()
    for index, name in enumerate(EMOTION_DIMENSIONS):
        residuals = found[f"residual_{name}"].to_numpy()
        square = np.mean(residuals**2)
        unit = max(square - variance[:, index].mean(), square / 10) + variance[:, index]
        np.testing.assert_allclose(found[f"weight_{name}"], 2.0 ** (-(residuals**2) / 4 / unit), rtol=1e-5)
    assert describe_conditioning(tmp_path, 9.0)["quality"] == "label_noise"
    assert describe_conditioning(tmp_path, 9.0)["residual_threshold"] == 2.0  # as it was made


def test_what_an_earlier_version_stored_is_described_as_the_papers(tmp_path):
    (tmp_path / "conditioning").mkdir()
    columns = {f"residual_{name}": [0.1, -0.1, 0.3] for name in EMOTION_DIMENSIONS}
    table = pa.table({"id": ["a", "b", "c"], **columns, "weight": [1.0, 1.0, 0.0]})
    pq.write_table(table, tmp_path / "conditioning/train.parquet")
    found = describe_conditioning(tmp_path, 1.5)
    assert found.pop("residual_std") == pytest.approx(dict.fromkeys(EMOTION_DIMENSIONS, np.sqrt(0.11 / 3)))
    assert found == {
        "quality": "hard",
        "cross_fitting": None,
        "residual_threshold": 1.5,
        "discarded_fraction": pytest.approx(1 / 3),
        "mean_weight": pytest.approx(2 / 3),
    }
