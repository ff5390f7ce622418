"""Measures the time and memory of building MSP-Podcast, and writes a JSON file.

    python -m benchmarks.corpora --output docs/results/corpora.json

It makes a tree of the size of release 1.6 (50,362 utterances) with short noise in a temporary folder, and loads it
twice, each time in a process of its own: the first reads and checks everything and writes the cache, the second only
checks whether anything has changed. The audio is shorter than the real one (84 h are 9.7 GB), so the figures are those
of the work per utterance; reading the samples comes on top, and is measured separately on longer audio. If other
processes use the machine too, the CPU time says more than the wall time.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.stand_ins import write_msp_podcast
from cmkd.corpora.msp_podcast import KNOWN_SIZES, PAPER_RELEASE
from cmkd.cpus import usable_cpus
from cmkd.json_files import write_json
from cmkd.runs.folder import versions

SAMPLING_RATE = 16000

LOAD = """
import json, pathlib, sys, time
start = time.perf_counter()
import cmkd.corpora.msp_podcast
from cmkd.corpora import load_corpus
imported, cpu_before = time.perf_counter(), time.process_time()
corpus = load_corpus("msp-podcast", sys.argv[1], release="1.6")
built, cpu_after = time.perf_counter(), time.process_time()
status = pathlib.Path("/proc/self/status").read_text()  # ru_maxrss would be at least that of the process before
peak = 1024 * int(status.split("VmHWM:")[1].split()[0])
print(json.dumps({
    "import_seconds": imported - start, "load_seconds": built - imported, "load_cpu_seconds": cpu_after - cpu_before,
    "peak_memory_bytes": peak,
    "utterances": corpus.report.utterances, "hours": sum(corpus.report.hours.values()), "card": str(corpus.report),
}))
"""


def load(folder: Path, cache: Path) -> dict[str, Any]:
    """Loads the corpus in a process of its own and returns what `LOAD` prints."""
    environment = {**os.environ, "HF_DATASETS_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    start = time.perf_counter()
    process = subprocess.run(
        [sys.executable, "-c", LOAD, str(folder)], env=environment, check=True, stdout=subprocess.PIPE, text=True
    )
    return {"wall_seconds": time.perf_counter() - start, **json.loads(process.stdout)}


def measure(scale: float, seconds: float) -> dict[str, Any]:
    """Writes a release, loads it twice and returns the figures."""
    with tempfile.TemporaryDirectory() as scratch:
        folder, cache = Path(scratch) / f"MSP-PODCAST-Publish-{PAPER_RELEASE}", Path(scratch) / "cache"
        sizes = {split: round(number * scale) for split, number in KNOWN_SIZES[PAPER_RELEASE].utterances.items()}
        utterances = len(write_msp_podcast(folder, sizes, seconds))
        built, loaded = load(folder, cache), load(folder, cache)
        cache_bytes = sum(file.stat().st_size for file in cache.rglob("*.arrow"))
    card = built.pop("card")
    if loaded.pop("card") != card:
        raise RuntimeError("the second load gave another report than the first")
    print(card, file=sys.stderr)
    return {
        "utterances": utterances,
        "seconds_an_utterance": seconds,
        "build": built,
        "utterances_a_second": utterances / built["load_seconds"],
        "utterances_a_cpu_second": utterances / built["load_cpu_seconds"],
        "audio_megabytes_a_cpu_second": utterances * seconds * SAMPLING_RATE * 2 / 1e6 / built["load_cpu_seconds"],
        "second_load": loaded,
        "cache_bytes": cache_bytes,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="the JSON file")
    parser.add_argument("--scale", type=float, default=1.0, help="size as a multiple of that of release 1.6")
    arguments = parser.parse_args()
    results = {
        "versions": versions(),
        "cores": usable_cpus(),
        "short": measure(arguments.scale, seconds=0.2),
        "six_seconds": measure(arguments.scale / 10, seconds=6.0),  # a tenth of the utterances, 0.97 GB
    }
    write_json(arguments.output, results)
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
