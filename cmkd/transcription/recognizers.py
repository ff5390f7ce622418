"""Recognises speech with any Whisper-like or CTC model of transformers: waveforms in, texts out.

An utterance gets the same text in every batch as it gets alone. If padding would change a model's output (CTC models
whose convolutions normalise over time, such as wav2vec 2.0 Base; encoder-decoders other than Whisper), utterances
therefore go through one at a time. Decoding is greedy. The text of an encoder-decoder ends after 10 tokens plus 25 for
each second of the utterance: a model that writes more is repeating itself, as small ones do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from transformers import (
    MODEL_FOR_CTC_MAPPING,
    MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING,
    AutoConfig,
    AutoFeatureExtractor,
    AutoModelForCTC,
    AutoModelForSpeechSeq2Seq,
    AutoTokenizer,
)
from transformers.models.whisper.configuration_whisper import NON_SPEECH_TOKENS, NON_SPEECH_TOKENS_MULTI
from transformers.models.whisper.tokenization_whisper import TASK_IDS, TO_LANGUAGE_CODE

from cmkd.identity import folder_digest, hub_commit

Precision = Literal["float32", "bfloat16", "float16"]

NO_SPEECH_THRESHOLD = 0.6
"""Whisper's own threshold: if the probability of no speech is at least this, nobody speaks."""

SILENCE = 1e-4
"""The largest sample of a waveform that counts as silent: three steps of 16 bits. In silence models invent words."""

_ENGLISH_VOCABULARY, _MULTILINGUAL_VOCABULARY = 51864, 51865
_SHORTEST = 0.05  # seconds, less than any word, and more than one frame of any model
_CUT_WINDOW = 0.1  # seconds
_TOKENS_PER_SECOND = 25  # more than anybody speaks, in any language


@dataclass(frozen=True)
class Hypothesis:
    """What a model heard.

    Attributes:
        text (`str`): The text, "" if there are no words.
        log_probability (`float`): Natural logarithm of its probability, summed over the tokens.
        tokens (`int`): The number of tokens. Those of an encoder-decoder include the one that ends the text; those of a
            CTC model are the frames that are not blank.
        no_speech_probability (`float`, *optional*): The probability that nobody speaks; None if the model has none.
    """

    text: str
    log_probability: float = 0.0
    tokens: int = 0
    no_speech_probability: float | None = None

    @property
    def average_log_probability(self) -> float | None:
        return self.log_probability / self.tokens if self.tokens else None

    def __add__(self, other: Hypothesis) -> Hypothesis:
        """The hypothesis for two pieces of an utterance; there is speech if there is speech in either."""
        silences = [p for p in (self.no_speech_probability, other.no_speech_probability) if p is not None]
        return Hypothesis(
            " ".join(text for text in (self.text, other.text) if text),
            self.log_probability + other.log_probability,
            self.tokens + other.tokens,
            min(silences, default=None),
        )


