"""The trainer on a network that is small enough to compute by hand, with data for it."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from transformers.utils import ModelOutput

from cmkd import CMKDTrainer, CMKDTrainingArguments
from cmkd.features.inputs import UtteranceDataset
from cmkd.training.collator import collate_utterances


@dataclass
class Output(ModelOutput):
    logits: torch.Tensor | None = None
    embeddings: torch.Tensor | None = None


class Linear(nn.Module):
    """Not a CMKD model: the trainer needs logits and embeddings only."""

    def __init__(self):
        super().__init__()
        self.speech_encoder = nn.ModuleDict({"encoder": nn.Linear(4, 5)})
        self.speech_encoder["frozen"] = nn.Linear(2, 2).requires_grad_(False)
        self.prediction = nn.Linear(5, 3)

    def forward(self, inputs):
        embeddings = self.speech_encoder["encoder"](inputs)
        return Output(logits=self.prediction(embeddings), embeddings=embeddings)


def dataset(size: int, distilled: bool = False) -> UtteranceDataset:
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(size, 4)).astype(np.float32)
    columns = {"inputs": inputs, "labels": (inputs[:, :3] + 0.1 * generator.normal(size=(size, 3))).astype(np.float32)}
    columns["labels"][1, 2] = np.nan
    if distilled:
        columns["teacher_embeddings"] = generator.normal(size=(size, 5)).astype(np.float32)
        columns["quality_weights"] = (np.arange(size) % 3 > 0).astype(np.float32)
    return UtteranceDataset(columns)


def trainer(
    folder, model=None, train=None, train_durations=None, trainer_class=CMKDTrainer, **arguments
) -> CMKDTrainer:
    torch.manual_seed(0)
    train = dataset(10) if train is None else train
    settings = {"num_train_epochs": 2, "per_device_train_batch_size": 4, "per_device_eval_batch_size": 4}
    return trainer_class(
        model=Linear() if model is None else model,
        args=CMKDTrainingArguments(str(folder), use_cpu=True, disable_tqdm=True, **settings | arguments),
        train_dataset=train,
        eval_dataset=dataset(10),
        data_collator=collate_utterances,
        train_durations=train_durations,
    )
