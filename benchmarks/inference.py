"""Speed and peak memory of the pipeline on long audio, beside the stock pipeline on the same windows.

    python benchmarks/inference.py --output docs/results/inference.json

The audio is noise at 44.1 kHz, because a model's cost does not depend on what is said. Each measurement runs in a
process of its own: `cmkd` hands the file to `pipeline(model=…)`; `stock` reads the file whole, resamples it, cuts the
same windows and hands them to `pipeline("audio-classification")`. Times include reading; loading the model is left out.
The real-time factor is CPU seconds for a second of audio. Memory is the most that the process ever held, libraries
included.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch
from transformers import AutoFeatureExtractor, Wav2Vec2FeatureExtractor, pipeline

from cmkd.run_folder import versions, write_json
from configuration_cmkd import CMKDStudentConfig
from modeling_cmkd import CMKDStudentModel

ROOT = Path(__file__).resolve().parents[1]
SOURCE_RATE = 44100
RATE = 16000
WINDOW = 10  # seconds


def save_student(name: str, folder: Path) -> None:
    """A student with random heads on the demo's encoder, or a HuBERT Base that is random throughout."""
    torch.manual_seed(0)
    if name == "demo":
        encoder = ROOT / "demo_models/speech"
        CMKDStudentModel.from_pretrained_encoder(str(encoder)).save_pretrained(folder)
        AutoFeatureExtractor.from_pretrained(encoder).save_pretrained(folder)
    else:
        CMKDStudentModel(CMKDStudentConfig()).save_pretrained(folder)
        Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(folder)


def write_noise(path: Path, minutes: int) -> None:
    generator = np.random.default_rng(0)
    with soundfile.SoundFile(path, "w", SOURCE_RATE, 1) as file:
        for _ in range(minutes):
            file.write(0.1 * generator.standard_normal(60 * SOURCE_RATE, dtype=np.float32))


def score_with_cmkd(score, audio: str) -> list[list[float]]:
    return [list(window["scores"].values()) for window in score(audio, window=WINDOW)["timeline"]]


def score_with_stock(score, audio: str) -> list[list[float]]:
    samples = soxr.resample(soundfile.read(audio, dtype="float32")[0], SOURCE_RATE, RATE)
    windows = [samples[start : start + WINDOW * RATE] for start in range(0, len(samples), WINDOW * RATE)]
    answers = score([{"array": window, "sampling_rate": RATE} for window in windows], function_to_apply="none")
    scores = [{entry["label"]: entry["score"] for entry in answer} for answer in answers]
    return [[score[label] for label in ("activation", "valence", "dominance")] for score in scores]


def measure(system: str, model: str, audio: str, batch_size: int) -> None:
    """In the child process: prints one line of JSON."""
    task = None if system == "cmkd" else "audio-classification"
    score = pipeline(task, model=model, trust_remote_code=True, batch_size=batch_size, device="cpu")
    loaded = peak_bytes()
    wall, processor = time.perf_counter(), time.process_time()
    scores = score_with_cmkd(score, audio) if task is None else score_with_stock(score, audio)
    measured = {
        "wall_seconds": round(time.perf_counter() - wall, 1),
        "cpu_seconds": round(time.process_time() - processor, 1),
        "peak_megabytes": round(peak_bytes() / 1e6),
        "peak_megabytes_before": round(loaded / 1e6),
    }
    print(json.dumps({"measured": measured, "scores": scores}))


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def compare(name: str, minutes: int, batch_size: int) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        model, audio = Path(folder, "model"), Path(folder, "noise.wav")
        save_student(name, model)
        write_noise(audio, minutes)
        answers = {}
        for system in ("cmkd", "stock"):
            command = [sys.executable, __file__, "--measure", system, str(model), str(audio)]
            command += ["--batch_size", str(batch_size)]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            answers[system] = json.loads(output.splitlines()[-1])
    measured = {system: answer["measured"] for system, answer in answers.items()}
    for figures in measured.values():
        figures["real_time_factor"] = round(figures["cpu_seconds"] / (60 * minutes), 4)
    difference = np.abs(np.subtract(answers["cmkd"]["scores"], answers["stock"]["scores"])).max()
    return {
        "minutes": minutes,
        "window_seconds": WINDOW,
        "batch_size": batch_size,
        **measured,
        "cpu_seconds_relative_to_stock": round(measured["cmkd"]["cpu_seconds"] / measured["stock"]["cpu_seconds"], 3),
        "peak_memory_relative_to_stock": round(
            measured["cmkd"]["peak_megabytes"] / measured["stock"]["peak_megabytes"], 3
        ),
        "largest_difference_of_scores": float(f"{difference:.2g}"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="the JSON file")
    parser.add_argument("--demo_minutes", type=int, default=60, help="of audio for the demo's encoder")
    parser.add_argument("--hubert_minutes", type=int, default=60, help="of audio for HuBERT Base; 0 leaves it out")
    parser.add_argument("--batch_size", type=int, default=1, help="windows that are scored together")
    parser.add_argument("--measure", nargs=3, metavar=("SYSTEM", "MODEL", "AUDIO"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(*arguments.measure, arguments.batch_size)
        return
    minutes = {"demo": arguments.demo_minutes, "hubert_base": arguments.hubert_minutes}
    results = {name: compare(name, count, arguments.batch_size) for name, count in minutes.items() if count}
    report = {"threads": torch.get_num_threads(), "versions": versions(), "students": results}
    print(json.dumps(report, indent=2))
    if arguments.output:
        write_json(arguments.output, report)


if __name__ == "__main__":
    main()
