"""`spoken-demo`: a small emotional speech corpus that needs no download, spoken by a synthesiser.

What it is for: running the whole method in minutes, on speech in which the answer is known. What it is not: human
speech or human judgement. Every utterance is synthetic, and the valence of the words is the authors' assignment, not a
rating by people.

- **Words.** A sentence is one of ten patterns with a noun, a name or a place and exactly one of `VALENCE_WORDS`, all in
  the same grammatical role (an adjective), for example "The letter in Boston was gloomy.". The authors ranked the words
  from the most negative to the most positive and spaced them evenly: of 40 words, word k has valence -1 + 2 k / 39.
  About a third are negative, a third neutral, a third positive. Any two differ in more than half of their sounds, and
  the number of sounds and of syllables does not go with the rank (correlations .02 and -.06).
- **Prosody.** Activation and dominance are acted (`cmkd.corpora.acted_speech`), independently of one another, of the
  words and of the speaker. Valence is therefore in the words and nowhere else; activation and dominance are in the
  voice and nowhere else.
- **Labels**, on a scale of 1 to 7: 4 + 2 x level, where the level of each dimension lies in -1 to 1, plus rater noise.
  Training labels are noisy, as by a single rater: the noise has the standard deviation of the truth. Validation and
  test labels are as by several raters together, with noise of 0.35 standard deviations.
- **Splits.** No sentence occurs twice in the corpus, and no speaker in two splits: the validation and test splits say
  the known words in new sentences and new voices. Their voices are also new to the demo's own speech encoder
  (`cmkd.corpora.speech_synthesis.HELD_OUT_VOICES`).

The sentences carry this project's licence. The speech is made by espeak-ng, which is GPL-3.0 and comes with the
optional extra `cmkd[demo]`.
"""

from __future__ import annotations

import itertools
import os
import random
import re
from collections.abc import Iterator, Mapping

from cmkd.corpora.acted_speech import ActedUtterance, perform, rating, spoken_corpus
from cmkd.corpora.report import CorpusReport
from cmkd.corpora.schema import Corpus

LABEL_SCALE = (1.0, 7.0)

PATTERNS = (
    "The {noun} in {place} was {word}.",
    "{name} said the {noun} was {word}.",
    "That was a {word} {noun}, {name}.",
    "We had a {word} {noun} in {place}.",
    "{word} is what {name} called the {noun}.",
    "{name} has a {word} {noun}.",
    "This {word} {noun} is from {place}.",
    "The {word} {noun} belongs to {name}.",
    "{name} called the {noun} {word}.",
    "In {place} the {noun} is {word}.",
)
"""The sentences, with the valence word at the start, in the middle and at the end."""

# fmt: off
NOUNS = (
    "book", "concert", "dinner", "film", "garden", "journey", "kitchen", "letter", "market", "meeting", "office",
    "picture", "song", "story", "street", "village",
)
NAMES = ("Anna", "David", "Helen", "Kevin", "Lucy", "Maria", "Peter", "Robert", "Susan", "Thomas")
PLACES = ("Boston", "Cairo", "Denver", "Dublin", "London", "Madrid", "Oslo", "Paris")

VALENCE_WORDS = (
    "horrible", "disgusting", "tragic", "vile", "miserable", "cruel", "shocking", "nasty", "depressing", "gloomy",
    "rotten", "sad", "boring",
    "dull", "strange", "plain", "common", "typical", "wooden", "second", "public", "square", "modern",
    "traditional", "local", "quiet", "simple",
    "decent", "fresh", "clever", "sunny", "charming", "generous", "happy", "nice", "perfect", "splendid", "great",
    "wonderful", "fantastic",
)
# fmt: on
"""From the most negative to the most positive: the authors' ranking."""

SENTENCES_A_WORD = len(PATTERNS) * len(NOUNS) * min(len(NAMES), len(PLACES))
"""How many different sentences there are with one valence word."""


def word_valences(num_words: int) -> dict[str, float]:
    """Picks `num_words` of `VALENCE_WORDS`, evenly over the ranking, and returns the valence of each, -1 to 1.

    >>> word_valences(2)
    {'horrible': -1.0, 'fantastic': 1.0}
    """
    last = len(VALENCE_WORDS) - 1
    ranks = [round(index * last / (num_words - 1)) for index in range(num_words)]
    return {VALENCE_WORDS[rank]: 2 * rank / last - 1 for rank in ranks}


