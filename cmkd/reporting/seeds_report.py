"""The results of several trainings of one recipe, as a page and as plain text; `cmkd.runs.seeds` gathers them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cmkd.atomic import written_whole
from cmkd.json_files import read_json
from cmkd.reporting.figures import draw_seeds, figure_style, format_number
from cmkd.reporting.report import corpora_sections, variants_of
from cmkd.scoring.scores import NOTHING_COMPARED, describe_intervals, describe_test, format_p
from cmkd.stages import BASELINE, LEXICAL, STUDENTS, SYSTEM_NAMES, TEACHER, describe_control
from configuration_cmkd import EMOTION_DIMENSIONS

_SHOWN_SPLITS = ("validation", "test")
_INITIALS = [dimension[0].upper() for dimension in EMOTION_DIMENSIONS]


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
    results = read_json(folder / "results.json", "the training in this folder is not complete.")
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
    parts += [f"> **{describe_control(results['control'])}.**"] if "control" in results else []
    parts += ["\n>\n".join(f"> **Note:** {note}" for note in corpus["notes"])] if corpus["notes"] else []
    parts.append(
        "CCC of activation (A), valence (V) and dominance (D): the mean over the seeds ± their standard deviation "
        f"(divisor {len(seeds) - 1}), which says what another training would bring. All have the same corpus. "
        f"{describe_intervals(results['confidence'], _SHOWN_SPLITS)} It is of the mean over these trainings, for other "
        "speakers."
    )
    for split in _SHOWN_SPLITS:
        parts.append(f"## {split.capitalize()}\n\n{_systems_table(results, split)}")
    parts += variants_of(results)
    parts.append(
        "![valence of each seed](figures/seeds.png)\n\n"
        "Valence CCC on test: a dot for each seed, a stroke for the mean, a bar for its interval over speakers."
    )
    parts += corpora_sections(results)
    parts += _gap(results)
    parts.append(_comparisons(results))
    parts += _lexical(results)
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
    """How much of the gap between fine-tuned and teacher each student closes, computed from the means."""
    valence = {stage: splits["test"]["ccc"]["valence"] for stage, splits in results["systems"].items()}
    teacher, baseline = valence.get(TEACHER), valence.get(BASELINE)
    if teacher is None or baseline is None:
        return []
    heading = "## How much of the valence gap is closed (test, means over the seeds)"
    if teacher <= baseline:
        return [f"{heading}\n\nThere is no gap: the teacher is not above the fine-tuned audio-only system."]
    closed = [
        f"the {SYSTEM_NAMES[stage]} closes {(valence[stage] - baseline) / (teacher - baseline):.0%}"
        for stage in STUDENTS
        if valence.get(stage) is not None
    ]
    return [f"{heading}\n\nThe gap between teacher and fine-tuned is {teacher - baseline:.3f}; {'; '.join(closed)}."]


def _lexical(results: Mapping[str, Any]) -> list[str]:
    """What the stage `lexical` of each training learned; nothing if they have none."""
    if "lexical" not in results:
        return []
    rows = [["seed", "the first", "of the first 5", "median place", "chance", "line to V", "from its aim"]]
    for seed, learned in zip(results["seeds"], results["lexical"], strict=True):
        found = learned["retrieval"]["test"]
        shares = [f"{found[name]:.1%}" for name in ("recall_at_1", "recall_at_5")]
        valence = [format_number(learned[line]["ccc"]["test"]["valence"]) for line in ("ridge", "ridge_from_words")]
        rows.append([str(seed), *shares, f"{found['median_rank']:g}", f"{found['chance']['median_rank']:g}", *valence])
    explanation = (
        "How often the right sentence of test is the nearest to what the network makes of the utterance, or one of the "
        "first 5, its place in the median, and the place by chance; and the CCC on test of a ridge regression to "
        "valence from that, and from what it aims at. The reports of the trainings explain it."
    )
    return [f"## What the stage {LEXICAL} learned\n\n{explanation}\n\n{_table(rows)}"]


def _comparisons(results: Mapping[str, Any]) -> str:
    heading = "## Is the difference more than chance?"
    entries = results["comparisons"]
    if not entries:
        return f"{heading}\n\n{NOTHING_COMPARED}"
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
