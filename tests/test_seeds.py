"""A run of several seeds on a corpus of tones: each training, what they come to, what goes on and what is refused."""

import json
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from launching import output_of, start_processes
from tones import write_recipe
from warm import module

import train_distill
from cmkd.hub.staging import stage_run
from cmkd.reporting.seeds_report import format_seeds, write_seeds_report
from cmkd.reporting.tables import gather_tables
from cmkd.runs.folder import check_kind
from cmkd.runs.seeds import gather_seeds
from cmkd.scoring.confidence import ccc_interval, paired_test
from cmkd.scoring.evaluation import read_predictions
from configuration_cmkd import EMOTION_DIMENSIONS

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_figures")]

SEEDS = (3, 5)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    stages = ["teacher", "finetune", "ts"]
    return write_recipe(tmp_path_factory.mktemp("seeds"), seeds=list(SEEDS), stages=stages, num_epochs=1)


@pytest.fixture(scope="module")
def run(recipe) -> Path:
    train_distill.main([str(recipe)])
    return recipe.parent / "run"


@pytest.fixture(scope="module")
def results(run) -> dict:
    return json.loads((run / "results.json").read_text())


def answers(run, stage, split="test"):
    each = [read_predictions(run / f"seed_{seed}/predictions/{stage}_{split}.parquet") for seed in SEEDS]
    return each[0].labels, np.stack([answer.predictions for answer in each]), each[0].speakers


def test_each_training_is_that_of_its_seed_alone(run, recipe, tmp_path):
    train_distill.main([str(recipe), "--seed", "5", "--stages", "teacher", "ts", "--output_dir", str(tmp_path)])
    alone = json.loads((tmp_path / "results.json").read_text())
    of_run = json.loads((run / "seed_5/results.json").read_text())
    assert alone["seed"] == of_run["seed"] == 5 and (run / "seed_5/report.md").is_file()
    for stage in ("teacher", "ts"):
        for name in EMOTION_DIMENSIONS:
            expected = alone["systems"][stage]["test"]["ccc"][name]
            assert of_run["systems"][stage]["test"]["ccc"][name] == pytest.approx(expected, abs=1e-5)
    other = json.loads((run / "seed_3/results.json").read_text())
    assert other["systems"]["ts"]["test"]["ccc"] != of_run["systems"]["ts"]["test"]["ccc"]
    assert of_run["corpus"]["version"] == other["corpus"]["version"]


def test_the_summary_is_mean_spread_and_a_test_over_speakers(run, results):
    each = [json.loads((run / f"seed_{seed}/results.json").read_text()) for seed in SEEDS]
    assert results["seeds"] == list(SEEDS) and "seed" not in results and results["recipe"]["seeds"] == list(SEEDS)
    for stage in ("teacher", "finetune", "ts"):
        labels, predictions, speakers = answers(run, stage)
        found = results["systems"][stage]["test"]
        assert found["interval"] == ccc_interval(labels, predictions, speakers)
        for name in EMOTION_DIMENSIONS:
            values = [one["systems"][stage]["test"]["ccc"][name] for one in each]
            assert found["ccc"][name] == pytest.approx(np.mean(values))
            assert found["std"][name] == pytest.approx(np.std(values, ddof=1))
            assert [one[name] for one in found["each"]] == values
    (entry,) = [entry for entry in results["comparisons"] if entry["split"] == "test"]
    assert (entry["system"], entry["baseline"]) == ("ts", "finetune")
    labels, ours, speakers = answers(run, "ts")
    for name, test in paired_test(labels, ours, answers(run, "finetune")[1], speakers).items():
        assert {field: entry[field][name] for field in test} == test
        differences = [
            one["systems"]["ts"]["test"]["ccc"][name] - one["systems"]["finetune"]["test"]["ccc"][name] for one in each
        ]
        assert entry["difference"][name] == pytest.approx(np.mean(differences), abs=1e-9)
        assert entry["std"][name] == pytest.approx(np.std(differences, ddof=1))
    assert results["cost"]["seconds"]["ts"] == pytest.approx(sum(one["cost"]["seconds"]["ts"] for one in each))


