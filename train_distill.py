"""Cross-modal conditional teacher-student training (arXiv 2112.00158), end to end.

    python train_distill.py recipes/demo.yaml
    accelerate launch train_distill.py recipes/demo.yaml --seed 1 --output_dir runs/demo_1 --stages teacher cts
    python train_distill.py recipes/demo.yaml --seeds 0 1 2 --output_dir runs/demo_seeds

Stages, in order: `audio` (frozen speech encoder), `text`, `teacher` (both, frozen), `finetune` (audio-only, top layers
trained), `ts` (the same, pulled towards the teacher's embeddings) and `cts` (the same, but only where the teacher is
judged good). A stage that is complete in the output folder is not repeated. With `seeds` all of it is done for each,
one after the other, each in a folder of its own, and summed up. See cmkd/runs/recipe.py for the settings.
"""

import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset, DatasetDict
from transformers import AutoFeatureExtractor, AutoTokenizer, set_seed
from transformers.utils import logging as transformers_logging

from cmkd.corpora import load_corpus
from cmkd.corpora.schema import SPLITS, StreamedCorpus
from cmkd.features.inputs import SpeechInputs, TextInputs, UtteranceDataset
from cmkd.features.store import audio_keys, frozen_features
from cmkd.hub.push import check_push, push_run
from cmkd.identity import read_encoder
from cmkd.json_files import write_json
from cmkd.processes import join_launch, main_process_first, silent_processes, wait_for_all
from cmkd.reporting.report import format_systems, write_report
from cmkd.reporting.seeds_report import format_seeds, write_seeds_report
from cmkd.runs.checkpoints import usable_checkpoint
from cmkd.runs.cost import SessionCost
from cmkd.runs.folder import (
    begin_stage,
    check_kind,
    check_teacher_run,
    complete_stage,
    read_conditioning,
    record_session,
    remove_checkpoints,
    stage_is_complete,
    write_conditioning,
    write_embeddings,
    write_results,
)
from cmkd.runs.recipe import STAGES, Recipe, Stage, load_recipe
from cmkd.runs.seeds import gather_seeds
from cmkd.scoring.evaluation import write_predictions
from cmkd.training.arguments import CMKDTrainingArguments, plateau_schedule
from cmkd.training.collator import collate_utterances
from cmkd.training.trainer import CMKDTrainer
from configuration_cmkd import EMOTION_DIMENSIONS, CMKDStudentConfig, CMKDTeacherConfig
from modeling_cmkd import CMKDStudentModel, CMKDTeacherModel

LENGTH_CORRELATION = 0.3  # between a label and the duration, above which there is a warning


def main(arguments: list[str]) -> None:
    recipe = load_recipe(arguments[0], arguments[1:])
    run = Path(recipe.output_dir)
    transformers_logging.disable_progress_bar()
    state = join_launch()
    if torch.cuda.device_count() > 1 and state.num_processes == 1:
        raise ValueError("Several GPUs: use accelerate launch train_distill.py ..., or CUDA_VISIBLE_DEVICES=0 for one.")
    commits = check_encoders(recipe)
    if recipe.hub_model_id is not None:
        check_push(recipe.hub_model_id)
    with main_process_first("build the corpus"):
        corpus = load_corpus(**recipe.corpus)
    say(corpus.report)
    check_labels(corpus)
    if recipe.group_by_length:
        warn_of_length(corpus["train"])
    version = corpus.report.version
    trainings = [recipe] if recipe.seeds is None else [recipe.of_seed(seed) for seed in recipe.seeds]
    if recipe.teacher_run is not None and {"ts", "cts"} & set(recipe.stages):
        for training in trainings:
            check_teacher_run(training, version)
    check_kind(run, "single" if recipe.seeds is None else "seeds")
    complete = [complete_stages(training, version, commits) for training in trainings]
    wait_for_all("read the corpus")
    if recipe.seeds is not None and state.is_main_process:
        (run / "results.json").unlink(missing_ok=True)  # the summary is made anew at the end
    for training, stages in zip(trainings, complete, strict=True):
        if recipe.seeds is not None:
            say(f"\nseed {training.seed} of {recipe.seeds}")
        train_stages(training, corpus, stages, commits)
    if state.is_main_process:
        if recipe.seeds is not None:
            results = gather_seeds(run, recipe.seeds)
            say(f"\n{format_seeds(results)}\n\nReport: {write_seeds_report(run)}")
        if recipe.hub_model_id is not None:
            say(push_run(run, recipe.hub_model_id, private=recipe.hub_private))


def complete_stages(recipe: Recipe, version: str, commits: dict[str, str]) -> set[Stage]:
    """The stages of a run that are not to be repeated.

    Raises:
        ValueError: one was made, or begun, with other settings.
    """
    run, repeated = Path(recipe.output_dir), recipe.stages if recipe.overwrite else []
    complete = {
        stage for stage in STAGES if stage not in repeated and stage_is_complete(run, stage, recipe, version, commits)
    }
    if "teacher" in set(recipe.stages) - complete:
        complete -= {"ts", "cts"}  # they start anew with their teacher
    return complete


