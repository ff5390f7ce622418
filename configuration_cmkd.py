"""Configurations of the CMKD teacher and student, and of Modified CPC, a speech encoder that transformers lacks.

This file travels to the Hub with every checkpoint, together with `modeling_cmkd.py` and `speech_encoder_cmkd.py`. It
imports transformers and nothing else.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

EMOTION_DIMENSIONS = ("activation", "valence", "dominance")
"""The three outputs, in the order that is used everywhere."""

WAVEFORM_ENCODERS = ("hubert", "wav2vec2", "wavlm", "data2vec-audio", "moonshine", "cmkd_cpc")
"""Model types of the speech encoders that take `input_values`, a waveform."""

SPECTROGRAM_ENCODERS = ("whisper",)
"""Model types of the speech encoders that take `input_features`, a log-mel spectrogram."""

SUMMARIZERS = ("last_state", "attention")
"""How the outputs of a GRU become one summary of the utterance."""


_THREE_OUTPUTS = (
    f"a CMKD model has the three outputs {', '.join(EMOTION_DIMENSIONS)}, in this order. Leave the argument out; to "
    "predict something else, put a network of your own on the embeddings."
)
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


class CPCConfig(PreTrainedConfig):
    """Configuration of [`CPCModel`], the Modified CPC of arXiv 2002.02848 (row 3 of the paper's Table 2).

    Args:
        num_channels (`int`, *optional*, defaults to 256):
            Channels of the five convolutions.
        hidden_size (`int`, *optional*, defaults to 256):
            Units of the recurrent network, which is the size of the features.
        num_hidden_layers (`int`, *optional*, defaults to 1):
            Layers of the recurrent network.
        recurrent_type (`str`, *optional*, defaults to `"lstm"`):
            "lstm" or "gru".

    Raises:
        ValueError: a field is out of its range.
    """

    model_type = "cmkd_cpc"

    def __init__(
        self,
        num_channels: int = 256,
        hidden_size: int = 256,
        num_hidden_layers: int = 1,
        recurrent_type: str = "lstm",
        **kwargs: Any,
    ) -> None:
        self.num_channels = num_channels
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.recurrent_type = recurrent_type
        super().__init__(**kwargs)
        for name, least in (("num_channels", 2), ("hidden_size", 1), ("num_hidden_layers", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name}={value!r}: must be a whole number of at least {least}.")
        if recurrent_type not in ("lstm", "gru"):
            raise ValueError(f"recurrent_type={recurrent_type!r}: must be 'lstm' or 'gru'.")


class _CMKDConfig(PreTrainedConfig):
    """What teacher and student share: the network of Figure 1 of arXiv 2112.00158 and the scale of its outputs."""

    has_no_defaults_at_init = True
    keys_to_ignore_at_inference = ["hidden_states", "hidden_states_mask", "text_hidden_states"]
    sub_configs = {"speech_config": AutoConfig}

    def __init__(
        self,
        speech_config: PreTrainedConfig | dict[str, Any] | None = None,
        gru_hidden_size: int = 128,
        gru_num_layers: int = 2,
        summarizer: str = "last_state",
        embedding_size: int = 128,
        num_trainable_layers: int = 0,
        use_weighted_layer_sum: bool = False,
        label_scale: Sequence[float] = (0.0, 1.0),
        label_mean: Sequence[float] = (0.0, 0.0, 0.0),
        label_std: Sequence[float] = (1.0, 1.0, 1.0),
        rated_dimensions: Sequence[str] = EMOTION_DIMENSIONS,
        **kwargs: Any,
    ) -> None:
        self.speech_config = _sub_config("speech_config", speech_config)
        self.gru_hidden_size = gru_hidden_size
        self.gru_num_layers = gru_num_layers
        self.summarizer = summarizer
        self.embedding_size = embedding_size
        self.num_trainable_layers = num_trainable_layers
        self.use_weighted_layer_sum = use_weighted_layer_sum
        self.label_scale = [float(value) for value in label_scale]
        self.label_mean = [float(value) for value in label_mean]
        self.label_std = [float(value) for value in label_std]
        self.rated_dimensions = list(rated_dimensions)
        num_labels = kwargs.pop("num_labels", len(EMOTION_DIMENSIONS))
        kwargs.setdefault("id2label", dict(enumerate(EMOTION_DIMENSIONS)))
        kwargs.setdefault("label2id", {name: index for index, name in enumerate(EMOTION_DIMENSIONS)})
        kwargs.setdefault("problem_type", "regression")
        super().__init__(**kwargs)
        if num_labels != len(EMOTION_DIMENSIONS):
            raise ValueError(f"num_labels={num_labels!r}: {_THREE_OUTPUTS}")
        self.check()

    def check(self) -> None:
        """Checks all fields as the constructor does, for fields that were set later.

        Raises:
            ValueError: a field is out of its range.
        """
        self._check_outputs()
        self._check_fields()

    def _check_outputs(self) -> None:
        names = dict(enumerate(EMOTION_DIMENSIONS))
        if self.id2label != names:
            raise ValueError(f"id2label={self.id2label!r}: {_THREE_OUTPUTS}")
        if self.label2id != {name: index for index, name in names.items()}:
            raise ValueError(f"label2id={self.label2id!r}: {_THREE_OUTPUTS}")
        if self.problem_type != "regression":
            raise ValueError(
                f"problem_type={self.problem_type!r}: must be 'regression', which rates the three dimensions. Leave it "
                "out."
            )

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As [`~transformers.PreTrainedConfig.from_dict`], which sets `kwargs` after the constructor's checks."""
        config = super().from_dict(config_dict, **kwargs)
        (config[0] if isinstance(config, tuple) else config).check()
        return config

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """As [`~transformers.PreTrainedConfig.save_pretrained`], after a check of all fields."""
        self.check()
        super().save_pretrained(save_directory, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """As [`~transformers.PreTrainedConfig.to_dict`], but leaves out the name of an encoder that is a folder."""
        content = super().to_dict()
        for fields in (content, *(content[name] for name in self.sub_configs if content.get(name))):
            if "_name_or_path" in fields:
                fields["_name_or_path"] = hub_name(fields["_name_or_path"])
        return content

    def _check_fields(self) -> None:
        for name in ("gru_hidden_size", "gru_num_layers", "embedding_size"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value!r}: must be a whole number of at least 1.")
        if self.summarizer not in SUMMARIZERS:
            raise ValueError(f"summarizer={self.summarizer!r}: must be one of {', '.join(SUMMARIZERS)}.")
        if len(self.label_scale) != 2 or not self.label_scale[0] < self.label_scale[1]:
            raise ValueError(f"label_scale={self.label_scale}: must be [minimum, maximum], for example [1, 7].")
        for name in ("label_mean", "label_std"):
            if len(getattr(self, name)) != len(EMOTION_DIMENSIONS):
                raise ValueError(
                    f"{name}={getattr(self, name)}: must hold one value for each of {', '.join(EMOTION_DIMENSIONS)}."
                )
        if not all(0 < value < float("inf") for value in self.label_std):
            raise ValueError(f"label_std={self.label_std}: every value must be finite and above 0.")
        in_order = [name for name in EMOTION_DIMENSIONS if name in self.rated_dimensions]
        if not in_order or self.rated_dimensions != in_order:
            raise ValueError(
                f"rated_dimensions={self.rated_dimensions}: must be one or more of {', '.join(EMOTION_DIMENSIONS)}, in "
                "this order."
            )
        if self.speech_config is None:
            return
        known = WAVEFORM_ENCODERS + SPECTROGRAM_ENCODERS
        if self.speech_config.model_type not in known:
            raise ValueError(
                f"speech_config.model_type={self.speech_config.model_type!r}: must be one of {', '.join(known)}."
            )
        for name in ("add_adapter", "conv_pos_batch_norm"):
            if getattr(self.speech_config, name, False):
                raise ValueError(f"speech_config.{name}=True is not supported: choose an encoder without it.")
        if self.speech_config.model_type == CPCConfig.model_type:
            self._check_cpc_fields()
        if self.speech_config.model_type == "moonshine":
            self._check_moonshine_fields()
            layers = self.speech_config.encoder_num_hidden_layers  # the other name is of the decoder's
        else:
            layers = self.speech_config.num_hidden_layers
        if not isinstance(self.num_trainable_layers, int) or not -1 <= self.num_trainable_layers <= layers:
            raise ValueError(
                f"num_trainable_layers={self.num_trainable_layers!r}: must be between 0 (frozen) and {layers}, "
                "the encoder's number of layers, or -1 (all of the encoder)."
            )

    def _check_cpc_fields(self) -> None:
        if self.num_trainable_layers not in (0, -1):
            raise ValueError(
                f"num_trainable_layers={self.num_trainable_layers!r}: must be 0 (frozen) or -1 (all of the encoder) "
                "with a CPC encoder, whose recurrent layers are one module."
            )
        if self.use_weighted_layer_sum:
            raise ValueError(
                "use_weighted_layer_sum=True: leave it out with a CPC encoder, whose recurrent layers are one module "
                "that gives the last layer's output only."
            )

    def _check_moonshine_fields(self) -> None:
        kind = self.speech_config.rope_parameters["rope_type"]
        if kind != "default":
            raise ValueError(
                f"speech_config.rope_parameters['rope_type']={kind!r} is not supported: must be 'default', as in the "
                "published Moonshine models."
            )

    @property
    def speech_input_name(self) -> str:
        """`"input_values"` (a waveform) or `"input_features"` (a log-mel spectrogram): what the encoder takes."""
        return "input_features" if self.speech_config.model_type in SPECTROGRAM_ENCODERS else "input_values"

    def to_label_scale(self, logits: Any) -> Any:
        """Converts outputs from the unit interval to the scale of the corpus that the model was trained on.

        Args:
            logits: a number, array or tensor on the unit interval, 0 being the scale's minimum and 1 its maximum.

        Returns:
            The same on `label_scale`; MSP-Podcast's is 1 to 7, so that 0.5 becomes 4.

        >>> CMKDStudentConfig(label_scale=(1, 7)).to_label_scale(0.5)
        4.0
        """
        minimum, maximum = self.label_scale
        return logits * (maximum - minimum) + minimum

    def to_unit_interval(self, ratings: Any) -> Any:
        """Converts ratings on `label_scale` to the unit interval, on which `labels` must be.

        Args:
            ratings: a number, array or tensor on `label_scale`; NaN, "not rated", stays NaN.

        Returns:
            The same on the unit interval.

        >>> CMKDStudentConfig(label_scale=(1, 7)).to_unit_interval(4.0)
        0.5
        """
        minimum, maximum = self.label_scale
        return (ratings - minimum) / (maximum - minimum)


class CMKDTeacherConfig(_CMKDConfig):
    """Configuration of [`CMKDTeacherModel`]: speech and text, or one of the two (rows 3 to 9 of the paper's Table 2).

    Args:
        speech_config (`PreTrainedConfig` or `dict`, *optional*):
            The speech encoder: HuBERT, wav2vec 2.0, WavLM, data2vec-audio, Whisper, Moonshine or CPC. With None the
            teacher only reads.
        text_config (`PreTrainedConfig` or `dict`, *optional*):
            The text encoder, any that `AutoModel` loads. With None the teacher only hears.
        gru_hidden_size (`int`, *optional*, defaults to 128):
            Hidden units of the GRU that sums up each modality.
        gru_num_layers (`int`, *optional*, defaults to 2):
            Layers of that GRU.
        summarizer (`str`, *optional*, defaults to `"last_state"`):
            How the GRU's outputs become one summary: `"last_state"` takes the output at the last frame, as in the
            paper; `"attention"` takes a weighted mean over all frames, in which each unit of the GRU has its own
            learned weights.
        embedding_size (`int`, *optional*, defaults to 128):
            Size of the utterance embedding e (Eq. 1 and 2), which must be the same for teacher and student.
        num_trainable_layers (`int`, *optional*, defaults to 0):
            How many of the speech encoder's top layers train: 0 is a frozen encoder, 6 the paper's fine-tuning, and -1
            all of the encoder, including the convolutions. CPC takes 0 or -1. The text encoder is frozen.
            `freeze_encoders` sets `requires_grad` by this field, and `requires_grad` then decides what trains. The
            field also determines the part whose output `extract_speech_features` returns.
        use_weighted_layer_sum (`bool`, *optional*, defaults to `False`):
            Feed the GRU a learned softmax-weighted sum of the encoder's input and all of its layers, instead of the
            last layer. Not available with CPC.
        label_scale (`tuple[float, float]`, *optional*, defaults to `(0.0, 1.0)`):
            Minimum and maximum of the corpus's rating scale, used by [`~_CMKDConfig.to_label_scale`].
        label_mean (`tuple[float, float, float]`, *optional*, defaults to `(0.0, 0.0, 0.0)`):
            Mean of the training labels on the unit interval. The prediction network works on standardised labels; its
            output times `label_std` plus `label_mean` is on the unit interval.
        label_std (`tuple[float, float, float]`, *optional*, defaults to `(1.0, 1.0, 1.0)`):
            Standard deviation of the training labels on the unit interval.
        rated_dimensions (`list[str]`, *optional*, defaults to `["activation", "valence", "dominance"]`):
            The dimensions in which the training corpus is rated. Nothing was learned in the others, whose `logits` are
            NaN.

    Raises:
        ValueError: a field is out of its range, or both encoders are absent.
    """

    model_type = "cmkd_teacher"
    sub_configs = {"speech_config": AutoConfig, "text_config": AutoConfig}

    def __init__(
        self,
        speech_config: PreTrainedConfig | dict[str, Any] | None = None,
        text_config: PreTrainedConfig | dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.text_config = _sub_config("text_config", text_config)
        super().__init__(speech_config=speech_config, **kwargs)

    def _check_fields(self) -> None:
        if self.speech_config is None and self.text_config is None:
            raise ValueError("speech_config and text_config are both None: a teacher needs at least one encoder.")
        super()._check_fields()


class CMKDStudentConfig(_CMKDConfig):
    """Configuration of [`CMKDStudentModel`], which only hears. Defaults to HuBERT Base, the paper's student.

    Args:
        speech_config (`PreTrainedConfig` or `dict`, *optional*, defaults to `HubertConfig()`):
            The speech encoder: HuBERT, wav2vec 2.0, WavLM, data2vec-audio, Whisper, Moonshine or CPC.
        word_pieces (`list[str]`, *optional*):
            The pieces of words that the student listens for besides, as the stage `lexical` has learned to tell them
            apart; "▁" begins a word. With None it has no such part.
        word_hidden_size (`int`, *optional*, defaults to 256):
            Hidden units of the GRU, of `gru_num_layers` layers, that tells the pieces apart.
        num_layers_of_ears (`int`, *optional*, defaults to 0):
            How many of the encoder's top layers came with the part that tells the pieces apart, because they were
            trained with it, so that they are not those of `speech_config`'s encoder; -1 if all of the encoder did. It
            says where they are from, and changes nothing.
        kwargs:
            The other fields, with the meaning and defaults of those of [`CMKDTeacherConfig`], except `text_config`.

    Raises:
        ValueError: a field is out of its range.
    """

    model_type = "cmkd_student"

    def __init__(
        self,
        speech_config: PreTrainedConfig | dict[str, Any] | None = None,
        word_pieces: Sequence[str] | None = None,
        word_hidden_size: int = 256,
        num_layers_of_ears: int = 0,
        **kwargs: Any,
    ) -> None:
        if word_pieces is not None and (
            not isinstance(word_pieces, list | tuple) or {type(piece) for piece in word_pieces} - {str}
        ):
            raise ValueError(
                f"word_pieces={word_pieces!r}: must be a list of the pieces themselves, as texts; or None."
            )
        self.word_pieces = None if word_pieces is None else list(word_pieces)
        self.word_hidden_size = word_hidden_size
        self.num_layers_of_ears = num_layers_of_ears
        super().__init__(speech_config={"model_type": "hubert"} if speech_config is None else speech_config, **kwargs)

    def _check_fields(self) -> None:
        super()._check_fields()
        if not isinstance(self.word_hidden_size, int) or self.word_hidden_size < 1:
            raise ValueError(f"word_hidden_size={self.word_hidden_size!r}: must be a whole number of at least 1.")
        pieces = self.word_pieces
        if pieces is not None and (not pieces or len(set(pieces)) < len(pieces) or "" in pieces):
            twice = next((piece for piece in pieces if pieces.count(piece) > 1), "")
            raise ValueError(
                f"word_pieces has {len(pieces)} pieces, {twice!r} among them: must be one or more, each of them once "
                "and none empty; or None."
            )


def hub_name(name_or_path: str) -> str:
    """A name on the Hub unchanged, and "" for a folder: where a model is from, in files that others may read.

    >>> hub_name("facebook/hubert-base-ls960"), hub_name("/home/me/hubert"), hub_name("../hubert")
    ('facebook/hubert-base-ls960', '', '')
    """
    is_name = _HUB_NAME.fullmatch(name_or_path) and not Path(name_or_path).exists()
    return name_or_path if is_name else ""


def _sub_config(name: str, value: Any) -> Any:
    """A sub-configuration from what `config.json` holds (a dict), what a user passes (a config), or None."""
    if value is None or isinstance(value, PreTrainedConfig):
        return value
    if not isinstance(value, dict):
        raise ValueError(f"{name}={value!r}: must be a configuration or a dict of one.")
    fields = {key: field for key, field in value.items() if key != "model_type"}
    if value.get("model_type") == CPCConfig.model_type:
        return CPCConfig(**fields)
    if value.get("model_type") not in CONFIG_MAPPING:
        raise ValueError(f"{name}['model_type']={value.get('model_type')!r}: must name a model type of transformers.")
    return CONFIG_MAPPING[value["model_type"]](**fields)


if not __package__:  # the files of a checkpoint serve only that checkpoint
    AutoConfig.register(CPCConfig.model_type, CPCConfig, exist_ok=True)
CPCConfig.register_for_auto_class()
CMKDTeacherConfig.register_for_auto_class()
CMKDStudentConfig.register_for_auto_class()
