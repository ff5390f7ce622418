"""Every recipe of recipes/, run from its own file on narrow encoders and noise in the corpora's layouts."""

import json
import re
from pathlib import Path

import datasets
import pytest
import torch
from transformers import AutoModel

import train_distill
from benchmarks import systems
from benchmarks.stand_ins import ENCODERS, write_encoder, write_iemocap, write_msp_podcast, write_transcripts
from cmkd.runs.recipe import load_recipe
from modeling_cmkd import CMKDStudentModel, CMKDTeacherModel

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_figures")]

RECIPES = Path(__file__).parent.parent / "recipes"
FOLDERS = ("msp_podcast", "iemocap", "spoken_emobank")
ROWS = sorted(
    (path for folder in FOLDERS for path in (RECIPES / folder).glob("*.yaml") if path.stem != "common"),
    key=lambda path: (path.parent.name, path.stem.startswith("later"), path.stem),  # a teacher before its students
)
NAMES = [f"{path.parent.name}/{path.stem}" for path in ROWS]
SENTENCES = ["It was good.", "We went home.", "No, not really.", "Yes, it was.", "I do not know."]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Corpora, encoders and the arguments that make a recipe take them."""
    folder = tmp_path_factory.mktemp("place")
    for name in ENCODERS:
        write_encoder(name, folder / "models", small=True)
    ids = write_msp_podcast(folder / "msp_podcast", {"train": 9, "validation": 5, "test": 5}, seconds=0.3)
    write_transcripts(folder / "transcripts.parquet", ids)
    write_iemocap(folder / "iemocap", turns=2, seconds=0.3)
    lines = ["id,split,V,A,D,text"]
    for index in range(15):
        split = ("train", "dev", "test")[index % 3]
        ratings = ",".join(f"{2 + (index * step) % 9 / 4:.2f}" for step in (1, 2, 4))
        lines.append(f'u{index},{split},{ratings},"{SENTENCES[index % 5]} {index}"')
    (folder / "emobank.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "recipes_cache")


def arguments(place: Path, path: Path) -> list[str]:
    data = place / ("emobank.csv" if path.parent.name == "spoken_emobank" else path.parent.name)
    found = [str(path), "--corpus.data_dir", str(data), "--models_dir", str(place / "models")]
    found += ["--output_dir", str(place / "runs" / path.parent.name / path.stem), "--cache_dir", str(place / "cache")]
    if path.parent.name == "msp_podcast":
        found += ["--corpus.transcripts", str(place / "transcripts.parquet")]
    return [*found, "--num_epochs", "1", "--batch_size", "4"]


def test_every_recipe_has_its_line_in_the_docs():
    """As `benchmarks/systems.py` measured it at its real size."""
    docs = RECIPES.parent / "docs"
    results = json.loads((docs / "results/systems.json").read_text())
    assert set(results["recipes"]) == {name for name in NAMES if not name.startswith("spoken_emobank")}
    for name, found in results["recipes"].items():
        assert list(found["stages"]) == load_recipe(RECIPES / f"{name}.yaml").stages
    assert (docs / "systems.md").read_text() == systems.page(results)


@pytest.mark.parametrize("path", ROWS, ids=NAMES)
def test_every_recipe_runs_and_trains_what_it_says(place, path):
    if path.parent.name == "spoken_emobank":
        pytest.importorskip("espeakng_loader", reason="speaking needs the extra cmkd[demo]")
    recipe, run = load_recipe(path), place / "runs" / path.parent.name / path.stem
    if recipe.teacher_run is not None:  # a complete one is not repeated
        train_distill.main(arguments(place, path.with_name(f"{recipe.teacher_folder.name}.yaml")))
    train_distill.main(arguments(place, path))
    results = json.loads((run / "results.json").read_text())
    assert list(results["systems"]) == recipe.stages
    for stage in recipe.stages:
        model = AutoModel.from_pretrained(run / stage, trust_remote_code=True)
        named = [] if stage == "text" else [recipe.student_speech_encoder]
        named = [recipe.teacher_speech_encoder] if stage == "teacher" else named
        configs = [(named[0], model.config.speech_config)] if named else []
        if stage in ("text", "teacher"):
            configs.append((recipe.text_encoder, model.config.text_config))
        for name, config in configs:
            assert config.model_type == ENCODERS[name].model_type
            count = "encoder_num_hidden_layers" if config.model_type == "moonshine" else "num_hidden_layers"
            assert getattr(config, count) == getattr(ENCODERS[name], count)
        trained = 0 if stage in ("audio", "text", "teacher") else recipe.num_trainable_layers
        assert model.config.num_trainable_layers == trained
        assert len(set(results["systems"][stage]["test"]["ccc"])) == 3


def test_every_row_of_the_papers_tables_has_a_recipe():
    numbers = {
        folder: sorted(int(match[1]) for path in ROWS if path.parent.name == folder
                       if (match := re.match(r"t[23]_(\d\d)_", path.stem)))
        for folder in FOLDERS
    }  # fmt: skip
    assert numbers["msp_podcast"] == list(range(3, 13))  # rows 1 and 2 are other papers'
    assert numbers["iemocap"] == list(range(2, 7))
    assert numbers["spoken_emobank"] == [6, 8, 9, 10, 11, 12]


@pytest.mark.parametrize("path", ROWS, ids=NAMES)
def test_a_row_has_the_settings_of_the_paper(path):
    recipe = load_recipe(path)
    assert path.read_text().startswith("# ") and "inherits: common.yaml" in path.read_text()
    if path.stem.startswith("later") or path.parent.name == "spoken_emobank":
        return
    assert (recipe.batch_size, recipe.num_epochs, recipe.learning_rate) == (32, 50, 5e-4)
    assert (recipe.plateau_factor, recipe.plateau_patience, recipe.encoder_learning_rate_factor) == (0.75, 2, 0.25)
    assert (recipe.distillation_weight, recipe.residual_threshold, recipe.num_trainable_layers) == (30, 2, 6)
    assert recipe.output_dir == f"runs/{path.parent.name}/{path.stem}"
    if {"ts", "cts"} & set(recipe.stages):
        teacher = load_recipe(path.with_name(f"{recipe.teacher_folder.name}.yaml"))
        assert teacher.stages == ["teacher"]
        assert (teacher.teacher_speech_encoder, teacher.text_encoder, teacher.corpus) == (
            recipe.teacher_speech_encoder,
            recipe.text_encoder,
            recipe.corpus,
        )


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("facebook/hubert-base-ls960", 94_371_712),
        ("facebook/hubert-large-ll60k", 315_438_720),
        ("bert-base-uncased", 109_482_240),
        ("UsefulSensors/moonshine-tiny", 27_092_736),
    ],
)
def test_the_stand_ins_have_the_sizes_of_the_published_encoders(name, published):
    with torch.device("meta"):
        assert sum(p.numel() for p in AutoModel.from_config(ENCODERS[name]).parameters()) == published


def test_the_fine_tuned_rows_train_the_top_six_layers_of_hubert_base():
    config = {"speech_config": ENCODERS["facebook/hubert-base-ls960"]}
    with torch.device("meta"):
        student = CMKDStudentModel(CMKDStudentModel.config_class(**config, num_trainable_layers=6))
        teacher = CMKDTeacherModel(CMKDTeacherModel.config_class(**config, text_config=ENCODERS["bert-base-uncased"]))
    layer = 4 * (768 * 768 + 768) + 2 * 768 * 3072 + 768 + 3072 + 4 * 768
    gru = 3 * (768 * 128 + 128 * 128 + 2 * 128) + 3 * (2 * 128 * 128 + 2 * 128)
    head = 128 * 128 + 128 + 128 * 3 + 3
    trainable = [sum(p.numel() for p in model.parameters() if p.requires_grad) for model in (student, teacher)]
    assert trainable == [6 * layer + gru + head, 2 * gru + head + 128 * 128]
