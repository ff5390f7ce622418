"""Speech recognizers with random weights."""

import json
from pathlib import Path

import torch
from tokenizers import AddedToken
from transformers import (
    GenerationConfig,
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
)

LETTERS = [*"abcdefghijklmnopqrstuvwxyz", "Ġ"]
SPECIAL = ["startoftranscript", "en", "de", "translate", "transcribe", "nocaptions", "notimestamps"]


def make_whisper(folder: Path, generation: dict | None = None) -> None:
    """A Whisper with random weights that hears up to 2 s, and whose generation config has only what is given."""
    torch.manual_seed(1)
    tokenizer = WhisperTokenizer(vocab={token: index for index, token in enumerate(LETTERS)}, merges=[])
    tokenizer.add_tokens([AddedToken(f"<|{name}|>", special=True) for name in SPECIAL], special_tokens=True)
    tokenizer.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=8, chunk_length=2).save_pretrained(folder)
    end, start = tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|startoftranscript|>")
    config = WhisperConfig(
        d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=16, decoder_ffn_dim=16, vocab_size=len(tokenizer), num_mel_bins=8, max_source_positions=100,
        max_target_positions=20, init_std=1.0, decoder_start_token_id=start, eos_token_id=end, pad_token_id=end,
        bos_token_id=end, suppress_tokens=None, begin_suppress_tokens=[end],
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config)
    model.generation_config = GenerationConfig.from_model_config(config)
    if generation is not None:
        settings = model.generation_config.to_dict() | generation
        model.generation_config = GenerationConfig.from_dict(settings | {"_from_model_config": False})
    model.half().save_pretrained(folder)


def make_ctc(folder: Path, norm: str) -> None:
    """A wav2vec 2.0 with random weights and a CTC head."""
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {
        "<pad>": 0,
        "<s>": 1,
        "</s>": 2,
        "<unk>": 3,
        "|": 4,
        **{letter: 5 + i for i, letter in enumerate("ABCDEFGH")},
    }
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    Wav2Vec2CTCTokenizer(str(folder / "vocab.json")).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(return_attention_mask=norm == "layer").save_pretrained(folder)
    config = Wav2Vec2Config(
        vocab_size=13, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        conv_dim=(8,) * 7, num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2, initializer_range=1.0,
        feat_extract_norm=norm, do_stable_layer_norm=norm == "layer", pad_token_id=0,
    )  # fmt: skip
    Wav2Vec2ForCTC(config).save_pretrained(folder)
