"""Recipes: what they accept, what they refuse and what they say."""

import re
from pathlib import Path
from typing import get_args

import pytest
import yaml

from cmkd.corpora.sources import SameSentences
from cmkd.losses import Distance
from cmkd.quality import Quality
from cmkd.runs.recipe import Recipe, load_recipe, split_recipe
from cmkd.training.sampler import Sampling


@pytest.fixture
def recipe(tmp_path):
    def write(**settings):
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump({"corpus": {"name": "manifest"}, "output_dir": "runs/x"} | settings))
        return path

    return write


def test_the_command_line_comes_after_the_file(recipe):
    path = recipe(seed=1, learning_rate=1e-3, stages=["teacher"])
    found = load_recipe(path, ["--seed", "2", "--corpus.data_dir=my data", "--corpus.label_scale", "1", "7"])
    assert (found.seed, found.learning_rate, found.stages) == (2, 1e-3, ["teacher"])
    assert found.corpus == {"name": "manifest", "data_dir": "my data", "label_scale": [1, 7]}


def test_the_defaults_are_the_papers(recipe):
    found = load_recipe(recipe())
    assert (found.batch_size, found.num_epochs, found.learning_rate, found.encoder_learning_rate_factor) == (
        32,
        50,
        5e-4,
        0.25,
    )
    assert (found.distillation_weight, found.residual_threshold, found.num_trainable_layers) == (30, 2, 6)
    assert (found.quality, found.cross_fitting, found.prediction_weight, found.control) == ("hard", None, 0, None)
    assert (found.plateau_factor, found.plateau_patience) == (0.75, 2)
    assert found.student_speech_encoder == "facebook/hubert-base-ls960"
    assert (found.teacher_speech_encoder, found.text_encoder) == ("facebook/hubert-large-ll60k", "bert-base-uncased")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--seed", "3", "--overwrite"], {"seed": 3, "overwrite": True}),
        (["--group_by_length", "false"], {"group_by_length": False}),
        (["--stages", "ts", "cts", "--seed=3"], {"stages": ["ts", "cts"], "seed": 3}),
        (["--seeds", "0", "1", "2"], {"seeds": [0, 1, 2]}),
        (["--num_trainable_layers", "-1"], {"num_trainable_layers": -1}),
        (["--num-epochs", "3"], {"num_epochs": 3}),
        (["--models_dir", "null"], {"models_dir": None}),
        (["--models_dir", "None"], {"models_dir": None}),
        (["--cache_limit_gb", "null"], {"cache_limit_gb": None}),
        (["--use_weighted_layer_sum", "true"], {"use_weighted_layer_sum": True}),
        (["--output_dir", "2024-01-01"], {"output_dir": "2024-01-01"}),
        (["--output_dir", "1.10"], {"output_dir": "1.10"}),
        (["--learning_rate", "1"], {"learning_rate": 1.0}),
        (["--stages", "ts", "cts", "--num_epochs", "3", "--stages", "ts"], {"num_epochs": 3, "stages": ["ts"]}),
        ([], {}),
    ],
)
def test_arguments_are_read_as_the_settings_that_they_are(recipe, arguments, expected):
    path = recipe(models_dir="models", cache_limit_gb=1.5)
    before, given = load_recipe(path).model_dump(), load_recipe(path, arguments).model_dump()
    assert {name: value for name, value in given.items() if before[name] != value} == expected


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("manifest", ["--corpus.data_dir", "%x/y"], {"data_dir": "%x/y"}),
        ("manifest", ["--corpus.label_scale", "1", "7"], {"label_scale": [1, 7]}),
        (
            "manifest",
            ["--corpus.columns", "{valence: V, dominance: null}"],
            {"columns": {"valence": "V", "dominance": None}},
        ),
        ("manifest", ["--corpus.on_error=skip"], {"on_error": "skip"}),
        ("msp-podcast", ["--corpus.release", "1.10"], {"release": "1.10"}),
        ("msp-podcast", ["--corpus.release=1.6", "--corpus.annotators"], {"release": "1.6", "annotators": True}),
        ("iemocap", ["--corpus.fold", "2", "--corpus.strip-tags"], {"fold": 2, "strip_tags": True}),
        ("dataset", ["--corpus.data_files", "a.csv"], {"data_files": "a.csv"}),
        ("dataset", ["--corpus.data_files", "a.csv", "b.csv"], {"data_files": ["a.csv", "b.csv"]}),
        ("dataset", ["--corpus.data_files", "{train: a.csv}"], {"data_files": {"train": "a.csv"}}),
        (
            "iemocap",
            ["--corpus.name", "msp-podcast", "--corpus.release", "1.6"],
            {"name": "msp-podcast", "release": "1.6"},
        ),
    ],
)
def test_settings_of_the_corpus_that_the_recipe_names(recipe, name, arguments, expected):
    found = load_recipe(recipe(corpus={"name": name, "num_proc": 2}), arguments).corpus
    assert found == {"name": name, "num_proc": 2} | expected
    assert all(type(found[key]) is type(value) for key, value in expected.items())


