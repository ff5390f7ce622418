"""Audio of any length, rate and channel count -> activation, valence and dominance, by `transformers.pipeline`.

This file travels to the Hub with every checkpoint, beside `modeling_cmkd.py`. It imports numpy, torch and transformers;
soundfile only to read files, soxr only to change a rate. Audio is read, resampled and scored piece by piece: an hour
takes no more memory than a minute.
"""

import importlib
import io
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers.pipelines.base import ChunkPipeline
from transformers.utils import logging

try:
    from .configuration_cmkd import EMOTION_DIMENSIONS
except ImportError:
    from configuration_cmkd import EMOTION_DIMENSIONS

logger = logging.get_logger(__name__)

CUSTOM_PIPELINES = {"speech-emotion": {"impl": "pipeline_cmkd.SpeechEmotionPipeline", "pt": ["AutoModel"]}}
"""The entry in `config.json` by which `pipeline(model=…, trust_remote_code=True)` finds this file."""

LONGEST_UTTERANCE = 30.0
"""Seconds of audio that are scored as one utterance where no window is asked for."""

LONG_AUDIO_WINDOW = 10.0
"""Seconds of the windows that longer audio is cut into where no window is asked for."""

SHORTEST_AUDIO = 0.1
"""Seconds; less is refused."""

SILENCE_LEVEL = 1e-3
"""Root mean square, full scale being 1 (-60 dB), below which a window counts as silent."""

_BLOCK = 2**16  # frames that are read at a time
_SHORT_CHUNK = re.compile(r"^\s*(?:data|SSND)\s*: (\d+) \(should be (\d+)\)$", re.MULTILINE)  # in libsndfile's log
_UNKNOWN_SIZE = 2**31 - 1  # from here on a size in a header stands for "unknown when this was written"
_OGG_HEADER = 27  # bytes of an Ogg page before its table of segment lengths, whose size is the last of them
_OGG_PAGE = 2**16  # bytes, the largest page rounded up


@dataclass
class _Listed:
    """An entry of a list of inputs, with a name for messages."""

    name: str
    audio: object


