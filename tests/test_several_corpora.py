"""A run of two corpora and of speech that nobody has rated, from the recipe to the report and the card."""

import csv
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
import yaml
from formulas import ccc
from mixed_sources import SECOND, UNRATED, write_mixed_recipe
from safetensors.torch import load_file
from tones import SIZES, write_recipe
from transformers import AutoFeatureExtractor, AutoModel, AutoTokenizer

import train_distill
from cmkd.hub.staging import stage_run
from configuration_cmkd import EMOTION_DIMENSIONS

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_figures")]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    stages = ["teacher", "ts", "cts"]
    return write_mixed_recipe(tmp_path_factory.mktemp("mixed"), num_epochs=2, stages=stages, corpus_sampling="equal")


@pytest.fixture(scope="module")
def run(recipe):
    train_distill.main([str(recipe)])
    return recipe.parent / "run"


def test_scores_are_those_of_each_corpus_and_of_all(run):
    results = json.loads((run / "results.json").read_text())
    assert results["corpus"]["utterances"] == {name: SIZES[name] + SECOND[name] for name in SIZES} | {
        "unlabelled": UNRATED
    }
    for system in ("teacher", "ts", "cts"):
        for split in SIZES:
            scores = results["systems"][system][split]
            table = pq.read_table(run / "predictions" / f"{system}_{split}.parquet").to_pandas()
            assert list(table["corpus"]) == ["first"] * SIZES[split] + ["second"] * SECOND[split]
            assert all(row.startswith(f"{name}/") for row, name in zip(table["id"], table["corpus"], strict=True))
            assert scores["ccc"]["valence"] == pytest.approx(
                ccc(table["predicted_valence"], table["valence"]), abs=1e-6
            )
            for name, of_one in table.groupby("corpus"):
                found = scores["by_corpus"][name]
                assert found["n"] == len(of_one)
                expected = ccc(of_one["predicted_activation"], of_one["activation"])
                assert found["ccc"]["activation"] == pytest.approx(expected, abs=1e-6)
            assert scores["by_corpus"]["second"]["ccc"]["dominance"] is None
            assert scores["by_corpus"]["first"]["ccc"]["dominance"] == pytest.approx(scores["ccc"]["dominance"])
    for entry in results["comparisons"]:
        assert list(entry["by_corpus"]) == ["first", "second"]
        assert entry["by_corpus"]["second"]["difference"]["dominance"] is None


def test_the_best_epoch_and_the_student_are_chosen_within_each_corpus(run):
    results = json.loads((run / "results.json").read_text())

    def chosen_by(system):
        by_corpus = results["systems"][system]["validation"]["by_corpus"]
        of_dimensions = [
            np.mean([scores["ccc"][name] for scores in by_corpus.values() if scores["ccc"][name] is not None])
            for name in EMOTION_DIMENSIONS
        ]
        return np.mean(of_dimensions)

    for system in ("teacher", "ts", "cts"):
        log = json.loads((run / system / "training_log.json").read_text())
        assert max(entry["eval_ccc"] for entry in log) == pytest.approx(chosen_by(system), abs=1e-6)
    assert results["student"]["stage"] == max(("ts", "cts"), key=chosen_by)


def test_the_teacher_has_judged_what_nobody_rated(run, recipe):
    """As the stock classes do, from the files and the words of the manifest."""
    table = pq.read_table(run / "conditioning/unlabelled.parquet").to_pandas()
    assert list(table["id"]) == [f"unrated/all_{index}" for index in range(UNRATED)]
    assert set(table["weight"]) == set(table["asr_confidence"]) == {1.0}
    words = [line.split(",")[2] for line in (recipe.parent / "unrated/manifest.csv").read_text().splitlines()[1:]]
    folder = run / "teacher"
    model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    extractor, tokenizer = AutoFeatureExtractor.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.config.label_scale == [0.0, 1.0]
    for index in (0, 7, UNRATED - 1):
        wave, rate = soundfile.read(recipe.parent / "unrated" / f"all_{index}.wav", dtype="float32")
        tokens = tokenizer(words[index], return_tensors="pt")
        inputs = extractor(wave, sampling_rate=rate, return_tensors="pt")
        with torch.no_grad():
            output = model(**inputs, input_ids=tokens["input_ids"], text_attention_mask=tokens["attention_mask"])
        np.testing.assert_allclose(table["embedding"][index], output.embeddings[0], atol=1e-5)
        found = [table[f"predicted_{name}"][index] for name in EMOTION_DIMENSIONS]
        np.testing.assert_allclose(found, output.logits[0], atol=1e-5)


