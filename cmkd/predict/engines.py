"""What computes scores and embeddings from windows of sound: the seam behind which engines are exchanged."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from logging import getLogger
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from audio_cmkd import import_package
from cmkd.cpus import usable_cpus
from cmkd.spelling import enumerated

logger = getLogger(__name__)

Dtype = Literal["float32", "bfloat16", "float16", "int8"]

Runtime = Literal["torch", "onnx"]

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
        batches_at_once (`int`): In how many threads `run` is best called at the same time.
        identity (`str`): Changes when the weights do.
        parameters (`int`, *optional*): How many it has; None where a graph does not say.
    """

    sampling_rate: int
    shortest: int
    longest: float
    dimensions: tuple[str, ...]
    label_scale: tuple[float, float]
    rated_dimensions: tuple[str, ...]
    batch_seconds: float
    batches_at_once: int
    identity: str
    parameters: int | None

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
        dtype (`str`): "float32", "bfloat16" or "float16": of weights and activations; with ONNX Runtime "float32" or
            "int8".
        device (`str`, *optional*): As torch calls it; None: an accelerator if there is one.
        compile (`bool`): Whether torch compiles the layers of its encoder first.
        runtime (`str`): "torch", or "onnx" for ONNX Runtime, for which a model that is no .onnx file is exported.
    """

    model: str
    revision: str | None = None
    dtype: Dtype = "float32"
    device: str | None = None
    compile: bool = False
    runtime: Runtime = "torch"


def check_choice(choice: ModelChoice) -> None:
    """Refuses options that do not go together, and a device that this machine does not have, before anything is loaded.

    Raises:
        ValueError: There is such an option.
    """
    is_graph = choice.model.endswith(".onnx")
    if not is_graph and choice.runtime == "torch":
        if choice.dtype == "int8":
            raise ValueError("--dtype int8: is for ONNX Runtime; add --runtime onnx, or choose bfloat16.")
        if choice.device is not None:
            _check_device(choice.device)
        return
    if is_graph and choice.dtype != "float32":
        raise ValueError(
            f"--dtype {choice.dtype}: the number format of {choice.model} was chosen when it was exported: leave "
            f"--dtype out, or {_WITH_DTYPE[choice.dtype]}."
        )
    if choice.dtype not in ("float32", "int8"):
        raise ValueError(
            f"--dtype {choice.dtype}: with --runtime onnx it is float32 or int8; leave --runtime out for this one."
        )
    for option, value, default in (
        ("revision", choice.revision if is_graph else None, None),
        ("device", choice.device, None),
        ("compile", choice.compile, False),
    ):
        if value != default:
            what = choice.model if is_graph else "--runtime onnx"
            raise ValueError(f"--{option} {value}: applies to models that torch runs, not to {what}; leave it out.")


_WITH_DTYPE = {
    "bfloat16": "name the model that the graph was made of, for torch: no graph is in bfloat16",
    "float16": "name the model that the graph was made of, for torch, or the model_fp16.onnx of cmkd export --fp16",
    "int8": "name the model_int8_activations.onnx of cmkd export --int8_activations, or the model_int8.onnx of --int8",
}
"""How a model is had in a number format that a graph does not have."""


def load_engine(choice: ModelChoice) -> Engine:
    """Loads what scores.

    Raises:
        FileNotFoundError: There is no such file.
        OSError: There is no such model.
        ValueError: It is not a student, or an option does not apply to it.
    """
    check_choice(choice)
    if choice.model.endswith(".onnx"):
        return OnnxEngine(choice.model)
    return OnnxEngine(str(_exported(choice))) if choice.runtime == "onnx" else TorchEngine(choice)


def _exported(choice: ModelChoice) -> Path:
    """The graph of a model, made when it is first asked for, and kept beside what the Hub's client keeps."""
    from huggingface_hub.constants import HF_HOME

    import_package("onnx", "exports a model for --runtime onnx")
    from cmkd.export.folder import FILES, export_folder
    from cmkd.runs.answers import locate_checkpoint

    found = locate_checkpoint(choice.model, choice.revision)
    precision = "int8-activations" if choice.dtype == "int8" else "fp32"
    folder = Path(HF_HOME, "cmkd", "graphs", f"{found.commit}-{version('cmkd')}-onnx{version('onnxruntime')}")
    if not (folder / FILES[precision]).is_file():
        export_folder(
            found.source, folder, () if precision == "fp32" else (precision,), found.revision, report=logger.info
        )
    return folder / FILES[precision]


