"""Run by test_whole_step.py in 1, 2 and 4 processes: the first step of several trainers; each saves what it saw.

A case is DTYPE-ACCUMULATION_STEPS-LOSS_OVER, and the name of its folder. Behind that it may have "-beyond", for the
terms that the paper does not have, or "-mixed": the first `LABELLED` utterances are of two corpora, and the others have
no labels; the CCC is taken within each of the three, of labels and of the teacher's predictions. The case "sharded" is
a step of one batch per device in fp64 with FSDP in the place of DistributedDataParallel, which accelerate does not
offer on a CPU.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import TrainerCallback
from transformers.utils import ModelOutput

from cmkd.features.inputs import UtteranceDataset
from cmkd.losses import ccc_loss, embedding_distance, weighted_mean
from cmkd.training.arguments import CMKDTrainingArguments
from cmkd.training.collator import collate_utterances
from cmkd.training.sampler import Mixture
from cmkd.training.trainer import CMKDTrainer
from cmkd.training.whole_step import backward, loss_and_output_gradients

NUMBER = 61  # of utterances, in steps of 31 and 30: no device or accumulation step gets its even share
STEP_SIZE = 32
LABELLED = 41
CORPORA = [0] * 25 + [1] * (LABELLED - 25)


@dataclass
class Output(ModelOutput):
    logits: torch.Tensor | None = None
    embeddings: torch.Tensor | None = None


class Dropping(torch.nn.Module):
    """A network with dropout that remembers which mask it drew for which utterance."""

    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Linear(6, 5)
        self.prediction = torch.nn.Linear(5, 3)
        self.masks: dict[int, list[torch.Tensor]] = {}

    def forward(self, inputs, row):
        mask = (torch.rand(len(inputs), 6) < 0.7).to(inputs)
        # What each of the generators gives goes into the mask, so that one that is not set back is found.
        mask = mask * (1 + float(np.random.random())) * (1 + float(np.random.default_rng(0).random()))  # noqa: NPY002
        for index, of_row in zip(row.tolist(), mask, strict=True):
            self.masks.setdefault(index, []).append(of_row.clone())
        embeddings = torch.tanh(self.embedding(inputs * mask))
        return Output(logits=self.prediction(embeddings), embeddings=embeddings)


def columns(dtype: torch.dtype, mixed: bool = False) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(NUMBER, 6, generator=generator, dtype=dtype)
    labels = torch.randn(NUMBER, 3, generator=generator, dtype=dtype) + inputs[:, :3]
    labels[torch.rand(NUMBER, 3, generator=generator) < 0.1] = torch.nan
    teacher = torch.randn(NUMBER, 5, generator=generator, dtype=dtype)
    weights = (torch.rand(NUMBER, generator=generator) < 0.8).to(dtype)
    found = {"inputs": inputs, "labels": labels, "teacher_embeddings": teacher, "quality_weights": weights}
    if mixed:
        labels[:LABELLED][:, 2][torch.tensor(CORPORA) == 1] = torch.nan  # the second corpus lacks a dimension
        labels[LABELLED:] = torch.nan
        found["corpora"] = torch.tensor([*CORPORA, *[2] * (NUMBER - LABELLED)])
    return found | {"row": torch.arange(NUMBER)}


def columns_beyond(dtype: torch.dtype, mixed: bool = False) -> dict[str, torch.Tensor]:
    """The same, and what the teacher predicts, with weights of which some are 0. Some utterances have one embedding."""
    generator = torch.Generator().manual_seed(2)
    predictions = torch.randn(NUMBER, 3, generator=generator, dtype=dtype)
    weights = (torch.rand(NUMBER, 3, generator=generator, dtype=dtype) - 0.2).clamp(min=0)
    found = columns(dtype, mixed) | {"teacher_predictions": predictions, "dimension_weights": weights}
    for name in ("teacher_embeddings", "quality_weights"):
        found[name][30:] = found[name][:31].clone()
    return found


class SaveGradient(TrainerCallback):
    """Saves the gradient with which the weights would be changed."""

    def __init__(self, folder: Path):
        self.folder = folder

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        found = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
        masks = {row: torch.stack(masks) for row, masks in model.masks.items()}
        torch.save((found, masks, args.world_size), self.folder / f"gradient_{args.process_index}.pt")
        control.should_training_stop = True


def main(folder: Path, dtype: torch.dtype, accumulation: int, loss_over: str, kind: str) -> None:
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    torch.manual_seed(0)
    model = Dropping().to(dtype)
    torch.manual_seed(int(os.environ.get("RANK", "0")))  # so that no two devices drop alike
    arguments = CMKDTrainingArguments(
        str(folder),
        use_cpu=True,
        disable_tqdm=True,
        per_device_train_batch_size=STEP_SIZE // (world_size * accumulation),
        gradient_accumulation_steps=accumulation,
        loss_over=loss_over,
        distillation_weight=2.0,
        embedding_distance="contrastive" if kind == "beyond" else "norm",
        contrastive_temperature=0.2,
        prediction_weight=1.5 if kind in ("beyond", "mixed") else 0.0,
        eval_strategy="no",
        save_strategy="no",
        load_best_model_at_end=False,
        lr_scheduler_type="constant",
        lr_scheduler_kwargs={},
    )
    trainer = CMKDTrainer(
        model=model,
        args=arguments,
        train_dataset=UtteranceDataset(columns_beyond(dtype, kind == "mixed") if kind else columns(dtype)),
        train_mixture=Mixture(CORPORA, "proportional", NUMBER - LABELLED, 0.5) if kind == "mixed" else None,
        data_collator=collate_utterances,
        callbacks=[SaveGradient(folder)],
    )
    trainer.train()
    loss = next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
    torch.save(loss, folder / f"loss_{arguments.process_index}.pt")


def sharded(folder: Path) -> None:
    """Saves what `main` saves."""
    accelerator = Accelerator(cpu=True)
    rank, devices = accelerator.process_index, accelerator.num_processes
    torch.manual_seed(0)
    model = Dropping().double()
    for module in (model.embedding, model.prediction, model):
        fully_shard(module, mesh=init_device_mesh("cpu", (devices,)))
    torch.manual_seed(rank)
    batch = {name: value[rank : NUMBER // 2 : devices] for name, value in columns(torch.float64).items()}
    outputs = model(batch.pop("inputs"), batch.pop("row"))

    def loss(logits, embeddings, labels, teacher_embeddings, quality_weights):
        distance = embedding_distance(embeddings, teacher_embeddings, "norm")
        return ccc_loss(logits, labels) + 2.0 * weighted_mean(distance, quality_weights)

    value, gradients = loss_and_output_gradients(accelerator, loss, [{**outputs, **batch}])
    backward(accelerator, outputs, gradients[0])
    found = {name: parameter.grad.full_tensor() for name, parameter in model.named_parameters()}
    masks = {row: torch.stack(masks) for row, masks in model.masks.items()}
    torch.save((found, masks, devices), folder / f"gradient_{rank}.pt")
    torch.save(value.item(), folder / f"loss_{rank}.pt")


def run(place: str, *cases: str) -> None:
    for case in cases:
        folder = Path(place) / case
        folder.mkdir(exist_ok=True)
        if case == "sharded":
            sharded(folder)
            continue
        dtype, accumulation, loss_over, *kind = case.split("-")
        main(folder, getattr(torch, dtype), int(accumulation), loss_over, "".join(kind))
    if torch.distributed.is_initialized():  # else a thread of gloo may outlive the interpreter, which aborts
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
        # Caches of torch's DTensor still hold the mesh of `sharded`, and with it such threads; all is written by now.
        os._exit(0)
