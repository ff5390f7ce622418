"""Ears for words that students take over from another one: what they get, and which ears are refused."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from formulas import ccc
from local_hub import LocalHub
from safetensors.torch import load_file, save_file
from small_models import WAVEFORM_CONFIGS, student, tiny_text
from tiny_run import make_results
from tones import write_recipe
from transformers import AutoFeatureExtractor

import train_distill
from cmkd.features.inputs import SpeechInputs
from cmkd.hub.staging import published_results
from cmkd.identity import folder_digest
from cmkd.runs.ears import load_ears, stated_licence
from cmkd.runs.folder import begin_stage, complete_stage, stage_is_complete
from cmkd.runs.preflight import check_encoders, check_words
from cmkd.runs.recipe import Recipe, load_recipe
from cmkd.runs.stage import build_model
from cmkd.stages import STAGES
from configuration_cmkd import EMOTION_DIMENSIONS, CMKDTeacherConfig
from modeling_cmkd import CMKDStudentModel, CMKDTeacherModel

pytestmark = pytest.mark.usefixtures("quick_figures")

PIECES = ["▁high", "▁low", "ong"]


def make_listener(encoder: Path, folder: Path, **config) -> CMKDStudentModel:
    """A student with random ears, which differs from those of a recipe in all but its encoder."""
    torch.manual_seed(1)
    settings = {"word_pieces": PIECES, "word_hidden_size": 6, "gru_hidden_size": 5, "embedding_size": 7}
    settings |= {"num_trainable_layers": 0} | config
    model = CMKDStudentModel.from_pretrained_encoder(str(encoder), **settings)
    model.save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    """Of a run on tones whose students have the ears of the student `listener` beside the recipe."""
    place = tmp_path_factory.mktemp("ears")
    stages = ["teacher", "finetune", "ts"]
    path = write_recipe(place, num_epochs=2, num_trainable_layers=0, stages=stages, ears="./listener")
    make_listener(place / "tones/speech", place / "listener")
    return path


@pytest.fixture(scope="module")
def run(recipe) -> Path:
    train_distill.main([str(recipe)])
    return recipe.parent / "run"


def change_weight(folder: Path, name: str) -> None:
    """Turns the sign of one weight of a checkpoint."""
    weights = load_file(folder / "model.safetensors")
    weights[name] = -weights[name]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.slow
def test_the_students_of_a_run_hear_what_the_other_one_hears(run, recipe):
    listener = CMKDStudentModel.from_pretrained(recipe.parent / "listener").eval()
    waves = torch.randn(2, 4000, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        heard, mask = listener.piece_logits(waves)
    assert heard.shape[-1] == 4 and heard.std() > 0.01
    for stage in ("finetune", "ts"):
        model = CMKDStudentModel.from_pretrained(run / stage).eval()
        assert model.config.word_pieces == PIECES and model.embedding_head.in_features == 128 + 3
        ours, theirs = model.word_summarizer.state_dict(), listener.word_summarizer.state_dict()
        assert len(ours) == 12 and all(torch.equal(ours[name], theirs[name]) for name in theirs)
        with torch.no_grad():
            again, its_mask = model.piece_logits(waves)
        assert torch.equal(again, heard) and torch.equal(its_mask, mask)
    log = json.loads((run / "ts/training_log.json").read_text())
    assert len(log) == 2 and log[0]["train_loss"] != log[1]["train_loss"]  # all the same it has learned


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        ("---\nlicense: cc-by-sa-4.0\n---\n# X", ("cc-by-sa-4.0", None)),
        ("---\nlicense: other\nlicense_name: odbl-and-cc-by-sa-4.0\n---\n", ("other", "odbl-and-cc-by-sa-4.0")),
        ("---\nlicense: other\nlicense_name: mit-and-that-of-the-ears\n---\n", None),
        ("---\nlicense: other\n---\n", None),
        ("---\nlicense: [mit, odbl]\n---\n", None),
        ("---\nlicense: [mit\n---\n", None),
        ("# X", None),
        (None, None),
    ],
)
def test_the_licence_of_ears_is_that_of_their_card(tmp_path, card, expected):
    recipe = load_recipe(write_recipe(tmp_path), ["--ears", str(tmp_path / "listener")])
    (tmp_path / "listener").mkdir()
    if card is not None:
        (tmp_path / "listener/README.md").write_text(card, encoding="utf-8")
    found = stated_licence(recipe, "sha256-0123")
    assert found == (expected and dict(zip(("identifier", "name"), expected, strict=True)))


@pytest.mark.slow
def test_a_run_records_whose_ears_it_took(run, recipe):
    digest = folder_digest(recipe.parent / "listener")
    expected = {"name": "./listener", "revision": None, "commit": digest}
    results = json.loads((run / "results.json").read_text())
    assert results["encoders"]["ears"] == expected | {"licence": None}  # it has no card
    assert results["recipe"]["ears"] == "./listener"
    assert results["starts_from"] == {}
    table = pq.read_table(run / "predictions/ts_validation.parquet").to_pandas()
    rated = {name: table[table[name].notna()] for name in EMOTION_DIMENSIONS}
    kept = np.mean([ccc(rows[f"predicted_{name}"], rows[name]) for name, rows in rated.items()])
    assert results["student"] == {
        "stage": "ts", "reason": f"this run has no other student (mean CCC on validation: T/S {kept:.3f})"
    }  # fmt: skip
    states = {name: json.loads((run / name / "stage.json").read_text()) for name in ("teacher", "finetune", "ts")}
    assert {name: state["encoders"].get("ears") for name, state in states.items()} == {
        "teacher": None,
        "finetune": expected,
        "ts": expected,
    }
    report = re.sub(r"\s+", " ", (run / "report.md").read_text())
    assert f"Ears for words: ./listener at {digest}." in report
    assert "listener" not in report.partition("Encoders: ")[2].partition(" Ears for words")[0]


@pytest.mark.slow
def test_a_run_does_not_go_on_with_ears_that_have_changed(run, recipe, tmp_path, capsys):
    for name in ("listener", "text", "run"):
        shutil.copytree(recipe.parent / name, tmp_path / name)
    shutil.copy(recipe, tmp_path)
    arguments = [str(tmp_path / recipe.name), "--output_dir", str(tmp_path / "run")]
    train_distill.main(arguments)
    assert "ts: complete, not repeated" in capsys.readouterr().out
    before = folder_digest(tmp_path / "listener")
    change_weight(tmp_path / "listener", "word_summarizer.piece_head.bias")
    after = folder_digest(tmp_path / "listener")
    with pytest.raises(ValueError, match=f"(?s)Stage 'finetune'.*commit of ears: '{before}' then, '{after}' now"):
        train_distill.main(arguments)
    with pytest.raises(ValueError, match=r"(?s)Stage 'finetune'.*ears: './listener' then, None now"):
        train_distill.main([*arguments, "--ears", "null"])


@pytest.mark.parametrize("stored_in", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("loaded_in", ["float32", None])
def test_ears_in_half_precision_are_taken(recipe, tmp_path, stored_in, loaded_in):
    """As `cmkd push --half` leaves them, whose config.json still says float32, and as `model.half()` does."""
    make_listener(recipe.parent / "tones/speech", tmp_path).to(stored_in).save_pretrained(tmp_path)
    if loaded_in is not None:
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(config | {"dtype": loaded_in}))
    stored = load_file(tmp_path / "model.safetensors")
    assert {value.dtype for value in stored.values()} == {stored_in}
    found = load_recipe(recipe, ["--ears", str(tmp_path)])
    assert check_encoders(found)["ears"] == folder_digest(tmp_path)
    for name, value in load_ears(found.ears).word_summarizer.state_dict().items():
        assert value.dtype == torch.float32 and torch.equal(value, stored[f"word_summarizer.{name}"].float())


def refused(recipe: Path, tmp_path: Path, ears: Path, message: str, kind: type[Exception] = ValueError) -> None:
    arguments = [str(recipe), "--output_dir", str(tmp_path / "out"), "--ears", str(ears)]
    with pytest.raises(kind, match=message):
        train_distill.main(arguments)
    assert not (tmp_path / "out").exists()


def test_ears_of_another_encoder_are_refused_before_anything_trains(recipe, tmp_path):
    speech, changed = recipe.parent / "tones/speech", tmp_path / "changed"
    make_listener(speech, changed)
    weight = "encoder.layers.1.final_layer_norm.weight"
    change_weight(changed, f"speech_encoder.encoder.{weight}")  # as training its top layer does
    said = rf"hears with another encoder than 'tones/speech': of \d+ weights 1 are different, such as {weight}\. Ears"
    refused(recipe, tmp_path, changed, said)
    student(WAVEFORM_CONFIGS["wav2vec2"], word_pieces=PIECES).save_pretrained(tmp_path / "wav2vec2")
    refused(recipe, tmp_path, tmp_path / "wav2vec2", "which hears with another encoder than 'tones/speech': of")


def retrained(speech: Path, folder: Path, weight: str, **config) -> dict[str, torch.Tensor]:
    """A listener of which a weight of the encoder was trained, and its weights."""
    make_listener(speech, folder, **config)
    change_weight(folder, f"speech_encoder.encoder.{weight}")
    return load_file(folder / "model.safetensors")


def encoder_weights(model: CMKDStudentModel) -> dict[str, torch.Tensor]:
    return {name: value for name, value in model.state_dict().items() if name.startswith("speech_encoder.encoder.")}


def built(found: Recipe) -> CMKDStudentModel:
    model, _, _ = build_model(STAGES["finetune"], found, np.eye(3), [0.0, 1.0])
    return model


@pytest.mark.parametrize(
    ("weight", "number"),
    [
        ("encoder.layers.1.final_layer_norm.weight", 1),
        ("encoder.layers.0.attention.k_proj.weight", 2),
        ("feature_extractor.conv_layers.0.conv.weight", -1),
    ],
)
def test_layers_that_were_trained_with_the_ears_are_taken_with_them(recipe, tmp_path, weight, number):
    speech, ears = recipe.parent / "tones/speech", tmp_path / "ears"
    theirs = retrained(speech, ears, weight, num_layers_of_ears=number)
    found = load_recipe(recipe, ["--ears", str(ears)])
    assert check_encoders(found)["ears"] == folder_digest(ears)
    model = built(found)
    ours, original = encoder_weights(model), encoder_weights(make_listener(speech, tmp_path / "original"))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    is_other = [name for name in ours if not torch.equal(ours[name], original[name])]
    assert is_other == [f"speech_encoder.encoder.{weight}"]
    assert model.config.num_layers_of_ears == number and model.config.num_trainable_layers == 0


@pytest.mark.parametrize(
    ("weight", "number"),
    [("encoder.layers.0.attention.k_proj.weight", 1), ("feature_extractor.conv_layers.0.conv.weight", 2)],
)
def test_other_weights_below_the_layers_of_the_ears_are_refused(recipe, tmp_path, weight, number):
    retrained(recipe.parent / "tones/speech", tmp_path / "ears", weight, num_layers_of_ears=number)
    said = rf"another encoder than 'tones/speech': of \d+ weights 1 are different, such as {weight}"
    refused(recipe, tmp_path, tmp_path / "ears", said)


def test_layers_that_were_trained_on_ratings_are_refused(recipe, tmp_path):
    speech, weight = recipe.parent / "tones/speech", "encoder.layers.1.final_layer_norm.weight"
    retrained(speech, tmp_path / "ears", weight, num_trainable_layers=1)
    refused(
        recipe, tmp_path, tmp_path / "ears", "whose config.num_trainable_layers is 1, but must be 0: .* Name the fol"
    )


def test_what_half_precision_has_only_rounded_keeps_its_digits(recipe, tmp_path):
    speech = recipe.parent / "tones/speech"
    make_listener(speech, tmp_path, num_layers_of_ears=1).to(torch.bfloat16).save_pretrained(tmp_path)
    rounded = load_file(tmp_path / "model.safetensors")
    ours = encoder_weights(built(load_recipe(recipe, ["--ears", str(tmp_path)])))
    original = encoder_weights(make_listener(speech, tmp_path / "original"))
    for name, value in ours.items():
        expected = rounded[name].float() if ".layers.1." in name else original[name]
        assert torch.equal(value, expected), name
    assert any(not torch.equal(value, rounded[name].float()) for name, value in ours.items())


def test_ears_of_the_same_encoder_bring_no_layers(recipe):
    assert built(load_recipe(recipe)).config.num_layers_of_ears == 0


@pytest.fixture(scope="module")
def taught(recipe, tmp_path_factory) -> Path:
    """The stage `lexical` of a run that has no other, which trained the top layer of the encoder, too."""
    settings = ["--ears", "null", "--stages", "lexical", "--word_pieces", "30", "--num_trainable_layers", "1"]
    folder = tmp_path_factory.mktemp("taught")
    train_distill.main([str(recipe), *settings, "--output_dir", str(folder)])
    return folder / "lexical"


@pytest.mark.slow
def test_ears_are_taken_from_the_stage_that_taught_them(recipe, taught, tmp_path):
    """Its encoder was trained with them; the run that takes them hears with it, and answers so."""
    start = load_file(taught / "start.safetensors")
    train_distill.main(
        [str(recipe), "--ears", str(taught), "--stages", "finetune", "--output_dir", str(tmp_path / "run")]
    )
    model = CMKDStudentModel.from_pretrained(tmp_path / "run/finetune").eval()
    assert model.config.word_pieces == json.loads((taught / "ears.json").read_text())["word_pieces"]
    assert model.config.num_layers_of_ears == 1 and model.config.num_trainable_layers == 0
    heard = encoder_weights(model) | model.word_summarizer.state_dict(prefix="word_summarizer.")
    assert len(heard) > 40 and all(torch.equal(value, start[name]) for name, value in heard.items())
    untrained = encoder_weights(make_listener(recipe.parent / "tones/speech", tmp_path / "untrained"))
    is_other = [name for name, value in untrained.items() if not torch.equal(value, heard[name])]
    assert is_other and all(".layers.1." in name for name in is_other)
    # What was stored, and heard once, in training is what the saved student hears: its answers are the same.
    answers = pq.read_table(tmp_path / "run/predictions/finetune_test.parquet").to_pandas()
    corpus = load_recipe(recipe).load_corpus()
    features = AutoFeatureExtractor.from_pretrained(recipe.parent / "tones/speech")
    speech = SpeechInputs(corpus["test"], features)
    with torch.no_grad():
        again = torch.cat([model(input_values=speech[row][None]).logits for row in range(len(speech))])
    expected = answers[[f"predicted_{name}" for name in EMOTION_DIMENSIONS]].to_numpy()
    assert list(answers["id"]) == list(corpus["test"]["id"])
    np.testing.assert_allclose(again.numpy(), expected, atol=1e-4)


def test_the_folder_of_a_stage_is_known_by_its_ears_alone(taught, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("start.safetensors", "ears.json"):
        shutil.copy(taught / name, copy)
    assert folder_digest(copy) == folder_digest(taught)
    weights = load_file(copy / "start.safetensors")
    weights["word_summarizer.piece_head.bias"] += 1
    save_file(weights, copy / "start.safetensors")
    assert folder_digest(copy) != folder_digest(taught)


def test_what_a_stage_has_left_in_part_is_refused(recipe, taught, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(taught, copy)
    (copy / "ears.json").unlink()
    refused(recipe, tmp_path, copy, r"ears='.*copy' cannot be loaded: it is a stage lexical without ears\.json")
    shutil.copy(taught / "ears.json", copy)
    weights = load_file(copy / "start.safetensors")
    del weights["word_summarizer.piece_head.bias"]
    save_file(weights, copy / "start.safetensors")
    refused(recipe, tmp_path, copy, r"start\.safetensors does not have the weights of the student that ears\.json")


def test_ears_of_a_stage_leave_the_random_numbers_alone(taught):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    load_ears(str(taught))
    assert torch.equal(torch.rand(2), expected)


def test_what_has_no_ears_for_words_is_refused_before_anything_trains(recipe, tmp_path):
    speech = recipe.parent / "tones/speech"
    make_listener(speech, tmp_path / "deaf", word_pieces=None)
    refused(recipe, tmp_path, tmp_path / "deaf", r"ears='.*deaf' cannot be loaded: it does not listen for pieces of")
    make_listener(speech, tmp_path / "deep", gru_num_layers=3)
    refused(recipe, tmp_path, tmp_path / "deep", r"its config.gru_num_layers is 3, but the GRUs .* have 2 layers")
    refused(recipe, tmp_path, speech, "it is of the model type 'hubert', but must be 'cmkd_student': name a student")
    config = CMKDTeacherConfig(speech_config=WAVEFORM_CONFIGS["hubert"], text_config=tiny_text(tmp_path, "low")[0])
    CMKDTeacherModel(config).save_pretrained(tmp_path / "teacher")
    refused(recipe, tmp_path, tmp_path / "teacher", "it is of the model type 'cmkd_teacher', but must be")
    refused(recipe, tmp_path, tmp_path / "nobody", r"ears='.*nobody' cannot be loaded: ", OSError)


def test_ears_are_looked_at_only_where_a_stage_takes_them(recipe):
    for stages in (["teacher"], ["audio", "text"]):
        found = load_recipe(recipe, ["--ears", "nobody/there", "--stages", *stages])
        assert "ears" not in check_encoders(found)


def test_words_are_learned_here_or_elsewhere(recipe):
    for arguments, message in (
        (["--word_pieces", "30"], "ears is './listener', .* but word_pieces is 30, which teaches them here: take out"),
        (["--stages", "lexical", "ts"], "ears is './listener', .* but stages has lexical, which teaches them here"),
        (["--ears", "null", "--ears_revision", "v1"], "ears_revision is 'v1', but ears is null: name the ears too"),
    ):
        with pytest.raises(ValueError, match=message):
            load_recipe(recipe, arguments)


COST = {"seconds": 2.0, "peak_memory_gb": 1.0, "peak_device_memory_gb": None, "processes": 1, "device": "cpu"}


def test_students_do_not_begin_with_other_weights_than_the_ears(recipe, tmp_path):
    """As they would where the run, or one of its seeds, has a complete stage `lexical`, made without `word_pieces`."""
    found = load_recipe(recipe, ["--output_dir", str(tmp_path), "--seeds", "0", "1"])
    corpus = found.load_corpus()
    check_words(found, corpus)
    of_seed = found.of_seed(1)
    assert of_seed.ears == "./listener" and of_seed.locate(of_seed.ears) == found.locate("./listener")
    begin_stage(tmp_path / "seed_1", "lexical", of_seed, "1.0")
    complete_stage(tmp_path / "seed_1", "lexical", COST)
    with pytest.raises(ValueError, match=r"ears is './listener', but .*seed_1 has a complete stage lexical, with"):
        check_words(found, corpus)
    check_words(load_recipe(recipe, ["--output_dir", str(tmp_path), "--stages", "finetune"]), corpus)


def test_a_warning_says_that_a_trained_encoder_may_unlearn_the_words(recipe, capsys):
    corpus = load_recipe(recipe).load_corpus()
    for layers, is_warned in (("0", False), ("2", True)):
        capsys.readouterr()
        check_words(load_recipe(recipe, ["--num_trainable_layers", layers]), corpus)
        assert (f"WARNING: num_trainable_layers={layers}: what tells" in capsys.readouterr().out) == is_warned


def test_all_stages_take_the_same_commit_of_ears_on_the_hub(recipe, tmp_path):
    on_the_hub, commits = load_recipe(recipe, ["--ears", "user/listener"]), {"ears": "1" * 40}
    assert on_the_hub.pinned(commits).ears_revision == "1" * 40
    assert load_recipe(recipe).pinned(commits).ears_revision is None  # a folder
    settings = {"corpus": {"name": "toys"}, "output_dir": str(tmp_path), "ears": "user/listener"}
    begin_stage(tmp_path, "finetune", Recipe(**settings), "1.0", commits)
    complete_stage(tmp_path, "finetune", COST)
    assert stage_is_complete(tmp_path, "finetune", Recipe(**settings), "1.0", commits)
    with pytest.raises(ValueError, match="commit of ears: '1{40}' then, '2{40}' now .*--ears_revision COMMIT names"):
        stage_is_complete(tmp_path, "finetune", Recipe(**settings), "1.0", {"ears": "2" * 40})


READ = """
import sys
from cmkd.runs.preflight import check_encoders
from cmkd.runs.recipe import load_recipe

