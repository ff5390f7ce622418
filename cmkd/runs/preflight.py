"""The checks that are made before anything trains."""

import functools
from collections import Counter
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset, DatasetDict
from transformers import AutoConfig

from cmkd.corpora.schema import SPLITS, StreamedCorpus
from cmkd.corpora.sources import corpora_of
from cmkd.features.labels import label_variance, rated_dimensions, unit_interval_labels
from cmkd.features.word_pieces import check_letters, spoken_letters
from cmkd.identity import read_encoder
from cmkd.processes import print_once
from cmkd.runs.cross_fitting import fold_recipes, folds_of
from cmkd.runs.ears import check_ears, read_ears
from cmkd.runs.folder import check_teacher_run, complete_stages, start_of
from cmkd.runs.recipe import Recipe
from cmkd.runs.stage import training_rows
from cmkd.stages import EARS, ENCODERS, LEXICAL, STAGES, STUDENTS, Stage
from configuration_cmkd import EMOTION_DIMENSIONS, CMKDStudentConfig, CMKDTeacherConfig

UTTERANCES_FOR_A_CCC = 8  # of a corpus in a step, below which there is a warning
LENGTH_CORRELATION = 0.3  # between a label and the duration, above which there is a warning


def check_devices() -> None:
    """Checks that there is a process for each GPU.

    Raises:
        ValueError: there are several GPUs but only one process.
    """
    if torch.cuda.device_count() > 1 and PartialState().num_processes == 1:
        raise ValueError(
            "There are several GPUs, but only one process: use accelerate launch train_distill.py ..., or set "
            "CUDA_VISIBLE_DEVICES=0 to use one of them."
        )


def check_encoders(recipe: Recipe) -> dict[str, str]:
    """Reads the configurations of all encoders, so that a wrong name or layer count shows before anything trains.

    And that of the student whose ears are taken over, if there is one, whose encoder is compared with ours.

    Returns:
        The commits of what the stages load, by the names of `cmkd.stages.ENCODERS` and `cmkd.stages.EARS`.

    Raises:
        ValueError: an encoder does not fit, or nobody here can hear with these ears.
        OSError: there is no such encoder, or no such student.
    """
    settings, commits = recipe.model_dump(), {}
    read_once = functools.cache(read_encoder)  # the digest of a folder reads all of its weights

    def read(name: str) -> Any:
        encoder, revision = settings[name], settings[f"{name}_revision"]
        at = "" if revision is None else f" at {name}_revision={revision!r}"
        try:
            read_config = read_ears if name == EARS else AutoConfig.from_pretrained
            config, commits[name] = read_once(recipe.locate(encoder), revision, read_config)
        except (OSError, ValueError) as error:
            # One of the two, not the class of the error: those of the Hub and of JSON take other arguments.
            kind = OSError if isinstance(error, OSError) else ValueError
            raise kind(f"{name}={encoder!r}{at} cannot be loaded: {error}") from error
        return config

    stages = [STAGES[name] for name in recipe.stages]
    wanted = {name for stage in stages for name in stage.pretrained(settings)}
    configs = {name: read(name) for name in (*ENCODERS, EARS) if name in wanted}
    for stage in stages:
        if stage.speech_encoder is not None and not stage.only_hears:
            CMKDTeacherConfig(speech_config=configs[stage.speech_encoder])
        elif stage.speech_encoder is not None:
            layers = recipe.num_trainable_layers if stage.trains_encoder else 0
            CMKDStudentConfig(speech_config=configs[stage.speech_encoder], num_trainable_layers=layers)
    if EARS in configs:
        check_ears(recipe.pinned(commits))
    return commits