def sentences(word: str, rng: random.Random) -> Iterator[str]:
    """Yields `SENTENCES_A_WORD` different sentences with a valence word, in random order; the patterns take turns.

    >>> next(sentences("gloomy", random.Random(0)))
    'This gloomy kitchen is from Paris.'
    """
    by_pattern = []
    for pattern in rng.sample(PATTERNS, len(PATTERNS)):
        others = NAMES if "{name}" in pattern else PLACES
        filled = [pattern.format(word=word, noun=noun, name=other, place=other) for noun in NOUNS for other in others]
        by_pattern.append(rng.sample(filled, SENTENCES_A_WORD // len(PATTERNS)))
    for turn in zip(*by_pattern, strict=True):
        yield from (sentence[0].upper() + sentence[1:] for sentence in turn)


def vocabulary() -> list[str]:
    """Returns every word that a sentence of this corpus may have, in lower case and alphabetical order."""
    text = " ".join((*PATTERNS, *NOUNS, *NAMES, *PLACES, *VALENCE_WORDS)).lower()
    return sorted(set(re.findall(r"(?<!{)\b[a-z]+", text)))


def build(
    data_dir: str | os.PathLike[str] | None,
    on_error: str,
    *,
    train: int = 1400,
    validation: int = 240,
    test: int = 400,
    num_words: int = 40,
    train_label_noise: float = 1.0,
    label_noise: float = 0.35,
    seed: int = 0,
    num_proc: int = 2,
) -> Corpus:
    """Speaks the corpus that the module's documentation describes, or takes it from the cache.

    Args:
        data_dir (`None`): This corpus needs no data.
        on_error (`str`): Without effect: no row can be wrong.
        train (`int`, *optional*, defaults to 1400): Utterances in the training split.
        validation (`int`, *optional*, defaults to 240): Utterances in the validation split.
        test (`int`, *optional*, defaults to 400): Utterances in the test split.
        num_words (`int`, *optional*, defaults to 40): Valence words, 2 to 40, taken evenly from the list. Each
            occurs equally often in a split, give or take one.
        train_label_noise (`float`, *optional*, defaults to 1.0): The rater's noise in each dimension of the training
            split, in standard deviations of the noise-free ratings.
        label_noise (`float`, *optional*, defaults to 0.35): The rater's noise in each dimension of validation and test,
            in the same unit.
        seed (`int`, *optional*, defaults to 0): Seed of sentences, speakers, prosody and noise.
        num_proc (`int`, *optional*, defaults to 2): Processes that speak; what is spoken does not depend on it.

    Raises:
        ValueError: A setting is out of its range, or `data_dir` is given.
        ImportError: espeak-ng is not installed.
    """
    if data_dir is not None:
        raise ValueError(f"data_dir is {str(data_dir)!r}, but spoken-demo needs no data: leave data_dir out.")
    sizes = {"train": train, "validation": validation, "test": test}
    _check_settings(sizes, num_words, train_label_noise, label_noise)
    valences = word_valences(num_words)
    drawn = random.Random(f"{seed}/{num_words}")
    unused = {word: sentences(word, drawn) for word in valences}
    splits: dict[str, list[ActedUtterance]] = {}
    for split, size in sizes.items():
        noise = train_label_noise if split == "train" else label_noise
        rounds = (drawn.sample(list(valences), num_words) for _ in itertools.count())
        splits[split] = []
        for index, word in enumerate(itertools.islice(itertools.chain.from_iterable(rounds), size)):
            id = f"{split}-{index:04d}"
            rng = random.Random(f"{seed}/{id}")
            splits[split].append(
                perform(
                    id,
                    next(unused[word]),
                    rating(valences[word], LABEL_SCALE, noise, rng),
                    split,
                    label_scale=LABEL_SCALE,
                    label_noise=noise,
                    rng=rng,
                )
            )
    report = CorpusReport(
        name="spoken-demo",
        release="",  # spoken_corpus makes it
        label_scale=LABEL_SCALE,
        config={
            **sizes,
            "num_words": num_words,
            "train_label_noise": train_label_noise,
            "label_noise": label_noise,
            "seed": seed,
        },
        notes=["synthetic speech (espeak-ng, GPL-3.0); valence is the authors' assignment, not a human rating"],
    )
    return spoken_corpus(splits, report, num_proc)


def _check_settings(sizes: Mapping[str, int], num_words: int, train_label_noise: float, label_noise: float) -> None:
    if not 2 <= num_words <= len(VALENCE_WORDS):
        raise ValueError(f"num_words is {num_words}, but must be from 2 to {len(VALENCE_WORDS)}.")
    for name, noise in (("train_label_noise", train_label_noise), ("label_noise", label_noise)):
        if noise < 0:
            raise ValueError(f"{name} is {noise}, but must be at least 0.")
    for split, size in sizes.items():
        if size < 1:
            raise ValueError(f"{split} is {size}, but must be at least 1.")
    needed = sum(-(-size // num_words) for size in sizes.values())
    if needed > SENTENCES_A_WORD:
        raise ValueError(
            f"train, validation, test and num_words are {', '.join(map(str, [*sizes.values(), num_words]))}, which "
            f"needs {needed:,} sentences with each word, but there are {SENTENCES_A_WORD:,}: ask for fewer utterances."
        )
