"""How many words of synthetic voices, and of people, students that listen for words get wrong.

    python -m benchmarks.ears "with Kokoro=runs/open/kokoro_ears/lexical" "before=students/cmkd-open" \\
        --emobank path/to/emobank.csv --kokoro path/to/kokoro --speech path/to/librispeech \\
        --recognizer openai/whisper-tiny.en --output docs/results/ears.json

Each is a student or the folder of a stage `lexical`. What it hears is the likeliest piece at each step, without a
language model. Synthetic voices are those of the test split of SpokenEmoBank, in Kokoro's voices and in espeak-ng's, of
which no training has heard a voice or a sentence. Clips of people need no transcripts: there the words are those that
the recogniser hears, which is not always right itself. Their encoders are of those that hear waves as they are, such as
Moonshine.
"""

import argparse
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jiwer
import torch
from transformers import AutoFeatureExtractor

from cmkd.corpora import load_corpus
from cmkd.corpora.schema import Corpus
from cmkd.features.audio import read_audio
from cmkd.features.inputs import SpeechInputs
from cmkd.features.word_pieces import spoken_letters
from cmkd.identity import folder_digest, is_stage_with_ears
from cmkd.json_files import write_json
from cmkd.runs.ears import load_ears
from cmkd.transcription.recognizers import load_recognizer

RATE = 16000
SOUND = (".flac", ".wav", ".mp3", ".opus")


def word_error_rate(model: str, corpus: Corpus, encoder: str | None = None) -> float | None:
    """Of the words of the test split, as `jiwer` counts them; None of a student that does not listen for words.

    Args:
        model: a student or the folder of a stage `lexical`.
        corpus: with a test split.
        encoder: whose feature extractor is taken where the model has none, as the folder of a stage.
    """
    rows = corpus["test"].filter(lambda row: spoken_letters(row["transcript"]) != "", load_from_cache_file=False)
    waves = SpeechInputs(
        rows, AutoFeatureExtractor.from_pretrained(encoder if is_stage_with_ears(Path(model)) else model)
    )
    return wrong_words(model, waves, [spoken_letters(words) for words in rows["transcript"]])


def wrong_words(model: str, waves: Iterable[torch.Tensor], said: list[str]) -> float | None:
    """The word error rate of the student, (samples,) each wave; None if it does not listen for words."""
    student = load_ears(model).eval()
    if student.config.word_pieces is None:
        return None
    heard = []
    for wave in waves:
        with torch.no_grad():
            scores, _ = student.piece_logits(input_values=wave[None])
        steps = torch.unique_consecutive(scores[0].argmax(-1)).tolist()
        spelled = "".join(student.config.word_pieces[step - 1] for step in steps if step > 0)
        heard.append(" ".join(spelled.replace("▁", " ").split()))
    return jiwer.wer(said, heard)


def words_of_people(models: dict[str, str], files: list[Path], recognizer: str) -> dict[str, Any]:
    """How many words of the files each model hears otherwise than the recogniser, one of `cmkd transcribe`."""
    waves = [read_audio(path, RATE) for path in files]
    network = load_recognizer(recognizer)
    said = [spoken_letters(hypothesis.text) for hypothesis in network.recognize(waves)]
    tensors = [torch.from_numpy(wave) for wave in waves]
    return {
        "recognizer": {"name": Path(network.name).name, "revision": network.revision},
        "files": len(files),
        "words": sum(len(words.split()) for words in said),
        "word_error_rate": {name: wrong_words(folder, tensors, said) for name, folder in models.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="NAME=FOLDER", help="students, or folders of a stage lexical")
    parser.add_argument("--encoder", default="UsefulSensors/moonshine-tiny", help="whose feature extractor a stage has")
    parser.add_argument("--emobank", required=True, help="emobank.csv")
    parser.add_argument("--kokoro", required=True, help="folder of Kokoro's files")
    parser.add_argument("--kokoro_speech", help="folder where its speech is kept")
    parser.add_argument("--speech", type=Path, required=True, help="folder of clips of people")
    parser.add_argument("--recognizer", required=True, help="Whisper or CTC model that hears the words of these clips")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    models = dict(given.split("=", 1) for given in arguments.models)
    kokoro = {"voices": "kokoro", "models_dir": arguments.kokoro, "speech_dir": arguments.kokoro_speech}
    corpora = {
        "Kokoro": load_corpus("spoken-emobank", arguments.emobank, only_split="test", **kokoro),
        "espeak-ng": load_corpus("spoken-emobank", arguments.emobank, only_split="test"),
    }
    files = sorted(path for path in arguments.speech.iterdir() if path.suffix in SOUND)
    people = words_of_people(models, files, arguments.recognizer)
    of_people = people.pop("word_error_rate")
    rows = {}
    for name, folder in models.items():
        rates = {voices: word_error_rate(folder, corpus, arguments.encoder) for voices, corpus in corpora.items()}
        rates["people"] = of_people[name]
        rows[name] = {"folder_digest": folder_digest(Path(folder)), "word_error_rate": rates}
        print(name, rates, flush=True)
    versions = {package: version(package) for package in ("torch", "transformers", "jiwer")}
    described = {
        voices: {"version": corpus.report.version, "sentences": len(corpus["test"])}
        for voices, corpus in corpora.items()
    }
    write_json(arguments.output, {"models": rows, "people": people, "corpora": described, "versions": versions})


if __name__ == "__main__":
    main()
