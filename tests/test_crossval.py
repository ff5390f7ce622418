"""Cross-validation on noise in IEMOCAP's layout: what runs, what is pooled, what is said."""

import json
import shutil
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from formulas import ccc
from launching import output_of, start_processes
from warm import module

import train_distill
from benchmarks.stand_ins import write_encoder, write_iemocap
from cmkd.features import store as feature_store
from cmkd.runs import crossval
from cmkd.runs.crossval import cross_validate, format_folds, gather_folds
from cmkd.scoring.evaluation import read_predictions, write_predictions
from cmkd.scoring.scores import score_systems
from configuration_cmkd import EMOTION_DIMENSIONS

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_figures")]

ROOT = Path(__file__).parent.parent
RECIPES = ROOT / "recipes/iemocap"
TEACHER, STUDENT = "t3_04_teacher_hubert_base_bert_base", "t3_06_cts_hubert_base"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("folds")
    for name in ("facebook/hubert-base-ls960", "bert-base-uncased"):
        write_encoder(name, folder / "models", small=True)
    write_iemocap(folder / "iemocap", turns=3, seconds=0.3)
    return folder


@pytest.fixture(scope="module", autouse=True)
def patched(tmp_path_factory):
    """Runs folds in this process, with one file of stored features per utterance: a fold has too few to fill a file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("folds_cache"))
        patch.setattr(crossval, "run_fold", lambda arguments, log: train_distill.main(arguments))
        patch.setattr(feature_store, "CHUNK", 1)
        yield


def arguments(place: Path, name: str, runs: str = "runs") -> list[str]:
    found = ["--corpus.data_dir", str(place / "iemocap"), "--models_dir", str(place / "models")]
    found += ["--output_dir", str(place / runs / name), "--cache_dir", str(place / "cache")]
    return [*found, "--num_epochs", "1", "--batch_size", "4"]


def run(place: Path, name: str, *more: str):
    return cross_validate(RECIPES / f"{name}.yaml", [*arguments(place, name), *more])


@pytest.fixture(scope="module")
def results(place, patched):
    """The results of the student, whose teacher is trained first."""
    for name in (TEACHER, STUDENT):
        found = run(place, name)
    return found


def test_every_utterance_is_tested_once_and_the_scores_are_of_the_pooled_and_of_the_folds(place, results):
    output = place / "runs" / STUDENT
    assert json.loads((output / "results.json").read_text()) == results
    table = pq.read_table(output / "predictions/cts_test.parquet").to_pandas()
    assert len(table) == table["id"].nunique() == 5 * 2 * 3
    each = []
    for fold in range(1, 6):
        part = pq.read_table(output / f"fold_{fold}/predictions/cts_test.parquet").to_pandas()
        assert set(part["id"].str[:5]) == {f"Ses0{fold}"}
        each.append(part)
    for name in EMOTION_DIMENSIONS:
        folds = [ccc(part[f"predicted_{name}"], part[name]) for part in each]
        assert results["folds"]["mean"]["cts"][name] == pytest.approx(np.mean(folds), abs=1e-9)
        assert results["folds"]["std"]["cts"][name] == pytest.approx(np.std(folds, ddof=1), abs=1e-9)
        pooled = ccc(table[f"predicted_{name}"], table[name])
        assert results["systems"]["cts"]["test"]["ccc"][name] == pytest.approx(pooled, abs=1e-9)
        assert abs(pooled - np.mean(folds)) > 1e-6  # they are two things
    assert results["corpus"]["utterances"] == {"test": 30} and results["corpus"]["speakers"] == {"test": 10}
    assert "fold" not in results["recipe"]["corpus"]
    said = format_folds(results)
    assert f"{results['folds']['mean']['cts']['valence']:.3f} ± {results['folds']['std']['cts']['valence']:.3f}" in said


def test_a_student_learns_from_the_teacher_of_its_own_fold(place, results):
    for fold in (1, 5):
        conditioning = pq.read_table(place / "runs" / STUDENT / f"fold_{fold}/conditioning/train.parquet")
        embeddings = pq.read_table(place / "runs" / TEACHER / f"fold_{fold}/teacher/train_embeddings.parquet")
        assert conditioning["id"].to_pylist() == embeddings["id"].to_pylist()
        assert conditioning["embedding"].to_pylist() == embeddings["embedding"].to_pylist()


def test_the_folds_share_what_the_frozen_layers_give(place, results):
    files = {folder.name: list(folder.glob("*.safetensors")) for folder in (place / "cache").iterdir()}
    speech = [len(found) for name, found in files.items() if name.startswith("speech")]
    # Of teacher and student, an utterance once, beside what another test with other files has stored.
    assert len(speech) == 2 and min(speech) == 30


def test_an_interrupted_fold_is_the_one_that_goes_on(place, monkeypatch, capsys):
    name, begun = "t3_03_bert_base", []

    def fail(given, log):
        begun.append(given[given.index("--corpus.fold") + 1])
        if begun[-1] == "3" and begun.count("3") == 1:
            raise ChildProcessError("killed")
        train_distill.main(given)

    monkeypatch.setattr(crossval, "run_fold", fail)
    with pytest.raises(ChildProcessError):
        run(place, name)
    assert not (place / "runs" / name / "results.json").exists()
    capsys.readouterr()
    run(place, name)
    said = capsys.readouterr().out
    assert said.count("text: complete, not repeated") == 2
    assert begun == ["1", "2", "3", "1", "2", "3", "4", "5"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--corpus.fold", "2"], "corpus.fold is 2, but cross-validation runs all folds"),
        (["--corpus.protocol", "loso"], "corpus.protocol is 'loso', but must be one of leave-one-session-out"),
        (["--hub_model_id", "user/folds"], "hub_model_id is 'user/folds', but every fold has a model of its own"),
        (["--seeds", "0", "1"], r"seeds is \[0, 1\], but a cross-validation takes one seed"),
        (["--corpus.name", "manifest"], "the corpus 'manifest' has no folds"),
    ],
)
def test_what_has_no_folds_is_refused(place, more, message):
    with pytest.raises(ValueError, match=message):
        run(place, TEACHER, *more)


def test_two_processes_share_the_folds(python, place, results):
    """As `accelerate launch -m cmkd crossval` runs it, each fold in a process of its own; of three folds."""
    command = ["crossval", str(RECIPES / f"{TEACHER}.yaml"), *arguments(place, TEACHER, "two")]
    code = f"from cmkd.runs.crossval import NUM_FOLDS; NUM_FOLDS[{crossval.PROTOCOL!r}] = 3; {module('cmkd')}"
    environment = {"HF_DATASETS_CACHE": str(place / "datasets")}
    said = output_of(start_processes(python, 2, code, *command, environment=environment, cwd=place))
    assert sorted(path.name for path in (place / "two" / TEACHER).glob("*.log")) == [
        f"fold_{k}.log" for k in range(1, 4)
    ]
    shutil.copytree(place / "runs" / TEACHER, place / "three" / TEACHER)
    one, two = (
        gather_folds(place / "three" / TEACHER, 3),
        json.loads((place / "two" / TEACHER / "results.json").read_text()),
    )
    for dimension in EMOTION_DIMENSIONS:
        assert two["folds"]["mean"]["teacher"][dimension] == pytest.approx(
            one["folds"]["mean"]["teacher"][dimension], abs=1e-4
        )
    assert "teacher, pooled" in said


def make_fold(folder: Path, fold: int, dominance: list[float]) -> None:
    """Writes the files of a fold's run that are gathered, with these ratings of dominance."""
    labels = np.array([[0.1, 0.2, 0.0], [0.4, 0.9, 0.0], [0.8, 0.3, 0.0]])
    labels[:, 2] = dominance
    names = [f"{fold}_{row}" for row in range(3)]
    predictions = labels[:, [0, 1, 0]] + 0.05 * fold
    file = folder / f"fold_{fold}/predictions/audio_test.parquet"
    write_predictions(file, names, predictions, labels, [f"s{fold}"] * 3, [""] * 3)
    scores = score_systems({"test": {"audio": read_predictions(file)}})
    sizes = {size: {"train": 6, "validation": 3, "test": 3} for size in ("utterances", "hours", "speakers")}
    cost = {"seconds": {"audio": 1.5}, "peak_memory_gb": 1.0, "processes": 1}
    results = {"corpus": {"name": "toys", "version": "1"} | sizes, "seed": 0, "versions": {}, "cost": cost, **scores}
    results["recipe"] = {"corpus": {"name": "toys"}}
    (folder / f"fold_{fold}/results.json").write_text(json.dumps(results))


