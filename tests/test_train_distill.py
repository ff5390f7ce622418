"""The main job on a small corpus of tones: every stage, its files, and what they say."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from formulas import ccc
from launching import launch
from tones import SIZES, STAGES
from transformers import (
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForAudioClassification,
    AutoTokenizer,
    HubertModel,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperModel,
)
from warm import module

import train_distill
from cmkd.hub.staging import stage_run
from configuration_cmkd import EMOTION_DIMENSIONS

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_figures")]


@pytest.fixture(scope="module")
def run(recipe) -> Path:
    train_distill.main([str(recipe)])
    return recipe.parent / "run"


def test_results_are_those_of_the_predictions(run):
    results = json.loads((run / "results.json").read_text())
    assert list(results["systems"]) == list(STAGES) and results["seed"] == 0
    assert results["corpus"]["utterances"] == SIZES
    assert results["versions"]["torch"] == torch.__version__
    for system, splits in results["systems"].items():
        for split, scores in splits.items():
            table = pq.read_table(run / "predictions" / f"{system}_{split}.parquet").to_pandas()
            assert scores["n"] == len(table) == SIZES[split]
            assert list(table["id"]) == [f"{split}_{index}" for index in range(SIZES[split])]
            assert np.isnan(table["dominance"]).sum() == 1
            assert list(table["speaker"]) == [f"{split}_{index % 4}" for index in range(SIZES[split])]
            for low, high in scores["interval"].values():
                assert -1 <= low < high <= 1
            rated = table.dropna()
            assert scores["ccc"]["valence"] == pytest.approx(
                ccc(table["predicted_valence"], table["valence"]), abs=1e-6
            )
            assert scores["ccc"]["dominance"] == pytest.approx(
                ccc(rated["predicted_dominance"], rated["dominance"]), abs=1e-6
            )


def test_labels_are_on_the_unit_interval(run, recipe):
    manifest = (recipe.parent / "corpus/manifest.csv").read_text().splitlines()[1:]
    expected = [(float(line.split(",")[4]) - 1) / 6 for line in manifest if line.startswith("test_")]
    table = pq.read_table(run / "predictions/teacher_test.parquet")
    assert table["valence"].to_pylist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("stage", [*STAGES, "student"])
def test_every_checkpoint_answers_from_the_files_what_the_run_recorded(run, recipe, stage):
    """An independent way to the same numbers: stock classes on the wav files, one utterance at a time."""
    folder = run / stage
    system = json.loads((run / "results.json").read_text())["student"]["stage"] if stage == "student" else stage
    model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    assert model.config.label_scale == [1.0, 7.0]
    lines = [line.split(",") for line in (recipe.parent / "corpus/manifest.csv").read_text().splitlines()[1:]]
    transcripts = {line[0]: line[2] for line in lines}
    found = []
    recorded = pq.read_table(run / "predictions" / f"{system}_test.parquet").to_pandas()
    for identifier in recorded["id"]:
        inputs = {}
        if system != "text":
            extractor = AutoFeatureExtractor.from_pretrained(folder)
            wave, rate = soundfile.read(recipe.parent / "corpus" / f"{identifier}.wav", dtype="float32")
            inputs |= extractor(wave, sampling_rate=rate, return_tensors="pt")
        if system in ("text", "teacher"):
            tokens = AutoTokenizer.from_pretrained(folder)(transcripts[identifier], return_tensors="pt")
            inputs |= {"input_ids": tokens["input_ids"], "text_attention_mask": tokens["attention_mask"]}
        with torch.no_grad():
            found.append(model(**inputs).logits[0].tolist())
    expected = recorded[[f"predicted_{name}" for name in EMOTION_DIMENSIONS]].to_numpy()
    np.testing.assert_allclose(np.array(found), expected, atol=1e-5)
    assert not (folder / "training_args.bin").exists() and not list(folder.glob("checkpoint-*"))


def test_conditioning_is_equation_8_on_the_training_split(run):
    table = pq.read_table(run / "conditioning/train.parquet").to_pandas()
    teacher = pq.read_table(run / "predictions/teacher_train.parquet").to_pandas()
    assert list(table["id"]) == list(teacher["id"])
    poor = np.zeros(len(table), dtype=bool)
    spreads = {}
    for name in EMOTION_DIMENSIONS:
        rated = ~np.isnan(teacher[name])
        slope, offset = np.polyfit(teacher[f"predicted_{name}"][rated], teacher[name][rated], 1)
        residuals = slope * teacher[f"predicted_{name}"] + offset - teacher[name]
        np.testing.assert_allclose(table[f"residual_{name}"], residuals, atol=1e-5)
        spreads[name] = np.nanstd(residuals)
        poor |= np.abs(residuals) > 1.0 * spreads[name]
    assert list(table["weight"]) == [0.0 if flag else 1.0 for flag in poor]
    recorded = json.loads((run / "results.json").read_text())["conditioning"]
    assert recorded["discarded_fraction"] == pytest.approx(poor.mean()) and 0 < poor.mean() < 1
    assert recorded["residual_std"] == pytest.approx(spreads, abs=1e-5)
    model = AutoModel.from_pretrained(run / "teacher", trust_remote_code=True)
    embedding = np.stack(table["embedding"])
    logits = embedding @ model.prediction_head.weight.detach().numpy().T + model.prediction_head.bias.detach().numpy()
    logits = logits * model.config.label_std + model.config.label_mean
    np.testing.assert_allclose(logits[:, 1], teacher["predicted_valence"], atol=1e-5)


def test_the_kept_student_is_the_better_on_validation(run):
    results = json.loads((run / "results.json").read_text())
    mean = {stage: np.mean(list(results["systems"][stage]["validation"]["ccc"].values())) for stage in ("ts", "cts")}
    assert results["student"]["stage"] == max(mean, key=mean.get)
    kept = results["student"]["stage"]
    assert (run / "student/model.safetensors").read_bytes() == (run / kept / "model.safetensors").read_bytes()
    model = AutoModelForAudioClassification.from_pretrained(run / "student", trust_remote_code=True)
    assert list(model.config.id2label.values()) == list(EMOTION_DIMENSIONS)


def test_the_best_epoch_by_validation_ccc_is_kept(run):
    results = json.loads((run / "results.json").read_text())
    for stage in STAGES:
        log = json.loads((run / stage / "training_log.json").read_text())
        assert [entry["epoch"] for entry in log] == [1, 2, 3]
        best = max(entry["eval_ccc"] for entry in log)
        validation = results["systems"][stage]["validation"]["ccc"].values()
        assert best == pytest.approx(np.mean(list(validation)), abs=1e-6)
        assert all(entry["eval_loss"] == pytest.approx(1 - entry["eval_ccc"]) for entry in log)
        assert all(np.isfinite(entry["train_loss"]) for entry in log)


def test_the_stages_differ_in_what_they_train(run, recipe):
    def weights(stage):
        model = AutoModel.from_pretrained(run / stage, trust_remote_code=True)
        return {name: value for name, value in model.state_dict().items() if name.startswith("speech_encoder")}

    frozen, tuned, distilled = weights("audio"), weights("finetune"), weights("ts")
    changed = {name for name, value in tuned.items() if not torch.equal(value, frozen[name])}
    assert changed and all(".encoder.layers.1." in name for name in changed)
    assert any(not torch.equal(distilled[name], tuned[name]) for name in changed)
    assert any(not torch.equal(distilled[name], weights("cts")[name]) for name in changed)


def test_complete_stages_are_not_repeated(run, recipe, capsys):
    before = {stage: (run / stage / "model.safetensors").stat().st_mtime_ns for stage in STAGES}
    train_distill.main([str(recipe)])
    output = capsys.readouterr().out
    assert all(f"{stage}: complete, not repeated" in output for stage in STAGES)
    assert before == {stage: (run / stage / "model.safetensors").stat().st_mtime_ns for stage in STAGES}


def test_other_settings_in_the_same_folder_are_refused(run, recipe):
    with pytest.raises(ValueError, match=r"(?s)Stage 'audio'.*num_epochs: 3 then, 4 now.*--overwrite"):
        train_distill.main([str(recipe), "--num_epochs", "4"])


def test_the_same_seed_gives_the_same_numbers_in_another_process(python, run, recipe, tmp_path):
    command = [
        python.executable,
        train_distill.__file__,
        str(recipe),
        "--output_dir",
        str(tmp_path),
        "--stages",
        "teacher",
        "cts",
        "--dataloader_workers",
        "1",  # started as this version of Python starts processes
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    assert result.returncode == 0, result.stderr
    first, second = (json.loads((folder / "results.json").read_text())["systems"] for folder in (run, tmp_path))
    assert list(second) == ["teacher", "cts"]
    for system in second:
        for split in SIZES:
            for name, value in second[system][split]["ccc"].items():
                assert value == pytest.approx(first[system][split]["ccc"][name], abs=1e-4)


def test_an_interrupted_stage_goes_on_where_it_stopped(run, recipe, tmp_path, monkeypatch, capsys):
    """Interrupted in the third of three epochs; the result is that of a run without interruption."""
    arguments = [str(recipe), "--output_dir", str(tmp_path), "--stages", "audio"]
    step = train_distill.CMKDTrainer.training_step

    def interrupted(self, *args, **kwargs):
        if self.state.global_step == 9:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(train_distill.CMKDTrainer, "training_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_distill.main(arguments)
    monkeypatch.setattr(train_distill.CMKDTrainer, "training_step", step)
    with pytest.raises(ValueError, match="learning_rate: 0.0005 then, 0.1 now"):
        train_distill.main([*arguments, "--learning_rate", "0.1"])
    capsys.readouterr()
    train_distill.main(arguments)
    output = capsys.readouterr().out
    assert "epoch   3/3" in output and "epoch   2/3" not in output
    found, expected = (
        json.loads((f / "results.json").read_text())["systems"]["audio"]["test"] for f in (tmp_path, run)
    )
    for name in EMOTION_DIMENSIONS:
        assert found["ccc"][name] == pytest.approx(expected["ccc"][name], abs=1e-5)


def test_settings_of_the_students_leave_the_teacher_alone(run, recipe, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    arguments = [str(recipe), "--output_dir", str(tmp_path / "run"), "--stages", "teacher", "ts"]
    with pytest.raises(ValueError, match="(?s)Stage 'ts'.*distillation_weight: 30.0 then, 3.0 now"):
        train_distill.main([*arguments, "--distillation_weight", "3"])
    train_distill.main([*arguments[:-2], "cts", "--overwrite", "--residual_threshold", "0.2"])
    teachers = [folder / "teacher/model.safetensors" for folder in (run, tmp_path / "run")]
    assert teachers[0].stat().st_mtime_ns == teachers[1].stat().st_mtime_ns
    weights = pq.read_table(tmp_path / "run/conditioning/train.parquet")["weight"].to_numpy()
    assert weights.sum() < pq.read_table(run / "conditioning/train.parquet")["weight"].to_numpy().sum()


def test_students_may_learn_from_the_teacher_of_another_run(run, recipe, tmp_path):
    teacher = tmp_path / "tones_teacher"
    shutil.copytree(run, teacher, ignore=shutil.ignore_patterns("ts", "cts", "student", "conditioning"))
    arguments = ["--output_dir", str(tmp_path / "cts"), "--teacher_run", "../tones_teacher", "--stages", "cts"]
    train_distill.main([str(recipe), *arguments])
    found, expected = (json.loads((folder / "results.json").read_text()) for folder in (tmp_path / "cts", run))
    assert list(found["systems"]) == ["cts"] and "teacher_run" not in found["recipe"]
    assert found["conditioning"] == expected["conditioning"]
    for split, scores in found["systems"]["cts"].items():
        assert scores["ccc"] == pytest.approx(expected["systems"]["cts"][split]["ccc"], abs=1e-5)
    assert "Not run." in (tmp_path / "cts/report.md").read_text()

    assert found["teacher"] == expected["teacher"]
    embeddings = teacher / "teacher/train_embeddings.parquet"
    table = pq.read_table(embeddings)
    pq.write_table(table, embeddings, compression="gzip")  # a teacher that was trained again
    with pytest.raises(ValueError, match=r"(?s)Stage 'cts'.*teacher_embeddings: .* then"):
        train_distill.main([str(recipe), *arguments])


def test_a_teacher_that_is_not_there_or_another_is_refused_before_anything_trains(run, recipe, tmp_path):
    arguments = [str(recipe), "--output_dir", str(tmp_path / "a"), "--stages", "finetune", "ts", "--teacher_run"]
    with pytest.raises(
        FileNotFoundError,
        match=r"teacher of .*/recipe' .*: cmkd train .*/recipe.yaml --output_dir .*/recipe$",
    ):
        train_distill.main([*arguments, "../recipe"])
    with pytest.raises(FileNotFoundError, match=r"by: cmkd crossval .*/recipe.yaml --output_dir .*/recipe$"):
        train_distill.main([*arguments, "../../recipe/fold_2"])
    with pytest.raises(FileNotFoundError, match="run the stage teacher with that output_dir"):
        train_distill.main([*arguments, "../elsewhere"])
    with pytest.raises(ValueError, match="(?s)is not the one .*text_encoder: './text' then, 'bert' now"):
        train_distill.main([*arguments, str(run), "--text_encoder", "bert"])
    assert not (tmp_path / "a").exists()


def test_students_do_not_outlive_a_teacher_whose_folder_was_removed(run, recipe, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/teacher")
    train_distill.main([str(recipe), "--output_dir", str(tmp_path / "run"), "--stages", "teacher", "ts"])
    assert "ts: complete" not in capsys.readouterr().out
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert list(results["systems"]) == ["audio", "text", "teacher", "finetune", "ts"]  # cts is not there any more
    expected = json.loads((run / "results.json").read_text())
    assert results["systems"]["ts"]["test"]["ccc"] == pytest.approx(expected["systems"]["ts"]["test"]["ccc"], abs=1e-5)


def test_students_whose_teacher_was_removed_keep_their_results(run, recipe, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/teacher")
    train_distill.main([str(recipe), "--output_dir", str(tmp_path / "run"), "--stages", "audio"])
    found, expected = (json.loads((folder / "results.json").read_text()) for folder in (tmp_path / "run", run))
    assert found["systems"].keys() == expected["systems"].keys() - {"teacher"}
    assert found["conditioning"] == expected["conditioning"] and "teacher" not in found


def test_a_stage_does_not_go_on_with_steps_of_another_size(run, recipe):
    with pytest.raises(ValueError, match="utterances_a_step: 8 then, 16 now"):
        train_distill.main([str(recipe), "--gradient_accumulation_steps", "2"])
    train_distill.main([str(recipe), "--batch_size", "4", "--gradient_accumulation_steps", "2"])  # the same steps


def test_a_run_does_not_take_the_place_of_a_cross_validation(recipe, tmp_path):
    (tmp_path / "results.json").write_text('{"folds": {}}')
    with pytest.raises(ValueError, match="holds a cross-validation, and a single run would replace it"):
        train_distill.main([str(recipe), "--output_dir", str(tmp_path)])


def test_a_half_written_checkpoint_does_not_block_a_stage(recipe, tmp_path):
    half = tmp_path / "audio" / "checkpoint-3"
    half.mkdir(parents=True)
    (half / "model.safetensors").write_bytes(b"")
    arguments = ["--output_dir", str(tmp_path), "--stages", "audio", "--num_epochs", "1"]
    train_distill.main([str(recipe), *arguments])
    assert json.loads((tmp_path / "results.json").read_text())["systems"].keys() == {"audio"}


def test_a_complete_run_is_pushed_on_request(run, recipe, monkeypatch):
    pushed = []
    monkeypatch.setattr(train_distill, "check_push", lambda repo_id: pushed.append(repo_id))
    monkeypatch.setattr(train_distill, "push_run", lambda *arguments, **options: pushed.append((arguments, options)))
    train_distill.main([str(recipe), "--hub_model_id", "user/tones", "--hub_private", "false"])
    assert pushed == ["user/tones", ((run, "user/tones"), {"private": False})]
    assert "hub_model_id" not in json.loads((run / "results.json").read_text())["recipe"]


@pytest.mark.parametrize("is_teacher", [False, True])
def test_what_a_run_leaves_is_all_that_a_card_needs(run, recipe, tmp_path, is_teacher):
    staged = stage_run(run, "user/tones", tmp_path, is_teacher=is_teacher)
    results = json.loads((run / "results.json").read_text())
    scores = results["systems"]["teacher" if is_teacher else results["student"]["stage"]]["test"]
    low, high = scores["interval"]["valence"]
    assert f"{scores['ccc']['valence']:.3f} [{low:.3f}, {high:.3f}]" in staged.card
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["speech_config"]["_name_or_path"] == "tones/speech"
    assert not any(str(recipe.parent).encode() in path.read_bytes() for path in tmp_path.iterdir())


def test_a_push_without_token_is_refused_before_training(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("cmkd.hub.push.get_token", lambda: None)
    with pytest.raises(OSError, match=r"no token for the Hub: run `hf auth login`"):
        train_distill.main([str(recipe), "--output_dir", str(tmp_path), "--hub_model_id", "user/tones"])
    assert list(tmp_path.iterdir()) == []


def test_students_do_not_outlive_their_teacher(run, recipe, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    arguments = ["--output_dir", str(tmp_path / "run"), "--stages", "teacher", "--overwrite"]
    train_distill.main([str(recipe), *arguments])
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert list(results["systems"]) == ["audio", "text", "teacher", "finetune"] and "student" not in results


def test_a_run_is_not_continued_with_other_data(run, recipe, tmp_path):
    shutil.copytree(recipe.parent / "corpus", tmp_path / "corpus")
    text = (tmp_path / "corpus/manifest.csv").read_text()
    (tmp_path / "corpus/manifest.csv").write_text(text.replace("low short", "high short"))
    with pytest.raises(ValueError, match="(?s)made with other settings.*corpus_version"):
        train_distill.main([str(recipe), "--corpus.data_dir", str(tmp_path / "corpus")])


def test_stages_that_are_not_repeated_must_fit_too(run, recipe):
    with pytest.raises(ValueError, match="(?s)Stage 'audio'.*seed: 0 then, 7 now"):
        train_distill.main([str(recipe), "--stages", "cts", "--seed", "7"])


@pytest.mark.parametrize("label", ["", "4.0"])
def test_a_dimension_without_two_ratings_is_named(recipe, tmp_path, label):
    shutil.copytree(recipe.parent / "corpus", tmp_path / "corpus")
    manifest = tmp_path / "corpus/manifest.csv"
    lines = [line.split(",") for line in manifest.read_text().splitlines()]
    changed = [[*fields[:3], label, *fields[4:]] if fields[-1] == "train" else fields for fields in lines]
    manifest.write_text("\n".join(map(",".join, changed)))
    with pytest.raises(ValueError, match="activation has [01] different ratings in the split train"):
        train_distill.main([str(recipe), "--corpus.data_dir", str(tmp_path / "corpus"), "--output_dir", str(tmp_path)])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["--num_trainable_layers", "3"], ValueError, "num_trainable_layers=3: must be between 0 .* and 2"),
        (["--text_encoder", "no/such-encoder"], OSError, "no/such-encoder"),
    ],
)
def test_encoders_are_checked_before_anything_trains(recipe, tmp_path, arguments, error, message):
    with pytest.raises(error, match=message):
        train_distill.main([str(recipe), "--output_dir", str(tmp_path), *arguments])
    assert list(tmp_path.iterdir()) == []


def test_whisper_and_a_weighted_layer_sum_train_too(recipe, tmp_path):
    """`input_features` with nothing frozen, and stored states of several layers."""
    torch.manual_seed(0)
    small = {"encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_layers": 1}
    small["d_model"] = 16
    tokens = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 0)
    config = WhisperConfig(**small, **tokens, decoder_attention_heads=2, decoder_ffn_dim=16, vocab_size=20)
    WhisperModel(config).save_pretrained(tmp_path / "whisper")
    WhisperFeatureExtractor().save_pretrained(tmp_path / "whisper")
    for layers, weighted in ((-1, False), (1, True)):
        folder = tmp_path / f"run{layers}"
        settings = {"student_speech_encoder": tmp_path / "whisper", "num_trainable_layers": layers}
        settings |= {"use_weighted_layer_sum": str(weighted).lower(), "num_epochs": 1, "stages": "finetune"}
        arguments = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
        train_distill.main([str(recipe), "--output_dir", str(folder), *arguments])
        model = AutoModel.from_pretrained(folder / "finetune", trust_remote_code=True).eval()
        recorded = pq.read_table(folder / "predictions/finetune_test.parquet").to_pandas()
        extractor = AutoFeatureExtractor.from_pretrained(folder / "finetune")
        wave, rate = soundfile.read(recipe.parent / "corpus/test_3.wav", dtype="float32")
        with torch.no_grad():
            logits = model(**extractor(wave, sampling_rate=rate, return_tensors="pt")).logits[0]
        assert logits.tolist()[1] == pytest.approx(recorded["predicted_valence"][3], abs=1e-5)
        assert model.config.use_weighted_layer_sum == weighted


def test_the_recipe_may_name_the_student(run, recipe, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    for stage in ("ts", "cts"):
        train_distill.main([str(recipe), "--output_dir", str(tmp_path / "run"), "--kept_student", stage])
        kept, named = tmp_path / "run/student/model.safetensors", tmp_path / "run" / stage / "model.safetensors"
        assert kept.read_bytes() == named.read_bytes()


def test_two_processes_learn_what_one_does(python, recipe, tmp_path):
    """The same loss and predictions to rounding, whatever the launch; every utterance is predicted once, in order."""
    beyond = ["--cross_fitting", "2", "--quality", "soft", "--prediction_weight", "1"]
    arguments = [str(recipe), "--stages", "teacher", "cts", *beyond, "--output_dir"]
    train_distill.main([*arguments, str(tmp_path / "one"), "--batch_size", "8"])
    share = ["--batch_size", "2", "--gradient_accumulation_steps", "2"]
    share = [*arguments, str(tmp_path / "two"), *share]
    done = launch(python, "several_gpus.yaml", 2, Path(train_distill.__file__), *share)
    assert done.returncode == 0, done.stderr
    costs = [json.loads((tmp_path / run / "results.json").read_text())["cost"] for run in ("one", "two")]
    assert [cost["processes"] for cost in costs] == [1, 2]
    for stage in ("teacher", "cts"):
        one, two = (json.loads((tmp_path / run / stage / "training_log.json").read_text()) for run in ("one", "two"))
        assert len(one) == len(two) == 3
        for of_one, of_two in zip(one, two, strict=True):
            assert of_two == pytest.approx(of_one, abs=1e-5)
        for split, size in SIZES.items():
            name = f"predictions/{stage}_{split}.parquet"
            one, two = (pq.read_table(tmp_path / run / name).to_pandas() for run in ("one", "two"))
            assert list(two["id"]) == [f"{split}_{index}" for index in range(size)]
            for dimension in EMOTION_DIMENSIONS:
                np.testing.assert_allclose(two[f"predicted_{dimension}"], one[f"predicted_{dimension}"], atol=1e-5)
    folds = [f"cross_fitting/{fold}_of_2/predictions/teacher_test" for fold in (1, 2)]
    for name in (*folds, "conditioning/train"):
        one, two = (pq.read_table(tmp_path / run / f"{name}.parquet").to_pandas() for run in ("one", "two"))
        assert list(one["id"]) == list(two["id"])
        for column in one.columns.difference(["id", "speaker", "gender", "embedding"]):
            np.testing.assert_allclose(two[column], one[column], atol=1e-4)


@pytest.mark.parametrize("stage", ["teacher", "finetune"])
def test_without_a_cache_it_learns_the_same(run, recipe, tmp_path, stage):
    arguments = ["--output_dir", str(tmp_path), "--stages", stage, "--cache_limit_gb", "0"]
    train_distill.main([str(recipe), *arguments])
    assert not list((tmp_path / "cache").glob("speech-*"))
    cached, computed = (json.loads((folder / stage / "training_log.json").read_text()) for folder in (run, tmp_path))
    for of_cached, of_computed in zip(cached, computed, strict=True):
        assert of_computed == pytest.approx(of_cached, abs=1e-5)


def test_labels_that_go_with_the_length_are_named(recipe, tmp_path, capsys):
    """In the tones the length is the activation."""
    arguments = [str(recipe), "--output_dir", str(tmp_path), "--stages", "audio", "--num_epochs", "1"]
    train_distill.main(arguments)
    grouped = capsys.readouterr().out
    assert "WARNING: activation correlates with the length of the utterance (1.00)" in grouped
    assert "WARNING: valence" not in grouped
    train_distill.main([*arguments, "--overwrite", "--group_by_length", "false"])
    assert "WARNING" not in capsys.readouterr().out


def test_a_student_without_its_teacher_is_refused(recipe, tmp_path):
    with pytest.raises(FileNotFoundError, match="add the stage teacher"):
        train_distill.main([str(recipe), "--output_dir", str(tmp_path), "--stages", "ts"])


def test_all_of_the_encoder_can_train(recipe, tmp_path):
    arguments = [
        "--output_dir",
        str(tmp_path),
        "--stages",
        "finetune",
        "--num_trainable_layers",
        "-1",
        "--num_epochs",
        "1",
    ]
    train_distill.main([str(recipe), *arguments])
    tuned = AutoModel.from_pretrained(tmp_path / "finetune", trust_remote_code=True).state_dict()
    stock = HubertModel.from_pretrained(recipe.parent / "tones/speech").state_dict()
    name = "feature_extractor.conv_layers.0.conv.weight"
    assert not torch.equal(tuned[f"speech_encoder.encoder.{name}"], stock[name])


def test_errors_reach_the_user_without_a_traceback(python, recipe):
    result = python.run(module("train_distill"), str(recipe), "--learning_rat", "1")
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "Unrecognized options: --learning_rat, 1" in result.stderr and "--learning_rate FLOAT" in result.stderr
    result = python.run(module("train_distill"), str(recipe), "--learning_rate", "-1")
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert result.stderr.startswith("train_distill: ") and "learning_rate = -1.0: " in result.stderr