def train_stages(recipe: Recipe, corpus: DatasetDict, complete: set[Stage], commits: dict[str, str]) -> None:
    """Runs the stages of one training that are not complete, and writes its results and its report."""
    state, run, version = PartialState(), Path(recipe.output_dir), corpus.report.version
    for stage in STAGES:
        if stage not in recipe.stages:
            continue
        if stage in complete:
            say(f"\n{stage}: complete, not repeated")
            if state.is_main_process:
                remove_checkpoints(run, stage)
            continue
        cost = SessionCost(partial(record_session, run, stage))
        if state.is_main_process:
            begin_stage(run, stage, recipe, version, commits)
            if stage in ("ts", "cts"):
                write_conditioning(run, recipe.teacher_folder, recipe.residual_threshold)
        wait_for_all(f"begin the stage {stage}")
        with cost.until_interrupted(state.is_main_process):
            train_stage(stage, recipe.pinned(commits), corpus, run, cost)
    if state.is_main_process:
        results = write_results(run, corpus.report.to_dict(), recipe)
        say(f"\n{format_systems(results)}\n\nReport: {write_report(run)}")
    wait_for_all("write the report")


def check_encoders(recipe: Recipe) -> dict[str, str]:
    """Reads the configurations of all encoders, so that a wrong name or layer count is found before anything trains.

    Returns:
        The commits of those that the stages load, by the names of `cmkd.runs.recipe.ENCODERS`.

    Raises:
        ValueError: an encoder does not fit.
        OSError: there is no such encoder.
    """
    settings, commits = recipe.model_dump(), {}

    def read(name: str):
        encoder, revision = settings[name], settings[f"{name}_revision"]
        at = "" if revision is None else f" at {name}_revision={revision!r}"
        try:
            config, commits[name] = read_encoder(recipe.locate(encoder), revision)
        except (OSError, ValueError) as error:
            raise type(error)(f"{name}={encoder!r}{at} cannot be loaded: {error}") from error
        return config

    students = {stage for stage in recipe.stages if stage not in ("text", "teacher")}
    if students:
        layers = 0 if students == {"audio"} else recipe.num_trainable_layers
        speech = read("student_speech_encoder")
        CMKDStudentConfig(speech_config=speech, num_trainable_layers=layers)
    if "teacher" in recipe.stages:
        CMKDTeacherConfig(speech_config=read("teacher_speech_encoder"))
    if {"text", "teacher"} & set(recipe.stages):
        read("text_encoder")
    return commits


def check_labels(corpus: DatasetDict | StreamedCorpus) -> None:
    """Checks that there is something to learn and to choose by.

    A dimension that nobody rated in any split is left out of everything.

    Raises:
        ValueError: the corpus is a stream, a split is missing, no dimension is rated, or one has fewer than two
            different ratings in a split.
    """
    if isinstance(corpus, StreamedCorpus):
        raise ValueError("corpus.streaming is True, but training hears every utterance many times: leave it out.")
    missing = [split for split in SPLITS if split not in corpus]
    if missing:
        raise ValueError(f"The corpus has no split {' and no '.join(missing)}: training needs {', '.join(SPLITS)}.")
    labels = {split: unit_interval_labels(corpus[split]) for split in SPLITS}
    rated = rated_dimensions(np.concatenate(list(labels.values())))
    for split in SPLITS:
        for name, column in zip(EMOTION_DIMENSIONS, labels[split].T, strict=True):
            ratings = np.unique(column[~np.isnan(column)])
            if name in rated and len(ratings) < 2:
                raise ValueError(
                    f"{name} has {len(ratings)} different ratings in the split {split}: every dimension that is rated "
                    "needs at least 2 in every split."
                )
    unrated = [name for name in EMOTION_DIMENSIONS if name not in rated]
    if unrated:
        say(f"Not rated in this corpus, and not learnt: {', '.join(unrated)}")


def rated_dimensions(labels: np.ndarray) -> list[str]:
    """The dimensions in which somebody rated something, of labels (n, 3)."""
    is_rated = ~np.isnan(labels).all(axis=0)
    return [name for name, of_it in zip(EMOTION_DIMENSIONS, is_rated, strict=True) if of_it]


