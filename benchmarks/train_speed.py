"""Training the paper's row 12 at real size: ours against the straightforward recipe.

    python benchmarks/train_speed.py --output docs/results/train_speed.json

HuBERT Base student with its top 6 layers trained, HuBERT Large + BERT Base teacher, random weights, noise of durations
as in podcasts (2 to 12 s, 5.9 on average). Straightforward is: the same models and losses, batches in random order
padded to the longest, the teacher run in every step, nothing stored. Ours: batches of like length, the output of the
student's frozen layers and the teacher's embeddings stored beforehand. Steps of both alternate. On a GPU both run in
bf16 autocast.

Memory is the most that the process held during a pass, with both networks loaded; ours could drop the teacher by then.
Arithmetic is what torch's FlopCounterMode counts (matrix products, convolutions, attention; not the GRU), compared with
a matrix product of 4096 x 4096 on the same machine in the same run.
"""

import argparse
import platform
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, HubertConfig

from cmkd.collator import collate_utterances
from cmkd.feature_store import frozen_features
from cmkd.features import UtteranceDataset
from cmkd.losses import ccc_loss, embedding_distance, weighted_mean
from cmkd.run_folder import versions, write_json
from cmkd.sampler import StepSampler
from configuration_cmkd import CMKDStudentConfig, CMKDTeacherConfig
from modeling_cmkd import CMKDStudentModel, CMKDTeacherModel

RATE = 16000
WORDS_PER_SECOND = 2.5
EPOCHS = 50
TRAIN_UTTERANCES = 34_280  # of MSP-Podcast 1.6
HUBERT_LARGE = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "do_stable_layer_norm": True,
    "feat_extract_norm": "layer",
    "conv_bias": True,
}


def podcast(number: int) -> Dataset:
    """Utterances whose durations are distributed as those of podcasts, with the columns that a cache asks for."""
    durations = np.clip(np.random.default_rng(0).gamma(5, 5.9 / 5, size=number), 2, 12)
    return Dataset.from_dict({"id": [str(index) for index in range(number)], "duration": durations.tolist()})


