"""One ONNX graph from speech and lengths to scores and embedding, for any number of utterances of any length."""

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx
import torch
from torch import nn
from torch.jit import TracerWarning  # type: ignore[attr-defined]
from torch.onnx import symbolic_helper
from transformers import FeatureExtractionMixin

from cmkd.features.inputs import normalized
from configuration_cmkd import EMOTION_DIMENSIONS
from modeling_cmkd import CMKDPreTrainedModel
from speech_encoder_cmkd import mask_of
from windows_cmkd import SHORTEST_AUDIO

OPSET = 17
"""Of ONNX: the first with a layer normalisation; every runtime since 2022 has it."""

FORMAT = 1
"""The version of the inputs, the outputs and the metadata; `cmkd.export.runtime` reads it."""


@dataclass(frozen=True)
class SpeechInput:
    """What stands between a waveform and the encoder, as the feature extractor of a checkpoint says.

    Args:
        sampling_rate (`int`): Hz.
        is_normalized (`bool`): Whether an utterance is brought to mean 0 and variance 1, which is part of the graph.
        log_mel (`dict`, *optional*): The fields of `cmkd.export.runtime.LogMel`; None: the graph takes the waveform.
    """

    sampling_rate: int
    is_normalized: bool
    log_mel: dict[str, int] | None

    @property
    def name(self) -> str:
        """Of the graph's first input."""
        return "waveform" if self.log_mel is None else "log_mel"


def speech_input(model: CMKDPreTrainedModel, extractor: FeatureExtractionMixin) -> SpeechInput:
    """What the feature extractor of a checkpoint does.

    Raises:
        ValueError: it does what the graph cannot, or does not fit the encoder.
    """
    kind = model.config.speech_input_name
    if extractor.model_input_names[0] != kind:
        raise ValueError(
            f"preprocessor_config.json is of a {type(extractor).__name__}, which gives "
            f"{extractor.model_input_names[0]}, but the {model.config.speech_config.model_type} encoder takes {kind}: "
            "put the extractor of that encoder beside the student."
        )
    if kind == "input_values":
        return SpeechInput(extractor.sampling_rate, extractor.do_normalize, None)
    if extractor.dither != 0.0:
        raise ValueError(
            f"dither={extractor.dither!r} in preprocessor_config.json: noise is added, so that no two answers are the "
            "same. Set it to 0.0."
        )
    fields = {
        "num_mel_bins": extractor.feature_size,
        "sampling_rate": extractor.sampling_rate,
        "window_samples": extractor.n_fft,
        "hop_samples": extractor.hop_length,
        "maximum_samples": 2 * model.config.speech_config.max_source_positions * extractor.hop_length,
    }
    if extractor.n_samples != fields["maximum_samples"]:
        raise ValueError(
            f"preprocessor_config.json pads to {extractor.n_samples} samples, but the encoder takes "
            f"{fields['maximum_samples']}: put the extractor of that encoder beside the student."
        )
    return SpeechInput(extractor.sampling_rate, False, fields)


