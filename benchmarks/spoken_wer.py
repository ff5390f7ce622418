"""How well a recogniser understands SpokenEmoBank: word error rates by voice and by acting.

    python benchmarks/spoken_wer.py --data_dir path/to/emobank.csv --kokoro_dir path/to/kokoro \\
        --models_dir path/to/models --output docs/results/spoken_emobank_wer.json

Each corpus is transcribed as `cmkd transcribe` does it (resumable), as it is and, where it was acted on by WORLD, as it
was spoken before: the difference is what acting costs. `--splits` and `--max_utterances` say how much of it. Synthetic
speech.
"""

import argparse
import csv
import dataclasses
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from datasets import concatenate_datasets

from cmkd.corpora import load_corpus
from cmkd.corpora.acted_speech import ActedUtterance, Prosody
from cmkd.corpora.intelligibility import word_errors_by
from cmkd.corpora.performed_speech import performed_corpus
from cmkd.corpora.schema import Corpus, normalise_split
from cmkd.corpora.speech_synthesis import Voice
from cmkd.corpora.transcripts import read_transcripts
from cmkd.json_files import write_json
from cmkd.runs.folder import versions
from cmkd.transcription.transcribe import transcribe

NEUTRAL = Prosody(rate=175, pitch=50, pitch_range=50, volume=100)


def rows_of(emobank: Path, splits: list[str], folder: Path) -> Path:
    """A copy of emobank.csv with the rows of these splits only; an utterance does not depend on the others."""
    with emobank.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        rows = [row for row in reader if normalise_split(row["split"].strip()) in splits]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "emobank.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, reader.fieldnames or ())
        writer.writeheader()
        writer.writerows(rows)
    return path


def not_acted(corpus: Corpus, arguments: argparse.Namespace) -> Corpus:
    """The same utterances as Kokoro spoke them."""
    splits = {
        split: [
            ActedUtterance(
                id=row["id"],
                transcript=row["transcript"],
                voice=Voice(row["speaker"], row["gender"]),
                prosody=NEUTRAL,
                activation=row["activation"],
                valence=row["valence"],
                dominance=row["dominance"],
            )
            for row in rows.remove_columns("audio")
        ]
        for split, rows in corpus.items()
    }
    report = dataclasses.replace(corpus.report, name="spoken-emobank-neutral", notes=[])
    return performed_corpus(
        splits,
        report,
        voices="kokoro",
        models_dir=arguments.kokoro_dir,
        speech_dir=arguments.speech_dir,
        num_proc=arguments.num_proc,
        acted=False,
    )


def understood(corpus: Corpus, name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Word errors of a corpus, and which it is."""
    sidecar = arguments.work / f"{name}-{corpus.report.release}.parquet"
    began = time.process_time()
    transcribe(corpus, arguments.model, sidecar, models_dir=str(arguments.models_dir))
    table = read_transcripts(sidecar)
    heard = dict(zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True))
    errors = word_errors_by(concatenate_datasets(list(corpus.values())), heard)
    found = errors["all"]["all"]
    print(f"{name:16} word error rate {found['word_error_rate']:.1%} of {found['words']:,} words", flush=True)
    return {
        "corpus_version": corpus.report.version,
        "utterances": corpus.report.utterances,
        "hours": corpus.report.hours,
        "cpu_seconds": round(time.process_time() - began),
        "revision": table["revision"][0].as_py(),
        "word_errors": errors,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, required=True, help="emobank.csv")
    parser.add_argument("--models_dir", type=Path, required=True, help="folder of models under their Hub names")
    parser.add_argument("--kokoro_dir", type=Path, help="folder of Kokoro's files; by default they come from the Hub")
    parser.add_argument("--speech_dir", type=Path, help="folder of the speech that Kokoro has spoken before")
    parser.add_argument("--output", type=Path, required=True, help="the JSON file")
    parser.add_argument("--model", default="openai/whisper-tiny.en", help="the recogniser")
    parser.add_argument("--voices", nargs="+", default=["kokoro", "espeak"], help="the synthesisers")
    parser.add_argument("--splits", nargs="+", default=["test"], help="train, validation, test")
    parser.add_argument("--max_utterances", type=int, help="the most utterances of each split")
    parser.add_argument("--num_proc", type=int, default=1, help="processes that speak")
    parser.add_argument("--work", type=Path, default=Path("runs/spoken_wer"), help="folder of transcripts")
    arguments = parser.parse_args()

    data = rows_of(arguments.data_dir, arguments.splits, arguments.work)
    settings = {"max_utterances": arguments.max_utterances, "num_proc": arguments.num_proc}
    results: dict[str, Any] = {}
    for voices in arguments.voices:
        if voices == "kokoro":
            folders = {"models_dir": arguments.kokoro_dir, "speech_dir": arguments.speech_dir}
            corpus = load_corpus("spoken-emobank", data, voices=voices, **settings, **folders)
            neutral = not_acted(corpus, arguments)
            results["kokoro"] = {
                "acted": understood(corpus, "kokoro", arguments),
                "neutral": understood(neutral, "kokoro-neutral", arguments),
            }
        else:
            corpus = load_corpus("spoken-emobank", data, voices=voices, **settings)
            results[voices] = {"acted": understood(corpus, voices, arguments)}
    write_json(
        arguments.output,
        {
            "recogniser": arguments.model,
            "normaliser": "transformers EnglishTextNormalizer, without spelling table",
            "splits": arguments.splits,
            "max_utterances": arguments.max_utterances,
            "voices": results,
            "versions": versions() | {"jiwer": version("jiwer")},
        },
    )


if __name__ == "__main__":
    main()
