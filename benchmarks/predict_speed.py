"""Scoring many files: `cmkd predict`, the stock pipeline, and ONNX Runtime fed one file at a time, side by side.

    python -m benchmarks.predict_speed --models small --files 1000 --output docs/results/predict_speed.json
    python -m benchmarks.predict_speed --models hubert_base --files 12 --long 0 --output docs/results/predict_speed.json
    python -m benchmarks.predict_speed --models hubert_base --device cuda --dtype bfloat16 --output gpu.json

The files are cut from the speech that `--speech` names, or made of noise: durations as of podcasts (2 to 12 s, 5.9 on
average) and one of 10 minutes for every 250 of them, by turns mp3 of 44.1 kHz and wav of 8 kHz, as calls are. Small is
a student on the demo's encoder, HuBERT Base has random weights: speed does not depend on them.

Systems, each in a process of its own, which has scored some of the files before it is timed:

- `torch`, `torch_bf16`, `onnx`, `onnx_int8`: all of `cmkd predict`, from loading the model, which is also given by
  itself, to the written tables, with `--runtime` and `--dtype` accordingly.
- `stock`: the `audio-classification` pipeline of transformers with the batch size, of 1, 4 and 8 (on a GPU 8 and 32),
  that took least for some of the files. Files are read and cut as ours are; loading the model is not counted.
- `stock_onnx`: ONNX Runtime with its own threads, one file after the other, a window of a long file at a time, as
  audonnx feeds it; the graph is that of the stock encoder, without any mask. Loading the model is not counted.

Rounds alternate between the systems. A number is the median over the rounds. The share of the peak is the arithmetic
that torch's FlopCounterMode counts in windows of these lengths, by the time and by what a matrix product of 4096 x 4096
reaches in the same run in that number format (int8: in fp32). On a machine that does other things too, compare
`cpu_seconds`, processor time, with OMP_NUM_THREADS=1; what is measured so has an entry of its own. Memory is the most
that a process and those that it started take together, asked ten times a second. `network` is the same windows in
memory, scored without any reading.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
import torch
from transformers import AutoFeatureExtractor

from audio_cmkd import open_sound
from benchmarks.inference import ROOT, save_student
from benchmarks.processor import processor
from benchmarks.train_speed import matrix_product_peak
from cmkd.atomic import written_whole
from cmkd.cpus import usable_cpus
from cmkd.json_files import read_json, write_json
from cmkd.predict.engines import ModelChoice, load_engine
from cmkd.predict.pieces import batches
from cmkd.predict.prediction import predict
from configuration_cmkd import EMOTION_DIMENSIONS
from modeling_cmkd import CMKDStudentModel
from windows_cmkd import cutting, windows_of_sound

RATE = 16000
LONG_SECONDS = 600.0
FILES_FOR_EACH_LONG_ONE = 250
TRIED_BATCH_SIZES = {"cpu": (1, 4, 8), "cuda": (8, 32)}
OURS: dict[str, dict[str, str]] = {
    "torch": {},
    "torch_bf16": {"dtype": "bfloat16"},
    "onnx": {"runtime": "onnx"},
    "onnx_int8": {"runtime": "onnx", "dtype": "int8"},
}
SYSTEMS = (*OURS, "stock", "stock_onnx")


def write_files(folder: Path, count: int, long: int, speech: Path | None) -> list[float]:
    """Makes the files that are not there, and returns how many seconds each of them has."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    seconds = np.clip(generator.gamma(5, 5.9 / 5, size=count), 2, 12).tolist() + [LONG_SECONDS] * long
    sources = sorted(speech.glob("*.flac")) if speech is not None else []
    talk = np.concatenate([soundfile.read(path, dtype="float32")[0] for path in sources] or [_noise(generator)])
    writing = []
    with ProcessPoolExecutor() as processes:
        for number, length in enumerate(seconds):
            rate, name = ((44100, f"{number:05d}.mp3"), (8000, f"{number:05d}.wav"))[number % 2]
            start = int(generator.integers(len(talk)))
            if not (folder / name).exists():
                wave = np.resize(np.roll(talk, -start), round(length * RATE))  # over again where the talk ends
                writing.append(processes.submit(_write_file, folder / name, wave, rate))
        for future in writing:
            future.result()
    return seconds


