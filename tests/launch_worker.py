"""Run by test_launches.py under `accelerate launch`: `train_distill.py`, on the CPU, FSDP included.

    run KILLED_AT ARGUMENT...      KILLED_AT: the step in which all processes kill themselves, or -1
    families OUTPUT.json

accelerate shards a model on GPUs only; on CPUs it takes its setting for DistributedDataParallel. Here it is told that
the processes have GPUs, while every tensor stays on the CPU and gloo connects them: what runs is its own code, and
Trainer's and torch's, with the settings of launch/fsdp.yaml.
"""

import copy
import json
import os
import signal
import sys
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor

import train_distill
from cmkd.losses import ccc_loss, embedding_distance, weighted_mean
from cmkd.training.trainer import CMKDTrainer, check_sharding
from cmkd.training.whole_step import backward, loss_and_output_gradients

BATCH = 6  # utterances of a step, over all processes


def pretend_gpus() -> None:
    make = PartialState.__init__

    def make_pretending(self, *arguments, **options):
        make(self, *arguments, **options)
        if os.environ.get("ACCELERATE_USE_FSDP") == "true" and self.distributed_type == DistributedType.MULTI_CPU:
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU

    PartialState.__init__ = make_pretending


def run(killed_at: int, arguments: list[str]) -> None:
    step = CMKDTrainer.training_step

    def killed_step(self, *given, **options):
        # with accumulation, in the midst of a step
        if self.state.global_step == killed_at and len(self._second_passes) < self.args.gradient_accumulation_steps:
            found = step(self, *given, **options)
            os.kill(os.getpid(), signal.SIGKILL)
            return found
        return step(self, *given, **options)

    CMKDTrainer.training_step = killed_step
    train_distill.main(arguments)


def loss(logits, embeddings, labels, teacher_embeddings, quality_weights) -> torch.Tensor:
    distance = embedding_distance(embeddings, teacher_embeddings, "norm")
    return ccc_loss(logits, labels) + weighted_mean(distance, quality_weights)


def batch_of(model, stored: bool) -> dict[str, torch.Tensor]:
    """The utterances of a whole step, as `model` takes them."""
    from small_models import padded, utterances

    items = utterances(model, (0.5, 0.41, 0.3, 0.35, 0.22, 0.27))
    batch = padded(items, max(value.shape[-1] for item in items for value in item.values()))
    if stored:
        with torch.no_grad():
            features, mask = model.extract_speech_features(
                batch[model.config.speech_input_name], batch["attention_mask"]
            )
        batch = {"speech_features": features, "attention_mask": mask.long()}
    return batch


def family(name: str, stored: bool) -> dict[str, float]:
    """Compares the gradient on shards with that of one process, and the gathered weights with the whole ones."""
    from small_models import ALL_CONFIGS, student

    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True)
    check_sharding(accelerator.state.fsdp_plugin)
    layers = 0 if name == "cpc" else 2
    model = student(ALL_CONFIGS[name], num_trainable_layers=layers if stored else -1)
    model.freeze_encoders()
    whole, batch = copy.deepcopy(model), batch_of(model, stored)
    generator = torch.Generator().manual_seed(3)
    targets = {
        "labels": torch.rand(BATCH, 3, generator=generator),
        "teacher_embeddings": torch.randn(BATCH, model.config.embedding_size, generator=generator),
        "quality_weights": torch.ones(BATCH),
    }
    outputs = whole(**batch)
    loss(outputs.logits, outputs.embeddings, **targets).backward()
    expected = {name: value.grad for name, value in whole.named_parameters() if value.grad is not None}

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model, _ = accelerator.prepare(model, torch.optim.Adam(trained))
    rank, number = accelerator.process_index, accelerator.num_processes
    own = {name: value[rank::number] for name, value in (batch | targets).items()}
    outputs = model(**{name: own.pop(name) for name in batch})
    found = {"logits": outputs.logits, "embeddings": outputs.embeddings}
    _, gradients = loss_and_output_gradients(accelerator, loss, [{**found, **own}])
    backward(accelerator, found, gradients[0])
    of_shards = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    assert of_shards.keys() == expected.keys(), of_shards.keys() ^ expected.keys()
    pairs = [(value.full_tensor(), expected[name]) for name, value in of_shards.items()]
    difference = torch.cat([(one - other).flatten() for one, other in pairs]).norm()
    saved = accelerator.get_state_dict(model)
    in_shards = {name for name, value in model.named_parameters() if isinstance(value, DTensor)}
    same = accelerator.is_main_process and (
        saved.keys() == whole.state_dict().keys()
        and all(torch.equal(saved[name], value) for name, value in whole.state_dict().items())
    )
    return {
        "gradient_error": (difference / torch.cat([other.flatten() for _, other in pairs]).norm()).item(),
        "in_shards": len(in_shards) / len(dict(model.named_parameters())),
        "wrapped": sum("FSDP" in type(module).__name__ for module in model.modules()),
        "same_weights": bool(same),
    }


def families(output: Path) -> None:
    from small_models import ALL_CONFIGS

    found = {f"{name}-{stored}": family(name, stored) for name in ALL_CONFIGS for stored in (False, True)}
    if PartialState().is_main_process:
        output.write_text(json.dumps(found))
    torch.distributed.barrier()


def main() -> None:
    pretend_gpus()
    if sys.argv[1] == "run":
        run(int(sys.argv[2]), sys.argv[3:])
    else:
        families(Path(sys.argv[2]))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
