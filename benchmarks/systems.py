"""Runs every recipe of recipes/ at its real size and measures what it takes.

    python -m benchmarks.systems --output docs/results/systems.json --page docs/systems.md

Each recipe trains two steps and is evaluated by train_distill.py itself, in a process of its own, with encoders of the
published architectures and random weights, on noise in the layout of its corpus. The hours on a GPU are an estimate
from the arithmetic that torch's FlopCounterMode counts (matrix products, convolutions and attention; on a CPU the GRU
too); the page explains how. `--only NAME` repeats individual recipes and keeps the file's entries for the others.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

import train_distill
from benchmarks.stand_ins import write_encoder, write_iemocap, write_msp_podcast, write_transcripts
from cmkd.features.store import FrozenPart, Storage
from cmkd.json_files import write_json
from cmkd.runs import stage as training_of_a_stage
from cmkd.runs.folder import versions
from cmkd.runs.recipe import Recipe, load_recipe
from cmkd.stages import STAGES
from cmkd.training.trainer import CMKDTrainer

ROOT = Path(__file__).parent.parent
FOLDERS = ("msp_podcast", "iemocap")
SECONDS = 1.0  # of an utterance
BATCH = 32
TRAIN_HOURS = {"msp_podcast": 34_280 * 5.9 / 3600, "iemocap": 12 * 3 / 5}
TRAIN_UTTERANCES = {"msp_podcast": 34_280, "iemocap": 10_039 * 3 // 5}
FOLDS = {"msp_podcast": 1, "iemocap": 5}
GPU_FLOPS = 0.3 * 989e12  # 30 % of the dense bf16 peak of an H100
GPU_STEP = 0.02  # seconds per step for two GRU layers over some 300 frames, one after the other; assumed


def recipes() -> list[Path]:
    """The recipes, ordered so that a teacher comes before its students."""
    found = [path for folder in FOLDERS for path in (ROOT / "recipes" / folder).glob("*.yaml")]
    key = [(FOLDERS.index(path.parent.name), path.stem.startswith("later"), path.stem) for path in found]
    return [path for _, path in sorted(zip(key, found, strict=True)) if path.stem != "common"]


def encoders(recipe: Recipe) -> set[str]:
    """The names of the encoders that a recipe's stages load."""
    return set(recipe.model_dump(include={name for stage in recipe.stages for name in STAGES[stage].encoders}).values())


def measure(path: str, arguments: list[str], output: Path) -> None:
    """Runs a recipe in this process and writes down what its stages took."""
    stages: dict[str, dict[str, Any]] = {}
    step, store = CMKDTrainer.training_step, training_of_a_stage.frozen_features
    frozen: dict[str, float] = {}

    def measured_step(self: CMKDTrainer, model: torch.nn.Module, *inputs: Any, **options: Any) -> torch.Tensor:
        stage = stages.setdefault(Path(self.args.output_dir).name, {})
        if not stage:
            stage["frozen_flops_a_second_of_audio"] = sum(frozen.values())
            frozen.clear()
        parameters = list(model.parameters())
        stage["parameters"] = sum(p.numel() for p in parameters)
        stage["trainable_parameters"] = sum(p.numel() for p in parameters if p.requires_grad)
        counter = FlopCounterMode(display=False) if "flops_a_second_of_audio" not in stage else contextlib.nullcontext()
        started = time.perf_counter()
        with counter:
            loss = step(self, model, *inputs, **options)
        stage["seconds_a_step"] = time.perf_counter() - started  # of the second step, in which nothing is counted
        if isinstance(counter, FlopCounterMode):
            stage["flops_a_second_of_audio"] = counter.get_total_flops() / (len(inputs[0]["labels"]) * SECONDS)
        return loss

    def measured_store(rows: Any, inputs: Any, keys: Any, part: FrozenPart, storage: Storage) -> Any:
        with FlopCounterMode(display=False) as counter:
            stored = store(rows, inputs, keys, part, storage)
        if counter.get_total_flops():  # nothing where another stage has stored it
            frozen[part.name] = counter.get_total_flops() / (len(rows) * SECONDS)
        return stored

    CMKDTrainer.training_step = measured_step  # type: ignore[method-assign]
    training_of_a_stage.frozen_features = measured_store
    train_distill.main([path, *arguments])
    peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 2**20
    write_json(output, {"peak_memory_gb": peak, "stages": stages})


def run(path: Path, place: Path) -> dict[str, Any]:
    """Makes what the recipe needs, and measures it in a process of its own."""
    recipe, corpus = load_recipe(path), path.parent.name
    for name in sorted(encoders(recipe)):
        if not (place / "models" / name).is_dir():
            write_encoder(name, place / "models")
    arguments = ["--corpus.data_dir", str(place / corpus), "--models_dir", str(place / "models")]
    arguments += ["--output_dir", str(place / "runs" / corpus / path.stem), "--num_epochs", "1"]
    if corpus == "msp_podcast":
        arguments += ["--corpus.transcripts", str(place / "transcripts.parquet")]
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "result.json"
        cache = ["--cache_dir", f"{folder}/cache"]
        command = [sys.executable, "-m", "benchmarks.systems", "--measure", str(path), "--output", str(output)]
        subprocess.run([*command, *arguments, *cache], check=True, cwd=ROOT)
        found = json.loads(output.read_text())
    return found | {"epochs": recipe.num_epochs}