class StudentGraph(nn.Module):
    """A model that hears, as the graph has it: everything from the speech on, in operations on tensors alone.

    Args:
        model: in eval mode.
        speech: what stands before it.
    """

    def __init__(self, model: CMKDPreTrainedModel, speech: SpeechInput):
        super().__init__()
        self.model = model
        self.speech = speech

    def forward(self, speech: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores and embeds.

        Args:
            speech (`torch.Tensor`): waveforms (batch, samples), or log-mel spectrograms (batch, mel bins, frames).
            lengths (`torch.Tensor` of shape `(batch,)`): how many samples or frames of each are real.

        Returns:
            Scores (batch, 3) and embeddings (batch, size). Both are NaN for an utterance that is shorter than a frame
            of the encoder, or longer than its row: a graph cannot raise.
        """
        mask = mask_of(lengths, speech.shape[-1])
        if self.speech.is_normalized:
            speech = normalized(speech, mask, lengths)
        name = self.model.config.speech_input_name
        output = self.model(**{name: speech, "attention_mask": mask.long()})
        is_valid = ((lengths >= self.shortest) & (lengths <= speech.shape[-1]))[:, None]
        return tuple(values.float().masked_fill(~is_valid, torch.nan) for values in (output.logits, output.embeddings))

    @property
    def shortest(self) -> int:
        """The samples, or frames of a spectrogram, that one frame of the encoder hears."""
        length = 1
        assert self.model.speech_encoder is not None  # a model that only reads is not exported
        for kernel, stride, padding in reversed(self.model.speech_encoder.convolutions):
            length = (length - 1) * stride + kernel - 2 * padding
        return length

    @property
    def minimum_samples(self) -> int:
        """The shortest utterance that is scored: 0.1 s, as in the pipeline, or a frame of the encoder."""
        least = round(SHORTEST_AUDIO * self.speech.sampling_rate)
        return least if self.speech.log_mel is not None else max(least, self.shortest)

    @property
    def maximum_samples(self) -> int | None:
        """The longest utterance that the encoder takes; None: there is no limit."""
        return None if self.speech.log_mel is None else self.speech.log_mel["maximum_samples"]

    def example(self, count: int, length: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """Noise in the place of `count` utterances, the first of which has `length` samples or frames."""
        generator = torch.Generator().manual_seed(seed)
        if self.speech.log_mel is None:
            speech = 0.1 * torch.randn(count, length, generator=generator)
        else:
            speech = torch.rand(count, self.speech.log_mel["num_mel_bins"], length, generator=generator)
        least = max(self.shortest, length // 2)
        lengths = torch.randint(least, length + 1, (count,), generator=generator)
        lengths[0] = length
        return speech, lengths


@symbolic_helper.parse_args("v", "i", "i", "none")
def _repeat_interleave(graph: Any, tensor: Any, repeats: int, dim: int, output_size: None) -> Any:
    """`repeat_interleave` along the last axis, by which Moonshine turns pairs of numbers.

    torch's own translation joins the wrong axes where `dim` is -1.
    """
    rank = tensor.type().dim()
    if dim % rank != rank - 1:
        raise ValueError(f"repeat_interleave with dim={dim} of {rank} axes: only that along the last is translated.")
    wide = graph.op("Unsqueeze", tensor, graph.op("Constant", value_t=torch.tensor([rank])))
    tiled = graph.op("Tile", wide, graph.op("Constant", value_t=torch.tensor([1] * rank + [repeats])))
    return graph.op("Reshape", tiled, graph.op("Constant", value_t=torch.tensor([0] * (rank - 1) + [-1])))


@contextmanager
def _translated() -> Iterator[None]:
    torch.onnx.register_custom_op_symbolic(  # type: ignore[attr-defined]
        "aten::repeat_interleave", _repeat_interleave, OPSET
    )
    try:
        yield
    finally:
        torch.onnx.unregister_custom_op_symbolic("aten::repeat_interleave", OPSET)  # type: ignore[attr-defined]


def trace(graph: nn.Module, example: tuple[torch.Tensor, torch.Tensor], name: str) -> tuple[onnx.ModelProto, list[str]]:
    """The graph in ONNX, and what the tracer doubted.

    torch's other exporter unrolls a GRU to the length of the example. The tracing one keeps what Python has computed
    from a length as a number, and says so in warnings only: [`cmkd.export.verify`] finds out.

    Args:
        graph: takes speech and lengths.
        example: speech and lengths.
        name: of the first input.
    """
    speech_axes = {0: "batch", example[0].dim() - 1: "samples" if name == "waveform" else "frames"}
    axes = {name: speech_axes} | {other: {0: "batch"} for other in ("lengths", "scores", "embeddings")}
    with (
        TemporaryDirectory(prefix="cmkd-export-") as folder,
        warnings.catch_warnings(record=True) as caught,
        torch.no_grad(),
        _translated(),
    ):
        warnings.simplefilter("always")
        path = Path(folder, "model.onnx")
        torch.onnx.export(
            graph,
            example,
            path,
            dynamo=False,
            opset_version=OPSET,
            input_names=[name, "lengths"],
            output_names=["scores", "embeddings"],
            dynamic_axes=axes,
        )
        model = onnx.load(path)
    doubts = [f"{warning.filename}:{warning.lineno}" for warning in caught if warning.category is TracerWarning]
    return model, list(dict.fromkeys(doubts))


def metadata_of(graph: StudentGraph, about: Mapping[str, Any]) -> dict[str, Any]:
    """What the graph says about itself, beside `about`, which says where it is from."""
    config = graph.model.config
    return {
        "cmkd_format": FORMAT,
        "dimensions": EMOTION_DIMENSIONS,
        "rated_dimensions": config.rated_dimensions,
        "label_scale": config.label_scale,
        "embedding_size": config.embedding_size,
        "encoder": config.speech_config.model_type,
        "sampling_rate": graph.speech.sampling_rate,
        "minimum_samples": graph.minimum_samples,
        "maximum_samples": graph.maximum_samples,
        "log_mel": graph.speech.log_mel,
        "precision": "fp32",
        "versions": {name: version(name) for name in ("cmkd", "torch", "transformers", "onnx")},
        **about,
    }


def write_metadata(model: onnx.ModelProto, metadata: Mapping[str, Any]) -> None:
    """Puts it into the model, each value as JSON, in the place of what is there under the same name."""
    entries = {entry.key: entry.value for entry in model.metadata_props}
    entries |= {key: json.dumps(value, ensure_ascii=False) for key, value in metadata.items()}
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, entries)
