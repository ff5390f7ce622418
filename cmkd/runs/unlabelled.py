"""The teacher's judgement of speech without labels, which is all that the students have of it.

`conditioning/unlabelled.parquet` has a row for each utterance, with the columns id, embedding, predicted_activation,
predicted_valence and predicted_dominance (on the unit interval), asr_confidence
([`cmkd.corpora.sources.asr_confidence`]) and weight, which is the confidence, with `cross_fitting` times how far the
teachers of the folds agree ([`cmkd.quality.agreement_weights`]); weight_activation, weight_valence and weight_dominance
are the same number, since what is known is of the whole utterance. The file says of which teachers and which speech it
is, and is made anew for any other; a run without such speech has no such file.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate import PartialState

from cmkd.atomic import written_whole
from cmkd.corpora.schema import Corpus
from cmkd.corpora.sources import UNLABELLED
from cmkd.processes import print_once, wait_for_all
from cmkd.quality import agreement_weights, residual_std
from cmkd.runs.answers import load_checkpoint, predict_by_length
from cmkd.runs.conditioning import by_dimension
from cmkd.runs.cross_fitting import read_cross_fitted
from cmkd.runs.folder import teacher_fingerprint
from cmkd.runs.recipe import Recipe
from cmkd.runs.stage import input_columns
from cmkd.stages import STUDENTS, TEACHER
from configuration_cmkd import EMOTION_DIMENSIONS


def judge_unlabelled(recipe: Recipe, corpus: Corpus, complete: Collection[str]) -> None:
    """Lets the teacher judge the speech without labels, unless that is done or no student remains to be trained.

    In a run without such speech what an earlier one has left of it is removed.

    All processes must call this, once the teacher is complete and was judged on the training split. What its frozen
    encoders compute is stored as in training.

    Args:
        recipe: the recipe of the run.
        corpus: that of the run.
        complete: the stages that need not be repeated.

    Raises:
        FileNotFoundError: a teacher of a fold is not complete.
        ValueError: the teachers of the folds have not answered this speech.
    """
    path = Path(recipe.output_dir) / "conditioning" / "unlabelled.parquet"
    if UNLABELLED not in corpus:
        if PartialState().is_main_process:
            path.unlink(missing_ok=True)  # of an earlier run in this folder, which had such speech
        return
    if not set(recipe.stages) & set(STUDENTS) - set(complete):
        return
    about = json.dumps(
        {
            "teacher": teacher_fingerprint(recipe.teacher_folder),
            "unlabelled": corpus.report.unlabelled_version,
            "cross_fitting": recipe.cross_fitting,
        }
    )
    known = path.is_file() and (pq.read_schema(path).metadata or {}).get(b"cmkd") == about.encode()
    wait_for_all("look for what the teacher says of unlabelled speech")
    if known:
        return
    rows = corpus[UNLABELLED]
    print_once(f"\n{TEACHER} on {len(rows):,} unlabelled utterances")
    checkpoint = load_checkpoint(str(recipe.teacher_folder / TEACHER))
    model = checkpoint.model.to(PartialState().device)
    inputs = input_columns(model, rows, checkpoint.feature_extractor, checkpoint.tokenizer, recipe)
    logits, embeddings = predict_by_length(model, inputs, rows["duration"], recipe.batch_size)
    if PartialState().is_main_process:
        confidence = np.array(rows["asr_confidence"], dtype=np.float32)
        weights = confidence * _agreement(recipe, list(rows["id"]))
        columns = {"id": pa.array(rows["id"]), "embedding": pa.array(list(embeddings.astype(np.float32)))}
        columns |= {f"predicted_{name}": pa.array(logits[:, index]) for index, name in enumerate(EMOTION_DIMENSIONS)}
        columns |= {f"weight_{name}": pa.array(weights) for name in EMOTION_DIMENSIONS}
        columns |= {"asr_confidence": pa.array(confidence), "weight": pa.array(weights)}
        with written_whole(path) as unfinished:
            pq.write_table(pa.table(columns).replace_schema_metadata({"cmkd": about}), unfinished)
    wait_for_all("judge unlabelled speech")


def _agreement(recipe: Recipe, ids: Sequence[str]) -> np.ndarray:
    """(n,), how far the teachers of the folds agree; 1 without cross-fitting."""
    if recipe.cross_fitting is None:
        return np.ones(len(ids), dtype=np.float32)
    disagreement = read_cross_fitted(recipe.teacher_folder, recipe.cross_fitting, ids).disagreement
    judged = pq.read_table(Path(recipe.output_dir) / "conditioning" / "train.parquet")
    spread = residual_std(torch.from_numpy(by_dimension(judged, "residual")))
    return agreement_weights(torch.from_numpy(disagreement), spread).numpy().astype(np.float32)