def _write_file(path: Path, wave: np.ndarray, rate: int) -> None:
    with written_whole(path) as unfinished:
        soundfile.write(unfinished, soxr.resample(wave, RATE, rate), rate, format=path.suffix.removeprefix(".").upper())


def _noise(generator: np.random.Generator) -> np.ndarray:
    return 0.1 * generator.standard_normal(60 * RATE, dtype=np.float32)


def read_windows(files: Sequence[Path]) -> Iterator[tuple[int, np.ndarray]]:
    """The windows of all files, each with the number of its file, read one after the other."""
    cut = cutting(RATE)
    for number, path in enumerate(files):
        with open_sound(str(path), str(path)) as sound:
            for _, samples in windows_of_sound(sound, cut, lambda message: None):
                yield number, samples


# ---------------------------------------------------------------------------------------------------------------------
# the process of one system: it is told when to begin by a line, and answers with one


def serve(system: str, folder: Path, options: dict[str, Any]) -> None:
    """Makes the system ready, then scores all files once for each line on standard input."""
    files = sorted((folder / "files").iterdir())
    run = ours(system, folder, options) if system in OURS else PEERS[system](folder, options)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        chosen = files[: int(line)] if int(line) else files
        begun, processor_time = time.perf_counter(), _processor_seconds()
        scores, about = run(chosen)
        seconds = time.perf_counter() - begun
        about |= {"seconds": seconds, "cpu_seconds": _processor_seconds() - processor_time}
        print(json.dumps(about | {"scores": scores, "peak_memory_gb": _PEAK.gigabytes}), flush=True)


def _processor_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


