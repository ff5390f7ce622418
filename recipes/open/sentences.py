"""Writes the sentences of the speech without labels in student.yaml: EmoBank's of train, then WordNet's examples.

    python recipes/open/sentences.py path/to/emobank.csv /usr/share/wordnet sentences.txt

Each is there once, those of plain words only: EmoBank's of 3 to 16 words, WordNet's of 5 to 13. The first 14,000 are
written. WordNet is Debian's wordnet-base. EmoBank's sentences are CC-BY-SA 4.0, and so is the file.
"""

import csv
import sys
from pathlib import Path

from cmkd.atomic import written_whole
from cmkd.corpora.spoken_sentences import WORDNET_FILES, reason_to_leave_out, wordnet_examples

COUNT = 14_000


def main(emobank: Path, wordnet: Path, output: Path) -> None:
    with emobank.open(encoding="utf-8-sig", newline="") as file:
        rated = [row["text"].strip() for row in csv.DictReader(file) if row["split"] == "train"]
    lines = (line for name in WORDNET_FILES for line in (wordnet / name).read_text(encoding="utf-8").splitlines())
    examples = (example.strip() for line in lines for example in wordnet_examples(line))
    sentences = [text for text in rated if not reason_to_leave_out(text, 3, 16)]
    sentences += [text for text in examples if not reason_to_leave_out(text, 5, 13)]
    with written_whole(output) as unfinished:
        unfinished.write_text("".join(f"{text}\n" for text in list(dict.fromkeys(sentences))[:COUNT]), encoding="utf-8")


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:]))
