"""Several trainings of one recipe, with other seeds: what they come to together.

```
<output_dir>/seed_0/ …         a run folder each, see cmkd/runs/folder.py
<output_dir>/results.json      see `gather_seeds`
<output_dir>/report.md  figures/
<output_dir>/cache/            stored output of frozen encoders, the same for all
```

A seed decides on initial weights, dropout and the order of the batches. The corpus is the same for all, so that they
answer the same utterances. There are then two kinds of chance, which are kept apart: the standard deviation over the
seeds says what another training would bring; the interval and the p-value, taken of the mean over the seeds, say what
other speakers would, for these trainings. Three seeds are too few for an interval over seeds.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

from cmkd.atomic import written_whole
from cmkd.corpora.schema import SPLITS
from cmkd.formats import with_version
from cmkd.reporting.figures import SYSTEM_NAMES, draw_seeds, figure_style, format_number
from cmkd.runs.folder import mean_ccc, write_json
from cmkd.runs.recipe import STAGES
from cmkd.scoring.confidence import ccc_interval
from cmkd.scoring.evaluation import Predictions, read_predictions
from cmkd.scoring.scores import (
    compare,
    describe_confidence,
    describe_intervals,
    describe_test,
    format_p,
    pairs_to_compare,
)
from configuration_cmkd import EMOTION_DIMENSIONS

_SHOWN_SPLITS = ("validation", "test")
_INITIALS = [dimension[0].upper() for dimension in EMOTION_DIMENSIONS]

Values = Mapping[str, float | None]
"""By dimension; None where nobody rated it."""


def seed_folder(run: Path, seed: int) -> Path:
    """Where the training with a seed is."""
    return run / f"seed_{seed}"


def read_answers(run: Path, seeds: Sequence[int], stage: str, split: str) -> Predictions:
    """What the trainings of one stage answered, stacked: `predictions` is (seeds, n, 3).

    Raises:
        FileNotFoundError: a training has no predictions.
        ValueError: two have answered other utterances, or with other labels.
    """
    each = [read_predictions(seed_folder(run, seed) / "predictions" / f"{stage}_{split}.parquet") for seed in seeds]
    for seed, answer in zip(seeds, each, strict=True):
        if answer.ids != each[0].ids or not np.array_equal(answer.labels, each[0].labels, equal_nan=True):
            raise ValueError(
                f"the seeds {seeds[0]} and {seed} in {str(run)!r} have answered other utterances of {split}, or with "
                "other labels: repeat one of them on the corpus of the other, with --overwrite."
            )
    first = each[0]
    stacked = np.stack([answer.predictions for answer in each])
    return Predictions(first.ids, stacked, first.labels, first.speakers, first.genders)


def gather_seeds(run: Path, seeds: Sequence[int]) -> dict[str, Any]:
    """Puts the trainings of a run of several seeds together, and writes results.json.

    Args:
        run: the folder that holds seed_0 and so on, each complete.
        seeds: which of them.

    Returns:
        The content of results.json, which has the keys of a run's with these differences. `seeds` is the list of
        them, and there is no `seed`. In `systems`, by stage and split, `ccc`, `pearson` and `mae` are means over the
        seeds; beside them are `std` (divisor number of seeds - 1) and `each`, a list by seed, of the CCC, and
        `interval` is that of the mean CCC over speakers. `comparisons` are of the mean differences and have `std` and
        `each` too. `conditioning` has `discarded_fraction`, a list by seed. `student` has the `seed` and the `stage` of
        the one that is best by mean CCC on validation, among those that each training keeps. What only some of the
        trainings have is left out.

    Raises:
        FileNotFoundError: a training is not complete.
        ValueError: two were trained on other corpora, or answered other utterances.
    """
    runs = [_read_results(seed_folder(run, seed)) for seed in seeds]
    for seed, other in zip(seeds, runs, strict=True):
        if other["corpus"]["version"] != runs[0]["corpus"]["version"]:
            raise ValueError(
                f"seed {seeds[0]} in {str(run)!r} was trained on version {runs[0]['corpus']['version']} of the corpus, "
                f"seed {seed} on {other['corpus']['version']}: repeat one of them, with --overwrite."
            )
    stages: list[str] = [stage for stage in STAGES if all(stage in other["systems"] for other in runs)]
    systems: dict[str, dict[str, Any]] = {stage: {} for stage in stages}
    comparisons, speakers = [], {}
    for split in SPLITS:
        answers = {
            stage: read_answers(run, seeds, stage, split)
            for stage in stages
            if all(split in other["systems"][stage] for other in runs)
        }
        for stage, answer in answers.items():
            each = [other["systems"][stage][split] for other in runs]
            interval = ccc_interval(answer.labels, answer.predictions, answer.speakers)
            systems[stage][split] = _over_seeds(each) | {"interval": interval}
            speakers[split] = answer.speakers
        for system, baseline in pairs_to_compare(split, answers):
            differences = [
                _less(*(other["systems"][name][split]["ccc"] for name in (system, baseline))) for other in runs
            ]
            found = compare(answers[system], answers[system].predictions, answers[baseline].predictions)
            names = {"system": system, "baseline": baseline, "split": split}
            comparisons.append(names | found | {"std": _summary(stdev, differences), "each": differences})
    results: dict[str, Any] = {
        "corpus": runs[0]["corpus"],
        "seeds": list(seeds),
        "versions": {
            name: ", ".join(dict.fromkeys(other["versions"].get(name, "not recorded") for other in runs))
            for name in dict.fromkeys(name for other in runs for name in other["versions"])
        },
        "systems": systems,
        "comparisons": comparisons,
        "confidence": describe_confidence(speakers),
        "recipe": {key: value for key, value in runs[0]["recipe"].items() if key != "seed"} | {"seeds": list(seeds)},
        "cost": {
            "seconds": {stage: sum(other["cost"]["seconds"][stage] for other in runs) for stage in stages},
            "peak_memory_gb": max((other["cost"]["peak_memory_gb"] or 0.0 for other in runs), default=None),
            "processes": max(other["cost"]["processes"] for other in runs),
            "device": runs[0]["cost"]["device"],
        },
    }
    if all("teacher" in other for other in runs):
        results["teacher"] = " ".join(other["teacher"] for other in runs)
    if all("conditioning" in other for other in runs):
        fractions = [other["conditioning"]["discarded_fraction"] for other in runs]
        results["conditioning"] = {"discarded_fraction": fractions}
    if all("student" in other for other in runs):
        results["student"] = _best_student(seeds, runs)
    results = with_version("results.json", results)
    write_json(run / "results.json", results)
    return results


def format_seeds(results: Mapping[str, Any]) -> str:
    """CCC on test as plain text for a terminal: the mean over the seeds, ± their standard deviation, and each.

    Args:
        results: what `gather_seeds` returns.
    """
    seeds = results["seeds"]
    rows = [[f"CCC on test, {len(seeds)} seeds", *_INITIALS, *(f"V, seed {seed}" for seed in seeds)]]
    for stage, splits in results["systems"].items():
        scores = splits["test"]
        valence = [format_number(one["valence"]) for one in scores["each"]]
        rows.append([SYSTEM_NAMES[stage], *(_mean_and_std(scores, name) for name in EMOTION_DIMENSIONS), *valence])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(cell.rjust(width) if column else cell.ljust(width) for column, (cell, width) in enumerate(cells))
        for cells in (list(zip(row, widths, strict=True)) for row in rows)
    ]
    lines.append("Mean ± standard deviation over the seeds (divisor number of seeds - 1).")
    if "student" in results:
        lines.append(f"The student to take: {_student_sentence(results)}")
    return "\n".join(lines)


def write_seeds_report(run: str | os.PathLike[str]) -> Path:
    """Writes `report.md` and a figure from the results.json of a run of several seeds.

    Args:
        run: the folder that `gather_seeds` has written to.

    Returns:
        The path of `report.md`.

    Raises:
        FileNotFoundError: there is no results.json.
    """
    folder = Path(run)
    results = _read_results(folder)
    figure = folder / "figures" / "seeds.png"
    with figure_style(), written_whole(figure) as unfinished:
        draw_seeds({stage: splits["test"] for stage, splits in results["systems"].items()}).savefig(
            unfinished, format="png"
        )
    report = folder / "report.md"
    with written_whole(report) as unfinished:
        unfinished.write_text(_report(results) + "\n", encoding="utf-8")
    return report


def _report(results: Mapping[str, Any]) -> str:
    corpus, seeds = results["corpus"], results["seeds"]
    parts = [f"# {corpus['name']} {corpus['version']}, seeds {_listed(seeds)}"]
    parts += ["\n>\n".join(f"> **Note:** {note}" for note in corpus["notes"])] if corpus["notes"] else []
    parts.append(
        "CCC of activation (A), valence (V) and dominance (D): the mean over the seeds ± their standard deviation "
        f"(divisor {len(seeds) - 1}), which says what another training would bring. All have the same corpus. "
        f"{describe_intervals(results['confidence'], _SHOWN_SPLITS)} It is of the mean over these trainings, for other "
        "speakers."
    )
    for split in _SHOWN_SPLITS:
        parts.append(f"## {split.capitalize()}\n\n{_systems_table(results, split)}")
    parts.append(
        "![valence of each seed](figures/seeds.png)\n\n"
        "Valence CCC on test: a dot for each seed, a stroke for the mean, a bar for its interval over speakers."
    )
    parts += _gap(results)
    parts.append(_comparisons(results))
    if "student" in results:
        parts.append(f"## Which student to take\n\n{_student_sentence(results)}")
    reports = ", ".join(f"[seed {seed}](seed_{seed}/report.md)" for seed in seeds)
    parts.append(f"Each training has a report of its own: {reports}.")
    return "\n\n".join(parts)


def _systems_table(results: Mapping[str, Any], split: str) -> str:
    seeds = results["seeds"]
    rows = [["system", *_INITIALS, *(f"V, seed {seed}" for seed in seeds)]]
    for stage, splits in results["systems"].items():
        if split in splits:
            scores = splits[split]
            means = [f"{_mean_and_std(scores, name)}{_interval(scores, name)}" for name in EMOTION_DIMENSIONS]
            rows.append([SYSTEM_NAMES[stage], *means, *(format_number(one["valence"]) for one in scores["each"])])
    return _table(rows)


def _gap(results: Mapping[str, Any]) -> list[str]:
    """How much of the gap between fine-tuned and teacher each student closes, of the means."""
    valence = {stage: splits["test"]["ccc"]["valence"] for stage, splits in results["systems"].items()}
    teacher, baseline = valence.get("teacher"), valence.get("finetune")
    if teacher is None or baseline is None:
        return []
    heading = "## How much of the valence gap is closed (test, means over the seeds)"
    if teacher <= baseline:
        return [f"{heading}\n\nThere is no gap: the teacher is not above the fine-tuned audio-only system."]
    closed = [
        f"the {SYSTEM_NAMES[stage]} closes {(valence[stage] - baseline) / (teacher - baseline):.0%}"
        for stage in ("ts", "cts")
        if valence.get(stage) is not None
    ]
    return [f"{heading}\n\nThe gap between teacher and fine-tuned is {teacher - baseline:.3f}; {'; '.join(closed)}."]


def _comparisons(results: Mapping[str, Any]) -> str:
    heading = "## Is the difference more than chance?"
    entries = results["comparisons"]
    if not entries:
        return f"{heading}\n\nNot known: it takes two of fine-tuned, T/S and cT/S."
    rows = [["difference in CCC", *EMOTION_DIMENSIONS]]
    for entry in entries:
        cells = [_difference(entry, name) for name in EMOTION_DIMENSIONS]
        rows.append(
            [f"{SYSTEM_NAMES[entry['system']]} less {SYSTEM_NAMES[entry['baseline']]}, {entry['split']}", *cells]
        )
    smallest = [value for entry in entries for value in entry["smallest_p"].values()]
    explanation = (
        "The mean over the seeds ± their standard deviation, each difference being of two trainings with the same "
        f"seed; in brackets its interval over speakers. {describe_test(smallest)} Interval and p are about these "
        "trainings and other speakers."
    )
    return f"{heading}\n\n{explanation}\n\n{_table(rows)}"


def _difference(entry: Mapping[str, Any], dimension: str) -> str:
    difference = entry["difference"][dimension]
    if difference is None:
        return format_number(None)
    interval, p, smallest = (entry[field][dimension] for field in ("interval", "p", "smallest_p"))
    shown = f" [{interval[0]:+.3f}, {interval[1]:+.3f}]" if interval else " (one speaker)"
    return (
        f"{difference:+.3f} ± {entry['std'][dimension]:.3f}{shown}, p = {format_p(p)} (at least {format_p(smallest)})"
    )


def _over_seeds(each: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    scores: dict[str, Any] = {"n": each[0]["n"]}
    scores |= {metric: _summary(mean, [one[metric] for one in each]) for metric in ("ccc", "pearson", "mae")}
    ccc = [one["ccc"] for one in each]
    return scores | {"std": _summary(stdev, ccc), "each": ccc}


def _summary(statistic: Any, each: Sequence[Values]) -> dict[str, float | None]:
    """Of the values of all seeds, by dimension; None where one of them is."""
    columns = {name: [one[name] for one in each] for name in EMOTION_DIMENSIONS}
    return {name: None if None in values else float(statistic(values)) for name, values in columns.items()}


def _less(scores: Values, others: Values) -> dict[str, float | None]:
    pairs = {name: (scores[name], others[name]) for name in EMOTION_DIMENSIONS}
    return {name: None if ours is None or theirs is None else ours - theirs for name, (ours, theirs) in pairs.items()}


def _best_student(seeds: Sequence[int], runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    kept = [other["student"]["stage"] for other in runs]
    scores = [mean_ccc(other["systems"][stage]["validation"]) for other, stage in zip(runs, kept, strict=True)]
    best = max(range(len(seeds)), key=scores.__getitem__)
    listed = ", ".join(f"{score:.3f} with seed {seed}" for seed, score in zip(seeds, scores, strict=True))
    reason = f"best mean CCC on validation of those that the trainings keep ({listed})"
    return {"seed": seeds[best], "stage": kept[best], "reason": reason}


def _student_sentence(results: Mapping[str, Any]) -> str:
    student = results["student"]
    return f"`seed_{student['seed']}/student/`, a {SYSTEM_NAMES[student['stage']]}: {student['reason']}."


def _mean_and_std(scores: Mapping[str, Any], dimension: str) -> str:
    value = scores["ccc"][dimension]
    return format_number(None) if value is None else f"{value:.3f} ± {scores['std'][dimension]:.3f}"


def _interval(scores: Mapping[str, Any], dimension: str) -> str:
    interval = scores["interval"][dimension]
    return f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else ""


def _table(rows: Sequence[Sequence[str]]) -> str:
    lines = [rows[0], ["---", *["---:"] * (len(rows[0]) - 1)], *rows[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))


def _read_results(folder: Path) -> dict[str, Any]:
    path = folder / "results.json"
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: the training in this folder is not complete.")
    return json.loads(path.read_text(encoding="utf-8"))