class _Peak(threading.Thread):
    """Watches how much memory this process and those that it started take together, ten times a second. Linux."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.gigabytes = 0.0

    def run(self) -> None:
        while True:
            processes = [os.getpid(), *_children(os.getpid())]
            self.gigabytes = max(self.gigabytes, sum(map(_resident, processes)) / 1e9)
            time.sleep(0.1)


def _children(process: int) -> list[int]:
    try:
        return [
            int(child)
            for path in Path(f"/proc/{process}/task").glob("*/children")
            for child in path.read_text().split()
        ]
    except OSError:
        return []


def _resident(process: int) -> int:
    try:
        return 1024 * int(Path(f"/proc/{process}/status").read_text().split("VmRSS:")[1].split()[0])
    except (OSError, IndexError):  # it has ended
        return 0


_PEAK = _Peak()


def ours(system: str, folder: Path, options: dict[str, Any]) -> Callable:
    settings: dict[str, Any] = OURS[system] | {"batch_seconds": options["batch_seconds"], "readers": options["readers"]}
    if options["device"] != "cpu":
        settings |= {"device": options["device"], "dtype": options["dtype"]}
    elif system.startswith("torch"):
        settings |= {"device": "cpu"}

    def run(files: Sequence[Path]) -> tuple[list[float], dict[str, Any]]:
        import pyarrow.parquet

        with tempfile.TemporaryDirectory() as output:
            done = predict(
                [str(path) for path in files],
                model=str(folder / "model"),
                output=Path(output, "scores"),
                summary=False,
                progress=False,
                **settings,
            )
            if done.errors:
                raise RuntimeError(f"{done.errors} files could not be scored")
            table = pyarrow.parquet.read_table(done.output / "scores").sort_by("source")
            return table[EMOTION_DIMENSIONS[1]].to_pylist(), loading

    if settings.get("runtime") == "onnx":  # is exported once, in another process, whose memory does not count
        command = [sys.executable, "-c", EXPORT, str(folder / "model"), settings.get("dtype", "float32")]
        subprocess.run(command, check=True, stdout=sys.stderr)
    names = ("dtype", "device", "runtime")
    choice = ModelChoice(str(folder / "model"), **{name: settings[name] for name in names if name in settings})
    taken = []
    for _ in range(2):  # the first finds the files on the disk
        begun = time.perf_counter()
        load_engine(choice)
        taken.append(time.perf_counter() - begun)
    loading = {"loading_seconds": taken[-1]}
    return run


def stock(folder: Path, options: dict[str, Any]) -> Callable:
    from transformers import pipeline

    score = pipeline(
        "audio-classification",
        model=str(folder / "model"),
        trust_remote_code=True,
        device=options["device"],
        dtype=getattr(torch, options["dtype"]),
    )
    best: dict[str, int] = {}

    def scores_of(files: Sequence[Path], batch_size: int) -> list[float]:
        numbers: list[int] = []

        def waves() -> Iterator[dict[str, Any]]:
            for number, samples in read_windows(files):
                numbers.append(number)
                yield {"array": samples, "sampling_rate": RATE}

        name = EMOTION_DIMENSIONS[1]
        answers = score(waves(), function_to_apply="none", batch_size=batch_size)
        values = [next(entry["score"] for entry in answer if entry["label"] == name) for answer in answers]
        return _means(numbers, values)

    def run(files: Sequence[Path]) -> tuple[list[float], dict[str, Any]]:
        if "size" not in best:
            begun = {}
            for size in TRIED_BATCH_SIZES[torch.device(options["device"]).type]:
                start = time.perf_counter()
                scores_of(files[:12], size)
                begun[size] = time.perf_counter() - start
            best["size"] = min(begun, key=lambda size: begun[size])
        return scores_of(files, best["size"]), {"batch_size": best["size"]}

    return run


def stock_onnx(folder: Path, options: dict[str, Any]) -> Callable:
    import onnxruntime

    path = folder / "stock.onnx"
    if not path.exists():
        export_stock(folder / "model", path)
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    if limit := os.environ.get("OMP_NUM_THREADS"):
        settings.intra_op_num_threads = int(limit)
    session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])

    def run(files: Sequence[Path]) -> tuple[list[float], dict[str, Any]]:
        numbers, values = [], []
        for number, samples in read_windows(files):
            numbers.append(number)
            values.append(float(session.run(["scores"], {"waveform": samples[None]})[0][0, 1]))
        return _means(numbers, values), {}

    return run


EXPORT = """
import sys
from cmkd.predict.engines import ModelChoice, load_engine

load_engine(ModelChoice(sys.argv[1], dtype=sys.argv[2], runtime="onnx"))
"""

PEERS: dict[str, Callable] = {"stock": stock, "stock_onnx": stock_onnx}


def _means(numbers: Sequence[int], values: Sequence[float]) -> list[float]:
    """The mean of the windows of each file; of a file of 10 minutes all are equally long."""
    rows: list[list[float]] = [[] for _ in range(max(numbers) + 1)]
    for number, value in zip(numbers, values, strict=True):
        rows[number].append(value)
    return [float(np.mean(row)) for row in rows]


class Stock(torch.nn.Module):
    """A student from the stock encoder on, without any mask: for one utterance, all of which is real."""

    def __init__(self, model: CMKDStudentModel, do_normalize: bool):
        super().__init__()
        self.encoder, self.model, self.do_normalize = model.speech_encoder.encoder, model, do_normalize

    def forward(self, waveform: torch.Tensor) -> torch.Tensor:
        if self.do_normalize:
            waveform = (waveform - waveform.mean()) / torch.sqrt(waveform.var(correction=0) + 1e-7)
        hidden = self.encoder(waveform).last_hidden_state
        summary = self.model.speech_summarizer.gru(hidden)[0][:, -1]
        return self.model._predict([summary]).logits


def export_stock(model: Path, path: Path) -> None:
    student = CMKDStudentModel.from_pretrained(model, attn_implementation="eager").eval()
    torch.onnx.export(
        Stock(student, AutoFeatureExtractor.from_pretrained(model).do_normalize).eval(),
        (torch.randn(1, 2 * RATE),),
        path,
        dynamo=False,
        opset_version=17,
        input_names=["waveform"],
        output_names=["scores"],
        dynamic_axes={"waveform": {1: "samples"}},
    )


# ---------------------------------------------------------------------------------------------------------------------
# the process that measures


class System:
    """A process that scores when it is told to."""

    def __init__(self, name: str, folder: Path, options: dict[str, Any]):
        self.name = name
        command = [sys.executable, "-m", "benchmarks.predict_speed", "--serve", name, str(folder), json.dumps(options)]
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | {"HF_HOME": str(folder / "home")},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._answer()

    def run(self, files: int) -> dict[str, Any]:
        """Scores so many of the files; 0 is all."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{files}\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise RuntimeError(f"{self.name} ended with status {self._process.wait()}")

    def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def flops_a_second(model: CMKDStudentModel, device: str, dtype: torch.dtype) -> float:
    """Of arithmetic, for a second of sound in windows of 6 s."""
    from torch.utils.flop_counter import FlopCounterMode

    wave = torch.randn(1, 6 * RATE, device=device, dtype=dtype)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model.to(device, dtype)(input_values=wave)
    return counter.get_total_flops() / 6


