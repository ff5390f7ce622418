"""A checkpoint scored on a corpus: what `cmkd evaluate` prints and writes.

```
<output>/evaluation.json            see `evaluate_checkpoint`
<output>/predictions/<split>.parquet  as `cmkd.scoring.evaluation.write_predictions` writes them
<output>/figures/predictions_<split>.png
```
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState

from cmkd.atomic import folder_written_whole
from cmkd.corpora.schema import Corpus
from cmkd.features.labels import rated_dimensions
from cmkd.formats import with_version
from cmkd.identity import precision
from cmkd.json_files import write_json
from cmkd.reporting.figures import draw_predictions, figure_style, format_number
from cmkd.runs.answers import Checkpoint, answer
from cmkd.runs.folder import versions
from cmkd.scoring.evaluation import Predictions, write_predictions
from cmkd.scoring.scores import describe_intervals, score_systems
from cmkd.spelling import enumerated
from configuration_cmkd import EMOTION_DIMENSIONS

NAME = "evaluation.json"


def check_output(output: Path) -> None:
    """Checks that an evaluation may be written to a folder: it is not there, empty, or an earlier evaluation.

    Raises:
        FileExistsError: it holds something else, which would be lost.
    """
    if output.exists() and not (output / NAME).is_file() and (output.is_file() or any(output.iterdir())):
        raise FileExistsError(f"{str(output)!r} is there, and holds no {NAME}: give --output another folder.")


def check_splits(checkpoint: Checkpoint, corpus: Any, splits: Sequence[str]) -> list[str]:
    """Checks that a checkpoint can be scored on these splits of a corpus.

    Returns:
        Sentences on what is missing, and left out: dimensions that the corpus does not rate or the model has not
        learnt, and transcripts for a model that reads.

    Raises:
        ValueError: the corpus is a stream, has no such split, rates no dimension that the model knows, or has not one
            transcript for a model that reads.
    """
    if not isinstance(corpus, Corpus):
        raise ValueError("corpus.streaming is true, but an evaluation takes a whole corpus: leave it out.")
    notes = []
    known = checkpoint.model.config.rated_dimensions
    for split in splits:
        if split not in corpus:
            raise ValueError(f"the corpus has no split {split!r}; it has {', '.join(corpus)}. Name some with --splits.")
        rows = corpus[split]
        rated = rated_dimensions(np.column_stack([rows[name] for name in EMOTION_DIMENSIONS]))
        if not set(rated) & set(known):
            raise ValueError(
                f"{split} is rated in {enumerated(rated) or 'no dimension'}, and the model has learnt "
                f"{enumerated(list(known))}: there is no dimension to score."
            )
        for name in EMOTION_DIMENSIONS:
            if name not in known:
                notes.append(f"{name} is not scored on {split}: the model has not learnt it.")
            elif name not in rated:
                notes.append(f"{name} is not scored on {split}: the column {name} of the corpus holds no rating.")
        if checkpoint.tokenizer is not None:
            silent = sum(not text for text in rows["transcript"])
            if silent == len(rows):
                raise ValueError(
                    f"the model reads words, but the column transcript of {split} is empty in every row: let `cmkd "
                    "transcribe` write transcripts, and give them as --corpus.transcripts FILE."
                )
            if silent:
                notes.append(f"{silent:,} of {len(rows):,} utterances of {split} have no transcript.")
    return notes


def evaluate_checkpoint(
    checkpoint: Checkpoint, corpus: Corpus, splits: Sequence[str], batch_size: int = 32, output: Path | None = None
) -> dict[str, Any]:
    """Scores a checkpoint on splits of a corpus, and writes down what it answered.

    Args:
        checkpoint: of [`cmkd.runs.answers.load_checkpoint`].
        corpus: on whatever scale; predictions and labels are compared on the unit interval.
        splits: of it.
        batch_size: utterances per device and batch.
        output: a folder to write to, which appears whole or not at all; an earlier evaluation in it is replaced. None:
            nothing is written.

    Returns:
        The content of evaluation.json: `model`, as [`cmkd.runs.answers.Checkpoint.describe`] has it; `corpus`, as in
        results.json; `versions`, `precision`; `splits`, by split what [`cmkd.scoring.scores.score_systems`] says of a
        system; `confidence`, as there; and `notes`, sentences on what is missing.

    Raises:
        ValueError: see [`check_splits`].
        FileExistsError: see [`check_output`].
    """
    notes = check_splits(checkpoint, corpus, splits)
    if output is not None:
        check_output(output)
    answers = {split: answer(checkpoint, corpus[split], batch_size)[0] for split in splits}
    name = checkpoint.stage or checkpoint.name
    known = [dimension in checkpoint.model.config.rated_dimensions for dimension in EMOTION_DIMENSIONS]
    comparable = {
        split: {name: replace(of_split, labels=np.where(known, of_split.labels, np.nan))}
        for split, of_split in answers.items()
    }
    scores = score_systems(comparable)
    results = with_version(
        NAME,
        {
            "model": checkpoint.describe(),
            "corpus": corpus.report.to_dict(),
            "versions": versions(),
            "precision": precision(PartialState().device),
            "splits": scores["systems"][name],
            "confidence": scores["confidence"],
            "notes": notes,
        },
    )
    if output is not None and PartialState().is_main_process:
        _write(output, results, answers, name)
    return results


def format_evaluation(results: Mapping[str, Any]) -> str:
    """The scores as plain text for a terminal.

    Args:
        results: the content of evaluation.json.
    """
    model, corpus = results["model"], results["corpus"]
    lines = [f"{model['name']} at {model['commit']}", f"on {corpus['name']} {corpus['version']}", ""]
    lines.append(_line("", EMOTION_DIMENSIONS))
    for split, scores in results["splits"].items():
        lines.append(f"{split}, {scores['n']:,} utterances")
        lines.append(_line("  CCC", _numbers(scores["ccc"])))
        lines.append(_line("    interval", [_interval(scores["interval"][name]) for name in EMOTION_DIMENSIONS]))
        for gender, part in scores["by_gender"].items():
            lines.append(_line(f"    {gender}, {part['n']:,}", _numbers(part["ccc"])))
        lines.append(_line("  Pearson's correlation", _numbers(scores["pearson"])))
        lines.append(_line("  mean absolute error", _numbers(scores["mae"])))
    lines += ["", describe_intervals(results["confidence"], results["splits"])]
    return "\n".join([*lines, *results["notes"]])


def _line(label: str, cells: Iterable[str]) -> str:
    return f"{label:25}" + "".join(f"{cell:>18}" for cell in cells)


def _numbers(values: Mapping[str, float | None]) -> list[str]:
    return [format_number(values[name]) for name in EMOTION_DIMENSIONS]


def _interval(interval: Sequence[float] | None) -> str:
    return "" if interval is None else f"[{interval[0]:.3f}, {interval[1]:.3f}]"


def _write(output: Path, results: Mapping[str, Any], answers: Mapping[str, Predictions], name: str) -> None:
    with folder_written_whole(output) as unfinished:
        for split, of_split in answers.items():
            columns = (of_split.ids, of_split.predictions, of_split.labels, of_split.speakers, of_split.genders)
            write_predictions(unfinished / "predictions" / f"{split}.parquet", *columns)
            (unfinished / "figures").mkdir(exist_ok=True)
            with figure_style():
                figure = draw_predictions({name: of_split}, {name: results["splits"][split]["ccc"]})
                figure.savefig(unfinished / "figures" / f"predictions_{split}.png")
        write_json(unfinished / NAME, results)
        shutil.rmtree(output, ignore_errors=True)