def test_what_the_words_taught_each_training_is_listed(run, tmp_path):
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("cache"))
    for seed in SEEDS:
        path = tmp_path / f"run/seed_{seed}/results.json"
        results = json.loads(path.read_text())
        chance = {"median_rank": 100.5}
        found = {"recall_at_1": seed / 100, "recall_at_5": seed / 10, "median_rank": 2 * seed, "chance": chance}
        lines = {name: {"ccc": {"test": {"valence": seed / 20}}} for name in ("ridge", "ridge_from_words")}
        results |= {"lexical": {"retrieval": {"test": found}, **lines}, "starts_from": {"ts": "lexical"}}
        results["cost"]["seconds"]["lexical"] = 10.0 * seed
        path.write_text(json.dumps(results))
    gathered = gather_seeds(tmp_path / "run", SEEDS)
    assert [of_seed["retrieval"]["test"]["median_rank"] for of_seed in gathered["lexical"]] == [6, 10]
    assert gathered["starts_from"] == {"ts": "lexical"} and gathered["cost"]["seconds"]["lexical"] == 80.0
    report = write_seeds_report(tmp_path / "run").read_text()
    assert report.count("Not as in the paper: T/S student: after lexical.") == 1
    assert "| 3 | 3.0% | 30.0% | 6 | 100.5 | 0.150 | 0.150 |" in report
    assert "| 5 | 5.0% | 50.0% | 10 | 100.5 | 0.250 | 0.250 |" in report


def test_report_terminal_and_table_show_mean_and_spread(run, results):
    report, shown = (run / "report.md").read_text(), format_seeds(results)
    scores = results["systems"]["ts"]["test"]
    low, high = scores["interval"]["valence"]
    spread = f"{scores['ccc']['valence']:.3f} ± {scores['std']['valence']:.3f}"
    assert f"| {spread} [{low:.3f}, {high:.3f}] |" in report and spread in shown
    assert report.splitlines()[0].endswith(", seeds 3, 5")
    entry = results["comparisons"][-1]
    p, smallest = entry["p"]["valence"], entry["smallest_p"]["valence"]
    assert f"p = {p:.3g} (at least {smallest:.3g})" in report and "[seed 3](seed_3/report.md)" in report
    content = (run / "figures/seeds.png").read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n" and struct.unpack(">II", content[16:24])[0] == 1056
    tables = gather_tables([run])
    assert tables[-1].heading.endswith("CCC on test")
    assert [row.seeds["numbers"] for row in tables[-1].rows if row.stage == "ts"] == [[3, 5]]