def network_alone(folder: Path, options: dict[str, Any], rounds: int) -> float:
    """Seconds for the windows of all files, which are in memory, in batches as `cmkd predict` makes them."""
    engine = load_engine(ModelChoice(str(folder / "model"), dtype=options["dtype"], device=options["device"]))
    waves = [samples for _, samples in read_windows(sorted((folder / "files").iterdir()))]
    most = engine.batch_seconds if options["batch_seconds"] is None else options["batch_seconds"]
    chosen = batches([len(wave) for wave in waves], most * RATE)
    taken = []
    for _ in range(rounds + 1):  # the first warms up
        begun = time.perf_counter()
        for batch in chosen:
            engine.run([waves[index] for index in batch])
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken[1:])


def compare(name: str, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All systems on one model."""
    long = max(1, arguments.files // FILES_FOR_EACH_LONG_ONE) if arguments.long is None else arguments.long
    durations = write_files(folder / "files", arguments.files, long, arguments.speech)
    audio = sum(durations)
    save_student("demo" if name == "small" else name, folder / "model")
    options = {
        "device": arguments.device,
        "dtype": arguments.dtype,
        "batch_seconds": arguments.batch_seconds,
        "readers": arguments.readers,
    }
    found: dict[str, Any] = {
        "files": len(durations),
        "hours": audio / 3600,
        "long_files": long,
        "sound": "noise" if arguments.speech is None else "LibriSpeech, repeated",
        "rounds": arguments.rounds,
        "environment": environment(arguments.device),
    }
    model = CMKDStudentModel.from_pretrained(folder / "model").eval()
    device = torch.device(arguments.device)
    peaks: dict[str, list[float]] = {"float32": [], "bfloat16": [], "float16": []}
    flops = flops_a_second(model, arguments.device, getattr(torch, arguments.dtype))
    found["gflop_per_second_of_sound"] = flops / 1e9
    del model
    runs: dict[str, list[dict[str, Any]]] = {system: [] for system in arguments.systems}
    systems = []
    try:
        for system in arguments.systems:
            systems.append(System(system, folder, options))
            systems[-1].run(min(arguments.files, 12))  # warms up, finds the best batch size
        for number in range(arguments.rounds):
            for system in systems[::-1] if number % 2 else systems:
                runs[system.name].append(system.run(0))
                print(f"{name}: {system.name} {runs[system.name][-1]['seconds']:.1f} s", flush=True)
            for dtype in {"float32", arguments.dtype} | ({"bfloat16"} if "torch_bf16" in arguments.systems else set()):
                peaks[dtype].append(matrix_product_peak(device, getattr(torch, dtype)))
    finally:
        for system in systems:
            system.end()
    found["peak_gflops"] = {dtype: max(values) / 1e9 for dtype, values in peaks.items() if values}
    reference = np.array(runs[arguments.systems[0]][0]["scores"])
    found["systems"] = {}
    for system, answers in runs.items():
        seconds = statistics.median(answer["seconds"] for answer in answers)
        dtype = OURS.get(system, {}).get("dtype", arguments.dtype)
        peak = found["peak_gflops"].get(dtype, found["peak_gflops"]["float32"])
        found["systems"][system] = {
            "seconds": [round(answer["seconds"], 2) for answer in answers],
            "cpu_seconds": [round(answer["cpu_seconds"], 2) for answer in answers],
            "files_per_second": len(durations) / seconds,
            "real_time_factor": seconds / audio,
            "share_of_peak": flops * audio / seconds / 1e9 / peak,
            "peak_memory_gb": max(answer["peak_memory_gb"] for answer in answers),
            "largest_difference_of_a_score": float(np.abs(np.array(answers[0]["scores"]) - reference).max()),
        } | {key: answers[0][key] for key in ("batch_size", "loading_seconds") if key in answers[0]}
    if arguments.network:
        seconds = network_alone(folder, options, arguments.rounds)
        found["network"] = {
            "seconds": seconds,
            "real_time_factor": seconds / audio,
            "share_of_peak": flops * audio / seconds / 1e9 / found["peak_gflops"][arguments.dtype],
        }
    return found


def environment(device: str) -> dict[str, Any]:
    """What the numbers depend on: the processor's instructions, the threads, the versions."""
    packages = ["torch", "transformers", *(["onnxruntime"] if device == "cpu" else [])]
    return {
        "processor": processor() if device == "cpu" else torch.cuda.get_device_name(),
        "python": platform.python_version(),
        "cpus": usable_cpus(),
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in packages},
    }


