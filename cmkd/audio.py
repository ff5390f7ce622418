"""Reading speech from wav, flac, mp3, ogg and whatever else libsndfile knows, at any rate and channel count."""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile
import soxr

_BLOCK = 2**16  # frames
_LONG_BLOCK = 2**20  # frames
_LAST_BLOCK = 2**10  # frames
_SHORT_CHUNK = re.compile(r"^\s*(?:data|SSND)\s*: (\d+) \(should be (\d+)\)$", re.MULTILINE)  # in libsndfile's log
_UNKNOWN_SIZE = 2**31 - 1  # from here on a size in a header stands for "unknown when this was written"
_OGG_HEADER = 27  # bytes of an Ogg page before its table of segment lengths, whose size is the last of them
_OGG_PAGE = 2**16  # bytes, the largest page rounded up


class AudioError(ValueError):
    """Audio that cannot be used.

    Attributes:
        name (`str`): The file, or "audio" if only its content is known.
        reason (`str`): "missing file", "unreadable audio", "truncated audio", "empty audio" or "non-finite audio".
        detail (`str`): What was found.
    """

    def __init__(self, name: str, reason: str, detail: str):
        super().__init__(name, reason, detail)
        self.name = name
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}: {self.detail}"


class AudioDigest(NamedTuple):
    """How long an utterance is, in seconds, and the SHA-256 of its samples in hexadecimal."""

    duration: float
    sha256: str


def read_audio(audio: str | os.PathLike[str] | bytes | dict[str, Any], sampling_rate: int = 16000) -> np.ndarray:
    """Reads an utterance as one channel at a given rate.

    The length of an MP3 file of variable bit rate is taken from its Xing header, which all usual encoders write;
    without one libsndfile may stop early.

    Args:
        audio (`str`, path, `bytes` or `dict`): A file, the content of a file, or `{"bytes": ..., "path": ...}` as in
            the column `audio` of a corpus, where the bytes come first unless they are None.
        sampling_rate (`int`, *optional*, defaults to 16000): Of the result, in Hz.

    Returns:
        `np.ndarray`: float32 of shape (samples,), nominally from -1 to 1: the mean of the channels, resampled by soxr.

    Raises:
        AudioError: A `ValueError`: the file is missing, unreadable, truncated or empty, or has a sample that is not
            finite.
        TypeError: `audio` is something else.
    """
    name, content = _name_and_content(audio)
    with _opened(name, content) as sound:
        frames = _read(sound, name, sound.frames)
        waveform = soxr.resample(frames.mean(axis=1), sound.samplerate, sampling_rate)
    if not len(waveform):
        raise AudioError(name, "empty audio", f"{len(frames)} frames are less than one at {sampling_rate} Hz")
    return waveform


def measure_audio(audio: str | os.PathLike[str] | bytes | dict[str, Any]) -> float:
    """The duration of an utterance in seconds, after the checks of `read_audio`, mostly without decoding all of it.

    Reads the header and the last frames; all frames, block by block, only where samples are stored as floating point
    numbers, which need not be finite.

    Args:
        audio (`str`, path, `bytes` or `dict`): As for `read_audio`.

    Raises:
        AudioError: A `ValueError`: the file is missing, unreadable, truncated or empty, or has a sample that is not
            finite.
        TypeError: `audio` is something else.
    """
    name, content = _name_and_content(audio)
    with _opened(name, content) as sound:
        position = 0 if sound.subtype in ("FLOAT", "DOUBLE") else max(0, sound.frames - _LAST_BLOCK)
        for start in range(position, sound.frames, _BLOCK):
            _read(sound, name, min(_BLOCK, sound.frames - start), start)
        return sound.frames / sound.samplerate


