"""Pieces of words: how they are learned, the part of a student that hears them, and the stage that trains it by CTC."""

import itertools
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from launching import launch
from safetensors.torch import load_file
from small_models import ALL_CONFIGS, WAVEFORM_CONFIGS, padded, student, utterances
from tones import SIZES, stop_at_step, write_recipe
from transformers import AutoModel

import train_distill
from cmkd.features.word_pieces import (
    learn_word_pieces,
    load_word_pieces,
    names_of,
    numbers_of,
    save_word_pieces,
    spoken_letters,
)
from cmkd.runs.preflight import check_words
from cmkd.runs.recipe import load_recipe
from cmkd.training.lexical import SpellingStudent, SpellingTrainer
from configuration_cmkd import CMKDStudentConfig
from modeling_cmkd import CMKDStudentModel, WordPieceSummarizer

pytestmark = pytest.mark.usefixtures("quick_figures")

PIECES = ["▁a", "▁b", "c"]


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        ("Don't — he said, “NO!” 3 times", "don't he said no times"),
        ("It\u2019s Straße & Ärger", "it's straße ärger"),
        ("ﬁne  '' ...", "fine"),
        ("42", ""),
        ("‘no’ 'tis'", "no tis"),
        ("हिन्दी में", "हिन्दी में"),
        ("ภาษาไทย ครับ", "ภาษาไทย ครับ"),
    ],
)
def test_only_what_can_be_heard_is_spelled(written, spoken):
    assert spoken_letters(written) == spoken


def test_frequent_words_become_pieces_and_every_word_can_be_spelled(tmp_path):
    transcripts = ["The cat sat.", "the cat ran", "THE dog", "a cat", "the end"] * 3
    tokenizer = learn_word_pieces(transcripts, 20)
    names = names_of(tokenizer)
    assert {"▁the", "▁cat"} <= set(names) and len(names) == len(set(names)) == 20
    for transcript in transcripts:
        spelled = [names[number] for number in numbers_of(tokenizer, transcript)]
        assert "".join(spelled).replace("▁", " ").strip() == spoken_letters(transcript)
    save_word_pieces(tokenizer, tmp_path / "pieces.json")
    again = load_word_pieces(tmp_path / "pieces.json")
    assert names_of(again) == names_of(learn_word_pieces(transcripts, 20)) == names
    assert numbers_of(again, "the dog sat") == numbers_of(tokenizer, "The dog sat!")
    assert numbers_of(again, "the café") == []  # nothing of it is left out


@pytest.mark.parametrize(("transcripts", "number"), [(["abc def"], 6), (["12", ""], 9)])
def test_too_few_pieces_for_the_letters_are_refused(transcripts, number):
    with pytest.raises(ValueError, match=f"word_pieces={number}: the words to learn from have . different letters"):
        learn_word_pieces(transcripts, number)