class Noise(torch.utils.data.Dataset):
    """Waveforms, or token ids, of the durations."""

    def __init__(self, durations: list[float], words: bool):
        self.durations = durations
        self.words = words

    def __len__(self) -> int:
        return len(self.durations)

    def __getitem__(self, index: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(index)
        if self.words:
            return torch.randint(1000, 20000, (2 + int(WORDS_PER_SECOND * self.durations[index]),), generator=generator)
        return torch.randn(int(RATE * self.durations[index]), generator=generator)


def seconds(device: torch.device, function: Callable[[], Any]) -> tuple[float, Any]:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    result = function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def forget_peak_memory(device: torch.device) -> None:
    """Lets the peak of memory begin anew. Linux."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> float:
    """GB, of the GPU or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 2**20


def matrix_product_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large matrix product, the best of five."""
    left, right = (torch.randn(4096, 4096, device=device, dtype=dtype) for _ in range(2))
    return 2 * 4096**3 / min(seconds(device, lambda: left @ right)[0] for _ in range(5))


def main(number: int, batch_size: int, output: Path) -> None:
    device = PartialState(cpu=not torch.cuda.is_available()).device
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    rows = podcast(number)
    durations = rows["duration"][:]
    torch.manual_seed(0)
    common = {"label_scale": [1, 7], "label_mean": [0.5] * 3, "label_std": [0.15] * 3}
    student = CMKDStudentModel(CMKDStudentConfig(speech_config=HubertConfig(), num_trainable_layers=6, **common))
    teacher = CMKDTeacherModel(
        CMKDTeacherConfig(speech_config=HubertConfig(**HUBERT_LARGE), text_config=BertConfig(), **common)
    )
    student.to(device).train()
    teacher.to(device).eval()
    optimizer = torch.optim.Adam([p for p in student.parameters() if p.requires_grad], lr=1e-5)
    labels = torch.rand(number, 3, generator=torch.Generator().manual_seed(1))
    waves, words = Noise(durations, words=False), Noise(durations, words=True)

    def autocast():
        return torch.autocast(device.type, dtype) if dtype != torch.float32 else nullcontext()

    @torch.no_grad()
    def teach(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        with autocast():
            return teacher(**batch).embeddings

    def update(inputs: dict[str, torch.Tensor], targets: torch.Tensor, taught: torch.Tensor) -> None:
        with autocast():
            outputs = student(**inputs)
        distance = embedding_distance(outputs.embeddings, taught, "norm")
        loss = ccc_loss(outputs.logits, targets) + 30 * weighted_mean(distance, torch.ones_like(distance))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def move(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: value.to(device) for name, value in batch.items()}

    def straightforward_step(step: list[int]) -> None:
        batch = move(collate_utterances([{"input_values": waves[i], "input_ids": words[i]} for i in step]))
        taught = teach(batch)
        speech = {name: batch[name] for name in ("input_values", "attention_mask")}
        update(speech, labels[step].to(device), taught)

    with tempfile.TemporaryDirectory() as cache:
        inputs = (Path(cache), rows, waves, range(number))
        part = (student.speech_encoder, student.extract_speech_features, "", "student")
        student_seconds, stored = seconds(device, lambda: frozen_features(*inputs, *part))
        bytes_on_disk = sum(file.stat().st_size for file in Path(cache).rglob("*.safetensors"))

        def run_teacher() -> torch.Tensor:
            alone = [
                move(collate_utterances([{"input_values": waves[i], "input_ids": words[i]}])) for i in range(number)
            ]
            return torch.cat([teach(batch) for batch in alone]).float().cpu()

        teacher_seconds, taught = seconds(device, run_teacher)
        dataset = UtteranceDataset({"speech_features": stored, "labels": labels, "teacher_embeddings": taught})

        def our_step(step: list[int]) -> None:
            batch = move(collate_utterances([dataset[index] for index in step]))
            update(batch, batch.pop("labels"), batch.pop("teacher_embeddings"))

        random_steps = list(StepSampler(number, batch_size, 0))
        our_steps = list(StepSampler(number, batch_size, 0, durations))
        found: dict[str, dict[str, Any]] = {}
        flops, memory = {}, {}
        for name, run, steps in (
            ("ours", our_step, our_steps),
            ("straightforward", straightforward_step, random_steps),
        ):
            forget_peak_memory(device)
            with FlopCounterMode(display=False) as counter:
                for step in steps:  # once to warm up, and to count
                    run(step)
            flops[name] = counter.get_total_flops()
            memory[name] = peak_memory(device)
        times: dict[str, list[float]] = {"ours": [], "straightforward": []}
        for ours, theirs in zip(our_steps, random_steps, strict=True):
            times["ours"].append(seconds(device, lambda step=ours: our_step(step))[0])
            times["straightforward"].append(seconds(device, lambda step=theirs: straightforward_step(step))[0])
    peak = matrix_product_peak(device, dtype)
    for name, of_steps in times.items():
        total = sum(of_steps)
        found[name] = {
            "seconds_a_step": {"median": median(of_steps), "all": of_steps},
            "utterances_per_second": number / total,
            "gmac_per_second_of_audio": flops[name] / 2e9 / sum(durations),
            "share_of_peak": flops[name] / total / peak,
            "peak_memory_gb": memory[name],
        }
    once = (student_seconds + teacher_seconds) / number
    ours, theirs = (sum(times[name]) / number for name in ("ours", "straightforward"))
    result = {
        "what": "random weights, noise of durations as in podcasts; 50 epochs are extrapolated from these steps",
        "utterances": number,
        "batch_size": batch_size,
        "versions": versions(),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads",
        "processor": platform.machine(),
        "dtype": str(dtype).removeprefix("torch."),
        "peak_gflops": peak / 1e9,
        "systems": found,
        "stored_once": {
            "student_seconds_an_utterance": student_seconds / number,
            "teacher_seconds_an_utterance": teacher_seconds / number,
            "gb_an_hour_of_speech": bytes_on_disk / 1e9 / (sum(durations) / 3600),
        },
        "speedup": {
            "an_epoch": theirs / ours,
            "arithmetic": flops["straightforward"] / flops["ours"],
            "epochs_to_break_even": once / (theirs - ours),
            f"whole_job_of_{EPOCHS}_epochs": EPOCHS * theirs / (once + EPOCHS * ours),
        },
        "hours_of_msp_podcast_train": {
            "ours": TRAIN_UTTERANCES * (once + EPOCHS * ours) / 3600,
            "straightforward": TRAIN_UTTERANCES * EPOCHS * theirs / 3600,
        },
    }
    write_json(output, result)
    print(
        f"an epoch {theirs / ours:.1f} times faster; the whole job {EPOCHS * theirs / (once + EPOCHS * ours):.1f} times"
    )
    print(f"wrote {output}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--utterances", type=int, default=64)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    main(options.utterances, options.batch_size, options.output)
