"""A small corpus of tones, encoders for it, and the recipe of a run: what tests of whole runs share."""

from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
import yaml
from small_models import TINY, tiny_text
from transformers import BertModel, HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

SIZES = {"train": 25, "validation": 9, "test": 8}
STAGES = ("audio", "text", "teacher", "finetune", "ts", "cts")
"""Of a run that is asked for none in particular."""


def make_encoders(folder: Path) -> None:
    torch.manual_seed(0)
    speech = HubertConfig(
        **TINY,
        initializer_range=0.3,
        hidden_dropout=0.0,  # so that runs on one and several processes can be compared
        attention_dropout=0.0,
        activation_dropout=0.0,
    )
    HubertModel(speech).save_pretrained(folder / "tones/speech")
    Wav2Vec2FeatureExtractor().save_pretrained(folder / "tones/speech")
    text, tokenizer = tiny_text(folder, "low", "high", "short", "long")
    tokenizer.save_pretrained(folder / "text")
    BertModel(text).save_pretrained(folder / "text")


def make_corpus(folder: Path) -> None:
    """Tones: the pitch is the valence, the length is the activation, and some utterances have no words."""
    generator = np.random.default_rng(0)
    lines = ["id,audio,transcript,activation,valence,dominance,speaker,split"]
    for split, size in SIZES.items():
        for index in range(size):
            high, long = generator.random(2)
            seconds = 0.15 + 0.1 * long
            wave = 0.3 * np.sin(2 * np.pi * (200 + 600 * high) * np.arange(int(16000 * seconds)) / 16000)
            name = f"{split}_{index}"
            soundfile.write(folder / f"{name}.wav", wave, 16000)
            text = "" if index % 5 == 0 else f"{'high' if high > 0.5 else 'low'} {'long' if long > 0.5 else 'short'}"
            dominance = "" if index == 1 else f"{1 + 6 * generator.random():.3f}"
            labels = f"{1 + 6 * long:.3f},{1 + 6 * high:.3f},{dominance}"
            lines.append(f"{name},{name}.wav,{text},{labels},{split}_{index % 4},{split}")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")


def write_recipe(folder: Path, **settings: Any) -> Path:
    """Makes encoders and corpus in a folder, and the recipe of a run in `folder / "run"`; `settings` come on top."""
    (folder / "corpus").mkdir()
    make_encoders(folder)
    make_corpus(folder / "corpus")
    common = {
        "corpus": {"name": "manifest", "data_dir": str(folder / "corpus"), "label_scale": [1, 7]},
        "output_dir": str(folder / "run"),
        "student_speech_encoder": "tones/speech",
        "teacher_speech_encoder": "tones/speech",
        "models_dir": str(folder),
        "text_encoder": "./text",
        "num_trainable_layers": 1,
        "batch_size": 8,
        "residual_threshold": 1.0,
    }
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(common | settings))
    return recipe


def stop_at_step(number: int, trainer: type, patches: Any) -> None:
    """From now on, and while `patches` of pytest hold, Ctrl-C comes when a trainer of this class begins that step."""
    step = trainer.training_step  # type: ignore[attr-defined]

    def interrupted(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == number:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    patches.setattr(trainer, "training_step", interrupted)