def test_pieces_are_counted_over_the_pairs_of_real_frames():
    """Oracle: each utterance alone, loops over its pairs; what is behind the last real frame may be anything."""
    torch.manual_seed(0)
    summarizer = WordPieceSummarizer(5, 4, 2, 3)
    torch.nn.init.normal_(summarizer.norm.weight)
    features, lengths = torch.randn(4, 7, 5), [7, 1, 4, 6]
    mask = torch.tensor([[position < length for position in range(7)] for length in lengths])
    expected = torch.zeros(4, 3)
    with torch.no_grad():
        for row, length in enumerate(lengths):
            real = torch.nn.functional.layer_norm(
                features[row, :length], (5,), summarizer.norm.weight, summarizer.norm.bias
            )
            real = torch.cat([real, torch.zeros(length % 2, 5)])
            states = summarizer.gru(real.reshape(-1, 10))[0]
            counts = np.zeros(3)
            for state in states:
                scores = np.exp((summarizer.piece_head.weight @ state + summarizer.piece_head.bias).double().numpy())
                counts += scores[1:] / scores.sum()
            expected[row] = torch.tensor(4 * counts / (1 + counts.sum() / 8))
    features[1, 1:] = torch.nan
    torch.testing.assert_close(summarizer(features, mask), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(summarizer(features, mask.long()), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["hubert", "whisper", "moonshine", "cpc"])
def test_a_student_that_listens_for_words_does_not_see_padding(name):
    model = student(ALL_CONFIGS[name], word_pieces=PIECES, word_hidden_size=8, summarizer="attention")
    items = utterances(model)
    longest = 2 * next(iter(items[0].values())).shape[-1]
    with torch.no_grad():
        alone = torch.cat([model(**item).logits for item in items])
        together = model(**padded(items, longest)).logits
        model.word_summarizer.piece_head.weight.mul_(-1)
        otherwise = torch.cat([model(**item).logits for item in items])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    assert (otherwise - alone).abs().amin(1).max() > 1e-4  # what is heard matters


def test_what_tells_pieces_apart_is_frozen_and_survives_a_save(tmp_path):
    model = student(WAVEFORM_CONFIGS["hubert"], word_pieces=PIECES, word_hidden_size=8)
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path, trust_remote_code=True)
    for one in (model, again):
        assert not any(parameter.requires_grad for parameter in one.word_summarizer.parameters())
        assert one.embedding_head.in_features == 128 + 3 and one.config.word_pieces == PIECES
    wave = torch.randn(1, 4000)
    with torch.no_grad():
        for found, expected in zip(again.eval().piece_logits(wave), model.piece_logits(wave), strict=True):
            torch.testing.assert_close(found, expected)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config.pop("word_pieces") == PIECES
    assert CMKDStudentConfig.from_dict(config).word_pieces is None  # as before there was such a part
    with pytest.raises(ValueError, match="this student does not listen for pieces of words"):
        student(WAVEFORM_CONFIGS["hubert"]).piece_logits(wave)


@pytest.mark.parametrize("pieces", [[], ["a", "a"], ["a", ""]])
def test_pieces_that_cannot_be_told_apart_are_refused(pieces):
    with pytest.raises(ValueError, match=f"word_pieces has {len(pieces)} pieces"):
        CMKDStudentConfig(word_pieces=pieces)
    for wrong in (2000, "abc", [1, 2]):
        with pytest.raises(
            ValueError, match="word_pieces=.*: must be a list of the pieces themselves, as texts; or None"
        ):
            CMKDStudentConfig(word_pieces=wrong)
    with pytest.raises(ValueError, match="word_hidden_size=0: must be a whole number"):
        CMKDStudentConfig(word_pieces=["a"], word_hidden_size=0)


def all_alignments_that_say(pieces: list[int], steps: int, number: int):
    """What CTC sums over (Graves et al. 2006): repeats become one, and blanks, number 0, are left out."""
    for path in itertools.product(range(number), repeat=steps):
        without_repeats = [piece for piece, _ in itertools.groupby(path)]
        if [piece for piece in without_repeats if piece] == pieces:
            yield path


def test_the_loss_is_the_sum_over_all_alignments():
    torch.manual_seed(0)
    model = student(WAVEFORM_CONFIGS["hubert"], word_pieces=PIECES, word_hidden_size=8)
    spelling = SpellingStudent(model)
    waves = torch.randn(3, 2600)
    said = [[0, 2], [1, 1], [0, 1, 2, 1, 0, 1, 2]]  # the last one is too long for the few frames
    pieces = torch.tensor([row + [-1] * (7 - len(row)) for row in said])
    output = spelling(pieces, input_values=waves)
    scores, mask = model.piece_logits(waves)
    assert mask.all() and scores.shape[1] <= 4
    expected = []
    for probabilities, row in zip(scores.softmax(-1).tolist(), said, strict=True):
        paths = all_alignments_that_say([piece + 1 for piece in row], len(probabilities), 4)
        likelihood = sum(
            np.prod([step[piece] for step, piece in zip(probabilities, path, strict=True)]) for path in paths
        )
        expected.append(-np.log(likelihood) / len(row) if likelihood else 0.0)
    assert expected[2] == 0 and min(expected[:2]) > 0
    torch.testing.assert_close(output.embeddings[:, 0], torch.tensor(expected, dtype=torch.float32), atol=1e-5, rtol=0)
    assert output.embeddings[:, 1].tolist() == [1, 1, 0]
    weights = torch.tensor([1.0, 0.0, 1.0])
    loss = SpellingTrainer.loss(None, output.logits, output.embeddings, None, None, None, weights)
    assert loss.item() == pytest.approx(expected[0], abs=1e-5)
    torch.testing.assert_close(output.student_embeddings, scores.softmax(-1)[..., 1:].sum(1))
    trained = {name.split(".")[1] for name, value in spelling.named_parameters() if value.requires_grad}
    assert trained == {"word_summarizer"}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    """Of a run whose students listen for words, on tones."""
    return write_recipe(
        tmp_path_factory.mktemp("pieces"),
        num_epochs=2,
        lexical_epochs=12,
        lexical_learning_rate=1e-2,
        word_pieces=30,
        stages=["teacher", "finetune", "lexical", "ts"],
    )


