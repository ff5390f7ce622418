"""The CMKD teacher, which hears and reads, and the student, which only hears (Figure 1 of arXiv 2112.00158).

Their encoders are those of transformers, and Modified CPC, which transformers lacks.

This file travels to the Hub with every checkpoint, beside `configuration_cmkd.py`. It imports torch and transformers
and nothing else; `pipeline_cmkd.py`, and with it `audio_cmkd.py`, only to name it when a model is saved. What a model
answers for an utterance does not depend on what else is in its batch, nor on the padding: see [`SpeechEncoder`].
"""

import copy
import os
from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutput
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


@dataclass
class CMKDOutput(ModelOutput):
    """What teacher and student return.

    Args:
        logits (`torch.FloatTensor` of shape `(batch, 3)`):
            Activation, valence and dominance, in this order, on the unit interval: 0 is the minimum of the corpus's
            rating scale, 1 its maximum (not clipped). `config.to_label_scale(logits)` converts to that scale. NaN in a
            dimension that is not among `config.rated_dimensions`: nothing was learnt there.
        embeddings (`torch.FloatTensor` of shape `(batch, embedding_size)`):
            The utterance embedding e (Eq. 1 for a teacher, Eq. 2 for a student).
    """

    logits: torch.FloatTensor | None = None
    embeddings: torch.FloatTensor | None = None


def _lengths(mask: torch.Tensor, name: str) -> torch.Tensor:
    """Number of real positions in each row of a right-padded mask (batch, positions)."""
    if (mask[:, 1:] > mask[:, :-1]).any():
        raise ValueError(f"{name} has padding before real positions: pad on the right (padding_side='right').")
    return mask.long().sum(-1)