print(check_encoders(load_recipe(sys.argv[1], sys.argv[2:]))["ears"])
"""


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.slow
def test_ears_on_the_hub_are_those_of_the_revision(recipe, tmp_path, python):
    make_listener(recipe.parent / "tones/speech", tmp_path / "listener", word_pieces=None)
    with LocalHub() as hub:
        hub.make("models", "user/listener", files_of(tmp_path / "listener"), private=False)
        repository = hub.repositories["models", "user/listener"]
        repository.tags["deaf"] = repository.branches["main"]
        commit = repository.commit("main", files_of(recipe.parent / "listener"), "it has learned to hear")

        def read(*arguments: str) -> subprocess.CompletedProcess:
            named = [str(recipe), "--ears", "user/listener", *arguments]
            return python.run(READ, *named, environment=hub.environment(tmp_path / "cache"))

        found = read()
        assert found.returncode == 0, found.stderr
        assert found.stdout.splitlines()[-1] == commit
        deaf = read("--ears_revision", "deaf")
    assert deaf.returncode == 1
    assert "ears='user/listener' at ears_revision='deaf' cannot be loaded: it does not listen for" in deaf.stderr


@pytest.mark.parametrize(
    ("given", "published"), [("/home/me/students/listener", "listener"), ("user/listener", "user/listener")]
)
def test_what_is_pushed_names_the_ears_and_no_folder_of_this_machine(given, published):
    results = make_results(Path("/home/me"))
    results["recipe"]["ears"] = given
    results["encoders"] = {"ears": {"name": given, "revision": None, "commit": "sha256-0123"}}
    results["note"] = f"/home/me/models/{given.lstrip('/')}"  # as a name in models_dir is found
    found = published_results(results)
    assert found["recipe"]["ears"] == found["encoders"]["ears"]["name"] == published
    assert found["note"] == published
