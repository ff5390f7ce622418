"""The CMKD teacher, which hears and reads, and the student, which only hears (Figure 1 of arXiv 2112.00158).

This file travels to the Hub with every checkpoint, together with `configuration_cmkd.py` and `speech_encoder_cmkd.py`.
It imports these, torch and transformers; it imports `pipeline_cmkd.py`, and with it `audio_cmkd.py`, only to name it
when a model is saved. A model's output for an utterance depends neither on what else is in the batch nor on the
padding: see [`SpeechEncoder`].
"""

import copy
import inspect
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

try:
    from .configuration_cmkd import EMOTION_DIMENSIONS, CMKDStudentConfig, CMKDTeacherConfig
    from .speech_encoder_cmkd import (
        SpeechEncoder,
        build_speech_encoder,
        build_stock,
        is_traced,
        load_speech_encoder,
        load_stock,
        real_lengths,
        shorten,
        trains,
    )
except ImportError:
    from configuration_cmkd import EMOTION_DIMENSIONS, CMKDStudentConfig, CMKDTeacherConfig
    from speech_encoder_cmkd import (
        SpeechEncoder,
        build_speech_encoder,
        build_stock,
        is_traced,
        load_speech_encoder,
        load_stock,
        real_lengths,
        shorten,
        trains,
    )

_LABEL_ROUNDING = 1e-3  # how far a label may lie outside the unit interval


@dataclass
class CMKDOutput(ModelOutput):
    """What teacher and student return.

    Args:
        loss (`torch.Tensor`, *optional*, with `labels`):
            The emotion loss of the batch (Eq. 5), see [`ccc_loss`]; a scalar in [0, 2].
        logits (`torch.Tensor` of shape `(batch, 3)`):
            Activation, valence and dominance, in this order, on the unit interval: 0 is the minimum of the corpus's
            rating scale, 1 its maximum (not clipped). `config.to_label_scale(logits)` converts to that scale. NaN in a
            dimension that is not among `config.rated_dimensions`: nothing was learnt there.
        embeddings (`torch.Tensor` of shape `(batch, embedding_size)`):
            The utterance embedding e (Eq. 1 for a teacher, Eq. 2 for a student).
        hidden_states (`tuple[torch.Tensor]`, *optional*, with `output_hidden_states`):
            States of the speech encoder, each (batch, frames, size): the input of the first layer and the output of
            every layer, the last one after the encoder's final norm if it has one. CPC has one state, the features.
            With `speech_features` there are only those from the stored one on, unless the model has a weighted layer
            sum, for which all are stored. So `hidden_states[-1]` is always that of the last layer.
        hidden_states_mask (`torch.Tensor` of shape `(batch, frames)`, *optional*, with `output_hidden_states`):
            True at real frames; elsewhere the states have no meaning.
        text_hidden_states (`tuple[torch.Tensor]`, *optional*, with `output_hidden_states`):
            States of the text encoder, each (batch, tokens, size), as the stock encoder returns them; with
            `text_features` only these. Their mask is `text_attention_mask`.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    embeddings: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    hidden_states_mask: torch.Tensor | None = None
    text_hidden_states: tuple[torch.Tensor, ...] | None = None


def ccc_loss(predictions: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The emotion loss (Eq. 3 and 5): the mean over the rated dimensions of 1 - CCC, each over its rated utterances.

    The same formula is in `cmkd/losses.py`, which explains it. It is repeated here because this file travels without
    that package; a test compares the two.

    Args:
        predictions (`torch.Tensor` of shape `(n, dims)`): the predictions, NaN only where the label is NaN.
        labels (`torch.Tensor` of shape `(n, dims)`): the labels; NaN means "not rated".

    Returns:
        A scalar in [0, 2], in fp32 or better. A dimension without a rating does not count; one without covariance,
        because predictions or labels are constant or only one is rated, counts as CCC 0. It is 1 if nothing is rated.
    """
    dtype = torch.promote_types(torch.promote_types(predictions.dtype, labels.dtype), torch.float32)
    rated = ~labels.isnan()
    count = rated.sum(0).clamp(min=1)
    predictions, labels = (values.to(dtype).masked_fill(~rated, 0.0) for values in (predictions, labels))

    def mean(values: torch.Tensor) -> torch.Tensor:
        return values.masked_fill(~rated, 0.0).sum(0) / count

    mean_predictions, mean_labels = mean(predictions), mean(labels)
    predictions, labels = predictions - mean_predictions, labels - mean_labels
    covariance = mean(predictions * labels)
    spread = mean(predictions.square()) + mean(labels.square()) + (mean_predictions - mean_labels).square()
    limits = torch.finfo(dtype)
    rounding = (8 * limits.eps) ** 2 * (mean_predictions.square() + mean_labels.square()).detach() + limits.tiny
    loss = 1 - 2 * covariance / torch.maximum(spread, rounding)
    is_rated = rated.any(0)
    weights = (is_rated | ~is_rated.any()).to(loss.dtype)
    return (weights * loss).sum() / weights.sum()


