"""Stand-ins for what recipes need and we may not distribute: random encoders, and noise in the layout of corpora.

They are for dry runs only: what is trained on them means nothing. The architectures are those of the published
checkpoints.
"""

from __future__ import annotations

import csv
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import (
    AutoModel,
    BertConfig,
    BertTokenizer,
    HubertConfig,
    MoonshineConfig,
    PreTrainedConfig,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    WavLMConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
)

from cmkd.corpora.transcripts import SCHEMA
from configuration_cmkd import CPCConfig

RATE = 16000
WORDS = ["yes", "no", "it", "was", "not", "good", "really", "we", "went", "home"]
SPLITS = {"train": "Train", "validation": "Validation", "test": "Test1"}

_LARGE = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "do_stable_layer_norm": True,
    "feat_extract_norm": "layer",
}
ENCODERS: Mapping[str, PreTrainedConfig] = {
    "cpc/60k": CPCConfig(num_hidden_layers=2),
    "facebook/hubert-base-ls960": HubertConfig(),
    "facebook/hubert-large-ll60k": HubertConfig(**_LARGE, conv_bias=True),
    "facebook/wav2vec2-base-960h": Wav2Vec2Config(),
    "facebook/wav2vec2-large-lv60": Wav2Vec2Config(**_LARGE, conv_bias=True),
    "facebook/wav2vec2-large-robust": Wav2Vec2Config(**_LARGE, conv_bias=True),
    "microsoft/wavlm-large": WavLMConfig(**_LARGE),
    "UsefulSensors/moonshine-tiny": MoonshineConfig(),
    "openai/whisper-tiny.en": WhisperConfig(
        vocab_size=51864,
        d_model=384,
        encoder_layers=4,
        decoder_layers=4,
        encoder_attention_heads=6,
        decoder_attention_heads=6,
        encoder_ffn_dim=1536,
        decoder_ffn_dim=1536,
    ),
    "bert-base-uncased": BertConfig(),
    "sentence-transformers/all-MiniLM-L6-v2": BertConfig(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
    ),
}
"""Every encoder that a recipe names."""

_SMALL = {
    "hidden_size": 16,
    "d_model": 16,
    "num_attention_heads": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "intermediate_size": 16,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "num_conv_pos_embedding_groups": 4,
    "conv_dim": [8] * 7,
    "vocab_size": 100,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}


def write_encoder(name: str, models: Path, small: bool = False) -> None:
    """Writes an encoder and what prepares its inputs to `models`/`name`.

    Args:
        name: one of `ENCODERS`.
        models: the folder for `--models_dir`.
        small: whether the layers are narrow, though as many as in the original.
    """
    config, folder = ENCODERS[name], models / name
    if small:
        fields = config.to_dict()
        config = type(config)(**fields | {key: value for key, value in _SMALL.items() if key in fields})
    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(folder)
    if config.model_type == "bert":
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
        rest = [f"[unused{index}]" for index in range(config.vocab_size - len(special))]
        (folder / "vocab.txt").write_text("\n".join([*special, *rest]) + "\n", encoding="utf-8")
        BertTokenizer(vocab=str(folder / "vocab.txt"), model_max_length=512).save_pretrained(folder)
    elif config.model_type == "whisper":
        WhisperFeatureExtractor().save_pretrained(folder)
    else:
        normalize = not isinstance(config, CPCConfig | MoonshineConfig)
        Wav2Vec2FeatureExtractor(do_normalize=normalize, return_attention_mask=True).save_pretrained(folder)


def write_msp_podcast(folder: Path, utterances: Mapping[str, int], seconds: float, speakers: int = 50) -> list[str]:
    """Writes a tree in the layout of release 1.6.

    Args:
        folder: the folder to write to.
        utterances: the number of utterances in each of the splits train, validation and test.
        seconds: the length of each utterance.
        speakers: the number of speakers in each split.

    Returns:
        The ids of the utterances.
    """
    rng = np.random.default_rng(0)
    (folder / "Labels").mkdir(parents=True)
    names = []
    with (folder / "Labels" / "labels_concensus.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["FileName", "EmoClass", "EmoAct", "EmoVal", "EmoDom", "SpkrID", "Gender", "Split_Set"])
        for position, (split, number) in enumerate(utterances.items()):
            for _ in range(number):
                name = f"MSP-PODCAST_{len(names) // 1000:04d}_{len(names) % 1000:04d}"
                speaker = position * speakers + int(rng.integers(speakers))
                labels = [f"{label:.4f}" for label in rng.uniform(1, 7, 3)]
                table.writerow([f"{name}.wav", "N", *labels, speaker, ("Female", "Male")[speaker % 2], SPLITS[split]])
                _write_noise(folder / "Audios" / f"{name}.wav", seconds, rng)
                names.append(name)
    return names


def write_iemocap(folder: Path, turns: int, seconds: float) -> None:
    """Writes the five sessions of a release with one dialogue each, in which both speakers have equally many turns."""
    rng = np.random.default_rng(0)
    for session in range(1, 6):
        dialogue = f"Ses0{session}F_impro01"
        labels, words = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n"], []
        for index in range(2 * turns):
            turn = f"{dialogue}_{'FM'[index % 2]}{index // 2:03d}"
            values = ", ".join(f"{label:.4f}" for label in rng.uniform(1, 5, 3))
            times = f"{index * seconds:08.4f}-{(index + 1) * seconds:08.4f}"
            labels.append(f"[{times.replace('-', ' - ')}]\t{turn}\tneu\t[{values}]\n")
            words.append(f"{turn} [{times}]: {' '.join(rng.choice(WORDS, 5))}")
            _write_noise(folder / f"Session{session}/sentences/wav/{dialogue}/{turn}.wav", seconds, rng)
        for kind, lines in (("EmoEvaluation", labels), ("transcriptions", words)):
            path = folder / f"Session{session}/dialog/{kind}/{dialogue}.txt"
            path.parent.mkdir(parents=True)
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_transcripts(path: Path, ids: Sequence[str], words: int = 10) -> None:
    """Writes a table as `cmkd transcribe` does, with random words."""
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = [
        {
            "id": identifier,
            "text": " ".join(rng.choice(WORDS, words)),
            "average_log_probability": -0.5,
            "no_speech_probability": 0.1,
            "duration": 1.0,
            "model": "random words",
            "revision": "1",
            "settings": "{}",
        }
        for identifier in ids
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), path)


def _write_noise(path: Path, seconds: float, rng: np.random.Generator) -> None:
    samples = rng.integers(-9000, 9000, round(seconds * RATE), dtype=np.int16).tobytes()
    header = b"RIFF" + struct.pack("<I", 36 + len(samples)) + b"WAVEfmt "
    header += struct.pack("<IHHIIHH", 16, 1, 1, RATE, 2 * RATE, 2, 16) + b"data" + struct.pack("<I", len(samples))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header + samples)
