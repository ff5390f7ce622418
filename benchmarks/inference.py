"""Measures the speed and peak memory of the pipeline on long audio, and of the stock pipeline on the same windows.

    python benchmarks/inference.py --stock_minutes 10 --output docs/results/inference.json

The audio is noise at 44.1 kHz, because a model's cost does not depend on what is said. Each measurement runs in a
process of its own: `cmkd` hands the file to `pipeline(model=…)`; `stock` reads the file whole, resamples it, cuts the
same windows and hands them to `pipeline("audio-classification")`. Times include reading; loading the model is left out.
The real-time factor is CPU seconds per second of audio. Memory is the peak of the process (`VmHWM` of Linux), including
libraries and weights; some of that depends on what else is installed, because transformers imports scipy and accelerate
if they are there: `--python` names the interpreter of another environment.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from transformers import (
    AutoFeatureExtractor,
    HubertConfig,
    MoonshineConfig,
    Wav2Vec2FeatureExtractor,
    WhisperConfig,
    WhisperFeatureExtractor,
)

from cmkd.json_files import write_json
from configuration_cmkd import CMKDStudentConfig
from modeling_cmkd import CMKDStudentModel

ROOT = Path(__file__).resolve().parents[1]
SOURCE_RATE = 44100
WINDOW = 10  # seconds


def save_student(name: str, folder: Path) -> None:
    """A student with random heads on the demo's encoder, or one that is random throughout, of a published size."""
    torch.manual_seed(0)
    if name == "demo":
        encoder = ROOT / "demo_models/speech"
        CMKDStudentModel.from_pretrained_encoder(str(encoder)).save_pretrained(folder)
        AutoFeatureExtractor.from_pretrained(encoder).save_pretrained(folder)
    else:
        config, extractor = {
            "hubert_base": (HubertConfig(), Wav2Vec2FeatureExtractor(return_attention_mask=True)),
            "moonshine_tiny": (
                MoonshineConfig(),
                Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=True),
            ),
            "whisper_tiny": (WhisperConfig(), WhisperFeatureExtractor(return_attention_mask=True)),
        }[name]
        CMKDStudentModel(CMKDStudentConfig(speech_config=config)).save_pretrained(folder)
        extractor.save_pretrained(folder)


def write_noise(path: Path, minutes: int) -> None:
    generator = np.random.default_rng(0)
    with soundfile.SoundFile(path, "w", SOURCE_RATE, 1) as file:
        for _ in range(minutes):
            file.write(0.1 * generator.standard_normal(60 * SOURCE_RATE, dtype=np.float32))


MEASURE = """
import json, platform, sys, time
from importlib.metadata import distributions
from pathlib import Path
import soundfile, soxr, torch
from transformers import pipeline

RATE, WINDOW = 16000, 10
system, model, audio, batch_size = sys.argv[1:]

def memory(field):
    return 1024 * int(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0])

def with_cmkd(score):
    return [list(window["scores"].values()) for window in score(audio, window=WINDOW)["timeline"]]

def with_stock(score):
    samples, rate = soundfile.read(audio, dtype="float32")
    samples = soxr.resample(samples, rate, RATE)
    windows = [samples[start : start + WINDOW * RATE] for start in range(0, len(samples), WINDOW * RATE)]
    answers = score([{"array": window, "sampling_rate": RATE} for window in windows], function_to_apply="none")
    scores = [{entry["label"]: entry["score"] for entry in answer} for answer in answers]
    return [[score[label] for label in ("activation", "valence", "dominance")] for score in scores]

imported = memory("VmRSS")
task = None if system == "cmkd" else "audio-classification"
score = pipeline(task, model=model, trust_remote_code=True, batch_size=int(batch_size), device="cpu")
wall, processor = time.perf_counter(), time.process_time()
scores = with_cmkd(score) if system == "cmkd" else with_stock(score)
measured = {
    "wall_seconds": round(time.perf_counter() - wall, 1),
    "cpu_seconds": round(time.process_time() - processor, 1),
    "peak_megabytes": round(memory("VmHWM") / 1e6),
    "libraries_megabytes": round(imported / 1e6),
    "weights_megabytes": round(sum(p.numel() * p.element_size() for p in score.model.parameters()) / 1e6),
}
found = {found.name: found.version for found in distributions()}
names = ("torch", "transformers", "numpy", "soundfile", "soxr", "accelerate", "scipy")
versions = {"python": platform.python_version()} | {name: found.get(name, "not installed") for name in names}
print(json.dumps({"measured": measured, "scores": scores, "versions": versions, "threads": torch.get_num_threads()}))
"""
"""In the child process, which imports what a user of a checkpoint needs and no more."""


def measure(python: str, system: str, model: Path, minutes: int, batch_size: int) -> dict[str, Any]:
    """What `MEASURE` prints for this many minutes of noise, with the real-time factor."""
    audio = model.with_name(f"{system}.wav")
    write_noise(audio, minutes)
    command = [python, "-c", MEASURE, system, str(model), str(audio), str(batch_size)]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    output = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, env=environment, cwd=model.parent
    ).stdout
    answer = json.loads(output.splitlines()[-1])
    factor = round(answer["measured"]["cpu_seconds"] / (60 * minutes), 4)
    answer["measured"] = {"minutes": minutes} | answer["measured"] | {"real_time_factor": factor}
    return answer


def compare(python: str, name: str, minutes: int, stock_minutes: int, batch_size: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder, "model")
        save_student(name, model)
        answers = {"cmkd": measure(python, "cmkd", model, minutes, batch_size)}
        if stock_minutes:
            answers["stock"] = measure(python, "stock", model, min(minutes, stock_minutes), batch_size)
    compared: dict[str, Any] = {"window_seconds": WINDOW, "batch_size": batch_size}
    compared |= {system: answer["measured"] for system, answer in answers.items()}
    if stock_minutes:
        both = [answer["scores"] for answer in answers.values()]
        shared = min(map(len, both)) - (
            1 if minutes > stock_minutes else 0
        )  # a shorter file ends within its last window
        difference = np.abs(np.subtract(both[0][:shared], both[1][:shared])).max()
        compared["largest_difference_of_scores"] = float(f"{difference:.2g}")
    return compared | {key: answers["cmkd"][key] for key in ("threads", "versions")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="the JSON file")
    parser.add_argument("--demo_minutes", type=int, default=60, help="minutes for the demo's encoder, or 0")
    parser.add_argument(
        "--hubert_minutes", type=int, default=60, help="minutes of audio for HuBERT Base; 0 leaves it out"
    )
    parser.add_argument("--moonshine_minutes", type=int, default=0, help="minutes for Moonshine Tiny, or 0")
    parser.add_argument("--whisper_minutes", type=int, default=0, help="minutes for Whisper Tiny, or 0")
    parser.add_argument(
        "--stock_minutes", type=int, default=60, help="the most minutes for the stock pipeline; 0 leaves it out"
    )
    parser.add_argument("--batch_size", type=int, default=1, help="windows that are scored together")
    parser.add_argument("--python", default=sys.executable, help="the interpreter that scores")
    arguments = parser.parse_args()
    minutes = {
        "demo": arguments.demo_minutes,
        "hubert_base": arguments.hubert_minutes,
        "moonshine_tiny": arguments.moonshine_minutes,
        "whisper_tiny": arguments.whisper_minutes,
    }
    report = {
        name: compare(arguments.python, name, count, arguments.stock_minutes, arguments.batch_size)
        for name, count in minutes.items()
        if count
    }
    print(json.dumps(report, indent=2))
    if arguments.output:
        write_json(arguments.output, report)


if __name__ == "__main__":
    main()
