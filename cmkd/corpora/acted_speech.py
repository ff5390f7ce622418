"""Acted speech: activation and dominance in the voice, valence only in the words.

The two spoken corpora (`spoken-emobank`, `spoken-demo`) share what is here: how levels of activation and dominance
become prosody, how a level becomes a rating, and how many utterances are spoken in parallel and kept.

An utterance is acted at two levels between -1 and 1, activation a and dominance d, drawn uniformly and independently
of one another, of the words and of the speaker:

| espeak-ng's parameter  | value                            | for a, d = -1 .. 1, without the noise                  |
|------------------------|----------------------------------|--------------------------------------------------------|
| speaking rate          | 175 x 1.3^a words a minute       | 135 .. 228                                             |
| pitch                  | 50 + 12 a - 12 d + noise of 5    | 26 .. 74 of 0 .. 100; 12 units are about 1.6 semitones |
| pitch range            | 50 + 25 a                        | 25 .. 75 of 0 .. 100                                   |
| volume                 | 50, + 3 a + 3 d decibels + noise | 25 .. 100 of 0 .. 200; the noise is of 1 decibel       |

Activation has four cues, and two of them, rate and range, are its own. Dominance has a lower and louder voice only:
against activation, which makes the voice higher and louder, and against the pitch and loudness of the speaker. So the
two can be told apart, but dominance is the harder one. The noise (Gaussian, its standard deviation in the table) is
the actor's: it is in the audio and in no label.

A rating is the middle of the corpus' scale, plus the level times a third of the scale's width, plus Gaussian noise of
the rater with a standard deviation of `label_noise` x that of the noise-free ratings of a uniform level. A rating
beyond an end of the scale becomes that end.
"""

import hashlib
import io
import itertools
import os
import pickle
import queue
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from cmkd.corpora import speech_synthesis
from cmkd.corpora.speech_synthesis import HELD_OUT_VOICES, SAMPLING_RATE, VOICES, Voice, speak

if TYPE_CHECKING:
    from datasets import Dataset

