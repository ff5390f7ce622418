"""Pieces of words: what the stage `lexical` teaches a student to hear, learned from the words of its corpora.

They are made by byte-pair encoding (Sennrich et al. 2016) of the library `tokenizers`, over letters as people write
them and not over bytes: frequent words become a piece of their own, others are put together from several.
"""

import unicodedata
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from cmkd.atomic import written_whole


def spoken_letters(transcript: str) -> str:
    """The letters and apostrophes of a transcript in lower case, a space between words: what can be heard of it.

    Digits are left out, since how a number is read aloud depends on the language and on what it counts.

    >>> spoken_letters("Don't — he said, ‘NO!’ 3 times")
    "don't he said no times"
    """
    text = unicodedata.normalize("NFKC", transcript).replace("\u2019", "'").lower()
    kept = "".join(sign if sign == "'" or unicodedata.category(sign)[0] in "LM" else " " for sign in text)
    return " ".join(filter(None, (word.strip("'") for word in kept.split())))


def check_letters(transcripts: Sequence[str], number: int) -> None:
    """Checks that `number` pieces can spell the transcripts.

    Raises:
        ValueError: they have more letters than that, or none.
    """
    letters = set("".join(map(spoken_letters, transcripts))) - {" "}
    if not letters or len(letters) + 1 > number:
        raise ValueError(
            f"word_pieces={number}: the words to learn from have {len(letters)} different letters, and each has to be "
            "a piece, besides the beginning of a word. Give more pieces, as 2000; without words to learn from, null."
        )


def learn_word_pieces(transcripts: Sequence[str], number: int) -> Tokenizer:
    """Learns at most `number` pieces from transcripts; the same transcripts in the same order give the same pieces.

    Args:
        transcripts: as people write them; see [`spoken_letters`].
        number: of pieces, single letters included.

    Returns:
        A tokenizer of [`spoken_letters`]. "▁" begins a word. Numbers of pieces begin with 0.

    Raises:
        ValueError: the transcripts have more letters than `number`, or none.
    """
    check_letters(transcripts, number)
    words = [spoken_letters(transcript) for transcript in transcripts]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.train_from_iterator(words, trainers.BpeTrainer(vocab_size=number, show_progress=False))
    return tokenizer


def save_word_pieces(tokenizer: Tokenizer, path: Path) -> None:
    """Saves a tokenizer of word pieces as the library's JSON, whole or not at all."""
    with written_whole(path) as unfinished:
        tokenizer.save(str(unfinished))


def load_word_pieces(path: Path) -> Tokenizer:
    """Loads what [`save_word_pieces`] saved."""
    return Tokenizer.from_file(str(path))


def names_of(tokenizer: Tokenizer) -> list[str]:
    """The pieces, in the order of their numbers."""
    numbers = tokenizer.get_vocab()
    return sorted(numbers, key=numbers.__getitem__)


def numbers_of(tokenizer: Tokenizer, transcript: str) -> list[int]:
    """The numbers of the pieces of a transcript, in the order in which they are said.

    It is empty if there is nothing to spell, or a letter that no piece has.
    """
    words = spoken_letters(transcript)
    can_be_spelled = all(tokenizer.token_to_id(letter) is not None for letter in set(words) - {" "})
    return tokenizer.encode(words).ids if can_be_spelled else []