@pytest.mark.parametrize("everywhere", [False, True])
def test_a_dimension_that_a_fold_has_no_ccc_of_is_said_to_have_none(tmp_path, everywhere):
    """Nobody rated dominance in fold 1, or in any."""
    nan = float("nan")
    for fold in range(1, 6):
        make_fold(tmp_path, fold, [nan] * 3 if fold == 1 or everywhere else [0.1, 0.5, 0.3])
    results = gather_folds(tmp_path, 5)
    mean, std = results["folds"]["mean"]["audio"], results["folds"]["std"]["audio"]
    assert mean["dominance"] is None and std["dominance"] is None
    assert mean["valence"] is not None and std["valence"] > 0
    assert [fold["audio"]["dominance"] is None for fold in results["folds"]["each"]] == [True] + [everywhere] * 4
    said = format_folds(results).splitlines()
    assert said[1].endswith(" n/a") and "±" in said[1]
    assert said[2].endswith(" n/a") == everywhere
    assert said[3].startswith("n/a: a fold, or all of them together")
    pooled = results["systems"]["audio"]["test"]["ccc"]["dominance"]
    assert (pooled is None) == everywhere
    assert json.loads((tmp_path / "results.json").read_text()) == results


def test_folds_of_other_encoders_are_not_pooled(tmp_path):
    for fold in range(1, 4):
        make_fold(tmp_path, fold, [0.1, 0.5, 0.3])
        if fold > 1:  # fold 1 is of a version that did not record it
            results = json.loads((tmp_path / f"fold_{fold}/results.json").read_text())
            results["encoders"] = {"text_encoder": {"name": "bert", "revision": None, "commit": f"c{fold}"}}
            (tmp_path / f"fold_{fold}/results.json").write_text(json.dumps(results))
    assert gather_folds(tmp_path, 2)["encoders"]["text_encoder"]["commit"] == "c2"
    with pytest.raises(ValueError, match="text_encoder is .c2. in fold 2 and .c3. in fold 3"):
        gather_folds(tmp_path, 3)
