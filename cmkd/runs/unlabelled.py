"""The teacher's judgement of speech without labels, which is all that the students have of it.

`conditioning/unlabelled.parquet` has a row for each utterance, with the columns id, embedding, predicted_activation,
predicted_valence and predicted_dominance (on the unit interval), asr_confidence
([`cmkd.corpora.sources.asr_confidence`]) and weight, which is the confidence, and where teachers of several folds have
judged the utterance, too, times how far these agree ([`cmkd.quality.agreement_weights`]). The file says of which
teacher and which speech it is, and is made anew for any other.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate import PartialState
from datasets import Dataset
from torch.utils.data import Subset
from transformers import Trainer, TrainingArguments

from cmkd.atomic import written_whole
from cmkd.corpora.schema import Corpus
from cmkd.corpora.sources import UNLABELLED
from cmkd.features.inputs import UtteranceDataset
from cmkd.processes import print_once, wait_for_all
from cmkd.runs.answers import load_checkpoint
from cmkd.runs.folder import teacher_fingerprint
from cmkd.runs.recipe import Recipe
from cmkd.runs.stage import input_columns
from cmkd.stages import STUDENTS, TEACHER
from cmkd.training.collator import collate_utterances
from configuration_cmkd import EMOTION_DIMENSIONS

_ABOUT = b"cmkd"


def judge_unlabelled(recipe: Recipe, corpus: Corpus, complete: Collection[str]) -> None:
    """Lets the teacher judge the speech without labels, unless that is done or no student remains to be trained.

    All processes must call this, once the teacher is complete. What its frozen encoders compute is stored as in
    training.

    Args:
        recipe: the recipe of the run.
        corpus: that of the run.
        complete: the stages that need not be repeated.
    """
    untrained = set(recipe.stages) & set(STUDENTS) - set(complete)
    if UNLABELLED not in corpus or not untrained:
        return
    path = Path(recipe.output_dir) / "conditioning" / "unlabelled.parquet"
    about = {"teacher": teacher_fingerprint(recipe.teacher_folder), "unlabelled": corpus.report.unlabelled_version}
    known = path.is_file() and (pq.read_schema(path).metadata or {}).get(_ABOUT) == json.dumps(about).encode()
    wait_for_all("look for what the teacher says of unlabelled speech")
    if known:
        return
    rows = corpus[UNLABELLED]
    print_once(f"\n{TEACHER} on {len(rows):,} unlabelled utterances")
    logits, embeddings = _answers(recipe, rows)
    if PartialState().is_main_process:
        confidence = np.array(rows["asr_confidence"], dtype=np.float32)
        columns = {"id": pa.array(rows["id"]), "embedding": pa.array(list(embeddings.astype(np.float32)))}
        columns |= {f"predicted_{name}": pa.array(logits[:, index]) for index, name in enumerate(EMOTION_DIMENSIONS)}
        columns |= {"asr_confidence": pa.array(confidence)}
        columns |= {"weight": pa.array(confidence)}
        table = pa.table(columns).replace_schema_metadata({_ABOUT: json.dumps(about)})
        with written_whole(path) as unfinished:
            pq.write_table(table, unfinished)
    wait_for_all("judge unlabelled speech")


def _answers(recipe: Recipe, rows: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """The teacher's predictions (n, 3) and embeddings (n, size)."""
    checkpoint = load_checkpoint(str(recipe.teacher_folder / TEACHER))
    model = checkpoint.model.to(PartialState().device)
    columns = input_columns(model, rows, checkpoint.feature_extractor, checkpoint.tokenizer, recipe)
    order = np.argsort(-np.array(rows["duration"]), kind="stable")
    with tempfile.TemporaryDirectory(prefix="cmkd-") as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_eval_batch_size=recipe.batch_size,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            disable_tqdm=True,
            use_cpu=not torch.accelerator.is_available(),
            report_to="none",
        )
        trainer = Trainer(model=model, args=arguments, data_collator=collate_utterances)
        logits, embeddings = trainer.predict(Subset(UtteranceDataset(columns), order.tolist())).predictions
    place = np.argsort(order)
    return logits[place], embeddings[place]
