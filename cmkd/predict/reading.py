"""One file, and the stretches of it that are scored -> windows of samples; what is wrong with it is a message.

This runs in processes of its own and needs neither torch nor transformers.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from tenacity import retry, retry_if_exception, stop_after_attempt, wait_exponential

from audio_cmkd import AudioError, Sound, name_and_content, open_sound
from cmkd.predict.sources import DATASET, Source, file_system, is_remote, open_dataset
from windows_cmkd import Cutting, Window, windows_of_sound

PEAKS = 48
"""How many points of the waveform of a window are kept for its picture, each a byte."""

UNREACHABLE = "unreachable"
"""The kind of error of a source on another machine that could not be fetched: it is tried again by the next run."""


MOST_PASSES = 4
"""How often a file is decoded from its beginning for one stretch after the other, where decoders cannot go back; for
more stretches it is decoded once, to a file on the disk."""


@dataclass(frozen=True)
class Reading:
    """How files are read.

    Attributes:
        cut (`Cutting`): What a window is.
        channel (`str` or `int`): "mean", "each" or the number of a channel, for sources that name none.
        shortest (`int`): Samples of the shortest window that the model takes.
        downloads (`str`, *optional*): The folder for copies of files of other machines; None: where temporary files go.
    """

    cut: Cutting
    channel: str | int
    shortest: int
    downloads: str | None


@dataclass(frozen=True)
class Heard:
    """A window of a source, to be scored.

    Attributes:
        source (`int`): Its number in the plan.
        channel (`int`): Of the file, from 0; -1 for the mean of all.
        start, end (`float`): Seconds from the beginning of the file, or of the stretch.
        silent (`bool`)
        peaks (`bytes`): The loudest sample of each 48th, 255 being full scale.
        samples (`np.ndarray`): (samples,), float32.
        read (`float`): About how many bytes of the file this window is further than the one before.
    """

    source: int
    channel: int
    start: float
    end: float
    silent: bool
    peaks: bytes
    samples: np.ndarray
    read: float


@dataclass(frozen=True)
class Ended:
    """A source has been read to its end.

    Attributes:
        source (`int`)
        channels (`int`): Of the file.
        offset (`float`): Seconds from the beginning of the file to that of the source.
        read (`float`): Bytes of the file that no window has counted.
    """

    source: int
    channels: int
    offset: float
    read: float


@dataclass(frozen=True)
class Failed:
    """A source cannot be scored; what was heard of it before does not count.

    Attributes:
        source (`int`)
        kind (`str`): As `AudioError.reason`, or "too short", "unreachable", "decoder crashed" or the name of a Python
            exception.
        message (`str`)
    """

    source: int
    kind: str
    message: str


Event = Heard | Ended | Failed


def read_group(group: Sequence[tuple[int, Source]], reading: Reading) -> Iterator[Event]:
    """Reads the sources of one file, whatever they are like: every one ends in `Ended` or in `Failed`.

    Raises:
        ImportError: A package is missing, which is not the file's fault.
    """
    with ExitStack() as stack:
        try:
            name, content = stack.enter_context(_content(group[0][1], reading.downloads))
            sounds = stack.enter_context(_sounds(name, content, len(group), reading.downloads))
        except Exception as error:
            _not_missing(error)
            yield from (_failed(number, source, error) for number, source in group)
            return
        size = max(group[0][1].size, len(group)) / len(group)
        for number, source in group:
            try:
                yield from _read(number, source, sounds, reading, size)
            except Exception as error:
                _not_missing(error)
                yield _failed(number, source, error)


class _Sounds:
    """A file that is opened once, where a decoder can go back in it, or else as often as it is asked for."""

    def __init__(self, name: str, content: str | bytes, stack: ExitStack):
        self.name, self.content, self._stack = name, content, stack
        self._open: Sound | None = None

    @contextmanager
    def sound(self) -> Iterator[Sound]:
        if self._open is None:
            with ExitStack() as opening:
                sound = opening.enter_context(open_sound(self.name, self.content))
                if sound.frames is None:  # FFmpeg, which goes through a file once
                    yield sound
                    return
                self._open = sound
                self._stack.enter_context(opening.pop_all())
        yield self._open

    def unroll(self, folder: str) -> None:
        """Where a decoder cannot go back, writes what it gives to a file in which one can."""
        import soundfile

        with open_sound(self.name, self.content) as sound:
            if sound.frames is not None:
                return
            path = str(Path(folder, "unrolled"))
            form = {"samplerate": sound.rate, "channels": sound.channels, "format": "W64", "subtype": "FLOAT"}
            with soundfile.SoundFile(path, "w", **form) as file:
                for block in sound.blocks():
                    file.write(block)
        self.content = path


@contextmanager
def _sounds(name: str, content: str | bytes, stretches: int, folder: str | None) -> Iterator[_Sounds]:
    with ExitStack() as stack:
        sounds = _Sounds(name, content, stack)
        if stretches > MOST_PASSES:
            sounds.unroll(stack.enter_context(tempfile.TemporaryDirectory(dir=folder)))
        yield sounds


def _read(number: int, source: Source, sounds: _Sounds, reading: Reading, size: float) -> Iterator[Event]:
    channel = reading.channel if source.channel is None else source.channel
    with sounds.sound() as sound:
        seconds = _seconds(sound, source)
        before = read = 0.0
        for window, samples in windows_of_sound(sound, reading.cut, _no_warning, channel, source.start, source.end):
            if len(samples) < reading.shortest:
                least = reading.shortest / reading.cut.rate
                raise ValueError(f"audio of {window.end:.3f} s is too short: this model takes {least:g} s or more.")
            further = size * (window.end - before) / seconds if seconds else 0.0
            before, read = window.end, read + further
            yield Heard(
                source=number,
                channel=_channel_of(window, channel),
                start=window.start,
                end=window.end,
                silent=window.silent,
                peaks=_peaks(samples),
                samples=np.ascontiguousarray(samples),
                read=further,
            )
        yield Ended(number, sound.channels, source.start or 0.0, max(0.0, size - read))


def _seconds(sound: Sound, source: Source) -> float:
    """How long a source is, as far as it can be told before it is read; else 0."""
    if source.end is not None:
        return source.end - (source.start or 0.0)
    return 0.0 if sound.frames is None else sound.frames / sound.rate - (source.start or 0.0)


def _channel_of(window: Window, channel: str | int) -> int:
    if channel == "mean":
        return -1
    return window.channel if channel == "each" else int(channel)


def _no_warning(message: str) -> None:
    """What the pipeline warns of once, rates and channels, is in the columns of every row here."""


def _peaks(samples: np.ndarray) -> bytes:
    """48 bytes: the loudest sample of each part, as the whole of 255 is full scale."""
    edges = np.linspace(0, len(samples), PEAKS, endpoint=False).astype(int)
    loudest = np.maximum.reduceat(np.abs(samples), edges)
    return np.minimum(np.round(255 * loudest), 255).astype(np.uint8).tobytes()


def _failed(number: int, source: Source, error: Exception) -> Failed:
    if isinstance(error, AudioError):
        return Failed(number, error.reason, error.detail)
    if isinstance(error, FileNotFoundError):
        return Failed(number, "missing file", str(error))
    if isinstance(error, _UnreachableError):
        return Failed(number, UNREACHABLE, str(error))
    if isinstance(error, ValueError) and "too short" in str(error):
        return Failed(number, "too short", str(error).removeprefix(f"{source.name}: "))
    return Failed(number, type(error).__name__, str(error))


def _not_missing(error: Exception) -> None:
    if isinstance(error, ImportError):
        raise error


# ---------------------------------------------------------------------------------------------------------------------
# where the bytes are


class _UnreachableError(OSError):
    """What is on another machine, and could not be fetched."""


@contextmanager
def _content(source: Source, downloads: str | None) -> Iterator[tuple[str, str | bytes]]:
    """The name of a source for messages, and the path or the content of its file, as long as the context lasts."""
    if source.address.startswith(DATASET):
        yield source.name, name_and_content(_dataset(source.address)[source.row]["audio"], source.name)[1]
    elif is_remote(source.address):
        with tempfile.TemporaryDirectory(dir=downloads) as folder:
            path = str(Path(folder, "sound"))
            try:
                _fetch(source.address, path)
            except FileNotFoundError:
                raise
            except OSError as error:
                raise _UnreachableError(f"it could not be fetched: {error}") from error
            yield source.name, path
    else:
        file = Path(source.address)
        if file.exists() and not file.is_file():
            raise AudioError(source.name, "unreadable audio", "it is not a file, but a folder, a pipe or a device")
        yield source.name, source.address


@lru_cache(maxsize=4)
def _dataset(address: str) -> Any:
    return open_dataset(address)


def _may_pass(error: BaseException) -> bool:
    return isinstance(error, OSError) and not isinstance(error, (FileNotFoundError, PermissionError))


@retry(
    retry=retry_if_exception(_may_pass),
    stop=stop_after_attempt(4),
    wait=wait_exponential(multiplier=0.5, max=10),
    reraise=True,
)
def _fetch(address: str, path: str) -> None:
    system, remote = file_system(address)
    system.get_file(remote, path)
