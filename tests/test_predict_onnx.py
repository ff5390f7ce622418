"""`cmkd predict --model x.onnx`: the rows that torch gives, where neither torch nor transformers is installed."""

import os
import subprocess
import sys

import numpy as np
import pytest
from predictions import ROOT, rows, run, save_student, write

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
        timeout=300,
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
        ({"dtype": "bfloat16"}, "--dtype bfloat16: applies to models that torch runs, .* export it so"),
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