def load_recognizer(
    model: str,
    models_dir: str | None = None,
    revision: str | None = None,
    language: str | None = None,
    precision: Precision = "float32",
    device: torch.device | str = "cpu",
) -> SpeechRecognizer:
    """Loads a model that recognises speech.

    Args:
        model (`str`): Hub name or folder.
        models_dir (`str`, *optional*): Folder that holds models under their Hub names, which is searched first.
        revision (`str`, *optional*): Branch, tag or commit on the Hub.
        language (`str`, *optional*): The language of the speech, such as "en" or "english", for a multilingual Whisper;
            None lets the model detect it for each utterance.
        precision (`str`, *optional*, defaults to `"float32"`): The precision of weights and activations.
        device (`torch.device`, *optional*, defaults to `"cpu"`): The device on which it runs.

    Raises:
        OSError: There is no such model.
        ValueError: It is not a model for speech recognition, or its checkpoint lacks weights (for example an encoder
            without a trained CTC head), or the language or the precision does not fit.
    """
    if precision not in get_args(Precision):
        raise ValueError(f"precision is {precision!r}, but must be one of {', '.join(get_args(Precision))}.")
    folder = Path(models_dir or "") / model
    source = str(folder) if models_dir is not None and folder.is_dir() else model
    if revision is not None and Path(source).is_dir():
        raise ValueError(f"revision is {revision!r}, but {source!r} is a folder: a revision is one of the Hub.")
    try:
        config = AutoConfig.from_pretrained(source, revision=revision)
    except OSError as error:
        raise OSError(f"The model {model!r} cannot be loaded: {error}") from error
    if type(config) in MODEL_FOR_CTC_MAPPING:
        kind: Any = AutoModelForCTC
        recognizer: type[SpeechRecognizer] = CTCRecognizer
    elif type(config) in MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING:
        kind, recognizer = AutoModelForSpeechSeq2Seq, EncoderDecoderRecognizer
        if config.model_type == "whisper":
            recognizer = WhisperRecognizer
    else:
        raise ValueError(
            f"{model!r} is a {config.model_type} model, which is not one for speech recognition: name a Whisper or a "
            "CTC model, for example openai/whisper-small.en or facebook/wav2vec2-base-960h."
        )
    network, info = kind.from_pretrained(
        source, revision=revision, dtype=getattr(torch, precision), output_loading_info=True
    )
    if info["missing_keys"]:
        raise ValueError(
            f"{model!r} lacks {len(info['missing_keys'])} weights, such as {min(info['missing_keys'])!r}: it has not "
            "been trained to recognise speech. Name a model that has."
        )
    if language is not None and recognizer is not WhisperRecognizer:
        raise ValueError(f"language is {language!r}, but {model!r} has no choice of languages: leave it out.")
    return recognizer(
        network.to(device).eval(),
        AutoFeatureExtractor.from_pretrained(source, revision=revision),
        AutoTokenizer.from_pretrained(source, revision=revision),
        name=model,
        revision=folder_digest(Path(source)) if Path(source).is_dir() else hub_commit(source, revision),
        language=language,
    )


class SpeechRecognizer:
    """A model with its feature extractor and tokenizer.

    Attributes:
        name (`str`): The name of the model.
        revision (`str`): Its commit on the Hub, or "sha256-" and the beginning of the digest of a folder's files.
        seconds (`float`, *optional*): The longest utterance that it takes at once, in seconds; longer ones are cut
            where they are quietest, and their texts are joined.
        one_at_a_time (`bool`): Whether padding would change its output.
    """

    seconds: float | None = None
    one_at_a_time = True

    def __init__(
        self, network: Any, feature_extractor: Any, tokenizer: Any, name: str, revision: str, language: str | None
    ):
        self.network, self.feature_extractor, self.tokenizer = network, feature_extractor, tokenizer
        self.name, self.revision, self.language = name, revision, language
        self.sampling_rate: int = feature_extractor.sampling_rate
        self._prepare()

    def _prepare(self) -> None:
        """Sets up what a subclass needs in addition."""

    def cost(self, seconds: float) -> float:
        """The seconds of audio that the model computes for an utterance; padding to others in a batch comes on top."""
        return seconds

    def recognize(self, waveforms: Sequence[np.ndarray]) -> list[Hypothesis]:
        """Recognises a batch.

        Args:
            waveforms (list of `np.ndarray`): float32 of shape (samples,), at `sampling_rate`.

        Returns:
            `list[Hypothesis]`: One per waveform.
        """
        pieces = [cut(waveform, self.sampling_rate, self.seconds) for waveform in waveforms]
        audible = [piece for of_one in pieces for piece in of_one if self._is_audible(piece)]
        size = 1 if self.one_at_a_time else len(audible)
        heard = []
        with torch.inference_mode():
            for start in range(0, len(audible), max(size, 1)):
                heard += self._recognize(audible[start : start + size])
        texts = iter(heard)
        return [sum((next(texts) for piece in of_one if self._is_audible(piece)), Hypothesis("")) for of_one in pieces]

    def _is_audible(self, waveform: np.ndarray) -> bool:
        return len(waveform) >= _SHORTEST * self.sampling_rate and np.abs(waveform).max() > SILENCE

    def _recognize(self, waveforms: Sequence[np.ndarray]) -> list[Hypothesis]:
        raise NotImplementedError

    def _features(self, waveforms: Sequence[np.ndarray], **padding: Any) -> dict[str, torch.Tensor]:
        inputs = self.feature_extractor(
            list(waveforms), sampling_rate=self.sampling_rate, return_tensors="pt", **padding
        )
        return {
            name: value.to(self.network.device, self.network.dtype if value.is_floating_point() else None)
            for name, value in inputs.items()
        }