def warn_of_length(rows: Dataset) -> None:
    """Says where labels go with length, so that steps of like length have less of their spread."""
    durations = np.array(rows["duration"])
    for name, column in zip(EMOTION_DIMENSIONS, unit_interval_labels(rows).T, strict=True):
        rated = ~np.isnan(column)
        if not rated.any() or np.ptp(durations[rated]) == 0:
            continue
        correlation = np.corrcoef(durations[rated], column[rated])[0, 1]
        if abs(correlation) > LENGTH_CORRELATION:
            say(
                f"WARNING: {name} goes with the length of the utterance (correlation {correlation:.2f}), so steps of "
                "like length have less of its spread, which may cost CCC: compare with --group_by_length false"
            )


def train_stage(stage: str, recipe: Recipe, corpus: DatasetDict, run: Path, cost: SessionCost) -> None:
    """Trains one system, evaluates it on every split, and saves its checkpoint and predictions."""
    say(f"\n{stage}")
    folder = run / stage
    set_seed(recipe.seed)
    labels = {split: unit_interval_labels(corpus[split]) for split in SPLITS}
    model, feature_extractor, tokenizer = build_model(stage, recipe, labels["train"], corpus["train"]["label_scale"][0])
    wait_for_all("load the encoders")
    model.to(PartialState().device)
    datasets = {}
    for split in SPLITS:
        columns = input_columns(model, corpus[split], feature_extractor, tokenizer, recipe)
        datasets[split] = UtteranceDataset(columns | {"labels": labels[split]})
    ids = {split: list(corpus[split]["id"]) for split in SPLITS}
    columns = datasets["train"].columns | {"id": ids["train"]}
    if stage in ("ts", "cts"):
        embeddings, weights = read_conditioning(run, ids["train"])
        columns["teacher_embeddings"] = embeddings
        columns["quality_weights"] = weights if stage == "cts" else np.ones_like(weights)

    trainer = CMKDTrainer(
        model=model,
        args=training_arguments(recipe, folder),
        train_dataset=UtteranceDataset(columns),
        eval_dataset=datasets["validation"],
        data_collator=collate_utterances,
        train_durations=corpus["train"]["duration"] if recipe.group_by_length else None,
    )
    trainer.add_callback(cost)
    with main_process_first("read the checkpoints"):
        checkpoint = usable_checkpoint(folder)
    trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))

    for split, dataset in datasets.items():
        (logits, embeddings), _, _ = trainer.predict(dataset)
        if trainer.is_world_process_zero():
            path, rows = run / "predictions" / f"{stage}_{split}.parquet", corpus[split]
            write_predictions(path, ids[split], logits, labels[split], list(rows["speaker"]), list(rows["gender"]))
            if stage == "teacher" and split == "train":
                write_embeddings(run, ids[split], embeddings)
    weights = trainer.accelerator.get_state_dict(trainer.model)  # with FSDP from the shards of all processes
    if trainer.is_world_process_zero():
        model.save_pretrained(folder, state_dict=weights)
        for part in (feature_extractor, tokenizer):
            if part is not None:
                part.save_pretrained(folder)
        write_json(folder / "training_log.json", training_log(trainer.state.log_history))
        complete_stage(run, stage, cost.so_far())
    wait_for_all(f"save the stage {stage}")


def build_model(stage: str, recipe: Recipe, train_labels: np.ndarray, label_scale: list[float]):
    """The model of a stage with pretrained encoders, its feature extractor and tokenizer; None where it has none."""
    rated = rated_dimensions(train_labels)
    is_rated = [name in rated for name in EMOTION_DIMENSIONS]
    labels = np.where(is_rated, train_labels, 0.0)
    config: dict[str, Any] = {
        "label_scale": label_scale,
        "label_mean": np.nanmean(labels, axis=0).tolist(),
        "label_std": np.where(is_rated, np.nanstd(labels, axis=0), 1.0).tolist(),
        "rated_dimensions": rated,
        "use_weighted_layer_sum": recipe.use_weighted_layer_sum,
    }
    speech, text, speech_revision = None, None, recipe.student_speech_encoder_revision
    if stage in ("text", "teacher"):
        text = recipe.locate(recipe.text_encoder)
        speech = recipe.locate(recipe.teacher_speech_encoder) if stage == "teacher" else None
        speech_revision = recipe.teacher_speech_encoder_revision
        revisions = {"speech_revision": speech_revision, "text_revision": recipe.text_encoder_revision}
        model = CMKDTeacherModel.from_pretrained_encoders(speech, text, **revisions, **config)
    else:
        speech = recipe.locate(recipe.student_speech_encoder)
        layers = 0 if stage == "audio" else recipe.num_trainable_layers
        model = CMKDStudentModel.from_pretrained_encoder(
            speech, revision=speech_revision, num_trainable_layers=layers, **config
        )
    # The recipe's names go into the checkpoint, not the folders where the encoders were found.
    if speech is not None:
        name = recipe.teacher_speech_encoder if stage == "teacher" else recipe.student_speech_encoder
        model.config.speech_config.name_or_path = name
    if text is not None:
        model.config.text_config.name_or_path = recipe.text_encoder
    return (
        model,
        speech and AutoFeatureExtractor.from_pretrained(speech, revision=speech_revision, return_attention_mask=True),
        text and AutoTokenizer.from_pretrained(text, revision=recipe.text_encoder_revision),
    )


