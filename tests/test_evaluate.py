"""`cmkd evaluate`: the scores of a run's checkpoints are those of the run, and what cannot be scored is said."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from local_hub import LocalHub
from scipy.stats import pearsonr
from tones import write_recipe

import train_distill
from cmkd.commands import main
from configuration_cmkd import EMOTION_DIMENSIONS

pytestmark = pytest.mark.usefixtures("quick_figures")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a corpus, and a run of a teacher that hears and reads, a text-only system and a student."""
    recipe = write_recipe(tmp_path_factory.mktemp("tones"), num_epochs=2, stages=["text", "teacher", "cts"])
    train_distill.main([str(recipe)])
    return recipe.parent


def evaluate(place: Path, model: str, *more) -> dict:
    """The content of evaluation.json."""
    corpus = ["manifest", str(place / "corpus"), "--corpus.label_scale", "1", "7"]
    main(["evaluate", str(place / model), *corpus, "--output", str(place / "evaluation"), *map(str, more)])
    return json.loads((place / "evaluation/evaluation.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "stage", "more"),
    [
        ("run", "cts", []),
        ("run/cts", "cts", ["--batch_size", "3"]),
        ("run", "teacher", ["--stage", "teacher"]),
        ("run", "text", ["--stage", "text"]),
    ],
)
def test_the_scores_of_a_run_are_its_own(place, model, stage, more):
    splits = ("train", "validation", "test")
    found = evaluate(place, model, "--splits", *splits, *more)
    expected = json.loads((place / "run/results.json").read_text())
    assert found["schema_version"] == 1 and found["model"]["stage"] == stage
    assert found["corpus"] == expected["corpus"] and found["corpus"]["digest"]
    assert found["versions"] == expected["versions"]
    for split in splits:
        of_run, here = expected["systems"][stage][split], found["splits"][split]
        assert here["n"] == of_run["n"]
        for metric in ("ccc", "pearson", "mae"):
            assert here[metric] == pytest.approx(of_run[metric], abs=1e-5)  # from predictions that agree to 1e-6
        for name in EMOTION_DIMENSIONS:
            assert here["interval"][name] == pytest.approx(of_run["interval"][name], abs=1e-5)
        columns = ["id", *EMOTION_DIMENSIONS, *(f"predicted_{name}" for name in EMOTION_DIMENSIONS)]
        table, of_table = (
            pq.read_table(path).to_pandas()
            for path in (
                place / f"evaluation/predictions/{split}.parquet",
                place / f"run/predictions/{stage}_{split}.parquet",
            )
        )
        assert list(table["id"]) == list(of_table["id"])
        np.testing.assert_allclose(table[columns[1:]], of_table[columns[1:]], atol=1e-6)
        assert here["pearson"]["valence"] == pytest.approx(pearsonr(table["valence"], table["predicted_valence"])[0])


def test_what_is_printed_and_written(place, capsys):
    found = evaluate(place, "run", "--splits", "validation", "test")
    said = capsys.readouterr().out
    assert f"run/student at {found['model']['commit']}" in said and found["model"]["commit"].startswith("sha256-")
    test = found["splits"]["test"]
    words = said.partition("test, 8 utterances")[2].split()
    assert words[:4] == ["CCC", *(f"{test['ccc'][name]:.3f}" for name in EMOTION_DIMENSIONS)]
    ends = [f"[{low:.3f}, {high:.3f}]" for low, high in test["interval"].values()]
    assert words[4:11] == ["interval", *" ".join(ends).split()]
    table = said.partition("In brackets")[0]
    assert max(len(line) for line in table.splitlines()) <= 80
    assert "the 4 speakers of validation and the 4 speakers of test" in said
    files = {str(path.relative_to(place / "evaluation")) for path in (place / "evaluation").rglob("*.*")}
    parts = {
        f"{kind}/{name}" for kind, name in (("predictions", "test.parquet"), ("predictions", "validation.parquet"))
    }
    assert files == {"evaluation.json", "figures/predictions_test.png", "figures/predictions_validation.png", *parts}
    assert str(place) not in json.dumps(found["model"])


def test_another_corpus_on_another_scale(place, tmp_path):
    """Half of the test sounds, rated from 0 to 10 in valence alone, by nobody who is known."""
    lines = (place / "corpus/manifest.csv").read_text().splitlines()
    rows = [line.split(",") for line in lines if line.startswith("test_")][::2]
    other = [f"{row[0]},{place}/corpus/{row[1]},{(float(row[4]) - 1) / 6 * 10:.6f},test" for row in rows]
    (tmp_path / "other.csv").write_text("\n".join(["id,audio,valence,split", *other]) + "\n")
    output = tmp_path / "evaluation"
    main(
        f"evaluate {place}/run manifest {place}/corpus --corpus.manifest {tmp_path}/other.csv "
        f"--corpus.label_scale 0 10 --output {output}".split()
    )
    found = json.loads((output / "evaluation.json").read_text())
    of_run = pq.read_table(place / "run/predictions/cts_test.parquet").to_pandas().set_index("id")
    table = pq.read_table(output / "predictions/test.parquet").to_pandas().set_index("id")
    assert list(table.index) == [row[0] for row in rows]
    expected = of_run.loc[table.index]
    np.testing.assert_allclose(table["predicted_valence"], expected["predicted_valence"], atol=1e-6)
    np.testing.assert_allclose(table["valence"], expected["valence"], atol=1e-6)
    assert found["splits"]["test"]["ccc"]["dominance"] is None
    assert found["notes"] == [
        f"{name} is not scored on test: the column {name} of the corpus holds no rating."
        for name in ("activation", "dominance")
    ]


@pytest.mark.parametrize(
    ("model", "more", "message"),
    [
        ("run", ["--splits", "dev"], "the corpus has no split 'dev'; it has train, validation, test"),
        (
            "run",
            ["--stage", "techer"],
            "stage is 'techer', but must be one that rates: .* Did you mean 'teacher'",
        ),
        ("run", ["--stage", "ts"], "has no ts/ with a config.json: it has text, teacher, cts; name one of them"),
        ("run/cts", ["--stage", "cts"], "is one checkpoint, not a run: leave it out"),
        ("run", ["--revision", "main"], "is a folder, which has no revisions"),
        ("tones/speech", [], "of the model type 'hubert', but must be one of cmkd_student, cmkd_teacher"),
        ("corpus", [], "has no student/ with a config.json: neither"),
        ("run", ["--corpus.streaming"], "corpus.streaming is true, but an evaluation takes a whole corpus"),
        ("run", ["--batch_size", "0"], "--batch_size is 0, but must be 1 or more"),
    ],
)
def test_what_cannot_be_scored_is_said(place, model, more, message):
    with pytest.raises(SystemExit, match=message):
        evaluate(place, model, *more)


def test_a_model_that_reads_needs_words(place, tmp_path):
    lines = (place / "corpus/manifest.csv").read_text().splitlines()
    cells = [line.split(",") for line in lines]
    (tmp_path / "other.csv").write_text("\n".join(",".join([*row[:2], *row[3:]]) for row in cells) + "\n")
    more = ["--stage", "teacher", "--corpus.manifest", tmp_path / "other.csv"]
    with pytest.raises(SystemExit, match="the column transcript of test is empty in every row: let `cmkd transcribe`"):
        evaluate(place, "run", *more)
    said = evaluate(place, "run", "--stage", "teacher")["notes"]
    assert said == ["2 of 8 utterances of test have no transcript."]


@pytest.mark.slow
def test_an_output_that_holds_something_else_stays(place, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(SystemExit, match="is there, and holds no evaluation.json: give --output another folder"):
        evaluate(place, "run", "--output", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_run_of_several_seeds_is_asked_for_one(place, tmp_path):
    for seed in (0, 1):
        shutil.copytree(place / "run", tmp_path / f"seeds/seed_{seed}")
    corpus = ["manifest", str(place / "corpus"), "--corpus.label_scale", "1", "7"]
    with pytest.raises(SystemExit, match="it holds several runs; name one of them, such as .*seeds/seed_0"):
        main(["evaluate", str(tmp_path / "seeds"), *corpus])


@pytest.mark.slow
def test_a_model_on_the_hub_is_scored_at_the_commit_that_it_is(python, place, tmp_path):
    """In a process that takes a server on this machine for the Hub, and runs no code of the repository."""
    files = {path.name: path.read_bytes() for path in (place / "run/student").iterdir() if path.is_file()}
    files |= {name: b"raise SystemExit('this was run')" for name in files if name.endswith(".py")}
    words = ["evaluate", "user/student", "manifest", str(place / "corpus"), "--corpus.label_scale", "1", "7"]
    with LocalHub() as hub:
        hub.make("models", "user/student", files, private=False)
        environment = os.environ | hub.environment(tmp_path) | {"PYTHONPATH": str(Path(__file__).parents[1])}
        environment["HF_DATASETS_CACHE"] = str(tmp_path / "datasets")
        command = [python.executable, "-m", "cmkd", *words, "--revision", "main", "--output", "evaluation"]
        options = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True}
        done = subprocess.run(command, timeout=900, **options)
        assert done.returncode == 0, done.stderr
        missing = subprocess.run([*command[:4], "user/nobody", *command[5:]], timeout=900, **options)
        commit = hub.repositories["models", "user/student"].branches["main"]
    found = json.loads((tmp_path / "evaluation/evaluation.json").read_text())
    assert (found["model"]["name"], found["model"]["commit"]) == ("user/student", commit)
    expected = json.loads((place / "run/results.json").read_text())["systems"]["cts"]["test"]
    assert found["splits"]["test"]["ccc"] == pytest.approx(expected["ccc"], abs=1e-6)
    assert missing.returncode == 1 and "Traceback" not in missing.stderr
    assert "'user/nobody' is neither a folder nor can it be had from the Hub" in missing.stderr
