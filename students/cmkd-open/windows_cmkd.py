"""Audio of any length, rate and channel count -> windows at a model's rate, and from their scores the answer for all.

This file travels to the Hub with every checkpoint, beside `pipeline_cmkd.py`, and into every folder that `cmkd export`
writes. It imports numpy and `audio_cmkd.py`, which reads files; soxr only to change a rate. Neither torch nor
transformers is needed here, so that what scores with another engine cuts and averages in the same way. Audio is read,
resampled and cut piece by piece: an hour takes no more memory than a minute.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

try:
    from .audio_cmkd import (
        BLOCK,
        CANCELLED_ADVICE,
        SILENCE_LEVEL,
        AudioError,
        ChannelPowers,
        Sound,
        check_channel,
        import_package,
        name_and_content,
        open_sound,
    )
except ImportError:
    from audio_cmkd import (
        BLOCK,
        CANCELLED_ADVICE,
        SILENCE_LEVEL,
        AudioError,
        ChannelPowers,
        Sound,
        check_channel,
        import_package,
        name_and_content,
        open_sound,
    )

LONGEST_UTTERANCE = 30.0
"""The longest audio, in seconds, that is scored as one utterance if no window is given."""

LONG_AUDIO_WINDOW = 10.0
"""The length, in seconds, of the windows that longer audio is cut into if no window is given."""

SHORTEST_AUDIO = 0.1
"""The shortest audio that is scored, in seconds; anything shorter is refused."""


@dataclass(frozen=True)
class Cutting:
    """How audio is cut, in samples at a model's rate; [`cutting`] makes and checks it.

    Args:
        rate (`int`): Hz.
        longest (`int`): The longest audio that is not cut.
        window (`int`): The length of the windows of longer audio.
        hop (`int`): From the start of a window to that of the next.
    """

    rate: int
    longest: int
    window: int
    hop: int


@dataclass(frozen=True)
class Window:
    """A stretch of one channel that is scored as if it were an utterance.

    Args:
        channel (`int`): Its number among those that are scored, from 0.
        start, end (`float`): Seconds.
        silent (`bool`): Whether it is below -60 dB of full scale.
        is_last (`bool`): Whether no other window of the audio follows.
    """

    channel: int
    start: float
    end: float
    silent: bool
    is_last: bool


def cutting(rate: int, window: float | None = None, hop: float | None = None, limit: float = math.inf) -> Cutting:
    """How audio is cut, from what a user asks for in seconds.

    Args:
        rate: Hz of the model.
        window: Seconds of a window. None: audio of up to 30 s is not cut, longer audio is cut into windows of 10 s.
        hop: Seconds from the start of a window to the next; None: the window.
        limit: Seconds that the encoder takes at once.

    Raises:
        ValueError: the window or the hop is out of its range.

    >>> cutting(16000, window=4, hop=2)
    Cutting(rate=16000, longest=64000, window=64000, hop=32000)
    """
    longest = min(LONGEST_UTTERANCE, limit) if window is None else window
    window = min(LONG_AUDIO_WINDOW, limit) if window is None else window
    hop = window if hop is None else hop
    if not SHORTEST_AUDIO <= window <= limit or not math.isfinite(window):
        most = "" if limit == math.inf else f" and at most {limit:g}, which is all that the encoder takes"
        raise ValueError(f"window={window!r}: must be a finite number of seconds, at least {SHORTEST_AUDIO}{most}.")
    if not 1 / rate <= hop <= window:
        raise ValueError(
            f"hop={hop!r}: must be above 0 and at most the window of {window:g} s, or audio between windows would "
            "not be heard."
        )
    return Cutting(rate, round(longest * rate), round(window * rate), round(hop * rate))


def windows_of(
    audio: Any,
    name: str,
    cut: Cutting,
    warn: Callable[[str], object],
    sampling_rate: float | None = None,
    channel: str | int = "mean",
) -> Iterator[tuple[Window, np.ndarray]]:
    """One window of the audio after the other, for each channel that is scored, with its samples.

    Args:
        audio: What [`opened`] takes.
        name: Of the audio, for messages.
        cut: How it is cut.
        warn: Is called where several channels are made one, and where the rate is changed.
        sampling_rate: Hz of an array that is given without a dict.
        channel: "mean", "each", or the number of one channel, from 0.

    Returns:
        The windows, each with its samples (samples,), float32, at the rate of the model.

    Raises:
        ValueError: The audio is shorter than 0.1 s, or lacks the channel, or its channels cancel each other out, or it
            cannot be read. What is wrong with a file is an `AudioError`, which is a ValueError.
    """
    check_channel(channel, "mean", "each")
    with opened(audio, name, sampling_rate) as sound:
        yield from windows_of_sound(sound, cut, warn, channel)


def windows_of_sound(
    sound: Sound,
    cut: Cutting,
    warn: Callable[[str], object],
    channel: str | int = "mean",
    start: float | None = None,
    end: float | None = None,
) -> Iterator[tuple[Window, np.ndarray]]:
    """As [`windows_of`], of a sound that is open, or of a stretch of it.

    Args:
        sound: What is heard.
        cut: How it is cut.
        warn: Is called where several channels are made one, and where the rate is changed.
        channel: "mean", "each", or the number of one channel, from 0.
        start, end: Seconds of the stretch; None: the beginning and the end of the sound. The times of the windows count
            from the beginning of the stretch.

    Raises:
        ValueError: As `windows_of`; or the sound does not have this stretch.
    """
    check_channel(channel, "mean", "each")
    if channel == "mean" and sound.channels > 1:
        warn(f"Audio of {sound.channels} channels is scored as their mean; channel= takes one of them, or each.")
    blocks = sound.blocks(start, end, None if isinstance(channel, str) else channel)
    blocks = long_enough(resampled(blocks, sound.rate, cut.rate, warn), sound.name, cut.rate)
    for first, samples, is_last in cut_stream(blocks, cut.longest, cut.window, cut.hop):
        begins, ends = first / cut.rate, (first + len(samples)) / cut.rate
        if channel == "mean":
            samples = mean_of_channels(samples, sound, begins, ends)
        for number in range(samples.shape[1]):
            heard = samples[:, number]
            silent = bool(np.sqrt(np.mean(np.square(heard))) < SILENCE_LEVEL)
            yield Window(number, begins, ends, silent, is_last and number == samples.shape[1] - 1), heard


def whole_answer(
    windows: Sequence[Window],
    scores: np.ndarray,
    embeddings: np.ndarray,
    answer: Callable[[np.ndarray, np.ndarray], dict[str, Any]],
    channel: str | int = "mean",
) -> dict[str, Any]:
    """The answer for all windows of one audio, as the pipeline documents it.

    Args:
        windows: All of them, in the order in which [`windows_of`] gave them.
        scores: (windows, 3), on the unit interval.
        embeddings: (windows, size).
        answer: From one row of scores and one of embeddings to what the answer holds for it.
        channel: As it was given to `windows_of`.
    """
    scores, embeddings = scores.astype(np.float64), embeddings.astype(np.float64)
    channels = []
    for number in range(windows[-1].channel + 1):
        rows = [row for row, window in enumerate(windows) if window.channel == number]
        own = [windows[row] for row in rows]
        weights = time_shares(own)
        whole = answer(weights @ scores[rows], weights @ embeddings[rows])
        whole["duration"] = own[-1].end
        whole["silent"] = all(window.silent for window in own)
        whole["timeline"] = [
            {"start": windows[row].start, "end": windows[row].end, "silent": windows[row].silent}
            | answer(scores[row], embeddings[row])
            for row in rows
        ]
        channels.append(whole)
    return {"duration": channels[0]["duration"], "channels": channels} if channel == "each" else channels[0]


def time_shares(windows: Sequence[Window]) -> np.ndarray:
    """The fraction of the time that each window counts for, (windows,), with sum 1; windows share what they both cover.

    >>> time_shares([Window(0, 0, 4, False, False), Window(0, 2, 6, False, True)])
    array([0.5, 0.5])
    >>> time_shares([Window(0, 0, 3, False, False), Window(0, 3, 4, False, True)])
    array([0.75, 0.25])
    """
    audible = np.array([not window.silent for window in windows])
    if not audible.any():
        audible[:] = True
    starts = np.array([window.start for window in windows])[audible]
    ends = np.array([window.end for window in windows])[audible]
    edges = np.unique(np.concatenate([starts, ends]))
    covering = np.searchsorted(starts, edges, "right") - np.searchsorted(ends, edges, "right")
    seconds_each = np.diff(edges) / np.maximum(covering[:-1], 1)  # between edges; silence is covered by none
    clock = np.concatenate([[0.0], np.cumsum(seconds_each)])
    shares = np.zeros(len(windows))
    shares[audible] = clock[np.searchsorted(edges, ends)] - clock[np.searchsorted(edges, starts)]
    return shares / shares.sum()


def cut_stream(
    blocks: Iterator[np.ndarray], longest: int, window: int, hop: int
) -> Iterator[tuple[int, np.ndarray, bool]]:
    """Windows of a stream: the position of the first sample, the samples, and whether the window is the last.

    >>> [(start, samples.tolist()) for start, samples, _ in cut_stream(iter([np.arange(4), np.arange(4, 7)]), 3, 3, 2)]
    [(0, [0, 1, 2]), (2, [2, 3, 4]), (4, [4, 5, 6])]
    """
    heard: np.ndarray | None = None
    offset = start = 0  # positions in the stream: of what is kept, and of the next window
    is_long = False
    for block in blocks:
        heard = block if heard is None else np.concatenate([heard, block])
        is_long = is_long or offset + len(heard) > longest
        while is_long and start + window < offset + len(heard):
            yield start, heard[start - offset : start - offset + window], False
            start += hop
        kept = max(0, start - hop) - offset  # the last window may begin anywhere after the one before
        heard, offset = heard[kept:], offset + kept
    assert heard is not None  # a sound has samples
    first = max(0, len(heard) - window) if is_long else 0
    yield offset + first, heard[first:], True


def long_enough(blocks: Iterator[np.ndarray], name: str, rate: int) -> Iterator[np.ndarray]:
    """The blocks of a stream, which together are long enough.

    Raises:
        ValueError: They are not.
    """
    total = 0
    for block in blocks:
        total += len(block)
        yield block
    if total < round(SHORTEST_AUDIO * rate):
        raise ValueError(
            f"{name}: audio of {total / rate:.3f} s is too short: it must be at least {SHORTEST_AUDIO} s long."
        )


def mean_of_channels(samples: np.ndarray, sound: Sound, start: float, end: float) -> np.ndarray:
    """(samples, channels) -> (samples, 1), for a stretch of a sound, in seconds.

    Raises:
        AudioError: The channels cancel each other out.
    """
    powers = ChannelPowers()
    powers.add(samples)
    if powers.cancel_out():
        detail = f"its {sound.channels} channels do from {start:.2f} to {end:.2f} s, {CANCELLED_ADVICE}"
        raise AudioError(sound.name, "channels cancel out", f'{detail}, or channel="each"')
    return samples.mean(axis=1, keepdims=True)


@contextmanager
def opened(audio: Any, name: str, given_rate: float | None = None) -> Iterator[Sound]:
    """Opens whatever holds sound.

    Args:
        audio: A path; the bytes of a file; an array of floating point numbers, (samples,) or with two axes of which the
            shorter is the channels; a dict, `{"array" or "raw": ..., "sampling_rate": ...}` or `{"path": ..., "bytes":
            ...}`; or an `AudioDecoder` of torchcodec.
        name: For messages.
        given_rate: Hz of an array that comes without a dict.

    Raises:
        ValueError: It cannot be read, or the rate is missing.
        FileNotFoundError: There is no such file.
        TypeError: It is something else.
    """
    if isinstance(audio, dict):
        array = audio.get("array") if audio.get("array") is not None else audio.get("raw")
        if array is not None:
            name = name if audio.get("path") is None else str(audio["path"])
            yield _sound_of_array(array, name, audio.get("sampling_rate", given_rate))
            return
    if isinstance(audio, np.ndarray):
        yield _sound_of_array(audio, name, given_rate)
        return
    is_decoder = hasattr(type(audio), "get_all_samples")  # of torchcodec, which need not be installed
    if not is_decoder:
        name, content = name_and_content(audio, name, also="an array with its sampling_rate")
    if given_rate is not None:
        raise ValueError(f"{name}: sampling_rate={given_rate!r} is for arrays, and a file has its own: leave it out.")
    if is_decoder:
        decoded = audio.get_all_samples()
        yield _sound_of_frames(decoded.data.numpy().T, name, decoded.sample_rate)
        return
    is_address = isinstance(content, str) and content.startswith(("http://", "https://"))
    if isinstance(content, str) and not is_address and not Path(content).exists():
        raise FileNotFoundError(f"{name}: there is no such file.")
    with open_sound(name, content) as sound:
        yield sound


def _sound_of_array(array: Any, name: str, rate: Any) -> Sound:
    array = np.asarray(array)
    if not isinstance(rate, (int, float, np.number)) or not 0 < rate < math.inf:
        raise ValueError(
            f"{name}: sampling_rate={rate!r}: give the array's rate in Hz, as sampling_rate=… or as "
            "{'array': …, 'sampling_rate': …}; an array does not have it."
        )
    if array.dtype.kind != "f":
        raise ValueError(
            f"{name}: the array is {array.dtype}, but must be of floating point numbers, nominally from -1 to 1: "
            "divide 16-bit integers by 32768."
        )
    if array.ndim not in (1, 2):
        raise ValueError(f"{name}: the array has shape {array.shape}, but must be (samples,) or (channels, samples).")
    if array.ndim == 1:
        array = array[:, None]
    elif array.shape[0] < array.shape[1]:
        array = array.T
    return _sound_of_frames(array, name, rate)


def _sound_of_frames(frames: np.ndarray, name: str, rate: Any) -> Sound:
    def read(first: int) -> Iterator[np.ndarray]:
        return (frames[start : start + BLOCK].astype(np.float32) for start in range(first, len(frames), BLOCK))

    return Sound(name, rate, frames.shape[1], len(frames), True, read)


def resampled(
    blocks: Iterator[np.ndarray], source_rate: float, rate: int, warn: Callable[[str], object]
) -> Iterator[np.ndarray]:
    """Blocks (frames, channels) -> the same at `rate`, by soxr; `warn` is called where that changes anything."""
    if source_rate == rate:
        yield from blocks
        return
    soxr = import_package("soxr", "changes the rate of audio")
    warn(f"Audio at {source_rate:g} Hz is resampled to the model's {rate} Hz.")
    first = next(blocks)  # there is one: without samples this is an error
    stream = soxr.ResampleStream(source_rate, rate, first.shape[1], dtype="float32")
    for block in chain([first], blocks):
        yield stream.resample_chunk(np.ascontiguousarray(block))
    yield stream.resample_chunk(np.empty((0, first.shape[1]), np.float32), last=True)
