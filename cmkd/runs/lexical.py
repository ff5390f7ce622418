"""The stage `lexical`: what its student is taught, what it has learned, and the weights that the students begin with.

```
<run>/lexical/start.safetensors   the weights of the student, without those of its prediction head
<run>/lexical/ears.json           with `word_pieces`, its configuration, by which other runs take its ears over (`ears`)
<run>/lexical/learned.json        what they know about words, as in results.json
<run>/lexical/word_pieces.json    with `word_pieces`, the pieces that it has learned to hear
```

There is no checkpoint that `AutoModel` loads, because nothing was learned about ratings: it would answer at random.
The map from the student's embedding to the sentences is used while the stage trains, and is not kept.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import Subset
from transformers import set_seed

from cmkd.atomic import written_whole
from cmkd.corpora.schema import SPLITS, Corpus
from cmkd.corpora.sources import corpora_of
from cmkd.features.inputs import TextInputs, UtteranceDataset
from cmkd.features.labels import unit_interval_labels
from cmkd.features.store import FrozenPart, Storage, frozen_features
from cmkd.features.word_pieces import learn_word_pieces, load_word_pieces, numbers_of, save_word_pieces
from cmkd.identity import START
from cmkd.json_files import write_json
from cmkd.processes import main_process_first, print_once, wait_for_all
from cmkd.runs.checkpoints import find_checkpoints, usable_checkpoint
from cmkd.runs.cost import SessionCost
from cmkd.runs.ears import HEAD, load_start, write_ears_config
from cmkd.runs.folder import complete_stage, start_of
from cmkd.runs.recipe import Recipe
from cmkd.runs.stage import (
    build_model,
    cache_folder,
    input_columns,
    numbered,
    training_arguments,
    training_log,
    training_rows,
    word_pieces_path,
)
from cmkd.scoring.lexical import retrieval_scores, ridge_scores
from cmkd.stages import STAGES
from cmkd.training.collator import collate_utterances
from cmkd.training.lexical import METRIC, LexicalTrainer, ProjectedStudent, SpellingStudent, SpellingTrainer
from configuration_cmkd import EMOTION_DIMENSIONS
from modeling_cmkd import CMKDTeacherModel

SENTENCE_COLUMNS = ("sentences", "sentence_groups", "has_words")

Sentences = dict[str, np.ndarray]
"""The columns `sentences` (n, size), `sentence_groups` (n,) and `has_words` (n,) of some utterances, by which they are
told apart."""

_LEARNED = "learned.json"
_ROUNDING = 1e-6  # of a number in fp32: a coordinate that varies by less does not


@dataclass(frozen=True)
class Target:
    """What the stage teaches: where sentences are, or the pieces of their words.

    Attributes:
        sentences: takes the recipe, the utterances by name, the tokenizer of the text encoder and the device, and
            returns what is to be learned of the utterances, by the same names.
        network: makes what is trained of the student and what is to be learned.
        trainer: trains it.
        schedule: arguments of that training that are not the recipe's.
        found: takes the (n, size) `embeddings` and `student_embeddings` of that network, and returns what is to be
            compared with the sentences.
    """

    sentences: Callable[[Recipe, Mapping[str, Dataset], Any, torch.device], dict[str, Sentences]]
    network: Callable[[Any, Sentences], nn.Module]
    trainer: type[LexicalTrainer]
    schedule: Mapping[str, Any]
    found: Callable[[np.ndarray, np.ndarray], np.ndarray]


def train_lexical(stage: str, recipe: Recipe, corpus: Corpus, run: Path, cost: SessionCost) -> None:
    """Trains the stage, measures what was learned, and saves the weights that the students begin with."""
    print_once(f"\n{stage}")
    folder = run / stage
    set_seed(recipe.seed)
    rows = {"learned": training_rows(STAGES[stage], corpus), "validation": corpus["validation"], "test": corpus["test"]}
    labels = {split: unit_interval_labels(corpus[split]) for split in SPLITS}
    scale = [float(limit) for limit in corpus.report.label_scale]
    spells = recipe.word_pieces is not None
    target = _SPELLING if spells else _PLACES
    if spells:
        with main_process_first("learn the pieces of words"):
            keep_word_pieces(rows["learned"], recipe)
    student, feature_extractor, tokenizer = build_model(STAGES[stage], recipe, labels["train"], scale)
    wait_for_all("load the encoders")
    device = PartialState().device
    student.to(device)
    sentences = target.sentences(recipe, rows, tokenizer, device)
    datasets: dict[str, TorchDataset] = {}
    for name, of_name in rows.items():
        columns = input_columns(student, of_name, feature_extractor, None, recipe)
        columns["labels"] = np.full((len(of_name), len(EMOTION_DIMENSIONS)), np.nan, dtype=np.float32)
        datasets[name] = UtteranceDataset(columns | {"id": list(of_name["id"])} | sentences[name])
    settings = {
        "num_epochs": recipe.lexical_epochs or recipe.num_epochs,
        "learning_rate": recipe.lexical_learning_rate or recipe.learning_rate,
    }
    trainer = target.trainer(
        model=target.network(student, sentences["learned"]),
        args=training_arguments(
            recipe.model_copy(update=settings), folder, metric_for_best_model=METRIC, **target.schedule
        ),
        train_dataset=datasets["learned"],
        eval_dataset=datasets["validation"],
        data_collator=collate_utterances,
        train_durations=rows["learned"]["duration"] if recipe.group_by_length else None,
        temperature=recipe.lexical_temperature,
        eval_sentences={name: sentences["validation"][name] for name in SENTENCE_COLUMNS},
        eval_corpora=corpora_of(rows["validation"]),
    )
    trainer.add_callback(cost)
    with main_process_first("read the checkpoints"):
        checkpoint = usable_checkpoint(folder)
    trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))

    trainer.compute_metrics = None  # which is about the validation split
    number = len(corpus["train"])  # which come first, and are all that is rated
    datasets["train"] = Subset(datasets["learned"], range(number))
    sentences["train"] = {name: values[:number] for name, values in sentences["learned"].items()}
    found, embeddings = {}, {}
    for split in SPLITS:
        (_, answers, embeddings[split]), _, _ = trainer.predict(datasets[split])
        found[split] = target.found(answers, embeddings[split])
        if spells:
            warn_of_short(answers[:, 1], sentences[split]["has_words"], split)
    weights = trainer.accelerator.get_state_dict(trainer.model)  # with FSDP from the shards of all processes
    if trainer.is_world_process_zero():
        write_json(folder / _LEARNED, what_was_learned(found, embeddings, sentences, labels))
        write_start(folder, weights)
        if spells:
            write_ears_config(student.config, folder)
        write_json(folder / "training_log.json", training_log(trainer.state.log_history))
        complete_stage(run, stage, cost.so_far())
    wait_for_all(f"save the stage {stage}")


def keep_word_pieces(rows: Dataset, recipe: Recipe) -> None:
    """Learns the pieces from the words of what the stage learns, unless a session before has done so."""
    path = word_pieces_path(recipe)
    if path.is_file() and find_checkpoints(path.parent):
        return
    assert recipe.word_pieces is not None
    tokenizer = learn_word_pieces(list(rows["transcript"]), recipe.word_pieces)
    save_word_pieces(tokenizer, path)
    print_once(f"  {tokenizer.get_vocab_size():,} pieces of words learned from {len(rows):,} transcripts")


def warn_of_short(fits: np.ndarray, has_words: np.ndarray, split: str) -> None:
    """Says how many utterances are too short for their words, and so teach and count nothing."""
    short = int(((fits == 0) & (has_words > 0)).sum())
    if short:
        print_once(f"  {split}: {short:,} of {int(has_words.sum()):,} utterances are too short for their words")


def spelled_sentences(recipe: Recipe, rows: Mapping[str, Dataset]) -> dict[str, Sentences]:
    """The pieces of the words of each utterance, in order as `pieces` (n, longest) with -1 after the last, and how
    often each is said as `sentences` (n, pieces). What has no letters counts as without words, and so does what has a
    letter that no piece has.

    Args:
        recipe: that of the run, in which the pieces have been learned.
        rows: the utterances by any names.
    """
    tokenizer = load_word_pieces(word_pieces_path(recipe))
    found: dict[str, Sentences] = {}
    for name, of_name in rows.items():
        spelled = [numbers_of(tokenizer, words) for words in of_name["transcript"]]
        pieces = np.full((len(spelled), max(map(len, spelled), default=0)), -1, dtype=np.int64)
        counts = np.zeros((len(spelled), tokenizer.get_vocab_size()), dtype=np.float32)
        for row, numbers in enumerate(spelled):
            pieces[row, : len(numbers)] = numbers
            counts[row] = np.bincount(pieces[row, : len(numbers)], minlength=counts.shape[1])
        found[name] = {
            "pieces": pieces,
            "sentences": counts,
            "sentence_groups": np.array(numbered(map(tuple, spelled))),
            "has_words": np.array([bool(numbers) for numbers in spelled], dtype=np.float32),
        }
    return found


def read_sentences(
    recipe: Recipe, rows: Mapping[str, Dataset], tokenizer: Any, device: torch.device
) -> dict[str, Sentences]:
    """Where the text encoder puts the sentence of each utterance.

    This is the mean over the tokens of its last layer, the features that the teacher's GRU reads and that are stored
    for it, less the mean over the utterances that are learned and have words, divided by their standard deviation,
    coordinate by coordinate. So the mean squared error weighs all coordinates alike, and 1 is what answering 0 gets.
    Directions of small variance are not made larger, as whitening would do: in a few thousand sentences most of them
    are noise. A coordinate that does not vary becomes 0.

    Args:
        recipe: the recipe of the run.
        rows: the utterances by any names, "learned" among them.
        tokenizer: of the text encoder.
        device: that the text encoder runs on.
    """
    encoder = recipe.locate(recipe.text_encoder)
    reader = CMKDTeacherModel.from_pretrained_encoders(text=encoder, text_revision=recipe.text_encoder_revision)
    reader.config.text_config.name_or_path = recipe.text_encoder
    reader.to(device)
    found: dict[str, Sentences] = {}
    for name, of_name in rows.items():
        tokens = TextInputs(of_name, tokenizer)
        part = FrozenPart(reader.text_encoder, reader.extract_text_features, None, "text")
        storage = Storage(cache_folder(recipe), recipe.cache_dtype)
        features = frozen_features(of_name, tokens, tokens.ids, part, storage)
        assert features is not None  # without a limit
        found[name] = {
            "sentences": np.stack([features[index].mean(0).numpy() for index in range(len(features))]),
            "sentence_groups": np.array(numbered(map(tuple, tokens.ids))),
            "has_words": np.array([bool(words.strip()) for words in of_name["transcript"]], dtype=np.float32),
        }
    known = found["learned"]["sentences"][found["learned"]["has_words"] > 0].astype(np.float64)
    mean, std = known.mean(0), known.std(0)
    scale = np.where(std > _ROUNDING * np.abs(known).max(0), std, np.inf)
    for columns in found.values():
        columns["sentences"] = ((columns["sentences"] - mean) / scale).astype(np.float32)
    return found


_SPELLING = Target(
    sentences=lambda recipe, rows, tokenizer, device: spelled_sentences(recipe, rows),
    network=lambda student, learned: SpellingStudent(student),
    trainer=SpellingTrainer,
    schedule={
        "lr_scheduler_type": "cosine",
        "lr_scheduler_kwargs": None,
        "warmup_steps": 0.03,  # of all steps
        "max_grad_norm": 5.0,  # what CTC begins with is steep
    },
    found=lambda answers, embeddings: embeddings,
)
_PLACES = Target(
    sentences=read_sentences,
    network=lambda student, learned: ProjectedStudent(student, learned["sentences"].shape[1]),
    trainer=LexicalTrainer,
    schedule={},
    found=lambda answers, embeddings: answers,
)


def what_was_learned(
    found: Mapping[str, np.ndarray],
    embeddings: Mapping[str, np.ndarray],
    sentences: Mapping[str, Sentences],
    labels: Mapping[str, np.ndarray],
) -> dict[str, Any]:
    """The entry `lexical` of results.json.

    Args:
        found: by split, where the student puts each utterance, (n, size of the sentences).
        embeddings: by split, its embeddings, (n, embedding size).
        sentences: by split, train, validation and test among them, where the text encoder puts each sentence.
        labels: by split, (n, 3) on the unit interval, NaN where not rated.

    Returns:
        `retrieval`, for validation and test what [`cmkd.scoring.lexical.retrieval_scores`] returns; and two entries of
        what [`cmkd.scoring.lexical.ridge_scores`] returns: `ridge`, from the student's embeddings, and
        `ridge_from_words`, from where the text encoder puts the sentences, which is as far as the student can come.
    """
    has_words = {split: sentences[split]["has_words"] > 0 for split in SPLITS}
    words = {split: sentences[split]["sentences"] for split in SPLITS}
    retrieval = {
        split: retrieval_scores(
            found[split][has_words[split]],
            words[split][has_words[split]],
            sentences[split]["sentence_groups"][has_words[split]],
        )
        for split in ("validation", "test")
    }
    return {
        "retrieval": retrieval,
        "ridge": ridge_scores(embeddings, labels, has_words),
        "ridge_from_words": ridge_scores(words, labels, has_words),
    }


def write_start(folder: Path, weights: Mapping[str, torch.Tensor]) -> None:
    """Saves what the students begin with of a [`ProjectedStudent`] or [`SpellingStudent`]: all but the heads."""
    kept = {
        name.removeprefix("student."): value.detach().cpu().contiguous()
        for name, value in weights.items()
        if name.startswith("student.") and not name.startswith(f"student.{HEAD}")
    }
    with written_whole(folder / START) as unfinished:
        save_file(kept, unfinished)


def begin_with_start(model: Any, stage: str, recipe: Recipe) -> None:
    """Gives the model of a stage the weights of the stage that it starts from, if there is one in its run.

    The prediction head stays as it is, since nothing was learned about ratings.

    Args:
        model: that of the stage.
        stage: its name.
        recipe: the recipe of the run.

    Raises:
        ValueError: the weights are not those of such a model.
    """
    start = start_of(stage, recipe)
    if start is None:
        return
    path = Path(recipe.output_dir, start, START)
    if (other := load_start(model, path)) is not None:
        raise ValueError(
            f"{path} does not hold the weights of this model: {other} is not there, or of another shape. Repeat "
            f"the stage: --overwrite --stages {start} ..."
        )
    print_once(f"  begins with the weights of the stage {start}")
