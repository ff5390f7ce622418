"""`spoken-sentences`: sentences of your own, or WordNet's examples, spoken by a synthesiser. Nobody rated them.

Speech with words and without ratings, for a teacher to judge. `data_dir` is a text file in UTF-8 with a sentence on
each line, or the folder of a WordNet (Debian's wordnet-base has it in /usr/share/wordnet), of whose files `data.noun`,
`data.verb`, `data.adj` and `data.adv` the examples are taken: what stands in quotation marks after a definition.

- **Sentences** of `min_words` to `max_words` plain words are spoken, each once: those that consist of letters, with
  apostrophes, hyphens and the usual punctuation, so that there is no doubt how they are read.
- **Labels**: none. Activation, valence and dominance are NaN in all rows.
- **Splits**: all is `train`, in the voices that the synthesiser has for it. The voices of validation and test of
  another spoken corpus are thus not among them.
- **Acting**: with `acted`, each utterance gets levels of activation and dominance, drawn as in SpokenEmoBank and laid
  on the speech by WORLD (`cmkd.corpora.expression`), so that the speech varies as it does there. The levels are in no
  column.
- **Identity**: an utterance is named by its sentence, and what it sounds like depends on that and `seed` only. With
  `max_sentences` those that a smaller number takes are among those of a larger one.

Licences: yours for your own sentences; WordNet's for its examples (Princeton University: any use, with its notice). The
synthesiser's licence is in the report.
"""

from __future__ import annotations

import hashlib
import math
import os
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from cmkd.corpora.acted_speech import ActedUtterance, act
from cmkd.corpora.performed_speech import performed_corpus
from cmkd.corpora.report import CorpusError, CorpusProblem, CorpusReport
from cmkd.corpora.schema import Corpus
from cmkd.corpora.speech_synthesis import Voice
from cmkd.corpora.synthesisers import make_synthesiser

LABEL_SCALE = (1.0, 5.0)
"""Of labels that there are none of: SpokenEmoBank's."""

WORDNET_FILES = ("data.noun", "data.verb", "data.adj", "data.adv")

PLAIN = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*", re.UNICODE)
"""A plain word."""

_SENTENCE = re.compile(rf"[\"'“‘]?{PLAIN.pattern}(?:[,;:]? {PLAIN.pattern})*[.!?]?[\"'”’]?")
_EXAMPLE = re.compile(r"\"([^\"]+)\"")


def build(
    data_dir: str | os.PathLike[str] | None,
    on_error: str,
    *,
    voices: str = "flite",
    models_dir: str | os.PathLike[str] | None = None,
    speech_dir: str | os.PathLike[str] | None = None,
    min_words: int = 5,
    max_words: int = 13,
    max_sentences: int | None = None,
    acted: bool = True,
    seed: int = 0,
    num_proc: int = 2,
) -> Corpus:
    """Speaks sentences as the module's documentation describes, or takes them from the cache.

    Args:
        data_dir (path): A text file with a sentence on each line, or the folder of a WordNet.
        on_error (`str`): See `load_corpus`. A line that is not UTF-8 is a problem.
        voices (`str`, *optional*, defaults to `"flite"`): The synthesiser, "flite", "espeak" or "kokoro".
        models_dir (path, *optional*): The folder of Kokoro's files. By default they come from the Hub.
        speech_dir (path, *optional*): The folder in which speech is kept before it is acted on, 60 to 100 MB an hour.
            By default it is in the cache of datasets.
        min_words (`int`, *optional*, defaults to 5): Shorter sentences are left out.
        max_words (`int`, *optional*, defaults to 13): Longer sentences are left out.
        max_sentences (`int`, *optional*): The most sentences. Which are taken is drawn by `seed`.
        acted (`bool`, *optional*, defaults to `True`): Whether the speech is acted, or stays as the synthesiser speaks.
        seed (`int`, *optional*, defaults to 0): Seed of voices and acting, and of what `max_sentences` takes.
        num_proc (`int`, *optional*, defaults to 2): Processes that speak; what is spoken does not depend on it.

    Raises:
        FileNotFoundError: There is no such file, or no WordNet in the folder.
        CorpusError: Lines have problems and `on_error` is "raise", or no sentence is left.
        ValueError: A setting is out of its range.
        ImportError: The synthesiser is not installed.
    """
    if not 1 <= min_words <= max_words:
        raise ValueError(
            f"min_words is {min_words} and max_words {max_words}, but must be at least 1 and at least min_words."
        )
    if max_sentences is not None and max_sentences < 1:
        raise ValueError(f"max_sentences is {max_sentences}, but must be at least 1, or None for all.")
    paths, is_wordnet = _find(data_dir)
    synthesiser = make_synthesiser(voices, models_dir)
    content = b"".join(path.read_bytes() for path in paths)
    report = CorpusReport(
        name="spoken-sentences",
        release="",  # performed_corpus makes it
        label_scale=LABEL_SCALE,
        config={
            "sentences_sha256": hashlib.sha256(content).hexdigest(),
            "voices": voices,
            "min_words": min_words,
            "max_words": max_words,
            "max_sentences": max_sentences,
            "acted": acted,
            "seed": seed,
        },
        notes=[
            f"synthetic speech ({synthesiser.licence}){' with acted prosody' if acted else ''}, without ratings",
            "sentences: examples of WordNet (Princeton University)" if is_wordnet else f"sentences: {paths[0].name}",
        ],
    )
    sentences: dict[str, None] = {}
    skipped: Counter[str] = Counter()
    for sentence in _sentences(paths, is_wordnet, report):
        reason = reason_to_leave_out(sentence, min_words, max_words)
        if not reason and sentence in sentences:
            reason = "said before"
        if reason:
            skipped[reason] += 1
        else:
            sentences[sentence] = None
    if report.problems and on_error == "raise":
        raise CorpusError(report, 'Correct these lines, or pass on_error="skip" to leave them out and count them.')
    if not sentences:
        problem = CorpusProblem(paths[0].name, "no sentences", f"none has {min_words} to {max_words} plain words")
        report.refuse(problem, "Allow other lengths, or pass a file with a sentence on each line.")
    utterances = [_utterance(sentence, synthesiser.split_voices["train"], seed) for sentence in sentences]
    if max_sentences is not None:
        drawn = sorted(utterances, key=lambda utterance: _place(utterance.id, seed))[:max_sentences]
        skipped["beyond max_sentences"] += len(utterances) - len(drawn)
        taken = {utterance.id for utterance in drawn}
        utterances = [utterance for utterance in utterances if utterance.id in taken]
    skipped.update(problem.reason for problem in report.problems)
    report.skipped = {reason: number for reason, number in skipped.most_common() if number}
    return performed_corpus(
        {"train": utterances},
        report,
        voices=voices,
        models_dir=models_dir,
        speech_dir=speech_dir,
        num_proc=num_proc,
        acted=acted,
    )