class CTCRecognizer(SpeechRecognizer):
    """wav2vec 2.0, HuBERT, WavLM and the like with a CTC head; the best token of each frame, without language model."""

    def _prepare(self) -> None:
        settings = self.network.config.to_dict()
        self.strides = list(zip(settings.get("conv_kernel", ()), settings.get("conv_stride", ()), strict=True))
        masked = settings.get("feat_extract_norm") == "layer" and not settings.get("add_adapter")
        self.one_at_a_time = not (masked and self.strides)

    def _recognize(self, waveforms: Sequence[np.ndarray]) -> list[Hypothesis]:
        inputs = self._features(waveforms, padding=True, return_attention_mask=True)
        best = self.network(**inputs).logits.float().log_softmax(-1).max(-1)
        hypotheses = []
        for index, waveform in enumerate(waveforms):
            frames = best.indices.shape[1] if self.one_at_a_time else self._frames(len(waveform))
            tokens, scores = best.indices[index, :frames], best.values[index, :frames]
            spoken = tokens != self.network.config.pad_token_id
            text = self.tokenizer.decode(
                tokens.tolist()
            )  # specials stay: if they were removed earlier they would no longer separate letters
            for special in (self.tokenizer.bos_token, self.tokenizer.eos_token, self.tokenizer.unk_token):
                text = text if special is None else text.replace(special, "")
            hypotheses.append(Hypothesis(_words(text), scores[spoken].double().sum().item(), int(spoken.sum())))
        return hypotheses

    def _frames(self, samples: int) -> int:
        for kernel, stride in self.strides:
            samples = (samples - kernel) // stride + 1
        return samples


class EncoderDecoderRecognizer(SpeechRecognizer):
    """Any model that writes the text token by token."""

    def _prepare(self) -> None:
        self.network.generation_config.update(do_sample=False, num_beams=1)

    def _recognize(self, waveforms: Sequence[np.ndarray]) -> list[Hypothesis]:
        inputs = self._features(waveforms, padding=True, return_attention_mask=True)
        limits = self._limits(waveforms)
        return self._write(inputs, limits, max_new_tokens=max(limits))

    def _limits(self, waveforms: Sequence[np.ndarray]) -> list[int]:
        """The most tokens that are written for each utterance, whatever the others need."""
        return [10 + math.ceil(_TOKENS_PER_SECOND * len(waveform) / self.sampling_rate) for waveform in waveforms]

    def _write(self, inputs: dict[str, Any], limits: Sequence[int], **settings: Any) -> list[Hypothesis]:
        """Generates tokens and adds up their log-probabilities up to the one that ends the text."""
        output = self.network.generate(**inputs, **settings, return_dict_in_generate=True, output_scores=True)
        written = output.sequences[:, -len(output.scores) :]
        scores = self.network.compute_transition_scores(output.sequences, output.scores, normalize_logits=True)
        ends = torch.tensor(self.network.generation_config.eos_token_id, device=written.device)
        ended = torch.isin(written, ends).long()
        lengths = (ended.cumsum(-1) - ended == 0).sum(-1)  # with the token that ends the text
        hypotheses = []
        for tokens, values, length, limit in zip(written, scores, lengths.tolist(), limits, strict=True):
            tokens, values = tokens[: min(length, limit)], values[: min(length, limit)]
            text = _words(self.tokenizer.decode(tokens.tolist(), skip_special_tokens=True))
            hypotheses.append(Hypothesis(text, values.double().sum().item(), len(tokens)))
        return hypotheses


