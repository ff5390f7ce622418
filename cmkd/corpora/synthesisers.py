"""Synthesisers of English speech behind one interface, `Synthesiser`: who can speak, under which licence, and how.

| name | voices | speaks | licence | comes with |
|---|---|---|---|---|
| `espeak` | 32, split 24 / 4 / 4 | 150 sentences per second | GPL-3.0 | `cmkd[demo]` |
| `kokoro` | 28, split 20 / 4 / 4 | a second of speech in .65 s of a core | Apache-2.0 | `cmkd[kokoro]`, and its files |
| `flite` | 4, for training only | a second of speech in some .02 s | BSD-like | the program `flite`, as Debian has it |

How well a recogniser understands them is in docs/results/spoken_emobank_wer.json.

A voice of `split_voices` speaks in that split only. All here are deterministic: the same text, voice and `digest` give
the same samples.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cmkd.corpora import speech_synthesis
from cmkd.corpora.acted_speech import SPLIT_VOICES
from cmkd.corpora.speech_synthesis import Voice
from cmkd.spelling import did_you_mean


class Synthesiser(Protocol):
    """What a synthesiser has to have.

    Attributes:
        name (`str`): Its name in `SYNTHESISERS`.
        licence (`str`): What it is and the licence that it is under, in a few words.
        digest (`str`): Stands for the version of program and files; what is spoken is kept under it.
        split_voices (`dict[str, tuple[Voice, ...]]`): Its voices by split, each in one only.
    """

    name: str
    licence: str
    digest: str
    split_voices: Mapping[str, tuple[Voice, ...]]

    def speak(self, text: str, voice: Voice) -> tuple[np.ndarray, int]:
        """Speaks a text in the voice's own manner: samples (n,), float32 in [-1, 1], and their number per second.

        Raises:
            ValueError: the text has nothing to speak.
            ImportError: the synthesiser is not installed.
        """
        ...


class Espeak:
    """espeak-ng, see [`cmkd.corpora.speech_synthesis`]."""

    name = "espeak"
    licence = "espeak-ng, GPL-3.0"
    split_voices: Mapping[str, tuple[Voice, ...]] = SPLIT_VOICES

    def __init__(self) -> None:
        self.digest = _version("espeakng-loader", "demo")

    def speak(self, text: str, voice: Voice) -> tuple[np.ndarray, int]:
        return speech_synthesis.speak(text, voice), speech_synthesis.SAMPLING_RATE


KOKORO_VOICES: tuple[Voice, ...] = tuple(
    Voice(name, "female" if name[1] == "f" else "male")
    for name in (
        *("af_alloy", "af_aoede", "af_bella", "af_heart", "af_jessica", "af_kore", "af_nicole", "af_nova", "af_river"),
        *("af_sarah", "af_sky", "am_adam", "am_echo", "am_eric", "am_fenrir", "am_liam", "am_michael", "am_onyx"),
        *("am_puck", "am_santa", "bf_alice", "bf_emma", "bf_isabella", "bf_lily", "bm_daniel", "bm_fable"),
        *("bm_george", "bm_lewis"),
    )
)
"""Kokoro's English voices: American (a) and British (b), female (f) and male (m)."""

KOKORO_VALIDATION = ("af_sarah", "am_fenrir", "bf_isabella", "bm_fable")
KOKORO_TEST = ("af_bella", "am_michael", "bf_emma", "bm_george")
"""One of each accent and sex is held out for validation, and one for test."""

KOKORO_REPOSITORY = "onnx-community/Kokoro-82M-v1.0-ONNX"
_KOKORO_ON_HUB = ("onnx/model_quantized.onnx", "voices/[ab][fm]_*.bin")
_STYLE = (510, 1, 256)  # one style for each length in phonemes


class Kokoro:
    """Kokoro-82M, a neural synthesiser, through kokoro-onnx.

    Args:
        models_dir (path, *optional*): A folder with `kokoro-v1.0*.onnx` and `voices-v1.0.bin`, as kokoro-onnx has them,
            or a copy of the repository `KOKORO_REPOSITORY`. By default that is taken from the Hub.

    Raises:
        FileNotFoundError: The folder is not like that.
        ValueError: It has several models.
    """

    name = "kokoro"
    licence = "Kokoro-82M, Apache-2.0"
    split_voices: Mapping[str, tuple[Voice, ...]] = {
        "train": tuple(voice for voice in KOKORO_VOICES if voice.name not in KOKORO_VALIDATION + KOKORO_TEST),
        "validation": tuple(voice for voice in KOKORO_VOICES if voice.name in KOKORO_VALIDATION),
        "test": tuple(voice for voice in KOKORO_VOICES if voice.name in KOKORO_TEST),
    }

    def __init__(self, models_dir: str | os.PathLike[str] | None = None):
        folder = _kokoro_from_hub() if models_dir is None else Path(models_dir)
        self._model = _only_model(folder)
        self._styles: dict[str, Any] = _kokoro_styles(folder)
        parts = [hashlib.sha256(self._model.read_bytes()).hexdigest()]
        parts += [
            hashlib.sha256(self._styles[voice.name].astype("<f4").tobytes()).hexdigest() for voice in KOKORO_VOICES
        ]
        self.digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
        self._kokoro: Any = None

    def speak(self, text: str, voice: Voice) -> tuple[np.ndarray, int]:
        spoken = "".join(" " if unicodedata.category(character).startswith("C") else character for character in text)
        if not any(character.isalnum() for character in spoken):
            raise ValueError(f"text={text!r} has nothing to speak: give it at least one letter or digit.")
        if self._kokoro is None:
            self._kokoro = self._load()
        language = "en-gb" if voice.name.startswith("b") else "en-us"
        samples, sampling_rate = self._kokoro.create(spoken, self._styles[voice.name], speed=1.0, lang=language)
        return np.clip(samples, -1, 1).astype(np.float32), sampling_rate

    def _load(self) -> Any:
        try:
            import kokoro_onnx
            import onnxruntime
        except ImportError as error:
            raise ImportError('The voices of Kokoro need kokoro-onnx: pip install "cmkd[kokoro]"') from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # there is a process for each core
        session = onnxruntime.InferenceSession(str(self._model), options, providers=["CPUExecutionProvider"])
        with tempfile.TemporaryDirectory(prefix="cmkd-") as folder:  # it loads the styles from a file
            voices = Path(folder, "voices.npz")
            np.savez(voices, **self._styles)
            return kokoro_onnx.Kokoro.from_session(session, str(voices))