def digest_audio(audio: str | os.PathLike[str] | bytes | dict[str, Any]) -> AudioDigest:
    """The duration and a digest of an utterance, after the checks of `read_audio` on every frame.

    The digest is that of the samples as floating point numbers of 32 bits, channels interleaved: two files with the
    same sound have the same digest whatever their names, headers, tags or lossless format. The file is read once, in
    blocks of 4 MB a channel.

    Args:
        audio (`str`, path, `bytes` or `dict`): As for `read_audio`.

    Raises:
        AudioError: A `ValueError`: the file is missing, unreadable, truncated or empty, or has a sample that is not
            finite.
        TypeError: `audio` is something else.
    """
    name, content = _name_and_content(audio)
    digest = hashlib.sha256()
    with _opened(name, content) as sound:
        for position in range(0, sound.frames, _LONG_BLOCK):
            frames = _read(sound, name, min(_LONG_BLOCK, sound.frames - position))
            digest.update(frames.astype("<f4", copy=False).tobytes())
        return AudioDigest(sound.frames / sound.samplerate, digest.hexdigest())


def _name_and_content(audio: str | os.PathLike[str] | bytes | dict[str, Any]) -> tuple[str, str | bytes]:
    name = None
    content: Any = audio
    if isinstance(audio, dict):
        name = audio.get("path")
        content = name if audio.get("bytes") is None else audio["bytes"]
    if isinstance(content, bytes):
        return name or "audio", content
    if isinstance(content, (str, os.PathLike)):
        path = os.fspath(content)
        return path, path
    raise TypeError(
        f"audio is {audio!r:.80}, but must be a path, the bytes of a file, or a dict with the keys 'bytes' and 'path'"
        " of which one is not None."
    )


@contextmanager
def _opened(name: str, content: str | bytes) -> Iterator[soundfile.SoundFile]:
    """Opens a sound file whose header keeps what it promises."""
    try:
        size = len(content) if isinstance(content, bytes) else Path(content).stat().st_size
    except (OSError, ValueError) as error:
        raise AudioError(name, "missing file", str(error)) from error
    if size == 0:
        raise AudioError(name, "empty audio", "the file has no bytes")
    try:
        sound = soundfile.SoundFile(io.BytesIO(content) if isinstance(content, bytes) else content)
    except (soundfile.SoundFileError, OSError, TypeError) as error:  # TypeError: a name that ends in ".raw"
        raise AudioError(name, "unreadable audio", str(error)) from error
    with sound:
        short = _SHORT_CHUNK.search(sound.extra_info)
        if short and int(short[2]) < int(short[1]) < _UNKNOWN_SIZE:
            raise AudioError(
                name, "truncated audio", f"the header promises {short[1]} bytes of sound, but {short[2]} are there"
            )
        if sound.format == "OGG" and _ends_within_page(content):
            raise AudioError(name, "truncated audio", "the last Ogg page is incomplete")
        if sound.frames == 0:
            raise AudioError(name, "empty audio", "it has no frames")
        if sound.frames > 2**62:
            raise AudioError(name, "unreadable audio", "its header does not say how long it is; convert it anew")
        yield sound


def _read(sound: soundfile.SoundFile, name: str, size: int, start: int | None = None) -> np.ndarray:
    """The frames from `start` on, or the next ones, of shape (size, channels)."""
    promise = f"the header promises {sound.frames} frames"
    try:
        if start is not None:
            sound.seek(start)
        frames = sound.read(size, dtype="float32", always_2d=True)
    except soundfile.SoundFileError as error:
        raise AudioError(name, "truncated audio", f"{promise}, but not all can be read") from error
    if len(frames) < size:
        raise AudioError(name, "truncated audio", f"{promise}, but {size - len(frames)} or more are missing")
    if not np.isfinite(frames).all():
        raise AudioError(name, "non-finite audio", "it has samples that are NaN or infinite")
    return frames


def _ends_within_page(content: str | bytes) -> bool:
    """Whether the last page of an Ogg file is shorter than its own table of segments says."""
    if isinstance(content, bytes):
        tail = content[-_OGG_PAGE:]
    else:
        with Path(content).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _OGG_PAGE))
            tail = file.read()
    page = tail[max(0, tail.rfind(b"OggS")) :]
    if len(page) < _OGG_HEADER:
        return True
    segments = page[_OGG_HEADER - 1]
    return len(page) < _OGG_HEADER + segments + sum(page[_OGG_HEADER : _OGG_HEADER + segments])
