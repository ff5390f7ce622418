"""Writes the sentences of the speech without labels: EmoBank's of train, then WordNet's examples.

    python recipes/open/sentences.py path/to/emobank.csv /usr/share/wordnet sentences.txt

Each is there once, those of plain words only: EmoBank's of 3 to 16 words, WordNet's of 5 to 13, 30,299 in all. A number
behind the file writes as many of the first. WordNet is Debian's wordnet-base. EmoBank's sentences are CC-BY-SA 4.0, and
so is the file.
"""

import csv
import sys
from pathlib import Path

from cmkd.atomic import written_whole
from cmkd.corpora.spoken_sentences import WORDNET_FILES, reason_to_leave_out, wordnet_examples


def main(emobank: Path, wordnet: Path, output: Path, count: int | None = None) -> None:
    with emobank.open(encoding="utf-8-sig", newline="") as file:
        rated = [row["text"].strip() for row in csv.DictReader(file) if row["split"] == "train"]
    lines = (line for name in WORDNET_FILES for line in (wordnet / name).read_text(encoding="utf-8").splitlines())
    examples = (example.strip() for line in lines for example in wordnet_examples(line))
    sentences = [text for text in rated if not reason_to_leave_out(text, 3, 16)]
    sentences += [text for text in examples if not reason_to_leave_out(text, 5, 13)]
    with written_whole(output) as unfinished:
        unfinished.write_text("".join(f"{text}\n" for text in list(dict.fromkeys(sentences))[:count]), encoding="utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]), *map(int, sys.argv[4:]))
