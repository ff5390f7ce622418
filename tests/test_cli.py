"""The command `cmkd`."""

import importlib
import inspect
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from command import call
from small_recognizers import make_ctc

from cmkd.commands import COMMANDS, GROUPS
from cmkd.corpora import CORPORA
from cmkd.corpora.settings import REQUIRED, corpus_settings

DEMO = Path(__file__).parents[1] / "recipes/demo.yaml"


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


def test_prepare_prints_the_card_and_writes_it_beside_the_data(corpus, tmp_path):
    code, output, _ = call("prepare", "manifest", corpus, "--corpus.label_scale", "1", "7")
    assert code == 0 and "manifest" in output and "validation" in output
    card = json.loads((corpus / "cmkd_manifest_card.json").read_text())
    assert card["utterances"] == {"train": 2, "validation": 1, "test": 1} and card["label_scale"] == [1, 7]
    code, _, _ = call("prepare", "manifest", corpus, "--corpus.label_scale", "1", "7", "--card", tmp_path / "card.json")
    assert code == 0 and json.loads((tmp_path / "card.json").read_text()) == card
    table = corpus / "manifest.csv"
    (corpus / "cmkd_manifest_card.json").unlink()
    assert call("prepare", "manifest", "--corpus.label_scale", "1", "7", "--corpus.manifest", table)[0] == 0
    assert (corpus / "cmkd_manifest_card.json").is_file()


def test_a_card_that_cannot_be_written_is_said(corpus):
    (corpus / "cmkd_manifest_card.json").mkdir()
    code, output, error = call("prepare", "manifest", corpus, "--corpus.label_scale", "1", "7")
    assert code == 1 and "validation" in output
    assert "the card cannot be written to" in error and "Pass --card PATH" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["manifest", "{corpus}"], "the corpus 'manifest' needs 'label_scale'"),
        (["manifets", "{corpus}"], "name is 'manifets', but must be one of .* Did you mean 'manifest'?"),
        (["manifest", "nowhere", "--corpus.label_scale", "1", "7"], "'nowhere', but no such folder exists"),
        (["manifest", "{corpus}", "--corpus.label_scale", "2", "7"], "manifest.csv:2.*outside the scale"),
    ],
)
def test_errors_are_one_message_and_exit_code_1(corpus, arguments, message):
    code, _, error = call("prepare", *(argument.format(corpus=corpus) for argument in arguments))
    assert code == 1 and error.startswith("cmkd prepare: ") and "Traceback" not in error
    assert re.search(message, error.replace("\n", " "))


def test_rows_with_problems_are_left_out_on_request(corpus):
    code, output, _ = call("prepare", "manifest", corpus, "--corpus.label_scale", "2", "7", "--corpus.on_error", "skip")
    assert code == 0 and "left out: 1 row: outside the scale (1)" in output


def test_transcribe_and_prepare_with_the_result(corpus, tmp_path):
    make_ctc(tmp_path / "models/tiny/ctc", "layer")
    sidecar = tmp_path / "t.parquet"
    arguments = ["transcribe", "manifest", corpus, "--corpus.label_scale", "1", "7", "--model", "tiny/ctc"]
    arguments += ["--models_dir", tmp_path / "models", "--output", sidecar]
    code, output, _ = call(*arguments)
    assert code == 0 and "4 utterances" in output and "by 1 process," in output
    assert pq.read_table(sidecar)["id"].to_pylist() == ["u0", "u1", "u2", "u3"]
    code, output, _ = call(*arguments)
    assert code == 0 and "0 utterances" in output and "4 utterances had been before" in output
    code, output, _ = call(
        "prepare", "manifest", corpus, "--corpus.label_scale", "1", "7", "--corpus.transcripts", sidecar
    )
    assert code == 0 and "transcripts: 4 by tiny/ctc (sha256-" in output
    code, _, error = call(*arguments[:-2], "--output", tmp_path / "t.csv")
    assert code == 1 and error.startswith("cmkd transcribe: output is")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["manifest", "{corpus}", "--corpus.label_scal", "1"],
            "label_scal, .* Perhaps you meant: --corpus.label_scale",
        ),
        (["manifest", "{corpus}", "--set", "label_scale=[1, 7]"], "Unrecognized options: --set"),
        (["manifest", "{corpus}", "--corpus.name", "iemocap"], "Unrecognized options: --corpus.name"),
        (["iemocap", "{corpus}", "--corpus.fold", "one"], "--corpus.fold: 'one', but must be a whole number"),
        (
            ["iemocap", "{corpus}", "--corpus.on_error", "ignore"],
            "invalid choice 'ignore' for argument",
        ),
        (["manifest", "{corpus}", "--corpus.columns", "valence"], "'valence', but must be a mapping in YAML"),
        (["manifest", "{corpus}", "--corpus.streaming", "maybe"], "'maybe', but must be true or false"),
        ([], "NAME The corpus"),
    ],
)
def test_wrong_options_are_named_and_exit_code_2(corpus, arguments, message):
    code, output, error = call("prepare", *(argument.format(corpus=corpus) for argument in arguments))
    assert code == 2 and not output and "Traceback" not in error
    assert re.search(message, " ".join(error.replace("│", " ").split())), error