def test_the_report_shows_each_corpus(run):
    report = (run / "report.md").read_text()
    assert "# first + second several-" in report and "## Each corpus" in report
    assert "train 17, without labels" in report and "| T/S student, second | 6 |" in report
    assert "0 is the minimum of the corpus's own scale" in report


def test_a_card_needs_all_licences_and_takes_the_strictest(run, recipe, tmp_path, capsys):
    with pytest.raises(ValueError, match="licence of second and unrated is not known, .* with the setting licence"):
        stage_run(run, "user/mixed", tmp_path)
    settings = yaml.safe_load(recipe.read_text())
    settings["corpus"][1] |= {"licence": "cc-by-sa-4.0", "language": "de"}
    settings["corpus"][0] |= {"language": "de"}
    settings["unlabelled"] |= {"licence": "cc0-1.0", "language": "de", "about": "Read by two synthesisers."}
    stated = recipe.with_name("stated.yaml")
    stated.write_text(yaml.safe_dump(settings))
    train_distill.main([str(stated)])  # nothing is trained again for that
    assert capsys.readouterr().out.count("complete, not repeated") == 3
    (tmp_path / "staged").mkdir()
    stage_run(run, "user/mixed", tmp_path / "staged")
    card = (tmp_path / "staged/README.md").read_text()
    assert "license: cc-by-sa-4.0" in card and "language: de" in card
    for expected in (
        "first (manifest)", "25 training utterances, cc-by-4.0", "12 training utterances, cc-by-sa-4.0",
        "speech whose labels were not used, judged by the teacher, cc0-1.0. Read by two synthesisers.", "only: de",
        "and, without labels, on unlabelled", "speakers of different corpora were not compared",
        "rating scale of each training corpus, and 1 its maximum (first: 1 to 7, second: 0 to 5). They are not clipped",
    ):  # fmt: skip
        assert expected in " ".join(card.split()), expected
    with (recipe.parent / "second/manifest.csv").open() as file:
        learned = [row for row in csv.DictReader(file) if row["split"] == "train"]
    ratings = [np.array([float(row[name]) for row in learned]) / 5 for name in ("activation", "valence")]  # of 0 to 5
    spread = " | ".join(f"{of_one.mean():.3f} ± {of_one.std():.3f}" for of_one in ratings)
    assert f"| second | {spread} | not rated |" in card
    published = json.loads((tmp_path / "staged/results.json").read_text())
    assert all("data_dir" not in corpus for corpus in published["recipe"]["corpus"])
    assert published["corpus"]["corpora"]["first"]["notes"] == []


def test_other_unlabelled_speech_is_another_student(run, recipe):
    settings = yaml.safe_load(recipe.read_text())
    del settings["unlabelled"]
    without = recipe.with_name("without.yaml")
    without.write_text(yaml.safe_dump(settings))
    with pytest.raises(
        ValueError, match=r"Stage 'ts' .* was made with other settings:\n(.*\n)*  unlabelled_version: '"
    ):
        train_distill.main([str(without)])


