"""Commands that build corpora."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from cmkd.commands import CorpusName, DataDir
from cmkd.corpora import load_corpus
from cmkd.corpora.settings import CorpusSettings


def prepare(name: CorpusName, corpus: CorpusSettings, data_dir: DataDir = None, card: Path | None = None) -> None:
    """Builds a corpus, checks it, prints its card, and writes the card as JSON beside the data.

        cmkd prepare msp-podcast path/to/MSP-PODCAST-Publish-1.6
        cmkd prepare iemocap path/to/IEMOCAP_full_release --corpus.fold 1
        cmkd prepare manifest my_corpus --corpus.label_scale 1 7 --corpus.on_error skip
        cmkd prepare spoken-emobank emobank.csv --corpus.max_utterances 1500

    `cmkd prepare NAME --help` lists the settings of that corpus.

    Args:
        name: The corpus.
        corpus: Settings of the corpus, as under `corpus:` in a recipe.
        data_dir: The folder of the corpus.
        card: The file to write the card to; null stands for cmkd_NAME_card.json beside the data.
    """
    built = load_corpus(name, data_dir, **corpus)
    print(built.report)
    path = card or _card_path(name, data_dir, built.report.config)
    if path is None:
        print("This corpus has no folder: pass --card PATH to write the card.")
        return
    try:
        built.report.save(path)
    except OSError as error:
        raise OSError(f"the card cannot be written to {path}: {error}. Pass --card PATH.") from error
    print(f"Card: {path}")


def transcribe(
    name: CorpusName,
    corpus: CorpusSettings,
    model: str,
    data_dir: DataDir = None,
    output: Path = Path("transcripts.parquet"),
    models_dir: str | None = None,
    revision: str | None = None,
    language: str | None = None,
    precision: Literal["float32", "bfloat16", "float16"] = "float32",
    batch_seconds: float = 240.0,
) -> None:
    """Transcribes a corpus into one Parquet file; run it again after an interruption, or for new utterances.

        cmkd transcribe msp-podcast path/to/MSP-PODCAST-Publish-1.6 --model openai/whisper-small.en
        accelerate launch -m cmkd transcribe iemocap path/to/IEMOCAP_full_release --model openai/whisper-tiny.en

    Then train with `--corpus.transcripts transcripts.parquet`. `cmkd transcribe NAME --help` lists the settings of that
    corpus.

    Args:
        name: The corpus.
        corpus: Settings of the corpus, as under `corpus:` in a recipe.
        model: A Whisper or CTC model: Hub name or folder.
        data_dir: The folder of the corpus.
        output: The file of transcripts. Those that it already holds are kept.
        models_dir: The folder that holds models under their Hub names.
        revision: The branch, tag or commit of the model on the Hub.
        language: The language of the speech, for a multilingual Whisper.
        precision: The precision of weights and activations.
        batch_seconds: Seconds of audio in a batch, padding included; fewer need less memory.
    """
    from transformers.utils import logging

    from cmkd.processes import join_launch, main_process_first
    from cmkd.transcription.transcribe import transcribe as transcribe_corpus

    logging.disable_progress_bar()  # of loading weights; that of the transcription stays
    state = join_launch()
    with main_process_first("build the corpus"):
        built = load_corpus(name, data_dir, **corpus)
    done = transcribe_corpus(
        built,
        model,
        output,
        models_dir=models_dir,
        revision=revision,
        language=language,
        precision=precision,
        batch_seconds=batch_seconds,
    )
    if state.is_main_process:
        print(done)


def _card_path(name: str, data_dir: Path | None, config: dict[str, Any]) -> Path | None:
    """Beside the data, None for a corpus without any."""
    if data_dir is None and "data_dir" in config:
        data_dir = Path(config["data_dir"])
    if data_dir is None:
        return None
    return (data_dir if data_dir.is_dir() else data_dir.parent) / f"cmkd_{name.replace('-', '_')}_card.json"
