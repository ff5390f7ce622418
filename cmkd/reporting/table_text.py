"""A table as it is shown, and its text in Markdown and LaTeX."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cmkd.reporting.figures import format_number
from cmkd.scoring.scores import format_p
from configuration_cmkd import EMOTION_DIMENSIONS

Scores = Mapping[str, float | None]
"""Values by dimension; None for one that is not defined or not published."""

_INITIALS = [dimension[0].upper() for dimension in EMOTION_DIMENSIONS]


@dataclass(frozen=True)
class TableRow:
    """A row as it is shown.

    Attributes:
        number: its number in the paper; "+1" and so on for systems that the paper does not have; "" for later work.
        system: the name of the system.
        stage: the stage that trains it; None for figures that are only quoted.
        published: the published figures by dimension; None if nobody has published any.
        run: the name of the folder that fills it; None if it was not run.
        score: our figures by dimension; for a cross-validation the pooled ones.
        interval: the interval of `score`, by dimension [low, high].
        folds: for a cross-validation, `{"number": …, "mean": {…}, "std": {…}}`.
        seeds: for a run of several seeds, `{"numbers": […], "std": {…}, "each": […]}`, where `std` and `each`, a list
            by seed, are those of the CCC by dimension, or None for another metric; `score` is then the mean.
        difference: ours (for a cross-validation the mean over folds) minus published, by dimension.
        paired: `{"against": number, "difference": {…}, "interval": {…}, "p": {…}, "smallest_p": {…}}` for the (pooled)
            CCC minus that of the row that it builds on; or `{"against": number, "reason": …}` if that is not known;
            None if it builds on none.
        ways: in which ways the system is not the paper's, as `cmkd.stages.describe_variant` returns them; empty if it
            is, or if nobody ran it.
    """

    number: str
    system: str
    stage: str | None
    published: Scores | None
    run: str | None = None
    score: Scores | None = None
    interval: Mapping[str, Sequence[float] | None] | None = None
    folds: Mapping[str, Any] | None = None
    seeds: Mapping[str, Any] | None = None
    difference: Scores | None = None
    paired: Mapping[str, Any] | None = None
    ways: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ResultsTable:
    """A table as it is shown.

    Attributes:
        name: its name, such as "Table 2".
        title: what it shows.
        corpus, release, split: what was scored.
        rows: its rows, in the order of the paper.
        notes: sentences that belong below it.
        runs: the runs that fill it, each with the keys `folder` (its name), `rows`, `seeds` (one or more),
            `corpus_version`, `versions`, `folds`, `transcripts`, and `settings`: those that differ from the defaults,
            by name [value, default].
        gap: for the figure, by stage, the index of its row in `rows`; a variant of a student stands under the number of
            its row in the place of its stage.
    """

    name: str
    title: str
    corpus: str
    release: str
    split: str
    rows: Sequence[TableRow]
    notes: Sequence[str]
    runs: Sequence[Mapping[str, Any]]
    gap: Mapping[str, int]

    @property
    def heading(self) -> str:
        """Its first line, which also says which rows were trained with only one seed."""
        single = [run for run in self.runs if len(run["seeds"]) == 1]
        several = len(self.runs) > len(single)
        rows = [number for run in single for number in run["rows"]]
        seeds = f"; one seed in row {', '.join(rows)}" if single and several else "; one seed" if single else ""
        return f"{self.name} on {self.corpus} {self.release}: {self.title}{seeds}"


def format_markdown(table: ResultsTable) -> str:
    """A heading, the table with aligned columns, and its notes."""
    has_published, has_paired = _parts(table)
    header = ["#", "system"]
    header += ["published A V D"] if has_published else []
    header += [f"ours {initial}" for initial in _INITIALS]
    header += ["difference A V D"] if has_published else []
    header += ["p A V D"] if has_paired else []
    lines = [header]
    for row in table.rows:
        cells = [row.number, row.system]
        cells += [" ".join(_cells_of_scores(row.published))] if has_published else []
        cells += [_absent(row)] * 3 if row.score is None else [_ours(row, name) for name in EMOTION_DIMENSIONS]
        cells += [" ".join(_cells_of_scores(row.difference, "+.3f"))] if has_published else []
        cells += [_paired_cell(row.paired)] * has_paired
        lines.append(cells)
    widths = [max(3, *(len(line[column]) for line in lines)) for column in range(len(header))]
    lines.insert(1, ["-" * width for width in widths])
    shown = [f"| {' | '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))} |" for line in lines]
    notes = [f"- {note}" for note in _all_notes(table)]
    return "\n".join([f"## {table.heading}", "", *shown, *(["", *notes] if notes else [])])


def format_latex(table: ResultsTable) -> str:
    """A `table*` that needs adjustbox and booktabs; intervals and pooled figures have a line of their own."""
    has_published, has_paired = _parts(table)
    groups = [("published", 3)] if has_published else []
    groups += [("ours", 3)] + ([("difference", 3)] if has_published else [])
    groups += [("p, on row", 4)] if has_paired else []
    above, rules, below = ["", ""], [], [r"\#", "system"]
    for name, width in groups:
        above.append(rf"\multicolumn{{{width}}}{{c}}{{{name}}}")
        rules.append(rf"\cmidrule(lr){{{len(below) + 1}-{len(below) + width}}}")
        below += [*[""] * (width - 3), *_INITIALS]
    rows = [line for row in table.rows for line in _latex_lines(row, has_published, has_paired, len(below))]
    return "\n".join(
        [
            r"\begin{table*}",
            r"\centering\footnotesize\setlength{\tabcolsep}{3pt}",
            rf"\caption{{{_escaped(table.heading)}}}",
            r"\begin{adjustbox}{max width=\textwidth}",
            rf"\begin{{tabular}}{{rp{{5cm}}{'r' * (len(below) - 2)}}}",
            r"\toprule",
            " & ".join(above) + r" \\",
            " ".join(rules),
            " & ".join(below) + r" \\",
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{adjustbox}",
            r"\par\smallskip\begin{minipage}{\linewidth}\scriptsize",
            " \\par\n".join(_escaped(note) for note in _all_notes(table)),
            r"\end{minipage}",
            r"\end{table*}",
        ]
    )


def _latex_lines(row: TableRow, has_published: bool, has_paired: bool, columns: int) -> list[str]:
    """The lines of a row: its figures, and below them those of `_ours_second`, if there are any."""
    cells, second = [row.number, _escaped(row.system)], ["", ""]
    if has_published:
        cells += _cells_of_scores(row.published)
        second += [""] * 3
    if row.score is None:
        cells.append(rf"\multicolumn{{3}}{{c}}{{{_absent(row)}}}")
    else:
        cells += [_escaped(_ours_first(row, name)) for name in EMOTION_DIMENSIONS]
        below = [_ours_second(row, name) for name in EMOTION_DIMENSIONS]
        second += [rf"{{\scriptsize {text}}}" if text else "" for text in below]
    cells += _cells_of_scores(row.difference, "+.3f") if has_published else []
    if has_paired and row.paired and "reason" in row.paired:
        cells += [row.paired["against"], rf"\multicolumn{{3}}{{l}}{{{row.paired['reason']}}}"]
    elif has_paired and row.paired:
        cells += [row.paired["against"], *_p_values(row.paired)]
        second += [""] * (columns - 4 - len(second))
        second += ["", rf"\multicolumn{{3}}{{l}}{{\scriptsize {_smallest_p(row.paired)}}}"]
        columns -= 2  # the last cell spans three
    elif has_paired:
        cells += [""] * 4
    second += [""] * (columns - len(second))
    return [" & ".join(line) + r" \\" for line in (cells, second) if any(line)]


def _parts(table: ResultsTable) -> tuple[bool, bool]:
    """Whether the table has published figures, and whether it has comparisons of rows."""
    return any(row.published for row in table.rows), any(row.paired for row in table.rows)


def _cells_of_scores(scores: Scores | None, form: str = ".3f") -> list[str]:
    if scores is None:
        return [""] * 3
    values = [scores[name] for name in EMOTION_DIMENSIONS]
    return ["–" if value is None else format(value, form) for value in values]


def _absent(row: TableRow) -> str:
    return "not run" if row.stage else ""


def _ours(row: TableRow, dimension: str) -> str:
    return f"{_ours_first(row, dimension)}{';' if row.folds else ''} {_ours_second(row, dimension)}".strip()


def _ours_first(row: TableRow, dimension: str) -> str:
    if row.folds:
        return f"{format_number(row.folds['mean'][dimension])} ± {format_number(row.folds['std'][dimension])}"
    if row.seeds and row.seeds["std"] and row.score and row.score[dimension] is not None:
        return f"{format_number(row.score[dimension])} ± {format_number(row.seeds['std'][dimension])}"
    return format_number(row.score[dimension]) if row.score else ""


def _ours_second(row: TableRow, dimension: str) -> str:
    """The interval, with the pooled figure that it belongs to if that is not shown before it."""
    interval = row.interval[dimension] if row.interval else None
    shown = f"[{interval[0]:.3f}, {interval[1]:.3f}]" if interval else ""
    return f"pooled {format_number(row.score[dimension])} {shown}".strip() if row.folds and row.score else shown


def _p_values(paired: Mapping[str, Any]) -> list[str]:
    """Three p-values, or one text that says why there are none."""
    if "reason" in paired:
        return [paired["reason"]]
    return [_p_or_na(paired["p"][name]) for name in EMOTION_DIMENSIONS]


def _smallest_p(paired: Mapping[str, Any]) -> str:
    """The bound that the p-values cannot fall below: one figure if it is the same for all rated dimensions."""
    values = [_p_or_na(paired["smallest_p"][name]) for name in EMOTION_DIMENSIONS]
    rated = sorted({value for value in values if value != _p_or_na(None)})
    return f"at least {rated[0] if len(rated) == 1 else ' '.join(values)}"


def _p_or_na(value: float | None) -> str:
    return "n/a" if value is None else format_p(value)


def _paired_cell(paired: Mapping[str, Any] | None) -> str:
    if paired is None:
        return ""
    bound = f" ({_smallest_p(paired)})" if "p" in paired else ""
    return f"on {paired['against']}: {' '.join(_p_values(paired))}{bound}"


def _all_notes(table: ResultsTable) -> list[str]:
    return [*table.notes, *(_run_sentence(run) for run in table.runs)]


def _run_sentence(run: Mapping[str, Any]) -> str:
    settings = ", ".join(f"{name} {value} instead of {default}" for name, (value, default) in run["settings"].items())
    parts = [
        f"Row {', '.join(run['rows'])}: {run['folder']}, seed{'s' * (len(run['seeds']) > 1)} "
        f"{', '.join(map(str, run['seeds']))}, corpus version {run['corpus_version']}",
        *([f"{run['folds']} folds"] if run["folds"] else []),
        settings or "all defaults",
        *run["transcripts"],
    ]
    return "; ".join(parts) + "."


def _escaped(text: str) -> str:
    """Text with the special characters of LaTeX escaped.

    >>> print(_escaped("a_b & 50% ± {c}"))
    a\\_b \\& 50\\% $\\pm$ \\{c\\}
    """
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$"}
    return "".join(special.get(letter, rf"\{letter}" if letter in "&%$#_{}" else letter) for letter in text)
