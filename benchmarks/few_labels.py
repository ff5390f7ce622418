"""Draws what speech without labels is worth, from runs that are complete: valence CCC against labels, or against hours.

    python -m benchmarks.few_labels runs/tenth/{teacher,finetune,ts,unlabelled} runs/whole/{teacher,finetune,ts} \
        --output docs/results/few_labels
    python -m benchmarks.few_labels runs/hours_* --against hours --output docs/results/judged_hours

It writes OUTPUT.json and OUTPUT.png. A run may be of one seed or of several. A solid line joins the students that heard
unlabelled speech, a dashed one those that did not; a run with all of its labels and no other speech ends both, so that
recipes/beyond/spoken_emobank/unlabelled.yaml need not be run with `labelled_share: 1`, where it is ts.yaml once more.
Systems that never hear unlabelled speech, such as the teacher, have a dotted line. Bars are intervals over speakers of
test; points of the same run stand a little beside each other, so that all bars are seen.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from cmkd.atomic import written_whole
from cmkd.formats import check_version
from cmkd.json_files import read_json, write_json
from cmkd.reporting.figures import figure_style
from cmkd.runs.folder import versions
from cmkd.stages import STAGES

DIMENSION = "valence"
BESIDE = 0.012
"""How far the points of one curve are from those of the next one, as a part of the axis."""

AXES = {"labels": "training utterances with labels", "hours": "hours that the teacher judged"}


def describe_run(folder: Path) -> dict[str, Any]:
    """What a run says of the curve.

    Returns:
        `run`, its name; `labelled_share`; `labels`, how many training utterances have some; `unlabelled`, how many have
        none and are heard by the students; `hours` of both; `seeds`; `version` of the corpus; and in `systems`, by
        stage, `ccc` (mean over the seeds), `each` and `interval` on the test split.

    Raises:
        FileNotFoundError: it is not complete.
    """
    path = folder / "results.json"
    results = read_json(path, "the run in this folder is not complete.")
    check_version(path, results)
    corpus, recipe = results["corpus"], results["recipe"]
    systems = {}
    for stage, splits in results["systems"].items():
        test = splits["test"]
        each = [one[DIMENSION] for one in test["each"]] if "each" in test else [test["ccc"][DIMENSION]]
        systems[stage] = {"ccc": test["ccc"][DIMENSION], "each": each, "interval": test["interval"][DIMENSION]}
    return {
        "run": folder.name,
        "labelled_share": recipe["labelled_share"],
        "labels": corpus["utterances"]["train"],
        "unlabelled": corpus["utterances"].get("unlabelled", 0),
        "hours": corpus["hours"]["train"] + corpus["hours"].get("unlabelled", 0.0),
        "epochs": recipe["num_epochs"],
        "seeds": results.get("seeds", [results.get("seed")]),
        "version": corpus["version"],
        "systems": systems,
    }


Point = tuple[float, Mapping[str, Any]]


def curves(runs: Sequence[Mapping[str, Any]], against: str) -> dict[tuple[str, str], list[Point]]:
    """The points (x, scores) of each curve, by system and "with", "without" or "either"; stages and x are in order.

    Raises:
        ValueError: two runs have the same place on a curve, and other scores.
    """
    found: dict[tuple[str, str], dict[float, Mapping[str, Any]]] = {}
    for run in runs:
        for stage, scores in run["systems"].items():
            kinds = ["either"]
            if STAGES[stage].needs_teacher:
                has_all = run["labelled_share"] == 1 and not run["unlabelled"]
                kinds = ["with", "without"] if has_all else ["with" if run["unlabelled"] else "without"]
            for kind in kinds:
                points = found.setdefault((stage, kind), {})
                if run[against] in points and points[run[against]] != scores:
                    raise ValueError(f"{run['run']} has as many {against} as another run with {stage}: leave one out.")
                points[run[against]] = scores
    in_order = sorted(found, key=lambda key: (list(STAGES).index(key[0]), key[1]))
    return {key: sorted(found[key].items(), key=lambda point: point[0]) for key in in_order}


def draw(runs: Sequence[Mapping[str, Any]], against: str) -> Figure:
    """The curves of all systems, with x on a logarithmic scale, whose ticks are the runs."""
    figure = Figure(figsize=(9.6, 4.6), layout="constrained")
    axes = figure.subplots()
    styles = {"with": ("-", "o", ", and unlabelled speech"), "without": ("--", "s", ""), "either": (":", "D", "")}
    drawn = curves(runs, against)
    places = sorted({place for points in drawn.values() for place, _ in points})
    span = places[-1] / places[0] if len(places) > 1 else 2.0
    for number, ((stage, kind), points) in enumerate(drawn.items()):
        line, marker, more = styles[kind]
        shift = span ** (BESIDE * (number - (len(drawn) - 1) / 2))
        x, y = [place * shift for place, _ in points], [score["ccc"] for _, score in points]
        intervals = [score["interval"] or [score["ccc"]] * 2 for _, score in points]
        below = [value - low for value, (low, _) in zip(y, intervals, strict=True)]
        above = [high - value for value, (_, high) in zip(y, intervals, strict=True)]
        axes.errorbar(
            x,
            y,
            [below, above],
            color=STAGES[stage].colour,
            linestyle=line,
            marker=marker,
            markersize=5,
            capsize=2,
            label=STAGES[stage].short_name + more,
        )
    margin = span**0.1
    axes.set(xscale="log", xlim=(places[0] / margin, places[-1] * margin))
    axes.set(xlabel=AXES[against], ylabel=f"CCC of {DIMENSION} on test")
    axes.set_xticks(places, [f"{place:,}" if against == "labels" else f"{place:.3g}" for place in places])
    axes.xaxis.set_minor_locator(NullLocator())
    figure.legend(loc="outside right upper", fontsize="small")
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, required=True, help="without ending")
    parser.add_argument("--against", choices=AXES, default="labels")
    given = parser.parse_args(arguments)
    runs = sorted((describe_run(folder) for folder in given.runs), key=lambda run: (run[given.against], run["run"]))
    with figure_style(), written_whole(given.output.with_suffix(".png")) as unfinished:
        draw(runs, given.against).savefig(unfinished, format="png")
    write_json(given.output.with_suffix(".json"), {"against": given.against, "versions": versions(), "runs": runs})


if __name__ == "__main__":
    main()
