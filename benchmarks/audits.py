"""Puts models side by side: audits each with `--quick`, compares it with the first, writes JSON and a page's section.

    python -m benchmarks.audits "demo=runs/demo" "open=students/open" "fine-tuned=runs/open/finetune" \\
        --data_dir path/to/crema-d --words path/to/emobank.csv --audits audits \\
        --output docs/results/audit.json --page docs/audit.md

The clips are 64 of CREMA-D's test actors, drawn by the seed of audits, and the same for all models. An audit that is
in `--audits` is not made again; the differences are those of [`cmkd.audit.comparison.compare_audits`], each model less
the first. Of the page, the section "Side by side" is written anew from the JSON file, up to the next heading; with no
model named, only that is done.
"""

import argparse
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from cmkd.audit.comparison import compare_audits
from cmkd.audit.run import CLEAN, Settings, audit
from cmkd.audit.subjects import load_subject
from cmkd.audit.tests import TESTS
from cmkd.corpora import load_corpus
from cmkd.corpora.schema import Corpus
from cmkd.json_files import read_json, write_json
from cmkd.reporting.figures import figure_style
from cmkd.runs.folder import versions
from configuration_cmkd import EMOTION_DIMENSIONS

BY = ("gender", "age", "race")
HEADING = "## Side by side"
COUNTED = ("passed", "failed", "undecided")
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
MARKS = "osD^"
"""As many models can be drawn."""


def run_audits(models: Mapping[str, str], folder: Path, settings: Settings, data_dir: Path) -> dict[str, Any]:
    """Audits the models and returns the content of the JSON file.

    Args:
        models: by the name that the page gives it, what `cmkd audit` is given.
        folder: where the audits are.
        settings: of all of them.
        data_dir: a copy of CREMA-D.
    """
    corpus = load_corpus("crema-d", data_dir)
    assert isinstance(corpus, Corpus)  # that is not streamed
    results, folders = {}, {}
    for name, model in models.items():
        folders[name] = folder / re.sub(r"\W+", "_", name)
        start = time.process_time()
        results[name] = audit(load_subject(model), corpus, folders[name], settings)
        print(f"{name}: {time.process_time() - start:.0f} CPU seconds")
    first, *others = models
    compared = {name: compare_audits(folders[name], folders[first]) for name in others}
    entry = results[first]
    return {
        "corpus": entry["corpus"],
        "split": entry["settings"]["split"],
        "words": entry["settings"]["words"],
        "clips": entry["clips"],
        "speakers": entry["speakers"],
        "versions": versions(),
        "models": {
            name: {
                "model": {key: result["model"][key] for key in ("name", "identity", "parameters")},
                "verdicts": result["verdicts"],
                "tests": {
                    test: result["tests"][test]["findings"]
                    for test in TESTS
                    if TESTS[test].group != "robustness" or test == "lost_concordance"
                },
            }
            for name, result in results.items()
        },
        "less_the_first": {name: comparison["conditions"] for name, comparison in compared.items()},
    }


def section(results: Mapping[str, Any], figure: str) -> str:
    """The section of the page; the figure is a file of its folder `results`."""
    models = results["models"]
    first, *others = models
    corpus = results["corpus"]
    words = "" if results["words"] is None else f", and {results['words']}"
    asked = f"{results['clips']} clips of {results['speakers']} actors of `{corpus['name']}`"
    lines = [
        HEADING,
        "",
        "<!-- python -m benchmarks.audits writes this section; do not write here -->",
        "",
        f"{asked} ({results['split']}, whose labels are derived from votes){words}. With 95 % intervals; from "
        "[results/audit.json](results/audit.json), made by",
        "",
        "```bash",
        "python -m benchmarks.audits NAME=MODEL NAME=MODEL --data_dir CREMA-D \\",
        "    --words emobank.csv --words_voices kokoro --words_models_dir path/to/kokoro \\",
        "    --audits audits --output docs/results/audit.json --page docs/audit.md",
        "```",
        "",
        *_table(["", *models], [_row(title, models, cell) for title, cell in _rows(results)]),
        "",
        f"Verdicts are {' / '.join(COUNTED)}. The gaps are the largest in size between two groups of sufficient "
        f"speakers ({', '.join(BY)}).",
        "",
        f"![CCC of each model under each condition](results/{figure})",
        "",
        "CCC of activation, valence and dominance under each condition:",
        "",
        *_table(["condition", *models], _conditions(models)),
    ]
    if others:
        lines += [
            "",
            f"CCC less that of `{first}` on the clips as they are, with intervals and p of the paired test over "
            "actors, and under how many disturbances the p of that difference is below .05; p is not corrected for "
            "their number:",
            "",
            *_table(["", *EMOTION_DIMENSIONS], _differences(results["less_the_first"])),
        ]
    return "\n".join(lines) + "\n"