class TorchEngine:
    """A student, or a teacher that only hears, run by torch.

    Raises:
        OSError: There is no such model.
        ValueError: It also reads a transcript, or is to be compiled, which torch cannot do on this machine.
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
        self.parameters: int | None = model.num_parameters()
        self._extractor = checkpoint.feature_extractor
        self._input = model.config.speech_input_name
        self._dtype = getattr(torch, choice.dtype)
        self._device = torch.device(choice.device) if choice.device is not None else _best_device()
        self._model = model.to(self._device, self._dtype)
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
        # While a GPU is at one batch, another is put together.
        self.batches_at_once = 2 if self._device.type == "cuda" else 1
        if choice.compile:
            self._compile()

    def _compile(self) -> None:
        """Has torch compile the layers of the encoder, and scores a second, so that what is wrong is said at once.

        Of the layers, which are alike, one is compiled for all of them, for every length. The whole network would be
        compiled anew for every few lengths, and after eight times not at all.
        """
        import torch

        layers = self._model.speech_encoder.layers
        if not len(layers):
            family = self._model.config.speech_config.model_type
            raise ValueError(f"--compile: an encoder of the kind {family} has no layers to compile; leave it out.")
        for layer in layers:
            layer.compile(dynamic=True)
        try:
            self.run([np.zeros(self.sampling_rate, np.float32)])
        except RuntimeError as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ValueError(
                f"--compile: torch {torch.__version__} cannot compile the model for {self._device.type} on this "
                f"machine ({reason}). For a CPU it needs a C++ compiler, such as g++ or what CXX names: install one, "
                "or leave --compile out."
            ) from error

    def run(self, waves: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        import torch

        from cmkd.training.out_of_memory import is_out_of_memory

        on_cpu = self._device.type == "cpu" or self._input == "input_features"
        try:
            with torch.inference_mode():
                inputs, mask = self._extracted(waves) if on_cpu else self._padded(waves)
                output = self._model(
                    attention_mask=mask.to(self._device), **{self._input: inputs.to(self._device, self._dtype)}
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

    def _extracted(self, waves: Sequence[np.ndarray]) -> tuple[Any, Any]:
        """Inputs and mask, as the feature extractor makes them."""
        features = self._extractor(
            list(waves),
            sampling_rate=self.sampling_rate,
            padding="max_length" if self._input == "input_features" else True,
            return_attention_mask=True,
            return_tensors="pt",
        )
        return features[self._input], features["attention_mask"]

    def _padded(self, waves: Sequence[np.ndarray]) -> tuple[Any, Any]:
        """The same for waveforms, made on the device: the extractor takes longer for a batch than a large GPU does."""
        import torch

        from cmkd.features.inputs import normalized

        lengths = torch.tensor([len(wave) for wave in waves])
        padded = torch.zeros(len(waves), int(lengths.max()), pin_memory=self._device.type == "cuda")
        for row, wave in zip(padded.numpy(), waves, strict=True):
            row[: len(wave)] = wave
        inputs, lengths = padded.to(self._device, non_blocking=True), lengths.to(self._device)
        mask = torch.arange(inputs.shape[1], device=self._device) < lengths[:, None]
        if self._extractor.do_normalize:
            inputs = normalized(inputs, mask, lengths)
        return inputs, mask.long()


def _best_device() -> Any:
    import torch
    from accelerate import PartialState

    return PartialState().device if torch.accelerator.is_available() else torch.device("cpu")


def _check_device(name: str) -> None:
    import torch

    count = torch.accelerator.device_count() if torch.accelerator.is_available() else 0
    accelerator = torch.accelerator.current_accelerator() if count else None
    kinds = {"cpu": 1} | ({accelerator.type: count} if accelerator is not None else {})
    try:
        device = torch.device(name)
        is_there = (device.index or 0) < kinds.get(device.type, 0)
    except RuntimeError:  # there is no such kind of device anywhere
        is_there = False
    if not is_there:
        have = [kind if kind == "cpu" else f"{kind}:{number}" for kind, own in kinds.items() for number in range(own)]
        raise ValueError(
            f"--device {name}: must be a device of this machine, on which torch {torch.__version__} finds "
            f"{enumerated(have)}; name one of these, or leave --device out."
        )


class OnnxEngine:
    """A student that `cmkd export` wrote, run by ONNX Runtime; torch need not be installed.

    Each window is scored by one thread, and as many windows at once as there are CPUs: that takes less time than one
    window after the other by all threads, which wait for each other in every layer.

    Args:
        path: Of the graph.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not such a graph.
        ImportError: onnxruntime is missing.
    """

    def __init__(self, path: str):
        import_package("onnxruntime", "scores with ONNX Runtime")
        from cmkd.export.runtime import OnnxStudent

        self._student = OnnxStudent(path, num_threads=1)
        self.batches_at_once = _threads()
        self.identity = self._student.identity
        self.parameters: int | None = None
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


def _threads() -> int:
    """As many as there are CPUs, and no more than OMP_NUM_THREADS, which limits torch too."""
    cpus = usable_cpus()
    limit = os.environ.get("OMP_NUM_THREADS", "")
    return min(cpus, int(limit)) if limit.isdecimal() and int(limit) else cpus
