"""Scores audio of any length, rate and channel count with `transformers.pipeline`.

This file travels to the Hub with every checkpoint, together with `modeling_cmkd.py` and `audio_cmkd.py`, which reads
files. It imports numpy, torch and transformers, and soxr only to change a rate. Audio is read, resampled and scored
piece by piece, so that an hour takes no more memory than a minute.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from transformers.pipelines.base import ChunkPipeline
from transformers.utils import logging

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
    from .configuration_cmkd import EMOTION_DIMENSIONS
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
    from configuration_cmkd import EMOTION_DIMENSIONS

logger = logging.get_logger(__name__)

CUSTOM_PIPELINES = {"speech-emotion": {"impl": "pipeline_cmkd.SpeechEmotionPipeline", "pt": ["AutoModel"]}}
"""The entry in `config.json` by which `pipeline(model=…, trust_remote_code=True)` finds this file."""

LONGEST_UTTERANCE = 30.0
"""The longest audio, in seconds, that is scored as one utterance if no window is given."""

LONG_AUDIO_WINDOW = 10.0
"""The length, in seconds, of the windows that longer audio is cut into if no window is given."""

SHORTEST_AUDIO = 0.1
"""The shortest audio that is scored, in seconds; anything shorter is refused."""


@dataclass
class _Listed:
    """An entry of a list of inputs, with a name for error messages."""

    name: str
    audio: object


class SpeechEmotionPipeline(ChunkPipeline):
    """Scores speech with a CMKD student, or with a teacher that only hears.

    Audio of up to 30 s, or of up to `window` if that is given, is scored as one utterance, with the same values as the
    model itself and the stock `audio-classification` pipeline give. Longer audio is cut into windows of `window`
    seconds, one every `hop` seconds, each of which is scored on its own, as if it were an utterance. The last window
    ends where the audio ends and is as long as the others, so it may overlap more than they do. At an instant that
    several windows cover, the value is the mean of theirs; the values of the whole audio are the mean over time. Silent
    windows are scored and flagged, but count towards the whole only if all are silent.

    Calling it takes the audio, or a list, a generator or a data set of it, and these arguments, which `pipeline(…)`
    takes as well:

    Args:
        inputs: A path (`str` or `Path`); the `bytes` of a file; an array or tensor of floating point numbers,
            (samples,) or with two axes of which the shorter is the channels; a dict, `{"array" or "raw": …,
            "sampling_rate": …}` or `{"path": …, "bytes": …}`, of which the bytes are used unless they are None; or an
            `AudioDecoder` of torchcodec, as columns of sound in 🤗 datasets hold.
        channel (`str` or `int`, *optional*, defaults to `"mean"`): Which channels are scored: their mean; one of them,
            by its number, counted from 0; or `"each"`, for calls with a speaker on each side.
        sampling_rate (`int`, *optional*): The rate, in Hz, of an array that is given without a dict, for which it is
            required.
        window (`float`, *optional*): The length of a window in seconds, at least 0.1, and with Whisper at most 30. With
            None, audio of up to 30 s is not cut, and longer audio is cut into windows of 10 s.
        hop (`float`, *optional*, defaults to `window`): Seconds from the start of one window to the next, at most
            `window`.
        return_embeddings (`bool`, *optional*, defaults to `False`): Whether to return the utterance embedding too.
        batch_size (`int`, *optional*, defaults to 1): The number of windows, of one input or several, that are scored
            together.

    Returns:
        A dict for each input, or a list of dicts for a list. With `channel="each"` every input has the two entries
        **duration** and **channels**, which is a list of such dicts, one per channel.

        - **scores** (`dict[str, float]`): activation, valence and dominance on the unit interval, not clipped.
        - **ratings** (`dict[str, float]`): the same on the rating scale of the corpus, `config.label_scale`.
        - **duration** (`float`): the duration in seconds.
        - **silent** (`bool`): whether all windows are silent, that is below -60 dB of full scale; the scores then mean
          nothing.
        - **timeline** (`list[dict]`): `start` and `end` in seconds, `scores`, `ratings` and `silent` of each window.
        - **embedding** (`list[float]`): with `return_embeddings`, here and in each window of the timeline; here it is
          the mean over time, as the scores are.

    Raises:
        ValueError: The audio is shorter than 0.1 s, empty, truncated or unreadable, or not all of it is finite; it
            lacks the channel, or its channels cancel each other out; an array has no rate; an argument is out of its
            range; the model needs text. A problem with a file is an `AudioError`, which is a ValueError.
        FileNotFoundError: There is no such file.
        TypeError: The input is something else.
        ImportError: soundfile, soxr or av is needed and missing.
    """

    _load_processor = False
    _load_image_processor = False
    _load_video_processor = False
    _load_feature_extractor = True
    _load_tokenizer = False

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.model.text_encoder is not None:
            raise ValueError(
                f"This {type(self.model).__name__} also reads a transcript, which a pipeline over audio does not have. "
                "Load the student, or call the teacher itself with input_ids."
            )

    def __call__(self, inputs, **kwargs):
        """Scores audio; see the class for the arguments and the result."""
        if isinstance(inputs, Sequence) and not isinstance(inputs, (str, bytes, bytearray, memoryview)):
            inputs = [_Listed(f"inputs[{index}]", audio) for index, audio in enumerate(inputs)]
            return super().__call__(inputs, **kwargs) if inputs else []
        return super().__call__(inputs, **kwargs)

    def _sanitize_parameters(self, sampling_rate=None, window=None, hop=None, channel=None, return_embeddings=None):
        reading = {"sampling_rate": sampling_rate, "window": window, "hop": hop, "channel": channel}
        answering = {"channel": channel, "return_embeddings": return_embeddings}
        reading, answering = (
            {name: value for name, value in given.items() if value is not None} for given in (reading, answering)
        )
        return reading, {}, answering

    def preprocess(self, inputs, sampling_rate=None, window=None, hop=None, channel="mean"):
        """Yields the model's inputs, window by window, for each channel that is scored."""
        check_channel(channel, "mean", "each")
        listed = inputs if isinstance(inputs, _Listed) else _Listed("audio", inputs)
        rate = self.feature_extractor.sampling_rate
        longest, window, hop = self._lengths(window, hop)
        with _opened(listed.audio, listed.name, sampling_rate) as sound:
            if channel == "mean" and sound.channels > 1:
                logger.warning_once(
                    f"Audio of {sound.channels} channels is scored as their mean; channel= takes one of them, or each."
                )
            blocks = _resampled(sound.blocks(channel=None if isinstance(channel, str) else channel), sound.rate, rate)
            for start, samples, is_last in _cut(_long_enough(blocks, sound.name, rate), longest, window, hop):
                times = {"start": start / rate, "end": (start + len(samples)) / rate}
                if channel == "mean":
                    samples = _mean(samples, sound, times)
                for number in range(samples.shape[1]):
                    is_final = is_last and number == samples.shape[1] - 1
                    yield {"is_last": is_final, "channel": number, **times} | self._model_inputs(samples[:, number])

    def _model_inputs(self, samples: np.ndarray) -> dict:
        name = self.model.config.speech_input_name
        features = self.feature_extractor(
            samples,
            sampling_rate=self.feature_extractor.sampling_rate,
            return_attention_mask=True,
            return_tensors="pt",
        )
        return {
            "silent": bool(np.sqrt(np.mean(np.square(samples))) < SILENCE_LEVEL),
            "attention_mask": features["attention_mask"],
            name: features[name],
        }

    def _lengths(self, window, hop) -> tuple[int, int, int]:
        """The longest audio that is not cut, the length of the windows of longer audio, and their hop, in samples."""
        rate = self.feature_extractor.sampling_rate
        limit = self._longest_input()
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
        return round(longest * rate), round(window * rate), round(hop * rate)

    def _longest_input(self) -> float:
        """The longest audio, in seconds, that the encoder takes at once."""
        if self.model.config.speech_input_name == "input_values":
            return math.inf
        frames = 2 * self.model.config.speech_config.max_source_positions
        return frames * self.feature_extractor.hop_length / self.feature_extractor.sampling_rate

    def _forward(self, model_inputs):
        names = ("attention_mask", self.model.config.speech_input_name)
        output = self.model(**{name: model_inputs[name] for name in names})
        others = {name: value for name, value in model_inputs.items() if name not in names}
        return {"logits": output.logits.float(), "embeddings": output.embeddings.float(), **others}

    def postprocess(self, model_outputs, channel="mean", return_embeddings=False):
        channels = [
            self._whole([window for window in model_outputs if window["channel"] == number], return_embeddings)
            for number in range(model_outputs[-1]["channel"] + 1)
        ]
        return {"duration": channels[0]["duration"], "channels": channels} if channel == "each" else channels[0]

    def _whole(self, windows: list[dict], return_embeddings: bool) -> dict:
        """The answer for all windows of a channel."""
        logits, embeddings = (
            torch.cat([window[name] for window in windows]).double().numpy() for name in ("logits", "embeddings")
        )
        weights = _time_shares(windows)
        answer = self._answer(weights @ logits, weights @ embeddings, return_embeddings)
        answer["duration"] = windows[-1]["end"]
        answer["silent"] = all(window["silent"] for window in windows)
        answer["timeline"] = [
            {"start": window["start"], "end": window["end"], "silent": window["silent"]}
            | self._answer(logits[index], embeddings[index], return_embeddings)
            for index, window in enumerate(windows)
        ]
        return answer

    def _answer(self, logits: np.ndarray, embedding: np.ndarray, return_embeddings: bool) -> dict:
        scores = dict(zip(EMOTION_DIMENSIONS, logits.tolist(), strict=True))
        scores = {dimension: scores[dimension] for dimension in self.model.config.rated_dimensions}
        ratings = {dimension: self.model.config.to_label_scale(score) for dimension, score in scores.items()}
        answer = {"scores": scores, "ratings": ratings}
        return answer | {"embedding": embedding.tolist()} if return_embeddings else answer