def _rows(results: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """What the first table has, each a title and a function from the entry of a model to a cell."""
    units = {"parameters": "parameters", "relative_time": "time, times HuBERT Base", "working_memory": "memory, MB"}
    found: list[tuple[str, Any]] = [
        (title, lambda entry, test=test: _plain(entry["tests"][test][0]["value"])) for test, title in units.items()
    ]
    titles = {"concordance": "CCC", "follows_acting": "`follows_acting`", "follows_words": "`follows_words`"}
    for test, title in titles.items():
        found += [
            (f"{title}, {dimension}", lambda entry, test=test, of=dimension: _value(entry["tests"][test], of))
            for dimension in EMOTION_DIMENSIONS
            if any(
                finding["of"] == dimension for entry in results["models"].values() for finding in entry["tests"][test]
            )
        ]
    found += [
        (f"largest `{test}`", lambda entry, test=test: _largest(entry["tests"][test]))
        for test in ("concordance_gap", "error_gap")
    ]
    groups = next(iter(results["models"].values()))["verdicts"]
    found += [
        (f"verdicts: {group}", lambda entry, group=group: _counts(entry["verdicts"][group]))
        for group, counts in groups.items()
        if any(counts[verdict] for verdict in COUNTED)
    ]
    return found


def _row(title: str, models: Mapping[str, Any], cell: Any) -> list[str]:
    return [title, *(cell(entry) for entry in models.values())]


def _plain(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _value(findings: Sequence[Mapping[str, Any]], of: str) -> str:
    for finding in findings:
        if finding["of"] == of and finding["value"] is not None:
            return _with_interval(finding["value"], finding["interval"])
    return ""


def _largest(findings: Sequence[Mapping[str, Any]]) -> str:
    claims = [finding for finding in findings if finding["value"] is not None]
    if not claims:
        return "no claim"
    found = max(claims, key=lambda finding: abs(finding["value"]))
    return (
        f"{_with_interval(found['value'], found['interval'])} {found['of']}, {found['condition']}: {found['verdict']}"
    )


def _counts(verdicts: Mapping[str, int]) -> str:
    return " / ".join(str(verdicts[name]) for name in COUNTED)


def scores(entry: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """The CCC of a model by condition and dimension, that of the clips as they are first."""
    clean = {finding["of"]: finding["value"] for finding in entry["tests"]["concordance"]}
    found = {CLEAN: clean}
    for finding in entry["tests"]["lost_concordance"]:
        found.setdefault(finding["condition"], {})[finding["of"]] = clean[finding["of"]] - finding["value"]
    return found


def _conditions(models: Mapping[str, Any]) -> list[list[str]]:
    of_models = [scores(entry) for entry in models.values()]
    return [[_shown(condition), *(_three(of_model[condition]) for of_model in of_models)] for condition in of_models[0]]


def _shown(condition: str) -> str:
    return "as it is" if condition == CLEAN else f"`{condition}`"


def draw(results: Mapping[str, Any]) -> Figure:
    """The CCC of each model under each condition, a panel for each dimension."""
    of_models = {name: scores(entry) for name, entry in results["models"].items()}
    conditions = list(next(iter(of_models.values())))
    figure = Figure(figsize=(10, 1.4 + 0.26 * len(conditions)), layout="constrained")
    panels = figure.subplots(1, len(EMOTION_DIMENSIONS), sharey=True, sharex=True)
    for panel, dimension in zip(panels, EMOTION_DIMENSIONS, strict=True):
        for (name, of_model), colour, mark in zip(of_models.items(), COLOURS, MARKS, strict=False):
            values = [of_model[condition].get(dimension, float("nan")) for condition in conditions]
            panel.plot(values, range(len(conditions)), mark, color=colour, label=name, markersize=5)
            panel.axvline(values[0], color=colour, linewidth=0.8, linestyle=":")
        panel.set_title(dimension)
        panel.set_xlabel("CCC")
    panels[0].set_yticks(range(len(conditions)), ["as it is", *conditions[1:]])
    panels[0].invert_yaxis()
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    return figure


def _three(values: Mapping[str, float]) -> str:
    return ", ".join(_short(values[of]) if of in values else "–" for of in EMOTION_DIMENSIONS)


def _differences(compared: Mapping[str, Any]) -> list[list[str]]:
    return [
        [name, *(_difference(conditions, of) for of in EMOTION_DIMENSIONS)] for name, conditions in compared.items()
    ]


def _difference(conditions: Mapping[str, Any], of: str) -> str:
    if of not in conditions[CLEAN]:
        return "–"
    entry = conditions[CLEAN][of]
    p = "p < .001" if entry["p"] < 0.001 else f"p = {entry['p']:.3f}"
    others = [by_dimension[of]["p"] for name, by_dimension in conditions.items() if name != CLEAN]
    count = f"{sum(value < 0.05 for value in others)} of {len(others)}"
    return f"{_with_interval(entry['difference'], entry['interval'], '+')}, {p}; {count}"


def _with_interval(value: float, interval: Sequence[float] | None, sign: str = "") -> str:
    shown = f"{value:{sign}z.2f}"
    return shown if interval is None else f"{shown} [{interval[0]:z.2f}, {interval[1]:z.2f}]"


def _short(value: float) -> str:
    return f"{value:z.2f}".replace("0.", ".", 1)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [
        "| " + " | ".join(header) + " |",
        "|" + "---|" * len(header),
        *("| " + " | ".join(row) + " |" for row in rows),
    ]


def write_section(page: Path, text: str) -> None:
    """Puts the section in the place of the one of its heading.

    Raises:
        ValueError: the page has no such heading.
    """
    content = page.read_text(encoding="utf-8")
    if f"\n{HEADING}\n" not in content:
        raise ValueError(f"{page} has no heading {HEADING!r}: add it where the section is to be.")
    before, _, rest = content.partition(f"\n{HEADING}\n")
    _, next_heading, after = rest.partition("\n## ")
    page.write_text(f"{before}\n{text}{next_heading}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="NAME=MODEL")
    parser.add_argument("--data_dir", type=Path)
    parser.add_argument("--words", type=Path)
    parser.add_argument("--words_voices", default="espeak")
    parser.add_argument("--words_models_dir", type=Path)
    parser.add_argument("--words_speech_dir", type=Path)
    parser.add_argument("--audits", type=Path, default=Path("audits"))
    parser.add_argument("--output", type=Path, default=Path("docs/results/audit.json"))
    parser.add_argument("--page", type=Path, default=Path("docs/audit.md"))
    options = parser.parse_args()
    if options.models:
        if any("=" not in model for model in options.models) or options.data_dir is None:
            parser.error("name each model as NAME=MODEL, and --data_dir, a copy of CREMA-D")
        if len(options.models) > len(MARKS):
            parser.error(f"{len(options.models)} models: {len(MARKS)} at most can be told apart in the figure")
        settings = Settings(
            by=BY,
            quick=True,
            words=options.words,
            words_voices=options.words_voices,
            words_models_dir=options.words_models_dir,
            words_speech_dir=options.words_speech_dir,
        )
        models = dict(model.split("=", 1) for model in options.models)
        write_json(options.output, run_audits(models, options.audits, settings, options.data_dir))
    results = read_json(options.output, "name the models to audit.")
    figure = options.output.with_suffix(".png")
    with figure_style():
        draw(results).savefig(figure)
    write_section(options.page, section(results, figure.name))


if __name__ == "__main__":
    main()
