"""Commands that score, and that show scores."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from cmkd.commands import CorpusName, DataDir
from cmkd.corpora import load_corpus
from cmkd.corpora.settings import CorpusSettings

Runs = Annotated[list[Path], tyro.conf.Positional, tyro.conf.arg(metavar="RUN ...", help_behavior_hint="(one or more)")]
Model = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]


def evaluate(
    model: Model,
    name: CorpusName,
    corpus: CorpusSettings,
    data_dir: DataDir = None,
    splits: tuple[str, ...] = ("test",),
    output: Path | None = None,
    stage: str | None = None,
    revision: str | None = None,
    batch_size: int = 32,
) -> None:
    """Scores a student or a teacher on a corpus: CCC with intervals, Pearson's correlation and mean absolute error.

        cmkd evaluate runs/demo spoken-demo
        cmkd evaluate runs/demo spoken-demo --stage teacher --output evaluation
        cmkd evaluate user/cmkd-student manifest my_corpus --corpus.label_scale 1 7
        accelerate launch -m cmkd evaluate user/cmkd-student iemocap \\
          path/to/IEMOCAP_full_release --corpus.fold 1

    The corpus may have another scale than the one that the model was trained on: both are compared on the unit
    interval. `cmkd evaluate MODEL NAME --help` lists the settings of that corpus.

    Args:
        model: The model: the folder of a checkpoint or of a run, or a name on the Hub.
        name: The corpus.
        corpus: Settings of the corpus, as under `corpus:` in a recipe.
        data_dir: The folder of the corpus; null is for one that needs none.
        splits: The splits to score.
        output: The folder to write evaluation.json, the predictions and the figures to; null writes none. An earlier
            evaluation in it is replaced.
        stage: With the folder of a run, the system to score, such as teacher; null stands for the student it keeps.
        revision: The branch, tag or commit of a model on the Hub; null stands for its newest commit.
        batch_size: Utterances per device and batch; fewer need less memory.
    """
    from transformers.utils import logging

    from cmkd.processes import join_launch, leave_launch, main_process_first, print_once
    from cmkd.reporting.evaluation_report import check_output, check_splits, evaluate_checkpoint, format_evaluation
    from cmkd.runs.answers import load_checkpoint

    if batch_size < 1:
        raise ValueError(f"--batch_size is {batch_size}, but must be 1 or more.")
    logging.disable_progress_bar()  # of loading weights
    join_launch()
    if output is not None:
        check_output(output)
    with main_process_first("load the model"):
        checkpoint = load_checkpoint(model, revision, stage)
    with main_process_first("build the corpus"):
        built = load_corpus(name, data_dir, **corpus)
    check_splits(checkpoint, built, splits)
    results = evaluate_checkpoint(checkpoint, built, splits, batch_size, output)
    print_once(format_evaluation(results))
    if output is not None:
        print_once(f"\nEvaluation: {output}")
    leave_launch()


def table(runs: Runs, output: Path | None = None) -> None:
    """Puts runs into the tables of the paper, beside the published figures.

        cmkd table runs/msp_podcast/t2_* runs/iemocap/t3_* --output tables

    Args:
        runs: Folders of runs, of one seed or several, and of cross-validations.
        output: A folder for tables.md, tables.tex, tables.json and a picture; null writes none.
    """
    from cmkd.reporting.tables import format_tables, gather_tables, write_tables

    if not runs:
        raise ValueError("name at least one folder of a run, such as runs/demo.")
    tables = gather_tables(runs)
    print(format_tables(tables))
    if output is not None:
        print("\n".join(f"wrote {path}" for path in write_tables(tables, output)))
