"""What computes scores and embeddings from windows of sound: the seam behind which engines are exchanged."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from audio_cmkd import import_package

Dtype = Literal["float32", "bfloat16", "float16"]

GPU_BATCH_SECONDS = 240.0
"""Seconds of sound in a batch on a device that wants many at once."""

CPU_BATCH_SECONDS = 0.0
"""On a CPU a window is scored alone: batches there gain nothing, and so the scores are those of the pipeline to the
bit."""


class Engine(Protocol):
    """A student that is ready to score.

    Attributes:
        sampling_rate (`int`): Hz of what it hears.
        shortest (`int`): Samples of the shortest window that it takes.
        longest (`float`): Seconds that it takes at once, or infinity.
        dimensions (`tuple[str, ...]`): Of the columns of its scores.
        label_scale (`tuple[float, float]`): Of the corpus that it was trained on.
        rated_dimensions (`tuple[str, ...]`): Those of activation, valence and dominance that it was trained in.
        batch_seconds (`float`): Seconds of sound that it scores best at once.
        identity (`str`): Changes when the weights do.
    """

    sampling_rate: int
    shortest: int
    longest: float
    dimensions: tuple[str, ...]
    label_scale: tuple[float, float]
    rated_dimensions: tuple[str, ...]
    batch_seconds: float
    identity: str

    def run(self, waves: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Scores a batch.

        Args:
            waves: Each (samples,), float32, of any length up to `longest`.

        Returns:
            Scores (batch, 3) on the unit interval, NaN in a dimension that is not rated, and embeddings (batch, size),
            both float32.
        """
        ...


@dataclass(frozen=True)
class ModelChoice:
    """Which model scores, and how; small enough to be sent to another machine.

    Attributes:
        model (`str`): A folder, a name on the Hub, or an .onnx file.
        revision (`str`, *optional*): On the Hub.
        dtype (`str`): "float32", "bfloat16" or "float16": of weights and activations.
        device (`str`, *optional*): As torch calls it; None: an accelerator if there is one.
        compile (`bool`): Whether torch compiles it first.
    """

    model: str
    revision: str | None = None
    dtype: Dtype = "float32"
    device: str | None = None
    compile: bool = False


def load_engine(choice: ModelChoice) -> Engine:
    """Loads what scores.

    Raises:
        FileNotFoundError: There is no such file.
        OSError: There is no such model.
        ValueError: It is not a student, or an option does not apply to it.
    """
    if choice.model.endswith(".onnx"):
        return OnnxEngine(choice)
    return TorchEngine(choice)


class TorchEngine:
    """A student, or a teacher that only hears, run by torch.

    Raises:
        OSError: There is no such model.
        ValueError: It also reads a transcript, or the device or the dtype cannot be used.
    """

    def __init__(self, choice: ModelChoice):
        import torch

        from cmkd.runs.answers import load_checkpoint
        from configuration_cmkd import EMOTION_DIMENSIONS

        checkpoint = load_checkpoint(choice.model, choice.revision)
        model = checkpoint.model
        if model.text_encoder is not None:
            raise ValueError(
                f"--model {choice.model}: it is a teacher that also reads a transcript, which sound alone does not "
                "have; name the student."
            )
        self.identity = checkpoint.commit
        self._extractor = checkpoint.feature_extractor
        self._input = model.config.speech_input_name
        self._dtype = getattr(torch, choice.dtype)
        self._device = torch.device(choice.device) if choice.device is not None else _best_device()
        self._model = model.to(self._device, self._dtype)
        if choice.compile:
            self._model = torch.compile(self._model, dynamic=True)
        self.sampling_rate = self._extractor.sampling_rate
        self.shortest = 1
        self.longest = math.inf
        if self._input == "input_features":
            frames = 2 * model.config.speech_config.max_source_positions
            self.longest = frames * self._extractor.hop_length / self.sampling_rate
        self.dimensions = tuple(EMOTION_DIMENSIONS)
        self.label_scale = tuple(model.config.label_scale)
        self.rated_dimensions = tuple(model.config.rated_dimensions)
        self.batch_seconds = CPU_BATCH_SECONDS if self._device.type == "cpu" else GPU_BATCH_SECONDS

    def run(self, waves: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        import torch

        from cmkd.training.out_of_memory import is_out_of_memory

        features = self._extractor(
            list(waves),
            sampling_rate=self.sampling_rate,
            padding="max_length" if self._input == "input_features" else True,
            return_attention_mask=True,
            return_tensors="pt",
        )
        try:
            with torch.inference_mode():
                output = self._model(
                    attention_mask=features["attention_mask"].to(self._device),
                    **{self._input: features[self._input].to(self._device, self._dtype)},
                )
            return output.logits.float().cpu().numpy(), output.embeddings.float().cpu().numpy()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            seconds = max(map(len, waves)) / self.sampling_rate
            raise MemoryError(
                f"Out of memory with {len(waves)} windows of up to {seconds:.1f} s at once: lower --batch_seconds, or "
                "--window if it is one alone. What is scored stays."
            ) from error


def _best_device() -> Any:
    import torch
    from accelerate import PartialState

    return PartialState().device if torch.accelerator.is_available() else torch.device("cpu")


class OnnxEngine:
    """A student that `cmkd export` wrote, run by ONNX Runtime; torch need not be installed.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not such a graph, or an option is for torch only.
        ImportError: onnxruntime is missing.
    """

    def __init__(self, choice: ModelChoice):
        import_package("onnxruntime", "scores with an .onnx file")
        from cmkd.export.runtime import OnnxStudent

        for option, value, default in (
            ("revision", choice.revision, None),
            ("dtype", choice.dtype, "float32"),
            ("device", choice.device, None),
            ("compile", choice.compile, False),
        ):
            if value != default:
                advice = "export it so (cmkd export --help)" if option == "dtype" else "leave it out"
                raise ValueError(
                    f"--{option} {value}: applies to models that torch runs, not to {choice.model}; {advice}."
                )
        self._student = OnnxStudent(choice.model)
        self.identity = self._student.identity
        self.sampling_rate = self._student.sampling_rate
        self.shortest = self._student.minimum_samples
        most = self._student.maximum_samples
        self.longest = math.inf if most is None else most / self.sampling_rate
        self.dimensions = self._student.dimensions
        self.label_scale = self._student.label_scale
        self.rated_dimensions = self._student.rated_dimensions
        self.batch_seconds = CPU_BATCH_SECONDS

    def run(self, waves: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        lengths = np.array([len(wave) for wave in waves])
        padded = np.zeros((len(waves), lengths.max()), np.float32)
        for row, wave in zip(padded, waves, strict=True):
            row[: len(wave)] = wave
        return self._student.run(padded, lengths)