def test_numbers_may_be_written_as_people_write_them(recipe):
    assert load_recipe(recipe(learning_rate="5e-4"), ["--distillation_weight", "3"]).distillation_weight == 3.0
    assert load_recipe(recipe(), ["--learning_rate", "5e-4"]).learning_rate == 5e-4
    assert load_recipe(recipe(), ["--stages", "cts"]).stages == ["cts"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch_size", "0"], "batch_size = 0: .*greater than or equal to 1"),
        (["--seed", "-1"], "seed = -1: .*greater than or equal to 0"),
        (["--encoder_learning_rate_factor", "2"], "encoder_learning_rate_factor = 2.0: .*less than or equal to 1"),
        (["--stages"], "stages = .*at least 1 item"),
        (["--corpus.name", "manifets"], "name is 'manifets'.* Did you mean 'manifest'"),
    ],
)
def test_a_value_out_of_its_range_is_named(recipe, arguments, message):
    with pytest.raises(ValueError, match=message):
        load_recipe(recipe(), arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--learning_rat", "1"],
            "options: --learning_rat, 1 .* Perhaps you meant: .*--learning_rate FLOAT Learning",
        ),
        (["--corpus.fol", "1"], "options: --corpus.fol, 1 "),
        (["--xyz", "1"], "options: --xyz, 1 "),
        (["--learning_rate", "fast"], "--learning_rate: 'fast', but must be a number. .* Learning rate of Adam"),
        (["--num_epochs", "2.5"], "--num_epochs: '2.5', but must be a whole number."),
        (["--seeds", "0", "x"], "--seeds: .*'x'"),
        (["--stages", "teachr"], r"invalid choice 'teachr' for argument .*'teacher'"),
        (["--embedding_distance", "l2"], "invalid choice 'l2' for argument .*'squared_norm'"),
        (["--overwrite", "maybe"], "--overwrite: 'maybe', but must be true or false."),
        (["teacher"], "options: teacher"),
        (["--seed", "--stages", "cts"], "Missing value for argument '--seed'"),
        (["--num_epochs"], "Missing value for argument '--num_epochs'"),
        (["--corpus.data_dir"], "value for argument '--corpus.data_dir'"),
    ],
)
def test_a_wrong_argument_is_named(recipe, arguments, message, capsys):
    with pytest.raises(SystemExit) as end:
        load_recipe(recipe(), arguments)
    said = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert end.value.code == 2 and re.search(message, said), said


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rat": 1}, "no setting 'learning_rat'. Did you mean 'learning_rate'"),
        ({"xyz": 1}, "no setting 'xyz'.$"),
        ({"learning_rate": "fast"}, "learning_rate = 'fast': .*number"),
        ({"num_epochs": 2.5}, "num_epochs = 2.5: .*integer"),
        ({"stages": ["teachr"]}, "stages.0 = 'teachr': .*'teacher'"),
        ({"corpus": {"name": "manifets"}}, "name is 'manifets'.* Did you mean 'manifest'"),
        ({"corpus": {}}, "corpus.name is missing"),
        ({"corpus": {"name": "iemocap", "fodl": 1}}, "no setting 'corpus.fodl' of iemocap.* Did you mean 'fold'"),
    ],
)
def test_a_wrong_setting_of_the_file_is_named(recipe, settings, message):
    with pytest.raises(ValueError, match=message):
        load_recipe(recipe(**settings))