def main() -> None:
    if sys.argv[1:2] == ["--serve"]:
        _PEAK.start()
        serve(sys.argv[2], Path(sys.argv[3]), json.loads(sys.argv[4]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=["small", "hubert_base"], default=["small", "hubert_base"])
    parser.add_argument("--files", type=int, default=1000, help="besides those of 10 minutes")
    parser.add_argument("--long", type=int, help="files of 10 minutes; without it one for every 250, and one at least")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, help="without it all, on a GPU torch and stock")
    parser.add_argument("--speech", type=Path, help="a folder of .flac files that the sound is cut from")
    parser.add_argument("--device", default="cpu", help="as torch calls it")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32", help="on a GPU")
    parser.add_argument("--batch-seconds", type=float, help="as of cmkd predict")
    parser.add_argument("--readers", type=int, help="as of cmkd predict")
    parser.add_argument("--network", action="store_true", help="also measure the network alone, as always on a GPU")
    parser.add_argument("--folder", type=Path, help="keeps the files and the graphs, for another call with as many")
    parser.add_argument("--output", type=Path, required=True, help="a JSON file; other models and systems in it stay")
    arguments = parser.parse_args()
    if arguments.device == "cpu":
        arguments.systems = arguments.systems or list(SYSTEMS)
        if arguments.dtype != "float32":
            parser.error("--dtype is for --device cuda: on a CPU the systems name their number formats")
    else:
        arguments.systems, arguments.network = arguments.systems or ["torch", "stock"], True
    report = read_json(arguments.output, "remove it.") if arguments.output.exists() else {}
    for name in arguments.models:
        with tempfile.TemporaryDirectory() as folder:
            own = Path(folder) if arguments.folder is None else arguments.folder / f"{name}_{arguments.files}"
            found = compare(name, arguments, own)
        limit = os.environ.get("OMP_NUM_THREADS")
        key = name if limit in (None, str(usable_cpus())) else f"{name}, OMP_NUM_THREADS={limit}"
        before = report.get(key, {})
        report[key] = before | found | {"systems": before.get("systems", {}) | found["systems"]}
        print(json.dumps({key: report[key]}, indent=2), flush=True)
        write_json(arguments.output, report)


if __name__ == "__main__":
    main()
