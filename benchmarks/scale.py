"""Measures how the cost of an epoch of training on stored features depends on the size of the corpus.

    python benchmarks/scale.py --output docs/results/scale.json

Trains a student whose encoder is frozen for one epoch on 1,000, 4,000 and 16,000 utterances of random features, with
durations as in podcasts, each in a process of its own. Memory is that of the process alone (RssAnon): pages of the
mapped files belong to the disk cache, which the system takes back when it needs to. Linux only.
"""

import argparse
import json
import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import HubertConfig, TrainerCallback

from cmkd.features.inputs import UtteranceDataset
from cmkd.features.store import FrozenPart, Storage, frozen_features
from cmkd.json_files import write_json
from cmkd.runs.folder import versions
from cmkd.training.arguments import CMKDTrainingArguments
from cmkd.training.collator import collate_utterances
from cmkd.training.trainer import CMKDTrainer
from configuration_cmkd import CMKDStudentConfig
from modeling_cmkd import CMKDStudentModel

FRAMES_PER_SECOND = 50
SIZE = 64


class Memory(TrainerCallback):
    """Records the peak memory of this process alone over all steps."""

    peak = 0.0

    def on_step_end(self, args, state, control, **kwargs):
        status = Path("/proc/self/status").read_text()
        self.peak = max(self.peak, int(status.split("RssAnon:")[1].split()[0]) / 2**20)


def epoch(number: int, folder: Path) -> dict[str, float]:
    """Seconds and memory of an epoch, and what storing the features took."""
    durations = np.clip(np.random.default_rng(0).gamma(5, 5.9 / 5, size=number), 2, 12)
    rows = Dataset.from_dict({"id": [str(index) for index in range(number)], "duration": durations.tolist()})
    hubert = HubertConfig(hidden_size=SIZE, num_hidden_layers=1, num_attention_heads=2, intermediate_size=SIZE)
    common = {"label_scale": [1, 7], "label_mean": [0.5] * 3, "label_std": [0.15] * 3}
    model = CMKDStudentModel(CMKDStudentConfig(speech_config=hubert, num_trainable_layers=0, **common))
    frames = [torch.tensor([int(FRAMES_PER_SECOND * duration)]) for duration in durations]

    def run(length: torch.Tensor):
        return torch.randn(1, int(length), SIZE), None

    started = time.perf_counter()
    part = FrozenPart(model.speech_encoder, run, None, "random")
    stored = frozen_features(rows, frames, range(number), part, Storage(folder))
    storing = time.perf_counter() - started
    labels = torch.rand(number, 3, generator=torch.Generator().manual_seed(0))
    memory = Memory()
    arguments = CMKDTrainingArguments(
        str(folder / "run"),
        num_train_epochs=1,
        eval_strategy="no",
        save_strategy="no",
        load_best_model_at_end=False,
        lr_scheduler_type="constant",
        lr_scheduler_kwargs={},
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = CMKDTrainer(
        model=model,
        args=arguments,
        train_dataset=UtteranceDataset({"speech_features": stored, "labels": labels}),
        data_collator=collate_utterances,
        train_durations=durations,
        callbacks=[memory],
    )
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    size = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
    return {
        "utterances": number,
        "seconds": seconds,
        "milliseconds_an_utterance": 1000 * seconds / number,
        "storing_seconds": storing,
        "memory_gb": memory.peak,
        "disk_gb": size / 1e9,
    }


def measure(number: int, result: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        result.write_text(json.dumps(epoch(number, Path(folder))))


def main(sizes: list[int], output: Path) -> None:
    found: list[dict[str, Any]] = []
    for number in sizes:
        with tempfile.TemporaryDirectory() as folder:
            result = Path(folder) / "result.json"
            process = multiprocessing.get_context("spawn").Process(target=measure, args=(number, result))
            process.start()
            process.join()
            found.append(json.loads(result.read_text()))
        print(found[-1])
    write_json(output, {"what": "random features of 64 values, random weights", "versions": versions(), "sizes": found})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 4000, 16000])
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    main(options.sizes, options.output)
