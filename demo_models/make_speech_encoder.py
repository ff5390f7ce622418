"""Makes the speech encoder of the embedded demo: a small HuBERT that imitates whisper-tiny.en on synthetic speech.

    python -m demo_models.make_speech_encoder --whisper ../shared/models/openai/whisper-tiny.en \\
        --words ../shared/models/sentence-transformers/all-MiniLM-L6-v2/vocab.txt --output demo_models/speech

Random words are spoken in the voices that the demo does not hold out. For each clip alone, whisper's encoder gives the
targets: two of its layers, averaged over pairs of frames to 25 Hz. A linear head on the small encoder regresses them
and is then thrown away. What the result hears is measured on held-out voices and written to measurements.json, from
which the model card is made.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor, WhisperFeatureExtractor, WhisperModel

from cmkd.corpora.speech_synthesis import HELD_OUT_VOICES, SAMPLING_RATE, VOICES, Voice, speak

HEARD_VOICES = tuple(voice for voice in VOICES if voice not in HELD_OUT_VOICES)
FRAME = 640  # samples: 40 ms
LENGTH_STEP = 8 * FRAME  # clips are filled with silence to a multiple of this, so that a batch needs no padding
LONGEST_CLIP = 13 * LENGTH_STEP  # 4.16 s; what is longer is cut
MIDDLE_LAYER = 2  # of whisper-tiny.en's four; the second target beside the final output
BATCH_SECONDS = 32
NUM_PROBE_WORDS = 40

ENCODER = {
    "hidden_size": 192,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "intermediate_size": 768,
    "conv_dim": (64, 64, 96, 128, 128, 160, 192, 192),
    "conv_kernel": (10, 3, 3, 3, 3, 2, 2, 2),
    "conv_stride": (5, 2, 2, 2, 2, 2, 2, 2),
    "num_feat_extract_layers": 8,
    "num_conv_pos_embeddings": 32,
    "num_conv_pos_embedding_groups": 8,
    "feat_extract_norm": "group",
    "do_stable_layer_norm": True,
    "layerdrop": 0.0,
    "mask_time_prob": 0.0,
    "apply_spec_augment": False,
    "feat_proj_dropout": 0.0,
    "activation_dropout": 0.0,
}
NO_DROPOUT = {"hidden_dropout": 0.0, "attention_dropout": 0.0}
FINE_TUNING_DROPOUT = {"hidden_dropout": 0.1, "attention_dropout": 0.1}  # stored for whoever fine-tunes the result


@dataclass(frozen=True)
class Utterance:
    """What is spoken and how; `word` is the index of the probe's word in it, if any."""

    text: str
    voice: Voice
    prosody: dict[str, int]
    word: int = -1

    def clip(self) -> np.ndarray:
        """Returns int16 samples, (n * LENGTH_STEP,)."""
        speech = speak(self.text, self.voice, **self.prosody)[:LONGEST_CLIP]
        return np.pad((speech * 32767).astype(np.int16), (0, -len(speech) % LENGTH_STEP))


@dataclass
class Clips:
    """Clips of one length with whisper's features: (clips, samples) int16, (clips, frames, 768), (clips,)."""

    audio: torch.Tensor
    targets: torch.Tensor
    word: torch.Tensor

    def waveform(self, indices: slice | torch.Tensor) -> torch.Tensor:
        return self.audio[indices].float() / 32768


def random_utterance(rng: np.random.Generator, words: list[str], voices: tuple[Voice, ...]) -> Utterance:
    """Three to eight words, frequent ones (early in the list) more often, in a random voice and prosody."""
    ranks = (len(words) * rng.random(rng.integers(3, 9)) ** 3).astype(int)
    prosody = {
        "rate": int(rng.integers(130, 241)),
        "pitch": int(rng.integers(20, 81)),
        "pitch_range": int(rng.integers(10, 91)),
        "volume": int(rng.integers(40, 141)),
    }
    text = " ".join(words[rank] for rank in ranks) + rng.choice(["", ".", "?", "!"])
    return Utterance(text, voices[rng.integers(len(voices))], prosody)


