"""Measures what only a GPU can show: precision, exactness and speed there, with random weights and noise.

    python -m benchmarks.gpu --output docs/results/gpu.json                    # HuBERT Base, some minutes
    python -m benchmarks.gpu --device cpu --small --output /tmp/gpu.json       # a rehearsal anywhere, within a minute

It needs torch (2.11 or later), transformers (5.17 or later) with accelerate and safetensors, numpy, pydantic and
pyarrow, and nothing else of what the package needs: waveforms are drawn, not read. It runs in a checkout that is not
installed. The same checks are tests, with tolerances, in tests/test_cuda.py. Each part of the JSON is a function here:

- `batch_invariance`: how far the answers for utterances in a padded batch are from those for each alone, in fp32 with
  TF32 off and on, and in bf16; and what TF32 and bf16 themselves change.
- `loss_over`: the relative difference between the gradient of a step in two batches and that in one; with
  `loss_over="batch"` the gradients do differ.
- `stage`: training in fp32 and bf16: the loss of each epoch, utterances per second and peak memory.
- `resume`: how far the weights of an interrupted training are at most from those of one without interruption.
- `fsdp`: how far the weights of a training with launch/fsdp.yaml in one process are from those without.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import HubertConfig, TrainerCallback

from cmkd.training.arguments import CMKDTrainingArguments
from cmkd.training.collator import collate_utterances
from cmkd.training.trainer import CMKDTrainer
from configuration_cmkd import CMKDStudentConfig
from modeling_cmkd import CMKDStudentModel

ROOT = Path(__file__).parent.parent
FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
}
"""What `accelerate launch --config_file launch/fsdp.yaml` sets."""
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "conv_dim": (16,) * 7,
    "num_conv_pos_embedding_groups": 4,
    "initializer_range": 0.2,
}


def student(small: bool, dropout: float = 0.1) -> CMKDStudentModel:
    """HuBERT Base, or something small, of which the upper half trains; always the same random weights."""
    torch.manual_seed(0)
    kinds = ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout")
    config = HubertConfig(**dict.fromkeys(kinds, dropout), **SMALL if small else {})
    head = {"gru_hidden_size": 16, "embedding_size": 16} if small else {}
    layers = config.num_hidden_layers // 2
    return CMKDStudentModel(CMKDStudentConfig(speech_config=config, num_trainable_layers=layers, **head)).eval()


def utterances(number: int, small: bool) -> list[dict[str, Any]]:
    """Noise of 2 to 12 s (small: .3 to .8 s) that is louder with more activation, with outputs of a random teacher."""
    generator = np.random.default_rng(0)
    found = []
    for index in range(number):
        seconds = generator.uniform(0.3, 0.8) if small else float(np.clip(generator.gamma(5, 5.9 / 5), 2, 12))
        labels = generator.uniform(size=3).astype(np.float32)
        wave = (0.2 + labels[0]) * generator.normal(size=int(16000 * seconds)).astype(np.float32)
        teacher = generator.normal(size=16 if small else 128).astype(np.float32)
        weight = np.float32(index % 4 > 0)
        found.append({"id": f"noise_{index}", "input_values": wave, "labels": labels})
        found[-1] |= {"teacher_embeddings": teacher, "quality_weights": weight}
    return found


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Whether matrix products, convolutions and the GRU round their factors to 10 bits."""
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = allowed
        yield
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.allow_tf32 = value


def batch_invariance(device: str, small: bool) -> dict[str, dict[str, float]]:
    """Largest difference of a prediction, on the unit interval, in a batch padded to the longest from that alone."""
    model = student(small).to(device)
    rows = [{"input_values": row["input_values"]} for row in utterances(8, small)]

    def answers(batches, precise: bool) -> torch.Tensor:
        with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=not precise):
            outputs = [model(**{key: value.to(device) for key, value in batch.items()}).logits for batch in batches]
        return torch.cat(outputs).double().cpu()

    alone, together = [collate_utterances([row]) for row in rows], [collate_utterances(rows)]
    found, exact = {}, None
    for name, allowed, precise in (("fp32", False, True), ("tf32", True, True), ("bf16", False, False)):
        with tf32(allowed):
            of_alone, of_batch = answers(alone, precise), answers(together, precise)
        exact = of_alone if exact is None else exact
        found[name] = {
            "batch": (of_batch - of_alone).abs().max().item(),
            "against_fp32": (of_alone - exact).abs().max().item(),
            "spread": of_alone.std(0).max().item(),  # of the answers themselves
        }
    return found


def train(
    folder: Path, device: str, small: bool, number: int = 16, callbacks=(), resume=None, dropout=0.1, **arguments
) -> CMKDTrainer:
    """Trains for two epochs and returns the trainer."""
    settings: dict[str, Any] = {
        "num_train_epochs": 2,
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 8,
        "learning_rate": 1e-3 if small else 1e-4,
        "use_cpu": device == "cpu",
        "disable_tqdm": True,
        "dataloader_pin_memory": device != "cpu",
    }
    trainer = CMKDTrainer(
        model=student(small, dropout),
        args=CMKDTrainingArguments(str(folder), **settings | arguments),
        train_dataset=utterances(number, small),
        eval_dataset=utterances(8, small),
        data_collator=collate_utterances,
        callbacks=list(callbacks),
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


class KeepGradient(TrainerCallback):
    """Keeps the gradient of the first step, after which training stops."""

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
        self.gradient = torch.cat([parameter.grad.flatten().double().cpu() for parameter in parameters])
        control.should_training_stop = True


class Interrupt(TrainerCallback):
    """Raises what Ctrl-C would raise, in the second epoch."""

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 3:
            raise KeyboardInterrupt


ONE_STEP = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}
ONE_STEP |= {"lr_scheduler_type": "constant", "lr_scheduler_kwargs": {}}