def test_help_shows_each_description_whole_whatever_lines_its_docstring_has(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    lines = [" ".join(line.strip("│ ").split()) for line in call("evaluate", "--help")[1].splitlines()]
    whole = "the predictions and the figures to; null writes none. An earlier evaluation in it is replaced."
    assert any(whole in line for line in lines), lines
    assert any(f"The corpus: {', '.join(CORPORA)}." in line for line in lines), lines


def test_a_command_that_is_not_there_suggests_the_nearest():
    code, _, error = call("prepair")
    assert code == 2 and "there is no command 'prepair'. Did you mean 'prepare'?" in error


def test_options_may_have_hyphens_and_columns_are_a_mapping(corpus):
    table = (corpus / "manifest.csv").read_text()
    (corpus / "manifest.csv").write_text(table.replace("valence", "mood"))
    columns = "{valence: mood, dominance: null}"
    code, _, error = call("prepare", "manifest", corpus, "--corpus.columns", columns, "--corpus.label-scale", "1", "7")
    assert code == 0, error
    card = json.loads((corpus / "cmkd_manifest_card.json").read_text())
    assert card["labels"]["train"]["valence"]["mean"] == 1.5 and card["config"]["columns"]["dominance"] is None


def test_a_release_is_text(corpus):
    """A number would be 1.2."""
    code, _, error = call("prepare", "msp-podcast", corpus, "--corpus.release", "1.20")
    assert code == 1 and "release is '1.20', but must be" in error


@pytest.mark.parametrize(
    "words",
    [
        *((name,) for name in COMMANDS),
        *(("prepare", name) for name in CORPORA),
        ("train", str(DEMO)),
        ("crossval", str(DEMO)),
    ],
    ids=lambda words: "-".join(Path(word).stem for word in words),
)
def test_help_fits_a_terminal_and_describes_everything(words, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, output, error = call(*words, "--help")
    assert code == 0 and not error
    assert [line for line in output.splitlines() if len(line) > 80] == []
    assert re.search(f"^    .*cmkd {words[0]}", output, flags=re.MULTILINE)
    assert "…" not in output and "[...]" not in output.replace("[...]]", "") and "(default: )" not in output
    options = re.split(r"^│ (?=[-\[A-Z])", output, flags=re.MULTILINE)[1:]
    assert any(option.startswith("-h, --help") for option in options)
    assert all(len(re.findall(r"[A-Za-z]{2,}", option)) > 3 for option in options), options


def test_an_example_that_is_broken_is_still_one_command(monkeypatch):
    """As a shell reads it, and no option is parted from its value."""
    monkeypatch.setenv("COLUMNS", "60")
    output = call("predict", "--help").stdout
    lines = output.partition("usage:")[0].replace("\\\n", "").splitlines()
    commands = [shlex.split(line) for line in lines if line.startswith("    ")]
    expected = "cmkd predict s3://bucket/calls --model user/cmkd-student --output scores --channel each --format csv"
    assert expected.split() in commands
    assert "        --channel each --format csv\n" in output


def test_the_overview_has_every_command_whole(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, output, _ = call("--help")
    assert code == 0 and call()[1] == output
    assert all(len(line) <= 80 for line in output.splitlines())
    text = " ".join(output.split())
    for group, commands in GROUPS.items():
        assert f"{group}:" in text
        for name, (_, sentence) in commands.items():
            assert f"{name} {sentence}" in text and sentence.endswith(".")


@pytest.mark.parametrize("name", CORPORA)
def test_the_settings_of_a_corpus_are_those_of_its_builder(name, monkeypatch):
    """Which are read from its source; here with what Python says of the function."""
    build = importlib.import_module(CORPORA[name]).build
    hints = get_type_hints(build)
    expected = {
        parameter.name: (hints[parameter.name], parameter.default)
        for parameter in inspect.signature(build).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    found = corpus_settings(name)
    assert found.keys() == {"data_dir", "on_error", *expected}
    for key, (annotation, default) in expected.items():
        assert found[key].annotation == annotation
        assert found[key].default == (REQUIRED if default is inspect.Parameter.empty else default)
        assert found[key].default is REQUIRED or type(found[key].default) is type(default)
    monkeypatch.setenv("COLUMNS", "200")
    text = " ".join(call("prepare", name, "--help")[1].replace("│", " ").split())
    for key, setting in found.items():
        assert setting.description.endswith(".")
        if key != "data_dir":
            assert f"--corpus.{key} " in text and setting.description in text


def test_help_is_quick_and_shows_examples(tmp_path):
    assert "    cmkd prepare iemocap path/to/IEMOCAP_full_release --corpus.fold 1\n" in call("prepare", "--help").stdout
    assert "    accelerate launch -m cmkd transcribe" in call("transcribe", "--help").stdout
    for arguments in (
        ["--help"],
        ["prepare", "iemocap", "--help"],
        ["evaluate", "--help"],
        ["train", str(DEMO), "--help"],
    ):
        program = f"""
import sys
from cmkd.commands import main
try:
    main({arguments})
except SystemExit as end:
    assert end.code == 0
print(*sys.modules)
"""
        result = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=900
        )
        imported = {name.split(".")[0] for name in result.stdout.splitlines()[-1].split()}
        assert "cmkd" in imported
        heavy = {"torch", "transformers", "datasets", "numpy", "accelerate", "pyarrow", "soundfile", "scipy"}
        assert imported.isdisjoint(heavy), arguments


def test_python_runs_the_package():
    done = subprocess.run([sys.executable, "-m", "cmkd", "prepare"], capture_output=True, text=True, timeout=900)
    assert done.returncode == 2 and "cmkd prepare --help" in done.stderr


@pytest.mark.slow
def test_train_is_train_distill(python, tmp_path):
    """What it does is tested in test_train_distill.py; here that it is that file, and how it ends."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("corpus: {name: manifest, label_scale: [1, 7], data_dir: nowhere}\nnum_epochs: 1\n")
    models = [f"--{name}" for name in ("student_speech_encoder", "teacher_speech_encoder", "text_encoder")]
    arguments = [word for model in models for word in (model, "./nothing")]
    said = {}
    for command in (["-m", "cmkd", "train"], [str(Path(__file__).parents[1] / "train_distill.py")]):
        words = [python.executable, *command, str(recipe), *arguments]
        done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, timeout=900)
        assert done.returncode == 1 and not done.stdout
        prefix, _, said[len(command)] = done.stderr.partition(": ")
        assert prefix == ("cmkd train" if len(command) > 1 else "train_distill")
    assert len(set(said.values())) == 1 and "student_speech_encoder='./nothing'" in said[1]


@pytest.mark.parametrize(
    ("command", "message"), [("cache", "at least one folder"), ("table", "at least one folder of a run")]
)
def test_a_list_that_is_empty_is_refused(command, message):
    code, _, error = call(command)
    assert code == 1 and message in error