def probe_utterance(
    rng: np.random.Generator, words: list[str], voices: tuple[Voice, ...], probe_words: list[str]
) -> Utterance:
    """Like `random_utterance`, with one of the probe's words at a random place and none of the others."""
    others = [word for word in words if word not in set(probe_words)]
    plain = random_utterance(rng, others, voices)
    word, tokens = int(rng.integers(len(probe_words))), plain.text.split()[:5]
    tokens.insert(rng.integers(len(tokens) + 1), probe_words[word])
    return Utterance(" ".join(tokens), plain.voice, plain.prosody, word)


class WhisperFeatures:
    """Features of whisper's encoder for clips of one length, without its padding to 30 s."""

    def __init__(self, folder: str):
        self.extractor = WhisperFeatureExtractor.from_pretrained(folder)
        self.encoder = WhisperModel.from_pretrained(folder, dtype=torch.float32).get_encoder().eval()

    @torch.no_grad()
    def __call__(self, audio: torch.Tensor) -> torch.Tensor:
        """Returns the middle layer and the final output side by side at 25 Hz, (clips, samples // FRAME, 768)."""
        waveforms = list(audio.float().numpy() / 32768)
        mel = self.extractor(waveforms, sampling_rate=SAMPLING_RATE, padding="longest", return_tensors="pt")
        encoder = self.encoder
        with torch.autocast("cpu", torch.bfloat16):
            hidden = functional.gelu(encoder.conv1(mel.input_features))
            hidden = functional.gelu(encoder.conv2(hidden)).transpose(1, 2)
            hidden = hidden + encoder.embed_positions.weight[: hidden.shape[1]]
            states = []
            for layer in encoder.layers:
                hidden = layer(hidden, attention_mask=None)
                states.append(hidden)
            features = torch.cat([states[MIDDLE_LAYER - 1], encoder.layer_norm(hidden)], dim=-1).float()
        return features.unflatten(1, (-1, 2)).mean(2)


def make_clips(utterances: list[Utterance], whisper: WhisperFeatures) -> list[Clips]:
    """Speaks and encodes; clips are grouped by length, shortest first."""
    with multiprocessing.get_context("spawn").Pool() as pool:
        spoken = pool.map(Utterance.clip, utterances, chunksize=64)
    groups = []
    for length in sorted({len(clip) for clip in spoken}):
        chosen = [index for index, clip in enumerate(spoken) if len(clip) == length]
        audio = torch.from_numpy(np.stack([spoken[index] for index in chosen]))
        targets = torch.cat([whisper(part).half() for part in audio.split(64)])
        groups.append(
            Clips(audio, targets[:, : num_frames(length)], torch.tensor([utterances[i].word for i in chosen]))
        )
    return groups


def num_frames(num_samples: int) -> int:
    """Frames that the encoder gives for a clip: its last frame would need samples beyond the end."""
    return num_samples // FRAME - 1


class Standardization:
    """Takes whisper's mean at each place in the clip (mostly its position embedding) and its scale out of features."""

    def __init__(self, groups: list[Clips]):
        longest = max(group.targets.shape[1] for group in groups)
        total, count = torch.zeros(longest, groups[0].targets.shape[2]), torch.zeros(longest, 1)
        for group in groups:
            total[: group.targets.shape[1]] += group.targets.float().sum(0)
            count[: group.targets.shape[1]] += len(group.targets)
        self.mean = total / count
        squares, frames = torch.zeros(total.shape[1]), 0
        for group in groups:
            deviations = group.targets.float() - self.mean[: group.targets.shape[1]]
            squares += deviations.square().sum((0, 1))
            frames += deviations.shape[:2].numel()
        self.scale = (squares / frames).sqrt()

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        return (features.float() - self.mean[: features.shape[1]]) / self.scale


