"""What `cmkd predict` costs, with and without Ray, and what 100,000 hours would take at the rates that were measured.

    python -m benchmarks.predict --minutes 30 90 --repeats 1 --output docs/results/predict.json

Calls of 2 to 12 s as flac, noise because a model's cost does not depend on what is said, are scored by a student with
random heads on the demo's encoder: a small network, so that everything else counts as much as it can. Each way runs on
two amounts, one after the other and alternating; the difference is the rate, and what is left at nothing is the fixed
cost (Python, libraries, the model, a cluster). Each has all CPUs of this machine:

- `plain`: one command, as it is given: a model of as many threads as there are CPUs, or as OMP_NUM_THREADS says where
  that is set, and one process that reads. Set it to 1 on a machine that does other things too: there threads wait for
  each other most of the time.
- `processes`: the same command once for each CPU, at the same time, with OMP_NUM_THREADS=1: they share the work.
- `ray`: a cluster of this machine, with a model of one thread for each CPU, as is the default.

Processor time, of `plain` and `processes` with their readers, is what compares on a machine that does other things too.
What 100,000 hours take is that of `processes` for each second of sound, by the CPUs of a cluster; of HuBERT Base it is
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


def measure(way: str, calls: Path, model: Path, folder: Path) -> tuple[float, float]:
    """Seconds that it takes until all is scored and written, and seconds of processors; of Ray these are not all."""
    output = Path(tempfile.mkdtemp(dir=folder))
    command = [sys.executable, "-m", "cmkd", "predict", str(calls), "--model", str(model), "--output", str(output)]
    command += ["--summary", "false", *(["--engine", "ray"] if way == "ray" else [])]
    environment = os.environ | ({"OMP_NUM_THREADS": "1"} if way == "processes" else {})
    begun, before = time.monotonic(), processor_seconds()
    running = [
        subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(usable_cpus() if way == "processes" else 1)
    ]
    for process in running:
        if process.wait():
            raise subprocess.CalledProcessError(process.returncode, command)
    return time.monotonic() - begun, processor_seconds() - before


def processor_seconds() -> float:
    """Of all processes that this one has started, and they, and that have ended."""
    times = os.times()
    return times.children_user + times.children_system


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
    load = os.getloadavg()[0]  # what this machine does otherwise
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_student("demo", folder / "model")
        hours = [write_calls(folder / f"{minutes:g}", minutes) for minutes in options.minutes]
        seconds: dict[str, list[list[float]]] = {way: [[], []] for way in WAYS}
        processor: dict[str, list[list[float]]] = {way: [[], []] for way in WAYS if way != "ray"}
        for _ in range(options.repeats):
            for place, minutes in enumerate(options.minutes):
                for way in WAYS:
                    taken, of_processors = measure(way, folder / f"{minutes:g}", folder / "model", folder)
                    seconds[way][place].append(taken)
                    if way in processor:
                        processor[way][place].append(of_processors)
                    print(f"{way}, {minutes:g} minutes: {taken:.1f} s", flush=True)
    results: dict[str, Any] = {
        "machine": {
            "cpus": usable_cpus(),
            "processor": platform.machine(),
            "load_before": load,
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
        },
        "hours": hours,
        "seconds": seconds,
        "processor_seconds": processor,
        "ways": {way: line(hours, [statistics.median(runs) for runs in taken]) for way, taken in seconds.items()},
    }
    for way, spent in processor.items():
        few, many = (statistics.median(runs) for runs in spent)
        results["ways"][way]["processor_seconds_for_a_second_of_sound"] = (many - few) / (hours[1] - hours[0]) / 3600
    base = read_json(ROOT / "docs/results/inference.json", "run benchmarks/inference.py.")
    rates = {
        "demo student": 1 / results["ways"]["processes"]["processor_seconds_for_a_second_of_sound"],
        "HuBERT Base": 1 / base["hubert_base"]["cmkd"]["real_time_factor"],
    }
    results["days_for_100_000_hours"] = {
        f"{name}, {number} CPUs": HOURS / rate / number / 24 for name, rate in rates.items() for number in CPUS
    }
    write_json(options.output, results)
    print(json.dumps({key: value for key, value in results.items() if not key.endswith("seconds")}, indent=2))


if __name__ == "__main__":
    main()
