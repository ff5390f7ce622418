"""`cmkd predict --compile`, with a real compiler, and where there is none."""

import os
import shutil
import sys

import pytest
import torch
from predictions import ended, rows, run, save_student, start, write
from small_models import ALL_CONFIGS, student, utterances
from transformers import Wav2Vec2FeatureExtractor

from cmkd.predict.engines import ModelChoice, load_engine

pytestmark = pytest.mark.slow


@pytest.fixture
def sounds(tmp_path):
    """Of lengths for which the encoder as a whole would have to be compiled three times."""
    for number, seconds in enumerate((0.3, 0.9, 2.1)):
        write(tmp_path / f"sounds/{number}.wav", seconds, number)
    return tmp_path / "sounds"


@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="no C++ compiler on this machine")
def test_a_compiled_student_gives_the_same_scores(python, sounds, tmp_path, monkeypatch):
    model, compiled = save_student(tmp_path / "model"), tmp_path / "compiled"
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(compiled))
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "1")
    common = ("--model", model, "--readers", 0, "--summary", "false", "--embeddings")
    ended(start(python.executable, sounds, *common, "--output", tmp_path / "out", "--compile"))
    assert list(compiled.glob("**/*.so"))  # what the compiler has made
    run([sounds], model, tmp_path / "plain", embeddings=True)
    found, expected = rows(tmp_path / "out"), rows(tmp_path / "plain")
    assert len(found) == len(expected) == 3
    for row, other in zip(found, expected, strict=True):
        assert row.pop("embedding") == pytest.approx(other.pop("embedding"), abs=1e-5)
        ratings = [name for name in row if name.endswith("_rating")]  # on a scale that is six times as wide
        assert [row.pop(name) for name in ratings] == pytest.approx([other.pop(name) for name in ratings], abs=6e-5)
        assert row == pytest.approx(other, abs=1e-5)
    assert max(row["valence"] for row in expected) - min(row["valence"] for row in expected) > 1e-3


def test_without_a_compiler_it_says_so_and_scores_nothing(sounds, tmp_path, monkeypatch):
    model, output = save_student(tmp_path / "model"), tmp_path / "out"
    monkeypatch.setenv("CXX", str(tmp_path / "no_compiler"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    process = start(sys.executable, sounds, "--model", model, "--output", output, "--readers", 0, "--compile")
    text = ended(process, 1)
    assert "--compile: torch" in text and "no_compiler" in text and "leave --compile out" in text
    assert "Traceback" not in text and not output.exists()


def test_one_layer_is_compiled_for_all_layers_and_lengths(sounds, tmp_path, monkeypatch):
    """Counted by a compiler of our own in place of torch's, which is slow."""
    graphs = []

    def count(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    compile_layer = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda layer, **options: compile_layer(layer, backend=count, **options)
    )
    torch.compiler.reset()
    network = load_engine(ModelChoice(str(save_student(tmp_path / "model")), compile=True))
    plain = load_engine(ModelChoice(str(tmp_path / "model")))
    for item in utterances(student(ALL_CONFIGS["hubert"]), (0.2, 0.5, 1.1, 2.3, 4.9)):
        (wave,) = item["input_values"].numpy()
        for found, expected in zip(network.run([wave]), plain.run([wave]), strict=True):
            assert found == pytest.approx(expected, abs=1e-6)
    assert len(graphs) == 1
    torch.compiler.reset()


def test_an_encoder_without_layers_is_not_said_to_be_compiled(tmp_path):
    student(ALL_CONFIGS["cpc"]).save_pretrained(tmp_path)
    Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"--compile: an encoder of the kind cmkd_cpc has no layers to compile"):
        load_engine(ModelChoice(str(tmp_path), compile=True))
