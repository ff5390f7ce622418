"""The CMKD teacher, which hears and reads, and the student, which only hears (Figure 1 of arXiv 2112.00158).

Their encoders are those of transformers, and Modified CPC, which transformers lacks.

This file travels to the Hub with every checkpoint, beside `configuration_cmkd.py`. It imports torch and transformers
and nothing else; `pipeline_cmkd.py`, and with it `audio_cmkd.py`, only to name it when a model is saved. What a model
answers for an utterance does not depend on what else is in its batch, nor on the padding: see [`SpeechEncoder`].
"""

import copy
import inspect
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.wavlm.modeling_wavlm import WavLMAttention
from transformers.models.whisper.modeling_whisper import WhisperEncoder
from transformers.utils import ModelOutput

try:
    from .configuration_cmkd import (
        EMOTION_DIMENSIONS,
        SPECTROGRAM_ENCODERS,
        CMKDStudentConfig,
        CMKDTeacherConfig,
        CPCConfig,
    )
except ImportError:
    from configuration_cmkd import (
        EMOTION_DIMENSIONS,
        SPECTROGRAM_ENCODERS,
        CMKDStudentConfig,
        CMKDTeacherConfig,
        CPCConfig,
    )

CPC_CONVOLUTIONS = ((10, 5, 3), (8, 4, 2), (4, 2, 1), (4, 2, 1), (4, 2, 1))
"""Kernel size, stride and padding on either side of CPC's convolutions: a frame every 160 samples."""

WHISPER_HOP = 160
"""Samples from one log-mel frame to the next, in all Whisper models."""

FRAMES_AT_A_TIME = 100
"""Frames of an encoder's output, 2 s with most, for which the convolutions over the waveform run at a time."""

CHANNELS_AT_A_TIME = 64
"""Channels of which the statistics of a group norm are taken at a time."""

_LABEL_ROUNDING = 1e-3  # by which a label may lie outside the unit interval


@dataclass
class CMKDOutput(ModelOutput):
    """What teacher and student return.

    Args:
        loss (`torch.FloatTensor`, *optional*, with `labels`):
            The emotion loss of the batch (Eq. 5), see [`ccc_loss`]; a scalar in [0, 2].
        logits (`torch.FloatTensor` of shape `(batch, 3)`):
            Activation, valence and dominance, in this order, on the unit interval: 0 is the minimum of the corpus's
            rating scale, 1 its maximum (not clipped). `config.to_label_scale(logits)` converts to that scale. NaN in a
            dimension that is not among `config.rated_dimensions`: nothing was learnt there.
        embeddings (`torch.FloatTensor` of shape `(batch, embedding_size)`):
            The utterance embedding e (Eq. 1 for a teacher, Eq. 2 for a student).
        hidden_states (`tuple[torch.FloatTensor]`, *optional*, with `output_hidden_states`):
            Of the speech encoder, each (batch, frames, size): the input of the first layer, and what every layer
            returns, the last after the encoder's final norm if it has one. CPC has one state, the features. With
            `speech_features` only those from the stored one on, unless the model has a weighted layer sum, for which
            all are stored. So `hidden_states[-1]` is always the last layer's.
        hidden_states_mask (`torch.BoolTensor` of shape `(batch, frames)`, *optional*, with `output_hidden_states`):
            True at real frames; what the states hold elsewhere is of no meaning.
        text_hidden_states (`tuple[torch.FloatTensor]`, *optional*, with `output_hidden_states`):
            Of the text encoder, each (batch, tokens, size), as the stock encoder returns them; with `text_features`
            these alone. Their mask is `text_attention_mask`.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    embeddings: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    hidden_states_mask: torch.BoolTensor | None = None
    text_hidden_states: tuple[torch.FloatTensor, ...] | None = None


def ccc_loss(predictions: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The emotion loss (Eq. 3 and 5): the mean over the rated dimensions of 1 - CCC, each over its rated utterances.

    The same formula is in `cmkd/losses.py`, which explains it. It is here a second time because this file travels
    without that package; a test holds the two together.

    Args:
        predictions (`torch.Tensor` of shape `(n, dims)`): NaN only where the label is.
        labels (`torch.Tensor` of shape `(n, dims)`): NaN means "not rated".

    Returns:
        A scalar in [0, 2], in fp32 or better. A dimension without a rating does not count; one without covariance,
        because predictions or labels are constant or only one is rated, counts as CCC 0. 1 where nothing is rated.
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


def _is_traced() -> bool:
    """Whether `torch.export`, `torch.compile` or the older tracing records what runs: values cannot be looked at."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined]


def _lengths(mask: torch.Tensor, name: str) -> torch.Tensor:
    """Number of real positions in each row of a right-padded mask (batch, positions)."""
    if not _is_traced() and (mask[:, 1:] > mask[:, :-1]).any():
        raise ValueError(f"{name} has padding before real positions: pad on the right (padding_side='right').")
    return mask.long().sum(-1)


