"""What a stage is trained with: its model, its inputs and the arguments and log of its training."""

import sys
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from transformers import AutoFeatureExtractor, AutoTokenizer

from cmkd.corpora.sources import UNLABELLED, alike, corpora_of
from cmkd.cpus import usable_cpus
from cmkd.features.inputs import ChosenRows, SpeechInputs, TextInputs, UtteranceDataset
from cmkd.features.labels import rated_dimensions
from cmkd.features.store import FrozenPart, Storage, audio_keys, frozen_features
from cmkd.features.word_pieces import load_word_pieces, names_of
from cmkd.runs.conditioning import read_conditioning
from cmkd.runs.cross_fitting import Fold
from cmkd.runs.ears import load_ears, take_ears
from cmkd.runs.recipe import Recipe
from cmkd.stages import EARS, LEXICAL, Stage
from cmkd.training.arguments import CMKDTrainingArguments, plateau_schedule
from cmkd.training.sampler import Mixture
from configuration_cmkd import EMOTION_DIMENSIONS
from modeling_cmkd import CMKDStudentModel, CMKDTeacherModel

_LOGGED = ("eval_loss", "eval_ccc", "eval_mean_reciprocal_rank", "eval_recall", "eval_median_rank")
"""How the names of what the log of a training keeps of an evaluation begin."""


def build_model(
    stage: Stage, recipe: Recipe, train_labels: np.ndarray, label_scale: list[float]
) -> tuple[CMKDTeacherModel | CMKDStudentModel, Any, Any]:
    """Builds the model of a stage with pretrained encoders, its feature extractor and its tokenizer, or None for these.

    Args:
        stage: the stage.
        recipe: the recipe of the run.
        train_labels: (n, 3) on the unit interval, NaN where not rated.
        label_scale: the lowest and the highest rating of the corpus.
    """
    rated = rated_dimensions(train_labels)
    is_rated = [name in rated for name in EMOTION_DIMENSIONS]
    labels = np.where(is_rated, train_labels, 0.0)
    config: dict[str, Any] = {
        "label_scale": label_scale,
        "label_mean": np.nanmean(labels, axis=0).tolist(),
        "label_std": np.where(is_rated, np.nanstd(labels, axis=0), 1.0).tolist(),
        "rated_dimensions": rated,
        "use_weighted_layer_sum": recipe.use_weighted_layer_sum,
        "summarizer": recipe.summarizer,
    }
    settings = recipe.model_dump()

    def encoder(setting: str | None) -> tuple[Any, str | None]:
        """The folder or Hub name of an encoder, and its revision."""
        return (None, None) if setting is None else (recipe.locate(settings[setting]), settings[f"{setting}_revision"])

    speech, speech_revision = encoder(stage.speech_encoder)
    text, text_revision = encoder(stage.text_encoder)
    if stage.only_hears:
        layers = recipe.num_trainable_layers if stage.trains_encoder else 0
        takes_ears = EARS in stage.pretrained(settings)
        ears = load_ears(recipe.locate(settings[EARS]), recipe.ears_revision) if takes_ears else None
        if ears is None:
            config["word_pieces"] = word_pieces_of(stage, recipe)
        else:
            config["word_pieces"] = ears.config.word_pieces
            config["word_hidden_size"] = ears.config.word_hidden_size
        model = CMKDStudentModel.from_pretrained_encoder(
            speech, revision=speech_revision, num_trainable_layers=layers, **config
        )
        if ears is not None:
            take_ears(model, ears)
    else:
        revisions = {"speech_revision": speech_revision, "text_revision": text_revision}
        model = CMKDTeacherModel.from_pretrained_encoders(speech, text, **revisions, **config)
    # The recipe's names go into the checkpoint, not the folders where the encoders were found.
    if stage.speech_encoder is not None:
        model.config.speech_config.name_or_path = settings[stage.speech_encoder]
    if stage.text_encoder is not None and not stage.only_hears:
        model.config.text_config.name_or_path = settings[stage.text_encoder]
    return (
        model,
        speech and AutoFeatureExtractor.from_pretrained(speech, revision=speech_revision, return_attention_mask=True),
        text and AutoTokenizer.from_pretrained(text, revision=text_revision),
    )


def word_pieces_path(recipe: Recipe) -> Path:
    """The file of the pieces of words that the stage `lexical` of the run has learned to spell with."""
    return Path(recipe.output_dir) / LEXICAL / "word_pieces.json"


def word_pieces_of(stage: Stage, recipe: Recipe) -> list[str] | None:
    """The pieces that the student of a stage listens for; None if it does not."""
    if recipe.word_pieces is None or not (stage.learns_words or stage.starts_from == LEXICAL):
        return None
    return names_of(load_word_pieces(word_pieces_path(recipe)))