class TextEncoder(nn.Module):
    """A stock text encoder, which is kept in eval mode while none of its parameters has `requires_grad`."""

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.encoder = _without_pooler(build_stock(config))
        self.freeze()

    def freeze(self) -> None:
        """Sets `requires_grad` of all parameters to False."""
        self.encoder.requires_grad_(False)
        self._set_modes()

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self._set_modes()
        return self

    def _set_modes(self) -> None:
        mode = self.training and trains(self.encoder)
        if mode != self.encoder.training:
            self.encoder.train(mode)

    def check_frozen(self) -> None:
        """Raises a ValueError if a parameter would train, so that the output cannot be stored."""
        if not trains(self.encoder):
            return
        name = next(name for name, parameter in self.encoder.named_parameters() if parameter.requires_grad)
        raise ValueError(
            f"text_features are the output of a frozen text encoder, but its {name} has requires_grad=True and "
            "would not train. Pass input_ids instead, or call freeze_encoders()."
        )

    def forward(
        self, input_ids: torch.Tensor, text_attention_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(batch, tokens) ids and mask -> token features (batch, tokens, hidden size) and mask (batch, tokens)."""
        states, text_attention_mask = self.states(input_ids, text_attention_mask)
        return states[-1], text_attention_mask

    def states(
        self, input_ids: torch.Tensor, text_attention_mask: torch.Tensor | None, keep_all: bool = False
    ) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
        """As `forward`, but with a tuple of states instead of the features: all of them, or only the last one."""
        self._set_modes()
        if text_attention_mask is None:
            text_attention_mask = torch.ones_like(input_ids)
        real_lengths(text_attention_mask, "text_attention_mask")
        output = self.encoder(
            input_ids=input_ids,
            attention_mask=text_attention_mask,
            **({"output_hidden_states": True} if keep_all else {}),
        )
        below = output.hidden_states[:-1] if keep_all else ()
        return (*below, output.last_hidden_state), text_attention_mask


class GRUSummarizer(nn.Module):
    """A GRU whose output at the last real frame represents the utterance.

    The GRU also runs over the padding; since it is unidirectional, its output at the last real frame does not depend on
    it.
    """

    def __init__(self, input_size: int, hidden_size: int, num_layers: int):
        super().__init__()
        self.gru = nn.GRU(input_size, hidden_size, num_layers, batch_first=True)

    def forward(self, features: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(batch, frames, input size) and mask (batch, frames), at least one frame real -> (batch, hidden size)."""
        outputs, _ = self.gru(features)
        last = mask.long().sum(-1) - 1
        return outputs[torch.arange(outputs.shape[0], device=outputs.device), last]


class AttentionSummarizer(nn.Module):
    """A GRU whose outputs at all real frames, each unit weighted in its own way, represent the utterance.

    With outputs h_t of the GRU, unit k of the summary is `sum_t a_tk h_tk`, where `a_tk` is the softmax over the real
    frames t of `(W h_t + b)_k`, as in the attentive pooling of arXiv 2005.07143, less its variances. So each unit is
    read where it has something to say, and not at the end only, where much of a sentence may have been forgotten.
    """

    def __init__(self, input_size: int, hidden_size: int, num_layers: int):
        super().__init__()
        self.gru = nn.GRU(input_size, hidden_size, num_layers, batch_first=True)
        self.attention = nn.Linear(hidden_size, hidden_size)

    def forward(self, features: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(batch, frames, input size) and mask (batch, frames), at least one frame real -> (batch, hidden size)."""
        outputs, _ = self.gru(features)
        is_padding = ~mask.bool()[..., None]
        weights = self.attention(outputs).masked_fill(is_padding, -torch.inf).softmax(1)
        return (weights * outputs.masked_fill(is_padding, 0.0)).sum(1)


class WordPieceSummarizer(nn.Module):
    """Which pieces of words are heard, and how often each: the bag of words, as far as it can be made out.

    A GRU reads two frames at a time, and after each pair a softmax says how likely each piece has just been said, or
    none. Trained with CTC (Graves et al. 2006), as the stage `lexical` does it, each piece lights up about once for
    each time that it is said, so that the sum over time is how often it is expected to have been said. The states of
    such a GRU tell where it is in a word, and their mean says little about the words; these sums do.
    """

    def __init__(self, input_size: int, hidden_size: int, num_layers: int, num_pieces: int):
        super().__init__()
        self.norm = nn.LayerNorm(input_size)
        self.gru = nn.GRU(2 * input_size, hidden_size, num_layers, batch_first=True)
        self.piece_head = nn.Linear(hidden_size, 1 + num_pieces)
        self.requires_grad_(False)  # but for the stage `lexical`, see `CMKDPreTrainedModel.freeze_encoders`

    def piece_logits(self, features: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What CTC takes: for each pair of frames, scores of "none" and of each piece.

        Args:
            features (`torch.Tensor` of shape `(batch, frames, input size)`): of the speech encoder.
            mask (`torch.Tensor` of shape `(batch, frames)`): 1 at real frames.

        Returns:
            The scores (batch, pairs, 1 + pieces) and the mask (batch, pairs), True where a frame of the pair is real.
        """
        mask = mask.bool()
        features = self.norm(features).masked_fill(~mask[..., None], 0.0)
        second = nn.functional.pad(features, (0, 0, 0, 1))[:, 1::2]  # zeros after an odd number of frames
        outputs, _ = self.gru(torch.cat([features[:, ::2], second], dim=-1))
        return self.piece_head(outputs), mask[:, ::2]

    def forward(self, features: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """4 times how often each piece is heard, (batch, pieces), divided by 1 + n / 8 if n are heard in all.

        So a few words count by number, and many by their shares: what is said for long is not more of the same. In a
        sentence of ten pieces one that is heard once has 1.8; as 0.4 what it means is learned too slowly. The arguments
        are those of `piece_logits`.
        """
        return self.weighted(self.counts(*self.piece_logits(features, mask)))

    @staticmethod
    def weighted(counts: torch.Tensor) -> torch.Tensor:
        """What `counts` returns -> what `forward` returns."""
        return 4 * counts / (1 + counts.sum(-1, keepdim=True) / 8)

    @staticmethod
    def counts(logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """What `piece_logits` returns -> how often each piece is expected to have been said, (batch, pieces)."""
        return (logits.softmax(-1)[..., 1:] * mask[..., None]).sum(1)


SUMMARIZER_CLASSES: dict[str, type[nn.Module]] = {"last_state": GRUSummarizer, "attention": AttentionSummarizer}
"""By the value of `config.summarizer`."""


class CMKDPreTrainedModel(PreTrainedModel):
    """The network of teacher and student, and how they are loaded and saved."""

    base_model_prefix = ""
    main_input_name = "input_values"
    _supports_sdpa = True
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # the loss is a batch's own: Trainer divides it by the number of accumulation steps

    def __init__(self, config: PreTrainedConfig):
        config.check()
        super().__init__(config)
        summary_size = 0
        self.speech_encoder = self.text_encoder = self.word_summarizer = None
        if config.speech_config is not None:
            self.speech_encoder = build_speech_encoder(config)
            self.speech_summarizer = self._build_summarizer(self.speech_encoder)
            summary_size += config.gru_hidden_size
        if self._word_pieces() is not None:
            size, num_pieces = self.speech_encoder.encoder.config.hidden_size, len(self._word_pieces())
            self.word_summarizer = WordPieceSummarizer(size, config.word_hidden_size, config.gru_num_layers, num_pieces)
            summary_size += num_pieces
        if self._text_config() is not None:
            self.text_encoder = TextEncoder(self._text_config())
            self.text_summarizer = self._build_summarizer(self.text_encoder)
            summary_size += config.gru_hidden_size
        self.embedding_head = nn.Linear(summary_size, config.embedding_size)
        self.prediction_head = nn.Linear(config.embedding_size, len(EMOTION_DIMENSIONS))
        self.post_init()
        # The modules that FSDP shards separately. It gathers a module when its `forward` runs; `SpeechEncoder` runs the
        # rest of an encoder part by part, so the rest has to stay with the whole model.
        self._no_split_modules = {type(module).__name__ for module in self._modules_run_by_forward()}

    def _modules_run_by_forward(self) -> list[nn.Module]:
        modules: list[nn.Module] = []
        if self.speech_encoder is not None:
            modules += self.speech_encoder.run_by_forward()
        if self.text_encoder is not None:
            names = self.text_encoder.encoder._no_split_modules or ()
            modules += [module for module in self.text_encoder.modules() if type(module).__name__ in names]
        return modules

    def get_input_embeddings(self) -> None:
        """Returns None, since there is no table to add a vocabulary to; accelerate asks for it before it shards."""

    def _text_config(self) -> PreTrainedConfig | None:
        return None

    def _word_pieces(self) -> list[str] | None:
        return None

    def _build_summarizer(self, encoder: nn.Module) -> nn.Module:
        size = encoder.encoder.config.hidden_size
        return SUMMARIZER_CLASSES[self.config.summarizer](size, self.config.gru_hidden_size, self.config.gru_num_layers)

    def _init_weights(self, module: nn.Module) -> None:
        """Initialises GRU and linear layers as torch does; the encoders have initialisations of their own."""
        if isinstance(module, nn.GRU):
            bound = module.hidden_size**-0.5
            for parameter in module.parameters():
                init.uniform_(parameter, -bound, bound)
        elif isinstance(module, nn.Linear):
            bound = module.in_features**-0.5
            init.uniform_(module.weight, -bound, bound)
            init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, SpeechEncoder) and module.layer_weights is not None:
            init.zeros_(module.layer_weights)

    def freeze_encoders(self) -> None:
        """Sets `requires_grad` of the encoders' parameters according to `config.num_trainable_layers`.

        What tells word pieces apart is frozen too: trained on ratings, it would no longer hear the pieces whose names
        it has.

        Raises:
            ValueError: a field of the configuration is out of its range.
        """
        self.config.check()
        for encoder in (self.speech_encoder, self.text_encoder):
            if encoder is not None:
                encoder.freeze()
        if self.word_summarizer is not None:
            self.word_summarizer.requires_grad_(False)

    def _adopt(self, encoders: dict[str, nn.Module]) -> Self:
        """Replaces the random encoders ("speech", "text") with loaded ones."""
        for name, encoder in encoders.items():
            getattr(self, f"{name}_encoder").encoder = encoder
        self.freeze_encoders()
        return self.eval()

    def extract_speech_features(
        self, inputs: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The output of the part of the speech encoder below its top `config.num_trainable_layers` layers.

        It never changes while the rest trains.

        Args:
            inputs (`torch.Tensor`): `input_values` (batch, samples) or `input_features` (batch, mel bins, frames).
            attention_mask (`torch.Tensor`, *optional*): (batch, samples or frames), 1 where real.

        Returns:
            Features and mask that `forward` takes as `speech_features` and `attention_mask`.

        Raises:
            ValueError: something in that part has `requires_grad`.
        """
        return self.speech_encoder.frozen_features(inputs, attention_mask)

    def extract_text_features(
        self, input_ids: torch.Tensor, text_attention_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The output of the text encoder.

        Returns:
            Token features (batch, tokens, hidden size) and mask that `forward` takes as `text_features` and
            `text_attention_mask`.

        Raises:
            ValueError: something in the text encoder has `requires_grad`.
        """
        self.text_encoder.check_frozen()
        return self.text_encoder(input_ids, text_attention_mask)

    def _speech_states(
        self,
        input_values: torch.Tensor | None,
        input_features: torch.Tensor | None,
        speech_features: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        keep_all: bool,
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """The states of the speech encoder, all of them or only those that are needed, and their mask."""
        given = {"input_values": input_values, "input_features": input_features, "speech_features": speech_features}
        given = {name: value for name, value in given.items() if value is not None}
        expected = self.config.speech_input_name
        if len(given) != 1 or not given.keys() <= {expected, "speech_features"}:
            raise ValueError(
                f"Speech came as {' and '.join(given) or 'nothing'}: this model's "
                f"{self.config.speech_config.model_type} encoder takes {expected}, or its frozen "
                "part's output as speech_features, and exactly one of the two."
            )
        if speech_features is None:
            return self.speech_encoder.states(given[expected], attention_mask, keep_all)
        if attention_mask is None:
            attention_mask = torch.ones(speech_features.shape[:2], device=speech_features.device)
        mask = attention_mask.bool()
        return self.speech_encoder.states_above(speech_features, mask, keep_all), mask

    def _text_states(
        self,
        input_ids: torch.Tensor | None,
        text_features: torch.Tensor | None,
        text_attention_mask: torch.Tensor | None,
        keep_all: bool,
    ) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
        """The states of the text encoder, all of them or only the last one, and their mask."""
        if (input_ids is None) == (text_features is None):
            raise ValueError(
                "This model reads: pass input_ids, or the text encoder's output as text_features, not both."
            )
        if text_features is None:
            return self.text_encoder.states(input_ids, text_attention_mask, keep_all)
        self.text_encoder.check_frozen()
        if text_attention_mask is None:
            text_attention_mask = torch.ones(text_features.shape[:2], device=text_features.device)
        return (text_features,), text_attention_mask

    def _answer(
        self,
        speech: Sequence,
        text: Sequence,
        labels: torch.Tensor | None,
        output_hidden_states: bool | None,
        output_attentions: bool | None,
        return_dict: bool | None,
        word_counts: torch.Tensor | None = None,
    ) -> CMKDOutput | tuple[torch.Tensor, ...]:
        """What `forward` returns; `speech` and `text` are the arguments of `_speech_states` and `_text_states`."""
        if self.config.output_attentions if output_attentions is None else output_attentions:
            raise ValueError("output_attentions=True: this model does not return attention maps. Leave it out.")
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        summaries, states, mask, text_states = [], None, None, None
        if self.speech_encoder is not None:
            states, mask = self._speech_states(*speech, keep_all=output_hidden_states)
            summaries.append(self.speech_summarizer(self.speech_encoder.summed(states), mask))
        if self.word_summarizer is not None and word_counts is None:
            summaries.append(self.word_summarizer(states[-1], mask))
        elif self.word_summarizer is not None:
            summaries.append(self.word_summarizer.weighted(word_counts))
        if self.text_encoder is not None:
            text_states, text_mask = self._text_states(*text, keep_all=output_hidden_states)
            summaries.append(self.text_summarizer(text_states[-1].to(self.dtype), text_mask))
        output = self._predict(summaries)
        output = CMKDOutput(
            loss=None if labels is None else ccc_loss(output.logits, self._checked_labels(labels, output.logits)),
            logits=output.logits,
            embeddings=output.embeddings,
        )
        if output_hidden_states:
            output.hidden_states = None if states is None else tuple(states)
            output.hidden_states_mask = mask
            output.text_hidden_states = text_states
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()

    def _checked_labels(self, labels: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        if labels.shape != logits.shape:
            raise ValueError(
                f"labels has shape {tuple(labels.shape)}: must be {tuple(logits.shape)}, a column for each of "
                f"{', '.join(EMOTION_DIMENSIONS)}, NaN where an utterance is not rated."
            )
        if not labels.is_floating_point():
            raise ValueError(f"labels are {labels.dtype}: must be floating point numbers on the unit interval.")
        outside = ~labels.isnan() & ~((labels > -_LABEL_ROUNDING) & (labels < 1 + _LABEL_ROUNDING))
        if not is_traced() and outside.any():
            raise ValueError(
                f"labels hold {labels[outside][0].item():g}: must be on the unit interval, 0 being the minimum and 1 "
                f"the maximum of label_scale, {self.config.label_scale}. config.to_unit_interval(ratings) converts."
            )
        for index, name in enumerate(EMOTION_DIMENSIONS):
            if not is_traced() and name not in self.config.rated_dimensions and not labels[:, index].isnan().all():
                raise ValueError(
                    f"labels rate {name}, which is not among config.rated_dimensions, {self.config.rated_dimensions}: "
                    "this model has learnt nothing there and answers NaN. To train it there too, set "
                    f"model.config.rated_dimensions = {list(EMOTION_DIMENSIONS)}; else make these labels NaN."
                )
        return labels

    def _predict(self, summaries: list[torch.Tensor]) -> CMKDOutput:
        embeddings = self.embedding_head(torch.cat(summaries, dim=-1))
        standardized = self.prediction_head(embeddings).float()
        mean = standardized.new_tensor(self.config.label_mean)
        std = standardized.new_tensor(self.config.label_std)
        logits = standardized * std + mean
        if len(self.config.rated_dimensions) < len(EMOTION_DIMENSIONS):
            is_rated = [name in self.config.rated_dimensions for name in EMOTION_DIMENSIONS]
            logits = torch.where(torch.tensor(is_rated, device=logits.device), logits, torch.nan)
        return CMKDOutput(logits=logits, embeddings=embeddings)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        *model_args: Any,
        output_loading_info: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Loads a checkpoint, and refuses one that would leave any weight random.

        Takes what [`~transformers.PreTrainedModel.from_pretrained`] takes.

        Raises:
            ValueError: weights are missing or have a different shape than the configuration says, or `use_safetensors`
                is False.
            OSError: there is no such checkpoint, or its weights are not safetensors.
        """
        if kwargs.pop("use_safetensors", True) is False:
            raise ValueError("use_safetensors=False: CMKD checkpoints are safetensors only; leave the argument out.")
        kwargs |= {"use_safetensors": True, "ignore_mismatched_sizes": True}
        try:
            model, info = super().from_pretrained(
                pretrained_model_name_or_path, *model_args, output_loading_info=True, **kwargs
            )
        except OSError as error:
            if "file named model.safetensors" not in str(error):
                raise
            raise OSError(
                f"{str(pretrained_model_name_or_path)!r} has no model.safetensors. Other weights are not loaded: they "
                "are pickles, and reading a pickle can run any code. Ask whoever made them for safetensors."
            ) from error
        missing = sorted(info["missing_keys"])
        mismatched = sorted(str(entry[0]) for entry in info["mismatched_keys"])
        if missing or mismatched:
            raise ValueError(
                f"The checkpoint {str(pretrained_model_name_or_path)!r} does not hold all of {cls.__name__}: "
                f"missing {shorten(missing)}, of another shape {shorten(mismatched)}. It is not used, because these "
                "weights would be random. Load a checkpoint that a CMKD model saved; to start from a bare encoder use "
                "CMKDStudentModel.from_pretrained_encoder or CMKDTeacherModel.from_pretrained_encoders."
            )
        model.freeze_encoders()
        return (model, info) if output_loading_info else model

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Saves safetensors, configuration and the code files, so that any `AutoModel` and `pipeline` loads them.

        Takes what [`~transformers.PreTrainedModel.save_pretrained`] takes.
        """
        # transformers copies the pipeline along because this file imports it relatively.
        try:
            from .pipeline_cmkd import CUSTOM_PIPELINES
        except ImportError:
            from pipeline_cmkd import CUSTOM_PIPELINES
        self.config.custom_pipelines = copy.deepcopy(CUSTOM_PIPELINES)
        reference = f"{type(self).__module__.split('.')[-1]}.{type(self).__name__}"
        auto_map = dict(getattr(self.config, "auto_map", None) or {})
        self.config.auto_map = auto_map | {"AutoModel": reference, "AutoModelForAudioClassification": reference}
        super().save_pretrained(save_directory, **kwargs)


class CMKDTeacherModel(CMKDPreTrainedModel):
    """The teacher: frozen speech encoder and frozen text encoder, or one of the two (Eq. 1; rows 3 to 9 of Table 2)."""

    config_class = CMKDTeacherConfig

    def _text_config(self) -> PreTrainedConfig | None:
        return self.config.text_config

    def forward(
        self,
        input_values: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        text_attention_mask: torch.Tensor | None = None,
        speech_features: torch.Tensor | None = None,
        text_features: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        inputs_embeds: None = None,
    ) -> CMKDOutput | tuple[torch.Tensor, ...]:
        """Predicts from speech and text, whichever of the two this teacher has encoders for.

        Args:
            input_values (`torch.Tensor` of shape `(batch, samples)`, *optional*): 16 kHz waveforms.
            input_features (`torch.Tensor` of shape `(batch, mel bins, frames)`, *optional*): Whisper's log-mel input.
            attention_mask (`torch.Tensor`, *optional*): 1 where speech is real: (batch, samples) with `input_values`,
                (batch, frames) or (batch, samples) with `input_features`, (batch, frames) with `speech_features`.
            input_ids (`torch.Tensor` of shape `(batch, tokens)`, *optional*): the transcript's tokens.
            text_attention_mask (`torch.Tensor` of shape `(batch, tokens)`, *optional*): 1 where tokens are real.
            speech_features (`torch.Tensor` of shape `(batch, frames, hidden size)`, *optional*): output of
                `extract_speech_features`, instead of speech.
            text_features (`torch.Tensor` of shape `(batch, tokens, hidden size)`, *optional*): output of
                `extract_text_features`, instead of `input_ids`.

            labels (`torch.Tensor` of shape `(batch, 3)`, *optional*): activation, valence and dominance on the unit
                interval, NaN where not rated; the output then has a `loss`, that of this batch.
            output_hidden_states (`bool`, *optional*, defaults to `config.output_hidden_states`): also return the
                states of the encoders' layers.
            output_attentions (`bool`, *optional*): must not be True; it is here because peft passes it.
            return_dict (`bool`, *optional*, defaults to `config.return_dict`): False returns a tuple of all that is not
                None.
            inputs_embeds (*optional*): must be None; it is here because peft passes it.

        Raises:
            ValueError: a modality is missing, given twice, or of the wrong kind for the encoder; stored features are
                given for a part that would train; labels are not ratings on the unit interval.
        """
        _refuse(inputs_embeds=inputs_embeds)
        speech = (input_values, input_features, speech_features, attention_mask)
        text = (input_ids, text_features, text_attention_mask)
        return self._answer(speech, text, labels, output_hidden_states, output_attentions, return_dict)

    @classmethod
    def from_pretrained_encoders(
        cls,
        speech: str | None = None,
        text: str | None = None,
        speech_revision: str | None = None,
        text_revision: str | None = None,
        **config: Any,
    ) -> Self:
        """Makes a teacher with pretrained encoders and a new, random head.

        Args:
            speech (`str`, *optional*): Hub name or folder of a speech encoder.
            text (`str`, *optional*): Hub name or folder of a text encoder.
            speech_revision (`str`, *optional*): Branch, tag or commit of the speech encoder on the Hub.
            text_revision (`str`, *optional*): Branch, tag or commit of the text encoder on the Hub.
            config: fields of [`CMKDTeacherConfig`].

        Raises:
            ValueError: both are None, or an encoder's weights are incomplete.
        """
        encoders = {}
        if speech is not None:
            encoders["speech"] = load_speech_encoder(speech, speech_revision)
        if text is not None:
            encoders["text"] = _without_pooler(load_stock(text, text_revision))
        configs = {f"{name}_config": encoder.config for name, encoder in encoders.items()}
        return cls(CMKDTeacherConfig(**configs, **config))._adopt(encoders)


class CMKDStudentModel(CMKDPreTrainedModel):
    """The student: a speech encoder, of which the top layers may train (Eq. 2; rows 10 to 12 of Table 2)."""

    config_class = CMKDStudentConfig

    def _word_pieces(self) -> list[str] | None:
        return self.config.word_pieces

    def forward(
        self,
        input_values: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        speech_features: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        word_counts: torch.Tensor | None = None,
        input_ids: None = None,
        inputs_embeds: None = None,
    ) -> CMKDOutput | tuple[torch.Tensor, ...]:
        """Predicts from speech; the arguments are those of [`CMKDTeacherModel`], `input_ids` must be None, and

        Args:
            word_counts (`torch.Tensor` of shape `(batch, pieces)`, *optional*): How often each of `config.word_pieces`
                is heard in this speech, as [`~CMKDStudentModel.word_counts`] returns it, so that it is not computed
                again; without word pieces None.
        """
        _refuse(input_ids=input_ids, inputs_embeds=inputs_embeds)
        if self.word_summarizer is None:
            _refuse(word_counts=word_counts)
        speech = (input_values, input_features, speech_features, attention_mask)
        return self._answer(speech, (), labels, output_hidden_states, output_attentions, return_dict, word_counts)

    @torch.no_grad()
    def word_counts(self, **speech: torch.Tensor) -> torch.Tensor:
        """How often each of `config.word_pieces` is expected to have been said, (batch, pieces).

        Takes the speech as `forward` does, and raises what [`~CMKDStudentModel.piece_logits`] raises.
        """
        return WordPieceSummarizer.counts(*self.piece_logits(**speech))

    def piece_logits(
        self,
        input_values: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        speech_features: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """When which of `config.word_pieces` is heard, as [`WordPieceSummarizer.piece_logits`] gives it.

        Takes the speech as `forward` does.

        Returns:
            Scores (batch, steps, 1 + pieces), of which the first is that of "no piece", and a mask (batch, steps).

        Raises:
            ValueError: speech is missing, given twice, or of the wrong kind for the encoder; or the student has no
                word pieces.
        """
        if self.word_summarizer is None:
            raise ValueError("config.word_pieces is None: this student does not listen for pieces of words.")
        states, mask = self._speech_states(input_values, input_features, speech_features, attention_mask, False)
        return self.word_summarizer.piece_logits(states[-1], mask)

    @classmethod
    def from_pretrained_encoder(cls, speech: str, revision: str | None = None, **config: Any) -> Self:
        """Makes a student with a pretrained speech encoder and a new, random head.

        Args:
            speech (`str`): Hub name or folder of a speech encoder.
            revision (`str`, *optional*): Branch, tag or commit of the speech encoder on the Hub.
            config: fields of [`CMKDStudentConfig`].

        Raises:
            ValueError: the encoder's weights are incomplete.
        """
        encoder = load_speech_encoder(speech, revision)
        return cls(CMKDStudentConfig(speech_config=encoder.config, **config))._adopt({"speech": encoder})


def _refuse(**inputs: Any) -> None:
    for name, value in inputs.items():
        if value is not None:
            raise ValueError(
                f"{name} was given, which this {'student' if name == 'input_ids' else 'model'} does not take."
            )


def _without_pooler(encoder: nn.Module) -> nn.Module:
    """The text encoder without its pooler, on which no output depends."""
    if "add_pooling_layer" in inspect.signature(type(encoder)).parameters:
        encoder.pooler = None  # type: ignore[assignment]
    return encoder


CMKDTeacherModel.register_for_auto_class("AutoModel")
CMKDStudentModel.register_for_auto_class("AutoModel")
