"""What an audit looks like: audit.md, audit.html, card.md and the figures, all made of audit.json."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import EvalResult, ModelCardData
from matplotlib.figure import Figure

from cmkd.atomic import written_whole
from cmkd.reporting.figures import DIMENSION_COLOURS, figure_style
from cmkd.spelling import enumerated
from configuration_cmkd import EMOTION_DIMENSIONS

NAME = "audit.json"

_MOST_NOTES = 12
"""Of a test, that are shown."""

_MARKS = {"passed": "✓", "failed": "✗", "undecided": "?", "reported": "", "not applicable": "–"}


def write_reports(results: Mapping[str, Any], output: Path) -> None:
    """Writes everything but audit.json.

    Args:
        results: the content of audit.json.
        output: the folder.
    """
    figures = {}
    (output / "figures").mkdir(parents=True, exist_ok=True)
    with figure_style():
        for name, (caption, figure) in draw_audit(results).items():
            file = BytesIO()
            figure.savefig(file, format="png")
            figures[name] = (caption, file.getvalue())
    for name, (_, content) in figures.items():
        with written_whole(output / "figures" / f"{name}.png") as unfinished:
            unfinished.write_bytes(content)
    captions = {name: caption for name, (caption, _) in figures.items()}
    texts = {
        "audit.md": format_markdown(results, captions),
        "audit.html": format_page(results, list(figures.values())),
        "card.md": format_card(results),
    }
    for name, text in texts.items():
        with written_whole(output / name) as unfinished:
            unfinished.write_text(text, encoding="utf-8")


def format_summary(results: Mapping[str, Any]) -> str:
    """The verdicts as plain text for a terminal, and which tests failed."""
    lines = [*_about(results), ""]
    lines += ["".join(f"{cell:<18}" for cell in row).rstrip() for row in _summary(results)]
    for verdict, tests in _worst(results):
        lines += ["", f"{verdict.capitalize()}:"]
        lines += [
            f"  {test['name']}: {test['count']} of {test['of']}; {test['which']} is {test['extreme']}" for test in tests
        ]
    return "\n".join(lines)


def _worst(results: Mapping[str, Any]) -> list[tuple[str, list[dict[str, Any]]]]:
    """By verdict that one would look into: of each test with such findings how many, and the worst of them.

    The worst is the lowest where a value must be at least the threshold, and otherwise the largest in size.
    """
    by_verdict = []
    for verdict in ("failed", "undecided"):
        tests = []
        for test in results["tests"].values():
            found = [finding for finding in test["findings"] if finding["verdict"] == verdict]
            if found:
                is_low = test["rule"] == "at least"
                worst = min(found, key=lambda one: one["value"] if is_low else -abs(one["value"]))
                tests.append(
                    {
                        "name": test["name"],
                        "title": _title(test["name"]),
                        "count": len(found),
                        "of": len(test["findings"]),
                        "which": "the lowest" if is_low else "the largest",
                        "extreme": f"{worst['of']}{_under(worst)}: {_number(worst['value'])}",
                    }
                )
        if tests:
            by_verdict.append((verdict, tests))
    return by_verdict


def _worst_tables(results: Mapping[str, Any], level: str) -> list[str]:
    lines = []
    for verdict, tests in _worst(results):
        rows = [[one["title"], f"{one['count']} of {one['of']}", f"{one['which']}: {one['extreme']}"] for one in tests]
        table = _markdown_table([["test", "findings", "the worst"], *rows])
        lines += [f"{level} {verdict.capitalize()}", "", *table, ""]
    return lines


def format_markdown(results: Mapping[str, Any], captions: Mapping[str, str]) -> str:
    """The content of audit.md.

    Args:
        results: the content of audit.json.
        captions: by file of `figures/`, what it shows.
    """
    lines = [
        f"# Audit of {results['model']['name']}",
        "",
        *_about(results),
        "",
        *_markdown_table(_summary(results)),
        "",
    ]
    lines += _worst_tables(results, "##")
    for name, caption in captions.items():
        lines += [f"![{caption}](figures/{name}.png)", ""]
    for group, tests in _by_group(results):
        lines += [f"## {group.capitalize()}", ""]
        for test in tests:
            lines += [f"### {test['title']}", "", test["about"], "", test["rule"], ""]
            table = [test["header"]]
            table += [[row["condition"], *(cell["text"] for cell in row["cells"])] for row in test["rows"]]
            lines += [*_markdown_table(table), ""]
            for note in test["notes"]:
                lines += [note, ""]
    lines += ["## Conditions", ""]
    lines += _markdown_table([["condition", "what it is"], *results["conditions"].items()])
    return "\n".join(lines) + "\n"


def format_page(results: Mapping[str, Any], figures: Sequence[tuple[str, bytes]]) -> str:
    """The content of audit.html, which needs nothing else to be looked at.

    Args:
        results: the content of audit.json.
        figures: each a caption and the content of a PNG.
    """
    template = files("cmkd.audit").joinpath("page.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(template).render(
        model=results["model"]["name"],
        about=_about(results),
        summary=_summary(results),
        figures=[(caption, base64.b64encode(content).decode()) for caption, content in figures],
        marks=[(verdict, mark) for verdict, mark in _MARKS.items() if mark],
        worst=_worst(results),
        groups=dict(_by_group(results)),
        conditions=results["conditions"],
    )


def format_card(results: Mapping[str, Any]) -> str:
    """A section for a model card: the metadata of the Hub for evaluation results, the verdicts, and what failed."""
    corpus = results["corpus"]
    names = {"concordance": ("concordance_cc", "CCC"), "absolute_error": ("mae", "mean absolute error")}
    metrics = [
        EvalResult(
            task_type="audio-classification",
            task_name="dimensional speech emotion recognition",
            dataset_type=corpus["name"],
            dataset_name=f"{corpus['name']} {corpus['version']}",
            dataset_split=results["settings"]["split"],
            metric_type=kind,
            metric_name=f"{title} of {finding['of']}",
            metric_config=finding["of"],
            metric_value=round(finding["value"], 4),
        )
        for test, (kind, title) in names.items()
        for finding in results["tests"][test]["findings"]
        if finding["value"] is not None
    ]
    data = ModelCardData(model_name=results["model"]["name"], eval_results=metrics)
    lines = ["---", data.to_yaml(), "---", "", "## Audit", "", *_about(results, for_card=True), ""]
    lines += [*_markdown_table(_summary(results)), "", *_worst_tables(results, "###")]
    return "\n".join(lines).rstrip() + "\n"


def draw_audit(results: Mapping[str, Any]) -> dict[str, tuple[str, Figure]]:
    """By name, the caption and the figure of robustness and of fairness, where there is something to draw."""
    drawn = {}
    for name, test, caption, label in (
        (
            "robustness",
            "mean_change",
            "How far scores move under each disturbance",
            "mean absolute change (share of the scale)",
        ),
        (
            "fairness",
            "error_gap",
            "How much higher a group is rated than the others (95 % intervals)",
            "difference of the mean error (share of the scale)",
        ),
    ):
        entry = results["tests"][test]
        findings = [finding for finding in entry["findings"] if finding["value"] is not None]
        if findings:
            drawn[name] = (caption, _dots(findings, entry["threshold"], caption, label))
    return drawn


def _dots(findings: Sequence[Mapping[str, Any]], threshold: float, title: str, label: str) -> Figure:
    conditions = list(dict.fromkeys(finding["condition"] for finding in findings))
    figure = Figure(figsize=(8, 2 + 0.32 * len(conditions)), layout="constrained")
    panel = figure.subplots()
    dimensions = [name for name in EMOTION_DIMENSIONS if any(finding["of"] == name for finding in findings)]
    for shift, dimension in enumerate(dimensions):
        own = [finding for finding in findings if finding["of"] == dimension]
        heights = [
            conditions.index(finding["condition"]) + 0.2 * (shift - (len(dimensions) - 1) / 2) for finding in own
        ]
        panel.plot(
            [finding["value"] for finding in own], heights, "o", color=DIMENSION_COLOURS[dimension], label=dimension
        )
        for finding, height in zip(own, heights, strict=True):
            if finding["interval"] is not None:
                panel.plot(finding["interval"], [height, height], color=DIMENSION_COLOURS[dimension], linewidth=1.2)
    for limit in {threshold, -threshold} if any(finding["interval"] for finding in findings) else {threshold}:
        panel.axvline(limit, color="#4d4d4d", linestyle="--", linewidth=1)
    panel.set_yticks(range(len(conditions)), conditions)
    panel.set_ylim(len(conditions) - 0.5, -0.5)
    panel.set_xlabel(label)
    figure.suptitle(title, fontsize=10.5, fontweight="bold")
    panel.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(dimensions))
    return figure


def _about(results: Mapping[str, Any], for_card: bool = False) -> list[str]:
    """What was audited, and on what.

    A card is read by everybody: of the notes on the corpus, which may name its clips, it has only what its labels are.
    """
    model, corpus, settings = results["model"], results["corpus"], results["settings"]
    count = f"{results['clips']:,} clips of {results['speakers']:,} known speakers"
    quick = " (a quick audit: not all clips)" if settings["quick"] else ""
    dimensions = enumerated(EMOTION_DIMENSIONS)
    notes = [note for note in corpus["notes"] if note.startswith(f"{dimensions} are ") or not for_card]
    return [
        f"{model['name']} ({model['kind']}) at {model['identity']}.",
        f"On {settings['split']} of {corpus['name']} {corpus['version']}: {count}{quick}.",
        *([f"The corpus: {'; '.join(notes)}."] if notes else []),
        f"What is known of the model: {model['facts']}",
    ]


def _summary(results: Mapping[str, Any]) -> list[list[str]]:
    verdicts = [name for name in _MARKS if any(counts[name] for counts in results["verdicts"].values())]
    rows = [[group, *(str(counts[name]) for name in verdicts)] for group, counts in results["verdicts"].items()]
    return [["", *verdicts], *rows]


def _by_group(results: Mapping[str, Any]) -> list[tuple[str, list[dict[str, Any]]]]:
    """By group its tests, as pages show them; those without findings are left out."""
    return [
        (group, tests)
        for group in results["verdicts"]
        if (
            tests := [_shown(test) for test in results["tests"].values() if test["group"] == group and test["findings"]]
        )
    ]


def _shown(test: Mapping[str, Any]) -> dict[str, Any]:
    """A test as a table of conditions by what the findings are of, or where there are none, of the latter in lines."""
    findings = {(finding["condition"], finding["of"]): finding for finding in test["findings"]}
    columns = list(dict.fromkeys(of for _, of in findings))
    conditions = list(dict.fromkeys(condition for condition, _ in findings))
    if conditions == [""]:
        header, places = ["", "value"], {of: [("", of)] for of in columns}
    else:
        header = ["", *columns]
        places = {condition: [(condition, column) for column in columns] for condition in conditions}
    rows = [
        {"condition": name, "cells": [_cell(findings.get(place)) for place in of_row]}
        for name, of_row in places.items()
    ]
    if test["rule"] == "reported":
        rule = f"In {test['unit']}. Source: {test['source']}."
    elif test["rule"] == "within":
        rule = (
            f"Passed if the whole interval is within ±{test['threshold']:g} ({test['unit']}). Source: {test['source']}."
        )
    else:
        rule = f"Passed if {test['rule']} {test['threshold']:g} ({test['unit']}). Source: {test['source']}."
    notes = _notes(test["findings"], columns)
    return {
        "title": _title(test["name"]),
        "about": test["about"],
        "rule": rule,
        "header": header,
        "is_wide": len(header) > 2 and any(finding["interval"] for finding in test["findings"]),
        "rows": rows,
        "notes": notes if len(notes) <= _MOST_NOTES else [],
    }


def _notes(findings: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> list[str]:
    """What findings note, once where it is the same for all columns of a condition."""
    by_note: dict[tuple[str, str], list[str]] = {}
    for finding in findings:
        if finding["note"]:
            by_note.setdefault((finding["condition"], finding["note"]), []).append(finding["of"])
    notes = []
    for (condition, note), of in by_note.items():
        about = [condition] if len(of) == len(columns) else [*of, condition]
        named = ", ".join(filter(None, about))
        notes.append(f"{named}: {note}" if named else note)
    return notes


def _title(name: str) -> str:
    return name.replace("_", " ").capitalize()


def _cell(finding: Mapping[str, Any] | None) -> dict[str, str]:
    if finding is None:
        return {"text": "", "verdict": "", "note": ""}
    text = _number(finding["value"])
    if finding["interval"] is not None:
        low, high = finding["interval"]
        text += f" [{low:.3f}, {high:.3f}]"
    text = f"{text} {_MARKS[finding['verdict']]}".strip()
    return {"text": text, "verdict": finding["verdict"].replace(" ", "-"), "note": finding["note"]}


def _number(value: float | None) -> str:
    if value is None:
        return ""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.0e}" if 0 < abs(value) < 0.001 else f"{value:.3f}"


def _under(finding: Mapping[str, Any]) -> str:
    return f", {finding['condition']}" if finding["condition"] else ""


def _markdown_table(rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]
