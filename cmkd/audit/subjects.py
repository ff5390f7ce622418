"""What can be audited: models of several makers behind one way of asking them.

Every subject takes waveforms and answers activation, valence and dominance on the unit interval. The code that comes
with a checkpoint is never run: the published architectures that are known here are written out, here and in
`cmkd.audit.vox_profile`.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    PreTrainedConfig,
    PreTrainedModel,
    Wav2Vec2Config,
    Wav2Vec2Model,
    Wav2Vec2PreTrainedModel,
)

from cmkd.audit import vox_profile
from cmkd.audit.vox_profile import VoxProfileModel
from cmkd.identity import folder_digest, hub_commit
from cmkd.predict.engines import ModelChoice, load_engine
from cmkd.runs.answers import MODELS, locate_checkpoint
from cmkd.spelling import did_you_mean, enumerated
from configuration_cmkd import EMOTION_DIMENSIONS

CALLABLE = re.compile(r"(?P<module>[A-Za-z_][\w.]*|.*\.py):(?P<name>[A-Za-z_]\w*)")
"""How a function is named: `module:function`, or `path/to/file.py:function`."""

RATE = 16000
"""Hz of what is given to a model that does not say what it hears."""

_PUBLISHED_ORDER = ("arousal", "dominance", "valence")
_OURS = {"arousal": "activation", "dominance": "dominance", "valence": "valence"}


@dataclass(frozen=True)
class Subject:
    """A model that is audited.

    Attributes:
        name: As it was asked for, less the folders that it lies in.
        kind: "cmkd", "onnx", "audeering", "odyssey", "vox-profile" or "callable".
        identity: Changes when its weights do: a commit or a digest.
        sampling_rate: Hz of what it hears.
        dimensions: Those of activation, valence and dominance that it answers.
        parameters: How many it has; None where that cannot be known.
        batches: Whether its makers let it take several utterances at once.
        facts: Where the knowledge of its architecture and of the order of its outputs comes from.
        score: Takes waveforms, each (samples,) of float32, nominally from -1 to 1, and answers (n, 3) on the unit
            interval in the order of `EMOTION_DIMENSIONS`, NaN in a dimension that it does not answer.
    """

    name: str
    kind: str
    identity: str
    sampling_rate: int
    dimensions: tuple[str, ...]
    parameters: int | None
    batches: bool
    facts: str
    score: Callable[[Sequence[np.ndarray]], np.ndarray]

    def describe(self) -> dict[str, Any]:
        """As plain JSON."""
        names = ("name", "kind", "identity", "sampling_rate", "dimensions", "parameters", "batches", "facts")
        return {name: getattr(self, name) for name in names} | {"dimensions": list(self.dimensions)}


def load_subject(model: str, revision: str | None = None) -> Subject:
    """Loads what is to be audited; what it is, its files say.

    Args:
        model: A checkpoint of CMKD, of audEERING's kind, of the Odyssey-2024 baseline or of Vox-Profile, as a folder or
            a name on the Hub; a run of `cmkd train`; an .onnx file or a folder of `cmkd export`; or a function, as
            `module:function` or `file.py:function`, that takes a waveform and its rate and returns a dict of scores.
        revision: Branch, tag or commit of a model on the Hub.

    Raises:
        ValueError: It is none of these, weights are missing, or the function does not answer as it must.
        OSError: There is no such file, folder or repository.
    """
    folder = Path(model)
    if folder.suffix == ".onnx" or ((folder / "model.onnx").is_file() and not (folder / "config.json").is_file()):
        return _of_onnx(folder if folder.suffix == ".onnx" else folder / "model.onnx", revision)
    if (match := CALLABLE.fullmatch(model)) and not folder.exists():
        if revision is not None:
            raise ValueError(f"revision is {revision!r}, but {model!r} is a function: leave it out.")
        module, function = match["module"], match["name"]
        name = f"{Path(module).name}:{function}"
        return callable_subject(_imported(module, function), name, _digest(module))
    if folder.is_dir() and not (folder / "config.json").is_file():
        return _of_cmkd(model, revision)
    if folder.is_dir():
        if revision is not None:
            raise ValueError(f"revision is {revision!r}, but {model!r} is a folder: leave it out.")
        name, identity = folder.absolute().name, folder_digest(folder)
    else:
        try:
            name, identity = model, hub_commit(model, revision)
        except (OSError, ValueError) as error:
            raise OSError(f"{model!r} is neither a folder nor can it be had from the Hub: {error}") from error
        revision = identity
    config = PreTrainedConfig.get_config_dict(model, revision=revision)[0]
    kind = config.get("model_type", _VOX_PROFILE if "pretrain_model" in config else None)
    if kind in MODELS:
        return _of_cmkd(model, revision)
    if kind not in _ADAPTERS:
        known = enumerated([*MODELS, *_ADAPTERS])
        raise ValueError(
            f"{model!r} is of the model type {kind!r}, but must be of {known}. Any other model can be audited as a "
            "function: write one that takes a waveform and its rate and returns a dict of scores, and name it as "
            "file.py:function."
        )
    return _ADAPTERS[kind](model, revision, name, identity)


def callable_subject(function: Callable[[np.ndarray, int], Mapping[str, float]], name: str, identity: str) -> Subject:
    """A function `f(waveform, rate) -> dict` as a subject.

    Args:
        function: Takes float32 samples (n,) at 16 kHz and the number 16000; answers scores on the unit interval by
            dimension: "activation", "valence" and "dominance", or some of them, the same for every waveform.
        name, identity: As those of [`Subject`].

    Raises:
        ValueError: It answers something else, to a second of faint noise or later.
    """
    example = np.random.default_rng(0).normal(0, 0.01, RATE).astype(np.float32)
    dimensions = tuple(sorted(_answer(function, example, name), key=EMOTION_DIMENSIONS.index))

    def score(waves: Sequence[np.ndarray]) -> np.ndarray:
        answers = [_answer(function, wave, name) for wave in waves]
        for answer in answers:
            if set(answer) != set(dimensions):
                raise ValueError(
                    f"{name} answered {enumerated(sorted(answer))}, and {enumerated(dimensions)} before: it must "
                    "answer the same dimensions for every waveform."
                )
        return np.array([[answer.get(dimension, np.nan) for dimension in EMOTION_DIMENSIONS] for answer in answers])

    facts = "A function: what it answers is taken at its word."
    return Subject(name, "callable", identity, RATE, dimensions, None, False, facts, score)


def _answer(function: Callable[[np.ndarray, int], Mapping[str, float]], wave: np.ndarray, name: str) -> dict:
    answer = function(wave.copy(), RATE)
    if not isinstance(answer, Mapping) or not answer:
        raise ValueError(
            f"{name} returned {answer!r}: it must return a dict with a score for each of "
            f"{enumerated(EMOTION_DIMENSIONS)}, or for some of them."
        )
    for dimension, value in answer.items():
        if dimension not in EMOTION_DIMENSIONS:
            known = {"arousal": " Did you mean 'activation'?"}
            hint = known.get(dimension, did_you_mean(str(dimension), EMOTION_DIMENSIONS))
            raise ValueError(
                f"{name} returned a score for {dimension!r}, but it must be one of {enumerated(EMOTION_DIMENSIONS)}."
                f"{hint}"
            )
        if isinstance(value, bool | str) or not np.isscalar(value) or not np.isfinite(value):
            raise ValueError(f"{name} returned {value!r} as {dimension}: it must be a finite number.")
    return {dimension: float(value) for dimension, value in answer.items()}


def _imported(module: str, name: str) -> Callable[[np.ndarray, int], Mapping[str, float]]:
    if module.endswith(".py"):
        if not Path(module).is_file():
            raise FileNotFoundError(f"there is no file {module!r}: name one that has the function {name}.")
        spec = importlib.util.spec_from_file_location(Path(module).stem, module)
        assert spec is not None and spec.loader is not None  # of a file that ends in .py
        loaded = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded)
    else:
        sys.path.insert(0, str(Path.cwd()))  # where whoever names a module expects it
        try:
            loaded = importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise ValueError(f"there is no module {module!r} here or among the installed packages: {error}") from error
        finally:
            sys.path.pop(0)
    function = vars(loaded).get(name)
    if not callable(function):
        raise ValueError(f"{module} has no function {name!r}.{did_you_mean(name, vars(loaded))}")
    return function


def _digest(module: str) -> str:
    """Of the file that the function is in; files that it reads itself are not known here."""
    path = module if module.endswith(".py") else sys.modules[module].__file__
    return f"sha256-{hashlib.sha256(Path(str(path)).read_bytes()).hexdigest()}"


def _of_cmkd(model: str, revision: str | None) -> Subject:
    found = locate_checkpoint(model, revision)
    engine = load_engine(ModelChoice(found.source, found.revision))
    return Subject(
        found.name,
        "cmkd",
        found.commit,
        engine.sampling_rate,
        tuple(engine.rated_dimensions),
        engine.parameters,
        True,
        "This package's own code.",
        lambda waves: engine.run(waves)[0].astype(np.float64),
    )


def _of_onnx(path: Path, revision: str | None) -> Subject:
    engine = load_engine(ModelChoice(str(path), revision))
    name = f"{path.absolute().parent.name}/{path.name}"
    facts = "The graph's own metadata, written by cmkd export."
    dimensions = tuple(engine.rated_dimensions)
    order = [engine.dimensions.index(dimension) for dimension in EMOTION_DIMENSIONS]
    return Subject(
        name,
        "onnx",
        engine.identity,
        engine.sampling_rate,
        dimensions,
        engine.parameters,
        True,
        facts,
        lambda waves: engine.run(waves)[0][:, order].astype(np.float64),
    )


class AudeeringModel(Wav2Vec2PreTrainedModel):
    """wav2vec 2.0 with the regression head of audEERING's published models: mean over time, dense, tanh, projection.

    The names of the weights are those of the checkpoints. Source: the card of
    `audeering/wav2vec2-large-robust-12-ft-emotion-msp-dim`.
    """

    config_class = Wav2Vec2Config

    def __init__(self, config: Wav2Vec2Config):
        super().__init__(config)
        self.wav2vec2 = Wav2Vec2Model(config)
        self.classifier = nn.ModuleDict(
            {
                "dense": nn.Linear(config.hidden_size, config.hidden_size),
                "out_proj": nn.Linear(config.hidden_size, config.num_labels),
            }
        )
        self.post_init()

    def forward(self, input_values: torch.Tensor) -> torch.Tensor:
        """(batch, samples), without padding -> (batch, labels)."""
        pooled = self.wav2vec2(input_values)[0].mean(dim=1)
        return self.classifier["out_proj"](torch.tanh(self.classifier["dense"](pooled)))


class OdysseyConfig(PreTrainedConfig):
    """Configuration of [`OdysseyModel`], with the fields of the published one.

    Args:
        ssl_type: The speech encoder: a folder or a name on the Hub, of which the configuration alone is read.
        hidden_size: Of the encoder and of the head.
        classifier_hidden_layers: Of the head.
        num_classes: Outputs.
        sampling_rate: Hz.
        mean, std: Of the waveforms that it was trained on, by which each is standardised.
    """

    model_type = "ser"

    def __init__(
        self,
        ssl_type: str = "microsoft/wavlm-large",
        hidden_size: int = 1024,
        classifier_hidden_layers: int = 1,
        num_classes: int = 3,
        sampling_rate: int = RATE,
        mean: float = 0.0,
        std: float = 1.0,
        **kwargs: Any,
    ):
        self.ssl_type = ssl_type
        self.hidden_size = hidden_size
        self.classifier_hidden_layers = classifier_hidden_layers
        self.num_classes = num_classes
        self.sampling_rate = sampling_rate
        self.mean = mean
        self.std = std
        super().__init__(**kwargs)


class AttentiveStatistics(nn.Module):
    """The mean and the standard deviation over time, weighted by attention (arXiv 1803.10963).

    Args:
        size: Of a frame.
    """

    def __init__(self, size: int):
        super().__init__()
        self.sap_linear = nn.Linear(size, size)
        self.attention = nn.Parameter(torch.zeros(size, 1))

    def forward(self, states: torch.Tensor, heard: torch.Tensor) -> torch.Tensor:
        """(batch, frames, size), and whether a frame counts (batch, frames) -> (batch, 2 * size)."""
        weights = torch.tanh(self.sap_linear(states)) @ self.attention
        weights = weights.masked_fill(~heard[..., None], -torch.inf).softmax(dim=1)
        mean = (states * weights).sum(1)
        variance = (states**2 * weights).sum(1) - mean**2
        return torch.cat([mean, variance.clamp(min=1e-5).sqrt()], dim=1)


class OdysseyModel(PreTrainedModel):
    """WavLM, attentive statistics and a small network: the baseline of the Odyssey-2024 challenge.

    The names of the weights are those of the checkpoints. Source: net/pooling.py and net/ser.py of
    `msplabresearch/MSP-Podcast_Challenge`.
    """

    config_class = OdysseyConfig

    def __init__(self, config: OdysseyConfig):
        super().__init__(config)
        size = config.hidden_size
        self.ssl_model = AutoModel.from_config(AutoConfig.from_pretrained(config.ssl_type))
        self.pool_model = AttentiveStatistics(size)
        sizes = [2 * size, *[size] * config.classifier_hidden_layers]
        layers = [
            nn.Sequential(nn.Linear(before, after), nn.LayerNorm(after), nn.ReLU()) for before, after in pairwise(sizes)
        ]
        out = nn.Sequential(nn.Linear(size, config.num_classes))
        self.ser_model = nn.ModuleDict({"fc": nn.Sequential(*layers), "out": out})
        self.post_init()

    def forward(self, waves: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(batch, samples), standardised and then padded with 0, and 1 where they are real -> (batch, classes)."""
        states = self.ssl_model(waves, attention_mask=mask).last_hidden_state
        frames = (mask.sum(1).long() - 1) // 320 + 1  # of 20 ms at 16 kHz, as published
        heard = torch.arange(states.shape[1], device=states.device) < frames[:, None]
        return self.ser_model["out"](self.ser_model["fc"](self.pool_model(states, heard)))


