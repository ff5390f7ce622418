"""`cmkd predict --model x.onnx`: the rows that torch gives, where neither torch nor transformers is installed."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from predictions import ROOT, rows, run, save_student, write

from cmkd.predict.engines import ModelChoice, load_engine
from configuration_cmkd import EMOTION_DIMENSIONS

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

PROGRAM = """
import importlib.abc, sys
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "accelerate", "datasets"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
from cmkd.commands import main
main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A student, and the graph of it."""
    from cmkd.export.folder import export_folder

    folder = tmp_path_factory.mktemp("models")
    model = save_student(folder / "model")
    export_folder(str(model), folder / "exported", (), None, False)
    return model, folder / "exported" / "model.onnx"


@pytest.mark.slow
def test_a_graph_scores_as_torch_does_without_torch(models, tmp_path):
    model, graph = models
    for number in range(5):
        write(tmp_path / "in" / f"{number}.flac", 0.1 + number, number, rate=8000, channels=1 + number % 2)
    (tmp_path / "in" / "broken.wav").write_bytes(b"x")
    options = {"window": 1.5, "hop": 1, "channel": "each"}
    run([tmp_path / "in"], model, tmp_path / "torch", embeddings=True, timeline=True, **options)
    arguments = [name for key, value in options.items() for name in (f"--{key}", str(value))]
    arguments += ["--output", str(tmp_path / "onnx"), "--embeddings", "--timeline", "--labels", "elan"]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "predict", str(tmp_path / "in"), "--model", str(graph), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 3, done.stderr
    for table in ("scores", "timeline"):
        ours, theirs = rows(tmp_path / "onnx", table), rows(tmp_path / "torch", table)
        exact = ("number", "source", "channel", "start", "end", "silent")
        assert [[row[name] for name in exact] for row in ours] == [[row[name] for name in exact] for row in theirs]
        for name in (*EMOTION_DIMENSIONS, "embedding"):
            np.testing.assert_allclose([row[name] for row in ours], [row[name] for row in theirs], atol=1e-5)
    assert rows(tmp_path / "onnx", "errors") == rows(tmp_path / "torch", "errors")
    assert (tmp_path / "onnx/summary.html").exists() and (tmp_path / "in/0.flac.cmkd.eaf").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"dtype": "bfloat16"},
            "--dtype bfloat16: .* leave --dtype out, or name the model that the graph was made of",
        ),
        ({"dtype": "float16"}, "--dtype float16: .* or the model_fp16.onnx of cmkd export --fp16"),
        ({"dtype": "int8"}, "--dtype int8: .* name the model_int8_activations.onnx of cmkd export --int8_activations"),
        ({"device": "cpu"}, "--device cpu: applies to models that torch runs"),
        ({"model": "nowhere.onnx"}, "there is no file 'nowhere.onnx'"),
    ],
)
def test_what_is_not_for_a_graph_is_refused(models, tmp_path, options, message):
    options = {"model": models[1]} | options
    with pytest.raises((ValueError, OSError), match=message):
        run([write(tmp_path / "a.wav", 0.2)], output=tmp_path / "out", **options)


def test_a_graph_does_not_go_on_with_what_torch_has_scored(models, tmp_path):
    source = write(tmp_path / "a.wav", 0.5)
    run([source], models[0], tmp_path / "out")
    with pytest.raises(ValueError, match="was made with the model"):
        run([source], models[1], tmp_path / "out")


def test_one_switch_gives_the_same_scores(models, tmp_path, monkeypatch):
    """`--runtime onnx` exports what it needs once, and its rows are torch's."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    model, _ = models
    for number in range(5):
        write(tmp_path / "in" / f"{number}.wav", 0.3 + number, number)
    run([tmp_path / "in"], model, tmp_path / "torch", embeddings=True)
    run([tmp_path / "in"], model, tmp_path / "onnx", embeddings=True, runtime="onnx")
    (graph,) = (tmp_path / "home").glob("cmkd/graphs/*/model.onnx")
    made = graph.stat().st_mtime_ns
    run([tmp_path / "in"], model, tmp_path / "again", runtime="onnx")
    assert graph.stat().st_mtime_ns == made
    ours, theirs = rows(tmp_path / "onnx"), rows(tmp_path / "torch")
    assert [row["source"] for row in ours] == [row["source"] for row in theirs] and len(ours) == 5
    for name in (*EMOTION_DIMENSIONS, "embedding"):
        np.testing.assert_allclose([row[name] for row in ours], [row[name] for row in theirs], atol=1e-5)
    assert [row["valence"] for row in rows(tmp_path / "again")] == [row["valence"] for row in ours]
    with pytest.raises(ValueError, match="was made with the model .*/fp32.*, but now it is"):
        run([tmp_path / "in"], model, tmp_path / "again")


@pytest.mark.slow
def test_int8_is_near_and_of_one_runtime(models, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    model, _ = models
    sources = [write(tmp_path / "in" / f"{number}.wav", 0.5 + number, number) for number in range(3)]
    run(sources, model, tmp_path / "fp32", runtime="onnx")
    run(sources, model, tmp_path / "int8", runtime="onnx", dtype="int8")
    ours, theirs = (np.array([row["valence"] for row in rows(tmp_path / name)]) for name in ("int8", "fp32"))
    assert 1e-7 < np.abs(ours - theirs).max() < 0.03
    for options, message in (
        ({"dtype": "int8"}, "--dtype int8: is for ONNX Runtime; add --runtime onnx"),
        ({"dtype": "bfloat16", "runtime": "onnx"}, "--dtype bfloat16: with --runtime onnx it is float32 or int8"),
        (
            {"device": "cpu", "runtime": "onnx"},
            "--device cpu: applies to models that torch runs, not to --runtime onnx",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            run(sources, model, tmp_path / "refused", **options)


def test_a_graph_keeps_nothing_of_the_lengths_that_it_has_met(models):
    """It scores files of as many lengths as there are files."""
    network = load_engine(ModelChoice(str(models[1])))
    wave = 0.1 * np.random.default_rng(0).standard_normal(8000).astype(np.float32)
    memory = []
    for shorter in range(3000):
        network.run([wave[shorter:]])
        if shorter % 1500 == 499:
            memory.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
    assert memory[1] - memory[0] < 4e6, memory  # a plan for each of them would be 19 MB
