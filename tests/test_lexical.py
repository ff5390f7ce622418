"""The stage `lexical`: its loss, its measures, where the students begin, and what stops and repeats it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from formulas import ccc
from launching import launch
from safetensors.torch import load_file
from tones import SIZES, stop_at_step, write_recipe
from torch import nn
from transformers import AutoModel, AutoTokenizer
from transformers.utils import ModelOutput

import train_distill
from cmkd.features.inputs import UtteranceDataset
from cmkd.runs.answers import load_checkpoint
from cmkd.runs.lexical import begin_with_start, what_was_learned
from cmkd.runs.recipe import load_recipe
from cmkd.scoring.lexical import RIDGE_STRENGTHS, retrieval_scores, ridge_scores, sentence_ranks
from cmkd.training.arguments import CMKDTrainingArguments
from cmkd.training.lexical import LexicalTrainer, ProjectedStudent
from modeling_cmkd import CMKDStudentModel

pytestmark = pytest.mark.usefixtures("quick_figures")

RECIPES = Path(__file__).parents[1] / "recipes"

# Where three sentences are, and where a network puts six utterances of them: cosines by eye.
PLACES = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
GROUPS = np.array([0, 1, 2, 0, 1, 2])
FOUND = np.array([[2.0, 0.1], [1.0, 0.9], [0.5, 0.1], [0.0, 0.0], [0.0, 7.0], [-1.0, -0.1]])
RANKS = [1, 2, 3, 3, 1, 1]  # the fourth is nowhere: all three are as near


def test_ranks_are_those_of_a_small_matrix():
    assert sentence_ranks(FOUND, PLACES[GROUPS], GROUPS).tolist() == RANKS


def test_the_same_words_are_one_sentence():
    """Said twice more, a sentence is no better and no worse found, and there are no more to find it among."""
    rows = [0, 1, 2, 3, 4, 5, 0, 0]
    assert sentence_ranks(FOUND[rows], PLACES[GROUPS[rows]], GROUPS[rows]).tolist() == [*RANKS, 1, 1]


def test_recall_and_median_beside_chance():
    scores = retrieval_scores(FOUND, PLACES[GROUPS], GROUPS)
    assert scores.pop("chance") == pytest.approx(
        {"recall_at_1": 1 / 3, "recall_at_5": 1.0, "median_rank": 2.0, "mean_reciprocal_rank": (1 + 1 / 2 + 1 / 3) / 3}
    )
    assert scores == pytest.approx(
        {
            "n": 6,
            "sentences": 3,
            "recall_at_1": 3 / 6,
            "recall_at_5": 1.0,
            "median_rank": 1.5,
            "mean_reciprocal_rank": (3 + 1 / 2 + 2 / 3) / 6,
        }
    )


def test_many_utterances_are_ranked_in_parts_as_all_at_once(monkeypatch):
    generator = np.random.default_rng(0)
    found, places = generator.normal(size=(2, 50, 8))
    at_once = sentence_ranks(found, places, np.arange(50))
    monkeypatch.setattr("cmkd.scoring.lexical._ROWS", 7)
    assert sentence_ranks(found, places, np.arange(50)).tolist() == at_once.tolist()
    # Sorted by numpy, the own sentence stands at its rank.
    cosines = found @ (places / np.linalg.norm(places, axis=1, keepdims=True)).T
    orders = [order.tolist().index(row) + 1 for row, order in enumerate(np.argsort(-cosines, axis=1))]
    assert at_once.tolist() == orders


def test_a_network_that_puts_all_in_one_place_finds_nothing():
    assert sentence_ranks(np.ones((6, 2)), np.zeros((6, 2)), np.arange(6)).tolist() == [6] * 6


def ridge_data():
    generator = np.random.default_rng(0)
    sizes = {"train": 60, "validation": 30, "test": 40}
    inputs = {split: generator.normal(3.0, [1.0, 5.0, 0.1, 1.0], size=(size, 4)) for split, size in sizes.items()}
    labels = {}
    for split, values in inputs.items():
        line = 0.5 + 0.1 * values[:, 1] / 5 - 0.05 * values[:, 0]
        labels[split] = np.stack([line + 0.05 * generator.normal(size=len(line)), 0.3 * line, line * np.nan], axis=1)
        labels[split][3, 0] = np.nan
    is_used = {split: np.arange(size) != 5 for split, size in sizes.items()}
    for split in sizes:  # utterances that do not count may be anything
        inputs[split][5] = 1e6
    return inputs, labels, is_used


def test_a_ridge_is_that_of_its_normal_equations_with_the_best_strength_on_validation():
    """Oracle: least squares on inputs with sqrt(strength n) I below them, which is the same minimum."""
    inputs, labels, is_used = ridge_data()
    found = ridge_scores(inputs, labels, is_used)
    assert found["strength"]["dominance"] is None and found["ccc"]["test"]["dominance"] is None
    for column, name in enumerate(("activation", "valence")):
        scores = {}
        for strength in RIDGE_STRENGTHS:
            rows = is_used["train"] & ~np.isnan(labels["train"][:, column])
            used = inputs["train"][is_used["train"]]
            x, y = (inputs["train"][rows] - used.mean(0)) / used.std(0), labels["train"][rows, column]
            centre, mean = x.mean(0), y.mean()
            below = np.sqrt(strength * len(x)) * np.eye(4)
            weights = np.linalg.lstsq(np.concatenate([x - centre, below]), np.append(y - mean, np.zeros(4)))[0]
            scores[strength] = {}
            for split, values in inputs.items():
                rows = is_used[split] & ~np.isnan(labels[split][:, column])
                answer = ((values[rows] - used.mean(0)) / used.std(0) - centre) @ weights + mean
                scores[strength][split] = ccc(answer, labels[split][rows, column])
        best = max(scores, key=lambda strength: scores[strength]["validation"])
        assert found["strength"][name] == best
        for split in inputs:
            assert found["ccc"][split][name] == pytest.approx(scores[best][split], abs=1e-8)
    assert found["ccc"]["test"]["activation"] > 0.7


class Tiny(nn.Module):
    """In the place of a student."""

    _no_split_modules: tuple[str, ...] = ()

    def __init__(self):
        super().__init__()
        self.config = type("Config", (), {"embedding_size": 4})
        self.embedding_head = nn.Linear(6, 4)
        self.prediction_head = nn.Linear(4, 3)

    def forward(self, inputs):
        embeddings = self.embedding_head(inputs)
        return ModelOutput(logits=self.prediction_head(embeddings), embeddings=embeddings)


def lexical_trainer(folder: Path, **arguments) -> LexicalTrainer:
    torch.manual_seed(0)
    sentences = {"sentences": np.eye(3), "sentence_groups": np.arange(3), "has_words": np.ones(3)}
    settings = {"metric_for_best_model": "mean_reciprocal_rank", "use_cpu": True, "disable_tqdm": True} | arguments
    return LexicalTrainer(
        model=ProjectedStudent(Tiny(), 3),
        args=CMKDTrainingArguments(str(folder), **settings),
        eval_dataset=UtteranceDataset({"inputs": np.zeros((3, 6))}),
        temperature=0.5,
        eval_sentences=sentences,
    )


def test_the_loss_is_regression_and_contrast_over_the_utterances_with_words(tmp_path):
    generator = torch.Generator().manual_seed(0)
    found, places = torch.randn(2, 6, 3, generator=generator, dtype=torch.float64)
    found.requires_grad_()
    groups, has_words = torch.tensor([0, 1, 2, 0, 3, 4]), torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0, 1.0])
    places[3] = places[0]
    loss = lexical_trainer(tmp_path).loss(
        torch.zeros(6, 3), found, torch.full((6, 3), torch.nan), places, groups, has_words
    )
    heard = [row for row in range(6) if has_words[row]]
    cosines = torch.nn.functional.cosine_similarity(found[:, None], places[None], dim=-1) / 0.5
    terms = []
    for row in heard:
        others = [other for other in heard if other == row or groups[other] != groups[row]]
        own = torch.tensor(others.index(row))
        along = torch.nn.functional.cross_entropy(cosines[row, others], own)
        across = torch.nn.functional.cross_entropy(cosines[others, row], own)
        terms.append(torch.nn.functional.mse_loss(found[row], places[row]) + (along + across) / 2)
    torch.testing.assert_close(loss, torch.stack(terms).mean())
    loss.backward()
    assert (found.grad[4] == 0).all()


def test_nothing_is_learned_about_ratings_and_all_else_is(tmp_path):
    model = lexical_trainer(tmp_path).model
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {
        *("student.embedding_head.weight", "student.embedding_head.bias"),
        *("projection.weight", "projection.bias"),
    }


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    """Of a run with the stage, on tones."""
    stages = ["teacher", "lexical", "ts"]
    return write_recipe(tmp_path_factory.mktemp("lexical"), num_epochs=2, lexical_epochs=3, stages=stages)


@pytest.fixture(scope="module")
def run(recipe) -> Path:
    train_distill.main([str(recipe)])
    return recipe.parent / "run"


def results_of(run: Path) -> dict:
    return json.loads((run / "results.json").read_text())


@pytest.mark.slow
def test_it_has_its_own_results_and_no_scores(run):
    results = results_of(run)
    assert list(results["systems"]) == ["teacher", "ts"]
    assert results["starts_from"] == {"ts": "lexical"}
    assert set(results["cost"]["seconds"]) == {"teacher", "lexical", "ts"}
    learned = results["lexical"]
    assert learned == json.loads((run / "lexical/learned.json").read_text())
    for split in ("validation", "test"):
        # Each fifth tone has no words; of the others there are four sentences at most.
        scores = learned["retrieval"][split]
        assert scores["n"] == SIZES[split] - len(range(0, SIZES[split], 5)) and scores["sentences"] <= 4
    report = (run / "report.md").read_text()
    section = report[report.index("## What the stage lexical learned") :]
    assert "With its weights began: T/S student." in section
    log = json.loads((run / "lexical/training_log.json").read_text())
    assert [entry["epoch"] for entry in log] == [1, 2, 3]
    best = max(entry["eval_mean_reciprocal_rank"] for entry in log)
    assert learned["retrieval"]["validation"]["mean_reciprocal_rank"] == pytest.approx(best, abs=1e-6)
    assert not (run / "lexical/config.json").exists()
    with pytest.raises(ValueError, match="stage is 'lexical', but must be one that rates: audio, text, "):
        load_checkpoint(str(run), stage="lexical")


@pytest.mark.slow
def test_the_targets_are_the_mean_of_the_stock_encoders_tokens(run, recipe, monkeypatch):
    """What the student is taught, from the stock text encoder, sentence by sentence."""
    seen = {}

    def keep(found, embeddings, sentences, labels):
        seen.update(sentences)
        assert {len(values) for values in sentences["train"].values()} == {SIZES["train"]}
        return what_was_learned(found, embeddings, sentences, labels)

    monkeypatch.setattr("cmkd.runs.lexical.what_was_learned", keep)
    arguments = ["--output_dir", str(recipe.parent / "again"), "--stages", "lexical", "--lexical_epochs", "1"]
    train_distill.main([str(recipe), *arguments])
    text = AutoModel.from_pretrained(recipe.parent / "text").eval()
    tokenizer = AutoTokenizer.from_pretrained(recipe.parent / "text")
    lines = [line.split(",") for line in (recipe.parent / "corpus/manifest.csv").read_text().splitlines()[1:]]
    words = {line[0]: line[2] for line in lines}
    places = {}
    for name, said in words.items():
        with torch.no_grad():
            places[name] = text(**tokenizer(said, return_tensors="pt")).last_hidden_state[0].mean(0).numpy()
    known = np.stack([place for name, place in places.items() if name.startswith("train") and words[name]])
    for split, size in SIZES.items():
        expected = np.stack([places[f"{split}_{index}"] for index in range(size)])
        np.testing.assert_allclose(
            seen[split]["sentences"], (expected - known.mean(0)) / known.std(0), atol=1e-3, rtol=1e-3
        )
        assert seen[split]["has_words"].tolist() == [float(words[f"{split}_{index}"] != "") for index in range(size)]
        groups = seen[split]["sentence_groups"]
        for row in range(size):
            same = [words[f"{split}_{other}"] == words[f"{split}_{row}"] for other in range(size)]
            assert (groups == groups[row]).tolist() == same


@pytest.mark.slow
def test_students_begin_with_its_weights_but_for_the_head(run, recipe, monkeypatch):
    start = load_file(run / "lexical/start.safetensors")
    model = CMKDStudentModel.from_pretrained(run / "ts")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    given = load_recipe(recipe)
    begin_with_start(model, "finetune", given)  # the baseline does not
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    begin_with_start(model, "ts", given)
    for name, value in model.state_dict().items():
        expected = before[name] if name.startswith("prediction_head.") else start[name]
        assert torch.equal(value, expected), name
    assert {"prediction_head.weight", "prediction_head.bias"} == before.keys() - start.keys()
    assert any(not torch.equal(start[name], before[name]) for name in start)  # T/S went on from there

    # What T/S has when its training begins, in a run in which the stage was complete before.
    begun = {}

    def stop(self, *args, **kwargs):
        begun.update({name: value.clone() for name, value in self.model.state_dict().items()})
        raise KeyboardInterrupt

    monkeypatch.setattr(train_distill.CMKDTrainer, "train", stop)
    copy = recipe.parent / "begun"
    shutil.copytree(run, copy)
    with pytest.raises(KeyboardInterrupt):
        train_distill.main([str(recipe), "--output_dir", str(copy), "--stages", "cts"])
    assert all(torch.equal(value, begun[name]) for name, value in start.items())
    assert json.loads((copy / "cts/stage.json").read_text())["settings"]["starts_from"] == "lexical"


@pytest.mark.slow
def test_a_student_that_began_otherwise_is_not_taken_for_complete(run, recipe, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    arguments = [str(recipe), "--output_dir", str(folder)]
    shutil.rmtree(folder / "lexical")
    with pytest.raises(ValueError, match="(?s)Stage 'ts'.*starts_from: 'lexical' then, None now"):
        train_distill.main([*arguments, "--stages", "teacher", "ts"])
    shutil.copytree(run / "lexical", folder / "lexical")
    with pytest.raises(ValueError, match="(?s)Stage 'lexical'.*lexical_temperature: 0.1 then, 0.5 now"):
        train_distill.main([*arguments, "--lexical_temperature", "0.5"])
    capsys.readouterr()
    train_distill.main([*arguments, "--stages", "ts"])  # the stage is in the run, and so the settings are the same
    assert "ts: complete, not repeated" in capsys.readouterr().out
    train_distill.main([*arguments, "--stages", "lexical", "--overwrite"])
    assert not (folder / "ts").exists()  # what began with the earlier weights is not left behind


@pytest.mark.slow
def test_an_interrupted_stage_goes_on_where_it_stopped(run, recipe, tmp_path, monkeypatch, capsys):
    arguments = [str(recipe), "--output_dir", str(tmp_path), "--stages", "lexical"]
    with monkeypatch.context() as patches, pytest.raises(KeyboardInterrupt):
        stop_at_step(9, LexicalTrainer, patches)
        train_distill.main(arguments)
    capsys.readouterr()
    train_distill.main(arguments)
    output = capsys.readouterr().out
    assert "epoch   3/3" in output and "epoch   2/3" not in output
    assert "the stage lexical: of" in output
    found, expected = (load_file(folder / "lexical/start.safetensors") for folder in (tmp_path, run))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert results_of(tmp_path)["lexical"] == results_of(run)["lexical"]
    assert not list((tmp_path / "lexical").glob("checkpoint-*"))


@pytest.mark.slow
def test_two_processes_and_accumulation_learn_what_one_does(python, recipe, tmp_path):
    """InfoNCE is over the step, whoever holds which utterance of it, and no filled-up row is anybody's negative."""
    arguments = [str(recipe), "--stages", "lexical", "--output_dir"]
    train_distill.main([*arguments, str(tmp_path / "one"), "--batch_size", "8"])
    share = ["--batch_size", "2", "--gradient_accumulation_steps", "2"]
    main = Path(train_distill.__file__)
    done = launch(python, "several_gpus.yaml", 2, main, *arguments, str(tmp_path / "two"), *share)
    assert done.returncode == 0, done.stderr
    one, two = (json.loads((tmp_path / name / "lexical/training_log.json").read_text()) for name in ("one", "two"))
    assert len(one) == len(two) == 3
    for of_one, of_two in zip(one, two, strict=True):
        assert of_two == pytest.approx(of_one, abs=1e-4)