SPLIT_VOICES: dict[str, tuple[Voice, ...]] = {
    "train": tuple(voice for voice in VOICES if voice not in HELD_OUT_VOICES),
    "validation": HELD_OUT_VOICES[: len(HELD_OUT_VOICES) // 2],
    "test": HELD_OUT_VOICES[len(HELD_OUT_VOICES) // 2 :],
}
"""The speakers of each split. Those of validation and test are also new to the demo's speech encoder."""

_ROWS_A_BATCH = 64


@dataclass(frozen=True)
class Prosody:
    """What espeak-ng is told beside the words and the voice, in its own units."""

    rate: int  # words a minute
    pitch: int  # 0 to 100
    pitch_range: int  # 0 to 100
    volume: int  # 0 to 200


@dataclass(frozen=True)
class Utterance:
    """A row of a spoken corpus before it is spoken; the ratings are on the corpus' scale."""

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
    pitch = 50 + 12 * activation - 12 * dominance + rng.gauss(0, 5)
    decibels = 3 * activation + 3 * dominance + rng.gauss(0, 1)
    return Prosody(
        rate=round(175 * 1.3**activation),
        pitch=min(max(round(pitch), 0), 100),
        pitch_range=round(50 + 25 * activation),
        volume=round(50 * 10 ** (decibels / 20)),
    )


def rating(level: float, label_scale: tuple[float, float], label_noise: float, rng: random.Random) -> float:
    """Rates a level as a noisy rater.

    Args:
        level (`float`): -1 to 1.
        label_scale (`tuple[float, float]`): Minimum and maximum of the corpus' scale.
        label_noise (`float`): The rater's noise, in standard deviations of the noise-free ratings.
        rng (`random.Random`): The source of the noise.

    Returns:
        `float`: A rating on the corpus' scale.

    >>> [rating(level, (1, 7), 0.0, random.Random()) for level in (-1, 0, 0.5)]
    [2.0, 4.0, 5.0]
    """
    minimum, maximum = label_scale
    noise = rng.gauss(0, label_noise / 3**0.5)  # 1 / sqrt(3): the standard deviation of a uniform level
    return min(max((minimum + maximum) / 2 + (maximum - minimum) / 3 * (level + noise), minimum), maximum)


def spoken_splits(
    name: str, splits: Mapping[str, Sequence[Utterance]], label_scale: tuple[float, float], num_proc: int
) -> dict[str, "Dataset"]:
    """Speaks a corpus, or takes it from the disk if the very same one was spoken before.

    It is kept in the folder `cmkd` of the cache of datasets (`HF_DATASETS_CACHE`), under a key made of all utterances
    with their labels and prosody and of the code that speaks them; it appears there complete or not at all. The rows
    are read from that file as they are needed, so neither speaking nor loading takes memory.

    Args:
        name (`str`): The name of the corpus.
        splits (`dict[str, list[Utterance]]`): The utterances by split; a split without any is left out.
        label_scale (`tuple[float, float]`): Minimum and maximum of the scale of all ratings.
        num_proc (`int`): The number of processes that speak. It has no influence on what is spoken.

    Returns:
        `dict[str, Dataset]`: The splits, with the columns of `cmkd.corpora.schema.FEATURES`.

    Raises:
        ImportError: espeak-ng is not installed.
    """
    import datasets

    if num_proc < 1:
        raise ValueError(f"num_proc is {num_proc}, but must be at least 1.")
    splits = {split: utterances for split, utterances in splits.items() if utterances}
    cache = Path(datasets.config.HF_DATASETS_CACHE) / "cmkd"
    folder = cache / f"{name}-{_key(splits, label_scale)}"
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=f".{name}-") as unfinished:
            spoken = Path(unfinished) / "spoken"
            spoken.mkdir()
            _write(spoken, name, splits, label_scale, num_proc)
            try:
                spoken.rename(folder)
            except OSError:  # another process was faster
                if not folder.exists():
                    raise
    return {split: datasets.Dataset.from_file(str(folder / f"{split}.arrow")) for split in splits}


def _key(splits: Mapping[str, Sequence[Utterance]], label_scale: tuple[float, float]) -> str:
    try:
        version = metadata.version("espeakng-loader")
    except metadata.PackageNotFoundError as error:
        raise ImportError('Synthetic speech needs espeakng_loader: pip install "cmkd[demo]"') from error
    key = hashlib.sha256(repr((version, label_scale, splits)).encode())
    for module in (__file__, speech_synthesis.__file__):
        key.update(Path(module).read_bytes())
    return key.hexdigest()[:16]


def _write(
    folder: Path,
    name: str,
    splits: Mapping[str, Sequence[Utterance]],
    label_scale: tuple[float, float],
    num_proc: int,
) -> None:
    """Writes one Arrow file a split."""
    import pyarrow
    from datasets.utils import tqdm

    from cmkd.corpora.schema import FEATURES

    schema = FEATURES.arrow_schema
    audio = speak_utterances([utterance for utterances in splits.values() for utterance in utterances], num_proc)
    with tqdm(total=sum(map(len, splits.values())), desc=f"Speaking {name}", unit=" utterances") as progress:
        for split, utterances in splits.items():
            with pyarrow.ipc.new_stream(str(folder / f"{split}.arrow"), schema) as writer:
                for start in range(0, len(utterances), _ROWS_A_BATCH):
                    rows = [
                        {
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
                        for utterance, (flac, duration) in zip(
                            utterances[start : start + _ROWS_A_BATCH], audio, strict=False
                        )
                    ]
                    writer.write_batch(pyarrow.RecordBatch.from_pylist(rows, schema))
                    progress.update(len(rows))


def speak_utterances(utterances: Sequence[Utterance], num_proc: int) -> Iterator[tuple[bytes, float]]:
    """Speaks utterances in `num_proc` processes and yields a FLAC file and its seconds for each, in their order.

    The processes are fresh interpreters, neither forks of this one nor runs of its main module: threads and a GPU here
    do not trouble them, and a script needs no `if __name__ == "__main__":`.

    Raises:
        RuntimeError: One of the processes died.
    """
    workers = [_Worker() for _ in range(num_proc)]
    idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    for worker in workers:
        idle.put(worker)

    def speak_one(utterance: Utterance) -> tuple[bytes, float]:
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


class _Worker:
    """A Python process that speaks the utterances it is sent."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"from {__name__} import _serve; _serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )

    def speak(self, utterance: Utterance) -> tuple[bytes, float]:
        try:
            pickle.dump(utterance, self._process.stdin)
            self._process.stdin.flush()
            reply = pickle.load(self._process.stdout)
        except (EOFError, BrokenPipeError):
            raise RuntimeError(
                f"A process that speaks ended with exit code {self._process.wait()} at utterance {utterance.id!r}; "
                "its own message is above."
            ) from None
        if isinstance(reply, Exception):
            raise reply
        return reply

    def close(self) -> None:
        self._process.communicate()  # closes its input, and with that its loop ends


def _serve() -> None:
    """The loop of a worker: utterances come in, what `Utterance.speak` returns or raises goes out."""
    while True:
        try:
            utterance = pickle.load(sys.stdin.buffer)
        except (EOFError, KeyboardInterrupt):
            return
        try:
            reply = utterance.speak()
        except Exception as error:
            reply = error
        pickle.dump(reply, sys.stdout.buffer)
        sys.stdout.buffer.flush()
