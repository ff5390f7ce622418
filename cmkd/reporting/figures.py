"""The figures of the report, each a function from arrays to a matplotlib `Figure`.

They use matplotlib's object interface only, so nothing global changes and no display is needed. Draw and save them
inside `figure_style()`. Colours are those of Okabe and Ito, which colour-blind readers can tell apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from textwrap import fill
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, MultipleLocator, NullLocator, StrMethodFormatter

from cmkd.scoring.evaluation import Predictions
from cmkd.stages import BASELINE, STAGES, SYSTEM_NAMES, TEACHER
from configuration_cmkd import EMOTION_DIMENSIONS

FIGURE_DPI = 110

DIMENSION_COLOURS = {"activation": "#D55E00", "valence": "#009E73", "dominance": "#0072B2"}

_KEPT, _LEFT_OUT = "#56B4E9", "#D55E00"


def figure_style() -> AbstractContextManager[None]:
    """The fonts, lines and resolution of every figure, in effect within a `with` block."""
    return matplotlib.rc_context(
        {
            "font.size": 10,
            "axes.titlesize": 10.5,
            "axes.titleweight": "bold",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "figure.constrained_layout.h_pad": 0.08,
            "figure.constrained_layout.w_pad": 0.08,
            "grid.color": "#e6e6e6",
            "legend.frameon": False,
            "savefig.dpi": FIGURE_DPI,
            "savefig.facecolor": "white",
        }
    )


def draw_predictions(predictions: Mapping[str, Predictions], ccc: Mapping[str, Mapping[str, float | None]]) -> Figure:
    """Prediction against label: one row per system, one column per dimension, with the line of perfect agreement.

    Args:
        predictions: what each system answered on a split; one that is no stage is shown under its own name.
        ccc: the CCC of the same systems by dimension, for the titles.
    """
    figure = Figure(figsize=(9.6, 3.1 * len(predictions)), layout="constrained")
    axes = figure.subplots(len(predictions), len(EMOTION_DIMENSIONS), squeeze=False)
    for column, dimension in enumerate(EMOTION_DIMENSIONS):
        values = np.concatenate(
            [
                np.concatenate([answer.predictions[:, column], answer.labels[:, column]])
                for answer in predictions.values()
            ]
        )
        finite = values[np.isfinite(values)]
        low, high = (finite.min(), finite.max()) if len(finite) else (0.0, 1.0)
        margin = 0.04 * (high - low) + 1e-3
        limits = (low - margin, high + margin)
        for row, (system, answer) in enumerate(predictions.items()):
            panel = axes[row, column]
            few = len(answer.ids) <= 1000
            panel.axline((0, 0), slope=1, color="#4d4d4d", linewidth=1, linestyle="--")
            panel.scatter(
                answer.labels[:, column],
                answer.predictions[:, column],
                s=14 if few else 6,
                alpha=0.45 if few else 0.2,
                color=STAGES[system].colour if system in STAGES else _KEPT,
                linewidths=0,
            )
            panel.set(xlim=limits, ylim=limits, aspect="equal")
            panel.locator_params(nbins=5)
            panel.set_title(f"{dimension}: CCC {format_number(ccc[system][dimension])}")
            if column == 0:
                panel.set_ylabel(f"{SYSTEM_NAMES.get(system, system)}\nprediction")
            if row == len(predictions) - 1:
                panel.set_xlabel("label")
    return figure


def draw_residuals(residuals: np.ndarray, weights: np.ndarray, std: Sequence[float | None], threshold: float) -> Figure:
    """Histograms of the teacher's residuals on the training split, with the utterances that the hard rule leaves out.

    Args:
        residuals: (n, 3); NaN where an utterance is not rated.
        weights: (n,); 0 = left out.
        std: the standard deviation of the residuals of each dimension; None for one that is not rated.
        threshold: the threshold of the rule, in standard deviations.
    """
    figure = Figure(figsize=(9.6, 3.6), layout="constrained")
    left_out = int((weights == 0).sum())
    figure.suptitle(f"{left_out:,} of {len(weights):,} training utterances left out ({left_out / len(weights):.1%})")
    axes = figure.subplots(1, len(EMOTION_DIMENSIONS), sharex=True, sharey=True)
    scaled = residuals / np.array([value or 1.0 for value in std])  # where std is 0, so is every residual
    bins_to_threshold = 8
    reach = int(np.ceil(max(np.nanmax(np.abs(scaled)), 1.5 * threshold) / threshold * bins_to_threshold))
    edges = np.arange(-reach, reach + 1) * threshold / bins_to_threshold
    for panel, dimension, column in zip(axes, EMOTION_DIMENSIONS, scaled.T, strict=True):
        rated = column[~np.isnan(column)]
        over = np.abs(rated) > threshold
        panel.hist([rated[~over], rated[over]], bins=edges, stacked=True, color=[_KEPT, _LEFT_OUT])
        for sign in (-1, 1):
            panel.axvline(sign * threshold, color="#4d4d4d", linewidth=1.2, linestyle="--")
        share = f"{over.mean():.1%} over ±{threshold:g} std" if len(rated) else "not rated"
        panel.set_title(f"{dimension}: {share}")
        panel.set_xlabel("residual (standard deviations)")
        panel.xaxis.set_major_locator(MultipleLocator(threshold))
        panel.grid(axis="x", visible=False)
    axes[0].set_ylabel("utterances")
    return figure


def draw_learning_curves(logs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Training loss and validation CCC against epochs, one line per system; a dot marks the best validation CCC.

    Args:
        logs: each system's `training_log.json`: one entry per epoch.
    """
    figure = Figure(figsize=(9.6, 7.2), layout="constrained")
    panels = figure.subplots(2, 2).ravel()
    curves = {"train_loss": "training loss (distillation included)"}
    curves.update((f"eval_ccc_{dimension}", f"validation CCC, {dimension}") for dimension in EMOTION_DIMENSIONS)
    for panel, (key, title) in zip(panels, curves.items(), strict=True):
        for system, log in logs.items():
            if key not in log[0]:  # nobody rated this dimension
                continue
            epochs, values = [entry["epoch"] for entry in log], [entry[key] for entry in log]
            best = max(range(len(log)), key=lambda index: log[index]["eval_ccc"])
            style = {"color": STAGES[system].colour, "linestyle": STAGES[system].line_style}
            panel.plot(epochs, values, linewidth=1.8, label=SYSTEM_NAMES[system], **style)
            panel.plot(epochs[best], values[best], marker="o", markersize=6, color=STAGES[system].colour)
        panel.set_title(title)
        panel.set_xlabel("epoch")
        panel.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    panels[0].set_yscale("log")
    panels[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panels[0].yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    panels[0].yaxis.set_minor_locator(NullLocator())
    for panel in panels[2:]:
        panel.sharey(panels[1])
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


def draw_valence(scores: Mapping[str, Mapping[str, float | None]], kept: str | None) -> Figure:
    """Valence CCC of every system on validation and test, with the gap between fine-tuned baseline and teacher.

    Args:
        scores: for each system that was run, its valence CCC by split.
        kept: the system that `student/` holds, if any.
    """
    figure = Figure(figsize=(9.6, 3.8), layout="constrained")
    panel = figure.subplots()
    known = [value for splits in scores.values() for value in splits.values() if value is not None]
    panel.set_xlim(min([0.0, *known]) - 0.05, 1.0)
    baseline, teacher = (scores.get(system, {}).get("test") for system in (BASELINE, TEACHER))
    if baseline is not None and teacher is not None and teacher > baseline:
        panel.axvspan(baseline, teacher, color="#f0e442", alpha=0.35, linewidth=0, label="the gap on test")
    dot: dict[str, Any] = {"marker": "o", "markersize": 7, "linestyle": ""}
    ring: dict[str, Any] = {
        "marker": "o",
        "markersize": 12,
        "markerfacecolor": "none",
        "markeredgewidth": 1.5,
        "linestyle": "",
    }
    beside = panel.get_yaxis_transform()
    panel.text(1.01, -0.85, "test", transform=beside, va="center")
    for row, system in enumerate(SYSTEM_NAMES):
        if system not in scores:
            panel.text(0.01, row, "not run", color="#7f7f7f", va="center", backgroundcolor="white")
            continue
        validation, test = (scores[system].get(split) for split in ("validation", "test"))
        if validation is not None:
            panel.plot(validation, row, color=STAGES[system].colour, **ring)
        if test is not None:
            panel.plot(test, row, color=STAGES[system].colour, **dot)
        panel.text(1.01, row, format_number(test), transform=beside, va="center")
    panel.plot([], [], color="#4d4d4d", label="test", **dot)
    panel.plot([], [], color="#4d4d4d", label="validation", **ring)
    names = [f"{name} (kept)" if system == kept else name for system, name in SYSTEM_NAMES.items()]
    panel.set_yticks(range(len(names)), names)
    panel.set_ylim(len(names) - 0.5, -0.5)
    panel.xaxis.set_major_locator(MultipleLocator(0.1))
    panel.set_xlabel("valence CCC")
    figure.legend(loc="outside upper center", ncols=3)
    return figure


def draw_seeds(systems: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Valence CCC of each system: a dot for each seed, a stroke for the mean, and the interval of the mean.

    Args:
        systems: by stage `ccc` (the mean), `each` (a list by seed), both by dimension, and `interval`, [low, high] or
            None by dimension.
    """
    figure = Figure(figsize=(9.6, 1.4 + 0.45 * len(systems)), layout="constrained")
    panel = figure.subplots()
    beside = panel.get_yaxis_transform()
    panel.text(1.01, -0.85, "mean", transform=beside, va="center")
    for row, (stage, scores) in enumerate(systems.items()):
        value, interval = scores["ccc"]["valence"], scores["interval"]["valence"]
        panel.text(1.01, row, format_number(value), transform=beside, va="center")
        if value is None:
            continue
        each = [one["valence"] for one in scores["each"]]
        colour = STAGES[stage].colour
        if interval is not None:
            panel.plot(interval, [row, row], color=colour, linewidth=2.2, alpha=0.4, solid_capstyle="butt")
        panel.plot(each, [row] * len(each), color=colour, marker="o", markersize=6, alpha=0.7, linestyle="")
        panel.plot(value, row, color=colour, marker="|", markersize=18, markeredgewidth=2, linestyle="")
    style: dict[str, Any] = {"color": "#4d4d4d", "linestyle": ""}
    panel.plot([], [], marker="o", label="a seed", **style)
    panel.plot([], [], marker="|", markersize=14, markeredgewidth=2, label="mean over the seeds", **style)
    panel.plot([], [], color="#4d4d4d", linewidth=2.2, alpha=0.4, label="95% interval of the mean, over speakers")
    panel.set_yticks(range(len(systems)), [SYSTEM_NAMES[stage] for stage in systems])
    panel.set_ylim(len(systems) - 0.5, -0.5)
    panel.xaxis.set_major_locator(MaxNLocator(nbins=10, steps=[1, 2, 5, 10]))
    panel.set_xlabel("valence CCC on test")
    figure.legend(loc="outside upper center", ncols=3)
    return figure


def draw_valence_gap(panels: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Figure:
    """Valence CCC of the systems of each table with their intervals, and the published figures as rings.

    Args:
        panels: by title, and by stage from the bottom to the top of the method (a variant of one has another key),
            `stage`, `name`, `published`, `ccc`, `interval` [low, high] and `fold_mean`, of which the last four are None
            if there are none; `ccc` is None for a system that was not run. `seeds` has the CCC of each seed if `ccc` is
            the mean of several, and is otherwise empty. The gap begins at "audio" or, if that was not run, at the only
            variant of fine-tuning, if there is one.
    """
    heights = [0.8 + 0.4 * len(systems) for systems in panels.values()]
    figure = Figure(figsize=(9.6, 0.7 + sum(heights)), layout="constrained")
    values = [
        value
        for systems in panels.values()
        for system in systems.values()
        for value in (
            system["published"],
            system["ccc"],
            system["fold_mean"],
            *(system["interval"] or ()),
            *system["seeds"],
        )
        if value is not None
    ]
    limits = min(values, default=0.0) - 0.05, max(values, default=1.0) + 0.05
    dot: dict[str, Any] = {"marker": "o", "markersize": 7, "linestyle": ""}
    bar: dict[str, Any] = {"linewidth": 2.2, "solid_capstyle": "butt"}
    ring: dict[str, Any] = {"marker": "o", "markersize": 12, "markerfacecolor": "none", "linestyle": ""}
    seed: dict[str, Any] = {"marker": "o", "markersize": 4, "alpha": 0.6, "linestyle": ""}
    mean: dict[str, Any] = {"marker": "|", "markersize": 16, "markeredgewidth": 1.8, "linestyle": ""}
    names = [str(system["name"]) for systems in panels.values() for system in systems.values()]
    width = max(30, 85 - max(map(len, names), default=0) * 3 // 4)  # of a title, in letters: names take of the panel's
    axes = figure.subplots(len(panels), squeeze=False, height_ratios=heights or None).ravel()
    for panel, (title, systems) in zip(axes, panels.items(), strict=True):
        beside = panel.get_yaxis_transform()
        panel.text(1.01, -0.85, "ours", transform=beside, va="center")
        audio, teacher = (systems[stage]["ccc"] for stage in ("audio", TEACHER))
        tuned = [system["ccc"] for system in systems.values() if system["stage"] == BASELINE]
        if audio is None and len(tuned) == 1:  # the only one, with the ears of another student
            (audio,) = tuned
        if audio is not None and teacher is not None and teacher > audio:
            panel.axvspan(audio, teacher, color="#f0e442", alpha=0.35, linewidth=0)
        for row, system in enumerate(systems.values()):
            colour = STAGES[system["stage"]].colour
            if system["published"] is not None:
                panel.plot(system["published"], row, color=colour, **ring)
            if system["ccc"] is None:
                panel.text(1.01, row, "not run", transform=beside, va="center", color="#7f7f7f")
                continue
            if system["interval"] is not None:
                panel.plot(system["interval"], [row, row], color=colour, **bar)
            panel.plot(system["ccc"], row, color=colour, **dot)
            if system["seeds"]:
                panel.plot(system["seeds"], [row + 0.25] * len(system["seeds"]), color=colour, **seed)
            if system["fold_mean"] is not None:
                panel.plot(system["fold_mean"], row, color=colour, **mean)
            panel.text(1.01, row, format_number(system["ccc"]), transform=beside, va="center")
        panel.set(xlim=limits, ylim=(len(systems) - 0.4, -0.6), title=fill(title, width))
        panel.set_yticks(range(len(systems)), [system["name"] for system in systems.values()])
        panel.xaxis.set_major_locator(MultipleLocator(0.1))
    panel.set_xlabel("valence CCC")
    drawn = [system for systems in panels.values() for system in systems.values()]
    is_published = any(system["published"] is not None for system in drawn)
    for label, style in (("ours", dot), ("95% interval", bar), *([("published", ring)] if is_published else [])):
        panel.plot([], [], color="#4d4d4d", label=label, **style)
    if any(system["fold_mean"] is not None for system in drawn):
        panel.plot([], [], color="#4d4d4d", label="mean over folds", **mean)
    if any(system["seeds"] for system in drawn):
        panel.plot([], [], color="#4d4d4d", label="its seeds", **seed)
    if any(patch for panel in axes for patch in panel.patches):
        panel.fill_between([], [], color="#f0e442", alpha=0.35, linewidth=0, label="our gap, audio only to teacher")
    figure.legend(*panel.get_legend_handles_labels(), loc="outside upper center", ncols=5)
    return figure


def format_number(value: float | None) -> str:
    """Three decimals; `n/a` for what is undefined."""
    return "n/a" if value is None else f"{value:.3f}"