def _mask(lengths: torch.Tensor, size: int) -> torch.Tensor:
    """(batch,) lengths -> (batch, size) mask, True at real positions."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


def _check_not_empty(frames: torch.Tensor):
    if frames.min() < 1:
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


class SpeechEncoder(nn.Module):
    """A speech encoder, run part by part so that padding never reaches a real frame.

    The stock `forward` lets the padding leak in: through the group norm of HuBERT Base and its kin, through the stacked
    positional convolutions of data2vec-audio, and Whisper's insists on 30 s. Here each part sees the real frames
    only, or zeros where the unpadded utterance would see zeros. The frozen part, everything below the trainable
    layers, is kept in eval mode and runs without gradient; its output depends on nothing but the utterance, so that
    it can be stored.

    Args:
        config: the configuration of a HuBERT, wav2vec 2.0, WavLM, data2vec-audio, Whisper or CPC encoder.
        num_trainable_layers: top layers that train; 0 none, -1 the whole encoder.
        use_weighted_layer_sum: return a learnt weighted sum over the input of the layers and all their outputs.
    """

    def __init__(self, config, num_trainable_layers: int, use_weighted_layer_sum: bool):
        super().__init__()
        self.encoder = _build_encoder(config)
        self.num_trainable_layers = num_trainable_layers
        self.is_whisper = config.model_type in SPECTROGRAM_ENCODERS
        self.is_data2vec = config.model_type == "data2vec-audio"
        self.is_wavlm = config.model_type == "wavlm"
        self.is_cpc = config.model_type == CPCConfig.model_type
        self.normalizes_last = self.is_whisper or (
            not self.is_data2vec and not self.is_cpc and config.do_stable_layer_norm
        )
        size = len(self.layers) + 1
        self.layer_weights = nn.Parameter(torch.zeros(size)) if use_weighted_layer_sum else None
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
    def num_frozen_layers(self) -> int:
        return 0 if self.num_trainable_layers == -1 else len(self.layers) - self.num_trainable_layers

    def trainable_modules(self) -> list[nn.Module]:
        """The parts of the stock encoder that train."""
        if self.num_trainable_layers == -1:
            return [self.encoder]
        if self.num_trainable_layers == 0:
            return []
        top = list(self.layers[self.num_frozen_layers :])
        return [*top, self.final_norm] if self.normalizes_last else top

    def freeze(self):
        """Sets `requires_grad`, which loading a checkpoint resets."""
        self.encoder.requires_grad_(False)
        for module in self.trainable_modules():
            module.requires_grad_(True)
        for name, parameter in self.encoder.named_parameters():
            if name.endswith(("masked_spec_embed", "embed_positions.weight")):  # unused; sinusoids
                parameter.requires_grad_(False)

    def train(self, mode: bool = True):
        super().train(mode)
        self.encoder.eval()
        for module in self.trainable_modules():
            module.train(mode)
        return self

    def forward(self, inputs: torch.Tensor, attention_mask: torch.Tensor | None = None):
        """Runs the whole encoder.

        Args:
            inputs (`torch.Tensor`): `input_values` (batch, samples) or `input_features` (batch, mel bins, frames).
            attention_mask (`torch.Tensor`, *optional*): (batch, samples or frames), 1 where real. None: all is real.

        Returns:
            Hidden states (batch, frames, hidden size) and their mask (batch, frames), True at real frames.
        """
        return self.run_trainable(*self.run_frozen(inputs, attention_mask))

    def run_frozen(self, inputs: torch.Tensor, attention_mask: torch.Tensor | None = None):
        """Runs everything below the trainable layers, for inputs as in `forward`.

        Returns:
            Features (batch, frames, hidden size), with a weighted layer sum (batch, frames, states, hidden size), and
            their mask (batch, frames).
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.num_trainable_layers == -1):
            hidden, lengths = self._embed(inputs.to(self.encoder.dtype), attention_mask)
            mask = _mask(lengths, hidden.shape[1])
            states = self._run_layers([hidden], mask, 0, self.num_frozen_layers)
            return states[-1] if self.layer_weights is None else torch.stack(states, dim=2), mask

    def run_trainable(self, features: torch.Tensor, mask: torch.Tensor):
        """Runs the trainable layers on what `run_frozen` returned; the same output as `forward`."""
        features = features.to(self.encoder.dtype)
        states = [features] if self.layer_weights is None else list(features.unbind(2))
        states = self._run_layers(states, mask, self.num_frozen_layers, len(self.layers))
        if self.normalizes_last:
            states[-1] = self.final_norm(states[-1])
        if self.layer_weights is None:
            return states[-1], mask
        weights = self.layer_weights.softmax(0)
        return sum(weight * state for weight, state in zip(weights, states, strict=True)), mask

    def _run_layers(self, states: list[torch.Tensor], mask: torch.Tensor, start: int, stop: int) -> list[torch.Tensor]:
        if start == stop:
            return states
        if self.is_wavlm:
            # The relative position bias is layer 0's; the other layers take it over.
            bias = self.layers[0].attention.compute_bias(mask.shape[1], mask.shape[1])
            options = {"attention_mask": mask.long(), "position_bias": bias.repeat(len(mask), 1, 1)}
        else:
            options = {"attention_mask": create_bidirectional_mask(self.encoder.config, states[-1], mask)}
        for layer in self.layers[start:stop]:
            states.append(_first(layer(states[-1], **options)))
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
        for layer in layers:
            reach += (layer.conv.kernel_size[0] - 1) * hop
            hop *= layer.conv.stride[0]
        frames = torch.div(lengths - reach, hop, rounding_mode="floor") + 1
        _check_not_empty(frames)

        # All at once, what the first convolution gives would be by far the largest tensor of the model.
        first = _group_normed(layers[0], wave, lengths)
        parts = []
        for start in range(0, (wave.shape[1] - reach) // hop + 1, FRAMES_AT_A_TIME):
            part = first(wave[:, None, start * hop : (start + FRAMES_AT_A_TIME - 1) * hop + reach])
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
        longest = int(lengths.max())
        limit = self.encoder.config.max_source_positions
        if longest > 2 * limit:
            raise ValueError(
                f"input_features has {longest} frames: this Whisper encoder takes at most {2 * limit} "
                f"({limit // 50} s). Cut the audio into shorter utterances."
            )
        keep = _mask(lengths, longest)[:, None]
        hidden = features[:, :, :longest].masked_fill(~keep, 0.0)
        hidden = nn.functional.gelu(self.encoder.conv1(hidden)).masked_fill(~keep, 0.0)
        hidden = nn.functional.gelu(self.encoder.conv2(hidden)).transpose(1, 2)
        lengths = (lengths + 1) // 2
        hidden = hidden + self.encoder.embed_positions.weight[: hidden.shape[1]]
        training = self.training and self.num_trainable_layers == -1
        return nn.functional.dropout(hidden, self.encoder.dropout, training), lengths


def _group_normed(layer: nn.Module, wave: torch.Tensor, lengths: torch.Tensor):
    """The first convolutional layer, as a function of any stretch (batch, 1, samples) of the wave.

    Where it has a group norm, of one channel a group, this takes its statistics from the real frames of the whole
    wave (batch, samples), of which `lengths` (batch,) samples are real; a few channels at a time.
    """
    norm = dict(layer.named_children()).get("layer_norm")
    if not isinstance(norm, nn.GroupNorm):
        return layer
    conv = layer.conv
    real = (torch.div(lengths - conv.kernel_size[0], conv.stride[0], rounding_mode="floor") + 1).tolist()
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
    scale = norm.weight[:, None] * torch.rsqrt(variance + norm.eps)
    shift = norm.bias[:, None] - mean * scale

    def apply(part: torch.Tensor) -> torch.Tensor:
        return layer.activation(torch.addcmul(shift, conv(part).float(), scale).to(part.dtype))

    return apply


class TextEncoder(nn.Module):
    """A stock text encoder, always frozen: kept in eval mode and run without gradient."""

    def __init__(self, config):
        super().__init__()
        self.encoder = _build_encoder(config)
        self.freeze()

    def freeze(self):
        """Sets `requires_grad`, which loading a checkpoint resets."""
        self.encoder.requires_grad_(False)

    def train(self, mode: bool = True):
        super().train(mode)
        self.encoder.eval()
        return self

    @torch.no_grad()
    def forward(self, input_ids: torch.Tensor, text_attention_mask: torch.Tensor | None = None):
        """(batch, tokens) ids and mask -> token features (batch, tokens, hidden size) and mask (batch, tokens)."""
        if text_attention_mask is None:
            text_attention_mask = torch.ones_like(input_ids)
        _lengths(text_attention_mask, "text_attention_mask")
        output = self.encoder(input_ids=input_ids, attention_mask=text_attention_mask)
        return output.last_hidden_state, text_attention_mask


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
        return outputs[torch.arange(len(outputs), device=outputs.device), last]


class CMKDPreTrainedModel(PreTrainedModel):
    """Network, loading and saving of teacher and student."""

    base_model_prefix = ""
    main_input_name = "input_values"
    _supports_sdpa = True
    supports_gradient_checkpointing = True

    def __init__(self, config):
        super().__init__(config)
        summary_size = 0
        self.speech_encoder = self.text_encoder = None
        if config.speech_config is not None:
            self.speech_encoder = SpeechEncoder(
                config.speech_config, config.num_trainable_layers, config.use_weighted_layer_sum
            )
            self.speech_summarizer = self._build_summarizer(self.speech_encoder)
            summary_size += config.gru_hidden_size
        if self._text_config() is not None:
            self.text_encoder = TextEncoder(self._text_config())
            self.text_summarizer = self._build_summarizer(self.text_encoder)
            summary_size += config.gru_hidden_size
        self.projection = nn.Linear(summary_size, config.embedding_size)
        self.prediction = nn.Linear(config.embedding_size, len(EMOTION_DIMENSIONS))
        self.post_init()

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
        """Sets `requires_grad` of the encoders' parameters as `config.num_trainable_layers` says."""
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
        """The output of the frozen part of the speech encoder, which never changes while the rest trains.

        Args:
            inputs (`torch.Tensor`): `input_values` (batch, samples) or `input_features` (batch, mel bins, frames).
            attention_mask (`torch.Tensor`, *optional*): (batch, samples or frames), 1 where real.

        Returns:
            Features and mask that `forward` takes as `speech_features` and `attention_mask`.
        """
        return self.speech_encoder.run_frozen(inputs, attention_mask)

    def extract_text_features(self, input_ids: torch.Tensor, text_attention_mask: torch.Tensor | None = None):
        """The output of the text encoder.

        Returns:
            Token features (batch, tokens, hidden size) and mask that `forward` takes as `text_features` and
            `text_attention_mask`.
        """
        return self.text_encoder(input_ids, text_attention_mask)

    def _summarize_speech(self, input_values, input_features, speech_features, attention_mask) -> torch.Tensor:
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
            states, mask = self.speech_encoder(given[expected], attention_mask)
        else:
            if attention_mask is None:
                attention_mask = torch.ones(speech_features.shape[:2], device=speech_features.device)
            states, mask = self.speech_encoder.run_trainable(speech_features, attention_mask.bool())
        return self.speech_summarizer(states, mask)

    def _summarize_text(self, input_ids, text_features, text_attention_mask) -> torch.Tensor:
        if (input_ids is None) == (text_features is None):
            raise ValueError(
                "This model reads: pass input_ids, or the text encoder's output as text_features, not both."
            )
        if text_features is None:
            text_features, text_attention_mask = self.text_encoder(input_ids, text_attention_mask)
        elif text_attention_mask is None:
            text_attention_mask = torch.ones(text_features.shape[:2], device=text_features.device)
        return self.text_summarizer(text_features.to(self.projection.weight.dtype), text_attention_mask)

    def _predict(self, summaries: list[torch.Tensor]) -> CMKDOutput:
        embeddings = self.projection(torch.cat(summaries, dim=-1))
        standardized = self.prediction(embeddings).float()
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
    ) -> CMKDOutput:
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

        Raises:
            ValueError: a modality is missing, doubled, or of the wrong kind for the encoder.
        """
        summaries = []
        if self.speech_encoder is not None:
            summaries.append(self._summarize_speech(input_values, input_features, speech_features, attention_mask))
        if self.text_encoder is not None:
            summaries.append(self._summarize_text(input_ids, text_features, text_attention_mask))
        return self._predict(summaries)

    @classmethod
    def from_pretrained_encoders(cls, speech: str | None = None, text: str | None = None, **config):
        """A teacher with pretrained encoders and a fresh head.

        Args:
            speech (`str`, *optional*): Hub name or folder of a speech encoder.
            text (`str`, *optional*): Hub name or folder of a text encoder.
            config: fields of [`CMKDTeacherConfig`].

        Raises:
            ValueError: both are None, or an encoder's weights are incomplete.
        """
        encoders = {
            name: _load_encoder(path) for name, path in (("speech", speech), ("text", text)) if path is not None
        }
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
    ) -> CMKDOutput:
        """Predicts from speech; the arguments are those of [`CMKDTeacherModel`]."""
        return self._predict([self._summarize_speech(input_values, input_features, speech_features, attention_mask)])

    @classmethod
    def from_pretrained_encoder(cls, speech: str, **config):
        """A student with a pretrained speech encoder and a fresh head.

        Args:
            speech (`str`): Hub name or folder of a speech encoder.
            config: fields of [`CMKDStudentConfig`].

        Raises:
            ValueError: the encoder's weights are incomplete.
        """
        encoder = _load_encoder(speech)
        return cls(CMKDStudentConfig(speech_config=encoder.config, **config))._adopt({"speech": encoder})


def _build_encoder(config) -> nn.Module:
    """A randomly initialised encoder; of an encoder-decoder only the encoder."""
    if config.model_type == CPCConfig.model_type:
        return CPCModel(config)
    if config.model_type in SPECTROGRAM_ENCODERS:
        return WhisperEncoder(config)
    model = AutoModel.from_config(config, dtype=torch.get_default_dtype())
    return model.get_encoder() if config.is_encoder_decoder else model


def _load_encoder(name_or_path: str) -> nn.Module:
    """A pretrained encoder in fp32; of an encoder-decoder only the encoder."""
    fields, _ = PreTrainedConfig.get_config_dict(name_or_path)
    kind = CPCModel if fields.get("model_type") == CPCConfig.model_type else AutoModel
    model, info = kind.from_pretrained(name_or_path, dtype=torch.float32, output_loading_info=True)
    unused = ("masked_spec_embed", "pooler.dense.weight", "pooler.dense.bias")
    missing = sorted(key for key in info["missing_keys"] if not key.endswith(unused))
    if missing:
        raise ValueError(
            f"The encoder {name_or_path!r} lacks {_shorten(missing)}: they would be random. Choose another."
        )
    return model.get_encoder() if model.config.is_encoder_decoder else model


def _shorten(names: list[str], most: int = 5) -> str:
    listed = ", ".join(names[:most]) or "none"
    return f"{listed} and {len(names) - most} more" if len(names) > most else listed


if not __package__:  # as in configuration_cmkd.py
    AutoModel.register(CPCConfig, CPCModel, exist_ok=True)
CPCModel.register_for_auto_class("AutoModel")
CMKDTeacherModel.register_for_auto_class("AutoModel")
CMKDStudentModel.register_for_auto_class("AutoModel")