def test_help_has_every_setting_with_its_value(recipe, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    path = recipe(corpus={"name": "iemocap", "fold": 3}, learning_rate=1e-3, seeds=[4, 5], models_dir=None)
    with pytest.raises(SystemExit) as end:
        load_recipe(path, ["--num_epochs", "3", "--help"])
    output = capsys.readouterr().out
    assert end.value.code == 0 and max(map(len, output.splitlines()[3:])) <= 80
    said = " ".join(output.replace("│", " ").split())
    for name, field in Recipe.model_fields.items():
        if name != "corpus":
            assert f"--{name} " in said and field.description in said
    for expected in (
        "learning_rate FLOAT Learning rate of Adam at the start, for all but the speech encoder's layers. "
        "(in the recipe: 0.001)",
        "(in the recipe: 4 5)",
        "--num_epochs INT How many times each stage goes through the training split, unlabelled speech not counted. "
        "(default: 50)",
        "--stages {audio,text,teacher,finetune,lexical,ts,cts} ... Stages to run, of audio, text,",
        "(default: audio text teacher finetune ts cts)",
        "of the cross-validation: 1 to 5, or 1 to 10 where one speaker is left out. (in the recipe: 3)",
        "(default: leave-one-session-out)",
        "(in the recipe: iemocap)",
    ):
        assert expected in said, expected


def test_a_command_without_a_recipe_asks_for_one(capsys):
    with pytest.raises(SystemExit) as end:
        split_recipe([], "cmkd train", "Trains.")
    assert end.value.code == 2
    assert "the first argument must be a recipe, as in cmkd train recipes/demo.yaml" in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        split_recipe(["--help"], "cmkd train", "Trains.")
    said = capsys.readouterr().out
    assert end.value.code == 0 and said.startswith("Trains.") and "--learning_rate" in said


def test_a_missing_setting_is_named(tmp_path):
    (tmp_path / "recipe.yaml").write_text("output_dir: runs/x\n")
    with pytest.raises(ValueError, match="corpus is missing"):
        load_recipe(tmp_path / "recipe.yaml")


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "corpus: manifest\n", "a: [1\n"])
def test_what_is_no_recipe_is_refused(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"recipe\.yaml"):
        load_recipe(path)


def test_a_missing_recipe_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no recipe .*nothing\.yaml"):
        load_recipe(tmp_path / "nothing.yaml")


def test_encoders_beside_the_recipe(recipe, tmp_path):
    (tmp_path / "models/openai/whisper-tiny.en").mkdir(parents=True)
    found = load_recipe(recipe(text_encoder="../text", models_dir=str(tmp_path / "models")))
    assert found.text_encoder == "../text"  # as written, so that results name no folders of this machine
    assert Path(found.locate(found.text_encoder)).resolve() == (tmp_path.parent / "text").resolve()
    assert found.locate("openai/whisper-tiny.en") == str(tmp_path / "models/openai/whisper-tiny.en")
    assert found.locate("openai/whisper-base.en") == "openai/whisper-base.en"


def test_a_recipe_may_inherit_from_one_beside_it(tmp_path):
    common = {"corpus": {"name": "iemocap", "fold": 1}, "num_epochs": 3, "seed": 5}
    (tmp_path / "common.yaml").write_text(yaml.safe_dump(common))
    child = {"inherits": "common.yaml", "corpus": {"fold": 2}, "seed": 6}
    (tmp_path / "row.yaml").write_text(yaml.safe_dump(child))
    found = load_recipe(tmp_path / "row.yaml", ["--num_epochs", "4"])
    assert (found.corpus, found.num_epochs, found.seed) == ({"name": "iemocap", "fold": 2}, 4, 6)
    assert found.output_dir == f"runs/{tmp_path.name}/row"


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("nothing.yaml", "inherits is 'nothing.yaml', but must be the name of a recipe in the same folder"),
        ("../common.yaml", "must be the name of a recipe in the same folder"),
        (3, "must be the name of a recipe in the same folder"),
        ("row.yaml", "inherits is 'row.yaml', which inherits itself"),
    ],
)
def test_what_cannot_be_inherited_is_refused(tmp_path, base, message):
    (tmp_path / "row.yaml").write_text(yaml.safe_dump({"inherits": base}))
    with pytest.raises(ValueError, match=message):
        load_recipe(tmp_path / "row.yaml")


