"""Sentences whose words people have rated, in voices that are neutral: what a score follows there is the words.

The sentences are those of EmoBank's test split with 3 to 16 words, and a synthesiser of `cmkd.corpora.synthesisers`
speaks each in one of the voices that it has for tests, as SpokenEmoBank gives them out, but without acting. What is
spoken is kept as [`cmkd.corpora.performed_speech.SpeechStore`] keeps it.
"""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import soxr

from cmkd.corpora.performed_speech import SpeechStore
from cmkd.corpora.speech_synthesis import Voice
from cmkd.corpora.spoken_emobank import LABEL_SCALE, SPEAKERS, Sentence, read_sentences
from cmkd.corpora.synthesisers import make_synthesiser
from cmkd.spelling import did_you_mean

SENTENCES, QUICK_SENTENCES = 240, 60
"""How many are spoken, and how many with `--quick`."""

_SPLIT = "test"
_SEED = 0


@dataclass(frozen=True)
class RatedWords:
    """Sentences that a synthesiser speaks.

    Attributes:
        sentences: n of them.
        voices: Who speaks each.
        store: Where the speech is, or who speaks it.
        digest: Of sentences, voices and synthesiser.
    """

    sentences: Sequence[Sentence]
    voices: Sequence[Voice]
    store: SpeechStore
    digest: str

    @property
    def ids(self) -> list[str]:
        return [sentence.id for sentence in self.sentences]

    @property
    def speakers(self) -> list[str]:
        return [voice.name for voice in self.voices]

    @property
    def genders(self) -> list[str]:
        return [voice.gender for voice in self.voices]

    @property
    def condition(self) -> str:
        """The name of the answers to them; that of other sentences or another synthesiser is another."""
        return f"words_{self.store.synthesiser.name}_{self.digest}"

    @property
    def about(self) -> str:
        return (
            f"{len(self.sentences)} sentences of EmoBank's {_SPLIT} split, spoken by {self.store.synthesiser.licence}"
        )

    @property
    def valence(self) -> np.ndarray:
        """The ratings of the words (n,), on the unit interval."""
        low, high = LABEL_SCALE
        return (np.array([sentence.valence for sentence in self.sentences]) - low) / (high - low)

    def read(self, index: int, rate: int) -> np.ndarray:
        """A sentence as it is spoken, (samples,) of float32."""
        samples, own = self.store.speech(self.sentences[index].text, self.voices[index])
        return samples if own == rate else np.asarray(soxr.resample(samples, own, rate), dtype=np.float32)


def rated_words(
    table: str | os.PathLike[str],
    synthesiser: str,
    most: int,
    models_dir: str | os.PathLike[str] | None = None,
    speech_dir: str | os.PathLike[str] | None = None,
) -> RatedWords:
    """Chooses sentences, evenly over the range of the ratings, and who speaks them.

    Args:
        table: EmoBank's file, emobank.csv, or the folder that it is in.
        synthesiser: "espeak" or "kokoro".
        most: How many sentences, at most.
        models_dir: The folder of Kokoro's files; None takes them from the Hub.
        speech_dir: Where speech is kept; None for the folder `speech` of the cache.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: There is no such synthesiser, or the file cannot be used.
        ImportError: The synthesiser is not installed.
    """
    if synthesiser not in SPEAKERS:
        listed = ", ".join(map(repr, SPEAKERS))
        raise ValueError(f"--words_voices {synthesiser}: must be one of {listed}.{did_you_mean(synthesiser, SPEAKERS)}")
    sentences = evenly(read_sentences(table, _SPLIT), most)
    speaker = make_synthesiser(synthesiser, models_dir)
    voices = [  # as `cmkd.corpora.spoken_emobank` draws them for Kokoro, so that what it has spoken is used here, too
        random.Random(f"{_SEED}/{sentence.id}").choice(speaker.split_voices[_SPLIT]) for sentence in sentences
    ]
    said = "\n".join(f"{sentence!r} {voice.name}" for sentence, voice in zip(sentences, voices, strict=True))
    digest = hashlib.sha256(f"{speaker.name} {speaker.digest}\n{said}".encode()).hexdigest()[:12]
    kept = Path(datasets.config.HF_DATASETS_CACHE, "cmkd", "speech") if speech_dir is None else Path(speech_dir)
    return RatedWords(sentences, voices, SpeechStore(kept, speaker), digest)


def evenly(sentences: Sequence[Sentence], most: int) -> list[Sentence]:
    """As many sentences as are asked for, their ratings as evenly over the range as there are sentences for it.

    Each of as many values, at equal steps from the lowest rating to the highest, takes the nearest sentence that none
    before it has taken; at the ends, where there are few, sentences further inside are taken.
    """
    left = sorted(sentences, key=lambda sentence: (sentence.valence, sentence.id))
    if len(left) <= most:
        return left
    taken = []
    for target in np.linspace(left[0].valence, left[-1].valence, most):
        nearest = min(left, key=lambda sentence: abs(sentence.valence - target))
        taken.append(nearest)
        left.remove(nearest)
    return taken
