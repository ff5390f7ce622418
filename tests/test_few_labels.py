"""The curve of unlabelled speech, from the results of runs."""

import json
from pathlib import Path

import pytest

from benchmarks.few_labels import curves, describe_run, main


def write_run(folder: Path, share: float, unlabelled: int, seeds: int = 1, **valence: float) -> Path:
    folder.mkdir()
    systems = {}
    for stage, value in valence.items():
        test = {"ccc": {"valence": value}, "interval": {"valence": [value - 0.1, value + 0.05]}}
        if seeds > 1:
            test["each"] = [{"valence": value - 0.01}, {"valence": value + 0.01}]
        systems[stage] = {"test": test}
    sizes = {"train": round(1000 * share), "validation": 10, "test": 10}
    hours = {"train": share, "validation": 0.1, "test": 0.1}
    if unlabelled:
        sizes["unlabelled"], hours["unlabelled"] = unlabelled, unlabelled / 1000
    results = {
        "corpus": {"utterances": sizes, "hours": hours, "version": f"1.0-{share}"},
        "recipe": {"labelled_share": share, "num_epochs": 3},
        "systems": systems,
    } | ({"seeds": [0, 1]} if seeds > 1 else {"seed": 0})
    (folder / "results.json").write_text(json.dumps(results))
    return folder


@pytest.fixture
def runs(tmp_path):
    return [
        write_run(tmp_path / "with", 0.1, 900, 2, teacher=0.5, finetune=0.1, ts=0.3),
        write_run(tmp_path / "without", 0.1, 0, 2, ts=0.2),
        write_run(tmp_path / "all", 1.0, 0, teacher=0.7, finetune=0.4, ts=0.6),
    ]


def test_a_run_with_all_labels_ends_both_curves(runs):
    found = curves([describe_run(run) for run in runs], "labels")
    points = {key: [(x, scores["ccc"]) for x, scores in of_key] for key, of_key in found.items()}
    assert points == {
        ("teacher", "either"): [(100, 0.5), (1000, 0.7)],
        ("finetune", "either"): [(100, 0.1), (1000, 0.4)],
        ("ts", "with"): [(100, 0.3), (1000, 0.6)],
        ("ts", "without"): [(100, 0.2), (1000, 0.6)],
    }


def test_hours_are_those_that_the_teacher_judged(runs):
    described = [describe_run(run) for run in runs]
    assert [run["hours"] for run in described] == pytest.approx([1.0, 0.1, 1.0])
    assert described[0]["systems"]["ts"]["each"] == pytest.approx([0.29, 0.31])
    with pytest.raises(ValueError, match="all has as many hours as another run with teacher: leave one out"):
        curves(described, "hours")


def test_what_is_written(runs, tmp_path):
    main([*map(str, runs), "--output", str(tmp_path / "curve")])
    written = json.loads((tmp_path / "curve.json").read_text())
    assert [run["run"] for run in written["runs"]] == ["with", "without", "all"]
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(FileNotFoundError):
        describe_run(tmp_path)
