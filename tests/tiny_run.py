"""The folder of a run whose networks are tiny and whose predictions are drawn: all that a push reads, without training.

It also holds what a push must leave behind: an optimizer's state, sound, predictions, and paths of this machine.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from small_models import TINY, tiny_text
from transformers import HubertConfig, Wav2Vec2FeatureExtractor

from cmkd.scoring.evaluation import Predictions
from cmkd.scoring.scores import score_systems
from configuration_cmkd import EMOTION_DIMENSIONS, CMKDStudentConfig, CMKDTeacherConfig
from modeling_cmkd import CMKDStudentModel, CMKDTeacherModel

TERMS = "Toys is licensed by the Institute of Toys to you alone."
SECRET = "anna_said_so"  # stands in everything that must not be pushed


def make_scores(systems=("teacher", "finetune", "ts", "cts"), speakers=9) -> dict:
    """Scores of drawn predictions, which get better from system to system."""
    generator = np.random.default_rng(0)
    answers: dict[str, dict[str, Predictions]] = {}
    for split in ("train", "validation", "test"):
        names = [f"{split}{row % speakers}" for row in range(4 * speakers)]
        genders = ["female" if row % speakers % 2 else "male" for row in range(len(names))]
        labels = generator.uniform(size=(len(names), 3))
        answers[split] = {
            system: Predictions(
                [f"{SECRET}_{split}_{row}" for row in range(len(names))],
                labels + (0.5 - 0.1 * rank) * generator.normal(size=labels.shape),
                labels,
                names,
                genders,
            )
            for rank, system in enumerate(systems)
        }
    return score_systems(answers)


def make_results(folder: Path, terms: str = TERMS, **arguments) -> dict:
    """results.json, with paths of this machine where a user's run may have them."""
    return {
        "corpus": {
            "name": "toys",
            "version": "1.0",
            "label_scale": [1.0, 7.0],
            "utterances": {"train": 36, "validation": 36, "test": 36},
            "hours": {"train": 1.5, "validation": 0.1, "test": None},
            "speakers": {"train": 9, "validation": 9, "test": 9},
            "labels": {"train": {name: {"rated": 36, "mean": 4.0, "std": 1.2} for name in EMOTION_DIMENSIONS}},
            "durations": {"train": {"1-2": 30, "2-3": 6}},
            "skipped": {"empty audio": 3},
            "warnings": [f"there are 1.5 h in {folder}/corpus, but Toys 1.0 has 84 h"],
            "notes": [f"the first utterance is {SECRET}"],
            "terms": terms,
        },
        "seed": 7,
        "versions": {"cmkd": "0.1.0", "torch": "2.13.0"},
        **make_scores(**arguments),
        "recipe": {
            "corpus": {"name": "toys", "data_dir": f"{folder}/corpus", "transcripts": f"{folder}/words.parquet"},
            "student_speech_encoder": "tones/speech",
            "teacher_speech_encoder": f"{folder}/models/big",
            "text_encoder": "tones/text",
            "num_epochs": 3,
        },
        "cost": {
            "seconds": {"teacher": 12.0, "ts": 34.5, "cts": 30.0},
            "peak_memory_gb": 1.25,
            "processes": 1,
            "device": "cpu",
        },
        "conditioning": {
            "discarded_fraction": 0.127,
            "residual_threshold": 2.0,
            "residual_std": {"activation": 0.1, "valence": 0.2, "dominance": 0.05},
        },
        "student": {"stage": "cts", "reason": "better mean CCC on validation (T/S 0.500, cT/S 0.600)"},
    }


def make_networks(run: Path) -> None:
    torch.manual_seed(0)
    speech = HubertConfig(**TINY)
    speech.name_or_path = "tones/speech"
    text, tokenizer = tiny_text(run, "what", "said")
    text.name_or_path = "tones/text"
    scale = {"label_scale": (1, 7), "gru_hidden_size": 8, "embedding_size": 8}
    models_by_folder = {
        "student": CMKDStudentModel(CMKDStudentConfig(speech_config=speech, num_trainable_layers=1, **scale)),
        "teacher": CMKDTeacherModel(CMKDTeacherConfig(speech_config=speech, text_config=text, **scale)),
    }
    for name, model in models_by_folder.items():
        model.save_pretrained(run / name)
        Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(run / name)
    tokenizer.save_pretrained(run / "teacher")


def make_run(run: Path) -> Path:
    """A complete run in an empty folder, with files beside the checkpoints that are nobody else's business."""
    run.mkdir(parents=True, exist_ok=True)
    make_networks(run)
    (run / "results.json").write_text(json.dumps(make_results(run.parent)))
    for name in ("student", "teacher"):
        for extra in ("optimizer.pt", "training_args.bin", "stage.json", "training_log.json", f"{SECRET}.wav"):
            (run / name / extra).write_text(SECRET)
        (run / name / "train_embeddings.parquet").write_text(SECRET)
        (run / name / "checkpoint-3").mkdir()
        (run / name / "checkpoint-3/model.safetensors").write_text(SECRET)
    (run / "predictions").mkdir()
    (run / "predictions/cts_test.parquet").write_text(SECRET)
    return run


def copy_run(run: Path, target: Path, **changes) -> Path:
    """A copy with other fields in results.json."""
    shutil.copytree(run, target)
    results = json.loads((run / "results.json").read_text()) | changes
    (target / "results.json").write_text(json.dumps(results))
    return target
