"""The students in students/, as somebody takes them who has cloned the repository."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors import safe_open
from transformers import AutoFeatureExtractor, AutoModel, pipeline

from cmkd.corpora.settings import STATEMENTS
from cmkd.corpora.speech_synthesis import HELD_OUT_VOICES, SAMPLING_RATE, speak
from cmkd.runs.recipe import load_recipe
from modeling_cmkd import CMKDStudentModel

ROOT = Path(__file__).parent.parent
OPEN = ROOT / "students/cmkd-open"
SENTENCES = ("It is a lovely day for a walk.", "They said that they would come.", "Nobody knows what happened there.")


@pytest.fixture(scope="module")
def score():
    return pipeline(model=str(OPEN), trust_remote_code=True)


def spoken(text: str, **prosody: int) -> dict:
    return {"raw": speak(text, HELD_OUT_VOICES[0], **prosody), "sampling_rate": SAMPLING_RATE}


def test_it_is_small_and_halved_and_loaded_as_fp32():
    assert sum(path.stat().st_size for path in OPEN.iterdir()) < 20e6
    with safe_open(OPEN / "model.safetensors", "np") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"F16"}  # noqa: SIM118
    model = AutoModel.from_pretrained(OPEN, trust_remote_code=True)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_the_code_beside_it_gives_what_the_code_of_this_repository_gives():
    speech = [spoken(text)["raw"] for text in SENTENCES]
    extractor = AutoFeatureExtractor.from_pretrained(OPEN)
    inputs = extractor(speech, sampling_rate=SAMPLING_RATE, return_tensors="pt", padding=True)
    here = CMKDStudentModel.from_pretrained(OPEN).eval()
    there = AutoModel.from_pretrained(OPEN, trust_remote_code=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(there(**inputs).logits, here(**inputs).logits, atol=1e-6, rtol=0)


def test_fast_loud_and_lively_speech_is_more_active(score):
    """In a voice that it never heard: the demo's acting, half of the range up and down, which no label told it of.

    What it learned of activation is from people, whose labels have a standard deviation of .063.
    """
    calm = [score(spoken(text, rate=140, pitch=40, pitch_range=25, volume=70))["scores"] for text in SENTENCES]
    lively = [score(spoken(text, rate=215, pitch=62, pitch_range=80, volume=130))["scores"] for text in SENTENCES]
    more = [loud["activation"] - quiet["activation"] for quiet, loud in zip(calm, lively, strict=True)]
    assert min(more) > 0.01 and sum(more) / len(more) > 0.063 / 2
    assert all(0 <= value <= 1 for scores in calm + lively for value in scores.values())


def test_silence_is_marked_and_a_file_of_any_rate_is_heard(score, tmp_path):
    import soundfile

    wave = spoken(SENTENCES[0])["raw"]
    soundfile.write(tmp_path / "speech.flac", np.stack([wave, wave], 1), SAMPLING_RATE)
    heard = score(str(tmp_path / "speech.flac"))["scores"]
    expected = score(spoken(SENTENCES[0]))["scores"]
    assert heard == pytest.approx(expected, abs=1e-3)
    assert score({"raw": np.zeros(2 * SAMPLING_RATE, np.float32), "sampling_rate": SAMPLING_RATE})["silent"]


def test_the_card_names_what_it_learned_from_and_its_licences():
    card = ModelCard.load(OPEN / "README.md")
    text = card.text
    for needed in ("crema-d", "spoken-emobank", "spoken-sentences", "CC-BY-SA 4.0", "Open Database License", "derived"):
        assert needed.lower() in text.lower(), needed
    published = json.loads((OPEN / "results.json").read_text())
    found = published["systems"][published["student"]["stage"]]["test"]["by_corpus"]
    for scores in found.values():
        assert scores["ccc"]["valence"] is not None
        for value in scores["ccc"].values():
            assert value is None or f"{value:.3f}" in text
    assert not re.search(r"\b1\d{3}_[A-Z]{3}_[A-Z]{3}_(LO|MD|HI|XX)\b", text + (OPEN / "results.json").read_text())


def test_it_is_the_student_of_the_recipe():
    """What was trained has the recipe's settings, but for where things lie, and what it says of them."""
    recipe = load_recipe(ROOT / "recipes/open/student.yaml").model_dump()
    trained = yaml.safe_load((OPEN / "recipe.yaml").read_text())
    places = {"output_dir", "cache_dir", "models_dir", "teacher_run", "dataloader_workers", "overwrite", "corpus"}
    places |= {"unlabelled", "student_speech_encoder", "teacher_speech_encoder", "ears"}
    assert {name: trained[name] for name in trained if name not in places} == {
        name: recipe[name] for name in trained if name not in places
    }
    for name in ("corpus", "unlabelled"):
        of_recipe = recipe[name] if isinstance(recipe[name], list) else [recipe[name]]
        of_trained = trained[name] if isinstance(trained[name], list) else [trained[name]]
        lie = {"data_dir", "sentences", "speech_dir", *STATEMENTS}
        assert [{k: v for k, v in entry.items() if k not in lie} for entry in of_trained] == [
            {k: v for k, v in entry.items() if k not in lie} for entry in of_recipe
        ]
