"""Ears for words that a student takes over from another one, as `ears` of a recipe says.

They are a [`modeling_cmkd.WordPieceSummarizer`] and the names of the pieces that it hears. They were learned from the
states of one speech encoder and say nothing about those of another one, so that both students must have the same.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from cmkd.features.inputs import UtteranceDataset
from cmkd.runs.recipe import Recipe
from cmkd.training.collator import collate_utterances
from modeling_cmkd import CMKDStudentModel

_AT_ONCE = 64  # utterances


def check_ears(recipe: Recipe, config: Any) -> None:
    """Checks that what `ears` names is a student that hears pieces of words.

    Args:
        recipe: with `ears`.
        config: of what it names, as `CMKDStudentConfig` reads it.

    Raises:
        ValueError: it is not.
    """
    if config.word_pieces is None:
        raise ValueError(
            f"ears is {recipe.ears!r}, which does not listen for pieces of words: config.word_pieces is missing there. "
            "Name a student that has learned to hear them, as the stage lexical with word_pieces teaches it."
        )


def load_ears(recipe: Recipe) -> CMKDStudentModel:
    """The student that has the ears, in fp32."""
    assert recipe.ears is not None
    # Its class is ours, so that nothing runs that the repository may bring.
    return CMKDStudentModel.from_pretrained(recipe.locate(recipe.ears), revision=recipe.ears_revision, dtype="auto")


def take_ears(model: Any, theirs: Any, recipe: Recipe) -> None:
    """Gives a student the ears of another one.

    Args:
        model: a student with the `word_pieces` and the `word_hidden_size` of the other one.
        theirs: as [`load_ears`] returns it, in the precision in which it is stored.
        recipe: names both in messages.

    Raises:
        ValueError: the other one hears with another encoder: one of its weights differs by more than the rounding of
            that precision.
    """
    ours = model.speech_encoder.encoder.state_dict()
    others = theirs.speech_encoder.encoder.state_dict()
    different = [
        name
        for name in sorted(ours.keys() | others.keys())
        if name not in ours or name not in others or not torch.equal(ours[name].to(others[name].dtype), others[name])
    ]
    if different:
        raise ValueError(
            f"ears is {recipe.ears!r}, which does not hear with the encoder {recipe.student_speech_encoder!r}: "
            f"{different[0]} differs, and so do {len(different) - 1} other weights. Ears say nothing about another "
            "encoder: name the one that they were learned with as student_speech_encoder."
        )
    model.word_summarizer.load_state_dict(theirs.word_summarizer.state_dict())


def hear_once(model: Any, datasets: Mapping[str, UtteranceDataset]) -> None:
    """Adds how often each piece of words is heard to what a student is trained and evaluated on, as `word_counts`.

    The ears are frozen, and where the output of the whole encoder is stored, so is what they hear with: nothing of it
    changes while the rest trains, and it need not be computed again in every epoch, which is half of the work. The
    counts are in memory, in fp32: 4 bytes for each utterance and piece.

    Args:
        model: on the device to compute on; one without ears, or whose encoder trains, is left to hear for itself.
        datasets: as [`cmkd.runs.stage.labelled_inputs`] returns them, where "train" is the beginning of "learned".
    """
    if model.word_summarizer is None or model.speech_encoder.num_frozen_layers < len(model.speech_encoder.layers):
        return
    for name in ("learned", "validation", "test"):
        columns = datasets[name].columns
        if "speech_features" not in columns:
            continue
        counts = np.empty((len(datasets[name]), len(model.config.word_pieces)), dtype=np.float32)
        for start in range(0, len(counts), _AT_ONCE):
            rows = range(start, min(start + _AT_ONCE, len(counts)))
            batch = collate_utterances([{"speech_features": columns["speech_features"][row]} for row in rows])
            speech = {key: value.to(model.device) for key, value in batch.items()}
            counts[rows.start : rows.stop] = model.word_counts(**speech).cpu()
        columns["word_counts"] = counts
        if name == "learned":
            datasets["train"].columns["word_counts"] = counts[: len(datasets["train"])]
