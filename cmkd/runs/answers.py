"""What a finished checkpoint answers on the utterances of a corpus."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset
from torch.utils.data import Subset
from transformers import AutoFeatureExtractor, AutoTokenizer, PreTrainedConfig, Trainer, TrainingArguments

from cmkd.features.inputs import SpeechInputs, TextInputs, UtteranceDataset
from cmkd.features.labels import unit_interval_labels
from cmkd.identity import folder_digest, hub_commit
from cmkd.json_files import read_json
from cmkd.scoring.evaluation import Predictions
from cmkd.spelling import did_you_mean
from cmkd.stages import STAGES, SYSTEM_NAMES
from cmkd.training.collator import collate_utterances
from cmkd.training.out_of_memory import is_out_of_memory
from modeling_cmkd import CMKDStudentModel, CMKDTeacherModel

MODELS = {model.config_class.model_type: model for model in (CMKDStudentModel, CMKDTeacherModel)}


@dataclass(frozen=True)
class Checkpoint:
    """A student or teacher with what makes its inputs.

    Attributes:
        model: in evaluation mode.
        feature_extractor: of its speech encoder; None: it does not hear.
        tokenizer: of its text encoder; None: it does not read.
        name: as it was asked for, less the folders that it lies in: a Hub name, or the name of a folder.
        commit: on the Hub, or for a folder what [`cmkd.identity.folder_digest`] says of it.
        stage: that trained it; None where no run says so.
    """

    model: CMKDStudentModel | CMKDTeacherModel
    feature_extractor: Any
    tokenizer: Any
    name: str
    commit: str
    stage: str | None

    def describe(self) -> dict[str, Any]:
        """As plain JSON; folders of this machine are not in it."""
        config = self.model.config
        return {
            "name": self.name,
            "commit": self.commit,
            "stage": self.stage,
            "type": config.model_type,
            "parameters": self.model.num_parameters(),
            "label_scale": list(config.label_scale),
            "rated_dimensions": list(config.rated_dimensions),
        }


@dataclass(frozen=True)
class Location:
    """Where a checkpoint is.

    Attributes:
        source: its own folder, or a Hub name.
        revision: its commit on the Hub; None for a folder.
        name, commit, stage: as those of [`Checkpoint`].
    """

    source: str
    revision: str | None
    name: str
    commit: str
    stage: str | None


def load_checkpoint(source: str, revision: str | None = None, stage: str | None = None) -> Checkpoint:
    """Loads a student or teacher, by the code of this package and never by code that comes with it.

    Args:
        source: the folder of a checkpoint or of a run, or a Hub name.
        revision: branch, tag or commit on the Hub; None: its newest.
        stage: which system of a run; None: the student that it keeps.

    Raises:
        ValueError: it is no checkpoint of CMKD, the run has no such stage, or a revision is given for a folder.
        OSError: there is no such folder or repository.
    """
    return _load(locate_checkpoint(source, revision, stage))


def locate_checkpoint(source: str, revision: str | None = None, stage: str | None = None) -> Location:
    """Where the checkpoint is that `load_checkpoint` loads, which raises what this does."""
    folder = Path(source)
    if not folder.is_dir():
        if stage is not None:
            raise ValueError(f"stage is {stage!r}, but {source!r} is not the folder of a run: leave it out.")
        try:
            commit = hub_commit(source, revision)
        except (OSError, ValueError) as error:
            raise OSError(f"{source!r} is neither a folder nor can it be had from the Hub: {error}") from error
        return Location(source, commit, source, commit, None)
    if revision is not None:
        raise ValueError(f"revision is {revision!r}, but {source!r} is a folder, which has no revisions: leave it out.")
    if (folder / "config.json").is_file():
        if stage is not None:
            raise ValueError(f"stage is {stage!r}, but {source!r} is one checkpoint, not a run: leave it out.")
        folder, stage = folder.absolute(), _stage_of(folder)
        return Location(str(folder), None, folder.name, folder_digest(folder), stage)
    checkpoint = _checkpoint_of_run(folder, stage)
    name = f"{folder.absolute().name}/{checkpoint.name}"
    return Location(str(checkpoint), None, name, folder_digest(checkpoint), stage or _kept_stage(folder))


def answer(checkpoint: Checkpoint, rows: Dataset, batch_size: int = 32) -> tuple[Predictions, np.ndarray]:
    """What a checkpoint answers on one split, and its embeddings (n, size), in the order of the rows.

    The frozen part of the model takes each utterance by itself, as in training, so that the answers are those of the
    run; the rest takes batches of utterances of like length. On several processes each takes its share, and all get all
    answers.

    Args:
        checkpoint: of [`load_checkpoint`].
        rows: a split of a corpus.
        batch_size: utterances per device and batch.

    Raises:
        ValueError: a sound cannot be read; the message names the utterance.
        MemoryError: a batch does not fit.
    """
    model = checkpoint.model.to(PartialState().device)
    columns: dict[str, Any] = {}
    if checkpoint.feature_extractor is not None:
        speech = SpeechInputs(rows, checkpoint.feature_extractor)
        if model.speech_encoder.has_frozen_part:
            columns["speech_features"] = _FrozenOutput(speech, model.extract_speech_features, model.device)
        else:
            columns[model.config.speech_input_name] = speech
    if checkpoint.tokenizer is not None:
        text = TextInputs(rows, checkpoint.tokenizer)
        columns["text_features"] = _FrozenOutput(text, model.extract_text_features, model.device)
    logits, embeddings = predict_by_length(model, columns, rows["duration"], batch_size)
    ids, speakers, genders = (list(rows[name]) for name in ("id", "speaker", "gender"))
    return Predictions(ids, logits, unit_interval_labels(rows), speakers, genders), embeddings


def predict_by_length(
    model: Any, columns: Mapping[str, Any], durations: Sequence[float], batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """What a model answers, (n, 3) and (n, size), in the order of its inputs, in batches of utterances of like length.

    On several processes each takes its share, and all get all answers.

    Args:
        model: on its device.
        columns: its inputs by name, one per utterance.
        durations: of the utterances, in seconds.
        batch_size: utterances per device and batch.

    Raises:
        ValueError: a sound cannot be read; the message names the utterance.
        MemoryError: a batch does not fit.
    """
    order = np.argsort(-np.array(durations), kind="stable")  # the longest first: whether they fit shows at once
    with tempfile.TemporaryDirectory(prefix="cmkd-") as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_eval_batch_size=batch_size,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            disable_tqdm=not sys.stderr.isatty(),
            use_cpu=not torch.accelerator.is_available(),
            report_to="none",
        )
        trainer = Trainer(model=model, args=arguments, data_collator=collate_utterances)
        try:
            logits, embeddings = trainer.predict(Subset(UtteranceDataset(columns), order.tolist())).predictions
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            longest = max(durations)
            raise MemoryError(
                f"Out of memory with batches of {batch_size} utterances of up to {longest:.1f} s: take a smaller "
                "--batch_size."
            ) from error
    place = np.argsort(order)
    return logits[place], embeddings[place]


class _FrozenOutput(Sequence):
    """The output of a frozen part, computed when it is asked for, of each utterance by itself, as in training.

    Args:
        inputs: of the part, utterance by utterance.
        extract: takes a batch, and returns its features and their mask.
        device: of the part.
    """

    def __init__(self, inputs: Sequence, extract: Callable, device: torch.device):
        self.inputs, self.extract, self.device = inputs, extract, device

    def __len__(self) -> int:
        return len(self.inputs)

    @torch.no_grad()
    def __getitem__(self, index: int) -> torch.Tensor:  # type: ignore[override]
        return self.extract(self.inputs[index][None].to(self.device))[0][0]


def _load(location: Location) -> Checkpoint:
    source, revision = location.source, location.revision
    model_type = PreTrainedConfig.get_config_dict(source, revision=revision)[0].get("model_type")
    if model_type not in MODELS:
        raise ValueError(
            f"{source!r} is of the model type {model_type!r}, but must be one of {', '.join(MODELS)}: name a "
            "checkpoint that CMKD has trained, or the folder of a run."
        )
    model = MODELS[model_type].from_pretrained(source, revision=revision, dtype=torch.float32).eval()
    feature_extractor = tokenizer = None
    if model.speech_encoder is not None:
        feature_extractor = AutoFeatureExtractor.from_pretrained(source, revision=revision, return_attention_mask=True)
    if model.text_encoder is not None:
        # With its config: else that of the folder is read, which names code, and people are asked whether to run it.
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, config=model.config.text_config)
    return Checkpoint(model, feature_extractor, tokenizer, location.name, location.commit, location.stage)


def _checkpoint_of_run(run: Path, stage: str | None) -> Path:
    if stage is not None and stage not in SYSTEM_NAMES:
        raise ValueError(
            f"stage is {stage!r}, but must be one that rates: {', '.join(SYSTEM_NAMES)}."
            f"{did_you_mean(stage, SYSTEM_NAMES)}"
        )
    checkpoint = run / (stage or "student")
    if (checkpoint / "config.json").is_file():
        return checkpoint
    trained = [name for name in STAGES if (run / name / "config.json").is_file()]
    inside = sorted(path.parent.name for path in run.glob("*/results.json"))
    if trained:
        hint = f"it has {', '.join(trained)}; name one of them, such as {run / trained[-1]}"
    elif inside:
        hint = f"it holds several runs; name one of them, such as {run / inside[0]}"
    else:
        hint = "neither a config.json nor a stage of a run is in it"
    raise FileNotFoundError(f"{str(run)!r} has no {checkpoint.name}/ with a config.json: {hint}.")


def _kept_stage(run: Path) -> str | None:
    """Of the student of a run."""
    path = run / "results.json"
    return read_json(path, "repeat the run.").get("student", {}).get("stage") if path.is_file() else None


def _stage_of(folder: Path) -> str | None:
    """That of a stage's own folder in a run; the student's if it is that."""
    if (folder / "stage.json").is_file():
        return str(read_json(folder / "stage.json", "repeat the stage.")["stage"])
    return _kept_stage(folder.absolute().parent) if folder.absolute().name == "student" else None