def test_the_student_to_take_is_the_best_on_validation_and_goes_to_the_hub(run, results, tmp_path):
    kept = {seed: json.loads((run / f"seed_{seed}/results.json").read_text()) for seed in SEEDS}
    means = {
        seed: np.mean(list(one["systems"][one["student"]["stage"]]["validation"]["ccc"].values()))
        for seed, one in kept.items()
    }
    best = max(means, key=means.get)
    assert results["student"]["seed"] == best and f"`seed_{best}/student/`" in (run / "report.md").read_text()
    staged = stage_run(run, "user/tones", tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == (
        run / f"seed_{best}/student/model.safetensors"
    ).read_bytes()
    assert f"This is the training with seed {best}." in staged.card and "done with the seeds 3, 5" in staged.card
    pushed = json.loads((tmp_path / "results.json").read_text())
    assert (pushed["seed"], pushed["seeds"]["each"]) == (best, [3, 5])


def test_what_is_complete_is_not_repeated_and_another_seed_is_added(run, recipe, capsys, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    before = (copy / "seed_3/ts/model.safetensors").stat().st_mtime_ns
    train_distill.main([str(recipe), "--output_dir", str(copy), "--seeds", "3", "5", "8"])
    assert capsys.readouterr().out.count("complete, not repeated") == 6
    assert (copy / "seed_3/ts/model.safetensors").stat().st_mtime_ns == before
    assert json.loads((copy / "results.json").read_text())["seeds"] == [3, 5, 8]
    with pytest.raises(ValueError, match=r"(?s)in .*seed_3' was made with other settings.*learning_rate"):
        train_distill.main([str(recipe), "--output_dir", str(copy), "--learning_rate", "0.1"])


def test_an_interrupted_seed_goes_on(run, recipe, tmp_path, monkeypatch, results):
    arguments = [str(recipe), "--output_dir", str(tmp_path)]
    train, trained = train_distill.train_stage, []

    def interrupted(stage, recipe, *others):
        trained.append((recipe.seed, stage))
        if trained[-1] == (5, "finetune"):
            raise KeyboardInterrupt
        train(stage, recipe, *others)

    monkeypatch.setattr(train_distill, "train_stage", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_distill.main(arguments)
    assert not (tmp_path / "results.json").exists()
    monkeypatch.setattr(
        train_distill,
        "train_stage",
        lambda stage, recipe, *others: trained.append((recipe.seed, stage)) or train(stage, recipe, *others),
    )
    train_distill.main(arguments)
    assert trained[4:] == [(5, "finetune"), (5, "finetune"), (5, "ts")]
    found = json.loads((tmp_path / "results.json").read_text())
    for name in EMOTION_DIMENSIONS:
        expected = results["systems"]["ts"]["test"]["ccc"][name]
        assert found["systems"]["ts"]["test"]["ccc"][name] == pytest.approx(expected, abs=1e-5)


def test_students_learn_from_the_teacher_of_the_same_seed(run, recipe, tmp_path):
    arguments = [str(recipe), "--output_dir", str(tmp_path / "cts"), "--stages", "cts", "--teacher_run"]
    train_distill.main([*arguments, str(run)])
    for seed in SEEDS:
        found, expected = (
            json.loads((folder / f"seed_{seed}/results.json").read_text()) for folder in (tmp_path / "cts", run)
        )
        assert found["teacher"] == expected["teacher"]
    with pytest.raises(FileNotFoundError, match=r"several seeds; name one of them, seed_3, seed_5"):
        train_distill.main([*arguments, str(run), "--seed", "3", "--output_dir", str(tmp_path / "one")])
    with pytest.raises(FileNotFoundError, match=r"has a teacher of a single seed, but with seeds each student learns"):
        train_distill.main([*arguments, str(run / "seed_3"), "--output_dir", str(tmp_path / "two")])
    with pytest.raises(FileNotFoundError, match=r"teacher of .*seed_8' .*no complete teacher"):
        train_distill.main([*arguments, str(run), "--seeds", "3", "8", "--output_dir", str(tmp_path / "three")])


def test_a_folder_holds_one_kind_of_run(run, recipe, tmp_path):
    with pytest.raises(ValueError, match=r"run' holds a run of several seeds, and a single run would replace it"):
        train_distill.main([str(recipe), "--seed", "3", "--output_dir", str(run)])
    with pytest.raises(ValueError, match=r"holds a single run, and a run of several seeds would replace it"):
        train_distill.main([str(recipe), "--output_dir", str(run / "seed_3")])
    with pytest.raises(ValueError, match=r"holds a run of several seeds, and a cross-validation would replace it"):
        check_kind(run, "folds")
    for path, kind in (
        ("seed_1/ts", "a run of several seeds"),
        ("fold_1/ts", "a cross-validation"),
        ("ts", "a single run"),
    ):
        folder = tmp_path / kind.replace(" ", "_")
        (folder / path).mkdir(parents=True)
        (folder / path / "stage.json").write_text("{}")  # begun, and not yet complete
        with pytest.raises(ValueError, match=f"holds {kind}, and"):
            check_kind(folder, "folds" if kind != "a cross-validation" else "single")
    check_kind(tmp_path / "new", "seeds")


def test_trainings_that_do_not_belong_together_are_refused(run, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"seed_9.results.json: the training in this folder is not complete"):
        gather_seeds(run, [3, 9])
    shutil.copytree(run, tmp_path / "run")
    path = tmp_path / "run/seed_5/results.json"
    changed = json.loads(path.read_text())
    changed["corpus"]["version"] = "another"
    path.write_text(json.dumps(changed))
    with pytest.raises(ValueError, match="seed 5 on another: repeat one of them"):
        gather_seeds(tmp_path / "run", [3, 5])


def test_two_processes_train_all_seeds_in_one_launch(python, recipe, tmp_path):
    arguments = [str(recipe), "--output_dir", str(tmp_path), "--stages", "finetune"]
    said = output_of(start_processes(python, 2, module("train_distill"), *arguments))
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["cost"]["processes"] == 2 and found["seeds"] == [3, 5]
    assert "CCC on test, 2 seeds" in said and said.count("Report:") == 3