def split_columns(
    model: Any, corpus: DatasetDict, split: str, rows: Dataset, feature_extractor: Any, tokenizer: Any, recipe: Recipe
) -> dict[str, Any]:
    """[`input_columns`] of the rows of a split; of a fold they are chosen from what is stored for all its rows.

    Args:
        corpus: that of the run, or a fold of it.
        split: "train", for what [`training_rows`] returned, "validation" or "test".
        model, rows, feature_extractor, tokenizer, recipe: as for [`input_columns`].
    """
    if isinstance(corpus, Fold) and split in corpus.rows_of_whole:
        whole = input_columns(model, corpus.whole, feature_extractor, tokenizer, recipe)
        return {name: ChosenRows(column, corpus.rows_of_whole[split]) for name, column in whole.items()}
    return input_columns(model, rows, feature_extractor, tokenizer, recipe)


def labelled_inputs(
    model: Any,
    corpus: DatasetDict,
    rows: Mapping[str, Dataset],
    labels: Mapping[str, np.ndarray],
    feature_extractor: Any,
    tokenizer: Any,
    recipe: Recipe,
) -> dict[str, UtteranceDataset]:
    """The inputs of the model with their labels, by split, and as "learned" those of what a stage learns from.

    Args:
        corpus: that of the run, or a fold of it.
        rows: by split, and as "learned" what [`training_rows`] returned, with the training split first.
        labels: those of `rows`, each (n, 3) on the unit interval.
        model, feature_extractor, tokenizer, recipe: as for [`input_columns`].
    """
    datasets = {}
    for name, split in (("learned", "train"), ("validation", "validation"), ("test", "test")):
        columns = split_columns(model, corpus, split, rows[name], feature_extractor, tokenizer, recipe)
        datasets[name] = UtteranceDataset(columns | {"labels": labels[name]})
    rated = range(len(rows["train"]))
    columns = {name: ChosenRows(column, rated) for name, column in datasets["learned"].columns.items()}
    return datasets | {"train": UtteranceDataset(columns)}


def input_columns(model: Any, rows: Dataset, feature_extractor: Any, tokenizer: Any, recipe: Recipe) -> dict[str, Any]:
    """The columns that the model takes: the stored output of its frozen parts, or their inputs if nothing is stored."""
    columns: dict[str, Any] = {}
    cache = cache_folder(recipe)
    if feature_extractor is not None:
        inputs, encoder = SpeechInputs(rows, feature_extractor), model.speech_encoder
        features = None
        if encoder.has_frozen_part:
            settings = (encoder.num_frozen_layers, model.config.use_weighted_layer_sum, feature_extractor.to_dict())
            part = FrozenPart(encoder, model.extract_speech_features, settings, "speech")
            storage = Storage(cache, recipe.cache_dtype, recipe.cache_limit_gb, reading_processes(recipe))
            features = frozen_features(rows, inputs, audio_keys(rows), part, storage)
        columns |= {model.config.speech_input_name: inputs} if features is None else {"speech_features": features}
    if tokenizer is not None:
        tokens = TextInputs(rows, tokenizer)
        part = FrozenPart(model.text_encoder, model.extract_text_features, None, "text")
        columns["text_features"] = frozen_features(rows, tokens, tokens.ids, part, Storage(cache, recipe.cache_dtype))
    return columns


def cache_folder(recipe: Recipe) -> Path:
    """The folder of the stored output of frozen encoders."""
    return Path(recipe.cache_dir or Path(recipe.output_dir) / "cache")


def training_rows(stage: Stage, corpus: DatasetDict) -> Dataset:
    """The utterances that a stage learns from: the training split, and where it needs no labels others behind it.

    With these there is a column `corpus`; it is "" for utterances of the one corpus of a run.
    """
    rows = corpus["train"]
    if not stage.learns_unlabelled or UNLABELLED not in corpus:
        return rows
    if not corpora_of(rows):
        rows = rows.add_column("corpus", [""] * len(rows))
    return alike([rows, corpus[UNLABELLED]])


def training_data(stage: Stage, run: Path, inputs: UtteranceDataset, rows: Dataset, recipe: Recipe) -> dict[str, Any]:
    """The arguments of [`cmkd.training.trainer.CMKDTrainer`] that say what it trains on, and in which order.

    Args:
        stage, run, inputs, rows, recipe: as for [`training_columns`].
    """
    return {
        "train_dataset": training_columns(stage, run, inputs, rows, recipe),
        "train_durations": rows["duration"] if recipe.group_by_length else None,
        "train_mixture": training_mixture(rows, recipe),
    }