def loss_over(device: str, small: bool) -> dict[str, float]:
    """Relative difference of the gradient of two batches of 8 from that of one of 16, without dropout."""
    gradients = {}
    with tf32(False), tempfile.TemporaryDirectory() as folder:
        for name, over, batches in (("one", "step", 1), ("step", "step", 2), ("batch", "batch", 2)):
            kept = KeepGradient()
            shape = {"per_device_train_batch_size": 16 // batches, "gradient_accumulation_steps": batches}
            train(Path(folder), device, small, callbacks=[kept], dropout=0.0, loss_over=over, **shape, **ONE_STEP)
            gradients[name] = kept.gradient
    norm = gradients["one"].norm()
    return {name: ((gradients[name] - gradients["one"]).norm() / norm).item() for name in ("step", "batch")}


def stage(device: str, small: bool) -> dict[str, dict[str, Any]]:
    """The figures of two epochs in fp32 (TF32 off) and in bf16."""
    found = {}
    number = 16 if small else 256
    for name in ("fp32", "bf16"):
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        with tf32(False), tempfile.TemporaryDirectory() as folder:
            started = time.monotonic()
            trainer = train(Path(folder), device, small, number, bf16=name == "bf16")
            seconds = time.monotonic() - started
        history = trainer.state.log_history
        dtypes = {str(parameter.dtype) for parameter in trainer.model.parameters()}
        found[name] = {
            "training_loss": [entry["loss"] for entry in history if "loss" in entry],
            "validation_ccc": [entry["eval_ccc"] for entry in history if "eval_ccc" in entry],
            "utterances_per_second": 2 * number / seconds,  # evaluation and checkpoints included
            "peak_memory_gb": torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else None,
            "weights": sorted(dtypes),
        }
    return found


def difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest difference of a weight."""
    return max((one[name].cpu().double() - other[name].cpu().double()).abs().max().item() for name in one)


def resume(device: str, small: bool, accumulation: int = 2) -> dict[str, float]:
    """Largest difference of a weight after an interruption in the second epoch, and after none, both with dropout."""
    shape = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": accumulation}
    with tf32(False), tempfile.TemporaryDirectory() as folder:
        runs = [
            train(Path(folder, name), device, small, number=8, **shape).model.state_dict() for name in ("one", "two")
        ]
        killed = Path(folder, "killed")
        try:
            train(killed, device, small, number=8, callbacks=[Interrupt()], **shape)
        except KeyboardInterrupt:
            checkpoint = str(next(killed.glob("checkpoint-*")))
        resumed = train(killed, device, small, number=8, resume=checkpoint, **shape).model.state_dict()
    return {"interrupted": difference(resumed, runs[0]), "repeated": difference(runs[1], runs[0])}


def fsdp(device: str, small: bool) -> dict[str, float]:
    """Largest difference of a weight after two epochs with FSDP in one process, and without."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.gpu", "--device", device, "--fsdp", f"{folder}/weights.pt"]
        launch = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
        launch |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
        environment = os.environ | launch | FSDP | {"PYTHONPATH": str(ROOT)}
        command += ["--small"] if small else []
        subprocess.run(command, check=True, env=environment, cwd=ROOT, timeout=600)
        sharded = torch.load(f"{folder}/weights.pt", weights_only=True)
        with tf32(False):
            plain = train(Path(folder), device, small, number=8).model.state_dict()
    return {"largest_difference": difference(plain, sharded), "weights": len(sharded)}


def train_with_fsdp(device: str, small: bool, output: Path) -> None:
    """Run by `fsdp` in a process of its own, which is a launch of one."""
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    if device == "cpu":  # accelerate shards on accelerators only: see tests/launch_worker.py
        make = PartialState.__init__

        def make_pretending(self, *arguments, **options):
            make(self, *arguments, **options)
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU

        PartialState.__init__ = make_pretending  # type: ignore[method-assign]
    with tf32(False), tempfile.TemporaryDirectory() as folder:
        trainer = train(Path(folder), device, small, number=8)
        if not trainer.is_fsdp_enabled:
            raise RuntimeError("accelerate did not take up FSDP")
        torch.save(trainer.accelerator.get_state_dict(trainer.model), output)
    torch.distributed.destroy_process_group()


CHECKS = {check.__name__: check for check in (batch_invariance, loss_over, stage, resume, fsdp)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--small", action="store_true", help="a network of three narrow layers")
    parser.add_argument("--checks", nargs="*", choices=[*CHECKS], default=[*CHECKS])
    parser.add_argument("--output", type=Path, help="a JSON file, written again after each check")
    parser.add_argument("--fsdp", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device here: --device cpu --small rehearses")
    if arguments.fsdp is not None:
        train_with_fsdp(arguments.device, arguments.small, arguments.fsdp)
        return
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if arguments.device == "cuda" else f"CPU, {platform.machine()}",
        "network": "small" if arguments.small else "HuBERT Base",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    for name in arguments.checks:
        started = time.monotonic()
        found[name] = CHECKS[name](arguments.device, arguments.small)
        found[name]["seconds"] = round(time.monotonic() - started, 1)
        print(json.dumps({name: found[name]}), flush=True)
        if arguments.output is not None:
            arguments.output.parent.mkdir(parents=True, exist_ok=True)
            arguments.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