class WhisperRecognizer(EncoderDecoderRecognizer):
    """Whisper, in pieces of at most 30 s, without timestamps.

    What the checkpoint's generation config lacks is filled in: the start and end tokens, the one that asks for no
    timestamps, the tokens that are not speech, and the languages and tasks of a multilingual model. What it has is
    kept. If the probability that nobody speaks is at least `NO_SPEECH_THRESHOLD`, the text is "".
    """

    one_at_a_time = False

    def _prepare(self) -> None:
        super()._prepare()
        config, generation = self.network.config, self.network.generation_config
        known = generation.to_dict()
        self.seconds = self.feature_extractor.n_samples / self.sampling_rate
        added: dict[str, Any] = {}
        if known.get("decoder_start_token_id") is None:
            added["decoder_start_token_id"] = config.decoder_start_token_id
        for name in ("eos_token_id", "pad_token_id"):
            if known.get(name) is None:
                added[name] = self.tokenizer.eos_token_id
        without_timestamps = self._token("<|notimestamps|>")
        if known.get("no_timestamps_token_id") is None and without_timestamps is not None:
            added["no_timestamps_token_id"] = without_timestamps
        if known.get("suppress_tokens") is None and config.vocab_size >= _ENGLISH_VOCABULARY:
            added["suppress_tokens"] = (
                NON_SPEECH_TOKENS if config.vocab_size == _ENGLISH_VOCABULARY else NON_SPEECH_TOKENS_MULTI
            )
        multilingual = known.get("is_multilingual")
        if multilingual is None:
            added["is_multilingual"] = multilingual = config.vocab_size >= _MULTILINGUAL_VOCABULARY
        if multilingual:
            if known.get("lang_to_id") is None:
                languages = {f"<|{code}|>": self._token(f"<|{code}|>") for code in TO_LANGUAGE_CODE.values()}
                added["lang_to_id"] = {code: token for code, token in languages.items() if token is not None}
            if known.get("task_to_id") is None:
                added["task_to_id"] = {task: self._token(f"<|{task}|>") for task in TASK_IDS}
        for name, value in added.items():
            setattr(generation, name, value)
        if self.language is not None and not multilingual and self.language.lower() not in ("en", "english"):
            raise ValueError(f"language is {self.language!r}, but {self.name!r} knows English only: leave it out.")
        self.settings: dict[str, Any] = {"language": self.language, "task": "transcribe"} if multilingual else {}
        names = ("<|nospeech|>", "<|nocaptions|>")  # as new and old tokenizers call it
        self.no_speech = next((token for token in map(self._token, names) if token is not None), None)

    def cost(self, seconds: float) -> float:
        window = self.feature_extractor.n_samples / self.sampling_rate
        return math.ceil(seconds / window) * window  # it computes the silence after the utterance too

    def _recognize(self, waveforms: Sequence[np.ndarray]) -> list[Hypothesis]:
        features = self._features(waveforms)["input_features"]
        encoded = self.network.get_encoder()(features)
        limits = self._limits(waveforms)
        most = min(max(limits), self.network.config.max_target_positions)
        hypotheses = self._write({"encoder_outputs": encoded}, limits, max_length=most, **self.settings)
        if self.no_speech is None:
            return hypotheses
        start = torch.full((len(waveforms), 1), self.network.generation_config.decoder_start_token_id)
        first = self.network(encoder_outputs=encoded, decoder_input_ids=start.to(features.device)).logits[:, 0]
        silent = first.float().softmax(-1)[:, self.no_speech].tolist()
        return [
            Hypothesis(
                "" if probability >= NO_SPEECH_THRESHOLD else hypothesis.text,
                hypothesis.log_probability,
                hypothesis.tokens,
                probability,
            )
            for hypothesis, probability in zip(hypotheses, silent, strict=True)
        ]

    def _token(self, token: str) -> int | None:
        """The id of a token; None if the tokenizer does not have it."""
        return self.tokenizer.get_vocab().get(token)


def cut(waveform: np.ndarray, sampling_rate: int, seconds: float | None) -> list[np.ndarray]:
    """Cuts a waveform (samples,) into pieces of at most `seconds`, each where its second half is quietest.

    >>> [len(piece) for piece in cut(np.ones(25), 10, 1.0)]
    [5, 5, 5, 10]
    """
    pieces = []
    most = len(waveform) if seconds is None else int(seconds * sampling_rate)
    window = max(int(_CUT_WINDOW * sampling_rate), 1)
    while len(waveform) > most:
        energy = np.cumsum(np.square(waveform[most // 2 : most], dtype=np.float64))
        at = most // 2 + int((energy[window:] - energy[:-window]).argmin()) + window // 2
        pieces.append(waveform[:at])
        waveform = waveform[at:]
    return [*pieces, waveform]


def _words(text: str) -> str:
    """A text without surrounding spaces, "" if it has no letter or digit."""
    return text.strip() if any(character.isalnum() for character in text) else ""