def check_labels(corpus: DatasetDict | StreamedCorpus) -> None:
    """Checks that the splits have labels to learn from and to choose the best checkpoint by.

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
        print_once(f"Not rated in this corpus, so not learned: {', '.join(unrated)}")


def check_words(recipe: Recipe, corpus: DatasetDict) -> None:
    """Checks that there are sentences to tell apart in every split, if a stage learns from them.

    Raises:
        ValueError: a split has fewer than two different sentences; or the students shall listen for pieces of words,
            and no stage teaches them; or they are given ears, and would begin with what a stage has taught.
    """
    for stage in recipe.stages:
        if recipe.word_pieces is not None:
            _check_pieces(STAGES[stage], recipe, corpus)
        if recipe.ears is not None and STAGES[stage].takes_ears:
            _check_start(stage, recipe)
        for split in SPLITS if STAGES[stage].learns_words else ():
            of_words = str.strip if recipe.word_pieces is None else spoken_letters
            sentences = set(map(of_words, corpus[split]["transcript"])) - {""}
            if len(sentences) < 2:
                raise ValueError(
                    f"The stage {stage} learns to tell sentences apart, but the split {split} has {len(sentences)} of "
                    "them: give the corpus its words (`cmkd transcribe` makes them), or leave the stage out."
                )


def _check_pieces(stage: Stage, recipe: Recipe, corpus: DatasetDict) -> None:
    assert recipe.word_pieces is not None
    if stage.learns_words:
        check_letters(list(training_rows(stage, corpus)["transcript"]), recipe.word_pieces)
    if stage.starts_from != LEXICAL:
        return
    for training in recipe.trainings:
        if start_of(stage.name, training) is None:
            raise ValueError(
                f"word_pieces={recipe.word_pieces}: nothing in {training.output_dir} has taught them. Put {LEXICAL} "
                f"before {stage.name} into stages, or set word_pieces to null."
            )
    _warn_of_unlearning(recipe)


def _check_start(stage: str, recipe: Recipe) -> None:
    for training in recipe.trainings:
        start = start_of(stage, training)
        if start is not None:
            raise ValueError(
                f"ears is {recipe.ears!r}, but {training.output_dir} has a complete stage {start}, with whose weights "
                f"{stage} would begin. Choose another --output_dir, or leave ears out."
            )
    _warn_of_unlearning(recipe)


def _warn_of_unlearning(recipe: Recipe) -> None:
    """Warns if the encoder below what tells word pieces apart is trained."""
    if recipe.num_trainable_layers != 0:
        print_once(
            f"WARNING: num_trainable_layers={recipe.num_trainable_layers}: what tells word pieces apart stays as it is "
            "while the encoder below it changes, so that the students may unlearn the words. 0 keeps them."
        )


def warn_of_steps(recipe: Recipe, corpus: DatasetDict) -> None:
    """Warns of what makes the CCC of a step a poor estimate, see [`warn_of_shares`] and [`warn_of_length`]."""
    warn_of_shares(recipe, corpus["train"])
    if recipe.group_by_length:
        warn_of_length(corpus["train"])


def warn_of_length(rows: Dataset) -> None:
    """Warns if labels correlate with length, because steps of similar length then have less of their spread."""
    durations = np.array(rows["duration"])
    for name, column in zip(EMOTION_DIMENSIONS, unit_interval_labels(rows).T, strict=True):
        rated = ~np.isnan(column)
        if not rated.any() or np.ptp(durations[rated]) == 0:
            continue
        correlation = np.corrcoef(durations[rated], column[rated])[0, 1]
        if abs(correlation) > LENGTH_CORRELATION:
            print_once(
                f"WARNING: {name} correlates with the length of the utterance ({correlation:.2f}), so steps of similar "
                "length have less of its spread, which may lower the CCC: compare with --group_by_length false"
            )


def warn_of_shares(recipe: Recipe, rows: Dataset) -> None:
    """Warns if a step has few utterances of a corpus, within which the CCC of the loss is then taken."""
    corpora = corpora_of(rows)
    if not corpora or recipe.corpus_sampling == "equal" or recipe.ccc_within == "all":
        return
    size = recipe.batch_size * recipe.gradient_accumulation_steps * PartialState().num_processes
    for name, number in Counter(corpora).items():
        expected = size * number / len(corpora)
        if expected < UTTERANCES_FOR_A_CCC:
            print_once(
                f"WARNING: a step of {size} utterances has about {expected:.1f} of {name}, whose CCC is then mostly "
                "chance: use larger steps, or --corpus_sampling equal"
            )


def check_teachers(recipe: Recipe, corpus: DatasetDict, commits: dict[str, str]) -> None:
    """Checks that students that learn from the teacher of another run find it there, each training its own teacher.

    And that the teacher can be judged as the recipe says.

    Raises:
        FileNotFoundError: a teacher is missing or not complete.
        ValueError: a teacher has other encoders or learned from another corpus; or the corpus has no ratings of single
            annotators or too few speakers for the judgement, or a fold was made with other settings.
    """
    if recipe.teacher_run is not None and set(STUDENTS) & set(recipe.stages):
        for training in recipe.trainings:
            check_teacher_run(training, corpus.report.version)
    if recipe.quality == "label_noise":
        label_variance(corpus["train"])
    if recipe.cross_fitting is not None:
        version = folds_of(corpus, recipe.cross_fitting)[0].report.version
        for training in recipe.trainings:
            for fold in fold_recipes(training, complete=()):
                complete_stages(fold, version, commits)
