"""Students, sounds and output folders for the tests of `cmkd predict`."""

import os
import signal
import subprocess
from pathlib import Path

import numpy as np
import pyarrow.parquet
import soundfile
from small_models import SMALL, WHISPER, student, whisper_extractor
from transformers import HubertConfig, Wav2Vec2FeatureExtractor

from cmkd.predict.prediction import Prediction, predict

RATE = 16000
ROOT = Path(__file__).parents[1]


def save_student(folder: Path, kind: str = "hubert", **config) -> Path:
    """A student, random but always the same, whose scores depend on what it hears."""
    is_whisper = kind == "whisper"
    student(WHISPER if is_whisper else HubertConfig(**SMALL), label_scale=(1, 7), **config).save_pretrained(folder)
    extractor = whisper_extractor() if is_whisper else Wav2Vec2FeatureExtractor(return_attention_mask=True)
    extractor.save_pretrained(folder)
    return folder


def sound(seconds: float, seed: int = 0, rate: int = RATE, channels: int = 1) -> np.ndarray:
    """Noise (samples, channels)."""
    return (0.1 * np.random.default_rng(seed).normal(size=(round(seconds * rate), channels))).astype(np.float32)


def write(path: Path, seconds: float, seed: int = 0, rate: int = RATE, channels: int = 1, **settings) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, sound(seconds, seed, rate, channels), rate, **settings)
    return path


def run(sources, model, output, **options) -> Prediction:
    """`predict` in this process, files read in turn, and without a page."""
    options = {"summary": False, "progress": False} | ({} if "engine" in options else {"readers": 0}) | options
    return predict([str(source) for source in sources], model=str(model), output=output, **options)


def rows(output: Path, table: str = "scores") -> list[dict]:
    """All rows of a table, in their order."""
    if table == "errors":
        path = output / "errors.parquet"
        return pyarrow.parquet.read_table(path).to_pylist() if path.exists() else []
    return [
        row
        for path in sorted((output / table).glob("*.parquet"))
        for row in pyarrow.parquet.read_table(path).to_pylist()
    ]


def start(python: str, *arguments, **settings) -> subprocess.Popen:
    """`predict_worker.py` in its own process; settings are of modules, as in `**{"pieces.PIECE_SECONDS": 20.0}`.

    Or they are trouble, as in `killed="3:0.02"`.
    """
    command = [python, str(ROOT / "tests/predict_worker.py")]
    command += [f"{name}={value}" for name, value in settings.items()]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    return subprocess.Popen(
        [*command, "--", *map(str, arguments)],
        env=environment | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # what a shell starts with & ignores it
    )


def ended(process: subprocess.Popen, status: int = 0, timeout: float = 900) -> str:
    """What a process has printed, once it has ended as it should."""
    output, _ = process.communicate(timeout=timeout)
    assert process.returncode == status, output
    return output