class SpeechEmotionPipeline(ChunkPipeline):
    """Scores speech with a CMKD student, or with a teacher that only hears.

    Audio of up to 30 s, or of up to `window` where that is given, is scored as one utterance: the values are those that
    the model itself and the stock `audio-classification` pipeline give. Longer audio is cut into windows of `window`
    seconds, one every `hop` seconds; each is scored on its own, as if it were an utterance. The last window ends where
    the audio ends and is as long as the others, so it may overlap more than they do. At an instant that several windows
    cover, the value is the mean of theirs; the values of the whole audio are the mean over time. Silent windows are
    scored and flagged, but count towards the whole only if all are silent.

    Calling it takes the audio, or a list, a generator or a data set of it, and these arguments, which `pipeline(…)`
    takes as well:

    Args:
        inputs: A path (`str` or `Path`); the `bytes` of a file; an array or tensor of floating point numbers,
            (samples,) or with two axes of which the shorter is the channels; or a dict, `{"array" or "raw": …,
            "sampling_rate": …}` or `{"path": …, "bytes": …}`, where the bytes come first unless they are None.
        sampling_rate (`int`, *optional*): Hz of an array that is given without a dict; required there.
        window (`float`, *optional*): Seconds of a window, at least 0.1; with Whisper at most 30. None: audio of up to
            30 s is not cut, longer audio is cut into windows of 10 s.
        hop (`float`, *optional*, defaults to `window`): Seconds from the start of a window to the next, at most
            `window`.
        return_embeddings (`bool`, *optional*, defaults to `False`): Also return the utterance embedding.
        batch_size (`int`, *optional*, defaults to 1): Windows that are scored together, of one input or several.

    Returns:
        A dict for each input (a list of them for a list):

        - **scores** (`dict[str, float]`): activation, valence and dominance on the unit interval, not clipped.
        - **ratings** (`dict[str, float]`): the same on the rating scale of the corpus, `config.label_scale`.
        - **duration** (`float`): seconds.
        - **silent** (`bool`): all windows are silent, that is below -60 dB of full scale: the scores mean nothing.
        - **timeline** (`list[dict]`): `start` and `end` in seconds, `scores`, `ratings` and `silent` of each window.
        - **embedding** (`list[float]`): with `return_embeddings`, here and in each window of the timeline; here it is
          the mean over time, as the scores are.

    Raises:
        ValueError: The audio is shorter than 0.1 s, empty, truncated or unreadable, or not all of it is finite; an
            array has no rate; an argument is out of its range; the model needs text.
        FileNotFoundError: There is no such file.
        TypeError: The input is something else.
        ImportError: soundfile or soxr is needed and missing.
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
        """Scores audio: see the class for the arguments and the result."""
        if isinstance(inputs, list):
            inputs = [_Listed(f"inputs[{index}]", audio) for index, audio in enumerate(inputs)]
            return super().__call__(inputs, **kwargs) if inputs else []
        return super().__call__(inputs, **kwargs)

    def _sanitize_parameters(self, sampling_rate=None, window=None, hop=None, return_embeddings=None):
        reading = {"sampling_rate": sampling_rate, "window": window, "hop": hop}
        answering = {"return_embeddings": return_embeddings}
        reading, answering = (
            {name: value for name, value in given.items() if value is not None} for given in (reading, answering)
        )
        return reading, {}, answering

    def preprocess(self, inputs, sampling_rate=None, window=None, hop=None):
        """Yields the model's input for one window after the other."""
        listed = inputs if isinstance(inputs, _Listed) else _Listed("audio", inputs)
        rate = self.feature_extractor.sampling_rate
        longest, window, hop = self._lengths(window, hop)
        blocks = _checked(*_open(listed.audio, listed.name, sampling_rate, rate), rate)
        for start, samples, is_last in _cut(blocks, longest, window, hop):
            features = self.feature_extractor(
                samples, sampling_rate=rate, return_attention_mask=True, return_tensors="pt"
            )
            yield {
                "is_last": is_last,
                "start": start / rate,
                "end": (start + len(samples)) / rate,
                "silent": bool(np.sqrt(np.mean(np.square(samples))) < SILENCE_LEVEL),
                "attention_mask": features["attention_mask"],
                self.model.config.speech_input_name: features[self.model.config.speech_input_name],
            }

    def _lengths(self, window, hop) -> tuple[int, int, int]:
        """In samples: the longest audio that is not cut, the windows of longer audio, and their hop."""
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
        """Seconds of audio that the encoder takes at once."""
        if self.model.config.speech_input_name == "input_values":
            return math.inf
        frames = 2 * self.model.config.speech_config.max_source_positions
        return frames * self.feature_extractor.hop_length / self.feature_extractor.sampling_rate

    def _forward(self, model_inputs):
        names = ("attention_mask", self.model.config.speech_input_name)
        output = self.model(**{name: model_inputs[name] for name in names})
        others = {name: value for name, value in model_inputs.items() if name not in names}
        return {"logits": output.logits.float(), "embeddings": output.embeddings.float(), **others}

    def postprocess(self, model_outputs, return_embeddings=False):
        logits, embeddings = (
            torch.cat([window[name] for window in model_outputs]).double().numpy() for name in ("logits", "embeddings")
        )
        weights = _time_shares(model_outputs)
        answer = self._answer(weights @ logits, weights @ embeddings, return_embeddings)
        answer["duration"] = model_outputs[-1]["end"]
        answer["silent"] = all(window["silent"] for window in model_outputs)
        answer["timeline"] = [
            {"start": window["start"], "end": window["end"], "silent": window["silent"]}
            | self._answer(logits[index], embeddings[index], return_embeddings)
            for index, window in enumerate(model_outputs)
        ]
        return answer

    def _answer(self, logits: np.ndarray, embedding: np.ndarray, return_embeddings: bool) -> dict:
        scores = dict(zip(EMOTION_DIMENSIONS, logits.tolist(), strict=True))
        scores = {dimension: scores[dimension] for dimension in self.model.config.rated_dimensions}
        ratings = {dimension: self.model.config.to_label_scale(score) for dimension, score in scores.items()}
        answer = {"scores": scores, "ratings": ratings}
        return answer | {"embedding": embedding.tolist()} if return_embeddings else answer


