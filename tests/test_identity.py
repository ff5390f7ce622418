"""What identifies a run: encoders at a commit, the precision of the launch; and old runs, which record neither."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub.errors import HfHubHTTPError
from local_hub import LocalHub
from safetensors.torch import load_file, save_file
from tiny_run import make_run
from warm import module

import train_distill
from cmkd.hub.staging import stage_run
from cmkd.identity import folder_digest, precision, read_encoder
from cmkd.runs import preflight
from cmkd.runs.folder import begin_stage, check_teacher_run, complete_stage, stage_is_complete, write_json
from cmkd.runs.recipe import Recipe, load_recipe

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_figures")]

CPU = torch.device("cpu")


def tree(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def scaled(folder: Path, factor: float) -> dict[str, bytes]:
    """The same encoder, as if it had been trained further."""
    weights = {name: factor * value for name, value in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return tree(folder)


@pytest.fixture(scope="module")
def hub_run(recipe, python, tmp_path_factory):
    """A teacher of encoders on a Hub, of which the speech encoder has a second commit by now."""
    place = tmp_path_factory.mktemp("hub")
    encoders = place / "encoders"
    for name in ("tones/speech", "text"):
        shutil.copytree(recipe.parent / name, encoders / name)
    with LocalHub() as hub:
        hub.make("models", "user/speech", tree(encoders / "tones/speech"), private=False)
        hub.make("models", "user/text", tree(encoders / "text"), private=False)
        repository = hub.repositories["models", "user/speech"]
        first = repository.branches["main"]
        repository.tags["v1"] = first

        def run(name: str, *arguments: str) -> subprocess.CompletedProcess:
            command = [str(recipe), "--output_dir", str(place / name)]
            command += ["--teacher_speech_encoder", "user/speech", "--text_encoder", "user/text", "--num_epochs", "1"]
            command += ["--stages", "teacher", *arguments]
            return python.run(module("train_distill"), *command, environment=hub.environment(place / "cache"))

        done = run("teacher")
        assert done.returncode == 0, done.stderr
        second = repository.commit("main", scaled(encoders / "tones/speech", 0.5), "trained further")
        yield place, run, hub, first, second


def test_results_have_the_commit_of_every_encoder(hub_run):
    place, _, hub, first, _ = hub_run
    found = json.loads((place / "teacher/results.json").read_text())
    text = hub.repositories["models", "user/text"].branches["main"]
    assert found["encoders"] == {
        "teacher_speech_encoder": {"name": "user/speech", "revision": None, "commit": first},
        "text_encoder": {"name": "user/text", "revision": None, "commit": text},
    }
    assert found["precision"] == {"teacher": "fp32"}


def test_a_run_does_not_go_on_with_another_commit(hub_run):
    _, run, _, first, second = hub_run
    done = run("teacher")
    assert done.returncode == 1
    assert f"commit of teacher_speech_encoder: {first!r} then, {second!r} now" in done.stderr
    assert "--teacher_speech_encoder_revision COMMIT" in done.stderr
    done = run("teacher", "--teacher_speech_encoder_revision", first)
    assert done.returncode == 0, done.stderr
    assert "teacher: complete, not repeated" in done.stdout


def test_a_revision_is_what_is_loaded(hub_run):
    place, run, hub, first, second = hub_run
    done = run("by_tag", "--teacher_speech_encoder_revision", "v1")
    assert done.returncode == 0, done.stderr
    name = "encoder.layers.0.attention.k_proj.weight"
    found = load_file(place / "by_tag/teacher/model.safetensors")[f"speech_encoder.encoder.{name}"]
    for commit in (first, second):
        (place / "there.safetensors").write_bytes(hub.files("models", "user/speech", commit)["model.safetensors"])
        assert torch.equal(found, load_file(place / "there.safetensors")[name]) == (commit == first)
    encoders = json.loads((place / "by_tag/results.json").read_text())["encoders"]
    assert encoders["teacher_speech_encoder"] == {"name": "user/speech", "revision": "v1", "commit": first}
    done = run("nowhere", "--text_encoder_revision", "v9")
    assert done.returncode == 1 and not (place / "nowhere").exists()
    assert "text_encoder='user/text' at text_encoder_revision='v9' cannot be loaded" in done.stderr


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (HfHubHTTPError("the server is down", response=SimpleNamespace(headers={}, request=None)), OSError),
        (json.JSONDecodeError("the server is down", "", 0), ValueError),
    ],
)
def test_errors_whose_classes_take_more_than_a_message_name_the_encoder_too(recipe, monkeypatch, error, kind):
    def read(source, revision, read_config):
        raise error

    monkeypatch.setattr(preflight, "read_encoder", read)
    with pytest.raises(kind, match="^student_speech_encoder=.* cannot be loaded: the server is down") as found:
        preflight.check_encoders(load_recipe(recipe, ["--stages", "audio"]))
    assert found.value.__cause__ is error


def test_a_folder_is_known_by_its_weights_and_settings(recipe, tmp_path):
    folder = tmp_path / "speech"
    shutil.copytree(recipe.parent / "tones/speech", folder)
    config, digest = read_encoder(str(folder))
    assert config.model_type == "hubert" and digest == folder_digest(folder)
    (folder / "README.md").write_text("new words")
    (folder / "model.safetensors").touch()
    assert folder_digest(folder) == digest
    scaled(folder, 0.5)
    assert folder_digest(folder) != digest
    with pytest.raises(ValueError, match="revision is 'v1', but .* is a folder, which has no revisions"):
        read_encoder(str(folder), "v1")


def test_a_run_does_not_go_on_with_other_weights_in_a_folder(recipe, tmp_path):
    shutil.copytree(recipe.parent / "tones", tmp_path / "tones")
    arguments = [str(recipe), "--output_dir", str(tmp_path / "run"), "--stages", "audio", "--num_epochs", "1"]
    arguments += ["--models_dir", str(tmp_path)]
    train_distill.main(arguments)
    before = folder_digest(tmp_path / "tones/speech")
    found = json.loads((tmp_path / "run/results.json").read_text())["encoders"]
    assert found == {"student_speech_encoder": {"name": "tones/speech", "revision": None, "commit": before}}
    scaled(tmp_path / "tones/speech", 0.5)
    with pytest.raises(ValueError, match=f"(?s)Stage 'audio'.*commit of student_speech_encoder: '{before}' then"):
        train_distill.main(arguments)
    with pytest.raises(ValueError, match="at student_speech_encoder_revision='v1' cannot be loaded: revision is 'v1'"):
        train_distill.main([*arguments, "--student_speech_encoder_revision", "v1"])


def settings(tmp_path: Path, **changes) -> Recipe:
    return Recipe(**{"corpus": {"name": "toys"}, "output_dir": str(tmp_path)} | changes)


COST = {"seconds": 2.0, "peak_memory_gb": 1.0, "peak_device_memory_gb": None, "processes": 1, "device": "cpu"}


def make_stage(tmp_path: Path, complete: bool, stage: str = "audio", commit: str = "a" * 40, **changes) -> Path:
    given = settings(tmp_path, **changes)
    commits = {"student_speech_encoder": commit, "teacher_speech_encoder": commit, "text_encoder": commit}
    begin_stage(tmp_path, stage, given, "1.0", commits)
    if complete:
        complete_stage(tmp_path, stage, COST)
    return tmp_path / stage / "stage.json"


@pytest.mark.parametrize("complete", [False, True])
def test_what_has_no_effect_on_a_stage_does_not_count_although_an_earlier_version_wrote_it_down(tmp_path, complete):
    """The stage `lexical` hears each utterance once per epoch, however students mix them."""
    path = make_stage(tmp_path, complete, "lexical")
    state = json.loads(path.read_text())
    mixed = {"corpus_sampling": "proportional", "ccc_within": "corpus", "unlabelled_ratio": 1.0}
    assert not state["settings"].keys() & mixed.keys()
    state["settings"] |= mixed
    path.write_text(json.dumps(state))
    other = {"corpus_sampling": "equal", "ccc_within": "all", "unlabelled": {"name": "toys"}, "unlabelled_ratio": 3}
    for changes in ({}, {"corpus_sampling": "equal", "ccc_within": "all"}):
        assert stage_is_complete(tmp_path, "lexical", settings(tmp_path, **changes), "1.0") == complete
    with pytest.raises(ValueError) as caught:
        stage_is_complete(tmp_path, "lexical", settings(tmp_path, **other), "1.0")
    assert "unlabelled: None then" in str(caught.value) and not any(name in str(caught.value) for name in mixed)
    make_stage(tmp_path, complete, "ts", **other)
    with pytest.raises(ValueError, match="(?s)corpus_sampling: 'equal' then.*unlabelled_ratio: 3.0 then, 4.0 now"):
        changed = other | {"corpus_sampling": "proportional", "unlabelled_ratio": 4}
        stage_is_complete(tmp_path, "ts", settings(tmp_path, **changed), "1.0")


@pytest.mark.parametrize("complete", [False, True])
def test_a_stage_in_fp32_does_not_go_on_in_bf16(tmp_path, monkeypatch, complete):
    make_stage(tmp_path, complete)
    assert stage_is_complete(tmp_path, "audio", settings(tmp_path), "1.0") == complete
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")  # what `accelerate launch --mixed_precision bf16` sets
    with pytest.raises(ValueError, match="(?s)made with other settings.*precision: 'fp32' then, 'bf16' now"):
        stage_is_complete(tmp_path, "audio", settings(tmp_path), "1.0")


def test_a_launch_in_bf16_computes_in_bf16_and_says_so(python, recipe, tmp_path):
    arguments = ["--output_dir", str(tmp_path), "--stages", "audio", "--num_epochs", "1"]
    command = [
        python.executable,
        "-m",
        "accelerate.commands.launch",
        "--mixed_precision",
        "bf16",
        "--num_processes",
        "1",
    ]
    command += ["--num_machines", "1", "--dynamo_backend", "no", train_distill.__file__, str(recipe), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=900)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "results.json").read_text())["precision"] == {"audio": "bf16"}
    with pytest.raises(ValueError, match="precision: 'bf16' then, 'fp32' now"):
        train_distill.main([str(recipe), *arguments])


def test_rounding_of_matrix_products_is_seen_whatever_sets_it(monkeypatch):
    assert precision(CPU) == "fp32"
    product = torch.Tensor.__matmul__

    def in_tf32(one, other):  # 10 bits of 23, as on a GPU that may
        kept = one.view(torch.int32).bitwise_and(~0x1FFF).view(torch.float32)
        return product(kept, other)

    monkeypatch.setattr(torch.Tensor, "__matmul__", in_tf32)
    assert precision(CPU) == "fp32 with TF32 in matrix products"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    assert precision(CPU) == "fp16 with TF32 in matrix products"


NEW = ("precision", "cache_dtype", "plateau_patience")


@pytest.mark.parametrize("complete", [False, True])
def test_a_new_field_does_not_make_an_old_run_foreign(tmp_path, complete):
    """A stage.json that lacks settings, as if they had not been there when it was made."""
    marker = make_stage(tmp_path, complete)
    state = json.loads(marker.read_text())
    for name in NEW:
        del state["settings"][name]
    del state["encoders"], state["sessions"]
    write_json(marker, state)
    commits = {"student_speech_encoder": "b" * 40}
    assert stage_is_complete(tmp_path, "audio", settings(tmp_path), "1.0", commits) == complete
    with pytest.raises(ValueError, match="plateau_patience: 2 then, 5 now"):
        stage_is_complete(tmp_path, "audio", settings(tmp_path, plateau_patience=5), "1.0", commits)
    with pytest.raises(ValueError, match="student_speech_encoder_revision: None then, 'v2' now"):
        changed = settings(tmp_path, student_speech_encoder_revision="v2")
        stage_is_complete(tmp_path, "audio", changed, "1.0", commits)
    begin_stage(tmp_path, "audio", settings(tmp_path), "1.0", commits)
    complete_stage(tmp_path, "audio", COST)
    assert stage_is_complete(tmp_path, "audio", settings(tmp_path), "1.0", commits)
    assert json.loads(marker.read_text())["seconds"] == 2.0


def test_an_old_stage_that_may_have_begun_in_fp32_does_not_go_on_in_bf16(tmp_path, monkeypatch):
    for complete in (False, True):
        marker = make_stage(tmp_path, complete)
        state = json.loads(marker.read_text())
        del state["settings"]["precision"]
        write_json(marker, state)
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
        if complete:  # nothing is computed any more
            assert stage_is_complete(tmp_path, "audio", settings(tmp_path), "1.0")
        else:
            with pytest.raises(ValueError, match="precision: 'fp32' then, 'bf16' now"):
                stage_is_complete(tmp_path, "audio", settings(tmp_path), "1.0")
        monkeypatch.undo()


def test_a_setting_that_was_recorded_still_counts(tmp_path):
    make_stage(tmp_path, True, stage="cts", teacher_run=None)
    with pytest.raises(ValueError, match="residual_threshold: 2.0 then, 3.0 now"):
        stage_is_complete(tmp_path, "cts", settings(tmp_path, residual_threshold=3.0), "1.0")


def test_students_want_the_revision_of_their_teachers_encoders(tmp_path):
    run = tmp_path / "teacher_run"
    make_stage(run, True, stage="teacher", commit="c" * 40, text_encoder_revision="v1")

    def check(**revisions) -> None:
        students = {"teacher_run": "../teacher_run", "stages": ["ts"]}
        check_teacher_run(settings(tmp_path / "students", **students, **revisions), "1.0")

    check()
    check(text_encoder_revision="v1", teacher_speech_encoder_revision="c" * 40)
    with pytest.raises(ValueError, match="(?s)is not the one .*text_encoder_revision: 'v1' then, 'v2' now"):
        check(text_encoder_revision="v2")


def test_a_damaged_stage_json_is_named(tmp_path):
    make_stage(tmp_path, True).write_text('{"stage": "au')
    with pytest.raises(ValueError, match=r"audio/stage.json is not valid JSON \(.*\): it is damaged"):
        stage_is_complete(tmp_path, "audio", settings(tmp_path), "1.0")


def test_a_card_has_the_commits_and_the_precision(tmp_path):
    run = make_run(tmp_path / "run")
    results = json.loads((run / "results.json").read_text())
    results["encoders"] = {
        "student_speech_encoder": {"name": "user/speech", "revision": "v1", "commit": "0123456"},
        "teacher_speech_encoder": {"name": f"{tmp_path}/models/big", "revision": None, "commit": "sha256-89ab"},
    }
    results["precision"] = {"teacher": "fp32", "cts": "bf16"}
    results["cost"]["peak_device_memory_gb"] = 2.5
    (run / "results.json").write_text(json.dumps(results))
    for is_teacher, wanted in ((False, ["user/speech at `0123456`", "Precision: bf16"]), (True, ["Precision: fp32"])):
        folder = tmp_path / f"staged_{is_teacher}"
        folder.mkdir()
        card = str(stage_run(run, "user/x", folder, is_teacher=is_teacher).card)
        for part in [*wanted, "big at `sha256-89ab` (teacher speech)", "and 2.5 GB of the device's"]:
            assert part in card
        assert str(tmp_path) not in card and ("user/speech at" in card) != is_teacher


def test_recipes_take_a_revision_for_each_encoder(recipe):
    names = ("student_speech_encoder", "teacher_speech_encoder", "text_encoder")
    given = [part for name in names for part in (f"--{name}_revision", f"v-{name}")]
    found = load_recipe(recipe, given)
    assert all(found.model_dump()[f"{name}_revision"] == f"v-{name}" for name in names)
    assert all(load_recipe(recipe).model_dump()[f"{name}_revision"] is None for name in names)
    pinned = load_recipe(recipe, ["--text_encoder", "user/text"]).pinned(dict.fromkeys(names, "1" * 40))
    assert pinned.text_encoder_revision == "1" * 40
    assert pinned.student_speech_encoder_revision is None  # a folder
    assert pinned.folder == recipe.parent
