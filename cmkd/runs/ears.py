"""Ears for words that a student takes over from another one, as `ears` of a recipe says.

They are a [`modeling_cmkd.WordPieceSummarizer`] and the names of the pieces that it hears. They were learned from what
one speech encoder says and make nothing of another one, so that both students must have the same.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import ModelCard, hf_hub_download
from transformers import PreTrainedConfig
from yaml import YAMLError

from cmkd.corpora.licences import OF_THE_EARS
from cmkd.features.inputs import UtteranceDataset
from cmkd.runs.recipe import Recipe
from cmkd.training.collator import collate_utterances
from configuration_cmkd import CMKDStudentConfig
from modeling_cmkd import CMKDStudentModel
from speech_encoder_cmkd import load_speech_encoder

_STORED_IN = (torch.float32, torch.float16, torch.bfloat16)

_AT_ONCE = 64  # utterances


def read_ears(source: str, revision: str | None = None) -> CMKDStudentConfig:
    """The configuration of a student that hears pieces of words.

    Args:
        source: Hub name or folder.
        revision: Branch, tag or commit on the Hub; None: its main branch.

    Raises:
        ValueError: it is no student, or none that the students of a recipe can take ears from.
        OSError: there is no such model, or no such revision of it.
    """
    model_type = PreTrainedConfig.get_config_dict(source, revision=revision)[0].get("model_type")
    if model_type != CMKDStudentConfig.model_type:
        raise ValueError(
            f"it is of the model type {model_type!r}, but must be {CMKDStudentConfig.model_type!r}: name a student "
            "that CMKD has trained. That of a run is in its folder student/."
        )
    config = CMKDStudentConfig.from_pretrained(source, revision=revision)
    if config.word_pieces is None:
        raise ValueError(
            "it does not listen for pieces of words, since its config.word_pieces is None: name a student that has "
            "learned to hear them, as the stage lexical with word_pieces teaches it."
        )
    layers = CMKDStudentConfig(speech_config=config.speech_config).gru_num_layers
    if config.gru_num_layers != layers:
        raise ValueError(
            f"its config.gru_num_layers is {config.gru_num_layers}, but the GRUs of a student that a recipe makes have "
            f"{layers} layers, that of its ears too: name a student with as many."
        )
    return config


def stated_licence(recipe: Recipe, commit: str | None) -> dict[str, str | None] | None:
    """What the card of the student with the ears states as its licence.

    Args:
        recipe: with `ears`.
        commit: of that student, if it is on the Hub; None: that of `ears_revision`.

    Returns:
        `identifier`, as the Hub calls it, and `name`, its own one if the Hub has none. None if there is no card, as in
        the folder of a run, if it cannot be read, or if it states none or leaves open that of ears of its own.
    """
    assert recipe.ears is not None
    source = recipe.locate(recipe.ears)
    try:
        in_folder = Path(source).is_dir()
        revision = None if in_folder else commit or recipe.ears_revision
        path = Path(source, "README.md") if in_folder else hf_hub_download(source, "README.md", revision=revision)
        stated = ModelCard.load(path).data
    except (OSError, ValueError, YAMLError):  # whatever it is, a finished training does not fail for it
        return None
    identifier, name = stated.license, stated.license_name
    is_stated = isinstance(identifier, str) and (identifier != "other" or name is not None)
    is_stated = is_stated and OF_THE_EARS not in (name or "")
    return {"identifier": identifier, "name": name} if is_stated else None


def check_ears(recipe: Recipe) -> None:
    """Checks that what `ears` names hears with the encoder of the recipe's students.

    Args:
        recipe: with `ears`.

    Raises:
        ValueError: one weight of its encoder is another one, and not only rounded to half precision; or weights are
            missing.
    """
    encoder = recipe.locate(recipe.student_speech_encoder)
    ours = load_speech_encoder(encoder, recipe.student_speech_encoder_revision).state_dict()
    listening = load_ears(recipe).speech_encoder
    assert listening is not None  # a student has one
    theirs = listening.encoder.state_dict()
    different = [name for name in ours | theirs if not _is_same(ours.get(name), theirs.get(name))]
    if different:
        raise ValueError(
            f"ears is {recipe.ears!r}, which hears with another encoder than {recipe.student_speech_encoder!r}: of "
            f"{len(ours | theirs)} weights {len(different)} are different, such as {different[0]}. Ears make nothing "
            "of an encoder that they were not learned with, or whose layers were trained afterwards. Name as "
            "student_speech_encoder the one that they were learned with, or other ears."
        )


def load_ears(recipe: Recipe) -> CMKDStudentModel:
    """The student that has the ears, in fp32."""
    assert recipe.ears is not None
    # Its class is ours, so that nothing runs that the repository may bring.
    model: CMKDStudentModel = CMKDStudentModel.from_pretrained(
        recipe.locate(recipe.ears), revision=recipe.ears_revision, dtype=torch.float32
    )
    return model


def take_ears(model: CMKDStudentModel, theirs: CMKDStudentModel) -> None:
    """Gives a student the ears of another one.

    Args:
        model: a student with the `word_pieces` and the `word_hidden_size` of the other one, and its encoder.
        theirs: as [`load_ears`] returns it.
    """
    assert model.word_summarizer is not None and theirs.word_summarizer is not None  # both have word_pieces
    model.word_summarizer.load_state_dict(theirs.word_summarizer.state_dict())


def hear_once(model: Any, datasets: Mapping[str, UtteranceDataset], durations: Mapping[str, Sequence[float]]) -> None:
    """Adds how often each piece of words is heard to what a student is trained and evaluated on, as `word_counts`.

    The ears are frozen, and where the output of the whole encoder is stored, so is what they hear with: nothing of it
    changes while the rest trains, and it need not be computed again in every epoch, which is half of the work. The
    counts are in memory, in fp32: 4 bytes for each utterance and piece. Utterances of like length are heard together.

    Args:
        model: on the device to compute on; one without ears, or whose encoder trains, is left to hear for itself.
        datasets: as [`cmkd.runs.stage.labelled_inputs`] returns them, where "train" is the beginning of "learned".
        durations: of the utterances of each, in seconds.
    """
    if model.word_summarizer is None or model.speech_encoder.num_frozen_layers < len(model.speech_encoder.layers):
        return
    for name in ("learned", "validation", "test"):
        columns = datasets[name].columns
        if "speech_features" not in columns:
            continue
        counts = np.empty((len(datasets[name]), len(model.config.word_pieces)), dtype=np.float32)
        order = np.argsort(np.array(durations[name]), kind="stable")
        for start in range(0, len(order), _AT_ONCE):
            rows = order[start : start + _AT_ONCE]
            batch = collate_utterances([{"speech_features": columns["speech_features"][row]} for row in rows])
            speech = {key: value.to(model.device) for key, value in batch.items()}
            counts[rows] = model.word_counts(**speech).cpu()
        columns["word_counts"] = counts
        if name == "learned":
            datasets["train"].columns["word_counts"] = counts[: len(datasets["train"])]


def _is_same(ours: torch.Tensor | None, theirs: torch.Tensor | None) -> bool:
    """Whether two weights are the same, the second one as it comes back from a file that may hold fewer digits."""
    if ours is None or theirs is None:
        return False
    return any(torch.equal(ours.to(dtype).to(ours.dtype), theirs) for dtype in _STORED_IN)
