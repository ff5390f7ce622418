"""Teachers and students small enough for a test, of every encoder family, and inputs for them."""

from pathlib import Path

import torch
from transformers import (
    BertConfig,
    BertTokenizer,
    Data2VecAudioConfig,
    HubertConfig,
    MoonshineConfig,
    Wav2Vec2Config,
    WavLMConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
)

from configuration_cmkd import CMKDStudentConfig, CMKDTeacherConfig, CPCConfig
from modeling_cmkd import CMKDStudentModel, CMKDTeacherModel

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "conv_dim": (16,) * 7,
    "num_conv_pos_embedding_groups": 4,
    "initializer_range": 0.2,  # large enough for the attention to matter
}
TINY = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "conv_dim": (8,) * 7,
    "num_conv_pos_embedding_groups": 4,
}
"""Of the speech encoders of whole runs, and of runs that are only pushed."""
LARGE_KIND = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}
MOONSHINE = MoonshineConfig(
    hidden_size=32,
    intermediate_size=48,
    encoder_num_hidden_layers=3,
    encoder_num_attention_heads=4,
    decoder_num_hidden_layers=1,
    decoder_num_attention_heads=4,
    vocab_size=20,
    initializer_range=0.2,
)
WAVEFORM_CONFIGS = {
    "hubert": HubertConfig(**SMALL),
    "hubert-stable": HubertConfig(**SMALL, **LARGE_KIND),
    "wav2vec2": Wav2Vec2Config(**SMALL),
    "wav2vec2-stable": Wav2Vec2Config(**SMALL, **LARGE_KIND),
    "wavlm": WavLMConfig(**SMALL),
    "wavlm-stable": WavLMConfig(**SMALL, **LARGE_KIND),
    "data2vec": Data2VecAudioConfig(**SMALL),
    "moonshine": MOONSHINE,
}
WHISPER = WhisperConfig(
    d_model=32,
    encoder_layers=3,
    encoder_attention_heads=4,
    encoder_ffn_dim=48,
    decoder_layers=1,
    decoder_attention_heads=4,
    decoder_ffn_dim=8,
    num_mel_bins=80,
    vocab_size=20,
    pad_token_id=0,
    bos_token_id=0,
    eos_token_id=0,
    decoder_start_token_id=0,
    init_std=0.2,
)
TEXT = BertConfig(vocab_size=40, hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
CPC = CPCConfig(num_channels=16, hidden_size=32, num_hidden_layers=2)
ALL_CONFIGS = WAVEFORM_CONFIGS | {"whisper": WHISPER, "cpc": CPC}


def tiny_text(folder: Path, *words: str) -> tuple[BertConfig, BertTokenizer]:
    """A text encoder that knows these words, and its tokenizer; the folder then holds vocab.txt."""
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return BertConfig(vocab_size=len(vocabulary), **sizes), BertTokenizer(vocab=str(folder / "vocab.txt"))


def student(speech_config, **config) -> CMKDStudentModel:
    torch.manual_seed(0)
    return CMKDStudentModel(CMKDStudentConfig(speech_config=speech_config, **config)).eval()


def utterances(model, seconds=(1.3, 0.61, 0.2)) -> list[dict[str, torch.Tensor]]:
    """Utterances of different lengths, as the model takes them, unpadded."""
    generator = torch.Generator().manual_seed(1)
    if model.config.speech_input_name == "input_features":
        return [
            {
                "input_features": torch.randn(
                    1, model.config.speech_config.num_mel_bins, int(s * 100), generator=generator
                )
            }
            for s in seconds
        ]
    return [{"input_values": torch.randn(1, int(s * 16000) + 7, generator=generator)} for s in seconds]


def padded(items: list[dict[str, torch.Tensor]], longest: int) -> dict[str, torch.Tensor]:
    """A batch whose padding is filled with noise: the mask alone says what is real."""
    name = next(iter(items[0]))
    lengths = [item[name].shape[-1] for item in items]
    shape = (len(items), *items[0][name].shape[1:-1], longest)
    batch = 3 * torch.randn(shape, generator=torch.Generator().manual_seed(2))
    mask = torch.zeros(len(items), longest, dtype=torch.long)
    for row, (item, length) in enumerate(zip(items, lengths, strict=True)):
        batch[row, ..., :length] = item[name][0]
        mask[row, :length] = 1
    return {name: batch, "attention_mask": mask}


def teacher(speech=True, text=True, text_config=TEXT, **config) -> CMKDTeacherModel:
    torch.manual_seed(0)
    return CMKDTeacherModel(
        CMKDTeacherConfig(
            speech_config=WAVEFORM_CONFIGS["hubert"] if speech else None,
            text_config=text_config if text else None,
            **config,
        )
    ).eval()


def whisper_extractor() -> WhisperFeatureExtractor:
    return WhisperFeatureExtractor(feature_size=80, return_attention_mask=True)
