"""Reads speech from a file of any kind, rate and channel count, or from a stretch or a channel of it.

The reader itself is `audio_cmkd`, which travels with every checkpoint, so that a model hears the same in training and
in use.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import soxr

from audio_cmkd import (
    CANCELLED_ADVICE,
    AudioError,
    ChannelPowers,
    Sound,
    check_channel,
    name_and_content,
    open_sound,
)

__all__ = ["AudioDigest", "AudioError", "digest_audio", "measure_audio", "read_audio"]

_LAST_SECONDS = 0.1


class AudioDigest(NamedTuple):
    """How long an utterance is, in seconds, and the SHA-256 of its samples in hexadecimal."""

    duration: float
    sha256: str


def read_audio(
    audio: str | os.PathLike[str] | bytes | dict[str, Any],
    sampling_rate: int = 16000,
    *,
    start: float | None = None,
    end: float | None = None,
    channel: int | str = "mean",
) -> np.ndarray:
    """Reads an utterance as one channel at a given rate.

    Args:
        audio (`str`, path, `bytes` or `dict`): A file, the content of a file, or `{"bytes": ..., "path": ...}` as in
            the column `audio` of a corpus; of these, the bytes are used unless they are None.
        sampling_rate (`int`, *optional*, defaults to 16000): Rate of the result, in Hz.
        start, end (`float`, *optional*): Where the utterance begins and ends in the file, in seconds; None stands for
            the beginning and the end of the file. An end that lies up to 0.1 s (`audio_cmkd.END_TOLERANCE`) beyond the
            end of the file is taken for it.
        channel (`int` or `str`, *optional*, defaults to `"mean"`): The number of a channel, counted from 0, or "mean"
            for the mean of all.

    Returns:
        `np.ndarray`: float32 of shape (samples,), nominally from -1 to 1, resampled by soxr.

    Raises:
        AudioError: A `ValueError`: the file is missing, unreadable, truncated or empty, or has a sample that is not
            finite; its channels cancel each other out, or it has no channel of this number; the stretch is empty or not
            within the file.
        TypeError: `audio` is something else.
        ValueError: `channel` is neither a number from 0 nor "mean".
    """
    with _opened(audio, channel) as sound:
        heard = _heard(sound, start, end, channel)
        blocks = [block[:, 0] if block.shape[1] == 1 else block.mean(axis=1) for block in heard]
        waveform = soxr.resample(np.concatenate(blocks), sound.rate, sampling_rate)
        if not len(waveform):
            frames = sum(map(len, blocks))
            raise AudioError(sound.name, "empty audio", f"{frames} frames are less than one at {sampling_rate} Hz")
    return waveform


def measure_audio(
    audio: str | os.PathLike[str] | bytes | dict[str, Any],
    *,
    start: float | None = None,
    end: float | None = None,
    channel: int | str = "mean",
) -> float:
    """The duration of an utterance in seconds, after the checks of `read_audio`, mostly without decoding all of it.

    Where the structure of the file tells its length (libsndfile's formats, mp3), only the last frames are decoded,
    unless samples are stored as floating point numbers, which need not be finite: then all are. Other files are decoded
    block by block. Whether channels cancel each other out is not checked.

    Args:
        audio (`str`, path, `bytes` or `dict`), start, end, channel: As for `read_audio`.

    Raises:
        AudioError: A `ValueError`, as in `read_audio`.
        TypeError: `audio` is something else.
        ValueError: `channel` is neither a number from 0 nor "mean".
    """
    with _opened(audio, channel) as sound:
        number = None if isinstance(channel, str) else channel
        if sound.frames is None or sound.may_be_infinite:
            return sum(len(block) for block in sound.blocks(start, end, number)) / sound.rate
        first, stop = sound.span(start, end)
        assert stop is not None  # since the number of frames is known
        last = max(first / sound.rate, stop / sound.rate - _LAST_SECONDS)
        for _ in sound.blocks(last, end, number):
            pass
        return (stop - first) / sound.rate


def digest_audio(
    audio: str | os.PathLike[str] | bytes | dict[str, Any],
    *,
    start: float | None = None,
    end: float | None = None,
    channel: int | str = "mean",
) -> AudioDigest:
    """The duration and a digest of an utterance, after the checks of `read_audio` on every frame.

    The digest is that of the samples as floating point numbers of 32 bits, of all channels interleaved or of the one
    channel: two files with the same sound have the same digest whatever their names, headers, tags or lossless format.
    The file is read once, in blocks.

    Args:
        audio (`str`, path, `bytes` or `dict`), start, end, channel: As for `read_audio`.

    Raises:
        AudioError: A `ValueError`, as in `read_audio`.
        TypeError: `audio` is something else.
        ValueError: `channel` is neither a number from 0 nor "mean".
    """
    digest = hashlib.sha256()
    frames = 0
    with _opened(audio, channel) as sound:
        for block in _heard(sound, start, end, channel):
            digest.update(block.astype("<f4", order="C", copy=False).tobytes())
            frames += len(block)
        return AudioDigest(frames / sound.rate, digest.hexdigest())


@contextmanager
def _opened(audio: Any, channel: int | str) -> Iterator[Sound]:
    check_channel(channel, "mean")
    with open_sound(*name_and_content(audio)) as sound:
        yield sound


def _heard(sound: Sound, start: float | None, end: float | None, channel: int | str) -> Iterator[np.ndarray]:
    """The blocks of an utterance; at their end it is refused if its channels cancel out."""
    powers = ChannelPowers()
    for block in sound.blocks(start, end, None if isinstance(channel, str) else channel):
        powers.add(block)
        yield block
    if powers.cancel_out():
        raise AudioError(sound.name, "channels cancel out", f"it has {sound.channels}, {CANCELLED_ADVICE}")