def gpu_hours(corpus: str, epochs: int, stages: dict[str, dict[str, Any]]) -> float:
    """The estimated hours on one current GPU, for all stages and folds; the page explains the estimate."""
    seconds = 0.0
    audio = 3600 * TRAIN_HOURS[corpus]
    for stage in stages.values():
        steps = epochs * TRAIN_UTTERANCES[corpus] / BATCH
        arithmetic = epochs * audio * stage["flops_a_second_of_audio"] / GPU_FLOPS
        seconds += arithmetic + steps * GPU_STEP + audio * stage["frozen_flops_a_second_of_audio"] / GPU_FLOPS
    return FOLDS[corpus] * seconds / 3600


def page(results: dict[str, Any]) -> str:
    """docs/systems.md."""
    lines = []
    for name, found in results["recipes"].items():
        for stage, values in found["stages"].items():
            lines.append(
                f"| [{name}](../recipes/{name}.yaml) | {stage} | {values['parameters'] / 1e6:.1f} | "
                f"{values['trainable_parameters'] / 1e6:.2f} | {found['peak_memory_gb']:.1f} | "
                f"{values['seconds_a_step']:.2f} | {found['gpu_hours']:.1f} |"
            )
    table = "\n".join(lines)
    versions_used = ", ".join(f"{package} {version}" for package, version in results["versions"].items())
    return f"""\
# Every system at its real size

A dry run of every recipe of the paper's Tables 2 and 3, and of later work, by `train_distill.py` itself: it loads the
corpus, stores what the frozen layers give, trains two steps, evaluates, and writes its run folder. Architectures are
those of the published checkpoints; **weights are random and the audio is noise** in the layout of the corpus, so there
are no scores here.

```bash
python -m benchmarks.systems --output docs/results/systems.json --page docs/systems.md
```

| recipe | stage | parameters, M | trained, M | peak memory, GB | seconds per step | GPU hours, estimated |
|---|---|---:|---:|---:|---:|---:|
{table}

- **Peak memory** and **seconds per step** were measured on {results["device"]} in fp32, with batches of {BATCH} (for
  IEMOCAP 30) utterances of {SECONDS:g} s. A step is the second of two, and runs on stored features wherever layers are
  frozen: of a frozen encoder it is the GRU alone. The memory is that of the whole process, including the encoder that
  fills the cache. Utterances of a podcast are 2 to 12 s long: what trains layers of an encoder needs accordingly more.
- **GPU hours are an estimate**, not a measurement, for all stages of a recipe: all its epochs over the paper's training
  split ({TRAIN_UTTERANCES["msp_podcast"]:,} utterances of 5.9 s; for IEMOCAP five folds of
  {TRAIN_HOURS["iemocap"]:.1f} h), with the counted arithmetic at 30 % of the bf16 peak of one H100 (989 TFLOP/s), plus
  {1000 * GPU_STEP:g} ms per step for the GRU, which takes one frame after the other, plus the frozen layers once; the
  30 % and the {1000 * GPU_STEP:g} ms are assumed.
  Validation after each epoch and decoding the audio come on top. Students need their teacher's hours besides.
- {versions_used}.

Figures: [results/systems.json](results/systems.json).
"""


def main(output: Path, page_path: Path, only: list[str]) -> None:
    results: dict[str, Any] = json.loads(output.read_text()) if output.exists() and only else {"recipes": {}}
    results["versions"] = versions()
    results["device"] = f"a CPU with {torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}"
    found = results["recipes"]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        sizes = {"train": 2 * BATCH, "validation": 8, "test": 8}
        ids = write_msp_podcast(place / "msp_podcast", sizes, SECONDS)
        write_transcripts(place / "transcripts.parquet", ids)
        write_iemocap(place / "iemocap", turns=10, seconds=SECONDS)  # 6 speakers train: 2 steps of 30
        for path in recipes():
            name = f"{path.parent.name}/{path.stem}"
            if not only or path.stem in only:
                print(f"\n{name}", flush=True)
                found[name] = run(path, place)
                order = [f"{path.parent.name}/{path.stem}" for path in recipes()]
                results["recipes"] = {name: found[name] for name in order if name in found}
                write_json(output, results)
    for name, of_recipe in results["recipes"].items():
        of_recipe["gpu_hours"] = gpu_hours(name.split("/")[0], of_recipe["epochs"], of_recipe["stages"])
    write_json(output, results)
    page_path.write_text(page(results), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--page", type=Path, default=ROOT / "docs/systems.md")
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME", help="A student needs its teacher, too.")
    parser.add_argument("--measure", metavar="RECIPE", help=argparse.SUPPRESS)
    options, rest = parser.parse_known_args()
    if options.measure:
        measure(options.measure, rest, options.output)
    else:
        main(options.output, options.page, options.only)