def test_a_share_of_the_labels(recipe, tmp_path):
    """From 37 labelled utterances to 10, whose rest is judged by a teacher of these 10."""
    arguments = ["--labelled_share", "0.25", "--output_dir", str(tmp_path / "share"), "--num_epochs", "1"]
    train_distill.main([str(recipe), *arguments, "--stages", "teacher", "ts", "--same_sentences", "allow"])
    results = json.loads((tmp_path / "share/results.json").read_text())
    assert results["corpus"]["utterances"] == {
        "train": 7 + 3, "validation": 15, "test": 14, "unlabelled": 27 + UNRATED
    }  # fmt: skip
    assert results["unlabelled"]["utterances"] == 27 + UNRATED
    assert results["systems"]["teacher"]["train"]["n"] == 10
    table = pq.read_table(tmp_path / "share/conditioning/unlabelled.parquet").to_pandas()
    judged = list(table["id"])
    silent = [name.startswith("first/train_") and int(name.split("_")[1]) % 5 == 0 for name in judged]
    assert list(table["weight"] == 0) == silent and any(silent)  # those without words
    assert results["unlabelled"]["mean_weight"] == pytest.approx(1 - np.mean(silent))
    assert not set(judged) & set(pq.read_table(tmp_path / "share/conditioning/train.parquet")["id"].to_pylist())


def test_a_run_with_all_labels_in_the_folder_of_one_with_few_is_as_in_a_new_folder(tmp_path):
    """The first has judged what the second has labels of."""
    recipe = write_recipe(tmp_path, num_epochs=1, stages=["teacher", "ts"], same_sentences="allow")
    train_distill.main([str(recipe), "--labelled_share", "0.5"])
    used, new = tmp_path / "run", tmp_path / "new"
    assert len(pq.read_table(used / "conditioning/unlabelled.parquet")) == 12
    train_distill.main([str(recipe), "--overwrite"])
    train_distill.main([str(recipe), "--output_dir", str(new)])
    assert not (used / "conditioning/unlabelled.parquet").exists()
    found, expected = (load_file(folder / "ts/model.safetensors") for folder in (used, new))
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


def test_speech_without_labels_counts_as_far_as_the_teachers_of_the_folds_agree(tmp_path):
    """By the formula of docs/unlabelled.md, from what each said; their weights are gone, and not asked for again."""
    recipe = write_mixed_recipe(tmp_path, num_epochs=1, cross_fitting=2, stages=["teacher", "cts"])
    train_distill.main([str(recipe)])
    run = recipe.parent / "run"
    judged = pq.read_table(run / "conditioning/unlabelled.parquet").to_pandas()
    answers = [
        pq.read_table(run / f"cross_fitting/{fold}_of_2/predictions/teacher_test.parquet").to_pandas().set_index("id")
        for fold in (1, 2)
    ]
    folds = [of_fold.loc[judged["id"]] for of_fold in answers]
    train = pq.read_table(run / "conditioning/train.parquet").to_pandas()
    exponent = np.zeros(UNRATED)
    for name in EMOTION_DIMENSIONS:
        spread = np.std([fold[f"predicted_{name}"] for fold in folds], axis=0)
        error = np.sqrt(np.nanmean(train[f"residual_{name}"] ** 2))
        exponent += (spread / error) ** 2 / len(EMOTION_DIMENSIONS)
    for of_fold in answers:  # beside this speech each has answered the speakers that it has not heard
        assert set(judged["id"]) < set(of_fold.index) and of_fold.loc[
            judged["id"], list(EMOTION_DIMENSIONS)
        ].isna().all(axis=None)
    assert judged["weight"].to_numpy() == pytest.approx(judged["asr_confidence"] * np.exp(-exponent / 2), rel=1e-4)
    assert (judged["weight"] < 1).all()
    assert not list((run / "cross_fitting").rglob("*.safetensors"))
    train_distill.main([str(recipe), "--stages", "cts", "--overwrite"])
    assert pq.read_table(run / "conditioning/unlabelled.parquet").to_pandas()["weight"].equals(judged["weight"])
    with pytest.raises(ValueError, match=r"Stage 'teacher' in '.*/1_of_2' was made with other .*\n.*corpus_version: '"):
        train_distill.main([str(recipe), "--unlabelled_hours", "0.0005"])  # which these teachers have not answered