def _of_audeering(source: str, revision: str | None, name: str, identity: str) -> Subject:
    model = _weights(AudeeringModel, source, revision)
    columns = _columns(source, model.config.id2label)
    extractor = AutoFeatureExtractor.from_pretrained(source, revision=revision)

    @torch.inference_mode()
    def score(waves: Sequence[np.ndarray]) -> np.ndarray:
        rows = []
        for wave in waves:
            values = extractor(wave, sampling_rate=extractor.sampling_rate, return_tensors="pt")["input_values"]
            rows.append(model(values.to(model.device))[0].double().cpu().numpy()[columns])
        return np.array(rows)

    facts = (
        "Architecture and head from the published card, the order of the outputs from the configuration; checked on "
        "random weights, not on the published ones."
    )
    count = model.num_parameters()
    return Subject(name, "audeering", identity, extractor.sampling_rate, EMOTION_DIMENSIONS, count, False, facts, score)


def _of_odyssey(source: str, revision: str | None, name: str, identity: str) -> Subject:
    model = _weights(OdysseyModel, source, revision)
    config = model.config
    if config.num_classes != len(_PUBLISHED_ORDER):
        raise ValueError(
            f"{source!r} has num_classes {config.num_classes}, but only the baseline with three outputs, "
            f"{enumerated(_PUBLISHED_ORDER)}, can be audited: name SER-Odyssey-Baseline-WavLM-Multi-Attributes."
        )
    columns = [_PUBLISHED_ORDER.index(theirs) for theirs in _in_our_order()]

    @torch.inference_mode()
    def score(waves: Sequence[np.ndarray]) -> np.ndarray:
        padded = torch.zeros(len(waves), max(map(len, waves)))
        mask = torch.zeros_like(padded)
        for row, of_row, wave in zip(padded, mask, waves, strict=True):
            row[: len(wave)] = (torch.from_numpy(wave) - config.mean) / (config.std + 1e-6)
            of_row[: len(wave)] = 1
        return model(padded.to(model.device), mask.to(model.device)).double().cpu().numpy()[:, columns]

    facts = (
        "Architecture from the published code; the order of the outputs (arousal, dominance, valence) from the card; "
        "checked on random weights, not on the published ones."
    )
    count = model.num_parameters()
    return Subject(name, "odyssey", identity, config.sampling_rate, EMOTION_DIMENSIONS, count, True, facts, score)