def batches(groups: list[Clips], rng: np.random.Generator) -> Iterator[tuple[Clips, torch.Tensor]]:
    """Endless random batches of clips of one length, each of about BATCH_SECONDS."""
    while True:
        epoch = []
        for group in groups:
            size = BATCH_SECONDS * SAMPLING_RATE // group.audio.shape[1]
            epoch += [(group, part) for part in torch.from_numpy(rng.permutation(len(group.audio))).split(size)]
        for index in rng.permutation(len(epoch)):
            yield epoch[index]


@torch.no_grad()
def encode(model: HubertModel, group: Clips) -> torch.Tensor:
    model.eval()
    return torch.cat(
        [model(group.waveform(slice(i, i + 32))).last_hidden_state for i in range(0, len(group.audio), 32)]
    )


def explained_variance(
    model: HubertModel, head: nn.Module, groups: list[Clips], standardize: Standardization
) -> dict[str, float]:
    """1 - squared error / variance, both summed over frames and dimensions, for each of the two targets."""
    with torch.no_grad():
        predicted = torch.cat([head(encode(model, group)).flatten(0, 1) for group in groups])
    targets = torch.cat([standardize(group.targets).flatten(0, 1) for group in groups])
    error = (predicted - targets).square().sum(0)
    variance = (targets - targets.mean(0)).square().sum(0)
    middle, final = slice(None, len(error) // 2), slice(len(error) // 2, None)
    return {
        name: round(1 - (error[part].sum() / variance[part].sum()).item(), 4)
        for name, part in (("middle_layer", middle), ("final_output", final))
    }


def train(
    groups: list[Clips],
    held_out: list[Clips],
    standardize: Standardization,
    steps: int,
    seed: int,
    output: Path,
) -> tuple[HubertModel, nn.Module]:
    """Regresses whisper's features; saves the encoder every 400 steps, so that it can be taken at any time."""
    torch.manual_seed(seed)
    model = HubertModel(HubertConfig(**ENCODER, **NO_DROPOUT))
    head = nn.Linear(model.config.hidden_size, groups[0].targets.shape[2])
    parameters = [*model.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 200, 0.5 * (1 + np.cos(np.pi * step / steps)))
    )
    stream, start = batches(groups, np.random.default_rng(seed)), time.time()
    for step in range(1, steps + 1):
        model.train()
        group, indices = next(stream)
        with torch.autocast("cpu", torch.bfloat16):
            predicted = head(model(group.waveform(indices)).last_hidden_state)
        loss = functional.mse_loss(predicted.float(), standardize(group.targets[indices]))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"step {step} of {steps}: loss {loss.item():.3f}, {time.time() - start:.0f} s", flush=True)
        if step % 400 == 0 or step == steps:
            save(model, output)
            print(f"  held-out explained variance {explained_variance(model, head, held_out, standardize)}", flush=True)
    return model, head


def save(model: HubertModel, output: Path) -> None:
    """Writes the encoder in half precision and its feature extractor."""
    half = HubertModel(HubertConfig(**ENCODER, **FINE_TUNING_DROPOUT))
    half.load_state_dict(model.state_dict())
    half.half().save_pretrained(output)
    Wav2Vec2FeatureExtractor(
        sampling_rate=SAMPLING_RATE, do_normalize=False, return_attention_mask=True
    ).save_pretrained(output)


class WordProbe(nn.Module):
    """Which of the probe's words is in the clip: a GRU over frozen features and the largest logit over time."""

    def __init__(self, num_features: int):
        super().__init__()
        self.norm = nn.LayerNorm(num_features)
        self.gru = nn.GRU(num_features, 96, batch_first=True, bidirectional=True)
        self.classifier = nn.Linear(192, NUM_PROBE_WORDS)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.gru(self.norm(features))[0]).amax(1)