def input_columns(model, rows: Dataset, feature_extractor, tokenizer, recipe: Recipe) -> dict[str, Any]:
    """What the model is fed with: the stored output of its frozen parts, or their inputs where nothing is stored."""
    columns: dict[str, Any] = {}
    cache = Path(recipe.cache_dir or Path(recipe.output_dir) / "cache")
    if feature_extractor is not None:
        inputs, encoder = SpeechInputs(rows, feature_extractor), model.speech_encoder
        features = None
        if encoder.has_frozen_part:
            settings = (encoder.num_frozen_layers, model.config.use_weighted_layer_sum, feature_extractor.to_dict())
            part = (encoder, model.extract_speech_features, settings, "speech")
            stored_as = (recipe.cache_dtype, recipe.cache_limit_gb, reading_processes(recipe))
            features = frozen_features(cache, rows, inputs, audio_keys(rows), *part, *stored_as)
        columns |= {model.config.speech_input_name: inputs} if features is None else {"speech_features": features}
    if tokenizer is not None:
        tokens = TextInputs(rows, tokenizer)
        reading = (model.text_encoder, model.extract_text_features, None, "text")
        columns["text_features"] = frozen_features(cache, rows, tokens, tokens.ids, *reading, recipe.cache_dtype)
    return columns


def training_arguments(recipe: Recipe, folder: Path) -> CMKDTrainingArguments:
    return CMKDTrainingArguments(
        output_dir=str(folder),
        seed=recipe.seed,
        per_device_train_batch_size=recipe.batch_size,
        per_device_eval_batch_size=recipe.batch_size,
        gradient_accumulation_steps=recipe.gradient_accumulation_steps,
        loss_over=recipe.loss_over,
        num_train_epochs=recipe.num_epochs,
        learning_rate=recipe.learning_rate,
        encoder_learning_rate_factor=recipe.encoder_learning_rate_factor,
        lr_scheduler_kwargs=plateau_schedule(recipe.plateau_factor, recipe.plateau_patience),
        distillation_weight=recipe.distillation_weight,
        embedding_distance=recipe.embedding_distance,
        dataloader_num_workers=reading_processes(recipe),
        dataloader_pin_memory=torch.cuda.is_available(),
        disable_tqdm=not sys.stderr.isatty(),
        use_cpu=not torch.accelerator.is_available(),
    )


def reading_processes(recipe: Recipe) -> int:
    """How many processes read and decode while the network runs; on a CPU they would only take its cores."""
    if recipe.dataloader_workers is None:
        return min(4, os.cpu_count() or 1) if torch.accelerator.is_available() else 0
    return recipe.dataloader_workers


def unit_interval_labels(rows: Dataset) -> np.ndarray:
    """Labels (n, 3) on the unit interval, NaN where not rated."""
    minimum, maximum = rows["label_scale"][0]
    values = np.stack([np.array(rows[name], dtype=np.float32) for name in EMOTION_DIMENSIONS], axis=1)
    return (values - minimum) / (maximum - minimum)


def training_log(history: list[dict[str, float]]) -> list[dict[str, float]]:
    """One entry an epoch from Trainer's history, which has one for training and one for validation."""
    epochs: dict[float, dict[str, float]] = {}
    for entry in history:
        if "loss" in entry or "eval_ccc" in entry:
            row = epochs.setdefault(entry["epoch"], {"epoch": entry["epoch"]})
            row |= {"train_loss": entry["loss"], "learning_rate": entry["learning_rate"]} if "loss" in entry else {}
            row |= {key: value for key, value in entry.items() if key == "eval_loss" or key.startswith("eval_ccc")}
    return list(epochs.values())


def say(text: Any) -> None:
    if PartialState().is_main_process:
        print(text, flush=True)


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(__doc__)
        sys.exit(0)
    try:
        main(sys.argv[1:])
        if torch.distributed.is_initialized():  # else a thread of gloo may outlive the interpreter, which aborts
            torch.distributed.destroy_process_group()
    except (ValueError, OSError, FloatingPointError, MemoryError) as error:
        sys.exit(f"train_distill: {error}")
    except RuntimeError as error:
        silent = silent_processes()
        if silent is None:
            raise
        sys.exit(
            f"train_distill: {silent}: it has died or was stopped, or its machine cannot be reached. The same command, "
            f"less --overwrite, goes on where it stopped. ({error})"
        )
    except KeyboardInterrupt:
        again = ", less --overwrite," if "--overwrite" in sys.argv else ""
        print(f"train_distill: interrupted. The same command{again} goes on where it stopped.", file=sys.stderr)
        sys.exit(130)
