"""`spoken-demo`: a small emotional speech corpus that needs no download, spoken by a synthesiser.

What it is for: running the whole method in minutes, on speech in which the answer is known. What it is not: human
speech or human judgement. Every utterance is synthetic, and the valence of the words is the authors' assignment, not a
rating by people.

- **Words.** A sentence is one of ten patterns with a noun, a name or a place and exactly one of `VALENCE_WORDS`, all in
  the same grammatical role (an adjective), for example "The letter from Boston was gloomy.". The words are ranked by
  the authors from the most negative to the most positive and spaced evenly: word k of n has valence -1 + 2 k / (n - 1).
  About a third are negative, a third neutral, a third positive; they differ from one another by at least half of their
  sounds, and neither their number of syllables nor of sounds goes with their rank.
- **Prosody.** Activation and dominance are acted (`cmkd.corpora.acted_speech`), independently of one another, of the
  words and of the speaker. Valence is therefore in the words and nowhere else; activation and dominance are in the
  voice and nowhere else.
- **Labels**, on a scale of 1 to 7: 4 + 2 x level, where the level of each dimension lies in -1 to 1, plus rater noise.
- **Splits.** No sentence occurs twice in the corpus, and no speaker in two splits: the validation and test splits say
  the known words in new sentences and new voices. Their voices are also new to the demo's own speech encoder
  (`cmkd.corpora.speech_synthesis.HELD_OUT_VOICES`).

The speech is made by espeak-ng, which is GPL-3.0 and comes with the optional extra `cmkd[demo]`; the corpus itself is
free of it and carries this project's licence.
"""

import os
import random
from collections.abc import Iterator

from cmkd.corpora.acted_speech import SPLIT_VOICES, Utterance, act, rating, spoken_splits
from cmkd.corpora.checks import CorpusReport
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

NOUNS = tuple(
    "book concert dinner film garden journey kitchen letter market meeting office picture song story street village".split()
)
NAMES = tuple("Anna David Helen Kevin Lucy Maria Peter Robert Susan Thomas".split())
PLACES = tuple("Boston Cairo Denver Dublin London Madrid Oslo Paris".split())

VALENCE_WORDS = tuple(
    """
    horrible disgusting tragic vile miserable cruel shocking nasty depressing gloomy rotten sad boring
    dull strange plain common typical wooden second public square modern traditional local quiet simple
    decent fresh clever sunny charming generous happy nice perfect splendid great wonderful fantastic
    """.split()
)
"""From the most negative to the most positive: the authors' ranking."""


def word_valences(num_words: int) -> dict[str, float]:
    """Picks `num_words` of `VALENCE_WORDS`, evenly over the ranking, and returns the valence of each, -1 to 1.

    >>> word_valences(3)
    {'horrible': -1.0, 'square': 0.07692307692307687, 'fantastic': 1.0}
    """
    last = len(VALENCE_WORDS) - 1
    ranks = [round(index * last / (num_words - 1)) for index in range(num_words)]
    return {VALENCE_WORDS[rank]: 2 * rank / last - 1 for rank in ranks}


def sentences(word: str, rng: random.Random) -> Iterator[str]:
    """Yields sentences with a valence word, no two the same, in random order; the patterns take turns."""
    fillings = []
    for pattern in rng.sample(PATTERNS, len(PATTERNS)):
        others = NAMES if "{name}" in pattern else PLACES
        filled = [pattern.format(word=word, noun=noun, name=other, place=other) for noun in NOUNS for other in others]
        fillings.append(rng.sample(filled, len(filled)))
    for turn in zip(*fillings):  # as many turns as the pattern with the fewest fillings has  # noqa: B905
        for sentence in turn:
            yield sentence[0].upper() + sentence[1:]


SENTENCES_A_WORD = len(PATTERNS) * len(NOUNS) * min(len(NAMES), len(PLACES))


def build(
    data_dir: str | os.PathLike[str] | None,
    on_error: str,
    *,
    train: int = 1400,
    validation: int = 240,
    test: int = 400,
    num_words: int = 40,
    label_noise: float = 0.35,
    seed: int = 0,
    num_proc: int = 2,
) -> Corpus:
    """Speaks the corpus. See the module's documentation for what is in it.

    Args:
        data_dir (`None`): This corpus needs no data.
        on_error (`str`): Without effect: there is nothing that could be wrong.
        train (`int`, *optional*, defaults to 1400): Utterances in the training split.
        validation (`int`, *optional*, defaults to 240): Utterances in the validation split.
        test (`int`, *optional*, defaults to 400): Utterances in the test split.
        num_words (`int`, *optional*, defaults to 40): How many valence words there are, at least 2. Every split has
            each of them equally often (give or take one).
        label_noise (`float`, *optional*, defaults to 0.35): The raters' noise in all three dimensions, in standard
            deviations of the noise-free ratings.
        seed (`int`, *optional*, defaults to 0): Decides sentences, speakers, levels and noise.
        num_proc (`int`, *optional*, defaults to 2): Processes that speak; without influence on what is spoken.

    Raises:
        ValueError: An argument is out of its range.
        ImportError: espeak-ng is not installed.
    """
    if data_dir is not None:
        raise ValueError(f"data_dir is {str(data_dir)!r}, but spoken-demo needs no data: leave it out.")
    sizes = {"train": train, "validation": validation, "test": test}
    _check(sizes, num_words)
    rng = random.Random(f"{seed}/spoken-demo")
    valences = word_valences(num_words)
    unused = {word: sentences(word, rng) for word in valences}
    splits: dict[str, list[Utterance]] = {}
    for split, size in sizes.items():
        rounds = [rng.sample(list(valences), num_words) for _ in range(math.ceil(size / num_words))]
        splits[split] = [
            _utterance(f"{split}-{index:04d}", next(unused[word]), valences[word], split, label_noise, seed)
            for index, word in enumerate(itertools.chain.from_iterable(rounds))
            if index < size
        ]
    return Corpus(spoken_splits("spoken-demo", splits, LABEL_SCALE, num_proc), report)