def probe_accuracy(
    train_features: list[torch.Tensor],
    test_features: list[torch.Tensor],
    train_groups: list[Clips],
    test_groups: list[Clips],
    seed: int,
) -> float:
    """Share of the test clips in which a probe trained on the others names the word."""
    torch.manual_seed(seed)
    probe, epochs = WordProbe(train_features[0].shape[2]), 14
    optimizer = torch.optim.AdamW(probe.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, total_iters=epochs)
    for _ in range(epochs):
        epoch = [
            (features[part], group.word[part])
            for features, group in zip(train_features, train_groups, strict=True)
            for part in torch.randperm(len(features)).split(48)
        ]
        for index in torch.randperm(len(epoch)):
            features, word = epoch[index]
            optimizer.zero_grad()
            functional.cross_entropy(probe(features), word).backward()
            optimizer.step()
        schedule.step()
    with torch.no_grad():
        hits = [
            probe(features).argmax(1) == group.word for features, group in zip(test_features, test_groups, strict=True)
        ]
    return round(torch.cat(hits).float().mean().item(), 4)


def word_probes(model: HubertModel, train_groups: list[Clips], test_groups: list[Clips], seed: int) -> dict[str, float]:
    """Accuracy of the same probe on the encoder, on whisper's final output, and on an untrained encoder."""
    torch.manual_seed(seed + 1)
    untrained = HubertModel(model.config)
    systems = {
        "this_encoder": lambda group: encode(model, group),
        "whisper_tiny_en": lambda group: group.targets[..., group.targets.shape[2] // 2 :].float(),
        "untrained_encoder": lambda group: encode(untrained, group),
    }
    return {
        name: probe_accuracy([f(g) for g in train_groups], [f(g) for g in test_groups], train_groups, test_groups, seed)
        for name, f in systems.items()
    }


def count(groups: list[Clips]) -> int:
    return sum(len(group.audio) for group in groups)


def hours(groups: list[Clips]) -> float:
    return round(sum(group.audio.numel() for group in groups) / SAMPLING_RATE / 3600, 2)


CARD = """---
license: apache-2.0
language: en
library_name: transformers
tags: [hubert, speech, synthetic-speech, cmkd-demo]
base_model: openai/whisper-tiny.en
---

# Speech encoder of the CMKD demo

A HuBERT of {parameters:,} parameters ({layers} layers of {hidden_size}, 25 frames a second, 16 kHz mono), trained so
that the demo runs on two processor cores and without a download. **It heard only synthetic speech** (espeak-ng) and was
never tried on recordings of people: take `facebook/hubert-base-ls960` or `openai/whisper-*` for these.

Made by `demo_models/make_speech_encoder.py` (seed {seed}, {steps:,} steps, {train_minutes:.0f} minutes on
{num_threads} processor cores, transformers {transformers}, torch {torch}): {train_clips:,} clips ({train_hours} h) of
three to eight random English words, drawn without regard to the demo's sentences, in {heard_voices} voices and random
prosody. For each clip, a linear head, thrown away afterwards, regressed the output of layer {middle_layer} and the
final output of the encoder of `openai/whisper-tiny.en`, standardized. {held_out_voices} voices were kept from it:
{held_out_names}.

## Measured

On {eval_clips} clips of new sentences, explained variance of whisper's features (1 = all):

| | middle layer | final output |
|---|---|---|
| held-out voices | {ev_held_out[middle_layer]:.3f} | {ev_held_out[final_output]:.3f} |
| voices it heard | {ev_heard[middle_layer]:.3f} | {ev_heard[final_output]:.3f} |

Which of {probe_words} words a clip of four to six words contains: accuracy on {probe_test_clips} clips in the held-out
voices of a small GRU trained on the frozen features of {probe_train_clips} clips in the heard voices (chance
{chance:.3f}):

| features | accuracy |
|---|---|
| this encoder | {probe[this_encoder]:.3f} |
| whisper-tiny.en, final output at 25 Hz | {probe[whisper_tiny_en]:.3f} |
| this architecture, untrained | {probe[untrained_encoder]:.3f} |

Each probe was trained once. Whisper ran as for the targets, in bfloat16 and on the clip alone without its usual filling
to 30 s, so its row is not the best it can do. The numbers are those of `measurements.json`, which the script wrote.

## Use

Weights are float16: load with `HubertModel.from_pretrained(folder, dtype=torch.float32)`. The first convolution is
followed by a group norm over time, so padding a clip changes its features: encode clips one by one, or in batches of
one length.

## Licence

Weights: Apache-2.0. The regression targets came from `openai/whisper-tiny.en` (MIT).
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--whisper", required=True, help="folder or Hub name of whisper-tiny.en")
    parser.add_argument("--words", type=Path, required=True, help="text file with a word a line, frequent ones first")
    parser.add_argument("--output", type=Path, required=True, help="folder to write the encoder to")
    parser.add_argument("--steps", type=int, default=3200)
    parser.add_argument("--utterances", type=int, default=10000, help="clips to train on")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    lines = arguments.words.read_text(encoding="utf-8").splitlines()
    words = [line for line in lines if line.isascii() and line.isalpha() and line.islower() and len(line) >= 2]
    rng = np.random.default_rng(arguments.seed)
    whisper = WhisperFeatures(arguments.whisper)

    start = time.time()
    groups = make_clips([random_utterance(rng, words, HEARD_VOICES) for _ in range(arguments.utterances)], whisper)
    held_out = make_clips([random_utterance(rng, words, HELD_OUT_VOICES) for _ in range(300)], whisper)
    heard = make_clips([random_utterance(rng, words, HEARD_VOICES) for _ in range(300)], whisper)
    print(f"{count(groups)} clips, {hours(groups)} h, spoken and encoded in {time.time() - start:.0f} s", flush=True)

    start = time.time()
    standardize = Standardization(groups)
    model, head = train(groups, held_out, standardize, arguments.steps, arguments.seed, arguments.output)
    train_minutes = (time.time() - start) / 60

    # Measure what is saved, rounded to half precision.
    model = HubertModel.from_pretrained(arguments.output, dtype=torch.float32)
    long_words = [word for word in words[:4000] if len(word) >= 4]
    probe_words = [str(word) for word in rng.choice(long_words, NUM_PROBE_WORDS, replace=False)]
    probe_train, probe_test = (
        make_clips([probe_utterance(rng, words, voices, probe_words) for _ in range(number)], whisper)
        for voices, number in ((HEARD_VOICES, 2000), (HELD_OUT_VOICES, 600))
    )
    measurements = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "layers": model.config.num_hidden_layers,
        "hidden_size": model.config.hidden_size,
        "seed": arguments.seed,
        "steps": arguments.steps,
        "train_minutes": round(train_minutes, 1),
        "num_threads": torch.get_num_threads(),
        "transformers": model.config.transformers_version,
        "torch": torch.__version__,
        "train_clips": count(groups),
        "train_hours": hours(groups),
        "heard_voices": len(HEARD_VOICES),
        "held_out_voices": len(HELD_OUT_VOICES),
        "held_out_names": ", ".join(f"`{voice.name}`" for voice in HELD_OUT_VOICES),
        "middle_layer": MIDDLE_LAYER,
        "eval_clips": count(held_out),
        "ev_held_out": explained_variance(model, head, held_out, standardize),
        "ev_heard": explained_variance(model, head, heard, standardize),
        "probe_words": len(probe_words),
        "probe_train_clips": count(probe_train),
        "probe_test_clips": count(probe_test),
        "chance": round(1 / len(probe_words), 4),
        "probe": word_probes(model, probe_train, probe_test, arguments.seed),
    }
    (arguments.output / "measurements.json").write_text(json.dumps(measurements, indent=2) + "\n", encoding="utf-8")
    (arguments.output / "README.md").write_text(CARD.format(**measurements), encoding="utf-8")
    print(json.dumps(measurements, indent=2))


if __name__ == "__main__":
    main()