def _of_vox_profile(source: str, revision: str | None, name: str, identity: str) -> Subject:
    config = PreTrainedConfig.get_config_dict(source, revision=revision)[0]
    encoder, method = config["pretrain_model"], config.get("finetune_method")
    if encoder not in vox_profile.ENCODERS or method == "lora":
        raise ValueError(
            f"{source!r} has pretrain_model {encoder!r} and finetune_method {method!r}, but only models of "
            f"{enumerated(list(vox_profile.ENCODERS))} without LoRA can be audited, as those for arousal, valence and "
            "dominance are published."
        )
    model = _weights(VoxProfileModel, source, revision)
    seconds = {"chunk_length": vox_profile.SECONDS} if encoder == "whisper_large" else {}
    extractor = AutoFeatureExtractor.from_pretrained(vox_profile.ENCODERS[encoder], **seconds)
    columns = [vox_profile.OUTPUTS.index(theirs) for theirs in _in_our_order()]

    @torch.inference_mode()
    def score(waves: Sequence[np.ndarray]) -> np.ndarray:
        rows = []
        for wave in waves:
            heard = wave[: vox_profile.SECONDS * RATE]
            values = extractor(heard, sampling_rate=RATE, return_tensors="pt")[extractor.model_input_names[0]]
            rows.append(model(values.to(model.device), len(heard))[0].double().cpu().numpy()[columns])
        return np.array(rows)

    facts = (
        "Architecture and the order of the outputs (arousal, valence, dominance) from the published code; only the "
        f"first {vox_profile.SECONDS} s of a recording are heard, as its makers ask; checked on random weights, not on "
        "the published ones."
    )
    return Subject(name, "vox-profile", identity, RATE, EMOTION_DIMENSIONS, model.num_parameters(), False, facts, score)


