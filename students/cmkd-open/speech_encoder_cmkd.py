"""The speech encoders of teachers and students: a small class per family, and a base class for what all of them share.

This file travels to the Hub with every checkpoint, together with `configuration_cmkd.py`. It imports torch and
transformers and nothing else. Modified CPC, which transformers lacks, is here too.

To add a family, write a subclass of [`SpeechEncoder`], add an entry to `SPEECH_ENCODERS`, and add its model type to
those of `configuration_cmkd`, which knows the kind of input without torch.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Self

import torch
from torch import nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.moonshine.modeling_moonshine import MoonshineEncoder, MoonshinePreTrainedModel
from transformers.models.wavlm.modeling_wavlm import WavLMAttention
from transformers.models.whisper.modeling_whisper import WhisperEncoder

try:
    from .configuration_cmkd import CPCConfig
except ImportError:
    from configuration_cmkd import CPCConfig

CPC_CONVOLUTIONS = ((10, 5, 3), (8, 4, 2), (4, 2, 1), (4, 2, 1), (4, 2, 1))
"""Kernel size, stride and padding on each side of CPC's convolutions, which give a frame every 160 samples."""

MOONSHINE_CONVOLUTIONS = ((127, 64, 0), (7, 3, 0), (3, 2, 0))
"""As `CPC_CONVOLUTIONS`, in all Moonshine models: a frame every 384 samples."""

WHISPER_HOP = 160
"""Samples from one log-mel frame to the next, in all Whisper models."""

FRAMES_AT_A_TIME = 100
"""The number of output frames (2 s in most encoders) for which the convolutions over the waveform run at a time."""

CHANNELS_AT_A_TIME = 64
"""The number of channels for which the statistics of a group norm behind an activation are computed at a time."""

ROWS_AT_A_TIME = 8
"""The number of utterances, of like length, that the layers run for at a time on a CPU."""

FRAMES_ROUNDED_TO = 5
"""What the frames of the last of these pieces are a multiple of: on a CPU, convolutions take up to three times as long
for lengths that are new each time."""


def is_traced() -> bool:
    """Whether `torch.export`, `torch.compile` or the older tracing is recording, so that values cannot be looked at."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined]


def real_lengths(mask: torch.Tensor, name: str) -> torch.Tensor:
    """The number of real positions in each row of a right-padded mask (batch, positions)."""
    if not is_traced() and (mask[:, 1:] > mask[:, :-1]).any():
        raise ValueError(f"{name} has padding before real positions: pad on the right (padding_side='right').")
    return mask.long().sum(-1)


def mask_of(lengths: torch.Tensor, size: int) -> torch.Tensor:
    """(batch,) lengths -> (batch, size) mask, True at real positions."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


def check_not_empty(frames: torch.Tensor) -> None:
    if not is_traced() and frames.min() < 1:
        raise ValueError(
            f"Utterance {int(frames.argmin())} of the batch is shorter than one frame of the speech encoder: "
            "leave out utterances of less than 0.1 s."
        )


def _first(output: Any) -> torch.Tensor:
    """The hidden states of a layer, which returns them alone or first in a tuple, depending on transformers."""
    return output[0] if isinstance(output, tuple) else output


def trains(module: nn.Module, but: Collection[nn.Module] = ()) -> bool:
    """Whether a parameter of the module has `requires_grad`, not counting those of some modules in it.

    This runs in every step and takes a third of a millisecond for HuBERT Large.
    """
    if any(parameter is not None and parameter.requires_grad for parameter in module._parameters.values()):
        return True
    return any(trains(child, but) for child in module._modules.values() if child is not None and child not in but)


def shorten(names: list[str], most: int = 5) -> str:
    """The first few names of a list, and how many more there are."""
    listed = ", ".join(names[:most]) or "none"
    return f"{listed} and {len(names) - most} more" if len(names) > most else listed


def load_stock(
    name_or_path: str, revision: str | None = None, kind: type[PreTrainedModel] | type[AutoModel] = AutoModel
) -> nn.Module:
    """Loads a pretrained model in fp32, and only the encoder of an encoder-decoder.

    Args:
        name_or_path: Hub name or folder.
        revision: Branch, tag or commit on the Hub.
        kind: the class whose `from_pretrained` loads it.

    Raises:
        ValueError: weights that an output depends on are missing. Those of a decoder need not be there.
    """
    model, info = kind.from_pretrained(name_or_path, revision=revision, dtype=torch.float32, output_loading_info=True)
    unused = ("masked_spec_embed", "pooler.dense.weight", "pooler.dense.bias")
    used = set(encoder_of(model).state_dict(keep_vars=True).values())
    weights = model.state_dict(keep_vars=True)
    missing = sorted(key for key in info["missing_keys"] if weights[key] in used and not key.endswith(unused))
    if missing:
        raise ValueError(
            f"The encoder {name_or_path!r} lacks {shorten(missing)}: they would be random. Choose another."
        )
    return encoder_of(model)


