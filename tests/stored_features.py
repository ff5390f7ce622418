"""Five sounds, and stored features of them by a stand-in for an encoder, whose values are known."""

from pathlib import Path

import numpy as np
import soundfile
import torch
from datasets import Dataset
from torch import nn
from transformers import PreTrainedConfig

from cmkd.features.store import FrozenPart, Storage, audio_keys, frozen_features


class Part(nn.Module):
    """Stands for a speech encoder around a stock encoder."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Module()
        self.encoder.config = PreTrainedConfig()
        self.scale = nn.Parameter(torch.tensor(2.0), requires_grad=False)
        self.trained = nn.Parameter(torch.tensor(0.0))  # as the layers above the frozen part, and the layers' weights
        self.calls = 0

    def run(self, inputs):
        self.calls += 1
        return self.scale * inputs[..., None].repeat(1, 1, 2), None


def make_rows(folder: Path, number: int = 5) -> Dataset:
    table = []
    for index in range(number):
        path = folder / f"{index}.wav"
        soundfile.write(path, np.random.default_rng(index).normal(size=1000 * (index + 1)) / 10, 16000)
        row = {"id": f"u{index}", "audio": {"path": str(path), "bytes": None}}
        table.append(row | {"duration": (index + 1) / 16})
    return Dataset.from_list(table)


def make_inputs(number: int = 5) -> list[torch.Tensor]:
    return [torch.arange(1.0 + index) / 3 for index in range(number)]


def load(folder: Path, part: Part, *, rows=None, inputs=None, run=None, settings="a", **options):
    rows = make_rows(folder) if rows is None else rows
    inputs = make_inputs() if inputs is None else inputs
    frozen, storage = FrozenPart(part, run or part.run, settings, "speech"), Storage(folder / "cache", **options)
    return frozen_features(rows, inputs, audio_keys(rows), frozen, storage)


def check(stored, scale: float = 2.0) -> None:
    assert len(stored) == 5
    for found, expected in zip(stored, make_inputs(), strict=True):
        torch.testing.assert_close(found, scale * expected[:, None].repeat(1, 2))