def _time_shares(windows: list[dict]) -> np.ndarray:
    """The fraction of the time that each window counts for, (windows,), with sum 1; windows share what they both cover.

    >>> _time_shares([{"start": 0, "end": 4, "silent": False}, {"start": 2, "end": 6, "silent": False}])
    array([0.5, 0.5])
    >>> _time_shares([{"start": 0, "end": 3, "silent": False}, {"start": 3, "end": 4, "silent": False}])
    array([0.75, 0.25])
    """
    audible = np.array([not window["silent"] for window in windows])
    if not audible.any():
        audible[:] = True
    starts, ends = (np.array([window[edge] for window in windows])[audible] for edge in ("start", "end"))
    edges = np.unique(np.concatenate([starts, ends]))
    covering = np.searchsorted(starts, edges, "right") - np.searchsorted(ends, edges, "right")
    seconds_each = np.diff(edges) / np.maximum(covering[:-1], 1)  # between edges; silence is covered by none
    clock = np.concatenate([[0.0], np.cumsum(seconds_each)])
    shares = np.zeros(len(windows))
    shares[audible] = clock[np.searchsorted(edges, ends)] - clock[np.searchsorted(edges, starts)]
    return shares / shares.sum()


def _cut(blocks: Iterator[np.ndarray], longest: int, window: int, hop: int) -> Iterator[tuple[int, np.ndarray, bool]]:
    """Windows of a stream: the position of the first sample, the samples, and whether the window is the last.

    >>> [(start, samples.tolist()) for start, samples, _ in _cut(iter([np.arange(4), np.arange(4, 7)]), 3, 3, 2)]
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


def _long_enough(blocks: Iterator[np.ndarray], name: str, rate: int) -> Iterator[np.ndarray]:
    """The blocks of a stream, refused at its end if they are too short together."""
    total = 0
    for block in blocks:
        total += len(block)
        yield block
    if total < round(SHORTEST_AUDIO * rate):
        raise ValueError(
            f"{name}: audio of {total / rate:.3f} s is too short: it must be at least {SHORTEST_AUDIO} s long."
        )


def _mean(samples: np.ndarray, sound: Sound, times: dict[str, float]) -> np.ndarray:
    """(samples, channels) -> (samples, 1)"""
    powers = ChannelPowers()
    powers.add(samples)
    if powers.cancel_out():
        detail = (
            f"its {sound.channels} channels do from {times['start']:.2f} to {times['end']:.2f} s, {CANCELLED_ADVICE}"
        )
        raise AudioError(sound.name, "channels cancel out", f'{detail}, or channel="each"')
    return samples.mean(axis=1, keepdims=True)


@contextmanager
def _opened(audio, name: str, given_rate) -> Iterator[Sound]:
    """Opens a file, its content, an array or a decoder as a `Sound`."""
    if isinstance(audio, dict):
        array = audio.get("array") if audio.get("array") is not None else audio.get("raw")
        if array is not None:
            name = name if audio.get("path") is None else str(audio["path"])
            yield _sound_of_array(array, name, audio.get("sampling_rate", given_rate))
            return
    if isinstance(audio, (np.ndarray, torch.Tensor)):
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


def _sound_of_array(array, name: str, rate) -> Sound:
    array = array.detach().cpu().numpy() if isinstance(array, torch.Tensor) else np.asarray(array)
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


def _sound_of_frames(frames: np.ndarray, name: str, rate) -> Sound:
    def read(first: int) -> Iterator[np.ndarray]:
        return (frames[start : start + BLOCK].astype(np.float32) for start in range(first, len(frames), BLOCK))

    return Sound(name, rate, frames.shape[1], len(frames), True, read)


def _resampled(blocks: Iterator[np.ndarray], source_rate, rate: int) -> Iterator[np.ndarray]:
    """Blocks (frames, channels) -> the same at `rate`, by soxr."""
    if source_rate == rate:
        yield from blocks
        return
    soxr = import_package("soxr", "changes the rate of audio")
    logger.warning_once(f"Audio at {source_rate:g} Hz is resampled to the model's {rate} Hz.")
    first = next(blocks)  # there is one: without samples this is an error
    stream = soxr.ResampleStream(source_rate, rate, first.shape[1], dtype="float32")
    for block in chain([first], blocks):
        yield stream.resample_chunk(np.ascontiguousarray(block))
    yield stream.resample_chunk(np.empty((0, first.shape[1]), np.float32), last=True)