def build_stock(config: PreTrainedConfig) -> nn.Module:
    """A randomly initialised model of transformers, or only the encoder of an encoder-decoder."""
    return encoder_of(AutoModel.from_config(config, dtype=torch.get_default_dtype()))


def encoder_of(model: nn.Module) -> nn.Module:
    """The encoder of an encoder-decoder; any other model is returned unchanged."""
    return model.get_encoder() if model.config.is_encoder_decoder else model


class SpeechEncoder(nn.Module):
    """A speech encoder, run part by part so that padding never reaches a real frame.

    The stock `forward` lets padding leak into real frames, through the group norm of HuBERT Base, Moonshine and similar
    models and through the stacked positional convolutions of data2vec-audio, and Whisper's insists on 30 s. Here each
    part sees only the real frames, or zeros where the unpadded utterance would see zeros.

    What trains is decided by `requires_grad` alone. The part below the lowest layer with such a parameter is kept in
    eval mode, so that its output depends on nothing but the utterance; the rest follows `train()` and `eval()`. The
    output of the part below the top `config.num_trainable_layers` can be stored.

    This class is what all families share. A family defines its encoder's parts and how they run: `embed` always,
    `convolutions` if it hears a waveform, and `model_class`, `build`, `prepared`, `layers`, `final_norm`,
    `layer_options`, `set_requires_grad` and `run_by_forward` where it differs from most.

    Args:
        config: the configuration of the CMKD model, whose encoder is of this family.
    """

    model_class: type[PreTrainedModel] | type[AutoModel] = AutoModel
    """The class whose `from_pretrained` loads a pretrained encoder."""

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.config = config
        self.encoder = self.build(config.speech_config)
        size = len(self.layers) + 1
        self.layer_weights = nn.Parameter(torch.zeros(size)) if config.use_weighted_layer_sum else None
        self._lowest = 0
        self.freeze()

    @classmethod
    def build(cls, speech_config: PreTrainedConfig) -> nn.Module:
        """Makes a randomly initialised encoder."""
        return cls.prepared(build_stock(speech_config))

    @classmethod
    def prepared(cls, encoder: nn.Module) -> nn.Module:
        """The encoder without parameters that no output depends on, so that all with `requires_grad` get a gradient."""
        return encoder

    @property
    def layers(self) -> nn.ModuleList:
        """The layers that can train while those below them do not."""
        return self.encoder.layers

    @property
    def final_norm(self) -> nn.Module | None:
        """The norm that the last layer's output goes through; None if there is none."""
        return self.encoder.layer_norm

    @property
    def convolutions(self) -> Sequence[tuple[int, int, int]]:
        """Kernel size, stride and padding on each side of the convolutions over the waveform; none of a spectrogram."""
        return ()

    def embed(self, inputs: torch.Tensor, attention_mask: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Runs the part below the layers, for inputs as in `forward`.

        Returns:
            The input of the first layer (batch, frames, hidden size) and the number of real frames of each row
            (batch,). No real frame depends on the content of the padding, nor on its length.

        Raises:
            ValueError: an utterance is too short to have a frame, or is padded on the left.
        """
        raise NotImplementedError

    def layer_options(self, hidden: torch.Tensor, mask: torch.Tensor) -> dict[str, Any]:
        """Further arguments of each layer, from its input (batch, frames, hidden size) and the mask of real frames."""
        return {"attention_mask": create_bidirectional_mask(self.encoder.config, hidden, mask)}

    def set_requires_grad(self) -> None:
        """Sets `requires_grad` of the encoder's parameters according to `config.num_trainable_layers`."""
        self.encoder.requires_grad_(not self.has_frozen_part)
        if self.config.num_trainable_layers > 0:
            for module in self._above(self.num_frozen_layers):
                module.requires_grad_(True)

    def run_by_forward(self) -> list[nn.Module]:
        """The modules that this class runs only through their `forward`, so that FSDP may shard each separately."""
        return list(self.layers)

    @property
    def has_frozen_part(self) -> bool:
        """Whether `config.num_trainable_layers` leaves a part whose output can be stored."""
        return self.config.num_trainable_layers != -1

    @property
    def num_frozen_layers(self) -> int:
        """How many of the layers belong to the part whose output can be stored."""
        return len(self.layers) - self.config.num_trainable_layers if self.has_frozen_part else 0

    def freeze(self) -> None:
        """Sets `requires_grad` according to `config.num_trainable_layers`, and the modes that follow from it."""
        self.set_requires_grad()
        self._follow_gradient()

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self._set_modes()
        return self

    def _above(self, start: int) -> list[nn.Module]:
        """The layers from `start` on, and the norm after the last one."""
        return [*self.layers[start:], *([] if self.final_norm is None else [self.final_norm])]

    def _follow_gradient(self) -> None:
        """Finds the lowest layer that trains, as it may have changed since `train` was called.

        It is -1 if something below the layers trains, and the number of layers, or more, if none of them does.
        """
        if trains(self.encoder, {self.layers, self.final_norm}):
            lowest = -1
        else:  # without next(), whose default the export of torch 2.6 does not support
            lowest = [*(index for index, layer in enumerate(self.layers) if trains(layer)), len(self.layers)][0]
        if lowest != self._lowest:
            self._lowest = lowest
            self._set_modes()

    def _set_modes(self) -> None:
        if self._lowest == -1:
            self.encoder.train(self.training)
            return
        self.encoder.eval()
        for module in self._above(self._lowest):
            module.train(self.training)

    def forward(
        self, inputs: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Runs the whole encoder.

        Args:
            inputs (`torch.Tensor`): `input_values` (batch, samples) or `input_features` (batch, mel bins, frames).
            attention_mask (`torch.Tensor`, *optional*): (batch, samples or frames), 1 where real. None means that all
                is real.

        Returns:
            Hidden states (batch, frames, hidden size) and their mask (batch, frames), True at real frames.
        """
        states, mask = self.states(inputs, attention_mask)
        return self.summed(states), mask

    def states(
        self, inputs: torch.Tensor, attention_mask: torch.Tensor | None = None, keep_all: bool = False
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """All states of the encoder, for inputs as in `forward`, and their mask.

        Without `keep_all`, and if the model has no weighted layer sum, only the last one.
        """
        self._follow_gradient()
        hidden, mask = self._embedded(inputs, attention_mask)
        states = self._run_layers([hidden], mask, 0, len(self.layers), keep_all)
        return self._normalized(states), mask

    def frozen_features(
        self, inputs: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Runs the part whose output can be stored, for inputs as in `forward`.

        Returns:
            Features (batch, frames, hidden size), or (batch, frames, states, hidden size) with a weighted layer sum,
            and their mask (batch, frames).

        Raises:
            ValueError: something in that part would train.
        """
        self._check_frozen()
        hidden, mask = self._embedded(inputs, attention_mask)
        states = self._run_layers([hidden], mask, 0, self.num_frozen_layers)
        return states[-1] if self.layer_weights is None else torch.stack(states, dim=2), mask

    def states_above(self, features: torch.Tensor, mask: torch.Tensor, keep_all: bool = False) -> list[torch.Tensor]:
        """The last ones of the `states`, computed from what `frozen_features` returned.

        Raises:
            ValueError: something in the part that computed the features would train, which it cannot with these.
        """
        self._check_frozen()
        features = features.to(self.encoder.dtype)
        states = [features] if self.layer_weights is None else list(features.unbind(2))
        states = self._run_layers(states, mask, self.num_frozen_layers, len(self.layers), keep_all)
        return self._normalized(states)

    def summed(self, states: list[torch.Tensor]) -> torch.Tensor:
        """The input of the GRU: the last state, or the weighted sum of all states."""
        if self.layer_weights is None:
            return states[-1]
        weights = self.layer_weights.softmax(0)
        return sum(weight * state for weight, state in zip(weights, states, strict=True))

    def _check_frozen(self) -> None:
        self._follow_gradient()
        if self._lowest >= self.num_frozen_layers:
            return
        above = self._above(self.num_frozen_layers)
        spared = {id(parameter) for module in above for parameter in module.parameters()}
        trained = next(
            name
            for name, parameter in self.encoder.named_parameters()
            if parameter.requires_grad and id(parameter) not in spared
        )
        raise ValueError(
            "speech_features are the output of the part below the trainable layers, with num_trainable_layers="
            f"{self.config.num_trainable_layers} in the configuration, but {trained} there has requires_grad=True and "
            f"would not train. Pass {self.config.speech_input_name} instead; or set config.num_trainable_layers and "
            "call freeze_encoders()."
        )

    def _embedded(self, inputs: torch.Tensor, attention_mask: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """The input of the first layer and its mask (batch, frames), True at real frames."""
        hidden, lengths = self.embed(inputs.to(self.encoder.dtype), attention_mask)
        return hidden, mask_of(lengths, hidden.shape[1])

    def _normalized(self, states: list[torch.Tensor]) -> list[torch.Tensor]:
        return states if self.final_norm is None else [*states[:-1], self.final_norm(states[-1])]

    def _run_layers(
        self, states: list[torch.Tensor], mask: torch.Tensor, start: int, stop: int, keep_all: bool = False
    ) -> list[torch.Tensor]:
        if start == stop:
            return states
        groups = _groups_of_like_length(mask)
        if not groups:
            return self._run_layers_at_once(states, mask, start, stop, keep_all)
        frames, parts = mask.shape[1], []
        for rows in groups:
            longest = int(mask[rows].sum(-1).max())
            some = [state[rows, :longest] for state in states]
            run = self._run_layers_at_once(some, mask[rows, :longest], start, stop, keep_all)
            parts.append([nn.functional.pad(state, (0, 0, 0, frames - longest)) for state in run])
        back = torch.cat(groups).argsort()
        return [torch.cat(of_groups)[back] for of_groups in zip(*parts, strict=True)]

    def _run_layers_at_once(
        self, states: list[torch.Tensor], mask: torch.Tensor, start: int, stop: int, keep_all: bool
    ) -> list[torch.Tensor]:
        options = self.layer_options(states[-1], mask)
        for layer in self.layers[start:stop]:
            state = _first(layer(states[-1], **options))
            states = [*states, state] if keep_all or self.layer_weights is not None else [state]
        return states


class WaveformSpeechEncoder(SpeechEncoder):
    """What families share whose convolutions over the waveform have no padding.

    A family defines `first_convolution`, which may have a group norm over time, and `other_convolutions`.
    """

    def first_convolution(self, wave: torch.Tensor, lengths: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        """The first convolution with its norm and activation, as a function of any stretch (batch, 1, samples).

        Args:
            wave: The whole waveforms (batch, samples), which a group norm takes its statistics from.
            lengths: How many of the samples are real (batch,).
        """
        raise NotImplementedError

    def other_convolutions(self, hidden: torch.Tensor) -> torch.Tensor:
        """The output of the others (batch, channels, fewer frames) for that of the first (batch, channels, frames)."""
        raise NotImplementedError

    def convolved(self, inputs: torch.Tensor, attention_mask: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """All convolutions: (batch, frames, channels), and the number of real frames of each row (batch,).

        The time that they run for at once is limited: the output of the first would be by far the largest tensor of the
        model otherwise.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(inputs, dtype=torch.long)
        lengths = real_lengths(attention_mask, "attention_mask")
        reach = hop = 1  # the samples that a frame depends on, and those from one frame to the next
        for kernel, stride, _ in self.convolutions:
            reach += (kernel - 1) * hop
            hop *= stride
        frames = torch.div(lengths - reach, hop, rounding_mode="floor") + 1
        check_not_empty(frames)
        first = self.first_convolution(inputs, lengths)
        pieces = [inputs] if is_traced() else _pieces(inputs, reach, hop)
        parts = [self.other_convolutions(first(piece[:, None])).transpose(1, 2) for piece in pieces]
        hidden = torch.cat(parts, dim=1)
        if not is_traced():
            hidden = hidden[:, : (inputs.shape[1] - reach) // hop + 1]  # the last piece may have more
        return hidden, frames

    def group_normalized(
        self,
        conv: nn.Module,
        activation: Callable[[torch.Tensor], torch.Tensor],
        norm: nn.Module,
        wave: torch.Tensor,
        lengths: torch.Tensor,
    ) -> Callable[[torch.Tensor], torch.Tensor]:
        """The first convolution, an activation and a group norm, as a function of any stretch (batch, 1, samples).

        The statistics are those of the real frames of the whole wave (batch, samples), of which `lengths` (batch,)
        samples are real.
        """
        if not isinstance(norm, nn.GroupNorm):
            raise ValueError(
                f"The group norm of the encoder's first convolution was replaced by a {type(norm).__name__}: this "
                "model takes it apart, to leave out the padding. Leave it out of modules_to_save."
            )
        kernel, stride, _ = self.convolutions[0]
        real = torch.div(lengths - kernel, stride, rounding_mode="floor") + 1
        if type(conv) is nn.Conv1d and isinstance(activation, nn.Identity):
            variance, mean = _moments_of_convolution(conv, wave, real)
        elif is_traced() or type(conv) is not nn.Conv1d:  # the latter is an adapter around it
            variance, mean = _moments(activation(conv(wave[:, None])).float(), real)
        else:
            variance, mean = _moments_in_parts(conv, activation, wave, real.tolist())
        if norm.num_groups < norm.num_channels:
            variance, mean = _moments_of_groups(variance, mean, norm.num_groups)
        scale = norm.weight[:, None] * torch.rsqrt(variance + norm.eps)
        shift = norm.bias[:, None] - mean * scale

        def apply(part: torch.Tensor) -> torch.Tensor:
            return torch.addcmul(shift, activation(conv(part)).float(), scale).to(part.dtype)

        return apply


class HubertSpeechEncoder(WaveformSpeechEncoder):
    """HuBERT and wav2vec 2.0: convolutions over the waveform, a positional convolution, and transformer layers.

    Their one norm outside the layers comes before the first layer, as in the Base models, or, with
    `do_stable_layer_norm`, after the last one.
    """

    @classmethod
    def prepared(cls, encoder: nn.Module) -> nn.Module:
        """The encoder without the vector that replaces masked frames in pretraining."""
        if "masked_spec_embed" in dict(encoder.named_parameters(recurse=False)):
            del encoder.masked_spec_embed
        return encoder

    @property
    def layers(self) -> nn.ModuleList:
        return self.encoder.encoder.layers

    @property
    def final_norm(self) -> nn.Module | None:
        return self.encoder.encoder.layer_norm if self.encoder.config.do_stable_layer_norm else None

    @property
    def convolutions(self) -> Sequence[tuple[int, int, int]]:
        config = self.encoder.config
        return [(kernel, stride, 0) for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True)]

    def embed(self, inputs: torch.Tensor, attention_mask: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        hidden, frames = self.convolved(inputs, attention_mask)
        hidden = _first(self.encoder.feature_projection(hidden))
        inner = self.encoder.encoder
        keep = mask_of(frames, hidden.shape[1])[..., None]
        hidden = hidden.masked_fill(~keep, 0.0)
        hidden = hidden + self.positions(hidden, keep)
        return inner.dropout(inner.layer_norm(hidden) if self.final_norm is None else hidden), frames

    def positions(self, hidden: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        """What to add to the frames (batch, frames, hidden size), 0 where `keep` (batch, frames, 1) is False."""
        return self.encoder.encoder.pos_conv_embed(hidden)

    def first_convolution(self, wave: torch.Tensor, lengths: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        layer = self.encoder.feature_extractor.conv_layers[0]
        if self.encoder.config.feat_extract_norm != "group":
            return layer
        normalized = self.group_normalized(layer.conv, nn.Identity(), layer.layer_norm, wave, lengths)
        return lambda part: layer.activation(normalized(part))

    def other_convolutions(self, hidden: torch.Tensor) -> torch.Tensor:
        for layer in self.encoder.feature_extractor.conv_layers[1:]:
            hidden = layer(hidden)
        return hidden


class WavLMSpeechEncoder(HubertSpeechEncoder):
    """WavLM, whose layers attend by relative positions."""

    @classmethod
    def prepared(cls, encoder: nn.Module) -> nn.Module:
        for module in encoder.modules():
            if type(module) is WavLMAttention:
                module.__class__ = ThroughProjections
        return super().prepared(encoder)

    def layer_options(self, hidden: torch.Tensor, mask: torch.Tensor) -> dict[str, Any]:
        """The relative position bias of layer 0, which the other layers share."""
        bias = self.layers[0].attention.compute_bias(mask.shape[1], mask.shape[1])
        return {"attention_mask": mask.long(), "position_bias": bias.repeat(mask.shape[0], 1, 1)}

    def run_by_forward(self) -> list[nn.Module]:
        return [*super().run_by_forward(), self.layers[0].attention.rel_attn_embed]  # in layer 0, and used before that


class Data2VecAudioSpeechEncoder(HubertSpeechEncoder):
    """data2vec-audio: a layer norm in every convolution, several positional ones, and the norm before the layers."""

    @property
    def final_norm(self) -> None:
        return None

    def positions(self, hidden: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        for layer in self.encoder.encoder.pos_conv_embed.layers:
            hidden = layer(hidden.transpose(1, 2)).transpose(1, 2).masked_fill(~keep, 0.0)
        return hidden

    def first_convolution(self, wave: torch.Tensor, lengths: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        return self.encoder.feature_extractor.conv_layers[0]


class MoonshineEncoderModel(MoonshinePreTrainedModel):
    """The encoder of a Moonshine checkpoint, which may have a decoder too, whose weights are left out."""

    _keys_to_ignore_on_load_unexpected = ["decoder", "proj_out"]

    def __init__(self, config: PreTrainedConfig):
        super().__init__(config)
        self.encoder = MoonshineEncoder(config)
        self.post_init()


class MoonshineSpeechEncoder(WaveformSpeechEncoder):
    """The encoder of Moonshine: three convolutions over the waveform as it is, and layers with rotary positions.

    Its group norm is over all channels and frames, and an utterance may have any length.
    """

    model_class = MoonshineEncoderModel

    @classmethod
    def build(cls, speech_config: PreTrainedConfig) -> nn.Module:
        return MoonshineEncoder(speech_config)

    @property
    def convolutions(self) -> Sequence[tuple[int, int, int]]:
        return MOONSHINE_CONVOLUTIONS

    def embed(self, inputs: torch.Tensor, attention_mask: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        return self.convolved(inputs, attention_mask)

    def first_convolution(self, wave: torch.Tensor, lengths: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        return self.group_normalized(self.encoder.conv1, torch.tanh, self.encoder.groupnorm, wave, lengths)

    def other_convolutions(self, hidden: torch.Tensor) -> torch.Tensor:
        return nn.functional.gelu(self.encoder.conv3(nn.functional.gelu(self.encoder.conv2(hidden))))

    def layer_options(self, hidden: torch.Tensor, mask: torch.Tensor) -> dict[str, Any]:
        """The mask, and the cosines and sines of the positions.

        The frequencies are in fp32 whatever the model's precision is. The stock encoder's are a buffer, which
        `model.to(torch.bfloat16)` rounds: after half a minute the angles would be off by more than a radian.
        """
        rotary = self.encoder.rotary_emb
        frequencies, _ = rotary.compute_default_rope_parameters(self.encoder.config, hidden.device)
        angles = torch.arange(hidden.shape[1], device=hidden.device)[:, None] * frequencies
        angles = torch.cat([angles, angles], dim=-1)[None]
        places = angles.cos().to(hidden.dtype), angles.sin().to(hidden.dtype)
        return super().layer_options(hidden, mask) | {"position_embeddings": places}


class WhisperSpeechEncoder(SpeechEncoder):
    """The encoder of Whisper, for utterances of any length up to its 30 s, without added silence."""

    @classmethod
    def build(cls, speech_config: PreTrainedConfig) -> nn.Module:
        return WhisperEncoder(speech_config)

    def set_requires_grad(self) -> None:
        super().set_requires_grad()
        self.encoder.embed_positions.requires_grad_(False)  # sinusoids

    def embed(self, inputs: torch.Tensor, attention_mask: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        if attention_mask is None:
            attention_mask = torch.ones_like(inputs[:, 0], dtype=torch.long)
        if attention_mask.shape[1] > inputs.shape[2]:  # over samples, as the stock feature extractor gives it
            attention_mask = attention_mask[:, ::WHISPER_HOP][:, : inputs.shape[2]]
        lengths = real_lengths(attention_mask, "attention_mask")
        check_not_empty(lengths)
        longest = inputs.shape[2] if is_traced() else int(lengths.max())
        limit = self.encoder.config.max_source_positions
        if not is_traced() and longest > 2 * limit:
            raise ValueError(
                f"input_features has {longest} frames: this Whisper encoder takes at most {2 * limit} "
                f"({limit // 50} s). Cut the audio into shorter utterances."
            )
        keep = mask_of(lengths, longest)[:, None]
        hidden = inputs[:, :, :longest].masked_fill(~keep, 0.0)
        hidden = nn.functional.gelu(self.encoder.conv1(hidden)).masked_fill(~keep, 0.0)
        hidden = nn.functional.gelu(self.encoder.conv2(hidden)).transpose(1, 2)
        lengths = (lengths + 1) // 2
        hidden = hidden + self.encoder.embed_positions(torch.arange(hidden.shape[1], device=hidden.device))
        return nn.functional.dropout(hidden, self.encoder.dropout, self.encoder.training), lengths


def _groups_of_like_length(mask: torch.Tensor) -> list[torch.Tensor]:
    """The rows of a mask (batch, frames) in groups of `ROWS_AT_A_TIME`, ordered by length; none if all run at once.

    A CPU takes as long for padding as for real frames, and hardly longer for a few rows at a time than for all at once.
    So this pays where more than a tenth is padding. A GPU runs all rows at once.
    """
    if is_traced() or mask.device.type != "cpu" or len(mask) <= ROWS_AT_A_TIME or mask.float().mean() >= 0.9:
        return []
    return list(mask.sum(-1).argsort(stable=True).split(ROWS_AT_A_TIME))


def _pieces(wave: torch.Tensor, reach: int, hop: int) -> Iterator[torch.Tensor]:
    """Stretches of the wave (batch, samples), each with the samples that `FRAMES_AT_A_TIME` frames depend on.

    The last is as long as a multiple of `FRAMES_ROUNDED_TO` frames takes, with zeros behind the wave.
    """
    total = (wave.shape[1] - reach) // hop + 1
    for start in range(0, total, FRAMES_AT_A_TIME):
        left = -(-(total - start) // FRAMES_ROUNDED_TO) * FRAMES_ROUNDED_TO
        size = (min(left, FRAMES_AT_A_TIME) - 1) * hop + reach
        piece = wave[:, start * hop : start * hop + size]
        yield nn.functional.pad(piece, (0, size - piece.shape[1]))


def _moments(rows: torch.Tensor, real: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The variance and mean (batch, channels, 1) of rows (batch, channels, frames) over their first `real` frames."""
    keep = mask_of(real, rows.shape[2])[:, None]
    count = real[:, None, None]
    mean = rows.masked_fill(~keep, 0.0).sum(-1, keepdim=True) / count
    return (rows - mean).square().masked_fill(~keep, 0.0).sum(-1, keepdim=True) / count, mean


def _moments_in_parts(
    conv: nn.Conv1d, activation: Callable[[torch.Tensor], torch.Tensor], wave: torch.Tensor, real: list[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `_moments`, for a convolution over a wave (batch, samples) and an activation, a few channels at a time."""
    moments = []
    for start in range(0, conv.out_channels, CHANNELS_AT_A_TIME):
        some = slice(start, start + CHANNELS_AT_A_TIME)
        bias = None if conv.bias is None else conv.bias[some]
        rows = activation(nn.functional.conv1d(wave[:, None], conv.weight[some], bias, conv.stride)).float()
        pairs = [
            torch.var_mean(row[:, :count], dim=-1, correction=0, keepdim=True)
            for row, count in zip(rows, real, strict=True)
        ]
        moments.append([torch.stack(values) for values in zip(*pairs, strict=True)])
    variance, mean = (torch.cat(values, dim=1) for values in zip(*moments, strict=True))
    return variance, mean


def _moments_of_convolution(
    conv: nn.Conv1d, wave: torch.Tensor, real: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `_moments`, for the output of a convolution over a wave (batch, samples), without computing that output.

    A frame is the product of the kernel and the k samples that it hears. So the mean of a channel is the product of the
    kernel and the mean of these samples, and its variance is kernel · covariance (k, k) · kernel, which takes a
    hundredth of the time. A kernel that takes differences cancels nearly all of a wave, hence the double precision;
    where a device has none, the output is computed.
    """
    if wave.device.type == "mps":
        return _moments(conv(wave[:, None]).float(), real)
    kernel, stride = conv.kernel_size[0], conv.stride[0]
    ends = [wave.shape[1] - kernel + 1 + place for place in range(kernel)]
    heard = torch.stack([wave[:, place:end:stride] for place, end in enumerate(ends)], dim=1).double()
    keep = mask_of(real, heard.shape[2])[:, None]
    count = real[:, None, None].double()
    average = heard.masked_fill(~keep, 0.0).sum(2, keepdim=True) / count
    centred = (heard - average).masked_fill(~keep, 0.0)
    covariance = centred @ centred.transpose(1, 2) / count
    weights = conv.weight[:, 0].double()
    mean = (average.transpose(1, 2) * weights).sum(-1)
    if conv.bias is not None:
        mean = mean + conv.bias.double()
    variance = ((weights @ covariance) * weights).sum(-1)
    return variance[..., None].float(), mean[..., None].float()


def _moments_of_groups(variance: torch.Tensor, mean: torch.Tensor, groups: int) -> tuple[torch.Tensor, torch.Tensor]:
    """For each channel (batch, channels, 1) the variance and mean of its group, from those of all channels."""
    means = mean.unflatten(1, (groups, -1))
    whole = means.mean(2, keepdim=True)
    spread = variance.unflatten(1, (groups, -1)) + (means - whole).square()
    moments = spread.mean(2, keepdim=True), whole
    return tuple(values.expand_as(means).flatten(1, 2) for values in moments)


class ThroughProjections(WavLMAttention):
    """WavLM's attention, calling its four projections as modules.

    The stock attention passes their weights to one function of torch, so that what peft or a hook puts in place of a
    projection is never called, and neither takes effect nor trains.
    """

    def torch_multi_head_self_attention(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None, gated_position_bias: torch.Tensor
    ) -> tuple[torch.Tensor, None]:
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


class ChannelNorm(nn.Module):
    """Normalises every frame over its channels with the unbiased variance; torch's layer norm uses the biased one."""

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
        """The number of output frames for inputs of these lengths."""
        kernel, stride, padding = self.conv.kernel_size[0], self.conv.stride[0], self.conv.padding[0]
        return torch.div(lengths + 2 * padding - kernel, stride, rounding_mode="floor") + 1


class CPCModel(PreTrainedModel):
    """Modified CPC (Rivière et al. 2020, arXiv 2002.02848): five convolutions and a recurrent network at 100 Hz.

    It takes the waveform as it is, not scaled to unit variance. Padding does not reach a real frame: before every
    convolution it is set to the zeros that the unpadded utterance would see, and the recurrent network runs from left
    to right.
    """

    config_class = CPCConfig
    base_model_prefix = "cpc"
    main_input_name = "input_values"

    def __init__(self, config: PreTrainedConfig):
        super().__init__(config)
        self.layers = nn.ModuleList(
            CPCLayer(1 if index == 0 else config.num_channels, config.num_channels, *shape)
            for index, shape in enumerate(CPC_CONVOLUTIONS)
        )
        recurrent = {"lstm": nn.LSTM, "gru": nn.GRU}[config.recurrent_type]
        self.recurrent = recurrent(config.num_channels, config.hidden_size, config.num_hidden_layers, batch_first=True)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Initialises the layers as torch does."""
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
            `last_hidden_state` (batch, frames, hidden size), which has no meaning after an utterance's last real frame.

        Raises:
            ValueError: an utterance has fewer than 159 samples, which give no frame, or is padded on the left.
        """
        return BaseModelOutput(last_hidden_state=self.encode(input_values, attention_mask)[0])

    def encode(
        self, wave: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `forward`; returns the features (batch, frames, hidden size) and the number of real frames of each row."""
        if attention_mask is None:
            attention_mask = torch.ones_like(wave, dtype=torch.long)
        lengths = [real_lengths(attention_mask, "attention_mask")]
        for layer in self.layers:
            lengths.append(layer.num_frames(lengths[-1]))
        check_not_empty(lengths[-1])
        hidden = wave[:, None]
        for layer, real in zip(self.layers, lengths[:-1], strict=True):
            hidden = layer(hidden.masked_fill(~mask_of(real, hidden.shape[2])[:, None], 0.0))
        return self.recurrent(hidden.transpose(1, 2))[0], lengths[-1]


class CPCSpeechEncoder(SpeechEncoder):
    """Modified CPC, which trains as a whole or not at all; its only state is the features."""

    model_class = CPCModel

    @classmethod
    def build(cls, speech_config: PreTrainedConfig) -> nn.Module:
        return CPCModel(speech_config)

    @property
    def layers(self) -> nn.ModuleList:
        """An empty list, since the recurrent layers are one module."""
        return nn.ModuleList()

    @property
    def final_norm(self) -> None:
        return None

    def embed(self, inputs: torch.Tensor, attention_mask: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        return self.encoder.encode(inputs, attention_mask)

    @property
    def convolutions(self) -> Sequence[tuple[int, int, int]]:
        return CPC_CONVOLUTIONS

    def run_by_forward(self) -> list[nn.Module]:
        return [*self.encoder.layers, self.encoder.recurrent]


SPEECH_ENCODERS: dict[str, type[SpeechEncoder]] = {
    "hubert": HubertSpeechEncoder,
    "wav2vec2": HubertSpeechEncoder,
    "wavlm": WavLMSpeechEncoder,
    "data2vec-audio": Data2VecAudioSpeechEncoder,
    "whisper": WhisperSpeechEncoder,
    "moonshine": MoonshineSpeechEncoder,
    CPCConfig.model_type: CPCSpeechEncoder,
}
"""The families, by the model type that the encoder's configuration names."""


def build_speech_encoder(config: PreTrainedConfig) -> SpeechEncoder:
    """The speech encoder, randomly initialised, that the configuration of a CMKD model names."""
    return SPEECH_ENCODERS[config.speech_config.model_type](config)


def load_speech_encoder(name_or_path: str, revision: str | None = None) -> nn.Module:
    """Loads a pretrained encoder in fp32, as [`SpeechEncoder`] runs it, and only the encoder of an encoder-decoder.

    Args:
        name_or_path: Hub name or folder.
        revision: Branch, tag or commit on the Hub.

    Raises:
        ValueError: its weights are incomplete.
    """
    fields, _ = PreTrainedConfig.get_config_dict(name_or_path, revision=revision)
    # The CMKD configuration refuses model types that are not speech encoders.
    family = SPEECH_ENCODERS.get(fields.get("model_type"), SpeechEncoder)
    return family.prepared(load_stock(name_or_path, revision, family.model_class))


if not __package__:  # as in configuration_cmkd.py
    AutoModel.register(CPCConfig, CPCModel, exist_ok=True)
CPCModel.register_for_auto_class("AutoModel")