def _find(data_dir: str | os.PathLike[str] | None) -> tuple[list[Path], bool]:
    """The files, and whether they are WordNet's."""
    if data_dir is None:
        raise ValueError(
            "data_dir is None: pass a text file with a sentence on each line, or the folder of a WordNet, such as "
            "/usr/share/wordnet."
        )
    path = Path(data_dir)
    if path.is_file():
        return [path], False
    paths = [path / name for name in WORDNET_FILES]
    missing = [file.name for file in paths if not file.is_file()]
    if missing:
        raise FileNotFoundError(
            f"data_dir is {str(data_dir)!r}, which is neither a text file nor the folder of a WordNet: it lacks "
            f"{', '.join(missing)}."
        )
    return paths, True


def _sentences(paths: list[Path], is_wordnet: bool, report: CorpusReport) -> Iterator[str]:
    """The sentences as they stand, without spaces around them; lines that cannot be read go to the report."""
    for path in paths:
        for number, line in enumerate(path.read_bytes().splitlines(), start=1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                report.problems.append(CorpusProblem(f"{path.name}:{number}", "not text", f"not UTF-8: {error.reason}"))
                continue
            if is_wordnet:
                yield from (example.strip() for example in wordnet_examples(text))
            elif text.strip():
                yield text.strip()


def wordnet_examples(line: str) -> list[str]:
    """The examples on a line of WordNet's data files.

    >>> wordnet_examples('0001 00 a 01 able 0 000 | having the means; "able to swim"; "she was able to program"')
    ['able to swim', 'she was able to program']
    """
    if line.startswith("  "):  # the licence, at the head of the file
        return []
    return _EXAMPLE.findall(line.partition("|")[2])


def reason_to_leave_out(sentence: str, min_words: int, max_words: int) -> str:
    """Why a sentence is not spoken, in a few words; "" if it is: it has plain words only, and as many as are wanted."""
    if not _SENTENCE.fullmatch(sentence):
        return "not only plain words"
    number = len(PLAIN.findall(sentence))
    if number < min_words:
        return f"fewer than {min_words} words"
    return f"more than {max_words} words" if number > max_words else ""


def _utterance(sentence: str, voices: Sequence[Voice], seed: int) -> ActedUtterance:
    id = hashlib.sha256(sentence.encode()).hexdigest()[:16]
    voice = random.Random(f"{seed}/{id}").choice(voices)
    rng = random.Random(f"{seed}/{id}/acting")
    prosody = act(rng.uniform(-1, 1), rng.uniform(-1, 1), rng)
    return ActedUtterance(id, sentence, voice, prosody, math.nan, math.nan, math.nan)


def _place(id: str, seed: int) -> str:
    """Where a sentence stands in the order in which `max_sentences` takes them."""
    return hashlib.sha256(f"{seed}/{id}".encode()).hexdigest()
