"""The command `cmkd`."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from small_recognizers import make_ctc
from typer.testing import CliRunner

from cmkd.cli import app


@pytest.fixture
def corpus(tmp_path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    lines = ["id,audio,transcript,valence,speaker,split"]
    for index, split in enumerate(("train", "train", "validation", "test")):
        soundfile.write(folder / f"{index}.wav", np.random.default_rng(index).normal(size=16000) * 0.1, 16000)
        lines.append(f"u{index},{index}.wav,,{index + 1},s{split},{split}")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    return folder


def run(*arguments) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def test_prepare_prints_the_card_and_writes_it_beside_the_data(corpus, tmp_path):
    code, output, _ = run("prepare", "manifest", corpus, "--set", "label_scale=[1, 7]")
    assert code == 0 and "manifest" in output and "validation" in output
    card = json.loads((corpus / "cmkd_manifest_card.json").read_text())
    assert card["utterances"] == {"train": 2, "validation": 1, "test": 1} and card["label_scale"] == [1, 7]
    code, _, _ = run("prepare", "manifest", corpus, "--set", "label_scale=[1, 7]", "--card", tmp_path / "card.json")
    assert code == 0 and json.loads((tmp_path / "card.json").read_text()) == card
    table = corpus / "manifest.csv"
    (corpus / "cmkd_manifest_card.json").unlink()
    assert run("prepare", "manifest", "--set", "label_scale=[1, 7]", "--set", f"manifest={table}")[0] == 0
    assert (corpus / "cmkd_manifest_card.json").is_file()


def test_a_card_that_cannot_be_written_is_said(corpus):
    (corpus / "cmkd_manifest_card.json").mkdir()
    code, output, error = run("prepare", "manifest", corpus, "--set", "label_scale=[1, 7]")
    assert code == 1 and "validation" in output
    assert "the card cannot be written to" in error and "Pass --card PATH" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["manifest", "{corpus}"], "the corpus 'manifest' needs 'label_scale'"),
        (["manifets", "{corpus}"], "name is 'manifets', but must be one of .* Did you mean 'manifest'?"),
        (
            ["manifest", "{corpus}", "--set", "label_scal=[1, 7]"],
            "no setting 'label_scal'.* Did you mean 'label_scale'?",
        ),
        (["manifest", "{corpus}", "--set", "label_scale"], "--set 'label_scale': expected KEY=VALUE"),
        (["manifest", "{corpus}", "--set", "on_error=skip"], "--set on_error: this is not a setting"),
        (["manifest", "nowhere", "--set", "label_scale=[1, 7]"], "'nowhere', but no such folder exists"),
        (["manifest", "{corpus}", "--set", "label_scale=[2, 7]"], "manifest.csv:2.*outside the scale"),
    ],
)
def test_errors_are_one_message_and_exit_code_1(corpus, arguments, message):
    code, _, error = run("prepare", *(argument.format(corpus=corpus) for argument in arguments))
    assert code == 1 and error.startswith("cmkd prepare: ") and "Traceback" not in error
    assert re.search(message, error.replace("\n", " "))


def test_rows_with_problems_are_left_out_on_request(corpus):
    code, output, _ = run("prepare", "manifest", corpus, "--set", "label_scale=[2, 7]", "--on-error", "skip")
    assert code == 0 and "left out: 1 row: outside the scale (1)" in output


def test_transcribe_and_prepare_with_the_result(corpus, tmp_path):
    make_ctc(tmp_path / "models/tiny/ctc", "layer")
    sidecar = tmp_path / "t.parquet"
    arguments = ["transcribe", "manifest", corpus, "--set", "label_scale=[1, 7]", "--model", "tiny/ctc"]
    arguments += ["--models-dir", tmp_path / "models", "--output", sidecar]
    code, output, _ = run(*arguments)
    assert code == 0 and "4 utterances" in output and "by 1 process," in output
    assert pq.read_table(sidecar)["id"].to_pylist() == ["u0", "u1", "u2", "u3"]
    code, output, _ = run(*arguments)
    assert code == 0 and "0 utterances" in output and "4 utterances had been before" in output
    code, output, _ = run(
        "prepare", "manifest", corpus, "--set", "label_scale=[1, 7]", "--set", f"transcripts={sidecar}"
    )
    assert code == 0 and "transcripts: 4 by tiny/ctc (sha256-" in output
    code, _, error = run(*arguments[:-2], "--output", tmp_path / "t.csv")
    assert code == 1 and error.startswith("cmkd transcribe: output is")


def test_help_is_quick_and_shows_examples():
    code, output, _ = run("prepare", "--help")
    assert code == 0 and "cmkd prepare iemocap path/to/IEMOCAP_full_release --set fold=1" in output
    code, output, _ = run("transcribe", "--help")
    assert code == 0 and "accelerate launch -m cmkd.cli transcribe" in output
    program = "import sys, cmkd.cli; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=300)
    imported = {name.split(".")[0] for name in result.stdout.split()}
    assert imported.isdisjoint({"torch", "transformers", "datasets", "numpy", "accelerate", "pyarrow", "soundfile"})