def test_seeds_take_the_place_of_a_seed_that_came_before(recipe):
    path = recipe(seed=1)
    found = load_recipe(path, ["--seeds", "3", "5"])
    assert (found.seeds, found.seed) == ([3, 5], 0)
    assert load_recipe(recipe(seeds=[3, 5]), ["--seed", "7"]).seeds is None
    for settings, message in (
        ({"seed": 1, "seeds": [0, 1]}, r"seed is 1 and seeds is \[0, 1\]: give one of the two"),
        ({"seeds": [0, 1, 0]}, r"seeds is \[0, 1, 0\], but no seed may be given twice"),
        ({"seeds": [0]}, "seeds = .0.: .*at least 2 items"),
        ({"seeds": 3}, "seeds = 3: .*valid list"),
        ({"seeds": [0, -1]}, r"seeds\.1 = -1: .*greater than or equal to 0"),
    ):
        with pytest.raises(ValueError, match=message):
            load_recipe(recipe(**settings))


def test_each_seed_has_a_folder_of_its_own_and_the_teacher_of_its_seed(recipe):
    found = load_recipe(recipe(seeds=[3, 5], stages=["ts"], teacher_run="../t", hub_model_id="user/x", num_epochs=4))
    of_seed = found.of_seed(5)
    assert (of_seed.seed, of_seed.seeds, of_seed.output_dir) == (5, None, "runs/x/seed_5")
    assert of_seed.teacher_folder == Path("runs/t/seed_5")
    assert (of_seed.cache_dir, of_seed.hub_model_id, of_seed.num_epochs) == ("runs/x/cache", None, 4)
    assert (of_seed.folder, of_seed.corpus) == (found.folder, found.corpus)
    assert load_recipe(recipe(seeds=[3, 5], cache_dir="c")).of_seed(3).cache_dir == "c"


def test_where_the_teacher_is(recipe):
    assert load_recipe(recipe()).teacher_folder == Path("runs/x")
    assert load_recipe(recipe(stages=["ts"], teacher_run="../t")).teacher_folder == Path("runs/t")
    assert load_recipe(recipe(stages=["ts"], teacher_run="/a/t")).teacher_folder == Path("/a/t")
    with pytest.raises(ValueError, match="teacher_run is '../t', trained elsewhere, but stages"):
        load_recipe(recipe(teacher_run="../t"))


def test_every_setting_is_described_by_sentences():
    for name, field in Recipe.model_fields.items():
        assert field.description and field.description[0].isupper() and field.description.endswith("."), name


def test_the_distances_are_those_of_the_loss():
    assert get_args(Recipe.model_fields["embedding_distance"].annotation) == get_args(Distance)
    assert get_args(Recipe.model_fields["quality"].annotation) == get_args(Quality)


def test_a_control_that_would_change_nothing_is_refused(recipe):
    with pytest.raises(ValueError, match="control is 'random_quality', but the weights of ts are all 1, .* stages"):
        load_recipe(recipe(control="random_quality"))
    with pytest.raises(ValueError, match="control is 'shuffled_teacher', but stages has none of ts and cts"):
        load_recipe(recipe(control="shuffled_teacher", stages=["teacher"]))
    assert load_recipe(recipe(control="random_quality", stages=["cts"])).control == "random_quality"


def several(**more):
    first = {"name": "manifest", "alias": "mine", "label_scale": [1, 7]}
    return {"corpus": [first, {"name": "spoken-emobank", "max_utterances": 10}]} | more


def test_settings_of_several_corpora_are_given_under_their_names(recipe):
    path = recipe(**several(unlabelled={"name": "manifest", "data_dir": "here", "alias": "plain"}))
    arguments = ["--corpus.mine.data_dir", "a b", "--corpus.spoken-emobank.data_dir=c", "--unlabelled.data_dir", "d"]
    found = load_recipe(path, arguments)
    assert found.corpus == [
        {"name": "manifest", "alias": "mine", "label_scale": [1, 7], "data_dir": "a b"},
        {"name": "spoken-emobank", "max_utterances": 10, "data_dir": "c"},
    ]
    assert found.unlabelled == {"name": "manifest", "data_dir": "d", "alias": "plain"}
    found = load_recipe(recipe(), ["--unlabelled", "{name: manifest, data_dir: e}"])
    assert found.unlabelled == {"name": "manifest", "data_dir": "e"}
    with pytest.raises(ValueError, match="no setting 'unlabelled.data_di' of manifest"):
        load_recipe(recipe(), ["--unlabelled", "{name: manifest, data_di: e}"])
    both = [{"name": "manifest", "alias": "one"}, {"name": "manifest", "alias": "two"}]
    found = load_recipe(recipe(unlabelled=both), ["--unlabelled.two.data_dir", "x"])
    assert found.unlabelled == [both[0], both[1] | {"data_dir": "x"}]


