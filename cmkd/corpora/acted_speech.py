"""Acted speech: activation and dominance in the voice, valence only in the words.

This is what the spoken corpora (`spoken-emobank`, `spoken-demo`) share: how levels of activation and dominance become
prosody, how a level becomes a rating, and how many utterances are spoken in parallel and kept on the disk.

An utterance is acted at two levels between -1 and 1, activation a and dominance d, drawn uniformly and independently
of one another, of the words and of the speaker:

| espeak-ng's parameter | value                                        | for a, d = -1 .. 1, without the noise |
|-----------------------|----------------------------------------------|---------------------------------------|
| speaking rate         | 175 x 1.3^a words per minute                 | 135 .. 228                            |
| pitch                 | 50 + 8 a - 20 d, and noise of 3              | 22 .. 78 of 0 .. 100                  |
| pitch range           | 50 + 18 a - 22 d                             | 10 .. 90 of 0 .. 100                  |
| volume                | 50, 1.5 a + 4.5 d decibels and noise of 1 on | 25 .. 100 of 0 .. 200                 |

Activation is a faster, livelier, slightly higher and louder voice; it has the rate to itself. Dominance is a lower,
steadier and louder voice, to be told from the pitch and loudness that each speaker has anyway: it can be heard, but it
is harder. The noise (Gaussian, its standard deviation in the table) is the actor's: in the audio and in no label.

A rating is the middle of the corpus's scale, plus the level times a third of the scale's width, plus Gaussian noise of
the rater with a standard deviation of `label_noise` x that of the noise-free ratings of a uniform level. A rating
beyond an end of the scale becomes that end.

Measured on EmoBank's sentences by ridge regression on the mean and standard deviation over time of the last layer of
whisper-tiny.en (2,500 utterances in training, new voices in test, label noise 0.35): CCC .82 for activation and .47 for
dominance, correlation of a prediction with the other dimension's level below .1.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import queue
import random
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from cmkd.corpora import speech_synthesis
from cmkd.corpora.speech_synthesis import HELD_OUT_VOICES, SAMPLING_RATE, VOICES, Voice, speak
from configuration_cmkd import EMOTION_DIMENSIONS

if TYPE_CHECKING:
    from cmkd.corpora.report import CorpusReport
    from cmkd.corpora.schema import Corpus

SPLIT_VOICES: dict[str, tuple[Voice, ...]] = {
    "train": tuple(voice for voice in VOICES if voice not in HELD_OUT_VOICES),
    "validation": HELD_OUT_VOICES[: len(HELD_OUT_VOICES) // 2],
    "test": HELD_OUT_VOICES[len(HELD_OUT_VOICES) // 2 :],
}
"""The speakers of each split. Those of validation and test are also new to the demo's speech encoder."""

_ROWS_A_BATCH = 64


@dataclass(frozen=True)
class Prosody:
    """The settings of espeak-ng besides the words and the voice, in its own units."""

    rate: int  # words per minute
    pitch: int  # 0 to 100
    pitch_range: int  # 0 to 100
    volume: int  # 0 to 200


@dataclass(frozen=True)
class ActedUtterance:
    """A row of a spoken corpus before it is spoken; the ratings are on the corpus's scale."""

    id: str
    transcript: str
    voice: Voice
    prosody: Prosody
    activation: float
    valence: float
    dominance: float

    def speak(self) -> tuple[bytes, float]:
        """Returns a FLAC file (16 kHz, mono, 16 bits) and its duration in seconds."""
        import soundfile

        waveform = speak(self.transcript, self.voice, **vars(self.prosody))
        file = io.BytesIO()
        soundfile.write(file, waveform, SAMPLING_RATE, format="FLAC", subtype="PCM_16")
        return file.getvalue(), len(waveform) / SAMPLING_RATE


def act(activation: float, dominance: float, rng: random.Random) -> Prosody:
    """Expresses a level of activation and one of dominance in the voice, as in the table above.

    Args:
        activation (`float`): -1 (calm) to 1 (excited).
        dominance (`float`): -1 (submissive) to 1 (in control).
        rng (`random.Random`): The source of the actor's noise.
    """
    decibels = 1.5 * activation + 4.5 * dominance + rng.gauss(0, 1)
    return Prosody(
        rate=round(175 * 1.3**activation),
        pitch=round(50 + 8 * activation - 20 * dominance + rng.gauss(0, 3)),
        pitch_range=round(50 + 18 * activation - 22 * dominance),
        volume=round(50 * 10 ** (decibels / 20)),
    )


