"""The teacher's judgement of speech without labels, which is all that the students have of it.

`conditioning/unlabelled.parquet` has a row for each utterance, with the columns id, embedding, predicted_activation,
predicted_valence and predicted_dominance (on the unit interval), asr_confidence
([`cmkd.corpora.sources.asr_confidence`]) and weight, which is the confidence, with `cross_fitting` times how far the
teachers of the folds agree ([`cmkd.quality.agreement_weights`]); weight_activation, weight_valence and weight_dominance
are the same number, since what is known is of the whole utterance. The file says of which teachers and which speech it
is, and is made anew for any other.

The teachers of the folds answer as soon as they are trained, into `predictions/teacher_unlabelled.parquet` of their
folder, because their weights are not kept.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate import PartialState
from datasets import Dataset

from cmkd.atomic import written_whole
from cmkd.corpora.schema import Corpus
from cmkd.corpora.sources import UNLABELLED
from cmkd.processes import print_once, wait_for_all
from cmkd.quality import agreement_weights, residual_std
from cmkd.runs.answers import load_checkpoint, predict_by_length
from cmkd.runs.conditioning import by_dimension
from cmkd.runs.cross_fitting import fold_folders
from cmkd.runs.folder import teacher_fingerprint
from cmkd.runs.recipe import Recipe
from cmkd.runs.stage import input_columns
from cmkd.stages import STUDENTS, TEACHER
from configuration_cmkd import EMOTION_DIMENSIONS

_ABOUT = b"cmkd"


def judge_unlabelled(recipe: Recipe, corpus: Corpus, complete: Collection[str]) -> None:
    """Lets the teacher judge the speech without labels, unless that is done or no student remains to be trained.

    All processes must call this, once the teacher is complete and was judged on the training split. What its frozen
    encoders compute is stored as in training.

    Args:
        recipe: the recipe of the run.
        corpus: that of the run.
        complete: the stages that need not be repeated.

    Raises:
        FileNotFoundError: the teachers of the folds have not answered this speech.
    """
    untrained = set(recipe.stages) & set(STUDENTS) - set(complete)
    if UNLABELLED not in corpus or not untrained:
        return
    path = Path(recipe.output_dir) / "conditioning" / "unlabelled.parquet"
    about = {
        "teacher": teacher_fingerprint(recipe.teacher_folder),
        "unlabelled": corpus.report.unlabelled_version,
        "cross_fitting": recipe.cross_fitting,
    }
    known = _is_about(path, about)
    wait_for_all("look for what the teacher says of unlabelled speech")
    if known:
        return
    rows = corpus[UNLABELLED]
    print_once(f"\n{TEACHER} on {len(rows):,} unlabelled utterances")
    logits, embeddings = _answers(recipe, recipe.teacher_folder, rows)
    if PartialState().is_main_process:
        confidence = np.array(rows["asr_confidence"], dtype=np.float32)
        weights = confidence * _agreement(recipe, rows["id"])
        columns = {"id": pa.array(rows["id"]), "embedding": pa.array(list(embeddings.astype(np.float32)))}
        columns |= {f"predicted_{name}": pa.array(logits[:, index]) for index, name in enumerate(EMOTION_DIMENSIONS)}
        columns |= {f"weight_{name}": pa.array(weights) for name in EMOTION_DIMENSIONS}
        _write(path, columns | {"asr_confidence": pa.array(confidence), "weight": pa.array(weights)}, about)
    wait_for_all("judge unlabelled speech")


def answer_unlabelled(fold: Recipe, corpus: Corpus) -> None:
    """Lets the teacher of a fold answer the speech without labels, unless there is none or that is done.

    All processes must call this, before the weights of the teacher are removed.

    Args:
        fold: the recipe of the fold.
        corpus: that of the run.

    Raises:
        FileNotFoundError: the weights are gone.
    """
    if UNLABELLED not in corpus:
        return
    path, about = _fold_answers(Path(fold.output_dir)), {"unlabelled": corpus.report.unlabelled_version}
    known = _is_about(path, about)
    wait_for_all("look for what the teacher of a fold says of unlabelled speech")
    if known:
        return
    if not Path(fold.output_dir, TEACHER, "config.json").is_file():
        raise FileNotFoundError(
            f"The teacher of {fold.output_dir} has not answered this unlabelled speech, and its weights are not kept: "
            f"train it again with --overwrite --stages {TEACHER} ..."
        )
    rows = corpus[UNLABELLED]
    logits, _ = _answers(fold, Path(fold.output_dir), rows)
    if PartialState().is_main_process:
        columns = {"id": pa.array(rows["id"])}
        columns |= {f"predicted_{name}": pa.array(logits[:, index]) for index, name in enumerate(EMOTION_DIMENSIONS)}
        _write(path, columns, about)
    wait_for_all("answer unlabelled speech")


def _agreement(recipe: Recipe, ids: Sequence[str]) -> np.ndarray:
    """(n,), how far the teachers of the folds agree; 1 without cross-fitting."""
    if recipe.cross_fitting is None:
        return np.ones(len(ids), dtype=np.float32)
    answers = []
    for folder in fold_folders(recipe.teacher_folder, recipe.cross_fitting):
        path = _fold_answers(folder)
        table = pq.read_table(path) if path.is_file() else pa.table({"id": []})
        if table["id"].to_pylist() != list(ids):
            raise FileNotFoundError(
                f"{path} does not have the answers to this unlabelled speech, which cross_fitting needs: train the "
                "teacher with the same `unlabelled` and `cross_fitting`, or give --cross_fitting null."
            )
        answers.append(by_dimension(table, "predicted"))
    judged = pq.read_table(Path(recipe.output_dir) / "conditioning" / "train.parquet")
    spread = residual_std(torch.from_numpy(by_dimension(judged, "residual")))
    return agreement_weights(torch.from_numpy(np.stack(answers)), spread).numpy().astype(np.float32)


def _fold_answers(folder: Path) -> Path:
    return folder / "predictions" / f"{TEACHER}_{UNLABELLED}.parquet"


def _is_about(path: Path, about: Mapping[str, Any]) -> bool:
    return path.is_file() and (pq.read_schema(path).metadata or {}).get(_ABOUT) == json.dumps(about).encode()


def _write(path: Path, columns: Mapping[str, pa.Array], about: Mapping[str, Any]) -> None:
    table = pa.table(dict(columns)).replace_schema_metadata({_ABOUT: json.dumps(about)})
    with written_whole(path) as unfinished:
        pq.write_table(table, unfinished)


def _answers(recipe: Recipe, teacher_run: Path, rows: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """The teacher's predictions (n, 3) and embeddings (n, size)."""
    checkpoint = load_checkpoint(str(teacher_run / TEACHER))
    model = checkpoint.model.to(PartialState().device)
    columns = input_columns(model, rows, checkpoint.feature_extractor, checkpoint.tokenizer, recipe)
    return predict_by_length(model, columns, rows["duration"], recipe.batch_size)