def test_a_list_replaces_what_is_inherited(tmp_path, recipe):
    (tmp_path / "common.yaml").write_text(yaml.safe_dump({"corpus": {"name": "iemocap", "fold": 2}}))
    child = tmp_path / "child.yaml"
    child.write_text(yaml.safe_dump({"inherits": "common.yaml", **several()}))
    assert load_recipe(child).corpus == several()["corpus"]
    child.write_text(yaml.safe_dump({"inherits": "common.yaml", "corpus": {"data_dir": "x"}}))
    assert load_recipe(child).corpus == {"name": "iemocap", "fold": 2, "data_dir": "x"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"corpus": [{"name": "iemocap"}]}, "corpus is a list of 1: a list is for two or more corpora"),
        ({"corpus": [{"name": "manifest"}] * 2}, "corpus has 'manifest' twice: give each corpus an alias"),
        ({"corpus": [{"name": "manifest"}, {"alias": "x"}]}, "corpus x.name is missing: it must be one of manifest,"),
        (several(unlabelled={"name": "manifest", "data_di": "x"}), "no setting 'unlabelled.data_di' of manifest. Did"),
        (several(unlabelled={"data_dir": "x"}), "unlabelled.name is missing"),
        ({"corpus": ["manifest"]}, r"corpus is \['manifest'\], but must be a mapping of settings to values, or a list"),
        ({"unlabelled": []}, r"unlabelled is \[\], but must be a mapping"),
        ({"labelled_share": 0}, "labelled_share = 0: .*greater than 0"),
        ({"unlabelled_ratio": -1}, "unlabelled_ratio = -1: .*greater than 0"),
        ({"unlabelled_hours": 3}, "unlabelled_hours is 3, but there is no unlabelled speech: .* set .* to null"),
        ({"unlabelled_ratio": 2}, "unlabelled_ratio is 2, but there is no unlabelled speech: .* set .* to 1.0"),
        (
            {"unlabelled_hours": 3, "labelled_share": 0.1, "unlabelled_rest": False},
            "unlabelled is null, and labelled_share 0.1 with unlabelled_rest false leaves none",
        ),
    ],
)
def test_sources_that_are_refused(recipe, settings, message):
    with pytest.raises(ValueError, match=message):
        load_recipe(recipe(**settings))


def test_settings_of_unlabelled_speech_are_taken_where_there_is_some(recipe):
    """Whichever stages this call runs: a recipe may be run in parts."""
    settings = {"unlabelled_hours": 3, "unlabelled_ratio": 2, "stages": ["teacher"]}
    for some in ({"unlabelled": {"name": "manifest", "alias": "plain"}}, {"labelled_share": 0.1}):
        found = load_recipe(recipe(**settings, **some))
        assert (found.unlabelled_hours, found.unlabelled_ratio) == (3, 2)
    rules = load_recipe(recipe(same_sentences="leave_out", unlabelled_rest=False))  # which ask for no speech
    assert rules.same_sentences == "leave_out"


def test_null_takes_away_the_unlabelled_speech_that_is_inherited(tmp_path):
    common = {"corpus": {"name": "manifest"}, "unlabelled": {"name": "manifest", "alias": "plain"}}
    (tmp_path / "common.yaml").write_text(yaml.safe_dump(common))
    child = tmp_path / "child.yaml"
    for own, expected in (({}, common["unlabelled"]), ({"unlabelled": None}, None)):
        child.write_text(yaml.safe_dump({"inherits": "common.yaml", **own}))
        assert load_recipe(child).unlabelled == expected
    folder = Path(__file__).parents[1] / "recipes/open"
    without = {path.stem for path in folder.glob("*.yaml") if load_recipe(path).unlabelled is None}
    assert without == {"rated_only", "words_alone"}


def test_the_names_of_samplings_are_those_of_the_sampler():
    assert get_args(Recipe.model_fields["corpus_sampling"].annotation) == get_args(Sampling)
    assert get_args(Recipe.model_fields["same_sentences"].annotation) == get_args(SameSentences)
