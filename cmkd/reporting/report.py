"""The report of a run: one page that shows what each stage of the method is worth.

`write_report` reads only what the run left in its output folder, so a report can be written again at any time.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from matplotlib.figure import Figure

from cmkd.atomic import written_whole
from cmkd.formats import check_version
from cmkd.json_files import read_json
from cmkd.reporting.figures import (
    draw_learning_curves,
    draw_predictions,
    draw_residuals,
    draw_valence,
    figure_style,
    format_number,
)
from cmkd.scoring.evaluation import Predictions, read_predictions
from cmkd.scoring.scores import NOTHING_COMPARED, describe_intervals, describe_test, format_p
from cmkd.spelling import enumerated
from cmkd.stages import (
    BASELINE,
    EARS,
    LEXICAL,
    STAGES,
    STUDENTS,
    SYSTEM_NAMES,
    TEACHER,
    describe_control,
    describe_variant,
)
from configuration_cmkd import EMOTION_DIMENSIONS

_SPLITS = {"validation": "val", "test": "test"}
_INITIALS = [dimension[0].upper() for dimension in EMOTION_DIMENSIONS]
_REPEAT = "repeat the stage that writes it."
_FIELDS = ("corpus", "seed", "versions", "systems", "comparisons", "confidence", "recipe")


def write_report(output_dir: str | os.PathLike[str]) -> Path:
    """Writes `report.md` and `figures/*.png` from what a run left in its output folder.

    Reads `results.json`; for the systems in it `predictions/<system>_test.parquet` and `<system>/training_log.json`;
    and, if it has an entry `conditioning`, `conditioning/train.parquet` with the columns id, residual_activation,
    residual_valence, residual_dominance (unit interval, NaN where not rated) and weight (0 = left out). A stage that
    was not run is shown as such. `results["corpus"]["notes"]`, what to keep in mind about the corpus, is at the top.

    Args:
        output_dir: the run's folder.

    Returns:
        The path of `report.md`.

    Raises:
        FileNotFoundError: if one of these files is missing; the message names it.
        ValueError: if one of them cannot be read or lacks a field; the message names both.
    """
    folder = Path(output_dir)
    results = read_json(folder / "results.json", _REPEAT)
    check_version(folder / "results.json", results)
    _require_fields(folder / "results.json", results, _FIELDS)
    predictions = {
        system: read_predictions(folder / "predictions" / f"{system}_test.parquet")
        for system in (TEACHER, BASELINE, *STUDENTS)
        if "test" in results["systems"].get(system, {})
    }
    logs = {
        system: _read_log(folder / system / "training_log.json")
        for system in SYSTEM_NAMES
        if system in results["systems"]
    }
    conditioning = _read_conditioning(folder / "conditioning" / "train.parquet") if "conditioning" in results else None

    figures = folder / "figures"
    figures.mkdir(exist_ok=True)
    with figure_style():
        sections = [
            _run_section(results),
            _systems_section(results, figures),
            *corpora_sections(results),
            _gap_section(results),
            _comparisons_section(results),
            *([_lexical_section(results)] if "lexical" in results else []),
            _teacher_section(results),
            _conditioning_section(results, conditioning, figures),
            _predictions_section(results, predictions, figures),
            _learning_section(logs, figures),
        ]
    report = folder / "report.md"
    with written_whole(report) as unfinished:
        unfinished.write_text("\n\n".join(sections) + "\n", encoding="utf-8")
    return report


def format_systems(results: Mapping[str, Any]) -> str:
    """The table of systems as plain text for a terminal, the kept student marked with an asterisk.

    Args:
        results: the content of `results.json`.
    """
    header = ["CCC, one seed", *(f"{initial} {split}" for split in _SPLITS.values() for initial in _INITIALS)]
    rows = [header, *_system_rows(results, kept=" *")]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = [
        "  ".join(cell.rjust(width) if column else cell.ljust(width) for column, (cell, width) in enumerate(cells))
        for cells in (list(zip(row, widths, strict=True)) for row in rows)
    ]
    if "student" in results:
        lines.append(f"* the student that is kept: {results['student']['reason']}")
    if "lexical" in results:
        lines.append(f"the stage {LEXICAL}: {describe_retrieval(results['lexical']['retrieval']['test'])}")
    return "\n".join(lines)


def describe_retrieval(retrieval: Mapping[str, Any]) -> str:
    """How well sentences of test are found, in words.

    Args:
        retrieval: as `cmkd.scoring.lexical.retrieval_scores` returns it.
    """
    chance = retrieval["chance"]
    return (
        f"of {retrieval['sentences']:,} test sentences it puts the right one first for "
        f"{retrieval['recall_at_1']:.1%} of the utterances ({chance['recall_at_1']:.1%} by chance), among the first 5 "
        f"for {retrieval['recall_at_5']:.1%} ({chance['recall_at_5']:.1%}), and at place "
        f"{retrieval['median_rank']:g} in the median ({chance['median_rank']:g})"
    )


def valence_gap_closed(results: Mapping[str, Any], student: str) -> float | None:
    """The fraction of the valence gap on the test split that a student closes.

    This is (student - finetune) / (teacher - finetune), where all are valence CCC: 0 is as good as the same network
    fine-tuned without a teacher, 1 as good as the teacher, which also reads the words; below 0 the teacher did harm.

    Args:
        results: the content of `results.json`.
        student: one of `cmkd.stages.STUDENTS`.

    Returns:
        The fraction; None if one of the three has no score, or if there is no gap because the teacher is not above the
        baseline.
    """
    teacher, baseline, distilled = (_score(results, name, "test", "valence") for name in (TEACHER, BASELINE, student))
    if teacher is None or baseline is None or distilled is None or teacher <= baseline:
        return None
    return (distilled - baseline) / (teacher - baseline)


def _run_section(results: Mapping[str, Any]) -> str:
    corpus = results["corpus"]
    parts = [f"# {corpus['name']} {corpus['version']}, seed {results['seed']}"]
    if corpus["notes"]:
        parts.append("\n>\n".join(f"> **Note:** {note}" for note in corpus["notes"]))
    sizes = [
        [split, f"{utterances:,}", f"{corpus['hours'][split]:.2f}", f"{corpus['speakers'][split]:,}"]
        for split, utterances in corpus["utterances"].items()
    ]
    parts.append(_table(["split", "utterances", "hours", "speakers"], sizes))
    parts += [_sources_table(corpus)] if "corpora" in corpus or "unlabelled" in corpus else []
    low, high = corpus["label_scale"]
    scale = (
        f"Labels are rated from {low:g} to {high:g}; every number below is computed on the unit interval (0 stands for "
        f"{low:g}, 1 for {high:g})."
    )
    if len({tuple(one["label_scale"]) for one in corpus.get("corpora", {}).values()}) > 1:
        scale = "Every number below is on the unit interval: 0 is the minimum of the corpus's own scale, 1 its maximum."
    skipped = ", ".join(f"{count:,} ({reason})" for reason, count in corpus["skipped"].items())
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    parts.append(f"{scale} Utterances skipped: {skipped or 'none'}. Versions: {versions}.")
    parts.append(_cost_sentence(results))
    if "control" in results:
        parts.insert(1, f"> **{describe_control(results['control'])}.**")
    return "\n\n".join(parts)


def _cost_sentence(results: Mapping[str, Any]) -> str:
    """A sentence about time, memory, precision and encoders; results of earlier versions do not have all of these."""
    cost = results["cost"]
    sessions, memory = cost.get("sessions", {}), cost.get("peak_device_memory_gb")
    took = ", ".join(
        f"{stage} {seconds:,.0f} s" + (f" in {sessions[stage]} sessions" if sessions.get(stage, 1) > 1 else "")
        for stage, seconds in cost["seconds"].items()
    )
    peak = f"{cost['peak_memory_gb']:.1f} GB" + ("" if memory is None else f", and {memory:.1f} GB of the device's")
    precisions = ", ".join(sorted({value for value in results.get("precision", {}).values() if value is not None}))
    loaded = {name: _at_commit(encoder) for name, encoder in results.get("encoders", {}).items()}
    ears = f" Ears for words: {loaded.pop(EARS)}." if EARS in loaded else ""
    encoders = "; ".join(dict.fromkeys(loaded.values()))
    return (
        f"Time: {took}, on {cost['processes']} process{'' if cost['processes'] == 1 else 'es'} ({cost['device']}). "
        f"Memory: at most {peak}. Precision: {precisions or 'not recorded'}. Encoders: {encoders or 'not recorded'}."
        f"{ears}"
    )


def _at_commit(encoder: Mapping[str, Any]) -> str:
    return f"{encoder['name']} at {encoder['commit'] or 'a commit that is not known'}"


def _systems_section(results: Mapping[str, Any], figures: Path) -> str:
    header = ["system", *(f"{initial} {split}" for split in _SPLITS for initial in _INITIALS)]
    parts = [
        "## What each stage is worth",
        "Concordance correlation coefficient (CCC; 1 is perfect) of activation (A), valence (V) and dominance (D), "
        f"each over the whole split. {describe_intervals(results['confidence'], _SPLITS)} This is one training; to "
        "see how much another seed would change, use `seeds` in a recipe.",
        _table(header, _system_rows(results, kept=" (kept)", intervals=True)),
        *variants_of(results),
    ]
    if "student" in results:
        student = results["student"]
        parts.append(f"`student/` holds the {SYSTEM_NAMES[student['stage']]}: {student['reason']}.")
    scores = {
        system: {split: _score(results, system, split, "valence") for split in _SPLITS} for system in results["systems"]
    }
    figure = draw_valence(scores, kept=_kept(results))
    parts.append(
        _save(figure, figures / "valence.png", "Valence CCC of every system: rings on validation, dots on test.")
    )
    return "\n\n".join(parts)


def variants_of(results: Mapping[str, Any]) -> list[str]:
    """A sentence that says which systems of a run are not the paper's, and in which ways; none if all are.

    Args:
        results: the content of `results.json`, of a run of one seed or of several.
    """
    ways = {stage: describe_variant(stage, results) for stage in results["systems"]}
    said = [f"{SYSTEM_NAMES[stage]}: {', '.join(of_stage.values())}" for stage, of_stage in ways.items() if of_stage]
    return [f"Not as in the paper: {'; '.join(said)}."] if said else []


def corpora_sections(results: Mapping[str, Any]) -> list[str]:
    """A section with the scores on test within each corpus of a run of several; none of a run of one.

    Args:
        results: the content of `results.json`, of one seed or several.
    """
    names = results["corpus"].get("corpora", {})
    if not names:
        return []
    rows = [
        [
            f"{label}, {name}",
            f"{scores['n']:,}",
            *(_ccc_and_interval(scores, dimension) for dimension in EMOTION_DIMENSIONS),
        ]
        for system, label in SYSTEM_NAMES.items()
        for name, scores in results["systems"].get(system, {}).get("test", {}).get("by_corpus", {}).items()
    ]
    text = (
        "CCC on test within each corpus, with its interval over the speakers. Over all corpora together a CCC also "
        "says whether one is rated above another, so that it can be higher than within any of them. Checkpoints and "
        "the student were chosen on validation by the mean of the CCC within each, all corpora counting alike."
    )
    return ["\n\n".join(["## Each corpus", text, _table(["system, corpus", "utterances", *EMOTION_DIMENSIONS], rows)])]


def _ccc_and_interval(scores: Mapping[str, Any], dimension: str) -> str:
    ccc, interval = scores["ccc"][dimension], scores["interval"][dimension]
    if ccc is None:
        return "not rated"
    return format_number(ccc) + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


def _sources_table(corpus: Mapping[str, Any]) -> str:
    """What each corpus holds and how it is rated, on its own scale."""
    labelled = corpus.get("corpora", {corpus["name"]: corpus})
    rows = [
        [
            f"{name} {one['version']}",
            ", ".join(f"{split} {number:,}" for split, number in one["utterances"].items()),
            "{:g} to {:g}".format(*one["label_scale"]),
            *(_mean_and_std(one["labels"].get("train", {}).get(dimension, {})) for dimension in EMOTION_DIMENSIONS),
        ]
        for name, one in labelled.items()
    ]
    for name, one in corpus.get("unlabelled", {"corpora": {}})["corpora"].items():
        used = f"train {one['utterances']['train']:,}, without labels"
        rows.append([f"{name} {one['version']}", used, "", "", "", ""])
    return _table(["corpus", "utterances", "scale", *(f"{name}, train" for name in EMOTION_DIMENSIONS)], rows)


def _mean_and_std(statistics: Mapping[str, Any]) -> str:
    return f"{statistics['mean']:.2f} ± {statistics['std']:.2f}" if statistics.get("rated") else "not rated"


def _gap_section(results: Mapping[str, Any]) -> str:
    heading = "## How much of the valence gap is closed (test)"
    teacher, baseline = (_score(results, system, "test", "valence") for system in (TEACHER, BASELINE))
    if teacher is None or baseline is None:
        return f"{heading}\n\nNot known: this needs both the teacher and the fine-tuned baseline, scored on test."
    if teacher > baseline:
        verdict = (
            f"The teacher, which also reads the words, is {teacher - baseline:.3f} above the same speech encoder "
            f"fine-tuned without a teacher ({teacher:.3f} against {baseline:.3f}). A student closes "
            "(student - fine-tuned) / (teacher - fine-tuned) of that gap."
        )
    else:
        verdict = (
            f"There is no gap to close: the teacher ({teacher:.3f}) is not above the same speech encoder fine-tuned "
            f"without a teacher ({baseline:.3f})."
        )
    rows = []
    for system in STUDENTS:
        valence, closed = _score(results, system, "test", "valence"), valence_gap_closed(results, system)
        if valence is None:
            cells = [_absent(results, system)] * 3
        elif closed is None:
            cells = [format_number(valence), f"{valence - baseline:+.3f}", "no gap"]
        else:
            share = f"{closed:.1%}" if closed >= 0 else f"{closed:.1%}: worse than without a teacher"
            cells = [format_number(valence), f"{valence - baseline:+.3f}", share]
        rows.append([_label(results, system, kept=" (kept)"), *cells])
    return "\n\n".join([heading, verdict, _table(["student", "valence CCC", "against fine-tuned", "gap closed"], rows)])


def _comparisons_section(results: Mapping[str, Any]) -> str:
    heading = "## Is the difference more than chance?"
    if not results["comparisons"]:
        return f"{heading}\n\n{NOTHING_COMPARED}"
    rows = [
        [
            f"{SYSTEM_NAMES[entry['system']]} less {SYSTEM_NAMES[entry['baseline']]}, {entry['split']}",
            *(_difference(entry, dimension) for dimension in EMOTION_DIMENSIONS),
        ]
        for entry in results["comparisons"]
    ]
    smallest = [value for entry in results["comparisons"] for value in entry["smallest_p"].values()]
    explanation = f"Difference in CCC, its interval over the speakers, and p. {describe_test(smallest)}"
    return "\n\n".join([heading, explanation, _table(["difference in CCC", *EMOTION_DIMENSIONS], rows)])


def _difference(entry: Mapping[str, Any], dimension: str) -> str:
    difference, interval = entry["difference"][dimension], entry["interval"][dimension]
    if difference is None or interval is None:
        return "n/a" if difference is None else f"{difference:+.3f} (one speaker)"
    low, high = interval
    p, smallest = entry["p"][dimension], entry["smallest_p"][dimension]
    return f"{difference:+.3f} [{low:+.3f}, {high:+.3f}], p = {format_p(p)} (at least {format_p(smallest)})"


def _lexical_section(results: Mapping[str, Any]) -> str:
    learned = results["lexical"]
    begun = [STAGES[stage].label for stage, start in results["starts_from"].items() if start == LEXICAL]
    found = [
        [
            split,
            *(f"{scores[name]:,}" for name in ("n", "sentences")),
            *(
                f"{scores[name]:.1%} ({scores['chance'][name]:.1%})"
                if "recall" in name
                else f"{scores[name]:g} ({scores['chance'][name]:g})"
                for name in ("recall_at_1", "recall_at_5", "median_rank")
            ),
        ]
        for split, scores in learned["retrieval"].items()
    ]
    pieces = results["recipe"].get("word_pieces")
    if pieces is None:
        what = "learned to put each utterance where the text encoder puts its sentence"
        place, aim = "the place where it puts the utterance", "where the text encoder puts the words themselves"
        names = ("the student's embedding", "the text encoder")
    else:
        what = f"learned to hear pieces of words, {pieces:,} at most"
        place, aim = "which pieces it hears and how often", "which pieces are really said"
        names = ("the pieces heard", "the pieces said")
    lines = [
        [name, *(format_number(learned[entry]["ccc"][split][dim]) for split in _SPLITS for dim in EMOTION_DIMENSIONS)]
        for name, entry in zip(names, ("ridge", "ridge_from_words"), strict=True)
    ]
    return "\n\n".join(
        [
            f"## What the stage {LEXICAL} learned",
            f"A network that only hears {what}. It saw no ratings and gives none, so it has no row above. "
            + (f"With its weights began: {enumerated(begun)}." if begun else "Nothing began with its weights yet."),
            "Whether it knows the sentence when it hears it: among all different sentences of the split, sorted by "
            f"their cosine with {place}, is the right one the first, is it one of the "
            "first 5, and at which place is it in the median? In brackets: by chance.",
            _table(["split", "utterances", "sentences", "the first", "of the first 5", "median place"], found),
            "Whether the ratings can be read from what it knows: CCC of a ridge regression on train, from that and, as "
            f"what it aims at, from {aim}. These are straight lines, not trained students; their strength is the "
            "best on validation.",
            _table(["a line from", *(f"{initial} {split}" for split in _SPLITS for initial in _INITIALS)], lines),
        ]
    )


def _teacher_section(results: Mapping[str, Any]) -> str:
    heading = "## How well the teacher fits its own training split"
    if "train" not in results["systems"].get(TEACHER, {}):
        return f"{heading}\n\nNot run."
    scores = results["systems"][TEACHER]["train"]
    rows = [
        [name, *(format_number(scores[metric][dimension]) for dimension in EMOTION_DIMENSIONS)]
        for metric, name in (("ccc", "CCC"), ("pearson", "Pearson"))
    ]
    return "\n\n".join(
        [
            heading,
            "As in Table 1 of the paper. CCC is Pearson's correlation times a factor that falls below 1 the more the "
            "predictions are shifted or squeezed (Eq. 4): where the two rows are close, they are neither.",
            _table(["teacher, train", *EMOTION_DIMENSIONS], rows),
        ]
    )


def _conditioning_section(
    results: Mapping[str, Any], conditioning: tuple[np.ndarray, np.ndarray] | None, figures: Path
) -> str:
    heading = "## Which utterances cT/S leaves out"
    if conditioning is None:
        return f"{heading}\n\nNot run."
    residuals, weights = conditioning
    judged = results["conditioning"]
    threshold = results["conditioning"]["residual_threshold"]
    std = [results["conditioning"]["residual_std"][dimension] for dimension in EMOTION_DIMENSIONS]
    over = np.abs(residuals) > threshold * np.array([math.nan if value is None else value for value in std])
    share = over.sum(axis=0) / np.maximum((~np.isnan(residuals)).sum(axis=0), 1)
    rows = [
        ["residual, standard deviation", *(format_number(value) for value in std)],
        [
            f"over {threshold:g} standard deviations",
            *("n/a" if of_it is None else f"{value:.1%}" for value, of_it in zip(share, std, strict=True)),
        ],
    ]
    return "\n\n".join(
        [
            heading,
            _judgement(judged, int(over.any(axis=1).sum()), weights),
            _table(["training split", *EMOTION_DIMENSIONS], rows),
            _save(
                draw_residuals(residuals, weights, std, threshold),
                figures / "residuals.png",
                "Residuals of the line from the teacher's predictions to the labels (Eq. 8); dashed: the threshold.",
            ),
        ]
    )


def _judgement(judged: Mapping[str, Any], poor: int, weights: np.ndarray) -> str:
    """What was judged, by which rule, and what follows; results of earlier versions know the hard rule only."""
    folds = judged.get("cross_fitting")
    by_whom = "the teacher"
    if folds is not None:
        by_whom = f"the teacher that has not heard the speaker (cross-fitting, {folds['folds']} folds)"
    found = (
        f"On {poor:,} of {len(weights):,} training utterances ({poor / len(weights):.1%}) {by_whom} is more than "
        f"{judged['residual_threshold']:g} standard deviations off in at least one dimension."
    )
    if judged.get("quality", "hard") == "hard":
        return f"{found} They are left out of the distillation term and stay in the emotion loss."
    noise = {"label_noise": " The unit of a residual is what the annotators' spread lets expect there."}
    return (
        f"{found} With quality {judged['quality']} nothing is left out: the weight in the distillation term falls from "
        f"1, to a half at the threshold in one dimension; its mean is {judged['mean_weight']:.3f}. All utterances stay "
        f"in the emotion loss.{noise.get(judged['quality'], '')}"
    )


def _predictions_section(results: Mapping[str, Any], predictions: Mapping[str, Predictions], figures: Path) -> str:
    heading = "## Prediction against label (test)"
    if not predictions:
        return f"{heading}\n\nNot run."
    ccc = {system: results["systems"][system]["test"]["ccc"] for system in predictions}
    caption = "Each dot is an utterance of the test split; on the dashed line prediction and label agree."
    return f"{heading}\n\n{_save(draw_predictions(predictions, ccc), figures / 'predictions.png', caption)}"


def _learning_section(logs: Mapping[str, list[dict[str, float]]], figures: Path) -> str:
    heading = "## Learning curves"
    if not logs:
        return f"{heading}\n\nNot run."
    students = enumerated([STAGES[name].short_name for name in STUDENTS])
    caption = (
        "Dots mark the epoch with the best mean validation CCC. "
        f"The training loss of {students} includes the distillation term."
    )
    return f"{heading}\n\n{_save(draw_learning_curves(logs), figures / 'learning_curves.png', caption)}"


def _system_rows(results: Mapping[str, Any], kept: str, intervals: bool = False) -> list[list[str]]:
    """A row for each system, run or not: its name, and its CCC of A, V and D on validation and on test."""
    rows = []
    for system in SYSTEM_NAMES:
        cells = []
        for split in _SPLITS:
            for dimension in EMOTION_DIMENSIONS:
                score = _score(results, system, split, dimension)
                cell = _absent(results, system) if score is None else format_number(score)
                if intervals and score is not None:
                    cell += _interval(results["systems"][system][split]["interval"][dimension])
                cells.append(cell)
        rows.append([_label(results, system, kept), *cells])
    return rows


def _interval(interval: Sequence[float] | None) -> str:
    """` [low, high]`, or nothing if a split has only one speaker."""
    return "" if interval is None else f" [{interval[0]:.3f}, {interval[1]:.3f}]"


def _score(results: Mapping[str, Any], system: str, split: str, dimension: str) -> float | None:
    """A CCC from `results.json`; None if the system was not run, was not scored on the split, or has no CCC."""
    splits = results["systems"].get(system, {})
    return splits[split]["ccc"][dimension] if split in splits else None


def _absent(results: Mapping[str, Any], system: str) -> str:
    """What a table shows in place of a score that is None."""
    return format_number(None) if system in results["systems"] else "not run"


def _kept(results: Mapping[str, Any]) -> str | None:
    return results["student"]["stage"] if "student" in results else None


def _label(results: Mapping[str, Any], system: str, kept: str) -> str:
    """The name of a system, followed by `kept` if it is the student to keep."""
    return SYSTEM_NAMES[system] + (kept if system == _kept(results) else "")


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, with the first column aligned to the left and the others to the right."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _save(figure: Figure, path: Path, caption: str) -> str:
    """Writes a figure and returns the Markdown that shows it in the report, which is one folder higher."""
    with written_whole(path) as unfinished:
        figure.savefig(unfinished, format=path.suffix.removeprefix("."))
    return f"![{path.stem.replace('_', ' ')}]({path.parent.name}/{path.name})\n\n{caption}"


def _require_fields(path: Path, entry: Mapping[str, Any], fields: Iterable[str]) -> None:
    missing = [field for field in fields if field not in entry]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}; it has {', '.join(entry)}")


def _read_log(path: Path) -> list[dict[str, float]]:
    """The training log of a stage, one entry per epoch, without `eval_ccc_valence` and the like if nobody rated it."""
    log = read_json(path, _REPEAT)
    if not log:
        raise ValueError(f"{path} holds no epoch: repeat the stage, which writes it")
    for entry in log:
        _require_fields(path, entry, ("epoch", "train_loss", "eval_ccc"))
    return log


def _read_conditioning(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The residuals (n, 3), NaN where not rated, and the quality weights (n,)."""
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: repeat the stage teacher, which writes it")
    table = pq.read_table(path)
    names = [f"residual_{dimension}" for dimension in EMOTION_DIMENSIONS]
    _require_fields(path, dict.fromkeys(table.column_names), [*names, "weight"])
    return np.column_stack([table[name].to_numpy() for name in names]), table["weight"].to_numpy()