@pytest.fixture(scope="module")
def run(recipe) -> Path:
    train_distill.main([str(recipe)])
    return recipe.parent / "run"


@pytest.mark.slow
def test_a_run_learns_the_words_and_its_students_keep_them(run):
    results = json.loads((run / "results.json").read_text())
    assert results["starts_from"] == {"ts": "lexical"} and results["recipe"]["word_pieces"] == 30
    log = json.loads((run / "lexical/training_log.json").read_text())
    assert len(log) == 12 and log[-1]["train_loss"] < 0.3 * log[0]["train_loss"]
    rates = [entry["learning_rate"] for entry in log]
    assert max(rates) <= 1e-2 and rates[-1] < 0.05 * max(rates)  # it ends at 0
    scores = results["lexical"]["retrieval"]["test"]
    assert scores["n"] == SIZES["test"] - len(range(0, SIZES["test"], 5))
    start, student_weights = load_file(run / "lexical/start.safetensors"), load_file(run / "ts/model.safetensors")
    of_words = [name for name in start if name.startswith("word_summarizer.")]
    assert len(of_words) == 12
    assert all(torch.equal(start[name], student_weights[name]) for name in of_words)
    assert not torch.equal(start["embedding_head.weight"], student_weights["embedding_head.weight"])
    model = CMKDStudentModel.from_pretrained(run / "student")
    assert set(model.config.word_pieces) >= {"▁high", "▁low", "▁long", "▁short"}
    assert CMKDStudentModel.from_pretrained(run / "finetune").config.word_pieces is None
    report = (run / "report.md").read_text()
    assert "learned to hear pieces of words, 30 at most" in re.sub(r"\s+", " ", report)


@pytest.mark.slow
def test_an_interrupted_stage_goes_on_with_the_same_pieces(run, recipe, tmp_path, monkeypatch, capsys):
    arguments = [str(recipe), "--output_dir", str(tmp_path), "--stages", "lexical"]
    with monkeypatch.context() as patches, pytest.raises(KeyboardInterrupt):
        stop_at_step(9, SpellingTrainer, patches)
        train_distill.main(arguments)
    capsys.readouterr()
    train_distill.main(arguments)
    output = capsys.readouterr().out
    assert "epoch  12/12" in output and "epoch   1/12" not in output and "pieces of words learned" not in output
    found, expected = (load_file(folder / "lexical/start.safetensors") for folder in (tmp_path, run))
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.slow
def test_two_processes_and_accumulation_learn_the_same_pieces(python, recipe, tmp_path):
    arguments = [str(recipe), "--stages", "lexical", "--lexical_epochs", "3", "--output_dir"]
    train_distill.main([*arguments, str(tmp_path / "one"), "--batch_size", "8"])
    share = ["--batch_size", "2", "--gradient_accumulation_steps", "2"]
    main = Path(train_distill.__file__)
    done = launch(python, "several_gpus.yaml", 2, main, *arguments, str(tmp_path / "two"), *share)
    assert done.returncode == 0, done.stderr
    one, two = (json.loads((tmp_path / name / "lexical/training_log.json").read_text()) for name in ("one", "two"))
    for of_one, of_two in zip(one, two, strict=True):
        assert of_two == pytest.approx(of_one, abs=1e-4)


