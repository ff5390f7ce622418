"""Ears for words that a student takes over from another one, as `ears` of a recipe says.

They are a [`modeling_cmkd.WordPieceSummarizer`] and the names of the pieces that it hears. They were learned from what
one speech encoder says and make nothing of another one, so that both students must have the same. Where layers of it
were trained with the ears, these layers belong to them, and are taken over too.

What has ears is a student, or the folder of a stage `lexical` that has taught them and nothing else.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import ModelCard, hf_hub_download
from safetensors.torch import load_file
from transformers import PreTrainedConfig
from yaml import YAMLError

from cmkd.atomic import written_whole
from cmkd.corpora.licences import OF_THE_EARS
from cmkd.features.inputs import UtteranceDataset
from cmkd.identity import EARS_CONFIG, START, is_stage_with_ears
from cmkd.runs.recipe import Recipe
from cmkd.training.collator import collate_utterances
from configuration_cmkd import CMKDStudentConfig
from modeling_cmkd import CMKDStudentModel
from speech_encoder_cmkd import load_speech_encoder

HEAD = "prediction_head."
"""How the names of the weights begin that a stage `lexical` does not teach, and does not keep."""

_STORED_IN = (torch.float32, torch.float16, torch.bfloat16)

_AT_ONCE = 64  # utterances


def read_ears(source: str, revision: str | None = None) -> CMKDStudentConfig:
    """The configuration of a student that hears pieces of words.

    Args:
        source: Hub name or folder, that of a student or of a stage `lexical`.
        revision: Branch, tag or commit on the Hub; None: its main branch.

    Raises:
        ValueError: it is no student, or none that the students of a recipe can take ears from.
        OSError: there is no such model, or no such revision of it.
    """
    if is_stage_with_ears(Path(source)):
        return _of_stage(Path(source))
    if Path(source, START).is_file():
        raise ValueError(
            f"it is a stage lexical without {EARS_CONFIG}: it was trained without word_pieces, or by an earlier "
            "version. Train it again with word_pieces, in a new folder, or name a student that began with it."
        )
    model_type = PreTrainedConfig.get_config_dict(source, revision=revision)[0].get("model_type")
    if model_type != CMKDStudentConfig.model_type:
        raise ValueError(
            f"it is of the model type {model_type!r}, but must be {CMKDStudentConfig.model_type!r}: name a student "
            "that CMKD has trained. That of a run is in its folder student/, and what its stage lexical has taught in "
            "lexical/."
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


def write_ears_config(config: CMKDStudentConfig, folder: Path) -> None:
    """Writes the configuration of a student of the stage `lexical`, by which others take its ears over.

    Not as config.json, since what is there rates nothing and is no checkpoint.
    """
    with written_whole(folder / EARS_CONFIG) as unfinished:
        config.to_json_file(unfinished)


def _of_stage(folder: Path) -> CMKDStudentConfig:
    """The configuration of a student of a stage `lexical`, as the one who takes its ears over has it: all is frozen."""
    config: CMKDStudentConfig = CMKDStudentConfig.from_json_file(str(folder / EARS_CONFIG))
    config.num_layers_of_ears, config.num_trainable_layers = config.num_trainable_layers, 0
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
    """Checks that what `ears` names hears with the encoder of the recipe's students, but for layers trained with them.

    Args:
        recipe: with `ears`.

    Raises:
        ValueError: a weight below those layers is another one, and not only rounded to half precision; layers were
            trained on ratings after the ears; or weights are missing.
    """
    assert recipe.ears is not None
    model = load_ears(recipe.locate(recipe.ears), recipe.ears_revision)
    if model.config.num_trainable_layers != 0:
        raise ValueError(
            f"ears is {recipe.ears!r}, whose config.num_trainable_layers is {model.config.num_trainable_layers}, but "
            "must be 0: layers that its ears hear with were trained on ratings afterwards, and who takes them over "
            "would begin with what another teacher gave. Name the folder of the stage lexical that taught the ears, "
            "or a student whose encoder is frozen."
        )
    encoder = recipe.locate(recipe.student_speech_encoder)
    ours: dict[str, torch.Tensor] = load_speech_encoder(encoder, recipe.student_speech_encoder_revision).state_dict()
    assert model.speech_encoder is not None  # a student has one
    theirs = model.speech_encoder.encoder.state_dict()
    own = {name for name, value in _own_weights(model).items() if name in ours and ours[name].shape == value.shape}
    different = [name for name in ours | theirs if name not in own and not _is_same(ours.get(name), theirs.get(name))]
    if different:
        raise ValueError(
            f"ears is {recipe.ears!r}, which hears with another encoder than {recipe.student_speech_encoder!r}: of "
            f"{len(ours | theirs)} weights {len(different)} are different, such as {different[0]}. Ears make nothing "
            "of an encoder that they were not learned with. Name as student_speech_encoder the one that they were "
            "learned with, or other ears."
        )


def load_ears(source: str, revision: str | None = None) -> CMKDStudentModel:
    """The student that has the ears, in fp32; that of a stage `lexical` has a random prediction head.

    Args:
        source: Hub name or folder, as for [`read_ears`].
        revision: Branch, tag or commit on the Hub; None: its main branch.

    Raises:
        ValueError: what the stage has left lacks weights.
    """
    folder = Path(source)
    # Its class is ours, so that nothing runs that the repository may bring.
    if not is_stage_with_ears(folder):
        model: CMKDStudentModel = CMKDStudentModel.from_pretrained(source, revision=revision, dtype=torch.float32)
        return model
    with torch.random.fork_rng(devices=[]):  # who takes the ears draws the same numbers afterwards, whoever has them
        model = CMKDStudentModel(_of_stage(folder))
    if (other := load_start(model, folder / START)) is not None:
        raise ValueError(
            f"{folder / START} does not have the weights of the student that {EARS_CONFIG} beside it describes: "
            f"{other} is not there, or of another shape. Train the stage lexical again."
        )
    return model


def load_start(model: Any, path: Path) -> str | None:
    """Gives a model what a stage `lexical` has left, all but the prediction head.

    Returns:
        The name of a weight that is not there, or of another shape; then nothing was loaded. None if all were.
    """
    weights = load_file(path)
    found = {name: value.shape for name, value in weights.items()}
    wanted = {name: value.shape for name, value in model.state_dict().items() if not name.startswith(HEAD)}
    if found != wanted:
        return min(wanted.items() ^ found.items())[0]
    model.load_state_dict(weights, strict=False)
    return None


def take_ears(model: CMKDStudentModel, theirs: CMKDStudentModel) -> None:
    """Gives a student the ears of another one, and the layers of its encoder that were trained with them.

    Args:
        model: a student with the `word_pieces` and the `word_hidden_size` of the other one, and its encoder but for
            these layers.
        theirs: as [`load_ears`] returns it, which [`check_ears`] lets pass.
    """
    assert model.word_summarizer is not None and theirs.word_summarizer is not None  # both have word_pieces
    assert model.speech_encoder is not None  # a student has one
    model.word_summarizer.load_state_dict(theirs.word_summarizer.state_dict())
    # The others are the same, but may be rounded; then ours have more digits.
    model.speech_encoder.encoder.load_state_dict(_own_weights(theirs), strict=False)
    model.config.num_layers_of_ears = theirs.config.num_layers_of_ears


def _own_weights(model: CMKDStudentModel) -> dict[str, torch.Tensor]:
    """Those of its encoder that were trained with its ears: of its top `num_layers_of_ears`, of all if that is -1."""
    number = model.config.num_layers_of_ears
    assert model.speech_encoder is not None  # a student has one
    weights: dict[str, torch.Tensor] = model.speech_encoder.encoder.state_dict()
    if number == 0:
        return {}
    if number == -1:
        return weights
    layers, final_norm = model.speech_encoder.layers, model.speech_encoder.final_norm
    trained = [*layers[len(layers) - number :], *([] if final_norm is None else [final_norm])]
    places = {parameter.data_ptr() for module in trained for parameter in module.parameters()}
    return {name: value for name, value in weights.items() if value.data_ptr() in places}


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
        counts = pieces_heard(model, columns["speech_features"], durations[name])
        columns["word_counts"] = counts
        if name == "learned":
            datasets["train"].columns["word_counts"] = counts[: len(datasets["train"])]


def pieces_heard(model: CMKDStudentModel, features: Sequence[torch.Tensor], durations: Sequence[float]) -> np.ndarray:
    """How often each piece of words is expected to be in each of n utterances, (n, pieces), in fp32.

    Args:
        model: with ears, on the device to compute on.
        features: what is stored of the encoder's output of each utterance.
        durations: of the utterances, in seconds; those of like length are heard together.
    """
    counts = np.empty((len(features), len(model.config.word_pieces)), dtype=np.float32)
    order = np.argsort(np.array(durations), kind="stable")
    for start in range(0, len(order), _AT_ONCE):
        rows = order[start : start + _AT_ONCE]
        batch = collate_utterances([{"speech_features": features[row]} for row in rows])
        speech = {key: value.to(model.device) for key, value in batch.items()}
        counts[rows] = model.word_counts(**speech).cpu()
    return counts


def _is_same(ours: torch.Tensor | None, theirs: torch.Tensor | None) -> bool:
    """Whether two weights are the same, the second one as it comes back from a file that may hold fewer digits."""
    if ours is None or theirs is None:
        return False
    return any(torch.equal(ours.to(dtype).to(ours.dtype), theirs) for dtype in _STORED_IN)
