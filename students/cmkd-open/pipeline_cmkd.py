"""Scores audio of any length, rate and channel count with `transformers.pipeline`.

This file travels to the Hub with every checkpoint, together with `modeling_cmkd.py` and `windows_cmkd.py`, which cuts
audio. It imports that, numpy, torch and transformers. Audio is read, resampled and scored piece by piece, so that an
hour takes no more memory than a minute.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers.pipelines.base import ChunkPipeline
from transformers.utils import logging

try:
    from .configuration_cmkd import EMOTION_DIMENSIONS
    from .windows_cmkd import cutting, whole_answer, windows_of
except ImportError:
    from configuration_cmkd import EMOTION_DIMENSIONS
    from windows_cmkd import cutting, whole_answer, windows_of

logger = logging.get_logger(__name__)

CUSTOM_PIPELINES = {"speech-emotion": {"impl": "pipeline_cmkd.SpeechEmotionPipeline", "pt": ["AutoModel"]}}
"""The entry in `config.json` by which `pipeline(model=…, trust_remote_code=True)` finds this file."""


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

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if self.model.text_encoder is not None:
            raise ValueError(
                f"This {type(self.model).__name__} also reads a transcript, which a pipeline over audio does not have. "
                "Load the student, or call the teacher itself with input_ids."
            )

    def __call__(self, inputs: Any, **kwargs: Any) -> Any:
        """Scores audio; see the class for the arguments and the result."""
        if isinstance(inputs, Sequence) and not isinstance(inputs, (str, bytes, bytearray, memoryview)):
            inputs = [_Listed(f"inputs[{index}]", audio) for index, audio in enumerate(inputs)]
            return super().__call__(inputs, **kwargs) if inputs else []
        return super().__call__(inputs, **kwargs)

    def _sanitize_parameters(
        self,
        sampling_rate: float | None = None,
        window: float | None = None,
        hop: float | None = None,
        channel: str | int | None = None,
        return_embeddings: bool | None = None,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        reading: dict[str, Any] = {"sampling_rate": sampling_rate, "window": window, "hop": hop, "channel": channel}
        answering: dict[str, Any] = {"channel": channel, "return_embeddings": return_embeddings}
        reading, answering = (
            {name: value for name, value in given.items() if value is not None} for given in (reading, answering)
        )
        return reading, {}, answering

    def preprocess(
        self,
        inputs: Any,
        sampling_rate: float | None = None,
        window: float | None = None,
        hop: float | None = None,
        channel: str | int = "mean",
    ) -> Iterator[dict[str, Any]]:
        """Yields the model's inputs, window by window, for each channel that is scored."""
        listed = inputs if isinstance(inputs, _Listed) else _Listed("audio", inputs)
        cut = cutting(self.feature_extractor.sampling_rate, window, hop, self._longest_input())
        audio = _without_tensors(listed.audio)
        for piece, samples in windows_of(audio, listed.name, cut, logger.warning_once, sampling_rate, channel):
            yield {"is_last": piece.is_last, "window": piece} | self._model_inputs(samples)

    def _model_inputs(self, samples: np.ndarray) -> dict:
        name = self.model.config.speech_input_name
        features = self.feature_extractor(
            samples,
            sampling_rate=self.feature_extractor.sampling_rate,
            return_attention_mask=True,
            return_tensors="pt",
        )
        return {"attention_mask": features["attention_mask"], name: features[name]}

    def _longest_input(self) -> float:
        """The longest audio, in seconds, that the encoder takes at once."""
        if self.model.config.speech_input_name == "input_values":
            return math.inf
        frames = 2 * self.model.config.speech_config.max_source_positions
        return frames * self.feature_extractor.hop_length / self.feature_extractor.sampling_rate

    def _forward(self, model_inputs: dict[str, Any]) -> dict[str, Any]:
        names = ("attention_mask", self.model.config.speech_input_name)
        output = self.model(**{name: model_inputs[name] for name in names})
        others = {name: value for name, value in model_inputs.items() if name not in names}
        return {"logits": output.logits.float(), "embeddings": output.embeddings.float(), **others}

    def postprocess(
        self, model_outputs: list[dict[str, Any]], channel: str | int = "mean", return_embeddings: bool = False
    ) -> dict[str, Any]:
        scores, embeddings = (
            torch.cat([output[name] for output in model_outputs]).numpy() for name in ("logits", "embeddings")
        )

        def answer(logits: np.ndarray, embedding: np.ndarray) -> dict:
            return self._answer(logits, embedding, return_embeddings)

        return whole_answer([output["window"] for output in model_outputs], scores, embeddings, answer, channel)

    def _answer(self, logits: np.ndarray, embedding: np.ndarray, return_embeddings: bool) -> dict:
        scores = dict(zip(EMOTION_DIMENSIONS, logits.tolist(), strict=True))
        scores = {dimension: scores[dimension] for dimension in self.model.config.rated_dimensions}
        ratings = {dimension: self.model.config.to_label_scale(score) for dimension, score in scores.items()}
        answer = {"scores": scores, "ratings": ratings}
        return answer | {"embedding": embedding.tolist()} if return_embeddings else answer


def _without_tensors(audio: Any) -> Any:
    """The same audio, an array in the place of a tensor."""
    if isinstance(audio, torch.Tensor):
        return audio.detach().cpu().numpy()
    if isinstance(audio, dict):
        return {name: _without_tensors(value) if name in ("array", "raw") else value for name, value in audio.items()}
    return audio