_VOX_PROFILE = vox_profile.VoxProfileConfig.model_type
_ADAPTERS = {"wav2vec2": _of_audeering, "ser": _of_odyssey, _VOX_PROFILE: _of_vox_profile}


def _in_our_order() -> list[str]:
    theirs = {ours: name for name, ours in _OURS.items()}
    return [theirs[dimension] for dimension in EMOTION_DIMENSIONS]


def _columns(source: str, labels: Mapping[int, str]) -> list[int]:
    """Where activation, valence and dominance are among the outputs, by the names that the configuration gives them."""
    places = {label.casefold(): index for index, label in labels.items()}
    if set(places) != set(_OURS):
        raise ValueError(
            f"{source!r} names its outputs {enumerated(list(labels.values()))}, but they must be "
            f"{enumerated(_PUBLISHED_ORDER)} (id2label of config.json): it is another model of the same encoder."
        )
    return [places[name] for name in _in_our_order()]


def _weights(kind: type[Any], source: str, revision: str | None) -> Any:
    """A model in evaluation mode, all of whose weights are in its files."""
    model, found = kind.from_pretrained(source, revision=revision, dtype=torch.float32, output_loading_info=True)
    missing = sorted(name for name in found["missing_keys"] if not name.endswith("masked_spec_embed"))  # of training
    if missing:
        raise ValueError(
            f"{source!r} has no weights for {missing[0]} ({len(missing)} are missing): it is another model than its "
            "model type says."
        )
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    return model.to(device).eval()