@pytest.mark.slow
def test_speech_without_ratings_teaches_words_too(recipe, tmp_path):
    """The same weights whatever the ratings of train say: nothing of the loss looks at them."""
    weights = []
    for number, rating in enumerate(("2", "6")):
        corpus = tmp_path / f"corpus_{number}"
        shutil.copytree(recipe.parent / "corpus", corpus)
        lines = [line.split(",") for line in (corpus / "manifest.csv").read_text().splitlines()]
        for row, line in enumerate(lines):
            if line[0].startswith("train"):
                line[3:6] = [rating if row % 3 else "4", "" if row % 2 else "3.5", line[5]]
        lines[1][4], lines[2][4] = "1", "2"
        (corpus / "manifest.csv").write_text("\n".join(",".join(line) for line in lines) + "\n")
        output = tmp_path / f"run_{number}"
        arguments = ["--corpus.data_dir", str(corpus), "--output_dir", str(output), "--stages", "lexical"]
        train_distill.main([str(recipe), *arguments, "--group_by_length", "false", "--lexical_epochs", "1"])
        weights.append(load_file(output / "lexical/start.safetensors"))
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


@pytest.mark.slow
def test_a_split_without_words_is_refused_before_anything_trains(recipe, tmp_path):
    shutil.copytree(recipe.parent / "corpus", tmp_path / "corpus")
    manifest = tmp_path / "corpus/manifest.csv"
    lines = [line.split(",") for line in manifest.read_text().splitlines()]
    for line in lines:
        line[2] = "" if line[0].startswith("validation") else line[2]
    manifest.write_text("\n".join(",".join(line) for line in lines) + "\n")
    arguments = [str(recipe), "--corpus.data_dir", str(tmp_path / "corpus"), "--output_dir", str(tmp_path / "run")]
    with pytest.raises(ValueError, match="stage lexical learns .* the split validation has 0 of them"):
        train_distill.main(arguments)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("path", sorted(RECIPES.glob("beyond/**/lexical*.yaml")), ids=lambda path: path.stem)
def test_its_recipes_are_for_students_that_begin_with_it(path):
    recipe = load_recipe(path)
    assert recipe.stages[recipe.stages.index("lexical") + 1 :] in (["ts"], ["ts", "cts"])
    assert recipe.summarizer == ("attention" if "attention" in path.stem else "last_state")
    for encoder in (recipe.student_speech_encoder, recipe.text_encoder):
        assert not encoder.startswith(".") or Path(recipe.locate(encoder), "config.json").is_file()
    if recipe.teacher_run is not None:
        (of_teacher,) = RECIPES.rglob(str(recipe.teacher_folder.relative_to("runs").with_suffix(".yaml")))
        teacher = load_recipe(of_teacher)
        assert teacher.stages[-1] == "teacher" and Path(teacher.output_dir) == recipe.teacher_folder