FLITE_VOICES = (
    Voice("slt", "female"),
    Voice("rms", "male"),
    Voice("awb", "male"),
    Voice("kal16", "male"),
)


class Flite:
    """flite, a small and fast synthesiser, as a program that is on the path.

    Raises:
        ImportError: There is no such program.
    """

    name = "flite"
    licence = "flite, under a licence like BSD's"
    split_voices: Mapping[str, tuple[Voice, ...]] = {"train": FLITE_VOICES}

    def __init__(self) -> None:
        program = shutil.which("flite")
        if program is None:
            raise ImportError("The voices of flite need the program flite: apt install flite, or brew install flite.")
        self._program = program
        about = subprocess.run(
            [program, "--version"], capture_output=True, text=True, check=False, timeout=_FLITE_TIMEOUT
        ).stdout
        self.digest = hashlib.sha256(about.encode()).hexdigest()[:16]

    def speak(self, text: str, voice: Voice) -> tuple[np.ndarray, int]:
        import soundfile

        if not any(character.isalnum() for character in text):
            raise ValueError(f"text={text!r} has nothing to speak: give it at least one letter or digit.")
        with tempfile.TemporaryDirectory(prefix="cmkd-") as folder:
            words, sound = Path(folder, "words.txt"), Path(folder, "sound.wav")
            words.write_text(text, encoding="utf-8")
            command = [self._program, "-voice", voice.name, "-f", str(words), "-o", str(sound)]
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_FLITE_TIMEOUT)
            if done.returncode or not sound.is_file():
                raise RuntimeError(f"flite ended with exit code {done.returncode} at {text!r}: {done.stderr.strip()}")
            samples, sampling_rate = soundfile.read(sound, dtype="float32")
        return samples, sampling_rate


_FLITE_TIMEOUT = 60  # seconds, of which it takes some hundredths

SYNTHESISERS = ("espeak", "kokoro", "flite")
"""The names of the synthesisers."""


def make_synthesiser(name: str, models_dir: str | os.PathLike[str] | None = None) -> Synthesiser:
    """A synthesiser by its name.

    Args:
        name (`str`): One of `SYNTHESISERS`.
        models_dir (path, *optional*): The folder of Kokoro's files; the others have none.

    Raises:
        ValueError: There is no such synthesiser, or it has no files.
        FileNotFoundError: `models_dir` does not have its files.
        ImportError: It is not installed.
    """
    if name not in SYNTHESISERS:
        listed = ", ".join(map(repr, SYNTHESISERS))
        raise ValueError(f"voices is {name!r}, but must be one of {listed}.{did_you_mean(name, SYNTHESISERS)}")
    if name == "kokoro":
        return Kokoro(models_dir)
    if models_dir is not None:
        raise ValueError(f"models_dir is {str(models_dir)!r}, but voices {name!r} need no files: leave it out.")
    return Espeak() if name == "espeak" else Flite()


def _version(package: str, extra: str) -> str:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError as error:
        raise ImportError(f'Synthetic speech needs {package}: pip install "cmkd[{extra}]"') from error


def _kokoro_from_hub() -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(KOKORO_REPOSITORY, allow_patterns=list(_KOKORO_ON_HUB)))


def _only_model(folder: Path) -> Path:
    models = [*sorted(folder.glob("kokoro-v1.0*.onnx")), *sorted(folder.glob("onnx/model*.onnx"))]
    if not models:
        raise FileNotFoundError(
            f"models_dir is {str(folder)!r}, which has neither kokoro-v1.0*.onnx nor onnx/model*.onnx: take the "
            f"files of {KOKORO_REPOSITORY} on the Hub, or those that the page of kokoro-onnx names."
        )
    if len(models) > 1:
        names = ", ".join(path.relative_to(folder).as_posix() for path in models)
        raise ValueError(f"models_dir {str(folder)!r} has {names}: leave one, since their speech is not the same.")
    return models[0]


def _kokoro_styles(folder: Path) -> dict[str, np.ndarray]:
    """The styles of the English voices, (510, 1, 256) each, whichever way they are kept."""
    packed = folder / "voices-v1.0.bin"
    single = {voice.name: folder / "voices" / f"{voice.name}.bin" for voice in KOKORO_VOICES}
    if packed.is_file():
        with np.load(packed) as voices:
            styles = {name: voices[name] for name in single if name in voices}
    else:
        styles = {name: np.fromfile(path, "<f4").reshape(_STYLE) for name, path in single.items() if path.is_file()}
    missing = [name for name in single if name not in styles]
    if missing:
        raise FileNotFoundError(
            f"models_dir {str(folder)!r} has no voices {', '.join(missing)}, neither in voices-v1.0.bin nor in voices/."
        )
    return styles