def _mask(lengths: torch.Tensor, size: int) -> torch.Tensor:
    """(batch,) lengths -> (batch, size) mask, True at real positions."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


def _check_not_empty(frames: torch.Tensor):
    if not _is_traced() and frames.min() < 1:
        raise ValueError(
            f"Utterance {int(frames.argmin())} of the batch is shorter than one frame of the speech encoder: "
            "leave out utterances of less than 0.1 s."
        )


def _first(output):
    """The hidden states of a layer that returns them alone or first in a tuple, as versions of transformers differ."""
    return output[0] if isinstance(output, tuple) else output


class ChannelNorm(nn.Module):
    """Normalises every frame over its channels by the unbiased variance; torch's layer norm takes the biased one."""

    eps = 1e-5

    def __init__(self, num_channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(batch, channels, frames) -> the same."""
        variance, mean = torch.var_mean(hidden.float(), dim=1, correction=1, keepdim=True)
        normalized = (hidden.float() - mean) * torch.rsqrt(variance + self.eps)
        return (normalized * self.weight[:, None] + self.bias[:, None]).to(hidden.dtype)


class CPCLayer(nn.Module):
    """A convolution of CPC, its norm and ReLU: (batch, channels, frames) -> (batch, channels, fewer frames)."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int, padding: int):
        super().__init__()
        self.conv = nn.Conv1d(in_channels, out_channels, kernel_size, stride, padding)
        self.norm = ChannelNorm(out_channels)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return nn.functional.relu(self.norm(self.conv(hidden)))

    def num_frames(self, lengths: torch.Tensor) -> torch.Tensor:
        """How many frames come out where `lengths` go in."""
        kernel, stride, padding = self.conv.kernel_size[0], self.conv.stride[0], self.conv.padding[0]
        return torch.div(lengths + 2 * padding - kernel, stride, rounding_mode="floor") + 1


class CPCModel(PreTrainedModel):
    """Modified CPC (Rivière et al. 2020, arXiv 2002.02848): five convolutions and a recurrent network over 100 Hz.

    It takes the waveform as it is, not scaled to unit variance. Padding does not reach a real frame: before every
    convolution it is set to the zeros that the unpadded utterance would see, and the recurrent network runs from left
    to right.
    """

    config_class = CPCConfig
    base_model_prefix = "cpc"
    main_input_name = "input_values"

    def __init__(self, config):
        super().__init__(config)
        self.layers = nn.ModuleList(
            CPCLayer(1 if index == 0 else config.num_channels, config.num_channels, *shape)
            for index, shape in enumerate(CPC_CONVOLUTIONS)
        )
        recurrent = {"lstm": nn.LSTM, "gru": nn.GRU}[config.recurrent_type]
        self.recurrent = recurrent(config.num_channels, config.hidden_size, config.num_hidden_layers, batch_first=True)
        self.post_init()

    def _init_weights(self, module):
        """torch's own initialisation."""
        if isinstance(module, nn.Conv1d):
            bound = (module.in_channels * module.kernel_size[0]) ** -0.5
        elif isinstance(module, nn.LSTM | nn.GRU):
            bound = module.hidden_size**-0.5
        elif isinstance(module, ChannelNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
            return
        else:
            return
        for parameter in module.parameters():
            init.uniform_(parameter, -bound, bound)

    def forward(self, input_values: torch.Tensor, attention_mask: torch.Tensor | None = None) -> BaseModelOutput:
        """Runs the network.

        Args:
            input_values (`torch.Tensor` of shape `(batch, samples)`): 16 kHz waveforms, full scale being 1.
            attention_mask (`torch.Tensor` of shape `(batch, samples)`, *optional*): 1 where real, padding on the right.

        Returns:
            `last_hidden_state` (batch, frames, hidden size), what comes after an utterance's last real frame being
            of no meaning.

        Raises:
            ValueError: an utterance has fewer than 159 samples, which give no frame, or is padded on the left.
        """
        return BaseModelOutput(last_hidden_state=self.encode(input_values, attention_mask)[0])

    def encode(self, wave: torch.Tensor, attention_mask: torch.Tensor | None = None):
        """As `forward`; returns the features (batch, frames, hidden size) and the number of real frames of each row."""
        if attention_mask is None:
            attention_mask = torch.ones_like(wave, dtype=torch.long)
        lengths = [_lengths(attention_mask, "attention_mask")]
        for layer in self.layers:
            lengths.append(layer.num_frames(lengths[-1]))
        _check_not_empty(lengths[-1])
        hidden = wave[:, None]
        for layer, real in zip(self.layers, lengths[:-1], strict=True):
            hidden = layer(hidden.masked_fill(~_mask(real, hidden.shape[2])[:, None], 0.0))
        return self.recurrent(hidden.transpose(1, 2))[0], lengths[-1]


class ThroughProjections(WavLMAttention):
    """WavLM's attention, which calls its four projections.

    The stock one hands their weights to one function of torch: what peft or a hook puts in the place of a projection
    is never called there, and so neither takes effect nor trains.
    """

    def torch_multi_head_self_attention(self, hidden_states, attention_mask, gated_position_bias):
        batch, frames, size = hidden_states.shape
        query, key, value = (
            projection(hidden_states).view(batch, frames, self.num_heads, self.head_dim).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        bias = gated_position_bias.view(batch, self.num_heads, frames, frames)
        if attention_mask is not None:
            bias = bias.masked_fill(attention_mask.ne(1)[:, None, None], float("-inf"))
        dropout = self.dropout if self.training else 0.0
        states = nn.functional.scaled_dot_product_attention(query, key, value, bias.to(query.dtype), dropout)
        return self.out_proj(states.transpose(1, 2).reshape(batch, frames, size)), None


class SpeechEncoder(nn.Module):
    """A speech encoder, run part by part so that padding never reaches a real frame.

    The stock `forward` lets the padding leak in: through the group norm of HuBERT Base and its kin, through the stacked
    positional convolutions of data2vec-audio, and Whisper's insists on 30 s. Here each part sees the real frames
    only, or zeros where the unpadded utterance would see zeros.

    What trains is what has `requires_grad`, and nothing else is said anywhere. The part below the lowest layer with
    such a parameter is kept in eval mode, so that its output depends on nothing but the utterance; the rest follows
    `train()` and `eval()`. Of that output, the part below the top `config.num_trainable_layers` can be stored.

    Args:
        config: the configuration of the CMKD model, whose encoder is a HuBERT, wav2vec 2.0, WavLM, data2vec-audio,
            Whisper or CPC.
    """

    def __init__(self, config):
        super().__init__()
        self.config = config
        speech = config.speech_config
        self.encoder = _build_encoder(speech)
        self.is_whisper = speech.model_type in SPECTROGRAM_ENCODERS
        self.is_data2vec = speech.model_type == "data2vec-audio"
        self.is_wavlm = speech.model_type == "wavlm"
        self.is_cpc = speech.model_type == CPCConfig.model_type
        self.normalizes_last = self.is_whisper or (
            not self.is_data2vec and not self.is_cpc and speech.do_stable_layer_norm
        )
        size = len(self.layers) + 1
        self.layer_weights = nn.Parameter(torch.zeros(size)) if config.use_weighted_layer_sum else None
        self._lowest = 0
        self.freeze()

    @property
    def layers(self) -> nn.ModuleList:
        """The layers that can train while those below them do not; CPC has none."""
        if self.is_cpc:
            return nn.ModuleList()
        return self.encoder.layers if self.is_whisper else self.encoder.encoder.layers

    @property
    def final_norm(self) -> nn.Module:
        return self.encoder.layer_norm if self.is_whisper else self.encoder.encoder.layer_norm

    @property
    def has_frozen_part(self) -> bool:
        """Whether `config.num_trainable_layers` leaves a part whose output can be stored."""
        return self.config.num_trainable_layers != -1

    @property
    def num_frozen_layers(self) -> int:
        """How many of the layers belong to the part whose output can be stored."""
        return len(self.layers) - self.config.num_trainable_layers if self.has_frozen_part else 0

    def freeze(self):
        """Sets `requires_grad` as `config.num_trainable_layers` says."""
        self.encoder.requires_grad_(not self.has_frozen_part)
        if self.config.num_trainable_layers > 0:
            for module in [*self.layers[self.num_frozen_layers :], *([self.final_norm] * self.normalizes_last)]:
                module.requires_grad_(True)
        if self.is_whisper:
            self.encoder.embed_positions.requires_grad_(False)  # sinusoids
        self._follow_gradient()

    def train(self, mode: bool = True):
        super().train(mode)
        self._set_modes()
        return self

    def _follow_gradient(self):
        """Finds the lowest layer that trains, as it may have changed since `train` was called.

        It is -1 where something below the layers trains; the number of layers, or more, where none of them does.
        """
        above = {self.layers, self.final_norm} if self.normalizes_last else {self.layers}
        if _trains(self.encoder, above):
            lowest = -1
        else:  # without next(), of which the export of torch 2.6 knows no default
            lowest = [*(index for index, layer in enumerate(self.layers) if _trains(layer)), len(self.layers)][0]
        if lowest != self._lowest:
            self._lowest = lowest
            self._set_modes()

    def _set_modes(self):
        if self._lowest == -1:
            self.encoder.train(self.training)
            return
        self.encoder.eval()
        for layer in self.layers[self._lowest :]:
            layer.train(self.training)
        if self.normalizes_last:
            self.final_norm.train(self.training)

    def forward(self, inputs: torch.Tensor, attention_mask: torch.Tensor | None = None):
        """Runs the whole encoder.

        Args:
            inputs (`torch.Tensor`): `input_values` (batch, samples) or `input_features` (batch, mel bins, frames).
            attention_mask (`torch.Tensor`, *optional*): (batch, samples or frames), 1 where real. None: all is real.

        Returns:
            Hidden states (batch, frames, hidden size) and their mask (batch, frames), True at real frames.
        """
        states, mask = self.states(inputs, attention_mask)
        return self.summed(states), mask

    def states(self, inputs: torch.Tensor, attention_mask: torch.Tensor | None = None, keep_all: bool = False):
        """All states of the encoder, for inputs as in `forward`, and their mask.

        Without `keep_all`, and if the model has no weighted layer sum, only the last one.
        """
        self._follow_gradient()
        hidden, lengths = self._embed(inputs.to(self.encoder.dtype), attention_mask)
        mask = _mask(lengths, hidden.shape[1])
        states = self._run_layers([hidden], mask, 0, len(self.layers), keep_all)
        return self._normalized(states), mask

    def frozen_features(self, inputs: torch.Tensor, attention_mask: torch.Tensor | None = None):
        """Runs the part whose output can be stored, for inputs as in `forward`.

        Returns:
            Features (batch, frames, hidden size), with a weighted layer sum (batch, frames, states, hidden size), and
            their mask (batch, frames).

        Raises:
            ValueError: something in that part would train.
        """
        self._check_frozen()
        hidden, lengths = self._embed(inputs.to(self.encoder.dtype), attention_mask)
        mask = _mask(lengths, hidden.shape[1])
        states = self._run_layers([hidden], mask, 0, self.num_frozen_layers)
        return states[-1] if self.layer_weights is None else torch.stack(states, dim=2), mask

    def states_above(self, features: torch.Tensor, mask: torch.Tensor, keep_all: bool = False):
        """The states from what `frozen_features` returned; as `states`, of which it has the last ones.

        Raises:
            ValueError: something in the part that gave the features would train, and does not by these.
        """
        self._check_frozen()
        features = features.to(self.encoder.dtype)
        states = [features] if self.layer_weights is None else list(features.unbind(2))
        states = self._run_layers(states, mask, self.num_frozen_layers, len(self.layers), keep_all)
        return self._normalized(states)

    def summed(self, states: list[torch.Tensor]) -> torch.Tensor:
        """What the GRU is fed with: the last state, or the weighted sum of all."""
        if self.layer_weights is None:
            return states[-1]
        weights = self.layer_weights.softmax(0)
        return sum(weight * state for weight, state in zip(weights, states, strict=True))

    def _check_frozen(self):
        self._follow_gradient()
        if self._lowest >= self.num_frozen_layers:
            return
        above = [self.layers[self.num_frozen_layers :], *([self.final_norm] * self.normalizes_last)]
        spared = {id(parameter) for module in above for parameter in module.parameters()}
        trained = next(
            name
            for name, parameter in self.encoder.named_parameters()
            if parameter.requires_grad and id(parameter) not in spared
        )
        raise ValueError(
            "speech_features are the output of what lies below the trainable layers, with num_trainable_layers="
            f"{self.config.num_trainable_layers} in the configuration, but {trained} there has requires_grad=True and "
            f"would not train. Pass {self.config.speech_input_name} instead; or set config.num_trainable_layers and "
            "call freeze_encoders()."
        )

    def _normalized(self, states: list[torch.Tensor]) -> list[torch.Tensor]:
        return [*states[:-1], self.final_norm(states[-1])] if self.normalizes_last else states

    def _run_layers(
        self, states: list[torch.Tensor], mask: torch.Tensor, start: int, stop: int, keep_all: bool = False
    ) -> list[torch.Tensor]:
        if start == stop:
            return states
        if self.is_wavlm:
            # The relative position bias is layer 0's; the other layers take it over.
            bias = self.layers[0].attention.compute_bias(mask.shape[1], mask.shape[1])
            options = {"attention_mask": mask.long(), "position_bias": bias.repeat(mask.shape[0], 1, 1)}
        else:
            options = {"attention_mask": create_bidirectional_mask(self.encoder.config, states[-1], mask)}
        for layer in self.layers[start:stop]:
            state = _first(layer(states[-1], **options))
            states = [*states, state] if keep_all or self.layer_weights is not None else [state]
        return states

    def _embed(self, inputs: torch.Tensor, attention_mask: torch.Tensor | None):
        """The input of the first layer (batch, frames, hidden size) and the number of real frames of each row."""
        if self.is_cpc:
            return self.encoder.encode(inputs, attention_mask)
        if self.is_whisper:
            return self._embed_spectrogram(inputs, attention_mask)
        return self._embed_wave(inputs, attention_mask)

    def _embed_wave(self, wave: torch.Tensor, attention_mask: torch.Tensor | None):
        if attention_mask is None:
            attention_mask = torch.ones_like(wave, dtype=torch.long)
        layers = self.encoder.feature_extractor.conv_layers
        lengths = _lengths(attention_mask, "attention_mask")
        reach = hop = 1  # samples that a frame hears, and from one frame to the next
        for kernel, stride in zip(self.encoder.config.conv_kernel, self.encoder.config.conv_stride, strict=True):
            reach += (kernel - 1) * hop
            hop *= stride
        frames = torch.div(lengths - reach, hop, rounding_mode="floor") + 1
        _check_not_empty(frames)

        # All at once, what the first convolution gives would be by far the largest tensor of the model.
        first = self._group_normed(layers[0], wave, lengths)
        parts = []
        for piece in [wave] if _is_traced() else _pieces(wave, reach, hop):
            part = first(piece[:, None])
            for layer in layers[1:]:
                part = layer(part)
            parts.append(part.transpose(1, 2))
        hidden = _first(self.encoder.feature_projection(torch.cat(parts, dim=1)))

        inner = self.encoder.encoder
        keep = _mask(frames, hidden.shape[1])[..., None]
        hidden = hidden.masked_fill(~keep, 0.0)
        if self.is_data2vec:
            positions = hidden
            for layer in inner.pos_conv_embed.layers:
                positions = layer(positions.transpose(1, 2)).transpose(1, 2).masked_fill(~keep, 0.0)
        else:
            positions = inner.pos_conv_embed(hidden)
        hidden = hidden + positions
        return inner.dropout(hidden if self.normalizes_last else inner.layer_norm(hidden)), frames

    def _embed_spectrogram(self, features: torch.Tensor, attention_mask: torch.Tensor | None):
        if attention_mask is None:
            attention_mask = torch.ones_like(features[:, 0], dtype=torch.long)
        if attention_mask.shape[1] > features.shape[2]:  # over samples, as the stock feature extractor gives it
            attention_mask = attention_mask[:, ::WHISPER_HOP][:, : features.shape[2]]
        lengths = _lengths(attention_mask, "attention_mask")
        _check_not_empty(lengths)
        longest = features.shape[2] if _is_traced() else int(lengths.max())
        limit = self.encoder.config.max_source_positions
        if not _is_traced() and longest > 2 * limit:
            raise ValueError(
                f"input_features has {longest} frames: this Whisper encoder takes at most {2 * limit} "
                f"({limit // 50} s). Cut the audio into shorter utterances."
            )
        keep = _mask(lengths, longest)[:, None]
        hidden = features[:, :, :longest].masked_fill(~keep, 0.0)
        hidden = nn.functional.gelu(self.encoder.conv1(hidden)).masked_fill(~keep, 0.0)
        hidden = nn.functional.gelu(self.encoder.conv2(hidden)).transpose(1, 2)
        lengths = (lengths + 1) // 2
        hidden = hidden + self.encoder.embed_positions(torch.arange(hidden.shape[1], device=hidden.device))
        return nn.functional.dropout(hidden, self.encoder.dropout, self.encoder.training), lengths

    def _group_normed(self, layer: nn.Module, wave: torch.Tensor, lengths: torch.Tensor):
        """The first convolutional layer, as a function of any stretch (batch, 1, samples) of the wave.

        Where it has a group norm, of one channel a group, this takes its statistics from the real frames of the whole
        wave (batch, samples), of which `lengths` (batch,) samples are real.
        """
        if self.is_data2vec or self.encoder.config.feat_extract_norm != "group":
            return layer
        norm = layer.layer_norm
        if not isinstance(norm, nn.GroupNorm):
            raise ValueError(
                f"The group norm of the encoder's first convolution was replaced by a {type(norm).__name__}: this "
                "model takes it apart, to leave out the padding. Leave it out of modules_to_save."
            )
        conv = layer.conv
        kernel, stride = self.encoder.config.conv_kernel[0], self.encoder.config.conv_stride[0]
        real = torch.div(lengths - kernel, stride, rounding_mode="floor") + 1
        if _is_traced() or type(conv) is not nn.Conv1d:
            variance, mean = _moments(conv(wave[:, None]).float(), real)
        else:
            variance, mean = _moments_in_parts(conv, wave, real.tolist())
        scale = norm.weight[:, None] * torch.rsqrt(variance + norm.eps)
        shift = norm.bias[:, None] - mean * scale

        def apply(part: torch.Tensor) -> torch.Tensor:
            return layer.activation(torch.addcmul(shift, conv(part).float(), scale).to(part.dtype))

        return apply


def _trains(module: nn.Module, but: Collection[nn.Module] = ()) -> bool:
    """Whether a parameter of the module has `requires_grad`, those of some modules in it aside.

    Runs in every step; it takes a third of a millisecond for HuBERT Large.
    """
    if any(parameter is not None and parameter.requires_grad for parameter in module._parameters.values()):
        return True
    return any(_trains(child, but) for child in module._modules.values() if child is not None and child not in but)


def _pieces(wave: torch.Tensor, reach: int, hop: int) -> Iterator[torch.Tensor]:
    """Stretches of the wave (batch, samples), each the samples that `FRAMES_AT_A_TIME` frames hear."""
    for start in range(0, (wave.shape[1] - reach) // hop + 1, FRAMES_AT_A_TIME):
        yield wave[:, start * hop : (start + FRAMES_AT_A_TIME - 1) * hop + reach]


def _moments(rows: torch.Tensor, real: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Variance and mean (batch, channels, 1) of rows (batch, channels, frames) over the first `real` frames of each."""
    keep = _mask(real, rows.shape[2])[:, None]
    count = real[:, None, None]
    mean = rows.masked_fill(~keep, 0.0).sum(-1, keepdim=True) / count
    return (rows - mean).square().masked_fill(~keep, 0.0).sum(-1, keepdim=True) / count, mean


def _moments_in_parts(conv: nn.Conv1d, wave: torch.Tensor, real: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """As `_moments`, of what a convolution returns for a wave (batch, samples), a few channels at a time."""
    moments = []
    for start in range(0, conv.out_channels, CHANNELS_AT_A_TIME):
        some = slice(start, start + CHANNELS_AT_A_TIME)
        bias = None if conv.bias is None else conv.bias[some]
        rows = nn.functional.conv1d(wave[:, None], conv.weight[some], bias, conv.stride).float()
        pairs = [
            torch.var_mean(row[:, :count], dim=-1, correction=0, keepdim=True)
            for row, count in zip(rows, real, strict=True)
        ]
        moments.append([torch.stack(values) for values in zip(*pairs, strict=True)])
    variance, mean = (torch.cat(values, dim=1) for values in zip(*moments, strict=True))
    return variance, mean


class TextEncoder(nn.Module):
    """A stock text encoder. While none of its parameters has `requires_grad` it is kept in eval mode."""

    def __init__(self, config):
        super().__init__()
        self.encoder = _build_encoder(config)
        self.freeze()

    def freeze(self):
        """Sets `requires_grad` of all parameters to False."""
        self.encoder.requires_grad_(False)
        self._set_modes()

    def train(self, mode: bool = True):
        super().train(mode)
        self._set_modes()
        return self

    def _set_modes(self):
        mode = self.training and _trains(self.encoder)
        if mode != self.encoder.training:
            self.encoder.train(mode)

    def check_frozen(self):
        """Raises ValueError where some parameter would train, so that the output cannot be stored."""
        if not _trains(self.encoder):
            return
        name = next(name for name, parameter in self.encoder.named_parameters() if parameter.requires_grad)
        raise ValueError(
            f"text_features are the output of a frozen text encoder, but its {name} has requires_grad=True and "
            "would not train. Pass input_ids instead, or call freeze_encoders()."
        )

    def forward(self, input_ids: torch.Tensor, text_attention_mask: torch.Tensor | None = None):
        """(batch, tokens) ids and mask -> token features (batch, tokens, hidden size) and mask (batch, tokens)."""
        states, text_attention_mask = self.states(input_ids, text_attention_mask)
        return states[-1], text_attention_mask

    def states(self, input_ids: torch.Tensor, text_attention_mask: torch.Tensor | None, keep_all: bool = False):
        """As `forward`, with a tuple of states in the place of the features: all of them, or the last one only."""
        self._set_modes()
        if text_attention_mask is None:
            text_attention_mask = torch.ones_like(input_ids)
        _lengths(text_attention_mask, "text_attention_mask")
        output = self.encoder(
            input_ids=input_ids,
            attention_mask=text_attention_mask,
            **({"output_hidden_states": True} if keep_all else {}),
        )
        below = output.hidden_states[:-1] if keep_all else ()
        return (*below, output.last_hidden_state), text_attention_mask


class GRUSummarizer(nn.Module):
    """A GRU whose output at the last real frame stands for the utterance.

    The GRU runs over the padding too; being unidirectional, its output at the last real frame does not know of it.
    """

    def __init__(self, input_size: int, hidden_size: int, num_layers: int):
        super().__init__()
        self.gru = nn.GRU(input_size, hidden_size, num_layers, batch_first=True)

    def forward(self, features: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(batch, frames, input size) and mask (batch, frames), at least one frame real -> (batch, hidden size)."""
        outputs, _ = self.gru(features)
        last = mask.long().sum(-1) - 1
        return outputs[torch.arange(outputs.shape[0], device=outputs.device), last]


class CMKDPreTrainedModel(PreTrainedModel):
    """Network, loading and saving of teacher and student."""

    base_model_prefix = ""
    main_input_name = "input_values"
    _supports_sdpa = True
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # the loss is a batch's own: Trainer divides it by the number of accumulation steps

    def __init__(self, config):
        config.check()
        super().__init__(config)
        summary_size = 0
        self.speech_encoder = self.text_encoder = None
        if config.speech_config is not None:
            self.speech_encoder = SpeechEncoder(config)
            self.speech_summarizer = self._build_summarizer(self.speech_encoder)
            summary_size += config.gru_hidden_size
        if self._text_config() is not None:
            self.text_encoder = TextEncoder(self._text_config())
            self.text_summarizer = self._build_summarizer(self.text_encoder)
            summary_size += config.gru_hidden_size
        self.embedding_head = nn.Linear(summary_size, config.embedding_size)
        self.prediction_head = nn.Linear(config.embedding_size, len(EMOTION_DIMENSIONS))
        self.post_init()
        # What FSDP keeps in shards of their own. It gathers a module when its `forward` runs; `SpeechEncoder` runs the
        # rest of an encoder part by part, so that has to stay with the whole model.
        self._no_split_modules = {type(module).__name__ for module in self._modules_run_by_forward()}

    def _modules_run_by_forward(self) -> list[nn.Module]:
        found: list[nn.Module] = []
        if self.speech_encoder is not None:
            found += self.speech_encoder.layers
            if self.speech_encoder.is_cpc:
                found += self.speech_encoder.encoder.layers
                found.append(self.speech_encoder.encoder.recurrent)
            if self.speech_encoder.is_wavlm:  # in layer 0, and used before that
                found.append(self.speech_encoder.layers[0].attention.rel_attn_embed)
        if self.text_encoder is not None:
            names = self.text_encoder.encoder._no_split_modules or ()
            found += [module for module in self.text_encoder.modules() if type(module).__name__ in names]
        return found

    def get_input_embeddings(self) -> None:
        """None: there is no table that a vocabulary could be added to. accelerate asks for it before it shards."""

    def _text_config(self):
        return None

    def _build_summarizer(self, encoder: nn.Module) -> GRUSummarizer:
        size = encoder.encoder.config.hidden_size
        return GRUSummarizer(size, self.config.gru_hidden_size, self.config.gru_num_layers)

    def _init_weights(self, module):
        """torch's own initialisation of GRU and linear layers; the encoders have initialisations of their own."""
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

    def freeze_encoders(self):
        """Sets `requires_grad` of the encoders' parameters as `config.num_trainable_layers` says now.

        Raises:
            ValueError: a field of the configuration is out of its range.
        """
        self.config.check()
        for encoder in (self.speech_encoder, self.text_encoder):
            if encoder is not None:
                encoder.freeze()

    def _adopt(self, encoders: dict[str, nn.Module]):
        """Puts loaded encoders ("speech", "text") in the place of the random ones."""
        for name, encoder in encoders.items():
            getattr(self, f"{name}_encoder").encoder = encoder
        self.freeze_encoders()
        return self.eval()

    def extract_speech_features(self, inputs: torch.Tensor, attention_mask: torch.Tensor | None = None):
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

    def extract_text_features(self, input_ids: torch.Tensor, text_attention_mask: torch.Tensor | None = None):
        """The output of the text encoder.

        Returns:
            Token features (batch, tokens, hidden size) and mask that `forward` takes as `text_features` and
            `text_attention_mask`.

        Raises:
            ValueError: something in the text encoder has `requires_grad`.
        """
        self.text_encoder.check_frozen()
        return self.text_encoder(input_ids, text_attention_mask)

    def _speech_states(self, input_values, input_features, speech_features, attention_mask, keep_all: bool):
        """States of the speech encoder, all of them or those that are needed, and their mask."""
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

    def _text_states(self, input_ids, text_features, text_attention_mask, keep_all: bool):
        """States of the text encoder, all of them or the last, and their mask."""
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
        self, speech: Sequence, text: Sequence, labels, output_hidden_states, output_attentions, return_dict
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
        if self.text_encoder is not None:
            text_states, text_mask = self._text_states(*text, keep_all=output_hidden_states)
            summaries.append(self.text_summarizer(text_states[-1].to(self.dtype), text_mask))
        found = self._predict(summaries)
        output = CMKDOutput(
            loss=None if labels is None else ccc_loss(found.logits, self._checked_labels(labels, found.logits)),
            logits=found.logits,
            embeddings=found.embeddings,
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
        if not _is_traced() and outside.any():
            raise ValueError(
                f"labels hold {labels[outside][0].item():g}: must be on the unit interval, 0 being the minimum and 1 "
                f"the maximum of label_scale, {self.config.label_scale}. config.to_unit_interval(ratings) converts."
            )
        for index, name in enumerate(EMOTION_DIMENSIONS):
            if not _is_traced() and name not in self.config.rated_dimensions and not labels[:, index].isnan().all():
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
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, output_loading_info=False, **kwargs):
        """Loads a checkpoint, and refuses one that would leave any weight random.

        Takes what [`~transformers.PreTrainedModel.from_pretrained`] takes.

        Raises:
            ValueError: weights are missing or have another shape than the configuration says, or `use_safetensors` is
                False.
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
                f"missing {_shorten(missing)}, of another shape {_shorten(mismatched)}. It is not used, because these "
                "weights would be random. Load a checkpoint that a CMKD model saved; to start from a bare encoder use "
                "CMKDStudentModel.from_pretrained_encoder or CMKDTeacherModel.from_pretrained_encoders."
            )
        model.freeze_encoders()
        return (model, info) if output_loading_info else model

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs):
        """Saves safetensors, configuration and the three code files, so that any `AutoModel` and `pipeline` loads them.

        Takes what [`~transformers.PreTrainedModel.save_pretrained`] takes.
        """
        # That this file imports the pipeline relatively is also what makes transformers copy it along.
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

    def _text_config(self):
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
                `extract_speech_features`, in the place of speech.
            text_features (`torch.Tensor` of shape `(batch, tokens, hidden size)`, *optional*): output of
                `extract_text_features`, in the place of `input_ids`.

            labels (`torch.Tensor` of shape `(batch, 3)`, *optional*): activation, valence and dominance on the unit
                interval, NaN where not rated: the output then has a `loss`, that of this batch.
            output_hidden_states (`bool`, *optional*, defaults to `config.output_hidden_states`): also return the
                states of the encoders' layers.
            output_attentions (`bool`, *optional*): must not be True; here because peft passes it.
            return_dict (`bool`, *optional*, defaults to `config.return_dict`): False: a tuple of what is not None.
            inputs_embeds (*optional*): must be None; here because peft passes it.

        Raises:
            ValueError: a modality is missing, doubled, or of the wrong kind for the encoder; stored features are given
                of a part that would train; labels are no ratings on the unit interval.
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
        **config,
    ):
        """A teacher with pretrained encoders and a fresh head.

        Args:
            speech (`str`, *optional*): Hub name or folder of a speech encoder.
            text (`str`, *optional*): Hub name or folder of a text encoder.
            speech_revision (`str`, *optional*): Branch, tag or commit of the speech encoder on the Hub.
            text_revision (`str`, *optional*): Branch, tag or commit of the text encoder on the Hub.
            config: fields of [`CMKDTeacherConfig`].

        Raises:
            ValueError: both are None, or an encoder's weights are incomplete.
        """
        named = {"speech": (speech, speech_revision), "text": (text, text_revision)}
        encoders = {name: _load_encoder(*place) for name, place in named.items() if place[0] is not None}
        configs = {f"{name}_config": encoder.config for name, encoder in encoders.items()}
        return cls(CMKDTeacherConfig(**configs, **config))._adopt(encoders)


class CMKDStudentModel(CMKDPreTrainedModel):
    """The student: a speech encoder, of which the top layers may train (Eq. 2; rows 10 to 12 of Table 2)."""

    config_class = CMKDStudentConfig

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
        input_ids: None = None,
        inputs_embeds: None = None,
    ) -> CMKDOutput | tuple[torch.Tensor, ...]:
        """Predicts from speech; the arguments are those of [`CMKDTeacherModel`], `input_ids` must be None."""
        _refuse(input_ids=input_ids, inputs_embeds=inputs_embeds)
        speech = (input_values, input_features, speech_features, attention_mask)
        return self._answer(speech, (), labels, output_hidden_states, output_attentions, return_dict)

    @classmethod
    def from_pretrained_encoder(cls, speech: str, revision: str | None = None, **config):
        """A student with a pretrained speech encoder and a fresh head.

        Args:
            speech (`str`): Hub name or folder of a speech encoder.
            revision (`str`, *optional*): Branch, tag or commit of the speech encoder on the Hub.
            config: fields of [`CMKDStudentConfig`].

        Raises:
            ValueError: the encoder's weights are incomplete.
        """
        encoder = _load_encoder(speech, revision)
        return cls(CMKDStudentConfig(speech_config=encoder.config, **config))._adopt({"speech": encoder})


def _refuse(**inputs):
    for name, value in inputs.items():
        if value is not None:
            raise ValueError(
                f"{name} was given, which this {'student' if name == 'input_ids' else 'model'} does not take."
            )


def _build_encoder(config) -> nn.Module:
    """A randomly initialised encoder; of an encoder-decoder only the encoder."""
    if config.model_type == CPCConfig.model_type:
        return CPCModel(config)
    if config.model_type in SPECTROGRAM_ENCODERS:
        return WhisperEncoder(config)
    return _prepared(AutoModel.from_config(config, dtype=torch.get_default_dtype()))


def _prepared(model: nn.Module) -> nn.Module:
    """A stock encoder without what no output depends on, so that whatever has `requires_grad` gets a gradient."""
    if model.config.is_encoder_decoder:
        return model.get_encoder()
    if "masked_spec_embed" in dict(model.named_parameters(recurse=False)):
        del model.masked_spec_embed
    if "add_pooling_layer" in inspect.signature(type(model)).parameters:
        model.pooler = None  # type: ignore[assignment]
    for module in model.modules():
        if type(module) is WavLMAttention:
            module.__class__ = ThroughProjections
    return model


def _load_encoder(name_or_path: str, revision: str | None = None) -> nn.Module:
    """A pretrained encoder in fp32; of an encoder-decoder only the encoder."""
    fields, _ = PreTrainedConfig.get_config_dict(name_or_path, revision=revision)
    kind = CPCModel if fields.get("model_type") == CPCConfig.model_type else AutoModel
    model, info = kind.from_pretrained(name_or_path, revision=revision, dtype=torch.float32, output_loading_info=True)
    unused = ("masked_spec_embed", "pooler.dense.weight", "pooler.dense.bias")
    missing = sorted(key for key in info["missing_keys"] if not key.endswith(unused))
    if missing:
        raise ValueError(
            f"The encoder {name_or_path!r} lacks {_shorten(missing)}: they would be random. Choose another."
        )
    return _prepared(model)


def _shorten(names: list[str], most: int = 5) -> str:
    listed = ", ".join(names[:most]) or "none"
    return f"{listed} and {len(names) - most} more" if len(names) > most else listed


if not __package__:  # as in configuration_cmkd.py
    AutoModel.register(CPCConfig, CPCModel, exist_ok=True)
CPCModel.register_for_auto_class("AutoModel")
CMKDTeacherModel.register_for_auto_class("AutoModel")
CMKDStudentModel.register_for_auto_class("AutoModel")
