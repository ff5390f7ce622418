"""The curve of unlabelled speech, from the results of runs."""

import json
from pathlib import Path

import pytest

from benchmarks.few_labels import curves, describe_run, draw, main


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


def test_points_of_a_run_stand_beside_each_other_and_its_tick_is_its_number(runs):
    (axes,) = draw([describe_run(run) for run in runs], "labels").axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["100", "1,000"]
    assert list(axes.get_xticks()) == [100, 1000] and not len(axes.get_xticks(minor=True))
    named = {bars.get_label(): bars.lines[0] for bars in axes.containers}
    assert list(named) == ["teacher", "fine-tuned", "T/S, and unlabelled speech", "T/S"]
    assert {name: list(line.get_ydata()) for name, line in named.items()} == {
        "teacher": [0.5, 0.7],
        "fine-tuned": [0.1, 0.4],
        "T/S, and unlabelled speech": [0.3, 0.6],
        "T/S": [0.2, 0.6],
    }
    x = [line.get_xdata() for line in named.values()]
    assert len({first for first, _ in x}) == 4 and all(95 < first < 105 and last == 10 * first for first, last in x)


def test_a_run_of_all_labels_that_asks_for_the_rest_is_the_same_point_or_refused(runs, tmp_path):
    """With all labels there is no rest, so that nobody needs such a run."""
    described = [describe_run(run) for run in runs]
    again = describe_run(write_run(tmp_path / "again", 1.0, 0, ts=0.6))
    assert curves([*described, again], "labels") == curves(described, "labels")
    other = describe_run(write_run(tmp_path / "other", 1.0, 0, ts=0.61))
    with pytest.raises(ValueError, match="other has as many labels as another run with ts: leave one out"):
        curves([*described, other], "labels")


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
