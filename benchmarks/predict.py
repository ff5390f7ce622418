"""What `cmkd predict` costs, with and without Ray, and what 100,000 hours would take at the rates that were measured.

    python -m benchmarks.predict --minutes 30 90 --repeats 1 --output docs/results/predict.json

Calls of 2 to 12 s as flac, noise because a model's cost does not depend on what is said, are scored by a student with
random heads on the demo's encoder: a small network, so that everything else counts as much as it can. Each way runs on
two amounts, one after the other and alternating; the difference is the rate, and what is left at nothing is the fixed
cost (Python, libraries, the model, a cluster). Each has all CPUs of this machine:

- `plain`: one command, as it is given: a model of as many threads as there are CPUs, and one process that reads.
- `processes`: the same command once for each CPU, at the same time, with OMP_NUM_THREADS=1: they share the work.
- `ray`: a cluster of this machine, with a model of one thread for each CPU, as is the default.

What 100,000 hours take is Ray's rate for each CPU of this machine, times the CPUs of a cluster; of HuBERT Base it is
the CPU time for each second of sound that benchmarks/inference.py has measured.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from benchmarks.inference import ROOT, save_student
from cmkd.cpus import usable_cpus
from cmkd.json_files import read_json, write_json

RATE = 16000
HOURS = 100_000
CPUS = (64, 1024)
WAYS = ("plain", "processes", "ray")


def write_calls(folder: Path, minutes: float) -> float:
    """Sounds of 2 to 12 s, and how many hours they are."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    left, number = minutes * 60, 0
    while left > 0:
        seconds = float(generator.uniform(2, 12))
        wave = 0.1 * generator.standard_normal(round(seconds * RATE), dtype=np.float32)
        soundfile.write(folder / f"{number:05d}.flac", wave, RATE)
        left, number = left - seconds, number + 1
    return (minutes * 60 - left) / 3600


def measure(way: str, calls: Path, model: Path, folder: Path) -> float:
    """Seconds that it takes until all is scored and written."""
    output = Path(tempfile.mkdtemp(dir=folder))
    command = [sys.executable, "-m", "cmkd", "predict", str(calls), "--model", str(model), "--output", str(output)]
    command += ["--summary", "false", *(["--engine", "ray"] if way == "ray" else [])]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    if way == "processes":
        environment["OMP_NUM_THREADS"] = "1"
    begun = time.monotonic()
    running = [
        subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(usable_cpus() if way == "processes" else 1)
    ]
    for process in running:
        if process.wait():
            raise subprocess.CalledProcessError(process.returncode, command)
    return time.monotonic() - begun


def line(hours: Sequence[float], seconds: Sequence[float]) -> dict[str, float]:
    """The fixed cost and the rate from two amounts."""
    rate = (hours[1] - hours[0]) * 3600 / (seconds[1] - seconds[0])
    return {"fixed_seconds": seconds[0] - hours[0] * 3600 / rate, "times_real_time": rate}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, nargs=2, default=(30, 90))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_student("demo", folder / "model")
        hours = [write_calls(folder / f"{minutes:g}", minutes) for minutes in options.minutes]
        seconds: dict[str, list[list[float]]] = {way: [[], []] for way in WAYS}
        for _ in range(options.repeats):
            for place, minutes in enumerate(options.minutes):
                for way in WAYS:
                    taken = measure(way, folder / f"{minutes:g}", folder / "model", folder)
                    seconds[way][place].append(taken)
                    print(f"{way}, {minutes:g} minutes: {taken:.1f} s", flush=True)
    results: dict[str, Any] = {
        "machine": {"cpus": usable_cpus(), "processor": platform.machine()},
        "hours": hours,
        "seconds": seconds,
        "ways": {way: line(hours, [statistics.median(runs) for runs in taken]) for way, taken in seconds.items()},
    }
    base = read_json(ROOT / "docs/results/inference.json", "run benchmarks/inference.py.")
    rates = {
        "demo student": results["ways"]["ray"]["times_real_time"] / usable_cpus(),
        "HuBERT Base": 1 / base["hubert_base"]["cmkd"]["real_time_factor"],
    }
    results["days_for_100_000_hours"] = {
        f"{name}, {number} CPUs": HOURS / rate / number / 24 for name, rate in rates.items() for number in CPUS
    }
    write_json(options.output, results)
    print(json.dumps({key: value for key, value in results.items() if key != "seconds"}, indent=2))


if __name__ == "__main__":
    main()