def rating(level: float, label_scale: tuple[float, float], label_noise: float, rng: random.Random) -> float:
    """Rates a level as a noisy rater.

    Args:
        level (`float`): -1 to 1.
        label_scale (`tuple[float, float]`): Minimum and maximum of the corpus's scale.
        label_noise (`float`): The rater's noise, in standard deviations of the noise-free ratings.
        rng (`random.Random`): The source of the noise.

    Returns:
        `float`: A rating on the corpus's scale.

    >>> [rating(level, (1, 7), 0.0, random.Random()) for level in (-1, 0, 0.5)]
    [2.0, 4.0, 5.0]
    """
    minimum, maximum = label_scale
    noise = rng.gauss(0, label_noise / 3**0.5)  # 1 / sqrt(3): the standard deviation of a uniform level
    return min(max((minimum + maximum) / 2 + (maximum - minimum) / 3 * (level + noise), minimum), maximum)


def perform(
    id: str,
    transcript: str,
    valence: float,
    split: str,
    *,
    label_scale: tuple[float, float],
    label_noise: float,
    rng: random.Random,
) -> ActedUtterance:
    """Gives a sentence to a speaker: draws the voice, the levels of activation and dominance, and all noise.

    Args:
        id (`str`): The id of the utterance.
        transcript (`str`): The words that are spoken.
        valence (`float`): The rating of the words, on the corpus's scale.
        split (`str`): "train", "validation" or "test".
        label_scale (`tuple[float, float]`): Minimum and maximum of the corpus's scale.
        label_noise (`float`): See `rating`.
        rng (`random.Random`): The source of all that is drawn.
    """
    voice = rng.choice(SPLIT_VOICES[split])
    activation, dominance = rng.uniform(-1, 1), rng.uniform(-1, 1)
    return ActedUtterance(
        id=id,
        transcript=transcript,
        voice=voice,
        prosody=act(activation, dominance, rng),
        activation=rating(activation, label_scale, label_noise, rng),
        valence=valence,
        dominance=rating(dominance, label_scale, label_noise, rng),
    )


def spoken_corpus(splits: Mapping[str, Sequence[ActedUtterance]], report: CorpusReport, num_proc: int) -> Corpus:
    """Speaks a corpus, or takes it from the disk if exactly the same one was spoken before.

    It is kept in the folder `cmkd` of the cache of datasets (`HF_DATASETS_CACHE`), under a key made of all utterances
    with their labels and prosody, and of the code that speaks them. It appears there complete or not at all. Rows are
    read from there as they are needed, so neither speaking nor loading takes memory.

    Args:
        splits (`dict[str, list[ActedUtterance]]`): The utterances by split; a split without any is left out.
        report (`CorpusReport`): The report, which gets the key as its release, and the counts.
        num_proc (`int`): The number of processes that speak. It does not change what is spoken.

    Raises:
        ValueError: `num_proc` is less than 1.
        ImportError: espeak-ng is not installed.
    """
    import datasets

    from cmkd.corpora.schema import Corpus

    if num_proc < 1:
        raise ValueError(f"num_proc is {num_proc}, but must be at least 1.")
    splits = {split: utterances for split, utterances in splits.items() if utterances}
    report.release = _key(splits, report.label_scale)
    cache = Path(datasets.config.HF_DATASETS_CACHE) / "cmkd"
    folder = cache / f"{report.name}-{report.release}"
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=f".{report.name}-") as unfinished:
            spoken = Path(unfinished) / "spoken"
            spoken.mkdir()
            _write(spoken, splits, report, num_proc)
            try:
                spoken.rename(folder)
            except OSError:  # another process was faster
                if not folder.exists():
                    raise
    corpus = Corpus({split: datasets.Dataset.from_file(str(folder / f"{split}.arrow")) for split in splits}, report)
    columns = ["speaker", "duration", *EMOTION_DIMENSIONS]
    report.count({split: list(rows.select_columns(columns)) for split, rows in corpus.items()})
    return corpus


def _key(splits: Mapping[str, Sequence[ActedUtterance]], label_scale: tuple[float, float]) -> str:
    try:
        synthesiser = metadata.version("espeakng-loader")
    except metadata.PackageNotFoundError as error:
        raise ImportError('Synthetic speech needs espeakng_loader: pip install "cmkd[demo]"') from error
    key = hashlib.sha256(repr((synthesiser, label_scale, splits)).encode())
    for module in (__file__, speech_synthesis.__file__):
        key.update(Path(module).read_bytes())
    return key.hexdigest()[:12]