def training_columns(
    stage: Stage, run: Path, inputs: UtteranceDataset, rows: Dataset, recipe: Recipe
) -> UtteranceDataset:
    """The data to train on: the inputs and labels, the ids, and for a student what it takes from the teacher.

    Args:
        stage: the stage.
        run: the folder of the run, in which the teacher has been judged if the stage needs one.
        inputs: the columns of the rows.
        rows: what [`training_rows`] returned.
        recipe: the recipe of the run.
    """
    columns = inputs.columns | {"id": list(rows["id"])}
    if stage.needs_teacher:
        labelled = len(rows) - list(rows["split"]).count(UNLABELLED)
        ids, unlabelled = columns["id"][:labelled], columns["id"][labelled:]
        taught = read_conditioning(run, ids, unlabelled).controlled(recipe.control, recipe.seed)
        columns["teacher_embeddings"] = taught.embeddings
        columns["quality_weights"] = taught.weights if stage.is_conditional else np.ones_like(taught.weights)
        if recipe.prediction_weight > 0:
            by_dimension = taught.dimension_weights
            columns["teacher_predictions"] = taught.predictions
            columns["dimension_weights"] = by_dimension if stage.is_conditional else np.ones_like(by_dimension)
    if "corpus" in rows.column_names and recipe.ccc_within == "corpus":
        columns["corpora"] = np.array(numbered(rows["corpus"]))
    return UtteranceDataset(columns)


def training_mixture(rows: Dataset, recipe: Recipe) -> Mixture | None:
    """How the utterances of a stage are mixed; None if they are all of the one corpus of a run and have labels.

    Args:
        rows: what [`training_rows`] returned.
        recipe: the recipe of the run.
    """
    unlabelled, corpora = list(rows["split"]).count(UNLABELLED), corpora_of(rows)
    if not unlabelled and not corpora:
        return None
    labelled = len(rows) - unlabelled
    numbers = numbered(corpora[:labelled])
    return Mixture(numbers, recipe.corpus_sampling, unlabelled, recipe.unlabelled_ratio if unlabelled else 0.0)


def numbered(names: Iterable[Hashable]) -> list[int]:
    """The number of each name, the same for the same, in the order in which they first occur.

    >>> numbered(["b", "a", "b"])
    [0, 1, 0]
    """
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(name, len(numbers)) for name in names]


def training_arguments(recipe: Recipe, folder: Path, **others: Any) -> CMKDTrainingArguments:
    """The arguments of a trainer that writes its checkpoints into `folder`; `others` take the place of the recipe's."""
    is_taught = recipe.control != "no_distillation"
    arguments: dict[str, Any] = {
        "output_dir": str(folder),
        "seed": recipe.seed,
        "per_device_train_batch_size": recipe.batch_size,
        "per_device_eval_batch_size": recipe.batch_size,
        "gradient_accumulation_steps": recipe.gradient_accumulation_steps,
        "loss_over": recipe.loss_over,
        "num_train_epochs": recipe.num_epochs,
        "learning_rate": recipe.learning_rate,
        "encoder_learning_rate_factor": recipe.encoder_learning_rate_factor,
        "lr_scheduler_kwargs": plateau_schedule(recipe.plateau_factor, recipe.plateau_patience),
        "distillation_weight": recipe.distillation_weight if is_taught else 0.0,
        "embedding_distance": recipe.embedding_distance,
        "contrastive_temperature": recipe.contrastive_temperature,
        "prediction_weight": recipe.prediction_weight if is_taught else 0.0,
        "dataloader_num_workers": reading_processes(recipe),
        "dataloader_pin_memory": torch.cuda.is_available(),
        "ddp_find_unused_parameters": False,  # all that train have a gradient, so nobody needs to look in every step
        "disable_tqdm": not sys.stderr.isatty(),
        "use_cpu": not torch.accelerator.is_available(),
    }
    return CMKDTrainingArguments(**arguments | others)


def reading_processes(recipe: Recipe) -> int:
    """How many processes read and decode while the network runs: none on a CPU, whose cores they would take."""
    if recipe.dataloader_workers is None:
        return min(4, usable_cpus()) if torch.accelerator.is_available() else 0
    return recipe.dataloader_workers


def training_log(history: list[dict[str, float]]) -> list[dict[str, float]]:
    """One entry per epoch, merged from Trainer's history, which has one for training and one for validation."""
    epochs: dict[float, dict[str, float]] = {}
    for entry in history:
        if "loss" in entry or "eval_loss" in entry:
            row = epochs.setdefault(entry["epoch"], {"epoch": entry["epoch"]})
            row |= {"train_loss": entry["loss"], "learning_rate": entry["learning_rate"]} if "loss" in entry else {}
            row |= {key: value for key, value in entry.items() if key.startswith(_LOGGED)}
    return list(epochs.values())