@pytest.mark.slow
def test_students_without_the_stage_are_refused(run, recipe, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/lexical")
    shutil.rmtree(tmp_path / "run/ts")
    arguments = [str(recipe), "--output_dir", str(tmp_path / "run"), "--stages", "ts"]
    with pytest.raises(ValueError, match="word_pieces=30: nothing in .* has taught them. Put lexical before ts into"):
        train_distill.main(arguments)
    train_distill.main([*arguments, "--word_pieces", "null"])
    assert CMKDStudentModel.from_pretrained(tmp_path / "run/ts").config.word_pieces is None


@pytest.mark.slow
def test_a_control_takes_the_same_ears(run, recipe, tmp_path, capsys):
    shutil.copytree(run / "lexical", tmp_path / "alone/lexical")
    taught = ["--teacher_run", str(run), "--control", "no_distillation"]
    train_distill.main([str(recipe), "--output_dir", str(tmp_path / "alone"), "--stages", "lexical", "ts", *taught])
    assert "lexical: complete, not repeated" in capsys.readouterr().out
    ears, alone = load_file(run / "lexical/start.safetensors"), load_file(tmp_path / "alone/ts/model.safetensors")
    assert all(torch.equal(alone[name], ears[name]) for name in ears if name.startswith("word_summarizer."))


@pytest.mark.slow
def test_what_frozen_ears_hear_is_computed_once(run, recipe, tmp_path, monkeypatch):
    frozen = ["--num_trainable_layers", "0", "--lexical_epochs", "1", "--teacher_run", str(run)]
    arguments = [str(recipe), *frozen, "--output_dir", str(tmp_path), "--stages", "lexical"]
    train_distill.main(arguments)
    heard, counts = [], WordPieceSummarizer.counts

    def counted(logits, mask):
        heard.append(len(logits))
        return counts(logits, mask)

    monkeypatch.setattr(WordPieceSummarizer, "counts", staticmethod(counted))
    train_distill.main([*arguments, "ts"])
    assert sum(heard) == sum(SIZES.values())
    once = load_file(tmp_path / "ts/model.safetensors")
    monkeypatch.setattr(train_distill, "hear_once", lambda model, datasets, durations: None)
    train_distill.main([*arguments[:-1], "ts", "--overwrite"])
    assert sum(heard) == 2 * sum(SIZES.values()) + 2 * (SIZES["train"] + SIZES["validation"])
    for name, weights in load_file(tmp_path / "ts/model.safetensors").items():
        torch.testing.assert_close(once[name], weights, atol=1e-4, rtol=0)


def test_counts_of_words_stand_for_the_ears():
    model = student(WAVEFORM_CONFIGS["hubert"], word_pieces=PIECES, word_hidden_size=8)
    speech = padded(items := utterances(model), next(iter(items[0].values())).shape[-1])
    counts = model.word_counts(**speech)
    assert counts.shape == (3, len(PIECES)) and not counts.requires_grad
    with torch.no_grad():
        expected = model(**speech).embeddings
        assert torch.equal(model(**speech, word_counts=counts).embeddings, expected)
        assert not torch.allclose(model(**speech, word_counts=counts + 1).embeddings, expected)
    with pytest.raises(ValueError, match="word_counts was given"):
        student(WAVEFORM_CONFIGS["hubert"])(**speech, word_counts=counts)


@pytest.mark.slow
def test_each_of_several_seeds_has_ears_of_its_own(run, recipe, tmp_path):
    for seed in (0, 1):
        shutil.copytree(run / "lexical", tmp_path / f"seed_{seed}/lexical")
    settings = ["--seeds", "0", "1", "--stages", "ts", "--output_dir", str(tmp_path)]
    several = load_recipe(recipe, settings)
    corpus = several.load_corpus()
    check_words(several, corpus)
    shutil.rmtree(tmp_path / "seed_1/lexical")
    with pytest.raises(ValueError, match="word_pieces=30: nothing in .*seed_1 has taught them"):
        check_words(several, corpus)


def test_letters_are_counted_before_anything_trains(recipe, tmp_path):
    arguments = [str(recipe), "--output_dir", str(tmp_path / "run"), "--word_pieces", "5"]
    with pytest.raises(ValueError, match="word_pieces=5: the words to learn from have 10 different letters"):
        train_distill.main(arguments)
    assert not (tmp_path / "run").exists()
