"""Training the paper's row 12 at real size: ours against the straightforward recipe.

    python -m benchmarks.train_speed --steps 2 1 --output docs/results/train_speed.json

HuBERT Base student with its top 6 layers trained, HuBERT Large + BERT Base teacher, random weights, noise of durations
as in podcasts (2 to 12 s, 5.9 on average). Straightforward is: the same models and losses, batches in random order
padded to the longest, the teacher run in every step, nothing stored; a step is made of `--accumulate` such batches, as
one of 32 would take more than 24 GB. Ours: one batch of similar length for each step, the output of the student's
frozen layers and the teacher's embeddings stored beforehand. On a GPU both run in bf16 autocast.

The steps are some of those of an epoch of `CORPUS` utterances: of the straightforward ones, which are in random order,
the first; of ours, which differ in length, those at equal distances from the shortest to the longest. Steps of both
alternate. Everything is counted per second of real audio; an utterance is one of average length. A few random batches
have more or less padding than an epoch, so the time of an epoch is that of a padded second in these steps, times all
padded seconds of the epoch. What is stored beforehand is measured on the utterances of our steps, and of the teacher
on `TAUGHT` of them.

Memory is the peak of the process during a step, with both networks loaded; ours could drop the teacher by then.
Arithmetic is what torch's FlopCounterMode counts (matrix products, convolutions, attention; on a CPU the GRU too) for
two rows as long as the longest of a batch, times its rows, which also warms up. It is given per second of real audio,
and compared with a matrix product of 4096 x 4096 on the same machine in the same run.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset
from torch.utils.data import Subset
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, HubertConfig

import speech_encoder_cmkd
from benchmarks.stand_ins import ENCODERS
from cmkd.features.store import FrozenPart, Storage, frozen_features
from cmkd.json_files import write_json
from cmkd.losses import ccc_loss, embedding_distance, weighted_mean
from cmkd.runs.folder import versions
from cmkd.training.collator import collate_utterances
from cmkd.training.sampler import StepSampler
from configuration_cmkd import CMKDStudentConfig, CMKDTeacherConfig
from modeling_cmkd import CMKDStudentModel, CMKDTeacherModel

RATE = 16000
WORDS_PER_SECOND = 2.5
CORPUS = 4096
EPOCHS = 50
TAUGHT = 8
TRAIN_UTTERANCES = 34_280  # of MSP-Podcast 1.6


def podcast() -> np.ndarray:
    """Durations distributed as those of podcasts, in seconds."""
    return np.clip(np.random.default_rng(0).gamma(5, 5.9 / 5, size=CORPUS), 2, 12)


class Noise(torch.utils.data.Dataset):
    """Waveforms, or token ids, of the durations."""

    def __init__(self, durations: np.ndarray, words: bool):
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


def steps_to_measure(durations: np.ndarray, batch_size: int, ours: int, straightforward: int) -> dict[str, list[Any]]:
    """The utterances of some steps of an epoch, of either system."""
    grouped = sorted(StepSampler(CORPUS, batch_size, 0, durations), key=lambda step: max(durations[step]))
    chosen = [grouped[int((rank + 0.5) * len(grouped) / ours)] for rank in range(ours)]
    return {"ours": chosen, "straightforward": list(StepSampler(CORPUS, batch_size, 0))[:straightforward]}


def padding(durations: np.ndarray, steps: Iterable[Sequence[int]]) -> float:
    """The share of what batches hold that is not real."""
    real, held = np.sum([(durations[step].sum(), durations[step].max() * len(step)) for step in map(list, steps)], 0)
    return float(1 - real / held)


def main(numbers: tuple[int, int], batch_size: int, accumulate: int, output: Path) -> None:
    device = PartialState(cpu=not torch.cuda.is_available()).device
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    speech_encoder_cmkd.ROWS_AT_A_TIME = batch_size  # the straightforward recipe pads all of a batch to the longest
    durations = podcast()
    steps = steps_to_measure(durations, batch_size, *numbers)
    ours = [index for step in steps["ours"] for index in step]
    torch.manual_seed(0)
    common = {"label_scale": [1, 7], "label_mean": [0.5] * 3, "label_std": [0.15] * 3}
    student = CMKDStudentModel(CMKDStudentConfig(speech_config=HubertConfig(), num_trainable_layers=6, **common))
    teacher = CMKDTeacherModel(
        CMKDTeacherConfig(speech_config=ENCODERS["facebook/hubert-large-ll60k"], text_config=BertConfig(), **common)
    )
    student.to(device).train()
    teacher.to(device).eval()
    optimizer = torch.optim.Adam([p for p in student.parameters() if p.requires_grad], lr=1e-5)
    labels = torch.rand(CORPUS, 3, generator=torch.Generator().manual_seed(1))
    waves, words = Noise(durations, words=False), Noise(durations, words=True)

    def autocast():
        return torch.autocast(device.type, dtype) if dtype != torch.float32 else nullcontext()

    @torch.no_grad()
    def teach(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        with autocast():
            return teacher(**batch).embeddings

    def learn(inputs: dict[str, torch.Tensor], targets: torch.Tensor, taught: torch.Tensor, batches: int) -> None:
        """Adds the gradient of one of the batches of a step."""
        with autocast():
            outputs = student(**inputs)
        distance = embedding_distance(outputs.embeddings, taught, "norm")
        loss = ccc_loss(outputs.logits, targets) + 30 * weighted_mean(distance, torch.ones_like(distance))
        (loss / batches).backward()

    def update() -> None:
        optimizer.step()
        optimizer.zero_grad()

    def move(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: value.to(device) for name, value in batch.items()}

    def straightforward_step(step: list[int]) -> None:
        batches = in_batches(step)
        for rows in batches:
            batch = move(collate_utterances([{"input_values": waves[i], "input_ids": words[i]} for i in rows]))
            taught = teach(batch)
            speech = {name: batch[name] for name in ("input_values", "attention_mask")}
            learn(speech, labels[rows].to(device), taught, len(batches))
        update()

    def in_batches(step: list[int]) -> list[list[int]]:
        size = batch_size // accumulate
        return [step[start : start + size] for start in range(0, len(step), size)]

    def arithmetic(step_of: Callable[[list[int]], None], batch: list[int]) -> float:
        """FLOP of a batch, all of whose rows are padded to the longest."""
        longest = sorted(batch, key=lambda index: -durations[index])[:2]
        with FlopCounterMode(display=False) as counter:
            step_of(longest)
        return counter.get_total_flops() / len(longest) * len(batch)

    with tempfile.TemporaryDirectory() as cache:
        rows = Dataset.from_dict({"id": [str(index) for index in ours], "duration": durations[ours].tolist()})
        inputs = (rows, Subset(waves, ours), ours)
        part = FrozenPart(student.speech_encoder, student.extract_speech_features, "", "student")
        student_seconds, stored = seconds(device, lambda: frozen_features(*inputs, part, Storage(Path(cache))))
        bytes_on_disk = sum(file.stat().st_size for file in Path(cache).rglob("*.safetensors"))
        place = {index: row for row, index in enumerate(ours)}
        chosen = ours[:: len(ours) // TAUGHT][:TAUGHT]

        def run_teacher() -> torch.Tensor:
            alone = [move(collate_utterances([{"input_values": waves[i], "input_ids": words[i]}])) for i in chosen]
            return torch.cat([teach(batch) for batch in alone]).float().cpu()

        teacher_seconds, taught = seconds(device, run_teacher)

        def our_step(step: list[int]) -> None:
            features = [{"speech_features": stored[place[index]]} for index in step]
            by_teacher = taught[[index % len(taught) for index in range(len(step))]]  # what it says costs nothing
            learn(move(collate_utterances(features)), labels[step].to(device), by_teacher.to(device), 1)
            update()

        steps_of = {"ours": our_step, "straightforward": straightforward_step}
        batches = {
            "ours": steps["ours"],
            "straightforward": [batch for step in steps["straightforward"] for batch in in_batches(step)],
        }
        flops = {}
        for name, of_system in batches.items():
            audio = sum(durations[batch].sum() for batch in of_system)
            flops[name] = sum(arithmetic(steps_of[name], batch) for batch in of_system) / audio
        times: dict[str, list[float]] = {"ours": [], "straightforward": []}
        memory = dict.fromkeys(times, 0.0)

        def measure(name: str, step: list[int]) -> None:
            forget_peak_memory(device)
            times[name].append(seconds(device, lambda: steps_of[name](step))[0])
            memory[name] = max(memory[name], peak_memory(device))

        share = len(steps["ours"]) // len(steps["straightforward"])
        for position, theirs in enumerate(steps["straightforward"]):
            for step in steps["ours"][position * share : (position + 1) * share]:
                measure("ours", step)
            measure("straightforward", theirs)
    peak = matrix_product_peak(device, dtype)
    epochs = {
        "ours": StepSampler(CORPUS, batch_size, 0, durations),
        "straightforward": [batch for step in StepSampler(CORPUS, batch_size, 0) for batch in in_batches(list(step))],
    }
    found = {}
    for name, of_steps in times.items():
        measured = [index for step in steps[name] for index in step]
        here, in_epoch = padding(durations, batches[name]), padding(durations, epochs[name])
        rate = float(durations[measured].sum() / sum(of_steps) / durations.mean())
        found[name] = {
            "steps": len(of_steps),
            "seconds_a_step": of_steps,
            "padding": here,
            "padding_of_an_epoch": in_epoch,
            "utterances_per_second": rate * (1 - in_epoch) / (1 - here),
            "gmac_per_second_of_audio": flops[name] / 2e9,
            "share_of_peak": float(flops[name] * durations[measured].sum() / sum(of_steps) / peak),
            "peak_memory_gb": memory[name],
        }
    average = float(durations.mean())
    student_once = student_seconds / durations[ours].sum() * average
    teacher_once = teacher_seconds / durations[chosen].sum() * average
    once = student_once + teacher_once
    our, their = (1 / found[name]["utterances_per_second"] for name in ("ours", "straightforward"))
    result = {
        "what": "random weights, noise of durations as in podcasts; epochs are extrapolated from these steps",
        "batch_size": batch_size,
        "straightforward_batches_a_step": accumulate,
        "versions": versions(),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads",
        "dtype": str(dtype).removeprefix("torch."),
        "peak_gflops": peak / 1e9,
        "systems": found,
        "stored_once": {
            "student_seconds_an_utterance": student_once,
            "teacher_seconds_an_utterance": teacher_once,
            "gb_an_hour_of_speech": float(bytes_on_disk / 1e9 / (durations[ours].sum() / 3600)),
        },
        "speedup": {
            "an_epoch": their / our,
            "arithmetic": flops["straightforward"] / flops["ours"],
            "epochs_to_break_even": once / (their - our),
            f"whole_job_of_{EPOCHS}_epochs": EPOCHS * their / (once + EPOCHS * our),
        },
        "hours_of_msp_podcast_train": {
            "ours": TRAIN_UTTERANCES * (once + EPOCHS * our) / 3600,
            "straightforward": TRAIN_UTTERANCES * EPOCHS * their / 3600,
        },
    }
    write_json(output, result)
    whole = result["speedup"][f"whole_job_of_{EPOCHS}_epochs"]
    print(f"an epoch {their / our:.1f} times faster; the whole job {whole:.1f} times\nwrote {output}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs=2, default=[2, 2], metavar=("OURS", "STRAIGHTFORWARD"))
    parser.add_argument("--batch_size", type=int, default=32, help="utterances of a step")
    parser.add_argument("--accumulate", type=int, default=2, help="batches of a step of the straightforward recipe")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    main(tuple(options.steps), options.batch_size, options.accumulate, options.output)
