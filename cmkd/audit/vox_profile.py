"""The models of Vox-Profile (arXiv 2505.14648) for arousal, valence and dominance, written out.

The names of the weights are those of the checkpoints. Source: src/model/emotion/wavlm_emotion_dim.py and
whisper_emotion_dim.py of `tiantiaf0627/vox-profile-release`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel, WavLMModel
from transformers.models.whisper.modeling_whisper import WhisperEncoder

ENCODERS = {"wavlm_large": "microsoft/wavlm-large", "whisper_large": "openai/whisper-large-v3"}
"""The speech encoders by the names that the checkpoints give them; of these their configuration alone is read."""

SECONDS = 15
"""Longer recordings are cut to this, as the makers ask, since the models were trained on nothing longer."""

OUTPUTS = ("arousal", "valence", "dominance")
"""In the order in which they are returned."""

_FRAMES_PER_SECOND = 50
_HOP = 160
"""Samples between two frames of Whisper's mel spectrogram, of which two are one frame of its encoder."""


class VoxProfileConfig(PreTrainedConfig):
    """Configuration of [`VoxProfileModel`], with those fields of the published one that matter for scoring.

    Args:
        pretrain_model: The speech encoder, one of `ENCODERS`.
        hidden_dim: Of the head.
        finetune_method: How it was trained; "lora" has weights that are not known here.
        use_conv_output: Whether the mean over layers has what goes into the first one; with WavLM only.
    """

    model_type = "vox_profile"

    def __init__(
        self,
        pretrain_model: str = "wavlm_large",
        hidden_dim: int = 256,
        finetune_method: str = "finetune",
        use_conv_output: bool = True,
        **kwargs: Any,
    ):
        self.pretrain_model = pretrain_model
        self.hidden_dim = hidden_dim
        self.finetune_method = finetune_method
        self.use_conv_output = use_conv_output
        super().__init__(**kwargs)


class VoxProfileModel(PreTrainedModel):
    """WavLM or Whisper's encoder, three convolutions of one frame, the mean over time, and a network per dimension.

    Of WavLM all layers are averaged by weights that were learnt; of Whisper the last one is taken, with 15 s for its 30
    and positions of its own (`embed_positions`), and the mean is over the frames that are speech.
    """

    config_class = VoxProfileConfig
    # of the decoder, and of what else was learnt beside the dimensions
    _keys_to_ignore_on_load_unexpected = [
        r"^backbone_model\.decoder\.",
        r"^(emotion_layer|detailed_out_layer|gender_layer)\.",
        r"^weights$",
    ]

    def __init__(self, config: VoxProfileConfig):
        super().__init__(config)
        encoder = AutoConfig.from_pretrained(ENCODERS[config.pretrain_model])
        if config.pretrain_model == "whisper_large":
            encoder.max_source_positions = SECONDS * _FRAMES_PER_SECOND
            self.backbone_model = nn.ModuleDict({"encoder": WhisperEncoder(encoder)})
            self.embed_positions = nn.Parameter(torch.zeros(encoder.max_source_positions, encoder.d_model))
        else:
            self.backbone_model = WavLMModel(encoder)
            self.weights = nn.Parameter(torch.zeros(encoder.num_hidden_layers + config.use_conv_output))
        size = config.hidden_dim
        self.model_seq = nn.Sequential(
            nn.Conv1d(encoder.hidden_size, size, 1),
            nn.ReLU(),
            nn.Identity(),  # in training, dropout
            nn.Conv1d(size, size, 1),
            nn.ReLU(),
            nn.Identity(),
            nn.Conv1d(size, size, 1),
        )
        for name in OUTPUTS:
            layers = nn.Linear(size, size), nn.ReLU(), nn.Linear(size, 1), nn.Sigmoid()
            self.add_module(f"{name}_layer", nn.Sequential(*layers))
        self.post_init()

    def forward(self, values: torch.Tensor, samples: int) -> torch.Tensor:
        """Scores one recording.

        Args:
            values: What its feature extractor made of it, (1, samples) for WavLM or (1, mels, frames) for Whisper.
            samples: How many it has.

        Returns:
            (1, 3), 0 to 1, in the order of `OUTPUTS`.
        """
        if self.config.pretrain_model == "whisper_large":
            encoder = self.backbone_model["encoder"]
            positions: dict[str, torch.Tensor] = {"embed_positions.weight": self.embed_positions}
            states = torch.func.functional_call(encoder, positions, (values,)).last_hidden_state
            states = states[:, : (samples // _HOP - 1) // 2 + 1]
        else:
            output = self.backbone_model(values, output_hidden_states=True)
            # the last one has gone through the norm, as it had in the version of transformers that they were made with
            layers = torch.stack([*output.hidden_states[:-1], output.last_hidden_state])
            layers = layers[1 - self.config.use_conv_output :]
            states = torch.einsum("l,lbtd->btd", self.weights.softmax(0), layers)
        pooled = self.model_seq(states.transpose(1, 2)).mean(dim=2)
        return torch.cat([self.get_submodule(f"{name}_layer")(pooled) for name in OUTPUTS], dim=1)