def _time_shares(windows: list[dict]) -> np.ndarray:
    """What share of the time each window speaks for, (windows,), sum 1: an instant is shared by all that cover it.

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
    seconds_each = np.diff(edges) / np.maximum(covering[:-1], 1)  # from one edge to the next; nobody covers silence
    clock = np.concatenate([[0.0], np.cumsum(seconds_each)])
    shares = np.zeros(len(windows))
    shares[audible] = clock[np.searchsorted(edges, ends)] - clock[np.searchsorted(edges, starts)]
    return shares / shares.sum()


def _cut(blocks: Iterator[np.ndarray], longest: int, window: int, hop: int) -> Iterator[tuple[int, np.ndarray, bool]]:
    """Windows of a stream, as their first sample's position, their samples, and whether this is the last.

    >>> [(start, samples.tolist()) for start, samples, _ in _cut(iter([np.arange(4), np.arange(4, 7)]), 3, 3, 2)]
    [(0, [0.0, 1.0, 2.0]), (2, [2.0, 3.0, 4.0]), (4, [4.0, 5.0, 6.0])]
    """
    heard = np.empty(0, np.float32)
    offset = start = 0  # positions in the stream: of what is kept, and of the next window
    is_long = False
    for block in blocks:
        heard = np.concatenate([heard, block])
        is_long = is_long or offset + len(heard) > longest
        while is_long and start + window < offset + len(heard):
            yield start, heard[start - offset : start - offset + window], False
            start += hop
        kept = max(0, start - hop) - offset  # the last window may begin anywhere after the one before
        heard, offset = heard[kept:], offset + kept
    first = max(0, len(heard) - window) if is_long else 0
    yield offset + first, heard[first:], True


def _checked(name: str, blocks: Iterator[np.ndarray], rate: int) -> Iterator[np.ndarray]:
    """The blocks of a stream, of which all samples are finite and which together are long enough."""
    total = 0
    for block in blocks:
        if not np.isfinite(block).all():
            raise ValueError(
                f"{name}: non-finite audio: it has samples that are NaN or infinite after {total / rate:.2f} s."
            )
        total += len(block)
        yield block
    if total == 0:
        raise ValueError(f"{name}: empty audio: it has no samples.")
    if total < round(SHORTEST_AUDIO * rate):
        raise ValueError(
            f"{name}: audio of {total / rate:.3f} s is too short: it must be at least {SHORTEST_AUDIO} s long."
        )


def _open(audio, name: str, given_rate, rate: int) -> tuple[str, Iterator[np.ndarray]]:
    """A name for messages, and the audio as blocks (samples,) of float32, one channel, at `rate`."""
    if isinstance(audio, dict):
        if audio.get("path") is not None:
            name = str(audio["path"])
        array = audio.get("array") if audio.get("array") is not None else audio.get("raw")
        if array is not None:
            return name, _array_blocks(array, name, audio.get("sampling_rate", given_rate), rate)
        audio = audio.get("path") if audio.get("bytes") is None else audio["bytes"]
    if isinstance(audio, (np.ndarray, torch.Tensor)):
        return name, _array_blocks(audio, name, given_rate, rate)
    if not isinstance(audio, (str, os.PathLike, bytes)):
        raise TypeError(
            f"{name} is {audio!r:.80}, but must be a path, the bytes of a file, an array with its sampling_rate, or a "
            "dict with 'array' and 'sampling_rate' or with 'path' or 'bytes'."
        )
    name = name if isinstance(audio, bytes) else os.fspath(audio)
    if given_rate is not None:
        raise ValueError(f"{name}: sampling_rate={given_rate!r} is for arrays: a file says its own; leave it out.")
    return name, _file_blocks(audio, name, rate)


def _array_blocks(array, name: str, source_rate, rate: int) -> Iterator[np.ndarray]:
    array = array.detach().cpu().numpy() if isinstance(array, torch.Tensor) else np.asarray(array)
    if not isinstance(source_rate, (int, float, np.number)) or not 0 < source_rate < math.inf:
        raise ValueError(
            f"{name}: sampling_rate={source_rate!r}: say the array's rate in Hz, as sampling_rate=… or as "
            "{'array': …, 'sampling_rate': …}; an array does not tell it."
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
    blocks = (array[start : start + _BLOCK].astype(np.float32) for start in range(0, len(array), _BLOCK))
    return _converted(blocks, array.shape[1], source_rate, rate)


def _file_blocks(content, name: str, rate: int) -> Iterator[np.ndarray]:
    _check_there(content, name)
    soundfile = _import("soundfile", "reads audio files")
    try:
        sound = soundfile.SoundFile(io.BytesIO(content) if isinstance(content, bytes) else name)
    except (soundfile.SoundFileError, OSError, TypeError) as error:  # TypeError: a name that ends in ".raw"
        raise ValueError(f"{name}: unreadable audio: {error}") from error
    with sound:
        _check_complete(sound, content, name)
        yield from _converted(_read_all(sound, name, soundfile), sound.channels, sound.samplerate, rate)


def _check_there(content, name: str):
    if not isinstance(content, bytes):
        if name.startswith(("http://", "https://")):
            raise ValueError(f"{name}: addresses are not fetched: download the file and pass its path or its bytes.")
        if not Path(name).exists():
            raise FileNotFoundError(f"{name}: there is no such file.")
    if (len(content) if isinstance(content, bytes) else Path(name).stat().st_size) == 0:
        raise ValueError(f"{name}: empty audio: the file has no bytes.")


def _check_complete(sound, content, name: str):
    """Refuses what libsndfile would silently read the beginning of."""
    short = _SHORT_CHUNK.search(sound.extra_info)
    if short and int(short[2]) < int(short[1]) < _UNKNOWN_SIZE:
        raise ValueError(
            f"{name}: truncated audio: the header promises {short[1]} bytes of sound, but {short[2]} are there."
        )
    if sound.format == "OGG" and _ends_within_page(content):
        raise ValueError(f"{name}: truncated audio: the last Ogg page is incomplete.")
    if sound.frames > 2**62:
        raise ValueError(f"{name}: unreadable audio: its header does not say how long it is; convert it anew.")


def _ends_within_page(content) -> bool:
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


def _read_all(sound, name: str, soundfile) -> Iterator[np.ndarray]:
    """All frames, in blocks (frames, channels)."""
    for start in range(0, sound.frames, _BLOCK):
        size = min(_BLOCK, sound.frames - start)
        try:
            frames = sound.read(size, dtype="float32", always_2d=True)
        except soundfile.SoundFileError as error:
            raise ValueError(f"{name}: truncated audio: not all of its {sound.frames} frames can be read.") from error
        if len(frames) < size:
            raise ValueError(
                f"{name}: truncated audio: the header promises {sound.frames} frames, but there are "
                f"{start + len(frames)}."
            )
        yield frames


def _converted(blocks: Iterator[np.ndarray], channels: int, source_rate, rate: int) -> Iterator[np.ndarray]:
    """Blocks (frames, channels) -> blocks (samples,) at `rate`: the mean of the channels, resampled by soxr."""
    if channels > 1:
        logger.warning_once(f"Audio of {channels} channels is scored as their mean.")
    mono = (block.mean(axis=1) for block in blocks)
    if source_rate == rate:
        yield from mono
        return
    stream = _import("soxr", "changes the rate of audio").ResampleStream(source_rate, rate, 1, dtype="float32")
    logger.warning_once(f"Audio at {source_rate:g} Hz is resampled to the model's {rate} Hz.")
    for block in mono:
        yield stream.resample_chunk(block)
    yield stream.resample_chunk(np.empty(0, np.float32), last=True)


def _import(package: str, purpose: str):
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(f"The package {package}, which {purpose}, is missing: pip install {package}") from error