def _write(folder: Path, splits: Mapping[str, Sequence[ActedUtterance]], report: CorpusReport, num_proc: int) -> None:
    """Speaks each split into an Arrow file."""
    import pyarrow
    from datasets.utils import tqdm

    from cmkd.corpora.schema import FEATURES

    schema = FEATURES.arrow_schema
    spoken = speak_utterances([utterance for utterances in splits.values() for utterance in utterances], num_proc)
    total = sum(len(utterances) for utterances in splits.values())
    with tqdm(total=total, desc=f"speaking {report.name}", unit=" utterances", disable=None) as progress:
        for split, utterances in splits.items():
            with pyarrow.ipc.new_stream(str(folder / f"{split}.arrow"), schema) as writer:
                for start in range(0, len(utterances), _ROWS_A_BATCH):
                    batch = utterances[start : start + _ROWS_A_BATCH]
                    rows = [_row(utterance, split, *next(spoken), report.label_scale) for utterance in batch]
                    writer.write_batch(pyarrow.RecordBatch.from_pylist(rows, schema))
                    progress.update(len(rows))


def _row(
    utterance: ActedUtterance, split: str, flac: bytes, duration: float, label_scale: tuple[float, float]
) -> dict[str, Any]:
    return {
        "id": utterance.id,
        "audio": {"bytes": flac, "path": None},
        "transcript": utterance.transcript,
        "activation": utterance.activation,
        "valence": utterance.valence,
        "dominance": utterance.dominance,
        "speaker": utterance.voice.name,
        "gender": utterance.voice.gender,
        "split": split,
        "duration": duration,
        "label_scale": label_scale,
    }


def speak_utterances(utterances: Sequence[ActedUtterance], num_proc: int) -> Iterator[tuple[bytes, float]]:
    """Speaks utterances in `num_proc` processes and yields a FLAC file and its duration for each, in their order.

    The processes are fresh interpreters, neither forks of this one nor runs of its main module, so threads and a GPU
    here do not affect them, and a script needs no `if __name__ == "__main__":`.

    Raises:
        RuntimeError: One of the processes died.
    """
    workers = [_Worker() for _ in range(num_proc)]
    idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    for worker in workers:
        idle.put(worker)

    def speak_one(utterance: ActedUtterance) -> tuple[bytes, float]:
        worker = idle.get()
        try:
            return worker.speak(utterance)
        finally:
            idle.put(worker)

    threads = ThreadPoolExecutor(num_proc)
    try:
        yield from threads.map(speak_one, utterances)
    finally:
        threads.shutdown(cancel_futures=True)
        for worker in workers:
            worker.close()


_ERRORS: dict[str, type[Exception]] = {"ImportError": ImportError, "ValueError": ValueError}
"""The errors of a worker that are raised here with the same type; all others are raised as a RuntimeError."""


_PATIENCE = 120.0
"""Seconds after which a process is ended if it has not spoken an utterance, which takes milliseconds."""


class _Worker:
    """A Python process that speaks the utterances it is sent, a line of JSON each, and answers in such lines."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"from {__name__} import _serve; _serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        self._requests = cast(IO[bytes], self._process.stdin)
        self._replies = cast(IO[bytes], self._process.stdout)

    def speak(self, utterance: ActedUtterance) -> tuple[bytes, float]:
        end = threading.Timer(_PATIENCE, self._process.kill)
        end.start()
        try:
            self._requests.write(json.dumps(asdict(utterance)).encode() + b"\n")
            self._requests.flush()
            line = self._replies.readline()
        except BrokenPipeError:
            line = b""
        finally:
            end.cancel()
        if not line.endswith(b"\n"):
            raise RuntimeError(
                f"A process that speaks ended with exit code {self._process.wait(_PATIENCE)} at utterance "
                f"{utterance.id!r}; its own output is above. (-9: it was killed, as it is after {_PATIENCE:.0f} s "
                "without an answer.)"
            )
        reply = json.loads(line)
        if "error" in reply:
            raise _ERRORS.get(reply["error"], RuntimeError)(reply["message"])
        return base64.b64decode(reply["flac"]), reply["seconds"]

    def close(self) -> None:
        try:
            self._process.communicate(timeout=_PATIENCE)  # closes its input, which ends its loop
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate(timeout=_PATIENCE)


def _serve() -> None:
    """The loop of a worker: utterances come in, what `ActedUtterance.speak` returns or raises goes out."""
    try:
        for line in sys.stdin.buffer:
            fields = json.loads(line)
            fields |= {"voice": Voice(**fields["voice"]), "prosody": Prosody(**fields["prosody"])}
            try:
                flac, seconds = ActedUtterance(**fields).speak()
                reply = {"flac": base64.b64encode(flac).decode(), "seconds": seconds}
            except Exception as error:
                reply = {"error": type(error).__name__, "message": str(error)}
            sys.stdout.buffer.write(json.dumps(reply).encode() + b"\n")
            sys.stdout.buffer.flush()
    except KeyboardInterrupt:
        pass
